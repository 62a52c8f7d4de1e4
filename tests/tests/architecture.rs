//! ARCHITECTURE.md is what a newcomer trusts: its paths exist, and the arrows it draws between crates hold.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What stands between backticks and looks like a path of this repository.
fn paths(page: &str) -> Vec<&str> {
    let quoted = page.split('`').skip(1).step_by(2);
    let rooted = quoted.filter(|text| {
        let first = text.split('/').next().unwrap_or_default();
        text.contains('/') && !first.is_empty() && root().join(first).exists()
    });
    rooted.collect()
}

/// Crates of this workspace that a manifest names outside its dev-dependencies.
fn dependencies(manifest: &str) -> Vec<String> {
    let text = read(manifest);
    let mut dev = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            dev = line.contains("dev-dependencies");
        }
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        let ours = name.starts_with("outrigger")
            || ["pilot-agent", "iptables-init", "bootstrap-templates"].contains(&name);
        if ours && !dev {
            found.push(name.to_owned());
        }
    }
    found
}

#[test]
fn every_path_on_the_page_exists() {
    let page = read("ARCHITECTURE.md");
    let paths = paths(&page);
    assert!(paths.len() > 20, "the page names its files: {paths:?}");
    let missing: Vec<_> = paths
        .iter()
        .filter(|path| !root().join(path).exists())
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn dependencies_point_the_way_the_map_says() {
    let agent = dependencies("agent/Cargo.toml");
    assert!(!agent.iter().any(|name| name == "outrigger"), "{agent:?}");
    for product in ["proxy", "agent", "iptables-init", "bootstrap-templates"] {
        let all = dependencies(&format!("{product}/Cargo.toml"));
        assert!(!all.iter().any(|name| name == "outrigger-tests"), "{all:?}");
    }
    for library in ["api", "base", "config", "xds"] {
        let all = dependencies(&format!("crates/{library}/Cargo.toml"));
        assert!(
            all.iter().all(|name| name.starts_with("outrigger-")),
            "{library} is below the products: {all:?}"
        );
    }
    for file in ["agent/Cargo.toml", "proxy/Cargo.toml"] {
        let all = dependencies(file);
        assert!(!all.is_empty(), "{file} names the crates it is built on");
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_proxy_names_no_generated_config_type() {
    let mut files = Vec::new();
    sources(&root().join("proxy/src"), &mut files);
    assert!(files.len() > 50, "{files:?}");
    for file in files {
        // Tests make wire messages as a control plane would.
        if file.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).expect("source");
        assert!(
            !text.contains("envoy::envoy::config::"),
            "{} uses a generated type; crates/config owns the translation",
            file.display()
        );
    }
}
