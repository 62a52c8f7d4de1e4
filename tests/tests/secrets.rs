//! Secrets over ADS that come late, never, broken, or are taken away: what a real Envoy does, and the product
//! alike. Skipped, with the reason printed, where one of the two is not there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType as SocketConfig;
use envoy_types::pb::envoy::config::core::v3::{
    AggregatedConfigSource, ApiVersion, ConfigSource, TransportSocket,
};
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteConfiguration, RouteMatch, VirtualHost,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret, TlsCertificate, secret,
};
use envoy_types::pb::google::protobuf::{Any, Duration as ProtoDuration};
use outrigger_tests::istiod::builder::address;
use outrigger_tests::istiod::snapshot::{LISTENER, SECRET};
use outrigger_tests::istiod::{EventKind, Istiod, Resource, Snapshot, sds};
use outrigger_tests::oracle::{self, Proxy, free_ports};
use outrigger_tests::probe::{self, TlsOffer};
use prost::Message;
use serde_json::json;
use tokio::net::TcpStream;

/// Longest wait for anything.
const SOON: Duration = Duration::from_secs(30);

fn any<M: Message>(name: &str, message: &M) -> Any {
    Any {
        type_url: format!("type.googleapis.com/envoy.{name}"),
        value: message.encode_to_vec(),
    }
}

/// An HTTPS listener whose certificate `kubernetes://NAME` is asked for over ADS for at most `patience`; zero
/// is for ever.
fn listener(name: &str, port: u16, patience: Duration) -> Resource {
    let source = ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        initial_fetch_timeout: Some(ProtoDuration {
            seconds: i64::try_from(patience.as_secs()).expect("short"),
            nanos: 0,
        }),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    };
    let tls = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![SdsSecretConfig {
                name: format!("kubernetes://{name}"),
                sds_config: Some(source),
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(Action::DirectResponse(DirectResponseAction {
            status: 200,
            ..Default::default()
        })),
        ..Default::default()
    };
    let routes = RouteConfiguration {
        virtual_hosts: vec![VirtualHost {
            name: "all".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..Default::default()
        }],
        ..Default::default()
    };
    let router = any(
        "extensions.filters.http.router.v3.Router",
        &Router::default(),
    );
    let manager = HttpConnectionManager {
        stat_prefix: "web".to_owned(),
        http_filters: vec![HttpFilter {
            name: "router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(router)),
            ..Default::default()
        }],
        route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
        ..Default::default()
    };
    let manager = any(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &manager,
    );
    let tls = any(
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        &tls,
    );
    let listener = Listener {
        name: name.to_owned(),
        address: Some(address(([127, 0, 0, 1], port).into())),
        stat_prefix: name.to_owned(),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "http".to_owned(),
                config_type: Some(ConfigType::TypedConfig(manager)),
            }],
            transport_socket: Some(TransportSocket {
                name: "envoy.transport_sockets.tls".to_owned(),
                config_type: Some(SocketConfig::TypedConfig(tls)),
            }),
            ..Default::default()
        }],
        ..Default::default()
    };
    Resource::new(name, LISTENER, &listener)
}

/// A secret that no proxy can load.
fn broken() -> Resource {
    let secret = Secret {
        name: "kubernetes://web".to_owned(),
        r#type: Some(secret::Type::TlsCertificate(TlsCertificate::default())),
    };
    Resource::new("kubernetes://web", SECRET, &secret)
}

fn bootstrap(admin: u16, socket: &Path) -> String {
    let ads = json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"});
    json!({
        "node": {"id": "router~127.0.0.1~gw.test~test.svc.cluster.local", "cluster": "test"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        "dynamic_resources": {
            "lds_config": ads, "cds_config": ads,
            "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]}},
        "static_resources": {"clusters": [{
            "name": "xds-grpc", "type": "STATIC",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}}}},
            "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"pipe": {"path": socket}}}}]}]}}]},
    })
    .to_string()
}

/// A control plane and the proxy that asks it.
struct Side {
    istiod: Istiod,
    proxy: Proxy,
    /// Ports of the listeners `web` and `other`.
    ports: [u16; 2],
    patience: Duration,
    _folder: tempfile::TempDir,
}

impl Side {
    /// Starts the proxy, of whose certificates istiod has those that `known` names, and waits until it is ready.
    async fn ready(binary: &Path, patience: Duration, known: &[Known]) -> Self {
        let istiod = Istiod::new().expect("a control plane");
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("XDS");
        let [web, other, admin] = free_ports(3).expect("ports")[..] else {
            panic!("three ports");
        };
        let ports = [web, other];
        istiod
            .ads
            .set_default(snapshot(&istiod, ports, patience, known));
        istiod.serve_ads_unix(&socket).expect("a socket");
        let text = bootstrap(admin, &socket);
        let proxy = Proxy::start(binary, &text, folder.path(), admin, &["--concurrency", "1"]);
        let proxy = proxy.await.unwrap_or_else(|e| panic!("{e}"));
        Self {
            istiod,
            proxy,
            ports,
            patience,
            _folder: folder,
        }
    }

    /// Changes what istiod has and waits until the proxy has answered.
    async fn push(&self, known: &[Known]) {
        let ads = &self.istiod.ads;
        let mark = ads.events().len();
        ads.set_default(snapshot(&self.istiod, self.ports, self.patience, known));
        let answered = ads.wait_for(SOON, |events| {
            let mut of_secrets = events[mark..].iter().filter(|e| e.type_url == SECRET);
            of_secrets.any(|e| matches!(e.kind, EventKind::Ack { .. } | EventKind::Nack { .. }))
        });
        assert!(answered.await, "{:#?}", &ads.events()[mark..]);
    }

    /// The status of a request over TLS, or nothing when there is no TLS.
    async fn status(&self) -> Option<u16> {
        let stream = TcpStream::connect(("127.0.0.1", self.ports[0])).await;
        let stream = stream.expect("the listener accepts");
        let authority = self.istiod.authority();
        let stream = probe::tls_on(stream, authority, &TlsOffer::default())
            .await
            .ok()?;
        let reply = probe::fetch_on(stream, "GET", "/", "web").await;
        Some(reply.expect("an answer").status)
    }

    /// Connections that were closed for want of a certificate.
    async fn not_ready(&self) -> u64 {
        let path = "/stats?filter=downstream_context_secrets_not_ready";
        let page = self.proxy.admin("GET", path).await.expect("a page").text();
        let counts = page.lines().filter_map(|l| l.rsplit_once(": "));
        counts
            .map(|(_, n)| n.parse::<u64>().expect("a count"))
            .sum()
    }
}

/// A credential that istiod has.
#[derive(Debug, Clone, Copy)]
enum Known {
    /// The certificate of the listener `web`.
    Web,
    /// The same, and no proxy can load it.
    Broken,
    /// The certificate of the listener `other`.
    Other,
}

fn snapshot(istiod: &Istiod, ports: [u16; 2], patience: Duration, known: &[Known]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, port) in ["web", "other"].iter().zip(ports) {
        snapshot.insert(listener(name, port, patience));
    }
    for known in known {
        let name = match known {
            Known::Web => "web",
            Known::Other => "other",
            Known::Broken => {
                snapshot.insert(broken());
                continue;
            }
        };
        let pair = sds::credential(istiod.authority(), name, &[name]);
        pair.expect("a certificate")
            .into_iter()
            .for_each(|s| snapshot.insert(s));
    }
    snapshot
}

fn sides() -> Option<[PathBuf; 2]> {
    let Some(envoy) = oracle::find_envoy() else {
        println!("skipped: no Envoy (set ENVOY_BIN, or run `make setup`)");
        return None;
    };
    let Some(product) = oracle::find_outrigger() else {
        println!("skipped: no outrigger (set OUTRIGGER_BIN, or build it)");
        return None;
    };
    Some([envoy, product])
}

const FOR_EVER: Duration = Duration::ZERO;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_opens_without_a_secret_that_is_late_denied_or_broken() {
    use Known::{Broken, Other, Web};
    let second = Duration::from_secs(1);
    let cases: [(&str, Duration, &[Known]); 3] = [
        ("nothing is said", second, &[]),
        ("one of two is not there", FOR_EVER, &[Other]),
        ("one is broken", FOR_EVER, &[Broken, Other]),
    ];
    for binary in sides().into_iter().flatten() {
        for (what, patience, known) in cases {
            let what = format!("{what}: {}", binary.display());
            let side = Side::ready(&binary, patience, known).await;
            assert_eq!(side.status().await, None, "{what}");
            assert_eq!(side.not_ready().await, 1, "{what}");
            side.push(&[Web, Other]).await;
            assert_eq!(side.status().await, Some(200), "{what}: it comes");
            side.push(&[Broken, Other]).await;
            assert_eq!(
                side.status().await,
                Some(200),
                "{what}: replaced by a broken one"
            );
            side.push(&[Other]).await;
            assert_eq!(side.status().await, Some(200), "{what}: taken away");
        }
    }
}
