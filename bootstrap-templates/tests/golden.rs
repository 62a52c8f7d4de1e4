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
