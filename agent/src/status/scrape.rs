//! The merged metrics page: the agent's metrics, the proxy's, the application's. Bodies stream
//! through in the order of the page; no page is held in memory, however large. A part that fails
//! is missing or ends on its last whole line; the others stay whole.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use http::header::{
    ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;

use super::accept::{self, Format};
use super::redirect::{self, MAX_REDIRECTS};
use super::scrape_config::{ScrapeConfigError, Target, parse};
use super::{Body, BodyError};
use crate::metrics::{Metrics, ScrapePart};
use crate::options::StatusOptions;
use crate::request;

const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("x-prometheus-scrape-timeout-seconds");
/// Without the header there is no limit in the reference; an hour only guards against leaks.
const NO_TIMEOUT: Duration = Duration::from_secs(3600);
/// Kept from Prometheus' own limit, so that a silent application costs its part, not the page.
const RESERVE: Duration = Duration::from_millis(500);
/// Of one target when there are several.
const TARGET_LIMIT: usize = 10 << 20;
/// No line of an exposition is longer; the rest of one that is gets lost.
const LINE_LIMIT: usize = 1 << 20;
/// The end marker of OpenMetrics.
const EOF: &[u8] = b"# EOF";
/// Frames waiting for a slow client.
const QUEUE: usize = 4;

pub(super) struct Scraper {
    metrics: Arc<Metrics>,
    targets: Vec<Target>,
    /// `None` if the proxy's part is left out.
    proxy_port: Option<u16>,
}

struct Part {
    kind: ScrapePart,
    answer: Option<Response<Incoming>>,
}

impl Scraper {
    pub(super) fn new(
        options: &StatusOptions,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ScrapeConfigError> {
        let targets = parse(options.prometheus.as_deref(), options.port)?;
        let proxy_port = options.merge_proxy_stats.then_some(options.prometheus_port);
        Ok(Self {
            metrics,
            targets,
            proxy_port,
        })
    }

    /// Always 200: what fails is counted and missing from the page. The heads of all parts are
    /// awaited first, because the application's decides the content type.
    pub(super) async fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        self.metrics.scrape();
        let deadline = Instant::now() + scrape_timeout(request.headers());
        let proxy = async {
            match self.proxy_port {
                None => None,
                Some(port) => {
                    let query = request
                        .uri()
                        .query()
                        .map(|q| format!("?{q}"))
                        .unwrap_or_default();
                    let path = format!("/stats/prometheus{query}");
                    let accept = accept::filter(accept_of(request), false);
                    Some(
                        self.fetch(ScrapePart::Envoy, port, &path, &accept, request, deadline)
                            .await,
                    )
                }
            }
        };
        let application = join_all(self.targets.iter().map(|target| {
            let accept = accept::filter(accept_of(request), true);
            async move {
                let kind = ScrapePart::Application;
                self.fetch(kind, target.port, &target.path, &accept, request, deadline)
                    .await
            }
        }));
        let (proxy, application) = tokio::join!(proxy, application);
        let format = page_format(&application);
        let body = self.page(proxy, application, format, deadline);
        let mut response = Response::new(body);
        let content_type = HeaderValue::from_static(format.content_type());
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }

    async fn fetch<B>(
        &self,
        kind: ScrapePart,
        port: u16,
        path: &str,
        accept: &str,
        client: &Request<B>,
        deadline: Instant,
    ) -> Part {
        let attempt = self.head(port, path, accept, client.headers());
        let answer = match timeout_at(deadline, attempt).await {
            Ok(Ok(response)) => match unusable(&response) {
                None => Some(response),
                Some(reason) => {
                    tracing::warn!("failed scraping {path} on port {port}: {reason}");
                    None
                }
            },
            Ok(Err(e)) => {
                tracing::warn!("failed scraping {path} on port {port}: {e}");
                None
            }
            Err(_) => {
                tracing::warn!("failed scraping {path} on port {port}: no answer in time");
                None
            }
        };
        if answer.is_none() {
            self.metrics.scrape_failed(kind);
        }
        self.metrics.scraped(kind, answer.is_some());
        Part { kind, answer }
    }

    /// Follows redirects on the same port, as Prometheus does: many applications send `/metrics`
    /// on to `/metrics/`. Any other redirect is the answer.
    async fn head(
        &self,
        port: u16,
        path: &str,
        accept: &str,
        client: &HeaderMap,
    ) -> Result<Response<Incoming>, request::RequestError> {
        let mut target = redirect::Target {
            port,
            path: format!("/{}", path.strip_prefix('/').unwrap_or(path)),
            https: false,
            host: format!("localhost:{port}"),
        };
        let mut answer = self.head_once(&target, accept, client).await?;
        for _ in 0..MAX_REDIRECTS {
            let next = target.follow(&answer, "localhost", Ipv4Addr::LOCALHOST.into());
            match next.filter(|next| answer.status().is_redirection() && next.key() == target.key())
            {
                Some(next) => target = next,
                None => break,
            }
            answer = self.head_once(&target, accept, client).await?;
        }
        Ok(answer)
    }

    async fn head_once(
        &self,
        target: &redirect::Target,
        accept: &str,
        client: &HeaderMap,
    ) -> Result<Response<Incoming>, request::RequestError> {
        let mut request = request::build(Method::GET, &target.host, &target.path, Bytes::new())?;
        let headers = request.headers_mut();
        if let Ok(accept) = HeaderValue::from_str(accept) {
            headers.insert(ACCEPT, accept);
        }
        for name in [USER_AGENT, TIMEOUT_HEADER] {
            if let Some(value) = client.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let addresses: [SocketAddr; 2] = request::localhost(target.port);
        request::send(&addresses, request).await
    }

    fn page(
        &self,
        proxy: Option<Part>,
        application: Vec<Part>,
        format: Format,
        deadline: Instant,
    ) -> Body {
        let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, BodyError>>(QUEUE);
        let metrics = self.metrics.clone();
        let several = application.len() > 1;
        tokio::spawn(async move {
            let mut page = PageWriter {
                sender,
                metrics,
                deadline,
            };
            let own = page.metrics.render();
            if !page.send(Bytes::from(own)).await {
                return;
            }
            for part in proxy.into_iter().chain(application) {
                let limited = several && part.kind == ScrapePart::Application;
                if !page.copy(part, limited).await {
                    return;
                }
            }
            if format.is_open_metrics() {
                page.send(Bytes::from_static(b"# EOF\n")).await;
            }
        });
        StreamBody::new(ReceiverStream::new(receiver)).boxed_unsync()
    }
}

struct PageWriter {
    sender: mpsc::Sender<Result<Frame<Bytes>, BodyError>>,
    metrics: Arc<Metrics>,
    deadline: Instant,
}

impl PageWriter {
    /// False when the client is gone.
    async fn send(&mut self, bytes: Bytes) -> bool {
        bytes.is_empty() || self.sender.send(Ok(Frame::data(bytes))).await.is_ok()
    }

    /// Copies one part as whole lines, without its end marker; with `limited`, so much of it.
    /// Returns false when the client is gone.
    async fn copy(&mut self, part: Part, limited: bool) -> bool {
        let Some(answer) = part.answer else {
            return true;
        };
        let mut body = answer.into_body();
        let mut lines = Lines::default();
        let mut size = 0;
        let failure = loop {
            let frame = match timeout_at(self.deadline, body.frame()).await {
                Ok(None) => break None,
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(e))) => break Some(e.to_string()),
                Err(_) => break Some("no more data in time".to_owned()),
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            size += data.len();
            if limited && size > TARGET_LIMIT {
                break Some("more than 10 MiB".to_owned());
            }
            let Ok(whole) = lines.push(&data) else {
                break Some("a line of more than 1 MiB".to_owned());
            };
            if !self.send(whole).await {
                return false;
            }
        };
        match failure {
            Some(reason) => {
                self.failed(part.kind, &reason);
                self.send(lines.cut()).await
            }
            None => self.send(lines.finish()).await,
        }
    }

    fn failed(&self, part: ScrapePart, reason: &str) {
        tracing::warn!("failed reading a scraped page ({part:?}): {reason}");
        self.metrics.scrape_failed(part);
    }
}

/// A line without end.
#[derive(Debug, PartialEq, Eq)]
struct LongLine;

/// Passes whole lines. Holds back the last one with text and what follows it: it may be unfinished
/// or the end marker.
#[derive(Default)]
struct Lines(BytesMut);

impl Lines {
    fn push(&mut self, data: &[u8]) -> Result<Bytes, LongLine> {
        self.0.extend_from_slice(data);
        let text = self.0.iter().rposition(|b| !b.is_ascii_whitespace());
        let before = &self.0[..text.unwrap_or(0)];
        let line = before
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |i| i + 1);
        let whole = self.0.split_to(line).freeze();
        if self.0.len() > LINE_LIMIT {
            return Err(LongLine);
        }
        Ok(whole)
    }

    /// The last line if it is whole; an unfinished one is dropped.
    fn cut(mut self) -> Bytes {
        let end = self
            .0
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |i| i + 1);
        self.0.truncate(end);
        self.finish()
    }

    /// The last line, unless it is the end marker.
    fn finish(mut self) -> Bytes {
        let text = self.0.trim_ascii();
        if text.is_empty() || text == EOF {
            return Bytes::new();
        }
        if self.0.last().is_some_and(|b| *b != b'\n') {
            self.0.extend_from_slice(b"\n");
        }
        self.0.freeze()
    }
}

/// Why an answer cannot be part of a page of text.
fn unusable<B>(response: &Response<B>) -> Option<String> {
    if response.status() != StatusCode::OK {
        return Some(response.status().to_string());
    }
    let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
    if let Some(coding) = header(CONTENT_ENCODING).filter(|c| !c.eq_ignore_ascii_case("identity")) {
        return Some(format!(
            "content-encoding {coding}, which was not asked for"
        ));
    }
    let kind = header(CONTENT_TYPE).unwrap_or_default();
    let protobuf = kind.to_ascii_lowercase().contains("protobuf");
    protobuf.then(|| format!("content-type {kind}, which cannot be joined with text"))
}

fn accept_of<B>(request: &Request<B>) -> Option<&str> {
    request.headers().get(ACCEPT).and_then(|a| a.to_str().ok())
}

/// Prometheus' limit less a reserve (at most a tenth), within which the page must be out.
fn scrape_timeout(headers: &HeaderMap) -> Duration {
    let text = headers.get(TIMEOUT_HEADER).and_then(|v| v.to_str().ok());
    let seconds = text
        .and_then(|t| t.parse::<f64>().ok())
        .filter(|s| *s > 0.0);
    let parsed = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    parsed.map_or(NO_TIMEOUT, |d| (d - RESERVE.min(d / 10)).min(NO_TIMEOUT))
}

/// The format of the application's targets that answered, if they agree; else text.
fn page_format(application: &[Part]) -> Format {
    let format = |response: &Response<Incoming>| {
        let value = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok());
        Format::of_content_type(value.unwrap_or_default())
    };
    let mut formats = application
        .iter()
        .filter_map(|part| part.answer.as_ref())
        .map(format);
    let Some(first) = formats.next() else {
        return Format::Text;
    };
    if formats.all(|other| other == first) {
        first
    } else {
        Format::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(chunks: &[&str], cut: bool) -> String {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&lines.push(chunk.as_bytes()).expect("short"));
        }
        out.extend_from_slice(&if cut { lines.cut() } else { lines.finish() });
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn parts_are_whole_lines_without_their_end_marker() {
        for (chunks, cut, want) in [
            (&["a 1\n# EOF\n"][..], false, "a 1\n"),
            (&["a 1\n# E", "OF"], false, "a 1\n"),
            (&["a 1\n", "# EOF", "\n\n"], false, "a 1\n"),
            (&["# EOF\na 1"], false, "# EOF\na 1\n"),
            (&["a", " 1"], false, "a 1\n"),
            (&[], false, ""),
            (&["a 1\nb 2\nc"], true, "a 1\nb 2\n"),
            (&["a 1\nb 2\n"], true, "a 1\nb 2\n"),
            (&["a"], true, ""),
        ] {
            assert_eq!(through(chunks, cut), want, "{chunks:?} {cut}");
        }
        let endless = vec![b'x'; LINE_LIMIT + 1];
        assert_eq!(Lines::default().push(&endless), Err(LongLine));
    }

    #[test]
    fn a_page_is_out_before_prometheus_gives_up() {
        for (text, want) in [
            ("10", Duration::from_millis(9500)),
            ("1", Duration::from_millis(900)),
            ("0.5", Duration::from_millis(450)),
            ("0", NO_TIMEOUT),
            ("-1", NO_TIMEOUT),
            ("NaN", NO_TIMEOUT),
            ("soon", NO_TIMEOUT),
            ("1e300", NO_TIMEOUT),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT_HEADER, HeaderValue::from_static(text));
            assert_eq!(scrape_timeout(&headers), want, "{text}");
        }
    }
}
