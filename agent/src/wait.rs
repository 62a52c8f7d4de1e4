//! The `wait` command: blocks until a URL answers 200. Used as a postStart hook, so it asks at
//! once instead of after the first period.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, Uri};
use tokio::time::Instant;

use crate::cli::WaitArgs;
use crate::request::{self, RequestError};
use crate::resolver::{ResolveError, Resolver};

/// Redirects followed, as by Go's client.
const MAX_REDIRECTS: usize = 10;
/// Only the status counts; a larger body is not a readiness answer.
const MAX_BODY: usize = 1 << 20;
/// Characters of an answer that are logged.
const MAX_REASON: usize = 1000;

/// Why waiting failed.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// Not an `http` URL.
    #[error("invalid --url {0:?}: only http://host[:port]/path is supported")]
    Url(String),
    /// Not ready in time.
    #[error("timeout waiting for Envoy proxy to become ready. Last error: {0}")]
    Timeout(AttemptError),
}

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// No usable answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The host has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Another status, with what the agent says is missing.
    #[error("HTTP status code {status}{reason}")]
    Status {
        /// Status code.
        status: u16,
        /// First line of the answer after `: `, or nothing.
        reason: String,
    },
    /// A redirect that cannot be followed.
    #[error("cannot follow redirect to {0:?}")]
    Redirect(String),
}

/// Waits. `--timeoutSeconds=0` waits for ever.
///
/// # Errors
/// A bad URL, or no 200 in time.
pub async fn run(args: &WaitArgs) -> Result<(), WaitError> {
    let uri: Uri = args
        .url
        .parse()
        .map_err(|_| WaitError::Url(args.url.clone()))?;
    if uri.scheme_str() != Some("http") || uri.host().is_none() {
        return Err(WaitError::Url(args.url.clone()));
    }
    let seconds = Duration::from_secs(args.timeout_seconds);
    let deadline = (!seconds.is_zero()).then(|| Instant::now() + seconds);
    let period = Duration::from_millis(args.period_millis.max(1));
    let whole = Duration::from_millis(args.request_timeout_millis.max(1));
    let mut said = String::new();
    let mut before = None;
    loop {
        let limit = deadline.map_or(whole, |d| {
            whole.min(d.saturating_duration_since(Instant::now()))
        });
        let failed = match tokio::time::timeout(limit, attempt(&uri, limit)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(e)) => e,
            Err(_) => AttemptError::Request(RequestError::Timeout(limit)),
        };
        let silent = matches!(failed, AttemptError::Request(RequestError::Timeout(_)));
        // An attempt that the end has cut short says less than the one before it.
        let last = match before.take().filter(|_| silent && limit < whole) {
            Some(earlier) => earlier,
            None => failed,
        };
        // Said again only when another thing is missing; seconds that pass are no news.
        let message = last.to_string();
        let news = message.replace(|c: char| c.is_ascii_digit(), "");
        if news == said {
            tracing::debug!("Not ready yet: {message}");
        } else {
            tracing::info!("Not ready yet: {message}");
            said = news;
        }
        if deadline.is_some_and(|deadline| Instant::now() + period >= deadline) {
            if let Some(deadline) = deadline {
                tokio::time::sleep_until(deadline).await;
            }
            return Err(WaitError::Timeout(last));
        }
        before = Some(last);
        tokio::time::sleep(period).await;
    }
}

async fn attempt(uri: &Uri, limit: Duration) -> Result<(), AttemptError> {
    let mut uri = uri.clone();
    for _ in 0..=MAX_REDIRECTS {
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let request = request::build(Method::GET, &authority, path, Bytes::new())?;
        let response = request::send(&addresses(&uri).await?, request).await?;
        if response.status().is_redirection() {
            let location = response.headers().get(http::header::LOCATION);
            let location = location
                .and_then(|l| l.to_str().ok())
                .unwrap_or_default()
                .to_owned();
            uri = redirect(&uri, &location).ok_or(AttemptError::Redirect(location))?;
            continue;
        }
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), MAX_BODY);
        let read = http_body_util::BodyExt::collect(body);
        let read = tokio::time::timeout(limit, read).await;
        let read = read.map_err(|_| RequestError::Timeout(limit))?;
        let body = read.map_err(RequestError::Body)?.to_bytes();
        return if status == StatusCode::OK {
            Ok(())
        } else {
            Err(AttemptError::Status {
                status: status.as_u16(),
                reason: reason(&body),
            })
        };
    }
    Err(AttemptError::Redirect(uri.to_string()))
}

/// The first line of an answer, as text that cannot break a log line.
fn reason(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text.lines().next().unwrap_or_default().trim();
    let line: String = line
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_REASON)
        .collect();
    if line.is_empty() {
        line
    } else {
        format!(": {line}")
    }
}

/// Absolute URLs and absolute paths; nothing else is sent by a readiness endpoint.
fn redirect(from: &Uri, location: &str) -> Option<Uri> {
    let target: Uri = location.parse().ok()?;
    if target.scheme_str() == Some("http") && target.host().is_some() {
        return Some(target);
    }
    let mut parts = from.clone().into_parts();
    parts.path_and_query = (target.scheme().is_none() && location.starts_with('/'))
        .then(|| location.parse().ok())
        .flatten();
    parts.path_and_query.as_ref()?;
    Uri::from_parts(parts).ok()
}

async fn addresses(uri: &Uri) -> Result<Vec<SocketAddr>, AttemptError> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(80);
    if host == "localhost" {
        return Ok(request::localhost(port).to_vec());
    }
    let ips = Resolver::default().lookup(host).await?;
    Ok(ips
        .into_iter()
        .map(|ip| SocketAddr::new(ip, port))
        .collect())
}
