//! The HTTP connection manager: one instance per filter chain, serving each of its connections. Chooses the
//! codec, reads requests, and gives each to `stream`.

use std::cell::Cell;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use outrigger_config::http::{
    CodecType, HttpConnectionManager as Config, IstioAlpn, RouteSource, UnderscoresAction,
};
use outrigger_config::listener::TrafficDirection;

use crate::access_log::AccessLogs;
use crate::control::store::{Slot, Store};
use crate::error::Flag;
use crate::http::filters;
use crate::http::filters::fault::ActiveFaults;
use crate::http::h1::parse::{HeadError, Limits};
use crate::http::h1::server::{H1Server, NoRequest};
use crate::http::h2::convert;
use crate::http::h2::server::H2Stream;
use crate::http::local_reply::LocalReply;
use crate::http::request;
use crate::http::route::RouteRuntime;
use crate::http::stats::HttpStats;
use crate::http::stream::{self, Incoming};
use crate::io::stream::{Rewound, Stream};
use crate::listener::drain::Drain;
use crate::stream_info::{ConnectionInfo, Protocol, StreamInfo};
use crate::worker::Worker;

/// The start of every HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Where routes come from at run time.
#[derive(Debug)]
enum Routes {
    Inline(Arc<RouteRuntime>),
    Rds(Arc<Slot<RouteRuntime>>),
}

/// Runtime form of an HttpConnectionManager.
#[derive(Debug)]
pub struct HttpConnectionManager {
    /// The validated configuration.
    pub config: Arc<Config>,
    /// Stats handles.
    pub stats: HttpStats,
    /// Access logs.
    pub logs: AccessLogs,
    /// ALPN lists of `istio.alpn`.
    pub alpn: Option<Arc<IstioAlpn>>,
    /// Faults under way.
    pub faults: ActiveFaults,
    /// Requests leave the workload (decides who writes the decorator header).
    pub egress: bool,
    routes: Routes,
}

impl HttpConnectionManager {
    /// Compiles a configuration.
    ///
    /// # Errors
    /// When an access log cannot be opened.
    pub fn build(
        config: Arc<Config>,
        direction: TrafficDirection,
        store: &Arc<Store>,
    ) -> io::Result<Arc<Self>> {
        let routes = match &config.route {
            RouteSource::Inline(route) => {
                Routes::Inline(RouteRuntime::build(Arc::clone(route), store))
            }
            RouteSource::Rds { name, .. } => Routes::Rds(store.routes.slot(name)),
        };
        Ok(Arc::new(Self {
            stats: HttpStats::new(&store.stats, &config.stat_prefix),
            logs: AccessLogs::build(&config.access_log, &store.logs)?,
            alpn: filters::alpn(&config.filters),
            faults: ActiveFaults::default(),
            egress: direction == TrafficDirection::Outbound,
            routes,
            config,
        }))
    }

    /// The route table for a request that starts now.
    #[must_use]
    pub fn routes(&self) -> Option<Arc<RouteRuntime>> {
        match &self.routes {
            Routes::Inline(route) => Some(Arc::clone(route)),
            Routes::Rds(slot) => slot.load(),
        }
    }

    /// Serves one connection until it ends. `stream` is past TLS; bytes read by inspectors are replayed by it.
    pub async fn serve(
        self: Arc<Self>,
        stream: Stream,
        connection: Rc<ConnectionInfo>,
        worker: Rc<Worker>,
        drain: Drain,
    ) {
        self.stats.cx_total.inc();
        self.stats.cx_active.add(1);
        let server = H1Server::new(stream, BytesMut::new(), self.config.enable_trailers);
        let alpn_h2 = connection
            .tls
            .as_ref()
            .is_some_and(|t| t.alpn.as_deref() == Some(b"h2"));
        let http2 = match self.config.codec_type {
            CodecType::Http1 => Some(false),
            CodecType::Http2 => Some(true),
            CodecType::Auto if alpn_h2 => Some(true),
            CodecType::Auto => sniff(&server, self.config.idle_timeout).await,
        };
        let mut closing = drain.clone();
        let closing = async move { closing.closing().await };
        let serve = async {
            match http2 {
                None => {}
                Some(false) => {
                    self.serve_http1(&server, &connection, &worker, &drain)
                        .await
                }
                Some(true) => {
                    let (stream, prefix) = server.io.into_parts();
                    let stream = Rewound::new(prefix.freeze(), stream);
                    self.serve_http2(stream, &connection, &worker, &drain).await;
                }
            }
        };
        tokio::select! {
            () = serve => {}
            () = closing => {}
        }
        self.stats.cx_active.add(-1);
    }

    /// `server` is borrowed so that closing drops the socket in one place.
    async fn serve_http1(
        self: &Arc<Self>,
        server: &H1Server,
        connection: &Rc<ConnectionInfo>,
        worker: &Rc<Worker>,
        drain: &Drain,
    ) {
        self.stats.cx_http1_total.inc();
        let config = &self.config;
        let limits = Limits {
            max_bytes: config.max_request_headers_kb as usize * 1024,
            max_headers: config.max_headers_count as usize,
        };
        let mut idle = Idle::new(config.idle_timeout);
        idle.end = config.max_connection_duration.map(|t| connection.start + t);
        let mut served = 0_u32;
        loop {
            let started = Cell::new(server.has_input());
            let head = self.next_head(server, limits, &started, &mut idle).await;
            let Some(head) = head else { return };
            let now = Instant::now();
            let mut info = StreamInfo::new(Rc::clone(connection), now, SystemTime::now());
            info.protocol = Some(Protocol::Http11);
            let request = match head {
                Ok(request) => request,
                Err(reply) => {
                    if reply.flag == Some(Flag::DownstreamProtocolError) {
                        self.stats.cx_protocol_error.inc();
                    }
                    stream::refuse(self, worker, server, info, reply).await;
                    server.end(config.delayed_close_timeout).await;
                    return;
                }
            };
            if let Some(reply) = self.refuse_early(&request) {
                self.stats.cx_protocol_error.inc();
                stream::refuse(self, worker, server, info, reply).await;
                server.end(config.delayed_close_timeout).await;
                return;
            }
            server.begin(&request);
            self.stats.rq_http1_total.inc();
            served += 1;
            let last = config.max_requests_per_connection;
            let worn = config
                .max_connection_duration
                .is_some_and(|t| connection.start.elapsed() >= t);
            let leave = worn || drain.is_draining() || (last > 0 && served >= last);
            let old = request.minor == 0 || request.other_major;
            info.protocol = Some(if old {
                Protocol::Http10
            } else {
                Protocol::Http11
            });
            let incoming = Incoming {
                has_body: request.framing != crate::http::h1::body::Framing::None,
                upgrade: request.upgrade,
                expect_continue: request.expect_continue,
                scheme: request.absolute,
                leave,
                headers: request.headers,
            };
            stream::handle(self, worker, server, info, incoming, drain).await;
            if server.is_aborted() {
                return;
            }
            if !server.keep_alive() {
                server.end(config.delayed_close_timeout).await;
                return;
            }
            server.io.shrink();
            idle.touch();
        }
    }

    /// What Envoy's codec refuses before a request exists: the log line shows no request.
    fn refuse_early(&self, request: &crate::http::h1::parse::Request) -> Option<LocalReply> {
        let config = &self.config;
        let refuse = |status, body, details| {
            let reply = LocalReply::new(status, details)
                .body(body)
                .flag(Flag::DownstreamProtocolError);
            Some(reply.close())
        };
        let old = request.minor == 0 || request.other_major;
        if old && (request.other_major || !config.accept_http_10) {
            return refuse(426, "Upgrade Required", "low_version");
        }
        if request.has_underscore && config.underscores == UnderscoresAction::RejectRequest {
            return refuse(400, "Bad Request", "http1.unexpected_underscore");
        }
        if !request::is_valid_authority(request.headers.authority()) {
            return refuse(400, "Bad Request", "http.invalid_authority");
        }
        None
    }

    /// The next head, a refusal to answer, or `None` when the connection just ends.
    async fn next_head(
        &self,
        server: &H1Server,
        limits: Limits,
        started: &Cell<bool>,
        idle: &mut Idle,
    ) -> Option<Result<crate::http::h1::parse::Request, LocalReply>> {
        let config = &self.config;
        let mut read = pin!(server.read_head(limits, started));
        let mut deadline: Option<Pin<Box<tokio::time::Sleep>>> = None;
        loop {
            if started.get() && deadline.is_none() {
                deadline = config
                    .request_headers_timeout
                    .map(|t| Box::pin(tokio::time::sleep(t)));
            }
            let header_timeout = async {
                match &mut deadline {
                    Some(d) => d.await,
                    None => std::future::pending().await,
                }
            };
            let before = started.get();
            // The read wakes this task; leaving the select once the first byte is there arms the header timer.
            let first_byte = std::future::poll_fn(|_| {
                if started.get() && !before && config.request_headers_timeout.is_some() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            });
            tokio::select! {
                biased;
                result = &mut read => {
                    return match result {
                        Ok(request) => Some(Ok(request)),
                        Err(NoRequest::Refused(error)) => Some(Err(refusal(error))),
                        Err(NoRequest::Closed(_)) => None,
                    };
                }
                () = first_byte => {}
                () = header_timeout => {
                    self.stats.rq_header_timeout.inc();
                    let reply = LocalReply::new(408, "request_header_timeout");
                    return Some(Err(reply.body("request header timeout").close()));
                }
                () = idle.expired(), if !before => {
                    if !started.get() {
                        self.stats.cx_idle_timeout.inc();
                        server.io.shutdown().await;
                        return None;
                    }
                }
            }
        }
    }

    async fn serve_http2(
        self: &Arc<Self>,
        io: Rewound<Stream>,
        connection: &Rc<ConnectionInfo>,
        worker: &Rc<Worker>,
        drain: &Drain,
    ) {
        self.stats.cx_http2_total.inc();
        let o = &self.config.http2;
        let handshake = h2::server::Builder::new()
            .initial_window_size(o.initial_stream_window_size)
            .initial_connection_window_size(o.initial_connection_window_size)
            .max_concurrent_streams(o.max_concurrent_streams)
            .max_header_list_size(self.config.max_request_headers_kb * 1024)
            .handshake::<_, Bytes>(io);
        let Ok(mut h2) = handshake.await else {
            self.stats.cx_protocol_error.inc();
            return;
        };
        let mut draining = drain.clone();
        let mut draining = pin!(async move { draining.draining().await });
        let mut drained = false;
        let active = Rc::new(Cell::new(0_u32));
        let mut idle = Idle::new(self.config.idle_timeout);
        idle.end = self
            .config
            .max_connection_duration
            .map(|t| connection.start + t);
        let mut served = 0_u32;
        loop {
            tokio::select! {
                biased;
                accepted = h2.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        idle.touch();
                        served += 1;
                        let limit = self.config.max_requests_per_connection;
                        if limit > 0 && served >= limit && !drained {
                            drained = true;
                            h2.graceful_shutdown();
                        }
                        self.spawn_http2(request, respond, connection, worker, drain, &active);
                    }
                    Some(Err(_)) | None => return,
                },
                () = &mut draining, if !drained => {
                    drained = true;
                    h2.graceful_shutdown();
                }
                () = idle.expired(), if !drained => {
                    if active.get() == 0 || idle.end.is_some_and(|e| Instant::now() >= e) {
                        self.stats.cx_idle_timeout.inc();
                        drained = true;
                        h2.graceful_shutdown();
                    } else {
                        idle.touch();
                    }
                }
            }
        }
    }

    fn spawn_http2(
        self: &Arc<Self>,
        request: http::Request<h2::RecvStream>,
        respond: h2::server::SendResponse<Bytes>,
        connection: &Rc<ConnectionInfo>,
        worker: &Rc<Worker>,
        drain: &Drain,
        active: &Rc<Cell<u32>>,
    ) {
        self.stats.rq_http2_total.inc();
        let (parts, body) = request.into_parts();
        let stream = H2Stream::new(body, respond);
        let mut info = StreamInfo::new(Rc::clone(connection), Instant::now(), SystemTime::now());
        info.protocol = Some(Protocol::Http2);
        let incoming = Incoming {
            headers: convert::from_request(&parts),
            has_body: !stream.body_ended(),
            upgrade: None,
            expect_continue: false,
            scheme: None,
            leave: false,
        };
        let (hcm, worker, drain, active) = (
            Arc::clone(self),
            Rc::clone(worker),
            drain.clone(),
            Rc::clone(active),
        );
        active.set(active.get() + 1);
        Worker::spawn(async move {
            stream::handle(&hcm, &worker, &stream, info, incoming, &drain).await;
            active.set(active.get() - 1);
        });
    }
}

/// The answer to a head that was refused.
fn refusal(error: HeadError) -> LocalReply {
    let (status, body, details) = match error {
        HeadError::Codec => (400, "Bad Request", "http1.codec_error"),
        HeadError::InvalidCharacters => (400, "Bad Request", "http1.invalid_characters"),
        HeadError::LengthAndChunked => (
            400,
            "Bad Request",
            "http1.content_length_and_chunked_not_allowed",
        ),
        HeadError::TooLarge => (
            431,
            "Request Header Fields Too Large",
            "http1.headers_too_large",
        ),
        HeadError::TooMany => (
            431,
            "Request Header Fields Too Large",
            "http1.too_many_headers",
        ),
        HeadError::TransferEncoding => (501, "Not Implemented", "http1.invalid_transfer_encoding"),
    };
    LocalReply::new(status, details)
        .body(body)
        .flag(Flag::DownstreamProtocolError)
        .close()
}

/// The answer to a request body that was refused.
#[must_use]
pub fn body_refusal(error: HeadError) -> LocalReply {
    refusal(error)
}

/// Reads until the first bytes tell HTTP/2 from HTTP/1; `None` = the client closed or stayed silent.
async fn sniff(server: &H1Server, idle: Option<Duration>) -> Option<bool> {
    let read = async {
        loop {
            let verdict = server.io.with_input(|input| {
                let n = input.len().min(PREFACE.len());
                if input[..n] != PREFACE[..n] {
                    Some(false)
                } else if n == PREFACE.len() {
                    Some(true)
                } else {
                    None
                }
            });
            if verdict.is_some() {
                return verdict;
            }
            if !matches!(server.io.fill().await, Ok(n) if n > 0) {
                return None;
            }
        }
    };
    match idle {
        Some(idle) => tokio::time::timeout(idle, read).await.ok().flatten(),
        None => read.await,
    }
}

/// A lazy idle timer: armed once, it looks at the last activity when it fires instead of being re-armed by each
/// request.
struct Idle {
    timeout: Option<Duration>,
    last: Instant,
    /// `max_connection_duration`: the connection takes no request after this.
    end: Option<Instant>,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Idle {
    fn new(timeout: Option<Duration>) -> Self {
        Self {
            timeout,
            last: Instant::now(),
            end: None,
            sleep: None,
        }
    }

    fn touch(&mut self) {
        self.last = Instant::now();
    }

    fn due(&self) -> Option<Instant> {
        let idle = self.timeout.map(|t| self.last + t);
        [idle, self.end].into_iter().flatten().min()
    }

    async fn expired(&mut self) {
        loop {
            let Some(due) = self.due() else {
                return std::future::pending().await;
            };
            if Instant::now() >= due {
                return;
            }
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
            sleep.as_mut().reset(due.into());
            sleep.as_mut().await;
        }
    }
}
