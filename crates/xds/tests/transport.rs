//! A client over real sockets: reconnects, replays, large pushes.

use std::path::Path;
use std::time::Duration;

use outrigger_xds::grpc::server::serve_unix;
use outrigger_xds::grpc::{MessageStream, Responder, ServerCall, ServerOptions};
use outrigger_xds::pb::envoy::config::core::v3::Node;
use outrigger_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use outrigger_xds::pb::google::protobuf::Any;
use outrigger_xds::type_url::{CLUSTER, ENDPOINT};
use outrigger_xds::{
    AdsClient, AdsHandle, Backoff, ClientConfig, DisconnectReason, Event, Protocol, Service,
    Session, UdsConnector, Update,
};
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tonic::Status;

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("in time")
}

/// A stream at the server: the test reads requests and writes responses.
struct ServerStream {
    path: String,
    requests: MessageStream,
    responder: Responder,
    _end: tokio::sync::oneshot::Sender<()>,
}

impl ServerStream {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        let bytes = within(self.requests.message())
            .await
            .expect("no error")
            .expect("a request");
        DeltaDiscoveryRequest::decode(bytes).expect("a delta request")
    }
}

/// Serves `socket`; every call goes to the receiver. Dropping a `ServerStream` ends it with OK.
fn serve(
    socket: &Path,
) -> (
    mpsc::UnboundedReceiver<ServerStream>,
    tokio::task::JoinHandle<()>,
) {
    let listener = UnixListener::bind(socket).expect("bind");
    let (sender, receiver) = mpsc::unbounded_channel();
    let handler = move |call: ServerCall, responder: Responder| {
        let sender = sender.clone();
        async move {
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            let stream = ServerStream {
                path: call.path,
                requests: call.requests,
                responder,
                _end: end,
            };
            sender
                .send(stream)
                .map_err(|_| Status::unavailable("test is over"))?;
            // Either the test drops its end, which is the signal, or the client goes away.
            let _ = ended.await;
            Ok(())
        }
    };
    (
        receiver,
        tokio::spawn(serve_unix(listener, ServerOptions::default(), handler)),
    )
}

fn client(socket: &Path) -> (AdsHandle, mpsc::Receiver<Event>) {
    let node = Node {
        id: "node-1".to_owned(),
        ..Default::default()
    }
    .encode_to_vec();
    let mut config = ClientConfig::new(Service::Ads, node.into());
    config.backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(20));
    AdsClient::spawn(
        UdsConnector(socket.to_owned()),
        Session::new(Protocol::Delta),
        config,
    )
}

async fn update(events: &mut mpsc::Receiver<Event>) -> Update {
    loop {
        match within(events.recv()).await.expect("client runs") {
            Event::Update(update) => return update,
            Event::Connected | Event::Disconnected(_) => {}
        }
    }
}

fn clusters(nonce: &str, body: Vec<u8>) -> Vec<u8> {
    DeltaDiscoveryResponse {
        type_url: CLUSTER.to_owned(),
        nonce: nonce.to_owned(),
        resources: vec![Resource {
            name: "a".to_owned(),
            version: "1".to_owned(),
            resource: Some(Any {
                type_url: CLUSTER.to_owned(),
                value: body,
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
    .encode_to_vec()
}

#[tokio::test]
async fn client_reconnects_and_replays_what_it_holds() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let socket = dir.path().join("xds");
    let (handle, mut events) = client(&socket);
    handle.subscribe_wildcard(CLUSTER);
    // Nobody listens yet: the client says so and goes on trying.
    let event = within(events.recv()).await.expect("client runs");
    assert!(
        matches!(event, Event::Disconnected(DisconnectReason::Connect(_))),
        "{event:?}"
    );

    let (mut streams, server) = serve(&socket);
    // Keep taking events, or the client waits for us.
    let first = tokio::join!(
        async { within(streams.recv()).await.expect("a stream") },
        async { while !matches!(within(events.recv()).await, Some(Event::Connected)) {} }
    );
    let mut stream = first.0;
    assert!(stream.path.ends_with("/DeltaAggregatedResources"));
    let request = stream.request().await;
    assert_eq!(request.node.expect("node").id, "node-1");
    assert_eq!(request.type_url, CLUSTER);

    // Larger than any HTTP/2 window and than gRPC's usual limit.
    stream
        .responder
        .send(clusters("n1", vec![7; 20 << 20]).into())
        .await
        .expect("sent");
    let received = update(&mut events).await;
    assert_eq!(received.added[0].body.len(), 20 << 20);
    handle.subscribe(ENDPOINT, vec!["a".to_owned()]);
    handle.ack(received.id());
    assert_eq!(stream.request().await.resource_names_subscribe, ["a"]);
    let ack = stream.request().await;
    assert_eq!((ack.response_nonce.as_str(), ack.node), ("n1", None));

    drop(stream);
    let event = within(events.recv()).await.expect("client runs");
    assert!(
        matches!(event, Event::Disconnected(DisconnectReason::Ended)),
        "{event:?}"
    );
    let mut stream = within(streams.recv()).await.expect("a second stream");
    let first = stream.request().await;
    assert!(first.node.is_some());
    assert_eq!(first.initial_resource_versions["a"], "1");
    let second = stream.request().await;
    assert_eq!((second.type_url.as_str(), second.node), (ENDPOINT, None));

    // The server dies with the connection.
    server.abort();
    assert!(
        within(server)
            .await
            .is_err_and(|error| error.is_cancelled())
    );
    drop(stream);
    loop {
        match within(events.recv()).await.expect("client runs") {
            Event::Disconnected(_) => break,
            Event::Connected => {}
            Event::Update(update) => panic!("{update:?}"),
        }
    }
    std::fs::remove_file(&socket).expect("stale socket");
    let (mut streams, _server) = serve(&socket);
    let drain = tokio::spawn(async move { while events.recv().await.is_some() {} });
    let mut stream = within(streams.recv()).await.expect("a third stream");
    assert_eq!(stream.request().await.initial_resource_versions["a"], "1");
    assert_eq!(stream.request().await.type_url, ENDPOINT);
    // Without handles the client ends, and with it the stream and the events.
    drop(handle);
    assert!(matches!(
        within(stream.requests.message()).await,
        Ok(None) | Err(_)
    ));
    within(drain).await.expect("events end");
}

#[tokio::test]
async fn undecodable_response_ends_the_stream_and_the_client_tries_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let socket = dir.path().join("xds");
    let (mut streams, _server) = serve(&socket);
    let (handle, mut events) = client(&socket);
    handle.subscribe_wildcard(CLUSTER);
    let stream = within(streams.recv()).await.expect("a stream");
    stream
        .responder
        .send(vec![0xff; 3].into())
        .await
        .expect("sent");
    assert!(matches!(
        within(events.recv()).await,
        Some(Event::Connected)
    ));
    let event = within(events.recv()).await.expect("client runs");
    assert!(
        matches!(event, Event::Disconnected(DisconnectReason::Decode(_))),
        "{event:?}"
    );
    let mut stream = within(streams.recv()).await.expect("another stream");
    assert_eq!(stream.request().await.type_url, CLUSTER);
    // A type nobody asked for is skipped, the stream goes on.
    let foreign = DeltaDiscoveryResponse {
        type_url: ENDPOINT.to_owned(),
        ..Default::default()
    };
    stream
        .responder
        .send(foreign.encode_to_vec().into())
        .await
        .expect("sent");
    stream
        .responder
        .send(clusters("n1", vec![1]).into())
        .await
        .expect("sent");
    assert_eq!(update(&mut events).await.nonce, "n1");
}
