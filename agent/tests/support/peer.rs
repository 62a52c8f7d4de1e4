//! A workload that has its identity from an agent's SDS socket and speaks mutual TLS with it.

#![allow(dead_code, reason = "shared by test targets that use different parts")]

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_xds::pb::envoy::config::core::v3::{DataSource, Node, data_source::Specifier};
use outrigger_xds::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use outrigger_xds::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use outrigger_xds::type_url::SECRET;
use prost::Message;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::control_plane::{Client, within};

const STREAM: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";

/// What SDS gave last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Identity {
    pub(crate) chain: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) roots: Vec<u8>,
    /// Certificates received.
    pub(crate) certificates: u64,
}

/// Subscribed to `default` and `ROOTCA` as the proxy is: a stream for each.
pub(crate) struct Peer {
    identity: watch::Receiver<Identity>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Peer {
    pub(crate) async fn subscribe(socket: &Path) -> Self {
        let (sender, identity) = watch::channel(Identity::default());
        let mut tasks = Vec::new();
        for name in ["default", "ROOTCA"] {
            let client = Client::open(socket, STREAM).await;
            tasks.push(tokio::spawn(follow(client, name, sender.clone())));
        }
        Self { identity, tasks }
    }

    /// Once it has received `certificates`, and roots.
    pub(crate) async fn received(&self, certificates: u64) -> Identity {
        let mut identity = self.identity.clone();
        let enough = |i: &Identity| {
            i.certificates >= certificates && !i.chain.is_empty() && !i.roots.is_empty()
        };
        within(identity.wait_for(enough))
            .await
            .expect("streams are open")
            .clone()
    }

    /// Once its roots satisfy `wanted`.
    pub(crate) async fn roots(&self, wanted: impl Fn(&[u8]) -> bool) {
        let mut identity = self.identity.clone();
        within(identity.wait_for(|i| wanted(&i.roots)))
            .await
            .expect("streams are open");
    }

    /// Wakes at each secret received from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<Identity> {
        let mut identity = self.identity.clone();
        identity.mark_unchanged();
        identity
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity.borrow().clone()
    }
}

/// The secret `name`, asked for once.
pub(crate) async fn fetch(socket: &Path, name: &str) -> Result<Secret, tonic::Status> {
    let mut client = Client::open(socket, STREAM).await;
    client.send(request(name, ""));
    let message = within(client.stream.message()).await;
    let message = message.map_err(|error| error.status())?.expect("an answer");
    let response = DiscoveryResponse::decode(message).expect("response");
    Ok(Secret::decode(response.resources[0].value.as_slice()).expect("secret"))
}

fn request(name: &str, nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(Node {
            id: "sidecar~10.0.0.1~a.b~c".to_owned(),
            ..Default::default()
        }),
        resource_names: vec![name.to_owned()],
        type_url: SECRET.to_owned(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
}

async fn follow(mut client: Client, name: &str, sender: watch::Sender<Identity>) {
    client.send(request(name, ""));
    loop {
        let message = client.stream.message().await.expect("stream is not broken");
        let Some(message) = message else {
            panic!("SDS stream of {name} was ended")
        };
        let response = DiscoveryResponse::decode(message).expect("response");
        client.send(request(name, &response.nonce));
        for any in &response.resources {
            let secret = Secret::decode(any.value.as_slice()).expect("secret");
            sender.send_modify(|identity| match secret.r#type {
                Some(Type::TlsCertificate(c)) => {
                    identity.chain = inline(c.certificate_chain);
                    identity.key = inline(c.private_key);
                    identity.certificates += 1;
                }
                Some(Type::ValidationContext(c)) => identity.roots = inline(c.trusted_ca),
                other => panic!("unexpected secret {other:?}"),
            });
        }
    }
}

fn inline(source: Option<DataSource>) -> Vec<u8> {
    match source.and_then(|source| source.specifier) {
        Some(Specifier::InlineBytes(bytes)) => bytes,
        other => panic!("not inline: {other:?}"),
    }
}

/// The time by which peers check certificates.
pub(crate) trait Now: Fn() -> SystemTime + Send + Sync + 'static {}
impl<F: Fn() -> SystemTime + Send + Sync + 'static> Now for F {}

struct Time(Arc<dyn Now>);

impl Debug for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Time")
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let since_epoch = (self.0)().duration_since(UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since_epoch))
    }
}

/// Checks the chain; workload identities are URIs, which no server name can match.
#[derive(Debug)]
struct ChainVerifier(Arc<RootCertStore>, Arc<CryptoProvider>);

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let algorithms = self.1.signature_verification_algorithms.all;
        let leaf = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.0, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.1.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.1.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.1.signature_verification_algorithms.supported_schemes()
    }
}

impl Identity {
    fn parts(
        &self,
    ) -> (
        Arc<RootCertStore>,
        Vec<CertificateDer<'static>>,
        PrivateKeyDer<'static>,
    ) {
        let certs = |pem: &[u8]| -> Vec<_> {
            let certs = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>();
            certs.expect("certificates")
        };
        let mut roots = RootCertStore::empty();
        for root in certs(&self.roots) {
            roots.add(root).expect("root");
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key).expect("key");
        (Arc::new(roots), certs(&self.chain), key)
    }

    fn client(&self, now: &Arc<dyn Now>) -> TlsConnector {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let (roots, chain, key) = self.parts();
        let verifier = Arc::new(ChainVerifier(roots, Arc::clone(&provider)));
        let config = ClientConfig::builder_with_details(provider, Arc::new(Time(Arc::clone(now))))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, key)
            .expect("client certificate");
        Arc::new(config).into()
    }

    fn server(&self, now: &Arc<dyn Now>) -> TlsAcceptor {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let (roots, chain, key) = self.parts();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .expect("verifier");
        let mut config =
            ServerConfig::builder_with_details(provider, Arc::new(Time(Arc::clone(now))))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain, key)
                .expect("server certificate");
        // Every handshake checks certificates.
        config.send_tls13_tickets = 0;
        Arc::new(config).into()
    }
}

/// An open mutual TLS connection between two workloads.
pub(crate) struct TlsPair {
    client: tokio_rustls::client::TlsStream<DuplexStream>,
    server: tokio_rustls::server::TlsStream<DuplexStream>,
}

impl TlsPair {
    /// Handshake with the identities as they are.
    pub(crate) async fn connect(
        client: &Identity,
        server: &Identity,
        now: &Arc<dyn Now>,
    ) -> Result<Self, String> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let name = ServerName::try_from("workload").expect("name");
        let (connector, acceptor) = (client.client(now), server.server(now));
        let both = async { tokio::join!(connector.connect(name, near), acceptor.accept(far)) };
        let (client, server) = tokio::time::timeout(Duration::from_secs(20), both)
            .await
            .map_err(|_| "handshake takes too long".to_owned())?;
        let mut pair = Self {
            client: client.map_err(|error| format!("client: {error}"))?,
            server: server.map_err(|error| format!("server: {error}"))?,
        };
        // In TLS 1.3 the client learns of a refusal of its certificate only now.
        pair.exchange().await?;
        Ok(pair)
    }

    /// A byte there and back.
    pub(crate) async fn exchange(&mut self) -> Result<(), String> {
        let fail = |error: std::io::Error| error.to_string();
        let mut byte = [0];
        self.client.write_all(b"x").await.map_err(fail)?;
        self.server.read_exact(&mut byte).await.map_err(fail)?;
        self.server.write_all(&byte).await.map_err(fail)?;
        self.client.read_exact(&mut byte).await.map_err(fail)?;
        Ok(())
    }
}
