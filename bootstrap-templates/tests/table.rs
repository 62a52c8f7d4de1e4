//! Every row of the table of settings: the document holds what the specification says, and a real
//! Envoy accepts it.

#[path = "support/cases.rs"]
mod cases;
#[path = "support/envoy.rs"]
mod envoy;
#[path = "support/pod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::{Value, json};

use cases::{Case, cases};
use support::{Pod, fixture_root};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn document(case: &Case) -> Value {
    let fixtures = fixtures();
    case.pod(Pod::load(&fixtures, "sleep"))
        .envoy(case.inputs)
        .document
}

/// The value at a path of keys, indices and names.
fn at<'a>(document: &'a Value, path: &str) -> &'a Value {
    let mut found = document;
    for part in path.split('/') {
        found = match found {
            Value::Array(items) => {
                let named = items.iter().find(|item| item["name"] == part);
                let index = || part.parse::<usize>().ok().and_then(|i| items.get(i));
                named.or_else(index).unwrap_or(&Value::Null)
            }
            other => other.get(part).unwrap_or(&Value::Null),
        };
    }
    found
}

#[test]
fn the_document_holds_what_each_setting_asks_for() {
    let cases = cases();
    assert!(cases.len() >= 40, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let document = document(case);
        for (path, want) in &case.want {
            let found = at(&document, path);
            let matches = match want {
                Value::String(text) if text == "present" => !found.is_null(),
                want => found == want,
            };
            if !matches {
                wrong.push(format!("{}: {path}: {found} instead of {want}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_real_envoy_accepts_every_row() {
    let Some(binary) = envoy::find() else { return };
    let rows = cases().into_iter().map(|case| {
        let document = document(&case);
        (case.name.to_owned(), document)
    });
    let root = fixture_root().unwrap_or_else(fixtures);
    let nodes = std::fs::read_dir(root.join("nodes"))
        .expect("nodes")
        .map(|entry| {
            let name = entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("utf-8");
            let document = Pod::load(&root, &name).envoy(|_| {}).document;
            (name, document)
        });
    let queue: Mutex<Vec<(String, Value)>> = Mutex::new(rows.chain(nodes).collect());
    let failures = Mutex::new(Vec::new());
    let next = || queue.lock().expect("queue").pop();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((name, document)) = next() {
                    if let Err(text) = envoy::validate(&binary, &stock(document)) {
                        failures
                            .lock()
                            .expect("failures")
                            .push(format!("{name}: {text}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("failures");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Without the two parts that only Istio's build of Envoy has ever known: the metadata discovery
/// extension and the Lightstep tracer, which Envoy has removed.
fn stock(mut document: Value) -> Value {
    if let Some(extensions) = document["bootstrap_extensions"].as_array_mut() {
        extensions.retain(|e| e["name"] != "metadata_discovery");
    }
    if document["tracing"]["http"]["name"] == json!("envoy.tracers.lightstep") {
        document.as_object_mut().expect("object").remove("tracing");
    }
    document
}
