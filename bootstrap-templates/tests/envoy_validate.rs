//! A real Envoy accepts what this crate writes. Needs its binary in `ENVOY_BIN`; skipped, with
//! the reason printed, otherwise.

#[path = "support/pod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use support::{Pod, fixture_root};

fn validate(envoy: &Path, name: &str, document: &Value) {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("envoy-rev.json");
    std::fs::write(&file, document.to_string()).expect("written");
    let output = Command::new(envoy)
        .args([
            "--mode",
            "validate",
            "--allow-unknown-static-fields",
            "-l",
            "error",
            "-c",
        ])
        .arg(&file)
        .current_dir(folder.path())
        .output()
        .expect("envoy runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {text}");
}

#[test]
fn envoy_accepts_every_bootstrap() {
    let Some(envoy) = std::env::var_os("ENVOY_BIN").map(PathBuf::from) else {
        eprintln!("skipped: ENVOY_BIN does not name an Envoy binary");
        return;
    };
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let root = fixture_root().unwrap_or(local);
    for entry in std::fs::read_dir(root.join("nodes")).expect("nodes") {
        let name = entry
            .expect("entry")
            .file_name()
            .into_string()
            .expect("utf-8");
        validate(
            &envoy,
            &name,
            &Pod::load(&root, &name).envoy(|_| {}).document,
        );
    }
    validate(&envoy, "everything", &everything(&root));
}

/// One bootstrap with every optional part that a stock Envoy knows (Istio's metadata discovery
/// and the removed Lightstep tracer are unknown to it).
fn everything(root: &Path) -> Value {
    let mut pod = Pod::load(root, "sleep");
    let overlay = json!({
        "tracing": { "zipkin": { "address": "z:1" }, "tlsSettings": { "mode": "ISTIO_MUTUAL" } },
        "envoyMetricsService": {
            "address": "m:2",
            "tlsSettings": {
                "mode": "MUTUAL", "clientCertificate": "/c", "privateKey": "/k",
                "caCertificates": "/r", "subjectAltNames": ["spiffe://x"],
            },
            "tcpKeepalive": { "probes": 3, "time": "10s" },
        },
        "envoyAccessLogService": { "address": "a:3" },
        "statsdUdpAddress": "10.1.1.1:9125",
        "extraStatTags": ["mine"],
    });
    pod.config.overlay(&overlay).expect("overlay");
    let annotations = pod.inputs.annotations.get_or_insert_default();
    for (name, value) in [
        (
            "sidecar.istio.io/statsHistogramBuckets",
            r#"{"istio":[1,5,10]}"#,
        ),
        ("sidecar.istio.io/statsFlushInterval", "1m30s"),
        ("sidecar.istio.io/statsEvictionInterval", "3m"),
    ] {
        annotations.insert(name.to_owned(), value.to_owned());
    }
    pod.inputs.ports.secure_metrics = 15091;
    pod.inputs.ports.secure_merged_metrics = 15092;
    pod.inputs.outlier_log_path = "/dev/stdout".to_owned();
    pod.inputs.external_sds = true;
    pod.inputs.ips.push("2001:db8::1".parse().expect("ip"));
    let self_discovery = "ISTIO_META_ENABLE_SELF_DISCOVERY".to_owned();
    pod.inputs
        .meta_variables
        .insert(self_discovery, "true".to_owned());
    pod.envoy(|i| {
        i.dual_stack = true;
        i.status_proxy_protocol = true;
        i.log_as_json = true;
    })
    .document
}
