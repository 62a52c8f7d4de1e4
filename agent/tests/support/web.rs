//! A web server on loopback that answers by path, in plaintext or TLS, one request per connection.

use std::sync::{Arc, Mutex};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use super::pki::Authority;

/// What goes over the wire.
#[derive(Clone)]
pub(crate) struct Answer(Vec<u8>);

impl Answer {
    fn new(status: u16, headers: &str, body: &[u8]) -> Self {
        let head = format!(
            "HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        Self([head.as_bytes(), body].concat())
    }

    pub(crate) fn ok(body: &[u8]) -> Self {
        Self::new(200, "", body)
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::new(status, "", b"")
    }

    pub(crate) fn redirect(location: &str) -> Self {
        Self::new(307, &format!("location: {location}\r\n"), b"")
    }

    pub(crate) fn challenge(challenge: &str) -> Self {
        Self::new(401, &format!("www-authenticate: {challenge}\r\n"), b"")
    }

    /// As [`Self::ok`], but the connection ends before the body does.
    pub(crate) fn cut(body: &[u8]) -> Self {
        let mut whole = Self::ok(body);
        whole.0.pop();
        whole
    }
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    head: String,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1);
        let mut headers = lines.filter_map(|line| line.split_once(": "));
        headers
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
    }
}

type Handler = Arc<dyn Fn(&Asked, usize) -> Answer + Send + Sync>;

/// The server; it ends when dropped.
pub(crate) struct Web {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Web {
    /// `answer` gets the path, and how many requests for it came earlier.
    pub(crate) async fn plain(
        answer: impl Fn(&str, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start(None, Arc::new(move |r, n| answer(&r.path, n))).await
    }

    /// With a certificate of `authority` for `name`.
    pub(crate) async fn tls(
        authority: &Authority,
        name: &str,
        answer: impl Fn(&str, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::tls_with(authority, name, move |r, n| answer(&r.path, n)).await
    }

    /// As [`Self::tls`], with the whole request.
    pub(crate) async fn tls_with(
        authority: &Authority,
        name: &str,
        answer: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let (cert, key) = authority.certificate(name);
        let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).expect("cert")];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("server certificate");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        Self::start(Some(acceptor), Arc::new(answer)).await
    }

    async fn start(acceptor: Option<tokio_rustls::TlsAcceptor>, handler: Handler) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.expect("accept");
                let (acceptor, handler, log) =
                    (acceptor.clone(), Arc::clone(&handler), Arc::clone(&log));
                connections.spawn(async move {
                    match acceptor {
                        None => serve(tcp, &handler, &log).await,
                        Some(acceptor) => match acceptor.accept(tcp).await {
                            Ok(tls) => serve(tls, &handler, &log).await,
                            // A client that does not trust us.
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { port, seen, task }
    }

    pub(crate) fn requests(&self) -> Vec<Asked> {
        self.seen.lock().expect("lock").clone()
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    handler: &Handler,
    log: &Mutex<Vec<Asked>>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        if head.starts_with(b"\x16\x03") {
            // TLS to a plain server: answered as web servers do.
            stream.write_all(&Answer::status(400).0).await.ok()?;
            return stream.shutdown().await.ok();
        }
    }
    let head = String::from_utf8(head).ok()?;
    let path = head.split(' ').nth(1)?.to_owned();
    let asked = Asked { path, head };
    let earlier = {
        let mut log = log.lock().expect("lock");
        let earlier = log.iter().filter(|a| a.path == asked.path).count();
        log.push(asked.clone());
        earlier
    };
    stream.write_all(&handler(&asked, earlier).0).await.ok()?;
    stream.shutdown().await.ok()
}
