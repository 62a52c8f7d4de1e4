//! What a real istiod sent must parse: every resource of the listed scenarios, and a refusal with a path where
//! a security filter is not implemented. Recorded responses live beside the repository; small copies are here.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use outrigger_config::cluster::{Discovery, LbPolicy, TransportSocket};
use outrigger_config::http::{HttpFilterKind, RouteSource};
use outrigger_config::listener::{
    ChainInput, FilterChainTable, ListenerFilterKind, Selected, TerminalFilter,
};
use outrigger_config::tls::TlsVersion;
use outrigger_config::{
    ConfigError, Ignored, parse_cluster, parse_listener, parse_load_assignment,
    parse_route_configuration,
};
use prost::Message;

fn shared() -> Option<PathBuf> {
    let dir = std::env::var_os("OUTRIGGER_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let dir = dir.join("fixtures/xds");
    if dir.is_dir() {
        Some(dir)
    } else {
        eprintln!("skipped: no recorded responses at {}", dir.display());
        None
    }
}

fn resources(path: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let response = DiscoveryResponse::decode(bytes.as_slice()).unwrap();
    response.resources.into_iter().map(|any| any.value).collect()
}

fn own(name: &str) -> Vec<Vec<u8>> {
    resources(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(name),
    )
}

/// Parses one resource of a file: refusals, and the notes on what is skipped.
fn parse(kind: &str, bytes: &[u8]) -> Result<Vec<Ignored>, ConfigError> {
    match kind {
        "cds" => parse_cluster(bytes).map(|p| p.ignored),
        "eds" => parse_load_assignment(bytes).map(|p| p.ignored),
        "lds" => parse_listener(bytes).map(|p| p.ignored),
        "rds" => parse_route_configuration(bytes).map(|p| p.ignored),
        _ => unreachable!("kinds are listed below"),
    }
}

/// Counts of accepted resources and the refusals of one file.
fn census(path: &Path, kind: &str) -> (usize, Vec<ConfigError>) {
    let mut accepted = 0;
    let mut refused = Vec::new();
    for bytes in resources(path) {
        match parse(kind, &bytes) {
            Ok(_) => accepted += 1,
            Err(e) => refused.push(e),
        }
    }
    (accepted, refused)
}

const KINDS: [&str; 4] = ["cds", "eds", "lds", "rds"];

#[test]
fn every_resource_of_the_basic_scenarios_parses() {
    let Some(shared) = shared() else { return };
    let mut total = 0;
    for scenario in [
        "01-basic",
        "02-helloworld",
        "02-helloworld-stripped",
        "07-multinetwork",
    ] {
        for node in std::fs::read_dir(shared.join(scenario)).unwrap() {
            let node = node.unwrap().path();
            for kind in KINDS {
                let file = node.join(format!("{kind}.pb"));
                if file.is_file() {
                    let (accepted, refused) = census(&file, kind);
                    assert_eq!(refused, [], "{}", file.display());
                    assert!(accepted > 0, "{}", file.display());
                    total += accepted;
                }
            }
        }
    }
    assert!(total > 500, "only {total} resources were seen");
}

#[test]
fn the_other_scenarios_parse_or_are_refused_with_a_reason() {
    let Some(shared) = shared() else { return };
    let mut reasons = std::collections::BTreeMap::<String, usize>::new();
    for scenario in [
        "03-security",
        "04-traffic",
        "05-egress",
        "06-gateway",
        "08-telemetry",
    ] {
        for node in std::fs::read_dir(shared.join(scenario)).unwrap() {
            let node = node.unwrap().path();
            for kind in KINDS {
                let file = node.join(format!("{kind}.pb"));
                if file.is_file() {
                    for e in census(&file, kind).1 {
                        assert!(!e.path.is_empty(), "{e}");
                        *reasons.entry(format!("{scenario} {kind} {}", e.reason)).or_default() += 1;
                    }
                }
            }
        }
    }
    for (reason, count) in &reasons {
        println!("{count:5} {reason}");
    }
    for filter in ["envoy.filters.http.rbac", "envoy.filters.network.rbac", "envoy.filters.http.jwt_authn"] {
        assert!(
            reasons.keys().any(|r| r.starts_with("03-security lds")
                && r.contains(&format!("implementation for '{filter}'"))),
            "{filter} must be refused"
        );
    }
    assert!(
        !reasons.keys().any(|r| r.starts_with("04-traffic") || r.starts_with("06-gateway")),
        "{reasons:#?}"
    );
}

#[test]
fn own_copies_parse() {
    for (file, kind, count) in [
        ("basic-sleep-rds.pb", "rds", 0),
        ("basic-sleep-eds.pb", "eds", 0),
        ("basic-sleep-cds.pb", "cds", 0),
        ("eastwest-lds.pb", "lds", 0),
    ] {
        let all = own(file);
        for bytes in &all {
            parse(kind, bytes).unwrap();
        }
        assert!(all.len() >= count);
    }
}
