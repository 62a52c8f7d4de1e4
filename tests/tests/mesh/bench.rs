//! What every test of the mesh starts from: pods, logs, requests, waits with a deadline.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use outrigger_tests::fixtures::{self, Product};
use outrigger_tests::istiod::snapshot::LISTENER;
use outrigger_tests::istiod::{AdsEvent, EventKind, Snapshot, sds};
use outrigger_tests::pod::interception::Interception;
use outrigger_tests::pod::{Lab, Pod, PodSpec, Sidecar};
use outrigger_tests::probe::Reply;
use prost::Message;

/// Longest wait for anything that is not meant to take long.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// The client; what is recorded for it knows the servers below.
pub(crate) const SLEEP: &str = "10.244.1.10";
/// Version 1 of the server.
pub(crate) const V1: &str = "10.244.1.11";
/// Version 2 of the server.
pub(crate) const V2: &str = "10.244.2.11";
/// The server with a port per protocol.
pub(crate) const ECHO: &str = "10.244.1.12";
/// The ingress gateway.
pub(crate) const INGRESS: &str = "10.244.1.30";
/// The Kubernetes secrets that the ingress gateway's servers name, each with the host it is for.
pub(crate) const CREDENTIALS: [(&str, &str); 2] = [
    ("web-cert", "web.example.com"),
    ("mtls-cert", "mtls.example.com"),
];
/// The service of both versions, as the client's application calls it.
pub(crate) const HELLO: &str = "http://helloworld.sample:5000";

/// Why a test cannot run here.
fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    let products = [
        Product::Outrigger,
        Product::PilotAgent,
        Product::IstioIptables,
    ];
    let missing = products.into_iter().find_map(|p| match p.path() {
        Ok(path) if path.is_file() => None,
        Ok(path) => Some(format!("{} is not there", path.display())),
        Err(e) => Some(e.to_string()),
    });
    missing.or_else(|| fixtures::root().err().map(|e| e.to_string()))
}

/// A lab whose recorded nodes know their configuration, and how pods get their sidecar.
pub(crate) struct Bench {
    /// The lab.
    pub(crate) lab: Arc<Lab>,
    /// The products, injected.
    pub(crate) sidecar: Sidecar,
}

/// What is recorded for a node.
pub(crate) fn recorded(scenario: &str, node: &str) -> Snapshot {
    let root = fixtures::root().expect("fixtures, as checked");
    Snapshot::load(&root.join("xds").join(scenario).join(node)).expect("recorded responses")
}

/// Changes every HTTP connection manager of a node.
pub(crate) fn edit_managers(
    snapshot: &mut Snapshot,
    mut change: impl FnMut(&mut HttpConnectionManager),
) {
    let edit = |listener: &mut Listener| {
        let chains = listener.filter_chains.iter_mut();
        for filter in chains.flat_map(|c| &mut c.filters) {
            let Some(ConfigType::TypedConfig(any)) = &mut filter.config_type else {
                continue;
            };
            if any.type_url.ends_with(".HttpConnectionManager") {
                let manager = HttpConnectionManager::decode(any.value.as_slice());
                let mut manager = manager.expect("as recorded");
                change(&mut manager);
                any.value = manager.encode_to_vec();
            }
        }
    };
    snapshot.edit(LISTENER, edit).expect("as recorded");
}

impl Bench {
    /// `None`, with the reason printed, when tests of pods cannot run here.
    pub(crate) fn new() -> Option<Self> {
        if let Some(reason) = obstacle() {
            println!("skipped: {reason}");
            return None;
        }
        let path = |p: Product| p.path().expect("a product, as checked");
        let sidecar = Sidecar::Injected {
            init: Some(path(Product::IstioIptables)),
            agent: path(Product::PilotAgent),
            proxy: path(Product::Outrigger),
        };
        let binary = env!("CARGO_BIN_EXE_outrigger-lab").into();
        let lab = Lab::with_binary(binary).expect("a lab");
        let bench = Self { lab, sidecar };
        for (ip, node) in [
            (SLEEP, "sleep"),
            (V1, "helloworld"),
            (V2, "helloworld"),
            (ECHO, "echo"),
        ] {
            bench.configure(ip, recorded("02-helloworld", node));
        }
        Some(bench)
    }

    /// Gives a node its resources and pushes.
    pub(crate) fn configure(&self, ip: &str, snapshot: Snapshot) {
        self.lab.istiod.ads.set_node(ip, snapshot);
    }

    /// Has the control plane know a Kubernetes secret; the recordings hold none.
    pub(crate) fn add_credential(&self, snapshot: &mut Snapshot, name: &str, host: &str) {
        let secrets = sds::credential(self.lab.istiod.authority(), name, &[host]);
        for resource in secrets.expect("a certificate") {
            snapshot.insert(resource);
        }
    }

    /// The pod of a recorded node.
    pub(crate) fn spec(&self, ip: &str) -> PodSpec {
        let (name, kind, version, ports): (_, _, _, &[&str]) = match ip {
            SLEEP => ("sleep", "sleep", "v1", &["http:8080"]),
            V1 => ("one", "helloworld", "v1", &["http:5000"]),
            V2 => ("two", "helloworld", "v2", &["http:5000"]),
            _ => (
                "echo",
                "echo",
                "v1",
                &[
                    "http:18080",
                    "http:17070",
                    "http:18085",
                    "http:18081",
                    "tcp:19090",
                    "tcp:19091",
                    "first:16060",
                ],
            ),
        };
        let mut app: Vec<String> = ["/usr/local/bin/outrigger-lab", "app", "--version", version]
            .map(Into::into)
            .to_vec();
        app.extend(ports.iter().map(|p| (*p).to_owned()));
        let host = |ip: &str, name: &str| (ip.to_owned(), format!("{name}.sample"));
        PodSpec {
            name: name.to_owned(),
            kind: kind.to_owned(),
            ip: ip.to_owned(),
            labels: vec![("version".to_owned(), version.to_owned())],
            env: Vec::new(),
            hosts: vec![host("10.96.0.11", "helloworld"), host("10.96.0.12", "echo")],
            app,
            interception: Interception::default(),
            sidecar: self.sidecar.clone(),
        }
    }

    /// Starts the pod of a recorded node; it need not be ready yet.
    pub(crate) fn start(&self, ip: &str) -> Pod {
        self.lab.start(self.spec(ip)).expect("a pod")
    }

    /// Starts pods and waits until all are ready.
    pub(crate) async fn ready<const N: usize>(&self, ips: [&str; N]) -> [Pod; N] {
        let mut pods = ips.map(|ip| self.start(ip));
        for pod in &mut pods {
            let ready = pod.ready(SOON).await;
            assert!(ready.is_ok(), "{}: {:#?}", pod.spec.name, self.refusals());
            listening(pod).await;
        }
        pods
    }

    /// What proxies said about configuration that they did not accept.
    pub(crate) fn refusals(&self) -> Vec<String> {
        let refusal = |e: AdsEvent| match e.kind {
            EventKind::Nack { message, .. } => Some(format!("{}: {message}", e.node)),
            _ => None,
        };
        let events = self.lab.istiod.ads.events().into_iter();
        events.filter_map(refusal).collect()
    }

    /// A pod outside the mesh: no sidecar, no rules, no certificate.
    pub(crate) async fn outsider(&self) -> Pod {
        let spec = PodSpec {
            name: "outsider".to_owned(),
            ip: "10.244.9.9".to_owned(),
            sidecar: Sidecar::None,
            ..self.spec(SLEEP)
        };
        let pod = self.lab.start(spec).expect("a pod");
        listening(&pod).await;
        pod
    }
}

/// Waits for the last port of the application.
pub(crate) async fn listening(pod: &Pod) {
    let last = pod.spec.app.last().and_then(|l| l.rsplit_once(':'));
    let Some((_, port)) = last else { return };
    let address = format!("127.0.0.1:{port}");
    let what = format!("{} listens on {address}", pod.spec.name);
    let stream = until(&what, async || pod.connect(&address), Result::is_ok).await;
    stream.expect("connected");
}

/// A path that nothing else asks for, under which log lines are found.
pub(crate) fn marked(path: &str) -> String {
    let sign = if path.contains('?') { '&' } else { '?' };
    format!("{path}{sign}look={:016x}", rand::random::<u64>())
}

/// Runs curl in the application's container; `-i` is up to the caller.
pub(crate) async fn curl(pod: &Pod, arguments: &[&str]) -> Result<String, String> {
    let words = [&["/usr/bin/curl", "-sS", "-m", "10"], arguments].concat();
    pod.exec(&words).await.map_err(|e| e.to_string())
}

/// An answer of `curl -i`.
pub(crate) fn answer(text: &str) -> Reply {
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.lines();
    let status = lines.next().and_then(|l| l.split(' ').nth(1));
    let header = |l: &str| {
        let (name, value) = l.split_once(':').expect("a header");
        (name.to_owned(), value.trim().to_owned())
    };
    Reply {
        status: status.and_then(|s| s.parse().ok()).expect("a status"),
        headers: lines.map(header).collect(),
        body: body.into(),
        ..Reply::default()
    }
}

/// Asks again and again until the answer is as wanted; panics with the last one at the deadline.
pub(crate) async fn until<T: std::fmt::Debug>(
    what: &str,
    mut ask: impl AsyncFnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> T {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let seen = ask().await;
        if wanted(&seen) {
            return seen;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what}; last seen: {seen:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The first line of the sidecar's log that holds every text.
pub(crate) async fn logged(pod: &Pod, texts: &[&str]) -> String {
    let find = || {
        let log = pod.proxy.as_ref().map(|p| p.log()).unwrap_or_default();
        let line = log.lines().find(|l| texts.iter().all(|t| l.contains(t)));
        line.map(ToOwned::to_owned).ok_or(log)
    };
    let what = format!("{} logs a line with {texts:?}", pod.spec.name);
    let line = until(&what, async || find(), Result::is_ok).await;
    line.expect("found")
}

/// A line of Istio's access log, cut at spaces outside quotation marks.
pub(crate) fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => fields.push(String::new()),
            c => fields.last_mut().expect("never empty").push(c),
        }
    }
    fields
}

/// Places in the list of [`fields`].
pub(crate) mod at {
    /// Response code.
    pub(crate) const CODE: usize = 2;
    /// Response flags.
    pub(crate) const FLAGS: usize = 3;
    /// Response code details.
    pub(crate) const DETAILS: usize = 4;
    /// Upstream transport failure reason.
    pub(crate) const TRANSPORT_FAILURE: usize = 6;
    /// Bytes received.
    pub(crate) const RECEIVED: usize = 7;
    /// Bytes sent.
    pub(crate) const SENT: usize = 8;
    /// `x-request-id`.
    pub(crate) const REQUEST_ID: usize = 13;
    /// Upstream host.
    pub(crate) const UPSTREAM: usize = 15;
    /// Upstream cluster.
    pub(crate) const CLUSTER: usize = 16;
    /// Upstream local address.
    pub(crate) const UPSTREAM_LOCAL: usize = 17;
    /// Requested server name.
    pub(crate) const SNI: usize = 20;
}

/// The admin page of a pod's proxy.
pub(crate) async fn admin(pod: &Pod, path: &str) -> Reply {
    let page = pod.fetch("127.0.0.1:15000", "GET", path).await;
    page.unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// One successful request from the client to the service.
pub(crate) async fn hello(client: &Pod) -> String {
    let text = curl(client, &["-f", &format!("{HELLO}/hello")]).await;
    let text = text.expect("an answer through the mesh");
    assert!(text.starts_with("Hello version: v"), "{text}");
    text
}
