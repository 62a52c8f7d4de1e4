//! HTTP to local ports: the `request` command, and the small client that readiness, drain,
//! scrapes and `wait` share. One connection per request; no redirects, no pool.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::cli::RequestArgs;

/// Limit of the `request` command, that of the reference.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Of an error answer that is shown.
const MAX_ERROR: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// System error.
        source: std::io::Error,
    },
    /// The exchange failed.
    #[error("request failed: {0}")]
    Http(#[from] hyper::Error),
    /// The request cannot be built, e.g. a path with a space.
    #[error("invalid request: {0}")]
    Invalid(#[from] http::Error),
    /// The body could not be read or is too large.
    #[error("cannot read the answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// Standard output.
    #[error("cannot write the answer: {0}")]
    Output(std::io::Error),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// An answer that counts as failure.
    #[error("received unsuccessful status code {status}: {body}")]
    Status {
        /// Status code.
        status: u16,
        /// Body of the answer.
        body: String,
    },
}

/// Both loopback addresses at `port`, IPv4 first: what `localhost` means in every pod.
pub fn localhost(port: u16) -> [SocketAddr; 2] {
    let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
    [v4, IpAddr::V6(Ipv6Addr::LOCALHOST)].map(|ip| SocketAddr::new(ip, port))
}

/// Sends `request` to the first address that accepts a connection. The connection is driven by
/// its own task and closed when the answer has been read or dropped.
///
/// # Errors
/// If no address accepts, or the exchange fails before the head of the answer.
pub async fn send(
    addresses: &[SocketAddr],
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, RequestError> {
    let stream = connect(addresses).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // The requester sees the same failure on its body or response.
        if let Err(e) = connection.await {
            tracing::debug!("local HTTP connection ended: {e}");
        }
    });
    Ok(sender.send_request(request).await?)
}

async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, RequestError> {
    let mut last = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(source) => {
                last = Some(RequestError::Connect {
                    address: *address,
                    source,
                })
            }
        }
    }
    Err(last.unwrap_or(RequestError::Connect {
        address: SocketAddr::from(([0, 0, 0, 0], 0)),
        source: std::io::Error::from(std::io::ErrorKind::AddrNotAvailable),
    }))
}

/// A request without extra headers. `path` may carry a query; bytes a URI cannot hold are
/// percent-encoded, others are left as they are.
///
/// # Errors
/// A method or path that HTTP cannot carry.
pub fn build(
    method: Method,
    authority: &str,
    path: &str,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, RequestError> {
    let path = encode(path.strip_prefix('/').unwrap_or(path));
    let request = Request::builder()
        .method(method)
        .uri(format!("/{path}"))
        .header(http::header::HOST, authority)
        .body(Full::new(body))?;
    Ok(request)
}

/// Envoy wants filters such as `^(a|b)$` unescaped; only what no URI may contain is encoded.
fn encode(path: &str) -> String {
    percent_encoded(
        path,
        |byte| matches!(byte, 0x21 | 0x24..=0x3b | 0x3d | 0x3f..=0x7e),
    )
}

/// Percent-encoding (RFC 3986 2.1) of every byte that is not `plain`.
pub(crate) fn percent_encoded(text: &str, plain: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Request and whole body within `timeout`, at most `limit` bytes.
///
/// # Errors
/// Connection, exchange, size or time.
pub async fn exchange(
    addresses: &[SocketAddr],
    request: Request<Full<Bytes>>,
    limit: usize,
    timeout: Duration,
) -> Result<(StatusCode, Bytes), RequestError> {
    let run = async {
        let response = send(addresses, request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limit).collect().await;
        Ok((status, body.map_err(RequestError::Body)?.to_bytes()))
    };
    tokio::time::timeout(timeout, run)
        .await
        .map_err(|_| RequestError::Timeout(timeout))?
}

/// The `request` command: writes the body of the answer to `out` as it comes, and a newline.
///
/// # Errors
/// Any failure, and every status over 399 except 404; then nothing has been written, unless the
/// answer broke off.
pub async fn run(args: &RequestArgs, out: &mut impl Write) -> Result<(), RequestError> {
    let method: Method = args.method.parse().map_err(http::Error::from)?;
    let authority = format!("localhost:{}", args.port);
    let body = Bytes::from(args.body.clone().into_bytes());
    let request = build(method, &authority, &args.path, body)?;
    let addresses = localhost(args.port);
    let exchange = async {
        let response = send(&addresses, request).await?;
        let status = response.status();
        if status.as_u16() > 399 && status != StatusCode::NOT_FOUND {
            let body = Limited::new(response.into_body(), MAX_ERROR)
                .collect()
                .await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            return Err(RequestError::Status {
                status: status.as_u16(),
                body: String::from_utf8_lossy(&body).into_owned(),
            });
        }
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                out.write_all(&data).map_err(RequestError::Output)?;
            }
        }
        out.write_all(b"\n").map_err(RequestError::Output)
    };
    tokio::time::timeout(COMMAND_TIMEOUT, exchange)
        .await
        .map_err(|_| RequestError::Timeout(COMMAND_TIMEOUT))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_one_slash_and_keep_their_query() {
        for (path, want) in [
            ("stats", "/stats"),
            ("/stats", "/stats"),
            ("//stats", "//stats"),
            ("logging?level=debug", "/logging?level=debug"),
            ("stats?filter=^(a|b)\\.c$", "/stats?filter=^(a|b)\\.c$"),
            ("a b\u{e9}", "/a%20b%C3%A9"),
        ] {
            let request = build(Method::GET, "localhost:1", path, Bytes::new()).expect(path);
            assert_eq!(request.uri().to_string(), want);
        }
    }
}
