//! Clients for tests: raw HTTP/1 bytes, plain fetches, HTTP/2, TLS with a workload certificate.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::ca::{Authority, Identity};

/// Longest wait for an answer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A parsed HTTP/1 or HTTP/2 answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Headers in order, names as sent.
    pub headers: Vec<(String, String)>,
    /// Body, de-chunked.
    pub body: Vec<u8>,
    /// Trailers (HTTP/2 only).
    pub trailers: Vec<(String, String)>,
}

impl Reply {
    /// First value of a header, any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, v)| v.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// How a connection ended from the client's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The peer closed in order.
    Fin,
    /// The peer reset.
    Reset,
    /// It was still open when the wait was over.
    Open,
}

/// Everything a raw exchange gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    /// Bytes received.
    pub bytes: Vec<u8>,
    /// How it ended.
    pub end: End,
}

/// Reads until the peer closes, `enough` says so, or `wait` has passed without an end.
pub async fn read_raw<S: AsyncRead + Unpin>(
    stream: &mut S,
    wait: Duration,
    enough: impl Fn(&[u8]) -> bool,
) -> Raw {
    let deadline = tokio::time::Instant::now() + wait;
    let mut bytes = Vec::new();
    loop {
        if enough(&bytes) {
            return Raw {
                bytes,
                end: End::Open,
            };
        }
        match tokio::time::timeout_at(deadline, stream.read_buf(&mut bytes)).await {
            Err(_) => {
                return Raw {
                    bytes,
                    end: End::Open,
                };
            }
            Ok(Ok(0)) => {
                return Raw {
                    bytes,
                    end: End::Fin,
                };
            }
            Ok(Ok(_)) => {}
            Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Raw {
                    bytes,
                    end: End::Fin,
                };
            }
            Ok(Err(_)) => {
                return Raw {
                    bytes,
                    end: End::Reset,
                };
            }
        }
    }
}

/// True when `bytes` hold a whole HTTP/1 answer that says its own length.
pub fn complete(bytes: &[u8]) -> bool {
    match parse(bytes) {
        Some((reply, rest)) if (100..200).contains(&reply.status) && reply.status != 101 => {
            complete(rest)
        }
        Some(_) => true,
        None => false,
    }
}

/// Parses one HTTP/1 answer off the front. `None` while it is not complete; an answer without a
/// length is never complete (read it to the end and call [`parse_to_end`]).
pub fn parse(bytes: &[u8]) -> Option<(Reply, &[u8])> {
    let (mut reply, rest) = parse_head(bytes)?;
    if matches!(reply.status, 100..=199 | 204 | 304) {
        return Some((reply, rest));
    }
    if reply
        .header("transfer-encoding")
        .is_some_and(|v| v.contains("chunked"))
    {
        let (body, rest) = dechunk(rest)?;
        reply.body = body;
        return Some((reply, rest));
    }
    let length: usize = reply.header("content-length")?.trim().parse().ok()?;
    reply.body = rest.get(..length)?.to_vec();
    Some((reply, &rest[length..]))
}

/// Parses an answer whose body runs to the end of the connection, or was cut.
pub fn parse_to_end(bytes: &[u8]) -> Option<Reply> {
    if let Some((reply, _)) = parse(bytes) {
        return Some(reply);
    }
    let (mut reply, rest) = parse_head(bytes)?;
    reply.body = rest.to_vec();
    Some(reply)
}

fn parse_head(bytes: &[u8]) -> Option<(Reply, &[u8])> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.to_owned(), v.trim().to_owned()))
        .collect();
    Some((
        Reply {
            status,
            headers,
            ..Reply::default()
        },
        &bytes[end + 4..],
    ))
}

fn dechunk(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        rest = &rest[line + 2..];
        if size == 0 {
            let end = rest.windows(2).position(|w| w == b"\r\n")?;
            if end == 0 {
                return Some((body, &rest[2..]));
            }
            let end = rest.windows(4).position(|w| w == b"\r\n\r\n")?;
            return Some((body, &rest[end + 4..]));
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}

/// Sends bytes on a new connection and reads what comes, at most [`PATIENCE`].
pub async fn raw(to: SocketAddr, send: &[u8]) -> io::Result<Raw> {
    let mut stream = TcpStream::connect(to).await?;
    // The peer may answer and close before it has read everything.
    let _ = stream.write_all(send).await;
    Ok(read_raw(&mut stream, PATIENCE, complete).await)
}

/// One request with a body-less method on its own connection.
pub async fn fetch(to: SocketAddr, method: &str, path: &str) -> io::Result<Reply> {
    let stream = TcpStream::connect(to).await?;
    fetch_on(stream, method, path, "localhost").await
}

/// One request on a given connection, which is closed afterwards.
pub async fn fetch_on<S>(mut stream: S, method: &str, path: &str, host: &str) -> io::Result<Reply>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let length = if method == "POST" {
        "content-length: 0\r\n"
    } else {
        ""
    };
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{length}connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let raw = read_raw(&mut stream, PATIENCE, complete).await;
    parse_to_end(&raw.bytes).ok_or_else(|| {
        let text = String::from_utf8_lossy(&raw.bytes).into_owned();
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("no HTTP answer, {:?}: {text}", raw.end),
        )
    })
}

/// One HTTP/2 request on a given connection (prior knowledge).
pub async fn h2_on<S>(stream: S, request: http::Request<()>, body: Bytes) -> io::Result<Reply>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let exchange = async {
        let (client, connection) = h2::client::handshake(stream)
            .await
            .map_err(io::Error::other)?;
        let driver = tokio::spawn(connection);
        let result = h2_exchange(client, request, body)
            .await
            .map_err(io::Error::other);
        driver.abort();
        result
    };
    tokio::time::timeout(PATIENCE, exchange).await?
}

fn pairs(headers: &http::HeaderMap) -> Vec<(String, String)> {
    let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
    headers
        .iter()
        .map(|(n, v)| (n.to_string(), text(v)))
        .collect()
}

async fn h2_exchange(
    client: h2::client::SendRequest<Bytes>,
    request: http::Request<()>,
    body: Bytes,
) -> Result<Reply, h2::Error> {
    let mut client = client.ready().await?;
    let (response, mut send) = client.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        send.send_data(body, true)?;
    }
    let (parts, mut incoming) = response.await?.into_parts();
    let mut all = BytesMut::new();
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk?;
        incoming.flow_control().release_capacity(chunk.len())?;
        all.extend_from_slice(&chunk);
    }
    let trailers = incoming
        .trailers()
        .await?
        .map(|t| pairs(&t))
        .unwrap_or_default();
    Ok(Reply {
        status: parts.status.as_u16(),
        headers: pairs(&parts.headers),
        body: all.to_vec(),
        trailers,
    })
}

/// What a TLS client offers.
#[derive(Debug, Clone, Default)]
pub struct TlsOffer {
    /// Server name; `None` sends none.
    pub sni: Option<String>,
    /// Application protocols in order.
    pub alpn: Vec<String>,
    /// Client certificate.
    pub identity: Option<Identity>,
}

/// Why a TLS connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Socket trouble or a failed handshake.
    #[error("TLS connection: {0}")]
    Io(#[from] io::Error),
    /// An unusable certificate or name.
    #[error("TLS set-up: {0}")]
    Setup(#[from] rustls::Error),
    /// A name that no SNI can carry.
    #[error("server name {0:?}")]
    Name(String),
}

/// Accepts any server certificate that chains to the lab's root, whatever its names: the lab
/// checks identities itself.
#[derive(Debug)]
struct AnyName {
    roots: Arc<rustls::RootCertStore>,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl rustls::client::danger::ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &rustls_pki_types::CertificateDer<'_>,
        intermediates: &[rustls_pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        let cert = rustls::server::ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &cert,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let all = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, all)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let all = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, all)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Connects over TLS; the server must have a certificate of `authority`.
pub async fn tls_on<S>(
    stream: S,
    authority: &Authority,
    offer: &TlsOffer,
) -> Result<TlsStream<S>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.root_der())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyName {
        roots: Arc::new(roots),
        provider: provider.clone(),
    });
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &offer.identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain(), identity.key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = offer.alpn.iter().map(|a| a.as_bytes().to_vec()).collect();
    config.enable_sni = offer.sni.is_some();
    let name = offer
        .sni
        .clone()
        .unwrap_or_else(|| "unnamed.invalid".to_owned());
    let server = ServerName::try_from(name.clone()).map_err(|_| TlsError::Name(name))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    Ok(connector.connect(server, stream).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_only_with_its_whole_body() {
        let cases: &[(&[u8], bool)] = &[
            (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab", true),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", false),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
                true,
            ),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
                false,
            ),
            (b"HTTP/1.1 100 Continue\r\n\r\n", false),
            (
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
                true,
            ),
            (b"HTTP/1.1 200 OK\r\n\r\nabc", false),
            (b"HTT", false),
        ];
        for (bytes, wanted) in cases {
            assert_eq!(
                complete(bytes),
                *wanted,
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    #[test]
    fn a_body_without_length_runs_to_the_end() {
        let reply = parse_to_end(b"HTTP/1.1 200 OK\r\n\r\nabc").expect("an answer");
        assert_eq!(reply.body, b"abc");
    }
}
