//! HTTP for downloads: TLS or plain, HTTP CONNECT proxy, redirects, bounded retries; bodies go to
//! files. Every dial, those of redirects included, keeps away from the blocked addresses.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue, LOCATION, USER_AGENT};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Shared;
use super::module::ModuleError;
use super::reference::{PullSecretError, ReferenceError};
use crate::istiod::{Compliance, HttpsProxyError, TlsError, TlsSettings, http_client_config};
use crate::resolver::ResolveError;
use crate::status::probe::tls::any_certificate;

const MAX_REDIRECTS: usize = 10;
/// Manifests and tokens.
const MAX_DOCUMENT: usize = 4 << 20;
/// Wait before the second attempt; doubles.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const FETCH_AGENT: &str = concat!("pilot-agent/", env!("CARGO_PKG_VERSION"));

/// Why there is no module.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a URL that can be fetched.
    #[error("{0:?} is no URL of a Wasm module: http, https or oci is needed")]
    Url(String),
    /// Not an image reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The pull secret.
    #[error(transparent)]
    PullSecret(#[from] PullSecretError),
    /// Name lookup.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// All addresses of the host are forbidden.
    #[error("{0} is a blocked address")]
    Blocked(String),
    /// `HTTPS_PROXY`.
    #[error(transparent)]
    Proxy(#[from] HttpsProxyError),
    /// TCP, or the proxy's tunnel.
    #[error("connect to {host}: {source}")]
    Connect {
        /// Host.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// Roots.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A server that speaks plain HTTP where TLS was expected, or is not trusted.
    #[error("TLS handshake with {host}: {source}{hint}")]
    Handshake {
        /// Host.
        host: String,
        /// Why.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// The exchange.
    #[error("{host}: {source}")]
    Http {
        /// Host.
        host: String,
        /// Why.
        source: hyper::Error,
    },
    /// Another status than 200.
    #[error("{host} answered {status}")]
    Status {
        /// Host.
        host: String,
        /// Status.
        status: StatusCode,
    },
    /// A redirect that leads nowhere.
    #[error("{0}: unusable or too many redirects")]
    Redirect(String),
    /// An answer that is too long or breaks off.
    #[error("{0}: body is too long or incomplete")]
    Body(String),
    /// A file of the cache.
    #[error("cannot write {path}: {source}")]
    File {
        /// File.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Manifest or token of a registry.
    #[error("registry {registry}: {reason}")]
    Registry {
        /// Registry.
        registry: String,
        /// What is wrong.
        reason: String,
    },
    /// The content is not what the configuration asks for.
    #[error("module downloaded from {url} has checksum {actual}, which does not match: {wanted}")]
    Checksum {
        /// Where from.
        url: String,
        /// What came.
        actual: String,
        /// What should have come.
        wanted: String,
    },
    /// What was downloaded.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// All of it took too long.
    #[error("no module within {0:?}")]
    Timeout(Duration),
    /// A task of the agent was cancelled.
    #[error("unpacking was cancelled")]
    Cancelled,
}

impl FetchError {
    /// True if another attempt may succeed.
    fn is_transient(&self) -> bool {
        match self {
            Self::Resolve(_)
            | Self::Connect { .. }
            | Self::Http { .. }
            | Self::Body(_)
            | Self::Timeout(_) => true,
            Self::Status { status, .. } => {
                status.is_server_error() && !matches!(status.as_u16(), 501 | 505 | 511)
            }
            _ => false,
        }
    }
}

/// Fetches by HTTP.
#[derive(Debug, Clone)]
pub(super) struct Client(pub(super) Shared);

/// One attempt of a download.
pub(super) type Attempt<'a, T> = Pin<Box<dyn Future<Output = Result<T, FetchError>> + Send + 'a>>;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Client {
    /// Runs `attempt` until it succeeds, fails for good, or has been tried often enough.
    pub(super) async fn retried<'a, T>(
        &self,
        attempt: impl Fn() -> Attempt<'a, T>,
    ) -> Result<T, FetchError> {
        let mut wait = FIRST_WAIT;
        let mut left = self.0.attempts.max(1);
        loop {
            let limit = self.0.request_timeout;
            let result = tokio::time::timeout(limit, attempt()).await;
            left -= 1;
            match result.unwrap_or(Err(FetchError::Timeout(limit))) {
                Err(error) if error.is_transient() && left > 0 => {
                    tracing::debug!(%error, "Wasm download is tried again");
                }
                result => return result,
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }

    /// GET with redirects; any status that is no redirect is an answer.
    pub(super) async fn get(
        &self,
        url: &Uri,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, FetchError> {
        let mut url = url.clone();
        let mut headers = headers.clone();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.exchange(&url, headers.clone()).await?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            let next = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            let next = next.and_then(|location| follow(&url, location));
            let next = next.ok_or_else(|| FetchError::Redirect(url.to_string()))?;
            if next.scheme() != url.scheme() || next.authority() != url.authority() {
                // Credentials are for the host they were meant for.
                headers.remove(AUTHORIZATION);
            }
            url = next;
        }
        Err(FetchError::Redirect(url.to_string()))
    }

    /// A short document.
    pub(super) async fn document(&self, answer: Response<Incoming>) -> Result<Bytes, FetchError> {
        let body = Limited::new(answer.into_body(), MAX_DOCUMENT)
            .collect()
            .await;
        let body = body.map_err(|error| FetchError::Body(error.to_string()))?;
        Ok(body.to_bytes())
    }

    /// Writes the body of a 200 to `target`; gives the SHA-256 of what came.
    pub(super) async fn download(
        &self,
        url: &Uri,
        headers: &HeaderMap,
        target: &Path,
    ) -> Result<String, FetchError> {
        let answer = self.get(url, headers).await?;
        let host = url.host().unwrap_or_default();
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status {
                host: host.to_owned(),
                status: answer.status(),
            });
        }
        let failed = |source| FetchError::File {
            path: target.display().to_string(),
            source,
        };
        let mut file = tokio::fs::File::create(target).await.map_err(failed)?;
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let mut body = answer.into_body();
        let mut left = self.0.max_bytes;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| FetchError::Body(host.to_owned()))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            left = u64::try_from(data.len())
                .ok()
                .and_then(|len| left.checked_sub(len))
                .ok_or(ModuleError::TooLarge(self.0.max_bytes))?;
            context.update(&data);
            file.write_all(&data).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        Ok(super::module::hex(context.finish().as_ref()))
    }

    async fn exchange(
        &self,
        url: &Uri,
        mut headers: HeaderMap,
    ) -> Result<Response<Incoming>, FetchError> {
        let bad = || FetchError::Url(url.to_string());
        let authority = url.authority().ok_or_else(bad)?;
        let https = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let host = authority.host().trim_matches(['[', ']']);
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = path.parse().map_err(|_| bad())?;
        let name = HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?;
        headers.insert(HOST, name);
        headers.insert(USER_AGENT, HeaderValue::from_static(FETCH_AGENT));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        *request.headers_mut() = headers;

        let tcp = self.dial(host, port, https).await?;
        let stream: Box<dyn Stream> = if https {
            Box::new(self.handshake(tcp, host, port).await?)
        } else {
            Box::new(tcp)
        };
        let failed = |source| FetchError::Http {
            host: host.to_owned(),
            source,
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        // A failure of the connection is seen on the response; it ends with the body.
        tokio::spawn(async move { connection.await.ok() });
        sender.send_request(request).await.map_err(failed)
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        host: &str,
        port: u16,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, FetchError> {
        let failed = |source: io::Error| {
            // What a plain HTTP server sends is no TLS record.
            let plain = source.to_string().contains("InvalidContentType");
            FetchError::Handshake {
                host: host.to_owned(),
                source,
                hint: if plain {
                    " (plain HTTP? allow it by WASM_INSECURE_REGISTRIES)"
                } else {
                    ""
                },
            }
        };
        let config = if self.0.is_insecure(host, port) {
            any_certificate().map_err(TlsError::from)?
        } else {
            http_client_config(&TlsSettings {
                roots: self.0.roots.clone(),
                client: None,
                compliance: Compliance::None,
            })?
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| failed(io::Error::other(error)))?;
        TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .map_err(failed)
    }

    async fn dial(&self, host: &str, port: u16, https: bool) -> Result<TcpStream, FetchError> {
        if let Ok(ip) = host.parse()
            && self.0.is_blocked(ip)
        {
            return Err(FetchError::Blocked(host.to_owned()));
        }
        let failed = |source| FetchError::Connect {
            host: host.to_owned(),
            source,
        };
        if https && let Some(proxy) = self.0.proxy(host, port)? {
            let mut tcp = self.connect(&proxy.host, proxy.port, false).await?;
            let target = if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            };
            proxy.tunnel(&mut tcp, &target).await.map_err(failed)?;
            return Ok(tcp);
        }
        self.connect(host, port, true).await
    }

    async fn connect(&self, host: &str, port: u16, guarded: bool) -> Result<TcpStream, FetchError> {
        let mut failure = FetchError::Blocked(host.to_owned());
        for ip in self.0.resolver.lookup(host).await? {
            if guarded && self.0.is_blocked(ip) {
                continue;
            }
            match TcpStream::connect(SocketAddr::new(ip, port)).await {
                Ok(stream) => return Ok(stream),
                Err(source) => {
                    failure = FetchError::Connect {
                        host: format!("{host} ({ip}:{port})"),
                        source,
                    };
                }
            }
        }
        Err(failure)
    }
}

/// Where a `location` leads: an absolute URL, or a path on the same host.
fn follow(from: &Uri, location: &str) -> Option<Uri> {
    if !location.starts_with('/') {
        let absolute = |url: &Uri| url.scheme().is_some() && url.host().is_some();
        return location.parse().ok().filter(absolute);
    }
    if location.starts_with("//") {
        return format!("{}:{location}", from.scheme_str()?).parse().ok();
    }
    let mut parts = from.clone().into_parts();
    parts.path_and_query = Some(location.parse().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_absolute_or_on_the_same_host() {
        let from: Uri = "https://r.test:5000/v2/a".parse().expect("URL");
        for (location, want) in [
            ("/b?x=1", Some("https://r.test:5000/b?x=1")),
            ("http://o.test/c", Some("http://o.test/c")),
            ("//o.test/c", Some("https://o.test/c")),
            ("c", None),
            ("", None),
        ] {
            let got = follow(&from, location).map(|url| url.to_string());
            assert_eq!(got.as_deref(), want, "{location}");
        }
    }
}
