//! The bootstraps of six recorded nodes, made again from the pod specs that made them. Needs the
//! shared fixtures for all six; two nodes are kept in the repository and always run.

#[path = "support/pod.rs"]
mod support;

use serde_json::Value;

use support::{Pod, fixture_root, read_json};

#[test]
fn envoy_bootstraps_equal_the_recorded_ones() {
    for (root, name) in nodes() {
        let pod = Pod::load(&root, &name);
        let built = pod.envoy(|_| {}).document;
        let want = read_json(&root.join("nodes").join(&name).join("envoy-rev.json"));
        assert_same(&name, &built, &want);
    }
}

#[test]
fn grpc_bootstraps_equal_the_recorded_ones() {
    for (root, name) in nodes() {
        let pod = Pod::load(&root, &name);
        let built = pod.grpc();
        let mut want = read_json(&root.join("nodes").join(&name).join("grpc-bootstrap.json"));
        // A zero value of Go's Node struct that no reader expects; left out on purpose.
        want["node"]
            .as_object_mut()
            .expect("node")
            .remove("UserAgentVersionType");
        assert_same(&name, &built, &want);
    }
}

/// Both copies in the repository and, if it is there, the whole shared set.
fn nodes() -> Vec<(std::path::PathBuf, String)> {
    let mut out = Vec::new();
    let local = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for root in [Some(local), fixture_root()].into_iter().flatten() {
        let mut names: Vec<String> = std::fs::read_dir(root.join("nodes"))
            .expect("nodes folder")
            .map(|entry| {
                entry
                    .expect("entry")
                    .file_name()
                    .into_string()
                    .expect("utf-8")
            })
            .collect();
        names.sort();
        out.extend(names.into_iter().map(|name| (root.clone(), name)));
    }
    assert!(out.len() >= 2, "no fixtures");
    out
}

fn assert_same(name: &str, built: &Value, want: &Value) {
    let mut differences = Vec::new();
    support::diff("", built, want, &mut differences);
    assert!(
        differences.is_empty(),
        "{name}:\n{}",
        differences.join("\n")
    );
    assert_eq!(built, want, "{name}");
}

/// What a `PROXY_CONFIG` became in the node metadata of a recorded Istio agent: `sent` is what
/// differs from the defaults, `gone` the defaults that were dropped, `null` stands for a refusal.
#[test]
fn proxy_configs_are_read_as_the_recorded_agent_read_them() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/proxy-config.json"
    );
    let text = std::fs::read_to_string(file).expect("fixture");
    let cases: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    assert!(cases.len() > 30, "the fixture is whole");
    for case in cases {
        let mut config = bootstrap_templates::ProxyConfig::default();
        let mut want = config.to_json();
        let read = config.overlay(&case["input"]);
        let accepted = read.and_then(|_| config.validate());
        let Some(sent) = case["sent"].as_object() else {
            assert!(accepted.is_err(), "{case}");
            continue;
        };
        assert!(accepted.is_ok(), "{case}: {accepted:?}");
        want.extend(sent.clone());
        for gone in case["gone"].as_array().into_iter().flatten() {
            want.remove(gone.as_str().expect("name"));
        }
        assert_eq!(config.to_json(), want, "{case}");
    }
}
