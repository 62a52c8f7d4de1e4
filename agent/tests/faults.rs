//! Faults of the control plane, between an xDS client that behaves as Envoy and an istiod that does
//! not behave at all.

#[path = "support/control_plane.rs"]
mod control_plane;
#[path = "support/pki.rs"]
mod pki;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use control_plane::{Call, ControlPlane, within};
use outrigger_xds::grpc::{Connection, Part, ServerOptions};
use outrigger_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use outrigger_xds::pb::google::protobuf::Any;
use outrigger_xds::type_url::{CLUSTER, LISTENER, NAME_TABLE};
use outrigger_xds::{
    AdsClient, AdsHandle, Backoff, ClientConfig, Event, Protocol, Service, Session, UdsConnector,
};
use pilot_agent::credential::{CredentialSource, RequestMetadata};
use pilot_agent::istiod::{Compliance, IstiodConfig, IstiodConnector, RootSource, TlsSettings};
use pilot_agent::resolver::Resolver;
use pilot_agent::xds_proxy::{XdsProxy, XdsProxyConfig, XdsProxyHandle};
use pki::Authority;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tonic::Status;

const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// The agent's xDS proxy with its socket.
struct Agent {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    handle: XdsProxyHandle,
    task: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    fn plain(address: SocketAddr) -> Self {
        Self::with(IstiodConfig::new(address.to_string(), None))
    }

    fn with(upstream: IstiodConfig) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join("XDS");
        let proxy = XdsProxy::bind(XdsProxyConfig {
            socket: socket.clone(),
            upstream: IstiodConnector::new(upstream).expect("valid"),
            metadata: RequestMetadata {
                credential: CredentialSource::None,
                cluster_id: String::new(),
                headers: Vec::new(),
            },
            server: ServerOptions::default(),
            name_table: true,
            proxy_config: false,
            wasm: None,
        })
        .expect("bind");
        Self {
            _dir: dir,
            socket,
            handle: proxy.handle(),
            task: tokio::spawn(proxy.run()),
        }
    }

    /// A client that subscribes to clusters and listeners and reconnects for ever, as Envoy does.
    fn envoy(&self, protocol: Protocol) -> (AdsHandle, mpsc::Receiver<Event>) {
        let mut config = ClientConfig::new(Service::Ads, Bytes::new());
        config.backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(20));
        let mut session = Session::new(protocol);
        session.subscribe_wildcard(CLUSTER);
        session.subscribe_wildcard(LISTENER);
        AdsClient::spawn(UdsConnector(self.socket.clone()), session, config)
    }

    /// A client's call, read by hand.
    async fn call(&self) -> control_plane::Client {
        control_plane::Client::open(&self.socket, Service::Ads.path(Protocol::Delta)).await
    }

    async fn error(&self) -> String {
        let mut status = self.handle.status();
        let status = within(status.wait_for(|s| s.last_error.is_some())).await;
        status.expect("agent runs").last_error.clone().expect("set")
    }
}

fn clusters(nonce: &str, version: &str, bytes: usize) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: CLUSTER.to_owned(),
        nonce: nonce.to_owned(),
        resources: vec![Resource {
            name: "one".to_owned(),
            version: version.to_owned(),
            resource: Some(Any {
                type_url: CLUSTER.to_owned(),
                value: vec![7; bytes],
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// The next update; everything before it is passed over and counted.
async fn update(events: &mut mpsc::Receiver<Event>) -> (outrigger_xds::Update, usize) {
    let mut failures = 0;
    loop {
        match within(events.recv()).await.expect("client runs") {
            Event::Update(update) => return (update, failures),
            Event::Disconnected(_) => failures += 1,
            Event::Connected => {}
        }
    }
}

async fn failed(events: &mut mpsc::Receiver<Event>) -> String {
    loop {
        if let Event::Disconnected(reason) = within(events.recv()).await.expect("client runs") {
            return reason.to_string();
        }
    }
}

/// The first request of each type after a connect.
async fn subscriptions(call: &mut Call) -> Vec<DeltaDiscoveryRequest> {
    let mut requests = Vec::new();
    for _ in 0..3 {
        let message = call.request().await.expect("a request");
        requests.push(DeltaDiscoveryRequest::decode(message).expect("delta request"));
    }
    requests
}

#[tokio::test]
async fn istiod_dead_at_start_is_found_when_it_comes_and_dead_later_loses_nothing() {
    let socket = TcpSocket::new_v4().expect("socket");
    socket.set_reuseaddr(true).expect("reuse address");
    socket.bind(LOOPBACK).expect("bind");
    // Bound and not listening: nobody else gets the port, and connections are refused.
    let address = socket.local_addr().expect("address");
    let agent = Agent::plain(address);
    let (handle, mut events) = agent.envoy(Protocol::Delta);
    for _ in 0..3 {
        let reason = failed(&mut events).await;
        assert!(reason.contains("UNAVAILABLE"), "{reason}");
    }
    assert!(agent.error().await.contains("refused"));

    drop(socket);
    let mut plane = ControlPlane::restart(address, None).await;
    let mut call = plane.call().await;
    let first = subscriptions(&mut call).await;
    assert_eq!(first[0].type_url, CLUSTER);
    assert!(first[0].initial_resource_versions.is_empty());
    call.send(clusters("n1", "v1", 10).encode_to_vec()).await;
    let (got, _) = update(&mut events).await;
    handle.ack(got.id());
    let ack = DeltaDiscoveryRequest::decode(call.request().await.expect("ack")).expect("delta");
    assert_eq!(
        (ack.response_nonce.as_str(), ack.error_detail),
        ("n1", None)
    );
    assert_eq!(agent.handle.status().borrow().last_error, None);

    // It dies; the client keeps what it has and says so when there is an istiod again.
    drop(plane);
    drop(call);
    failed(&mut events).await;
    let mut plane = ControlPlane::restart(address, None).await;
    let mut call = plane.call().await;
    let again = subscriptions(&mut call).await;
    let held = [("one".to_owned(), "v1".to_owned())].into();
    assert_eq!(again[0].initial_resource_versions, held);
    assert_eq!(again[0].response_nonce, "", "nonces belong to their stream");
    let types: Vec<&str> = again.iter().map(|r| r.type_url.as_str()).collect();
    assert_eq!(
        types,
        [CLUSTER, LISTENER, NAME_TABLE],
        "the agent asks again too"
    );
}

#[tokio::test]
async fn state_of_the_world_is_replayed_with_its_version_and_without_nonce() {
    let mut plane = ControlPlane::start(None).await;
    let agent = Agent::plain(plane.address);
    let (handle, mut events) = agent.envoy(Protocol::Sotw);
    for round in 0..2 {
        let mut call = plane.call().await;
        let first = DiscoveryRequest::decode(call.request().await.expect("one")).expect("sotw");
        let version = if round == 0 { "" } else { "v7" };
        assert_eq!(first.type_url, CLUSTER);
        assert_eq!(first.version_info, version);
        assert_eq!(first.response_nonce, "");
        if round == 0 {
            let response = DiscoveryResponse {
                type_url: CLUSTER.to_owned(),
                version_info: "v7".to_owned(),
                nonce: "n1".to_owned(),
                ..Default::default()
            };
            call.send(response.encode_to_vec()).await;
            let (got, _) = update(&mut events).await;
            handle.ack(got.id());
            loop {
                let next = call.request().await.expect("a request");
                let next = DiscoveryRequest::decode(next).expect("sotw");
                if next.type_url == CLUSTER {
                    assert_eq!(
                        (next.version_info.as_str(), &*next.response_nonce),
                        ("v7", "n1")
                    );
                    break;
                }
            }
            call.end(Status::ok(""));
        }
    }
}

#[tokio::test]
async fn istiod_flapping_sixty_times_is_followed_with_one_stream_at_a_time() {
    const FLAPS: usize = 60;
    let mut plane = ControlPlane::start(None).await;
    let address = plane.address;
    let agent = Agent::plain(address);
    let (handle, mut events) = agent.envoy(Protocol::Delta);
    let mut attempts = 0;
    for flap in 0..FLAPS {
        let mut call = plane.call().await;
        let first = subscriptions(&mut call).await;
        let held = first[0].initial_resource_versions.get("one").cloned();
        let expected = (flap > 0).then(|| format!("v{}", flap - 1));
        assert_eq!(held, expected, "what was accepted is never forgotten");
        assert_eq!(agent.handle.status().borrow().connected, 1);
        let (nonce, version) = (format!("n{flap}"), format!("v{flap}"));
        call.send(clusters(&nonce, &version, 1000).encode_to_vec())
            .await;
        let (got, failures) = update(&mut events).await;
        attempts += failures + 1;
        assert_eq!(got.added[0].version, version);
        handle.ack(got.id());
        call.request().await.expect("the ACK");
        match flap % 3 {
            0 => call.end(Status::unavailable("flap")),
            1 => call.end(Status::ok("")),
            _ => {
                drop(plane);
                drop(call);
                failed(&mut events).await;
                plane = ControlPlane::restart(address, None).await;
            }
        }
    }
    let metrics = agent.handle.metrics();
    let count = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
    let ends = count(&metrics.istiod_error) + count(&metrics.istiod_cancelled);
    assert!(ends >= FLAPS as u64 - 1, "{ends} ends");
    // Waits are drawn from an interval that doubles while nobody listens.
    assert!(
        attempts < FLAPS * 10,
        "{attempts} attempts for {FLAPS} flaps"
    );
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_given_up_one_connection_at_a_time() {
    let listener = TcpListener::bind(LOOPBACK).await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (authority, dir) = (Authority::new("ca"), tempfile::tempdir().expect("dir"));
    let root = dir.path().join("root.pem");
    std::fs::write(&root, &authority.root_pem).expect("root");
    let tls = TlsSettings {
        roots: RootSource::File(root),
        client: None,
        compliance: Compliance::None,
    };
    let agent = Agent::with(IstiodConfig {
        connect_timeout: Duration::from_millis(50),
        ..IstiodConfig::new(address.to_string(), Some(tls))
    });
    let (_handle, mut events) = agent.envoy(Protocol::Delta);
    for _ in 0..5 {
        let (mut silent, _) = within(listener.accept()).await.expect("accept");
        let reason = failed(&mut events).await;
        assert!(reason.contains("no connection after 50ms"), "{reason}");
        // Closed by the agent before it tries again.
        within(silent.read_to_end(&mut Vec::new()))
            .await
            .expect("closed");
    }
}

#[tokio::test]
async fn a_slow_istiod_is_waited_for_and_requests_pass_meanwhile() {
    let mut plane = ControlPlane::start(None).await;
    let agent = Agent::plain(plane.address);
    let (_handle, mut events) = agent.envoy(Protocol::Delta);
    let mut call = plane.call().await;
    // Nothing is answered until all requests are there; no deadline ends the stream.
    assert_eq!(subscriptions(&mut call).await.len(), 3);
    call.send(clusters("n", "v", 1).encode_to_vec()).await;
    let (_, failures) = update(&mut events).await;
    assert_eq!(failures, 0);
}

/// Relays until it is told to stop; then holds the connections open and moves no byte.
async fn half_open(to: SocketAddr) -> (SocketAddr, watch::Sender<bool>, JoinSet<()>) {
    let listener = TcpListener::bind(LOOPBACK).await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut relays = JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.expect("accept");
            let mut stopped = stopped.clone();
            relays.spawn(async move {
                let mut far = TcpStream::connect(to).await.expect("plane listens");
                let stop = async { stopped.wait_for(|s| *s).await.map(drop) };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    _ = stop => {}
                }
                // The sockets stay open and nobody reads them.
                std::future::pending::<()>().await;
                drop((near, far));
            });
        }
    });
    (address, stop, tasks)
}

#[tokio::test]
async fn a_half_open_connection_is_found_by_keepalive() {
    let mut plane = ControlPlane::start(None).await;
    let (address, stop, _relay) = half_open(plane.address).await;
    let agent = Agent::with(IstiodConfig {
        keepalive: (Duration::from_millis(50), Duration::from_millis(50)),
        ..IstiodConfig::new(address.to_string(), None)
    });
    let (_handle, mut events) = agent.envoy(Protocol::Delta);
    let mut call = plane.call().await;
    subscriptions(&mut call).await;
    call.send(clusters("n", "v", 1).encode_to_vec()).await;
    update(&mut events).await;
    stop.send_replace(true);
    let reason = failed(&mut events).await;
    assert!(reason.contains("UNAVAILABLE"), "{reason}");
    // The network is back: so is the stream.
    stop.send_replace(false);
    plane.call().await;
}

/// Answers every connection with the same bytes and closes it.
async fn garbage(bytes: &'static [u8]) -> (SocketAddr, Arc<AtomicUsize>, JoinSet<()>) {
    let listener = TcpListener::bind(LOOPBACK).await.expect("bind");
    let address = listener.local_addr().expect("address");
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            counter.fetch_add(1, Ordering::Relaxed);
            // The agent may be gone before all is written.
            let _ = stream.write_all(bytes).await;
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    (address, seen, tasks)
}

#[tokio::test]
async fn garbage_on_the_connection_is_an_error_with_a_reason_and_tried_again() {
    for bytes in [
        &b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.6\r\n",
        &[0xff; 4096],
        b"\x00\xff\xff\x04\x00\x00\x00\x00\x00",
        b"",
    ] {
        let (address, seen, _server) = garbage(bytes).await;
        let agent = Agent::plain(address);
        let (_handle, mut events) = agent.envoy(Protocol::Delta);
        for _ in 0..3 {
            let reason = failed(&mut events).await;
            assert!(reason.starts_with("stream: "), "{reason} for {bytes:?}");
        }
        assert!(seen.load(Ordering::Relaxed) >= 3);
        assert!(!agent.error().await.is_empty());
        let metrics = agent.handle.metrics();
        let ends = &[&metrics.istiod_error, &metrics.istiod_cancelled];
        let ends: u64 = ends.iter().map(|c| c.load(Ordering::Relaxed)).sum();
        assert!(ends >= 3, "{ends}");
    }
}

#[tokio::test]
async fn garbage_inside_the_stream_ends_it_as_an_error_of_istiod() {
    let mut plane = ControlPlane::start(None).await;
    let agent = Agent::plain(plane.address);
    for (message, text) in [
        (&b"\x0a\xff"[..], "malformed response from istiod"),
        (b"\x22\x01\xff", "malformed response from istiod"),
    ] {
        let mut client = agent.call().await;
        let call = plane.call().await;
        call.send(message.to_vec()).await;
        let status = client.status().await;
        assert_eq!(status.code(), tonic::Code::Internal);
        assert!(status.message().contains(text), "{status:?}");
        assert!(agent.error().await.contains(text));
    }
    let metrics = agent.handle.metrics();
    assert_eq!(metrics.istiod_error.load(Ordering::Relaxed), 2);
    assert_eq!(metrics.envoy_error.load(Ordering::Relaxed), 0);
}

/// The pieces of one message of the call: how many bytes, and the longest piece.
async fn drain(client: &mut control_plane::Client) -> Result<(usize, usize), Status> {
    let next = async |client: &mut control_plane::Client| match within(client.stream.part(0)).await
    {
        Ok(Some(part)) => Ok(part),
        Ok(None) => Err(Status::ok("")),
        Err(error) => Err(error.status()),
    };
    let Part::Start { length, .. } = next(client).await? else {
        panic!("the start of a message");
    };
    let (mut seen, mut longest) = (0, 0);
    while seen < length {
        let Part::More(piece) = next(client).await? else {
            panic!("a piece");
        };
        seen += piece.len();
        longest = longest.max(piece.len());
    }
    Ok((seen, longest))
}

#[tokio::test]
async fn a_response_of_200_mib_passes_in_pieces_and_the_stream_goes_on() {
    let mut plane = ControlPlane::start(None).await;
    let agent = Agent::plain(plane.address);
    let mut client = agent.call().await;
    let call = plane.call().await;
    let huge = Bytes::from(clusters("n1", "v1", 200 << 20).encode_to_vec());
    let length = huge.len();
    call.send(huge).await;
    let (seen, longest) = drain(&mut client).await.expect("a message");
    assert_eq!(seen, length);
    assert!(longest <= 64 << 10, "{longest}: not held by the agent");
    let small = clusters("n2", "v2", 1).encode_to_vec();
    call.send(small.clone()).await;
    assert_eq!(client.message().await, small);
}

#[tokio::test]
async fn a_huge_response_for_the_agent_itself_is_refused_before_it_is_read() {
    let mut plane = ControlPlane::start(None).await;
    let agent = Agent::plain(plane.address);
    let mut client = agent.call().await;
    let call = plane.call().await;
    let mut table = clusters("n1", "v1", 65 << 20);
    table.type_url = NAME_TABLE.to_owned();
    if let Some(any) = &mut table.resources[0].resource {
        any.type_url = NAME_TABLE.to_owned();
    }
    call.send(table.encode_to_vec()).await;
    let status = client.status().await;
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
    assert!(agent.handle.name_table().borrow().is_none());
    assert!(agent.error().await.contains("the limit is"));
}

#[tokio::test]
async fn a_stream_that_breaks_inside_a_long_response_breaks_for_the_client_too() {
    let mut plane = ControlPlane::start(None).await;
    let agent = Agent::plain(plane.address);
    let mut client = agent.call().await;
    let call = plane.call().await;
    let huge = clusters("n1", "v1", 8 << 20).encode_to_vec();
    // More than the windows hold: the server cannot have written all of it.
    call.send(huge).await;
    let start = within(client.stream.part(0)).await.expect("no error");
    assert!(matches!(start, Some(Part::Start { .. })), "{start:?}");
    drop(plane);
    drop(call);
    let status = loop {
        match within(client.stream.part(0)).await {
            Ok(Some(Part::More(_))) => {}
            Ok(other) => panic!("{other:?} instead of an error"),
            Err(error) => break error.status(),
        }
    };
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_upstream_stream_along() {
    let mut plane = ControlPlane::start(None).await;
    let agent = Agent::plain(plane.address);
    let mut status = agent.handle.status();
    for _ in 0..3 {
        let io = tokio::net::UnixStream::connect(&agent.socket).await;
        let mut connection = Connection::handshake(io.expect("socket"), Default::default())
            .await
            .expect("handshake");
        let path = Service::Ads.path(Protocol::Delta);
        let stream = connection.call(path, &Default::default()).await;
        let mut call = plane.call().await;
        within(status.wait_for(|s| s.connected == 1))
            .await
            .expect("agent runs");
        // As a killed Envoy: the connection is gone without a word.
        drop(connection);
        drop(stream);
        assert_eq!(call.request().await, None);
        within(status.wait_for(|s| s.connected == 0))
            .await
            .expect("agent runs");
    }
}

#[tokio::test]
async fn an_address_that_is_silent_or_dead_does_not_hide_the_next_one() {
    let mut plane = ControlPlane::start(None).await;
    let port = plane.address.port();
    // A full accept queue of one: the kernel leaves further connections unanswered.
    let silent = TcpSocket::new_v4().expect("socket");
    silent.bind(([127, 0, 0, 2], port).into()).expect("bind");
    let silent = silent.listen(0).expect("listen");
    let to = silent.local_addr().expect("address");
    let _queued = within(TcpStream::connect(to)).await.expect("the one");
    let dir = tempfile::tempdir().expect("dir");
    let hosts = dir.path().join("hosts");
    let list = "127.0.0.2 istiod.test\n127.0.0.3 istiod.test\n127.0.0.1 istiod.test\n";
    std::fs::write(&hosts, list).expect("hosts");
    let agent = Agent::with(IstiodConfig {
        resolver: Resolver::new(hosts, dir.path().join("resolv.conf")),
        ..IstiodConfig::new(format!("istiod.test:{port}"), None)
    });
    let (_handle, mut events) = agent.envoy(Protocol::Delta);
    let mut call = plane.call().await;
    subscriptions(&mut call).await;
    call.send(clusters("n", "v", 1).encode_to_vec()).await;
    let (_, failures) = update(&mut events).await;
    assert_eq!(failures, 0);
}
