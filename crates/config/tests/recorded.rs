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
    response
        .resources
        .into_iter()
        .map(|any| any.value)
        .collect()
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
                        *reasons
                            .entry(format!("{scenario} {kind} {}", e.reason))
                            .or_default() += 1;
                    }
                }
            }
        }
    }
    for (reason, count) in &reasons {
        println!("{count:5} {reason}");
    }
    for filter in ["envoy.filters.http.rbac", "envoy.filters.http.jwt_authn"] {
        assert!(
            reasons.keys().any(|r| r.starts_with("03-security lds")
                && r.contains(&format!("implementation for '{filter}'"))),
            "{filter} must be refused"
        );
    }
    assert!(
        !reasons
            .keys()
            .any(|r| r.starts_with("04-traffic") || r.starts_with("06-gateway")),
        "{reasons:#?}"
    );
}

#[test]
fn own_copies_parse() {
    for (file, kind) in [
        ("basic-sleep-rds.pb", "rds"),
        ("basic-sleep-eds.pb", "eds"),
        ("basic-sleep-cds.pb", "cds"),
        ("eastwest-lds.pb", "lds"),
    ] {
        let all = own(file);
        assert!(!all.is_empty(), "{file}");
        for bytes in &all {
            parse(kind, bytes).unwrap();
        }
    }
}

#[test]
fn a_recorded_cluster_has_what_istiod_asked_for() {
    let clusters: Vec<_> = own("basic-sleep-cds.pb")
        .iter()
        .map(|b| parse_cluster(b).unwrap())
        .collect();
    let named = |name: &str| clusters.iter().find(|c| &*c.value.name == name).unwrap();
    let c = named("outbound|80||echo.sample.svc.cluster.local");
    assert_eq!(
        c.value.lb_policy,
        LbPolicy::LeastRequest { choice_count: 2 }
    );
    assert_eq!(
        &*c.value.observability_name,
        "outbound|80||echo.sample.svc.cluster.local;"
    );
    assert_eq!(c.value.connect_timeout, std::time::Duration::from_secs(10));
    assert!(matches!(
        &c.value.discovery,
        Discovery::Eds { initial_fetch_timeout: None, service_name } if *service_name == c.value.name
    ));
    let [istio, plain] = &c.value.transport_socket_matches[..] else {
        panic!("two sockets")
    };
    assert_eq!(istio.criteria, [("tlsMode".into(), "istio".into())]);
    assert!(matches!(plain.socket, TransportSocket::RawBuffer));
    let TransportSocket::Tls(tls) = &istio.socket else {
        panic!("mTLS")
    };
    assert_eq!(tls.common.max_version, TlsVersion::V1_3);
    assert_eq!(tls.common.alpn_protocols, ["istio".into()]);
    assert_eq!(
        tls.sni.as_deref(),
        Some("outbound_.80_._.echo.sample.svc.cluster.local")
    );
    assert!(c.ignored.iter().any(|i| i.name == "istio-peer-exchange"));
    assert!(
        c.ignored
            .iter()
            .any(|i| i.name == "istio.metadata_exchange")
    );
    let inbound = clusters
        .iter()
        .find(|c| &*c.value.name == "InboundPassthroughCluster")
        .unwrap();
    assert_eq!(
        inbound.value.source_addresses,
        ["127.0.0.6:0".parse().unwrap()]
    );
    assert_eq!(inbound.value.lb_policy, LbPolicy::ClusterProvided);
}

#[test]
fn a_recorded_gateway_listener_selects_by_server_name() {
    let listener = own("eastwest-lds.pb")
        .iter()
        .map(|b| parse_listener(b).unwrap().value)
        .find(|l| l.addresses[0].port() == 15443)
        .unwrap();
    assert!(matches!(
        listener.listener_filters[..],
        [ref f] if f.kind == ListenerFilterKind::TlsInspector
    ));
    let table = FilterChainTable::build(&listener).unwrap();
    let input = ChainInput {
        destination: "10.244.1.31:15443".parse().unwrap(),
        server_name: Some("outbound_.80_._.echo.sample.svc.cluster.local"),
        transport_protocol: "tls",
        application_protocols: &["istio"],
        direct_source: "10.244.1.10".parse().unwrap(),
        source: "10.244.1.10:4000".parse().unwrap(),
    };
    let Selected::Chain(chain) = table.select(&input) else {
        panic!("a chain per service")
    };
    let Some(TerminalFilter::TcpProxy(proxy)) = &chain.terminal else {
        panic!("tcp_proxy")
    };
    assert_eq!(
        &*proxy.clusters[0].name,
        "outbound_.80_._.echo.sample.svc.cluster.local"
    );
    let stranger = ChainInput {
        server_name: Some("example.com"),
        ..input
    };
    assert!(!matches!(table.select(&stranger), Selected::Chain(_)));
}

#[test]
fn a_recorded_inbound_listener_picks_chains_by_protocol() {
    let Some(shared) = shared() else { return };
    let listener = resources(&shared.join("01-basic/echo/lds.pb"))
        .iter()
        .map(|b| parse_listener(b).unwrap().value)
        .find(|l| &*l.name == "virtualInbound")
        .unwrap();
    let table = FilterChainTable::build(&listener).unwrap();
    let select = |port, transport, alpn: &[&str]| {
        let chain = table
            .select(&ChainInput {
                destination: std::net::SocketAddr::from(([10, 244, 1, 12], port)),
                server_name: None,
                transport_protocol: transport,
                application_protocols: alpn,
                direct_source: "10.244.1.10".parse().unwrap(),
                source: "10.244.1.10:4000".parse().unwrap(),
            })
            .chain()
            .unwrap()
            .clone();
        (
            chain.name.to_string(),
            chain.transport_socket.is_some(),
            matches!(chain.terminal, Some(TerminalFilter::Http(_))),
        )
    };
    let row = |name: &str, tls, http| (name.to_owned(), tls, http);
    assert_eq!(
        select(15006, "raw_buffer", &[]),
        row("virtualInbound-blackhole", false, false)
    );
    assert_eq!(
        select(18081, "tls", &["istio-http/1.1", "istio", "http/1.1"]),
        row("0.0.0.0_18081", true, true)
    );
    assert_eq!(
        select(18081, "tls", &["istio"]),
        row("0.0.0.0_18081", true, false)
    );
    assert_eq!(
        select(18081, "tls", &["h2"]),
        row("0.0.0.0_18081", false, false)
    );
    assert_eq!(
        select(18081, "raw_buffer", &["http/1.1"]),
        row("0.0.0.0_18081", false, true)
    );
    assert_eq!(
        select(4444, "raw_buffer", &[]),
        row("virtualInbound", false, false)
    );
    let chain = listener
        .filter_chains
        .iter()
        .find(|c| &*c.name == "0.0.0.0_18080")
        .unwrap();
    let Some(TerminalFilter::Http(hcm)) = &chain.terminal else {
        panic!("HTTP")
    };
    assert_eq!(&*hcm.stat_prefix, "inbound_0.0.0.0_18080;");
    assert_eq!(&*hcm.server_name, "istio-envoy");
    assert_eq!(hcm.stream_idle_timeout, None);
    assert!(hcm.proxy_100_continue && hcm.normalize_path);
    assert!(matches!(hcm.route, RouteSource::Inline(_)));
    let tls = chain.transport_socket.as_ref().unwrap();
    assert!(tls.require_client_certificate);
    assert_eq!(tls.common.alpn_protocols, ["h2".into(), "http/1.1".into()]);
    assert_eq!(
        tls.common.cipher_suites.len(),
        4,
        "RSA key exchange is left out"
    );
}

#[test]
fn the_outbound_connection_manager_keeps_the_filters_that_act() {
    let Some(shared) = shared() else { return };
    let hcm = resources(&shared.join("01-basic/sleep/lds.pb"))
        .iter()
        .map(|b| parse_listener(b).unwrap().value)
        .filter(|l| &*l.name == "0.0.0.0_7070")
        .flat_map(|l| l.filter_chains)
        .find_map(|c| match &c.terminal {
            Some(TerminalFilter::Http(h)) => Some(h.clone()),
            _ => None,
        })
        .unwrap();
    let kinds: Vec<_> = hcm
        .filters
        .iter()
        .map(|f| match &f.kind {
            HttpFilterKind::IstioAlpn(a) => {
                format!("alpn {:?} {:?} {:?}", a.http10, a.http11, a.http2)
            }
            HttpFilterKind::PeerMetadata => "peer_metadata".into(),
            HttpFilterKind::Cors => "cors".into(),
            HttpFilterKind::Fault(f) => format!("fault {}", f.is_some()),
            HttpFilterKind::GrpcStats => "grpc_stats".into(),
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "peer_metadata",
            "grpc_stats",
            "alpn [\"istio-http/1.0\", \"istio\", \"http/1.0\"] \
             [\"istio-http/1.1\", \"istio\", \"http/1.1\"] [\"istio-h2\", \"istio\", \"h2\"]",
            "fault false",
            "cors",
        ]
    );
    assert!(matches!(
        &hcm.route,
        RouteSource::Rds { name, initial_fetch_timeout: None } if &**name == "7070"
    ));
    assert_eq!(hcm.upgrades, ["websocket".into()]);
    assert!(hcm.tracing.is_some());
}
