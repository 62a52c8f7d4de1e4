//! The merged metrics page: the agent's metrics, the proxy's, the application's. Bodies stream
//! through in the order of the page; no page is held in memory, however large.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;

use super::accept::{self, Format};
use super::scrape_config::{ScrapeConfigError, Target, parse};
use super::{Body, BodyError};
use crate::metrics::{Metrics, ScrapePart};
use crate::options::StatusOptions;
use crate::request;

const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("x-prometheus-scrape-timeout-seconds");
/// Without the header there is no limit in the reference; an hour only guards against leaks.
const NO_TIMEOUT: Duration = Duration::from_secs(3600);
/// Of one target when there are several.
const TARGET_LIMIT: usize = 10 << 20;
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
            Ok(Ok(response)) if response.status() == StatusCode::OK => Some(response),
            Ok(Ok(response)) => {
                tracing::warn!(
                    "failed scraping {path} on port {port}: {}",
                    response.status()
                );
                None
            }
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
        Part { kind, answer }
    }

    async fn head(
        &self,
        port: u16,
        path: &str,
        accept: &str,
        client: &HeaderMap,
    ) -> Result<Response<Incoming>, request::RequestError> {
        let authority = format!("localhost:{port}");
        let mut request = request::build(Method::GET, &authority, path, Bytes::new())?;
        let headers = request.headers_mut();
        if let Ok(accept) = HeaderValue::from_str(accept) {
            headers.insert(ACCEPT, accept);
        }
        for name in [USER_AGENT, TIMEOUT_HEADER] {
            if let Some(value) = client.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let addresses: [SocketAddr; 2] = request::localhost(port);
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
                let strip = several && part.kind == ScrapePart::Application;
                if !page.copy(part, strip).await {
                    return;
                }
            }
            if several && format.is_open_metrics() {
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

    /// Copies one part and ends it with a newline. With `strip`, its end marker is left out and
    /// its size limited. Returns false when the client is gone.
    async fn copy(&mut self, part: Part, strip: bool) -> bool {
        let Some(answer) = part.answer else {
            return true;
        };
        let mut body = answer.into_body();
        let mut tail = Tail::new(strip);
        let mut size = 0;
        loop {
            let frame = match timeout_at(self.deadline, body.frame()).await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(e))) => {
                    self.failed(part.kind, &e.to_string());
                    break;
                }
                Err(_) => {
                    self.failed(part.kind, "no more data in time");
                    break;
                }
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            size += data.len();
            if strip && size > TARGET_LIMIT {
                self.failed(part.kind, "more than 10 MiB");
                tail.cut();
                break;
            }
            if !self.send(tail.push(data)).await {
                return false;
            }
        }
        self.send(tail.finish()).await
    }

    fn failed(&self, part: ScrapePart, reason: &str) {
        tracing::warn!("failed reading a scraped page ({part:?}): {reason}");
        self.metrics.scrape_failed(part);
    }
}

/// Holds back the last bytes of a stream: enough to recognise the end marker, and to end on a
/// whole line.
struct Tail {
    strip: bool,
    held: BytesMut,
    last: Option<u8>,
}

impl Tail {
    fn new(strip: bool) -> Self {
        Self {
            strip,
            held: BytesMut::new(),
            last: None,
        }
    }

    fn push(&mut self, data: Bytes) -> Bytes {
        if !self.strip {
            self.last = data.last().copied().or(self.last);
            return data;
        }
        self.held.extend_from_slice(&data);
        // All but the last line that has text, and what follows it.
        let text = self
            .held
            .iter()
            .rposition(|b| !b.is_ascii_whitespace())
            .unwrap_or(0);
        let line = self.held[..text]
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |i| i + 1);
        self.held.split_to(line).freeze()
    }

    /// Forgets an unfinished line.
    fn cut(&mut self) {
        self.held.clear();
        self.last = Some(b'\n');
    }

    fn finish(mut self) -> Bytes {
        if self.strip {
            if self.held.trim_ascii() == EOF {
                self.held.clear();
            }
            self.last = self.held.last().copied().or(Some(b'\n'));
        }
        if self.last.is_some_and(|b| b != b'\n') {
            self.held.extend_from_slice(b"\n");
        }
        self.held.freeze()
    }
}

fn accept_of<B>(request: &Request<B>) -> Option<&str> {
    request.headers().get(ACCEPT).and_then(|a| a.to_str().ok())
}

fn scrape_timeout(headers: &HeaderMap) -> Duration {
    let text = headers.get(TIMEOUT_HEADER).and_then(|v| v.to_str().ok());
    let seconds = text
        .and_then(|t| t.parse::<f64>().ok())
        .filter(|s| *s > 0.0);
    let parsed = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    parsed.map_or(NO_TIMEOUT, |d| d.min(NO_TIMEOUT))
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

    fn through(strip: bool, chunks: &[&str]) -> String {
        let mut tail = Tail::new(strip);
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&tail.push(Bytes::copy_from_slice(chunk.as_bytes())));
        }
        out.extend_from_slice(&tail.finish());
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn parts_end_with_a_newline_and_without_their_end_marker() {
        for (strip, chunks, want) in [
            (true, &["a 1\n# EOF\n"][..], "a 1\n"),
            (true, &["a 1\n# E", "OF"], "a 1\n"),
            (true, &["a 1\n", "# EOF", "\n\n"], "a 1\n"),
            (true, &["# EOF\na 1"], "# EOF\na 1\n"),
            (true, &["a 1"], "a 1\n"),
            (true, &[], ""),
            (false, &["a 1\n# EOF\n"], "a 1\n# EOF\n"),
            (false, &["a", " 1"], "a 1\n"),
            (false, &[], ""),
        ] {
            assert_eq!(through(strip, chunks), want, "{strip} {chunks:?}");
        }
    }
}
