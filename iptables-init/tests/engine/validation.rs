//! `--run-validation`: who may run it, where it connects to, and what a failure tells.

use std::fs;
use std::net::TcpListener;
use std::process::Output;

use crate::lab::{INJECTED, Lab, inside, missing};

const CHECK: &[&str] = &[
    "--skip-rule-apply",
    "--run-validation",
    "--probe-timeout",
    "1200ms",
];

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs the check in the pod through `before` (setpriv, env), from a copy that anybody can run.
fn check(lab: &Lab, before: &[&str], more: &[&str]) -> (i32, String) {
    let copy = std::env::temp_dir().join(format!("{}-check", lab.pod));
    fs::copy(env!("CARGO_BIN_EXE_istio-iptables"), &copy).expect("copy");
    let path = copy.to_str().expect("temporary path").to_owned();
    let output = lab.exec(&[before, &[&path], INJECTED, CHECK, more].concat());
    // A leftover in the temporary folder harms nobody.
    let _ = fs::remove_file(&copy);
    (output.status.code().expect("an exit code"), text(&output))
}

const AS_PROXY: &[&str] = &["setpriv", "--reuid=1337", "--regid=1337", "--clear-groups"];
/// What the injected init container has.
const AS_INIT: &[&str] = &[
    "setpriv",
    "--bounding-set=-all,+net_admin,+net_raw",
    "--inh-caps=-all",
];

#[test]
fn it_passes_as_the_proxy_and_as_root_that_may_become_the_proxy() {
    if missing(&["ip", "nft", "iptables-nft", "setpriv"]) {
        return;
    }
    for backend in [
        &["--native-nftables"][..],
        &["--force-iptables-binary", "nft"],
    ] {
        for mode in [&[][..], &["-m", "TPROXY", "--dual-stack"]] {
            let lab = Lab::new();
            lab.apply(&[backend, mode].concat());
            for who in [AS_PROXY, &["env"]] {
                let (code, log) = check(&lab, who, &[]);
                assert_eq!(code, 0, "{who:?}\n{log}");
                assert!(log.contains("Validation passed, iptables rules established"));
            }
        }
    }
}

#[test]
fn a_wide_loopback_range_is_probed_at_the_pod_address() {
    if missing(&["ip", "nft", "setpriv"]) {
        return;
    }
    let lab = Lab::new();
    let wide = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=127.0.0.1/8";
    let program = env!("CARGO_BIN_EXE_istio-iptables");
    let words = [&["env", wide, program], INJECTED, &["--native-nftables"]].concat();
    assert!(lab.exec(&words).status.success());
    let (code, log) = check(&lab, &[AS_PROXY, &["env", wide]].concat(), &[]);
    assert_eq!(code, 0, "{log}");
}

#[test]
fn a_failure_says_which_check_failed_and_shows_the_rules() {
    if missing(&["ip", "nft", "iptables-nft", "setpriv"]) {
        return;
    }
    let lab = Lab::new();
    let (code, log) = check(&lab, &["env"], &[]);
    assert_eq!(code, 126, "{log}");
    for part in [
        "iptables validation failed; workload is not ready for Istio.",
        "cni.repair.deletePods=true",
        "Error connecting to 127.0.0.6:15002",
        "validation timeout: 2 connections to 127.0.0.6:15002, none redirected",
        "They belonged to UID 1337 and GID 1337, as the proxy's do.",
        "No ISTIO_* chain and no istio-proxy-* table exists",
    ] {
        assert!(log.contains(part), "no {part:?} in\n{log}");
    }
    lab.apply(&["--native-nftables"]);
    let (code, log) = check(&lab, AS_INIT, &[]);
    assert_eq!(code, 126, "{log}");
    for part in [
        "They belonged to UID 0 and GID 0, which are not the proxy's",
        "inet istio-proxy-nat istio-output ",
    ] {
        assert!(log.contains(part), "no {part:?} in\n{log}");
    }
    lab.apply(&["--force-iptables-binary", "nft"]);
    let (code, log) = check(&lab, AS_INIT, &[]);
    assert_eq!(code, 126, "{log}");
    let rule = "iptables-nft -t nat -A OUTPUT -j ISTIO_OUTPUT";
    assert!(log.contains(rule), "no {rule:?} in\n{log}");
    // The validation container has no capability at all.
    let bare = [AS_PROXY, &["--bounding-set=-all"]].concat();
    lab.apply(&["--cleanup-only"]);
    let (code, log) = check(&lab, &bare, &[]);
    assert_eq!(code, 126, "{log}");
    assert!(log.contains("The rules cannot be shown:"), "{log}");
}

#[test]
fn a_busy_listener_is_named_and_two_of_them_fail_at_once() {
    if missing(&["ip", "nft", "setpriv"]) {
        return;
    }
    let lab = Lab::new();
    lab.apply(&["--native-nftables"]);
    let busy = |port| {
        inside(&lab.pod, (0, 0), move || {
            TcpListener::bind(("127.0.0.1", port)).expect("bind")
        })
    };
    let _inbound = busy(15006);
    let (code, log) = check(&lab, AS_PROXY, &[]);
    assert_eq!(code, 126, "{log}");
    assert!(log.contains("failed to listen on 127.0.0.1:15006"), "{log}");
    assert!(log.contains("answered by somebody else"), "{log}");
    assert!(
        log.contains("Port 15006 is held by another program"),
        "{log}"
    );
    let _outbound = busy(15001);
    let (code, log) = check(&lab, AS_PROXY, &["--probe-timeout", "1h"]);
    assert_eq!(code, 126, "{log}");
    assert!(
        log.contains("no validation listener could be opened on ports 15001 and 15006"),
        "{log}"
    );
}
