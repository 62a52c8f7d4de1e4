//! SDS server on a socket, fed by a secret manager and a CA in the process.

#[path = "support/authority.rs"]
mod authority;
#[path = "support/control_plane.rs"]
mod control_plane;
#[path = "support/pki.rs"]
mod pki;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use authority::{answer, ca_client, issue};
use control_plane::{Client, ControlPlane, within};
use outrigger_xds::grpc::ServerOptions;
use outrigger_xds::pb::envoy::config::core::v3::{Node, data_source::Specifier};
use outrigger_xds::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use outrigger_xds::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use outrigger_xds::pb::google::rpc;
use outrigger_xds::type_url::SECRET;
use outrigger_xds::{AdsClient, ClientConfig, Event, Protocol, Service, Session, UdsConnector};
use pilot_agent::metrics::Metrics;
use pilot_agent::sds::{
    SdsConfig, SdsMetrics, SdsProvider, SdsProviderError, SdsServer, detect_provider,
};
use pilot_agent::secret_manager::{
    KeyAlgorithm, RotationConfig, SecretManager, SecretManagerConfig, WorkloadSource, spiffe_id,
};
use pki::Authority;
use prost::Message;
use tonic::{Code, Status};

const STREAM: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
const DAY: i64 = 86_400;

struct Fixture {
    dir: tempfile::TempDir,
    socket: PathBuf,
    authority: Authority,
    plane: ControlPlane,
    manager: SecretManager,
    metrics: Arc<SdsMetrics>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let plane = ControlPlane::start(None).await;
        let client = ca_client(plane.address, None, &dir.path().join("token"));
        let identity = spiffe_id("cluster.local", "ns1", "sa1");
        let mut config = SecretManagerConfig::new(identity, WorkloadSource::Ca(client));
        config.key.algorithm = KeyAlgorithm::EcdsaP256;
        config.rotation = RotationConfig {
            first_retry: Duration::from_millis(10),
            max_retry: Duration::from_millis(20),
            ..RotationConfig::default()
        };
        let manager = SecretManager::spawn(config);
        let socket = dir.path().join("socket");
        let config = SdsConfig {
            socket: socket.clone(),
            crl: Some(dir.path().join("crl.pem")),
            key_provider: None,
            server: ServerOptions::default(),
        };
        let server = SdsServer::bind(config, manager.clone()).expect("bind");
        let metrics = server.metrics();
        let server = tokio::spawn(server.run());
        Self {
            dir,
            socket,
            authority: Authority::new("ca"),
            plane,
            manager,
            metrics,
            server,
        }
    }

    async fn issue(&mut self, seconds: i64) {
        let call = self.plane.call().await;
        issue(call, &self.authority, seconds).await;
    }
}

fn request(names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(Node {
            id: "sidecar~10.0.0.1~a.b~c".to_owned(),
            ..Default::default()
        }),
        resource_names: names.iter().map(|&n| n.to_owned()).collect(),
        type_url: SECRET.to_owned(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
}

async fn response(client: &mut Client) -> (DiscoveryResponse, Vec<Secret>) {
    let response = DiscoveryResponse::decode(client.message().await).expect("response");
    assert_eq!(response.type_url, SECRET);
    let secrets = response
        .resources
        .iter()
        .map(|any| {
            assert_eq!(any.type_url, SECRET);
            Secret::decode(any.value.as_slice()).expect("secret")
        })
        .collect();
    (response, secrets)
}

fn inline(source: Option<&outrigger_xds::pb::envoy::config::core::v3::DataSource>) -> Vec<u8> {
    match source.and_then(|s| s.specifier.clone()) {
        Some(Specifier::InlineBytes(bytes)) => bytes,
        other => panic!("not inline: {other:?}"),
    }
}

fn certificate(secret: &Secret) -> (Vec<u8>, Vec<u8>) {
    match &secret.r#type {
        Some(Type::TlsCertificate(c)) => (
            inline(c.certificate_chain.as_ref()),
            inline(c.private_key.as_ref()),
        ),
        other => panic!("not a certificate: {other:?}"),
    }
}

#[tokio::test]
async fn both_secrets_come_in_request_order_and_form_a_valid_identity() {
    let mut f = Fixture::new().await;
    let mut client = Client::open(&f.socket, STREAM).await;
    client.send(request(&["ROOTCA", "default"], ""));
    f.issue(DAY).await;
    let mut secrets = Vec::new();
    let mut versions = Vec::new();
    while secrets.len() < 2 {
        let (response, mut more) = response(&mut client).await;
        versions.push(response.version_info);
        secrets.append(&mut more);
    }
    assert_eq!(secrets[0].name, "ROOTCA");
    assert_eq!(secrets[1].name, "default");
    let (chain, key) = certificate(&secrets[1]);
    let (_, leaf) = x509_parser::pem::parse_x509_pem(&chain).expect("PEM");
    let leaf = leaf.parse_x509().expect("certificate");
    let san = leaf
        .subject_alternative_name()
        .expect("one SAN")
        .expect("a SAN");
    assert_eq!(san.value.general_names.len(), 1);
    assert_eq!(
        san.value.general_names[0].to_string(),
        "URI(spiffe://cluster.local/ns/ns1/sa/sa1)"
    );
    let chain = String::from_utf8(chain).expect("text");
    assert!(
        chain.trim_end().ends_with(f.authority.root_pem.trim_end()),
        "root element included"
    );
    assert!(key.starts_with(b"-----BEGIN EC PRIVATE KEY-----\n"));
    let Some(Type::ValidationContext(roots)) = &secrets[0].r#type else {
        panic!("roots")
    };
    assert!(roots.crl.is_none());
    assert_eq!(
        String::from_utf8(inline(roots.trusted_ca.as_ref()))
            .expect("text")
            .trim(),
        f.authority.root_pem.trim()
    );
    let (date, number) = versions[0].split_once('/').expect("<date>/<counter>");
    assert!(
        date.len() == 20 && date.ends_with('Z') && number == "1",
        "{versions:?}"
    );
}

#[tokio::test]
async fn the_nonce_of_an_earlier_stream_is_no_reason_for_silence() {
    let mut f = Fixture::new().await;
    f.issue(DAY).await;
    let mut client = Client::open(&f.socket, STREAM).await;
    client.send(request(&["default"], "of-the-last-stream"));
    let (_, secrets) = response(&mut client).await;
    assert_eq!(secrets[0].name, "default");
    assert_eq!(f.metrics.expired_nonce.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn any_other_name_is_the_workload_certificate_under_that_name() {
    let mut f = Fixture::new().await;
    f.issue(DAY).await;
    let mut served = Vec::new();
    for name in ["default", "spiffe://cluster.local/ns/ns1/sa/sa1", "Default"] {
        let mut client = Client::open(&f.socket, STREAM).await;
        client.send(request(&[name], ""));
        let (_, secrets) = response(&mut client).await;
        assert_eq!(secrets[0].name, name);
        served.push(certificate(&secrets[0]));
    }
    assert!(served.iter().all(|one| *one == served[0]));
}

#[tokio::test]
async fn acks_nacks_and_stale_nonces_are_silent_and_only_added_names_are_sent() {
    let mut f = Fixture::new().await;
    f.issue(DAY).await;
    within(f.manager.status().wait_for(|s| s.issued == 1))
        .await
        .expect("manager lives");
    let mut client = Client::open(&f.socket, STREAM).await;
    client.send(request(&["default"], ""));
    let (first, secrets) = response(&mut client).await;
    assert_eq!(secrets.len(), 1);
    client.send(request(&["default"], &first.nonce));
    client.send(request(&["default", "ROOTCA"], "not-the-nonce"));
    client.send(DiscoveryRequest {
        error_detail: Some(rpc::Status {
            code: 13,
            message: "no".into(),
            details: Vec::new(),
        }),
        ..request(&["default"], &first.nonce)
    });
    client.send(request(&["default", "ROOTCA"], &first.nonce));
    // The next message answers the last request: the three before were met with silence.
    let (second, secrets) = response(&mut client).await;
    assert_eq!(secrets.len(), 1);
    assert_eq!(secrets[0].name, "ROOTCA");
    assert_ne!(second.nonce, first.nonce);
    assert_eq!(f.metrics.expired_nonce.load(Ordering::Relaxed), 1);
    assert_eq!(f.metrics.rejects.load(Ordering::Relaxed), 1);
    // Unsubscribed from all, then subscribed again: sent again.
    client.send(request(&[], &second.nonce));
    client.send(request(&["default"], &second.nonce));
    let (_, secrets) = response(&mut client).await;
    assert_eq!(secrets[0].name, "default");
    // The stream counts a response before it sends the next one.
    let (metrics, counters) = (Metrics::default(), f.metrics.clone());
    metrics.add_source(move |page| counters.render(page));
    let text = metrics.render();
    for series in ["pilot_xds_expired_nonce", "pilot_total_xds_rejects"] {
        let line = format!("istio_agent_{series}{{type=\"sds\"}} 1\n");
        assert!(text.contains(&line), "{text}");
    }
    let count = text
        .lines()
        .find_map(|l| l.strip_prefix("istio_agent_pilot_xds_send_time_count "));
    assert!(["2", "3"].contains(&count.unwrap_or_default()), "{text}");
}

#[tokio::test]
async fn crl_is_referred_to_when_the_file_exists() {
    let mut f = Fixture::new().await;
    f.issue(DAY).await;
    let crl = f.dir.path().join("crl.pem");
    std::fs::write(&crl, "crl").expect("write");
    let mut client = Client::open(&f.socket, STREAM).await;
    client.send(request(&["ROOTCA"], ""));
    let (_, secrets) = response(&mut client).await;
    let Some(Type::ValidationContext(context)) = &secrets[0].r#type else {
        panic!("roots")
    };
    let specifier = context.crl.as_ref().and_then(|crl| crl.specifier.clone());
    assert_eq!(
        specifier,
        Some(Specifier::Filename(crl.to_string_lossy().into_owned()))
    );
}

#[tokio::test]
async fn rotation_is_pushed_to_every_stream_and_failures_do_not_end_them() {
    let mut f = Fixture::new().await;
    let mut clients = [
        Client::open(&f.socket, STREAM).await,
        Client::open(&f.socket, STREAM).await,
    ];
    for client in &clients {
        client.send(request(&["default"], ""));
    }
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for round in 0..3 {
        if round > 0 {
            f.plane
                .call()
                .await
                .end(Status::permission_denied("not now"));
            let root = f.authority.root_pem.clone();
            answer(f.plane.call().await, vec!["garbage".into(), root]).await;
        }
        f.issue(2).await;
        let mut leaves = Vec::new();
        for client in &mut clients {
            let (response, secrets) = response(client).await;
            client.send(request(&["default"], &response.nonce));
            leaves.push(certificate(&secrets[0]).0);
        }
        assert_eq!(leaves[0], leaves[1]);
        assert!(!seen.contains(&leaves[0]));
        seen.push(leaves.swap_remove(0));
    }
    assert_eq!(f.metrics.streams.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn requests_that_break_the_rules_end_the_stream_with_a_status() {
    let f = Fixture::new().await;
    let no_node = DiscoveryRequest {
        node: None,
        ..request(&["default"], "")
    };
    let mut no_id = request(&["default"], "");
    no_id.node = Some(Node::default());
    let other_type = DiscoveryRequest {
        type_url: "type.googleapis.com/x".into(),
        ..request(&["default"], "")
    };
    for (message, code, text) in [
        (
            no_node.encode_to_vec(),
            Code::InvalidArgument,
            "missing node information",
        ),
        (
            no_id.encode_to_vec(),
            Code::InvalidArgument,
            "missing node information",
        ),
        (
            other_type.encode_to_vec(),
            Code::InvalidArgument,
            "is not served here",
        ),
        (
            vec![0xff, 0xff],
            Code::InvalidArgument,
            "undecodable request",
        ),
        (
            request(&["file-cert:chain-without-key"], "").encode_to_vec(),
            Code::Unknown,
            "unknown secret",
        ),
        (vec![0; 5 << 20], Code::ResourceExhausted, "limit"),
        (
            DiscoveryRequest {
                resource_names: (0..1001).map(|n| format!("file-root:/none/{n}")).collect(),
                ..request(&[], "")
            }
            .encode_to_vec(),
            Code::ResourceExhausted,
            "1001 secrets on one stream",
        ),
    ] {
        let mut client = Client::open(&f.socket, STREAM).await;
        client.send_bytes(message);
        let status = client.status().await;
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(text), "{status:?}");
    }
    for method in ["DeltaSecrets", "FetchSecrets"] {
        let path = format!("/envoy.service.secret.v3.SecretDiscoveryService/{method}");
        let mut client = Client::open(&f.socket, &path).await;
        client.send(request(&["default"], ""));
        assert_eq!(client.status().await.code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn the_project_s_own_client_takes_several_names_over_one_stream() {
    let mut f = Fixture::new().await;
    let mut session = Session::new(Protocol::Sotw);
    session.subscribe(SECRET, &["default", "ROOTCA"]);
    let node = Node {
        id: "n".to_owned(),
        ..Default::default()
    }
    .encode_to_vec();
    let config = ClientConfig::new(Service::Sds, node.into());
    let (handle, mut events) = AdsClient::spawn(UdsConnector(f.socket.clone()), session, config);
    f.issue(DAY).await;
    let mut names = Vec::new();
    while names.len() < 2 {
        match within(events.recv()).await.expect("client runs") {
            Event::Update(update) => {
                names.extend(update.added.iter().map(|r| r.name.clone()));
                handle.ack(update.id());
            }
            Event::Connected => {}
            Event::Disconnected(reason) => panic!("{reason}"),
        }
    }
    names.sort();
    assert_eq!(names, ["ROOTCA", "default"]);
}

#[tokio::test]
async fn external_provider_is_found_and_a_dead_socket_removed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    assert_eq!(
        detect_provider(dir.path(), "socket").await.expect("own"),
        SdsProvider::Own
    );
    assert!(matches!(
        detect_provider(dir.path(), "spire.sock").await,
        Err(SdsProviderError::Missing(_))
    ));
    assert!(matches!(
        detect_provider(dir.path(), "../x").await,
        Err(SdsProviderError::BadName(_))
    ));
    let dead = dir.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&dead).expect("bind"));
    assert_eq!(
        detect_provider(dir.path(), "socket").await.expect("own"),
        SdsProvider::Own
    );
    assert!(!Path::new(&dead).exists(), "dead socket is removed");
    let f = Fixture::new().await;
    assert_eq!(
        detect_provider(f.dir.path(), "socket")
            .await
            .expect("found"),
        SdsProvider::External
    );
    assert!(f.socket.exists());
}
