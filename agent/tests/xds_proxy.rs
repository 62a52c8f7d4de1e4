//! xDS proxy between clients on a socket and an istiod in the process.

#[path = "support/control_plane.rs"]
mod control_plane;
#[path = "support/pki.rs"]
mod pki;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use control_plane::{Call, Client, ControlPlane, connector, within};
use outrigger_xds::grpc::ServerOptions;
use outrigger_xds::pb::envoy::config::core::v3::Node;
use outrigger_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use outrigger_xds::pb::google::protobuf::Any;
use outrigger_xds::type_url::{
    CLUSTER, EXTENSION, HEALTH_INFORMATION, LISTENER, NAME_TABLE, PROXY_CONFIG, WORKLOAD,
};
use outrigger_xds::{Protocol, Service};
use pilot_agent::credential::{CredentialSource, RequestMetadata};
use pilot_agent::wasm::{WasmCache, WasmConfig};
use pilot_agent::xds_proxy::{
    Health, NameInfo, NameTable, XdsProxy, XdsProxyConfig, XdsProxyHandle,
};
use pki::Authority;
use prost::Message;
use tonic::{Code, Status};

struct Fixture {
    dir: tempfile::TempDir,
    socket: PathBuf,
    authority: Authority,
    plane: ControlPlane,
    proxy: XdsProxyHandle,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Fixture {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut XdsProxyConfig)) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (root, token) = (dir.path().join("root.pem"), dir.path().join("token"));
        let authority = Authority::new("ca");
        std::fs::write(&root, &authority.root_pem).expect("root");
        std::fs::write(&token, "jwt").expect("token");
        let plane = ControlPlane::start(Some(&authority)).await;
        let socket = dir.path().join("proxy/XDS");
        let mut config = XdsProxyConfig {
            socket: socket.clone(),
            upstream: connector(plane.address, Some(&root)),
            metadata: RequestMetadata {
                credential: CredentialSource::JwtFile(token),
                cluster_id: "Kubernetes".to_owned(),
                headers: Vec::new(),
            },
            server: ServerOptions::default(),
            name_table: true,
            proxy_config: false,
            wasm: Some(Arc::new(WasmCache::new(WasmConfig {
                directory: dir.path().join("data"),
                ..WasmConfig::default()
            }))),
        };
        change(&mut config);
        let proxy = XdsProxy::bind(config).expect("bind");
        let handle = proxy.handle();
        let server = tokio::spawn(proxy.run());
        Self {
            dir,
            socket,
            authority,
            plane,
            proxy: handle,
            server,
        }
    }

    async fn open(&mut self, protocol: Protocol) -> (Client, Call) {
        let client = Client::open(&self.socket, Service::Ads.path(protocol)).await;
        let call = self.plane.call().await;
        assert_eq!(call.path, Service::Ads.path(protocol));
        (client, call)
    }
}

fn delta(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        ..Default::default()
    }
}

fn delta_response(type_url: &str, nonce: &str, bodies: &[Vec<u8>]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        resources: bodies
            .iter()
            .map(|value| Resource {
                name: "r".to_owned(),
                version: "1".to_owned(),
                resource: Some(Any {
                    type_url: type_url.to_owned(),
                    value: value.clone(),
                }),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

async fn upstream_delta(call: &mut Call) -> DeltaDiscoveryRequest {
    let message = call.request().await.expect("a request");
    DeltaDiscoveryRequest::decode(message).expect("delta request")
}

async fn upstream_sotw(call: &mut Call) -> DiscoveryRequest {
    let message = call.request().await.expect("a request");
    DiscoveryRequest::decode(message).expect("request")
}

/// Bytes of a message with fields nobody knows: they must survive.
fn with_unknown_fields(message: &impl Message) -> Bytes {
    let mut bytes = message.encode_to_vec();
    bytes.extend_from_slice(&[0xfa, 0x3f, 3, b'x', b'y', b'z']);
    Bytes::from(bytes)
}

#[tokio::test]
async fn messages_pass_byte_for_byte_in_both_variants() {
    let mut f = Fixture::new().await;
    for protocol in [Protocol::Delta, Protocol::Sotw] {
        let (mut client, mut call) = f.open(protocol).await;
        assert_eq!(call.bearer(), Some("Bearer jwt"));
        assert_eq!(call.headers["clusterid"], "Kubernetes");
        let node = Node {
            id: "sidecar~1~2~3".to_owned(),
            ..Default::default()
        };
        let (request, answer) = match protocol {
            Protocol::Delta => (
                with_unknown_fields(&DeltaDiscoveryRequest {
                    node: Some(node),
                    ..delta(CLUSTER)
                }),
                with_unknown_fields(&delta_response(CLUSTER, "n1", &[vec![7; 3_000_000]])),
            ),
            Protocol::Sotw => (
                with_unknown_fields(&DiscoveryRequest {
                    node: Some(node),
                    type_url: CLUSTER.to_owned(),
                    ..Default::default()
                }),
                with_unknown_fields(&DiscoveryResponse {
                    type_url: CLUSTER.to_owned(),
                    nonce: "n1".to_owned(),
                    resources: vec![Any {
                        type_url: CLUSTER.to_owned(),
                        value: vec![9; 70_000],
                    }],
                    ..Default::default()
                }),
            ),
        };
        client.send_bytes(request.clone());
        assert_eq!(call.request().await, Some(request));
        call.send(answer.clone()).await;
        assert_eq!(client.message().await, answer);
        // The stream ends upstream as it ends downstream.
        client.sender = None;
        assert_eq!(client.status().await.code(), Code::Ok);
        assert_eq!(call.request().await, None);
    }
    assert_eq!(f.proxy.metrics().requests.load(Ordering::Relaxed), 2);
    assert_eq!(f.proxy.metrics().responses.load(Ordering::Relaxed), 2);
    assert_eq!(f.proxy.metrics().envoy_cancelled.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn name_table_is_asked_for_after_the_first_listener_request_and_acked() {
    let mut f = Fixture::new().await;
    let (client, mut call) = f.open(Protocol::Delta).await;
    client.send(delta(CLUSTER));
    client.send(delta(LISTENER));
    client.send(delta(LISTENER));
    let mut types = Vec::new();
    for _ in 0..4 {
        types.push(upstream_delta(&mut call).await.type_url);
    }
    assert_eq!(types[..3], [CLUSTER, LISTENER, NAME_TABLE]);
    assert_eq!(types[3], LISTENER, "the table is asked for once");

    let mut names = f.proxy.name_table();
    assert!(names.borrow().is_none());
    let table = NameTable {
        table: [(
            "echo.default.svc.cluster.local".to_owned(),
            NameInfo {
                ips: vec!["10.96.0.1".to_owned()],
                ..Default::default()
            },
        )]
        .into(),
    };
    call.send(delta_response(NAME_TABLE, "nds-1", &[table.encode_to_vec()]).encode_to_vec())
        .await;
    let ack = upstream_delta(&mut call).await;
    assert_eq!(
        ack,
        DeltaDiscoveryRequest {
            response_nonce: "nds-1".into(),
            ..delta(NAME_TABLE)
        }
    );
    within(names.changed()).await.expect("proxy lives");
    assert_eq!(names.borrow_and_update().as_deref(), Some(&table));

    // An empty response is ACKed and keeps the table; a malformed one is NACKed.
    call.send(delta_response(NAME_TABLE, "nds-2", &[]).encode_to_vec())
        .await;
    let ack = upstream_delta(&mut call).await;
    assert_eq!(
        (ack.response_nonce.as_str(), ack.error_detail),
        ("nds-2", None)
    );
    call.send(delta_response(NAME_TABLE, "nds-3", &[vec![0x0a, 0x7f]]).encode_to_vec())
        .await;
    let nack = upstream_delta(&mut call).await;
    assert_eq!(nack.response_nonce, "nds-3");
    assert_eq!(nack.error_detail.expect("an error").code, 13);
    assert!(!names.has_changed().expect("proxy lives"));
}

#[tokio::test]
async fn sotw_acks_of_the_agent_carry_version_and_nonce() {
    let mut f = Fixture::with(|config| config.proxy_config = true).await;
    let (client, mut call) = f.open(Protocol::Sotw).await;
    client.send(DiscoveryRequest {
        type_url: LISTENER.to_owned(),
        ..Default::default()
    });
    let mut types = Vec::new();
    for _ in 0..3 {
        types.push(upstream_sotw(&mut call).await.type_url);
    }
    assert_eq!(types, [LISTENER, NAME_TABLE, PROXY_CONFIG]);
    // ProxyConfig { ca_certificates_pem (34): ["anchor"] }.
    let response = DiscoveryResponse {
        version_info: "v1".to_owned(),
        nonce: "n1".to_owned(),
        type_url: PROXY_CONFIG.to_owned(),
        resources: vec![Any {
            type_url: PROXY_CONFIG.to_owned(),
            value: b"\x92\x02\x06anchor".to_vec(),
        }],
        ..Default::default()
    };
    call.send(response.encode_to_vec()).await;
    let ack = upstream_sotw(&mut call).await;
    assert_eq!(
        ack,
        DiscoveryRequest {
            version_info: "v1".to_owned(),
            response_nonce: "n1".to_owned(),
            type_url: PROXY_CONFIG.to_owned(),
            ..Default::default()
        }
    );
    assert_eq!(
        *f.proxy.trust_anchors().borrow(),
        Some(vec!["anchor".to_owned()])
    );
}

#[tokio::test]
async fn recorded_name_table_is_taken_and_never_reaches_the_client() {
    let mut f = Fixture::new().await;
    let (client, mut call) = f.open(Protocol::Sotw).await;
    client.send(DiscoveryRequest {
        type_url: LISTENER.to_owned(),
        ..Default::default()
    });
    assert_eq!(upstream_sotw(&mut call).await.type_url, LISTENER);
    assert_eq!(upstream_sotw(&mut call).await.type_url, NAME_TABLE);
    let recorded = include_bytes!("fixtures/nds.pb");
    let response = DiscoveryResponse::decode(&recorded[..]).expect("a response");
    call.send(recorded.to_vec()).await;
    let ack = upstream_sotw(&mut call).await;
    assert_eq!(ack.version_info, response.version_info);
    assert_eq!(ack.error_detail, None);
    let table = f.proxy.name_table().borrow().clone().expect("a table");
    let info = &table.table["echo.sample.svc.cluster.local"];
    assert_eq!(
        (info.registry.as_str(), info.ips.as_slice()),
        ("External", &["10.96.0.12".to_owned()][..])
    );
}

#[tokio::test]
async fn unknown_types_are_acked_and_workloads_forwarded() {
    let mut f = Fixture::new().await;
    let (mut client, mut call) = f.open(Protocol::Delta).await;
    call.send(delta_response("type.googleapis.com/istio.io/debug", "d", &[]).encode_to_vec())
        .await;
    let ack = upstream_delta(&mut call).await;
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("d", None));
    let workload = delta_response(WORKLOAD, "w", &[vec![1]]).encode_to_vec();
    call.send(workload.clone()).await;
    assert_eq!(
        client.message().await,
        workload,
        "the dropped type never reached the client"
    );
}

/// A length-delimited field.
fn field(number: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(body.len()).expect("short")];
    out.extend_from_slice(body);
    out
}

/// An extension config with a Wasm filter of the given `AsyncDataSource`.
fn wasm(code: &[u8]) -> Vec<u8> {
    let filter = field(1, &field(3, &field(3, code)));
    let url = b"type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
    let typed = [field(1, url), field(2, &filter)].concat();
    [field(1, b"my-plugin"), field(2, &typed)].concat()
}

#[tokio::test]
async fn wasm_without_code_is_refused_with_a_reason_and_local_extensions_pass() {
    let mut f = Fixture::new().await;
    let (mut client, mut call) = f.open(Protocol::Delta).await;
    let broken = delta_response(EXTENSION, "e1", &[wasm(b"")]);
    call.send(broken.encode_to_vec()).await;
    let nack = upstream_delta(&mut call).await;
    assert_eq!(
        (nack.type_url.as_str(), nack.response_nonce.as_str()),
        (EXTENSION, "e1")
    );
    let error = nack.error_detail.expect("an error");
    assert!(error.message.contains("my-plugin"), "{}", error.message);
    let local = delta_response(EXTENSION, "e2", &[wasm(&field(1, b""))]).encode_to_vec();
    call.send(local.clone()).await;
    assert_eq!(client.message().await, local);
}

#[tokio::test]
async fn a_refused_extension_config_names_the_version_that_was_accepted() {
    let mut f = Fixture::new().await;
    let (client, mut call) = f.open(Protocol::Sotw).await;
    client.send(DiscoveryRequest {
        type_url: EXTENSION.to_owned(),
        version_info: "v1".to_owned(),
        response_nonce: "n1".to_owned(),
        ..Default::default()
    });
    assert_eq!(upstream_sotw(&mut call).await.version_info, "v1");
    let broken = DiscoveryResponse {
        type_url: EXTENSION.to_owned(),
        version_info: "v2".to_owned(),
        nonce: "n2".to_owned(),
        resources: vec![Any {
            type_url: EXTENSION.to_owned(),
            value: wasm(b""),
        }],
        ..Default::default()
    };
    call.send(broken.encode_to_vec()).await;
    let nack = upstream_sotw(&mut call).await;
    let seen = (nack.version_info.as_str(), nack.response_nonce.as_str());
    assert_eq!(seen, ("v1", "n2"));
    assert!(nack.error_detail.is_some());
}

#[tokio::test]
async fn other_types_pass_while_a_module_is_being_fetched() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let port = silent.local_addr().expect("address").port();
    let mut f = Fixture::new().await;
    let (mut client, call) = f.open(Protocol::Delta).await;
    let url = format!("http://127.0.0.1:{port}/m.wasm");
    let remote = field(2, &field(1, &field(1, url.as_bytes())));
    let fetching = delta_response(EXTENSION, "e1", &[wasm(&remote)]);
    call.send(fetching.encode_to_vec()).await;
    let (held, _) = within(silent.accept()).await.expect("the fetch");
    let clusters = delta_response(CLUSTER, "c1", &[vec![1; 100_000]]).encode_to_vec();
    call.send(clusters.clone()).await;
    assert_eq!(client.message().await, clusters);
    // The server gives up; the filter is replaced, and the response goes out after all.
    drop((silent, held));
    let converted = DeltaDiscoveryResponse::decode(client.message().await).expect("delta");
    assert_eq!(converted.nonce, "e1");
    let body = converted.resources[0].encode_to_vec();
    assert!(body.windows(17).any(|w| w == b"wasm-default-deny"));
}

#[tokio::test]
async fn streams_do_not_evict_each_other() {
    let mut f = Fixture::new().await;
    let (mut first, first_call) = f.open(Protocol::Delta).await;
    let (mut second, second_call) = f.open(Protocol::Sotw).await;
    within(f.proxy.status().wait_for(|s| s.connected == 2))
        .await
        .expect("proxy lives");
    let one = delta_response(CLUSTER, "1", &[]).encode_to_vec();
    let two = DiscoveryResponse {
        type_url: CLUSTER.to_owned(),
        ..Default::default()
    };
    first_call.send(one.clone()).await;
    second_call.send(two.encode_to_vec()).await;
    assert_eq!(first.message().await, one);
    assert_eq!(second.message().await, two.encode_to_vec());
}

#[tokio::test]
async fn istiod_gone_is_unavailable_and_the_next_stream_reaches_it_again() {
    let mut f = Fixture::new().await;
    let (mut client, call) = f.open(Protocol::Delta).await;
    call.end(Status::unauthenticated("token expired"));
    let status = client.status().await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unauthenticated, "token expired")
    );
    assert_eq!(f.proxy.metrics().istiod_error.load(Ordering::Relaxed), 1);

    // The connection breaks without a word.
    let (mut client, call) = f.open(Protocol::Delta).await;
    let address = f.plane.address;
    drop(std::mem::replace(
        &mut f.plane,
        ControlPlane::start(None).await,
    ));
    drop(call);
    assert_eq!(client.status().await.code(), Code::Unavailable);
    assert_eq!(
        f.proxy.metrics().istiod_cancelled.load(Ordering::Relaxed),
        1
    );

    let mut client = Client::open(&f.socket, Service::Ads.path(Protocol::Delta)).await;
    let status = client.status().await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(
        f.proxy
            .metrics()
            .connection_failures
            .load(Ordering::Relaxed),
        1
    );
    let error = f
        .proxy
        .status()
        .borrow()
        .last_error
        .clone()
        .expect("an error is kept");
    assert!(error.contains(&address.to_string()), "{error}");

    f.plane = ControlPlane::restart(address, Some(&f.authority)).await;
    let (mut client, call) = f.open(Protocol::Delta).await;
    let answer = delta_response(CLUSTER, "back", &[]).encode_to_vec();
    call.send(answer.clone()).await;
    assert_eq!(client.message().await, answer);
    assert_eq!(f.proxy.status().borrow().last_error, None);
}

#[tokio::test]
async fn untrusted_istiod_is_reported_and_a_new_root_file_heals_it() {
    let mut f = Fixture::new().await;
    let root = f.dir.path().join("root.pem");
    std::fs::write(&root, Authority::new("other").root_pem).expect("root");
    let mut client = Client::open(&f.socket, Service::Ads.path(Protocol::Delta)).await;
    assert_eq!(client.status().await.code(), Code::Unavailable);
    let error = f
        .proxy
        .status()
        .borrow()
        .last_error
        .clone()
        .expect("an error is kept");
    assert!(error.contains("TLS handshake"), "{error}");
    std::fs::write(&root, &f.authority.root_pem).expect("root");
    let (_client, _call) = f.open(Protocol::Delta).await;
}

#[tokio::test]
async fn malformed_and_oversized_requests_end_the_stream() {
    let mut f = Fixture::new().await;
    for (message, code) in [
        (vec![0x0a, 0xff], Code::InvalidArgument),
        (vec![0x12, 2, 0xff, 0xfe], Code::InvalidArgument),
        (vec![0; (4 << 20) + 1], Code::ResourceExhausted),
    ] {
        let (mut client, _call) = f.open(Protocol::Delta).await;
        client.send_bytes(message);
        assert_eq!(client.status().await.code(), code);
    }
    let mut client = Client::open(&f.socket, "/grpc.health.v1.Health/Check").await;
    assert_eq!(client.status().await.code(), Code::Unimplemented);
}

#[tokio::test]
async fn health_is_sent_after_the_listener_request_and_on_each_change() {
    let mut f = Fixture::with(|config| config.name_table = false).await;
    f.proxy.set_health(Health::Unhealthy("refused".to_owned()));
    for round in 0..2 {
        let (client, mut call) = f.open(Protocol::Delta).await;
        client.send(delta(LISTENER));
        assert_eq!(upstream_delta(&mut call).await.type_url, LISTENER);
        let report = upstream_delta(&mut call).await;
        assert_eq!(report.type_url, HEALTH_INFORMATION);
        if round == 0 {
            let error = report.error_detail.expect("unhealthy");
            assert_eq!((error.code, error.message.as_str()), (13, "refused"));
            f.proxy.set_health(Health::Healthy);
            f.proxy.set_health(Health::Healthy);
            assert_eq!(upstream_delta(&mut call).await, delta(HEALTH_INFORMATION));
            client.send(delta(CLUSTER));
            assert_eq!(
                upstream_delta(&mut call).await.type_url,
                CLUSTER,
                "sent once"
            );
        } else {
            assert_eq!(report.error_detail, None, "the state outlives the stream");
        }
    }
}
