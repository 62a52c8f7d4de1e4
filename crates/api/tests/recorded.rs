//! Recorded xDS answers and bootstraps through the JSON converter, both ways.

use std::fs;
use std::path::{Path, PathBuf};

use outrigger_api::envoy::envoy::config::bootstrap::v3::Bootstrap;
use outrigger_api::json::{self, DecodeOptions, EncodeOptions};
use prost::Message as _;
use serde_json::Value;

fn shared() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path =
        std::env::var_os("OUTRIGGER_SHARED").map_or_else(|| root.join("../shared"), PathBuf::from);
    let found = path.join("fixtures").is_dir();
    if !found {
        println!("skipped: no recorded fixtures at {}", path.display());
    }
    found.then_some(path)
}

fn files(dir: &Path, extension: &str, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            files(&path, extension, out);
        } else if path.extension().is_some_and(|e| e == extension) {
            out.push(path);
        }
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

/// 1.0 and 1 are the same JSON number.
fn normal(value: Value) -> Value {
    match value {
        Value::Number(n) => n.as_f64().map_or(Value::Number(n), Value::from),
        Value::Array(items) => items.into_iter().map(normal).collect(),
        Value::Object(map) => map.into_iter().map(|(k, v)| (k, normal(v))).collect(),
        other => other,
    }
}

fn differences(got: &Value, want: &Value, path: &str, out: &mut Vec<String>) {
    match (got, want) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                let (x, y) = (
                    a.get(key).unwrap_or(&Value::Null),
                    b.get(key).unwrap_or(&Value::Null),
                );
                differences(x, y, &format!("{path}.{key}"), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (x, y)) in a.iter().zip(b).enumerate() {
                differences(x, y, &format!("{path}[{i}]"), out);
            }
        }
        _ if got == want => {}
        _ => out.push(format!("{path}: {got} instead of {want}")),
    }
}

#[test]
fn recorded_answers_print_as_recorded() {
    let Some(shared) = shared() else { return };
    let mut paths = Vec::new();
    files(&shared.join("fixtures/xds"), "pb", &mut paths);
    assert!(paths.len() > 50, "only {} recordings", paths.len());
    let mut wrong = Vec::new();
    for path in paths {
        let bytes = fs::read(&path).expect("readable");
        let name = "envoy.service.discovery.v3.DiscoveryResponse";
        let got = json::decode(name, &bytes, &DecodeOptions::default()).expect("a message");
        let want = read_json(&path.with_extension("json"));
        let mut found = Vec::new();
        differences(&normal(got), &normal(want), "", &mut found);
        wrong.extend(
            found
                .into_iter()
                .take(3)
                .map(|d| format!("{}: {d}", path.display())),
        );
    }
    assert!(
        wrong.is_empty(),
        "{} differences:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
}

#[test]
fn answers_survive_the_way_to_json_and_back() {
    let Some(shared) = shared() else { return };
    let mut paths = Vec::new();
    files(&shared.join("fixtures/xds/02-helloworld"), "pb", &mut paths);
    let name = "envoy.service.discovery.v3.DiscoveryResponse";
    for path in paths {
        let bytes = fs::read(&path).expect("readable");
        let value = json::decode(name, &bytes, &DecodeOptions::default()).expect("a message");
        let encoded = json::encode(name, &value, &EncodeOptions::default()).expect("encodes");
        let again =
            json::decode(name, &encoded.bytes, &DecodeOptions::default()).expect("a message");
        assert_eq!(value, again, "{}", path.display());
    }
}

/// Differences that the JSON form of protobuf allows: names in camel case, zero values left out, 64-bit integers as
/// text, durations with more or fewer zeros.
fn covers(given: &Value, got: &Value, path: &str, out: &mut Vec<String>) {
    match (given, got) {
        (Value::Object(given), Value::Object(got)) => {
            for (key, value) in given {
                match got.get(key).or_else(|| got.get(&snake(key))) {
                    Some(got) => covers(value, got, &format!("{path}.{key}"), out),
                    None if is_zero(value) => {}
                    None => out.push(format!("{path}.{key} is lost")),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                covers(a, b, &format!("{path}[{i}]"), out);
            }
        }
        (Value::Number(a), Value::String(b)) if a.to_string() == *b => {}
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => {}
        (Value::String(a), Value::String(b))
            if a == b || (seconds(a).is_some() && seconds(a) == seconds(b)) => {}
        (a, b) if a == b => {}
        (a, b) => out.push(format!("{path}: {b} instead of {a}")),
    }
}

fn snake(camel: &str) -> String {
    let mut out = String::new();
    for c in camel.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        // The names of the enums' zero values that the recordings spell out.
        Value::String(s) => matches!(s.as_str(), "" | "ROUND_ROBIN" | "TCP" | "DEFAULT" | "AUTO"),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

fn seconds(text: &str) -> Option<f64> {
    text.strip_suffix('s')?.parse().ok()
}

#[test]
fn recorded_bootstraps_keep_everything_on_the_way_through_the_generated_types() {
    let Some(shared) = shared() else { return };
    let mut paths = Vec::new();
    files(&shared.join("fixtures/nodes"), "json", &mut paths);
    let mut seen = 0;
    for path in paths.iter().filter(|p| p.ends_with("envoy-rev.json")) {
        let name = "envoy.config.bootstrap.v3.Bootstrap";
        let given = read_json(path);
        let encoded = json::encode(name, &given, &EncodeOptions::default())
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let bootstrap =
            Bootstrap::decode(encoded.bytes.as_slice()).expect("the generated type reads it");
        assert!(
            bootstrap.node.is_some_and(|n| n.id.contains('~')),
            "{}",
            path.display()
        );
        let bootstrap =
            Bootstrap::decode(encoded.bytes.as_slice()).expect("the generated type reads it");
        let got = json::decode(name, &bootstrap.encode_to_vec(), &DecodeOptions::default())
            .expect("decodes");
        let mut lost = Vec::new();
        covers(&given, &got, "", &mut lost);
        assert!(lost.is_empty(), "{}: {}", path.display(), lost.join("\n"));
        seen += 1;
    }
    assert_eq!(seen, 6);
}
