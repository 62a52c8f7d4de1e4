//! `CREDENTIAL_FETCHER_TYPE=GoogleComputeEngine`: identity tokens of Google's metadata server.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use zeroize::Zeroizing;

use super::jwt;
use crate::files::create_anew;
use crate::request::{self, RequestError, percent_encoded};
use crate::resolver::{ResolveError, Resolver};

/// The server's fixed address; no DNS is needed.
const DEFAULT_HOST: &str = "169.254.169.254";
const FLAVOR: &str = "metadata-flavor";
/// Bound on one request; a machine without the server answers nothing at all.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest token, bytes.
const MAX_TOKEN: usize = 64 * 1024;
/// How often the token file is looked after.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// A token with less than this left is replaced.
const REFRESH_BEFORE: Duration = Duration::from_secs(25 * 60);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum GceError {
    /// `GCE_METADATA_HOST` does not resolve.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No connection, or no answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// An answer other than a token.
    #[error("answer {0}")]
    Status(StatusCode),
    /// Something else listens at the server's address.
    #[error("the answer is not from a metadata server")]
    Flavor,
    /// Empty, or with bytes that no token has.
    #[error("the answer is no token")]
    NoToken,
}

/// Where tokens come from, for whom, and where they are left for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GceFetcher {
    /// `host[:port]` of the metadata server (`GCE_METADATA_HOST`); empty is the fixed address.
    pub host: String,
    /// Audience of the tokens: the trust domain.
    pub audience: String,
    /// Every token is written here too, mode 0640.
    pub token_file: PathBuf,
}

impl GceFetcher {
    /// A new token.
    ///
    /// # Errors
    /// See [`GceError`].
    pub async fn fetch(&self) -> Result<Zeroizing<String>, GceError> {
        let attempt = tokio::time::timeout(TIMEOUT, self.exchange()).await;
        let token = attempt.map_err(|_| RequestError::Timeout(TIMEOUT))??;
        if let Err(error) = self.write(&token) {
            let path = self.token_file.display();
            tracing::warn!(%path, %error, "cannot write the token file");
        }
        Ok(token)
    }

    /// Keeps the token file fresh for ever.
    pub async fn keep_fresh(self) {
        loop {
            tokio::time::sleep(REFRESH_INTERVAL).await;
            if self.is_fresh(SystemTime::now()) {
                continue;
            }
            if let Err(error) = self.fetch().await {
                tracing::warn!(%error, "cannot refresh the token of the metadata server");
            }
        }
    }

    fn is_fresh(&self, now: SystemTime) -> bool {
        super::read_token(&self.token_file)
            .ok()
            .and_then(|token| jwt::expiry(&token))
            .and_then(|expiry| expiry.duration_since(now).ok())
            .is_some_and(|left| left >= REFRESH_BEFORE)
    }

    async fn exchange(&self) -> Result<Zeroizing<String>, GceError> {
        let (host, port) = split(&self.host);
        let ips = Resolver::default().lookup(host).await?;
        let addresses: Vec<_> = ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        let path = format!(
            "/computeMetadata/v1/instance/service-accounts/default/identity?audience={}&format=full",
            percent_encoded(&self.audience, |byte| byte.is_ascii_alphanumeric()
                || b"-._~".contains(&byte))
        );
        let mut request = request::build(Method::GET, host, &path, Bytes::new())?;
        let google = HeaderValue::from_static("Google");
        request.headers_mut().insert(FLAVOR, google.clone());
        let answer = request::send(&addresses, request).await?;
        if answer.status() != StatusCode::OK {
            return Err(GceError::Status(answer.status()));
        }
        if answer.headers().get(FLAVOR) != Some(&google) {
            return Err(GceError::Flavor);
        }
        let body = Limited::new(answer.into_body(), MAX_TOKEN).collect().await;
        let body = body.map_err(RequestError::Body)?.to_bytes();
        let token = std::str::from_utf8(&body).map_err(|_| GceError::NoToken)?;
        let token = token.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(GceError::NoToken);
        }
        Ok(Zeroizing::new(token.to_owned()))
    }

    /// By rename, so that no reader sees half a token.
    fn write(&self, token: &str) -> std::io::Result<()> {
        let temporary = self.token_file.with_extension("tmp");
        let mut file = create_anew(&temporary, 0o640)?;
        file.write_all(token.as_bytes())?;
        std::fs::rename(&temporary, &self.token_file)
    }
}

/// Host and port of `GCE_METADATA_HOST`.
fn split(text: &str) -> (&str, u16) {
    if text.is_empty() {
        return (DEFAULT_HOST, 80);
    }
    bootstrap_templates::split_host_port(text).unwrap_or((text, 80))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with `answer`; returns the request's head.
    async fn serve(listener: &TcpListener, answer: &str) -> Vec<String> {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let (read, mut write) = stream.split();
        let mut lines = BufReader::new(read).lines();
        let mut head = Vec::new();
        while let Some(line) = lines.next_line().await.expect("line") {
            if line.is_empty() {
                break;
            }
            head.push(line.to_ascii_lowercase());
        }
        write.write_all(answer.as_bytes()).await.expect("answer");
        head
    }

    fn answer(head: &str, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
    }

    #[tokio::test]
    async fn token_is_asked_for_the_trust_domain_written_and_refreshed_in_time() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let fetcher = GceFetcher {
            host: listener.local_addr().expect("address").to_string(),
            audience: "td&x=1".to_owned(),
            token_file: dir.path().join("istio-token"),
        };
        let token = format!("h.{}.s", URL_SAFE_NO_PAD.encode(r#"{"exp":2000000000}"#));
        let good = answer("200 OK\r\nMetadata-Flavor: Google", &format!("{token}\n"));
        let (got, head) = tokio::join!(fetcher.fetch(), serve(&listener, &good));
        assert_eq!(got.expect("token").as_str(), token);
        assert_eq!(
            head[0],
            "get /computemetadata/v1/instance/service-accounts/default/identity\
             ?audience=td%26x%3d1&format=full http/1.1"
        );
        assert!(head.contains(&"metadata-flavor: google".to_owned()));
        assert_eq!(
            std::fs::read_to_string(&fetcher.token_file).expect("file"),
            token
        );
        let mode = std::fs::metadata(&fetcher.token_file)
            .expect("file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o640);
        let expiry = jwt::expiry(&token).expect("expiry");
        assert!(fetcher.is_fresh(expiry - REFRESH_BEFORE));
        assert!(!fetcher.is_fresh(expiry - REFRESH_BEFORE + Duration::from_secs(1)));
        std::fs::write(&fetcher.token_file, "opaque").expect("write");
        assert!(!fetcher.is_fresh(SystemTime::UNIX_EPOCH));
    }

    #[tokio::test]
    async fn answers_that_are_no_token_are_errors() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let fetcher = GceFetcher {
            host: listener.local_addr().expect("address").to_string(),
            audience: "td".to_owned(),
            token_file: dir.path().join("istio-token"),
        };
        let google = "200 OK\r\nMetadata-Flavor: Google";
        for (text, expected) in [
            (answer("404 Not Found", ""), "answer 404"),
            (answer("200 OK", "a.b.c"), "not from a metadata server"),
            (answer(google, " \n"), "no token"),
            (answer(google, "a b"), "no token"),
            (answer(google, &"x".repeat(MAX_TOKEN + 1)), "length limit"),
            ("nonsense\r\n\r\n".to_owned(), "request failed"),
        ] {
            let (got, _) = tokio::join!(fetcher.fetch(), serve(&listener, &text));
            let error = got.expect_err("no token").to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert!(!fetcher.token_file.exists());
    }
}
