//! A real Envoy that checks a bootstrap without serving it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// `$ENVOY_BIN`, or the one that `make setup` puts into `$OUTRIGGER_VENV` or the user's cache.
/// `make test` names the folder, and then it must be there; without `make` its absence is said.
pub(crate) fn find() -> Option<PathBuf> {
    if let Some(binary) = std::env::var_os("ENVOY_BIN") {
        return Some(PathBuf::from(binary));
    }
    let named = std::env::var_os("OUTRIGGER_VENV").map(PathBuf::from);
    let cache = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache/outrigger/venv"));
    let venv = named.clone().or_else(cache)?;
    let entries = std::fs::read_dir(venv.join("lib"))
        .into_iter()
        .flatten()
        .flatten();
    let found = entries
        .map(|entry| entry.path().join("site-packages/envoy/_bin/envoy"))
        .find(|binary| binary.is_file());
    assert!(
        found.is_some() || named.is_none(),
        "no Envoy in {}",
        venv.display()
    );
    if found.is_none() {
        println!("skipped: no Envoy (set ENVOY_BIN, or run `make setup`)");
    }
    found
}

/// Envoy's complaint, if it has one.
pub(crate) fn validate(envoy: &Path, document: &Value) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("envoy-rev.json");
    std::fs::write(&file, document.to_string()).expect("written");
    let output = Command::new(envoy)
        .args(["--mode", "validate", "--allow-unknown-static-fields"])
        .args(["-l", "error", "-c"])
        .arg(&file)
        .current_dir(folder.path())
        .output()
        .expect("envoy runs");
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}
