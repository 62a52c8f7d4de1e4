//! istiod and CA in the process: a gRPC server on TCP, with or without TLS, whose every call is
//! handed to the test.

#![allow(dead_code, reason = "shared by test targets that use different parts")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use outrigger_xds::grpc::server::serve_connection;
use outrigger_xds::grpc::{Connection, MessageSender, MessageStream, Responder, ServerOptions};
use pilot_agent::istiod::{Compliance, IstiodConfig, IstiodConnector, RootSource, TlsSettings};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tonic::Status;

use super::pki::Authority;

pub(crate) const SERVER_NAME: &str = "istiod.istio-system.svc";

/// Every wait of a test ends after this.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("in time")
}

/// One call to the control plane, driven by the test.
pub(crate) struct Call {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    /// DER of the certificate that the client showed.
    pub(crate) client_certificate: Option<Vec<u8>>,
    requests: MessageStream,
    responder: Responder,
    end: Option<oneshot::Sender<Status>>,
}

impl Call {
    /// The next request message; `None` when the client is done or gone.
    pub(crate) async fn request(&mut self) -> Option<Bytes> {
        within(self.requests.message()).await.ok().flatten()
    }

    pub(crate) async fn send(&self, message: impl Into<Bytes>) {
        within(self.responder.send(message.into()))
            .await
            .expect("client reads");
    }

    /// Sends to a client that may hang up; returns when it has.
    pub(crate) async fn try_send(&self, message: impl Into<Bytes>) {
        let _ = self.responder.send(message.into()).await;
        within(self.responder.closed()).await;
    }

    pub(crate) fn end(mut self, status: Status) {
        let end = self.end.take().expect("ended once");
        end.send(status).expect("handler waits");
    }

    pub(crate) fn bearer(&self) -> Option<&str> {
        self.headers
            .get("authorization")
            .and_then(|v| v.to_str().ok())
    }
}

/// A listening control plane; connections and port go with it.
pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    calls: mpsc::UnboundedReceiver<Call>,
    task: JoinHandle<()>,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ControlPlane {
    /// In TLS with a certificate of `authority` for [`SERVER_NAME`], or in plaintext.
    pub(crate) async fn start(authority: Option<&Authority>) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(any).await.expect("bind");
        Self::serve(listener, authority)
    }

    /// On an address that was in use before.
    pub(crate) async fn restart(address: SocketAddr, authority: Option<&Authority>) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("socket");
        socket.set_reuseaddr(true).expect("reuse address");
        socket.bind(address).expect("bind");
        Self::serve(socket.listen(16).expect("listen"), authority)
    }

    fn serve(listener: TcpListener, authority: Option<&Authority>) -> Self {
        let address = listener.local_addr().expect("address");
        let acceptor = authority.map(|authority| {
            let (cert, key) = authority.certificate(SERVER_NAME);
            let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).expect("cert")];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("key");
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_client_cert_verifier(client_verifier(authority, provider))
                .with_single_cert(chain, key)
                .expect("server certificate");
            config.alpn_protocols = vec![b"h2".to_vec()];
            tokio_rustls::TlsAcceptor::from(Arc::new(config))
        });
        let (sender, calls) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.expect("accept");
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                connections.spawn(async move {
                    let handler = |shown: Option<Vec<u8>>| {
                        move |call, responder| {
                            hand_over(sender.clone(), call, responder, shown.clone())
                        }
                    };
                    let options = ServerOptions {
                        max_message: 64 << 20,
                        ..Default::default()
                    };
                    match acceptor {
                        None => serve_connection(tcp, options, handler(None)).await,
                        // A client that trusts another root ends the handshake; so be it.
                        Some(acceptor) => {
                            if let Ok(tls) = acceptor.accept(tcp).await {
                                let shown = tls.get_ref().1.peer_certificates();
                                let shown = shown.and_then(|certs| Some(certs.first()?.to_vec()));
                                serve_connection(tls, options, handler(shown)).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            calls,
            task,
        }
    }

    /// The next call, however long it takes.
    pub(crate) async fn next_call(&mut self) -> Call {
        self.calls.recv().await.expect("server runs")
    }

    /// The next call.
    pub(crate) async fn call(&mut self) -> Call {
        within(self.calls.recv()).await.expect("server runs")
    }
}

/// Takes clients without certificate, and those with one of `authority`.
fn client_verifier(
    authority: &Authority,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Arc<dyn rustls::server::danger::ClientCertVerifier> {
    let mut roots = rustls::RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.root_pem.as_bytes()).expect("root");
    roots.add(root).expect("root");
    rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .expect("verifier")
}

async fn hand_over(
    sender: mpsc::UnboundedSender<Call>,
    call: outrigger_xds::grpc::ServerCall,
    responder: Responder,
    client_certificate: Option<Vec<u8>>,
) -> Result<(), Status> {
    let (end, ended) = oneshot::channel();
    let call = Call {
        path: call.path,
        headers: call.headers,
        client_certificate,
        requests: call.requests,
        responder,
        end: Some(end),
    };
    if sender.send(call).is_err() {
        return Err(Status::unavailable("test is over"));
    }
    match ended.await {
        Ok(status) if status.code() == tonic::Code::Ok => Ok(()),
        Ok(status) => Err(status),
        Err(_) => Ok(()),
    }
}

/// Connector to `address`: TLS if a root file is given.
pub(crate) fn connector(address: SocketAddr, root: Option<&Path>) -> IstiodConnector {
    let tls = root.map(|root| TlsSettings {
        roots: RootSource::File(root.to_owned()),
        client: None,
        compliance: Compliance::None,
    });
    let config = IstiodConfig {
        san: Some(SERVER_NAME.to_owned()),
        ..IstiodConfig::new(address.to_string(), tls)
    };
    IstiodConnector::new(config).expect("valid address")
}

/// A client stream on a unix socket.
pub(crate) struct Client {
    pub(crate) sender: Option<MessageSender>,
    pub(crate) stream: MessageStream,
    _connection: Connection,
}

impl Client {
    pub(crate) async fn open(socket: &Path, path: &str) -> Self {
        let io = tokio::net::UnixStream::connect(socket)
            .await
            .expect("socket listens");
        let mut connection = Connection::handshake(io, Default::default())
            .await
            .expect("handshake");
        let (sender, stream) = connection
            .call(path, &HeaderMap::new())
            .await
            .expect("call opens");
        Self {
            sender: Some(sender),
            stream,
            _connection: connection,
        }
    }

    pub(crate) fn send(&self, message: impl prost::Message) {
        self.send_bytes(message.encode_to_vec());
    }

    pub(crate) fn send_bytes(&self, bytes: impl Into<Bytes>) {
        self.sender
            .as_ref()
            .expect("open")
            .send(bytes.into())
            .expect("stream is open");
    }

    pub(crate) async fn message(&mut self) -> Bytes {
        within(self.stream.message())
            .await
            .expect("no error")
            .expect("a message")
    }

    pub(crate) async fn status(&mut self) -> Status {
        match within(self.stream.message()).await {
            Ok(None) => Status::ok(""),
            Ok(Some(message)) => panic!("message instead of an end: {message:?}"),
            Err(error) => error.status(),
        }
    }
}
