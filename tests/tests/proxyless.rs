//! Proxyless gRPC: a real gRPC library starts from the bootstrap that the agent wrote, speaks xDS
//! through the agent's socket, and finds its service.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::{AggregatedConfigSource, ApiVersion, ConfigSource};
use envoy_types::pb::envoy::config::listener::v3::{ApiListener, Listener};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
};
use envoy_types::pb::google::protobuf::Any;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use outrigger_tests::ca;
use outrigger_tests::fixtures::Product;
use outrigger_tests::istiod::builder::endpoints;
use outrigger_tests::istiod::snapshot::{CLUSTER, LISTENER, ROUTE};
use outrigger_tests::istiod::{EventKind, Istiod, Resource, Snapshot};
use outrigger_tests::oracle::free_ports;
use prost::Message;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const DEADLINE: Duration = Duration::from_secs(60);
const SERVICE: &str = "echo.sample.svc.cluster.local:7070";
const CLUSTER_NAME: &str = "outbound|7070||echo.sample.svc.cluster.local";
const IP: &str = "10.9.8.7";

fn any(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{name}"),
        value: message.encode_to_vec(),
    }
}

fn by_ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    })
}

/// What istiod's gRPC generator makes for one service, its endpoint at `backend`.
fn resources(backend: SocketAddr) -> Snapshot {
    const HTTP: &str = "envoy.extensions.filters";
    let router = HttpFilter {
        name: "router".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(
            &format!("{HTTP}.http.router.v3.Router"),
            &Router::default(),
        ))),
        ..Default::default()
    };
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: by_ads(),
            route_config_name: CLUSTER_NAME.to_owned(),
        })),
        http_filters: vec![router],
        ..Default::default()
    };
    let name = format!("{HTTP}.network.http_connection_manager.v3.HttpConnectionManager");
    let listener = Listener {
        name: SERVICE.to_owned(),
        api_listener: Some(ApiListener {
            api_listener: Some(any(&name, &manager)),
        }),
        ..Default::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(String::new())),
            ..Default::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(CLUSTER_NAME.to_owned())),
            ..Default::default()
        })),
        ..Default::default()
    };
    let routes = RouteConfiguration {
        name: CLUSTER_NAME.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "echo".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..Default::default()
        }],
        ..Default::default()
    };
    let cluster = Cluster {
        name: CLUSTER_NAME.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: by_ads(),
            service_name: CLUSTER_NAME.to_owned(),
        }),
        ..Default::default()
    };
    let mut snapshot = Snapshot::default();
    snapshot.insert(Resource::new(SERVICE, LISTENER, &listener));
    snapshot.insert(Resource::new(CLUSTER_NAME, ROUTE, &routes));
    snapshot.insert(Resource::new(CLUSTER_NAME, CLUSTER, &cluster));
    snapshot.insert(endpoints(CLUSTER_NAME, &[backend], false));
    snapshot
}

/// The interpreter that `make setup` gave the gRPC library.
fn python() -> PathBuf {
    let cache = || {
        let home = std::env::var_os("HOME").unwrap_or_default();
        PathBuf::from(home).join(".cache/outrigger/venv")
    };
    let venv = std::env::var_os("OUTRIGGER_VENV").map_or_else(cache, PathBuf::from);
    venv.join("bin/python")
}

fn has_grpc(python: &Path) -> bool {
    let check = std::process::Command::new(python)
        .args(["-c", "import grpc"])
        .output();
    check.is_ok_and(|output| output.status.success())
}

/// The agent without a proxy, in a folder of its own.
fn start_agent(folder: &Path, istiod: &Istiod, port: u16) -> Child {
    for (name, text) in [
        (
            "var/run/secrets/istio/root-cert.pem",
            istiod.authority().root_pem(),
        ),
        (
            "var/run/secrets/tokens/istio-token",
            ca::token("sample", "default"),
        ),
    ] {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        std::fs::write(path, text).expect("written");
    }
    for name in ["certs", "etc/istio/proxy"] {
        std::fs::create_dir_all(folder.join(name)).expect("folder");
    }
    let config = serde_json::json!({
        "discoveryAddress": format!("localhost:{port}"),
        "configPath": folder.join("etc/istio/proxy"),
        "statusPort": free_ports(1).expect("a port")[0],
    });
    Command::new(Product::PilotAgent.path().expect("agent"))
        .args(["proxy", "sidecar"])
        .current_dir(folder)
        .env_clear()
        .env("PROXY_CONFIG", config.to_string())
        .env("DISABLE_ENVOY", "true")
        .env("CLOUD_PLATFORM", "none")
        .env("ISTIO_META_GENERATOR", "grpc")
        .env("POD_NAME", "client")
        .env("POD_NAMESPACE", "sample")
        .env("INSTANCE_IP", IP)
        .env("OUTPUT_CERTS", folder.join("certs"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("agent starts")
}

/// The application and its lines.
struct Application {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Application {
    fn start(python: &Path, bootstrap: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/proxyless/client.py");
        let mut child = Command::new(python)
            .arg(script)
            .env("GRPC_XDS_BOOTSTRAP", bootstrap)
            // Calls go to loopback whatever proxy the machine names.
            .env("no_grpc_proxy", "*")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python starts");
        let input = child.stdin.take().expect("stdin");
        let output = child.stdout.take().expect("stdout");
        Self {
            _child: child,
            input,
            output: BufReader::new(output).lines(),
        }
    }

    async fn say(&mut self, text: &str) {
        self.input
            .write_all(format!("{text}\n").as_bytes())
            .await
            .expect("it reads");
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(DEADLINE, self.output.next_line()).await;
        line.expect("in time").expect("read").expect("a line")
    }
}

/// Blocks until the agent has put the document at `path`, in a folder that is there.
fn written(path: &Path) -> serde_json::Value {
    let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
    let arrivals = Inotify::init(flags).expect("inotify");
    let folder = path.parent().expect("a folder");
    let watched = arrivals.add_watch(folder, AddWatchFlags::IN_MOVED_TO);
    watched.expect("watched");
    let end = Instant::now() + DEADLINE;
    loop {
        // Renamed into place, so that what is there is whole.
        if let Ok(text) = std::fs::read_to_string(path) {
            return serde_json::from_str(&text).expect("JSON");
        }
        let left = end.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "no {} in time", path.display());
        let left = PollTimeout::try_from(left).expect("short");
        poll(
            &mut [PollFd::new(arrivals.as_fd(), PollFlags::POLLIN)],
            left,
        )
        .expect("polled");
        // What arrived does not matter: the file is looked for again.
        let _ = arrivals.read_events();
    }
}

#[tokio::test]
async fn a_grpc_library_resolves_its_target_through_the_agent() {
    let python = python();
    if !has_grpc(&python) {
        assert!(
            std::env::var_os("OUTRIGGER_VENV").is_none(),
            "no grpcio in {}",
            python.display()
        );
        return println!(
            "skipped: no grpcio in {} (run `make setup`)",
            python.display()
        );
    }
    let folder = tempfile::tempdir().expect("folder");
    let istiod = Istiod::new().expect("control plane");
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    socket.set_nonblocking(true).expect("non-blocking");
    let istiod_address = istiod.serve_tls(socket).expect("served");
    let _agent = start_agent(folder.path(), &istiod, istiod_address.port());
    let bootstrap = folder.path().join("etc/istio/proxy/grpc-bootstrap.json");
    let path = bootstrap.clone();
    let document = tokio::task::spawn_blocking(move || written(&path)).await;
    let document = document.expect("written");
    let uri = format!("unix://{}/etc/istio/proxy/XDS", folder.path().display());
    assert_eq!(document["xds_servers"][0]["server_uri"], uri);
    assert_eq!(document["node"]["metadata"]["GENERATOR"], "grpc");

    let mut application = Application::start(&python, &bootstrap);
    let ports = application.line().await;
    let ports: Vec<u16> = ports
        .split(' ')
        .skip(1)
        .map(|p| p.parse().expect("port"))
        .collect();
    let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    istiod.ads.set_default(resources(at(ports[0])));
    application.say("call").await;
    assert_eq!(application.line().await, "answer A heard hello");

    let node = istiod.ads.node(IP).expect("the library's node");
    assert_eq!(
        node.id,
        format!("sidecar~{IP}~client.sample~sample.svc.cluster.local")
    );
    assert!(
        node.user_agent_name.contains("gRPC"),
        "{}",
        node.user_agent_name
    );
    let events = istiod.ads.events();
    let nack = events
        .iter()
        .find(|e| matches!(e.kind, EventKind::Nack { .. }));
    assert_eq!(nack, None, "the library accepts everything");

    istiod.ads.set_default(resources(at(ports[1])));
    application.say("until B").await;
    assert_eq!(application.line().await, "reached B");
}
