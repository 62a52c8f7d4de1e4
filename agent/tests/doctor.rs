//! `pilot-agent doctor` beside a running agent, with a control plane that is fine, and with ones
//! that are not.

#[path = "support/authority.rs"]
mod authority;
#[path = "support/control_plane.rs"]
mod control_plane;
#[path = "support/pki.rs"]
mod pki;
#[path = "support/agent.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use authority::issue;
use control_plane::ControlPlane;
use pki::Authority;
use support::{Running, SLEEPER, Server, Setup, eventually, free_port, ready_admin, started};

const SECRET: &str = "c2VjcmV0LXNpZ25hdHVyZQ";

fn write_token(folder: &Path, lifetime: i64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("epoch");
    let now = i64::try_from(now.as_secs()).expect("seconds");
    let claims = json!({ "aud": ["istio-ca"], "iat": now - 7200, "exp": now + lifetime });
    let token = format!(
        "e30.{}.{SECRET}",
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let tokens = folder.join("var/run/secrets/tokens");
    std::fs::create_dir_all(&tokens).expect("folder");
    std::fs::write(tokens.join("istio-token"), token).expect("token");
}

/// A pod whose agent asks `port` for everything and trusts `root`.
fn pod(port: u16, root: &str, status_port: u16) -> Setup {
    let setup = Setup::new(SLEEPER, ready_admin().port)
        .config("discoveryAddress", json!(format!("localhost:{port}")))
        .env("ENVOY_STATUS_PORT", status_port.to_string())
        .env("ISTIO_META_INTERCEPTION_MODE", "NONE");
    let folder = setup.folder.path();
    std::fs::write(folder.join("var/run/secrets/istio/root-cert.pem"), root).expect("root");
    setup
}

fn doctor(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pilot-agent"))
        .arg("doctor")
        .args(args)
        .current_dir(folder)
        .output()
        .expect("doctor runs")
}

fn report(agent: &Running) -> (Option<i32>, BTreeMap<String, Value>) {
    let output = doctor(agent.setup.folder.path(), &["-o", "json"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(!text.contains(SECRET), "{text}");
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let checks = report["checks"].as_array().expect("checks").iter();
    let name = |check: &Value| check["name"].as_str().unwrap_or_default().to_owned();
    let checks = checks.map(|check| (name(check), check.clone())).collect();
    (output.status.code(), checks)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_pod_has_no_failure() {
    let authority = Authority::new("mesh");
    let mut plane = ControlPlane::start(Some(&authority)).await;
    let port = plane.address.port();
    let root = authority.root_pem.clone();
    let ca = async {
        loop {
            issue(plane.call().await, &authority, 86_400).await;
        }
    };
    let ready = Server::start(|_| (200, "text/plain", String::new()));
    let asserted = tokio::task::spawn_blocking(move || {
        let setup = pod(port, &root, ready.port);
        write_token(setup.folder.path(), 43_200);
        let agent = started(setup);
        eventually("a certificate", || {
            let (_, body) = agent.raw("/debug/statusz", "");
            let state: Value = serde_json::from_slice(&body).ok()?;
            state["certificate"]["not_after_unix_seconds"].as_u64()
        });
        let (code, checks) = report(&agent);
        for (name, want) in [
            ("clock", "ok"),
            ("token", "ok"),
            ("dns", "ok"),
            ("istiod", "ok"),
            ("ca", "ok"),
            ("agent", "ok"),
            ("proxy", "ok"),
            ("capture", "skip"),
        ] {
            assert_eq!(checks[name]["verdict"], want, "{checks:#?}");
        }
        assert_ne!(checks["kernel"]["verdict"], "fail", "{checks:#?}");
        assert_eq!(code, Some(0), "{checks:#?}");
        let output = doctor(agent.setup.folder.path(), &[]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            text.lines().filter(|l| !l.starts_with(' ')).count(),
            checks.len()
        );
        assert!(text.contains("\nok    istiod    localhost:"), "{text}");
    });
    tokio::select! {
        () = ca => {}
        result = asserted => result.expect("asserted"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_has_its_fix() {
    let plane = ControlPlane::start(Some(&Authority::new("mesh"))).await;
    let port = plane.address.port();
    let other_root = Authority::new("other").root_pem;
    let not_ready = Server::start(|_| (503, "text/plain", "waiting for LDS, 3 s\n".to_owned()));
    tokio::task::spawn_blocking(move || {
        let setup = pod(port, &other_root, not_ready.port);
        write_token(setup.folder.path(), -3600);
        let agent = started(setup.env("CA_ADDR", format!("127.0.0.1:{}", free_port())));
        let (code, checks) = report(&agent);
        assert_eq!(code, Some(1));
        for (name, detail, fix) in [
            ("token", "expired 60 min ago", "kubelet"),
            ("istiod", "UnknownIssuer", "istio-ca-root-cert"),
            ("ca", "refused", "NetworkPolicy"),
            ("proxy", "waiting for LDS, 3 s", "init_dump"),
        ] {
            let check = &checks[name];
            assert_eq!(check["verdict"], "fail", "{check}");
            let text = |key: &str| check[key].as_str().unwrap_or_default();
            assert!(text("detail").contains(detail), "{check}");
            assert!(text("fix").contains(fix), "{check}");
        }
    })
    .await
    .expect("asserted");
}

#[test]
fn without_an_agent_and_files_there_is_a_report_too() {
    let folder = tempfile::tempdir().expect("folder");
    let output = Command::new(env!("CARGO_BIN_EXE_pilot-agent"))
        .args(["doctor", "--timeoutSeconds=1"])
        .current_dir(folder.path())
        .env_clear()
        .env("PROXY_CONFIG", r#"{"discoveryAddress":"127.0.0.1:1"}"#)
        .env("ISTIO_META_INTERCEPTION_MODE", "NONE")
        .output()
        .expect("doctor runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    for want in [
        "FAIL  token     ./var/run/secrets/tokens/istio-token: ",
        "FAIL  istiod    root CA file for XDS does not exist",
        "      fix: mount the ConfigMap istio-ca-root-cert",
    ] {
        assert!(text.contains(want), "{want} in\n{text}");
    }
    let refused = doctor(folder.path(), &["-o", "xml"]);
    assert_eq!(refused.status.code(), Some(255));
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(error, "Error: --output must be 'text' or 'json'\n");
}
