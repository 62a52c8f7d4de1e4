//! The status server (15020): readiness, merged metrics, application probes, quit, drain, debug.
//! Serves until the agent ends, so that probes and scrapes still work while the proxy drains.

mod accept;
mod compress;
mod debug;
pub(crate) mod probe;
mod probe_config;
mod ready;
mod redirect;
mod scrape;
mod scrape_config;
mod waits;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, VARY};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

pub use probe_config::ProbeConfigError;
pub use ready::{ControlPlane, NotReady, Readiness, ReadinessParts};
pub use scrape_config::ScrapeConfigError;

use crate::metrics::Metrics;
use crate::options::StatusOptions;
use crate::supervisor::{AdminClient, Lifecycle};

/// Kubelet and Prometheus send a head of a few hundred bytes at once.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept; only resource exhaustion fails repeatedly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const BACKLOG: i32 = 1024;

/// Why there is no status server. All end the agent with code 255.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// `ISTIO_KUBE_APP_PROBERS`.
    #[error("ISTIO_KUBE_APP_PROBERS: {0}")]
    Probes(#[from] ProbeConfigError),
    /// `ISTIO_PROMETHEUS_ANNOTATIONS`.
    #[error("ISTIO_PROMETHEUS_ANNOTATIONS: {0}")]
    Scrape(#[from] ScrapeConfigError),
    /// The port is taken.
    #[error("cannot listen on status port {port}: {source}")]
    Bind {
        /// Port.
        port: u16,
        /// System error.
        source: std::io::Error,
    },
}

pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The server, bound and ready to serve.
pub struct StatusServer {
    listener: TcpListener,
    state: Arc<State>,
}

struct State {
    probes: probe::Probes,
    scrape: scrape::Scraper,
    readiness: Readiness,
    debug: debug::Debug,
    lifecycle: Arc<Lifecycle>,
    /// `None` without a proxy.
    admin: Option<AdminClient>,
    inbound_only: bool,
    localhost_metrics_only: bool,
}

/// What the server works with.
pub struct StatusParts {
    /// Own metrics.
    pub metrics: Arc<Metrics>,
    /// Readiness.
    pub readiness: Readiness,
    /// For the debug pages; set during the start.
    pub control_plane: Arc<OnceLock<ControlPlane>>,
    /// `--profiling`.
    pub profiling: bool,
    /// The proxy's DNS domain, e.g. `ns.svc.cluster.local`.
    pub domain: String,
    /// The supervisor's side of quit and drain.
    pub lifecycle: Arc<Lifecycle>,
    /// The proxy's admin port; `None` without a proxy.
    pub admin: Option<AdminClient>,
    /// Drain inbound listeners only.
    pub inbound_only: bool,
    /// Whether the pod has no IPv4 address.
    pub ipv6_only: bool,
}

impl StatusServer {
    /// Parses the probe and scrape settings and binds the port on all addresses.
    ///
    /// # Errors
    /// Bad settings or a taken port.
    pub fn bind(options: &StatusOptions, parts: StatusParts) -> Result<Self, StatusError> {
        let probes = probe::Probes::new(options, parts.ipv6_only)?;
        let scrape = scrape::Scraper::new(options, parts.metrics)?;
        let listener = listen(options.port).map_err(|source| StatusError::Bind {
            port: options.port,
            source,
        })?;
        let state = State {
            probes,
            scrape,
            readiness: parts.readiness,
            debug: debug::Debug {
                control_plane: parts.control_plane,
                profiling: parts.profiling,
                domain: parts.domain,
            },
            lifecycle: parts.lifecycle,
            admin: parts.admin,
            inbound_only: parts.inbound_only,
            localhost_metrics_only: options.localhost_metrics_only,
        };
        Ok(Self {
            listener,
            state: Arc::new(state),
        })
    }

    /// The bound address.
    ///
    /// # Errors
    /// System errors.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves for ever.
    pub async fn serve(self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    tokio::spawn(serve_connection(stream, peer, self.state.clone()));
                }
                Err(e) => {
                    tracing::warn!("status server cannot accept: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// One socket for both families; plain IPv4 where the kernel has no IPv6.
fn listen(port: u16) -> std::io::Result<TcpListener> {
    let dual = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))
        .and_then(|socket| socket.set_only_v6(false).map(|()| socket));
    let any_v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let any_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    match dual.and_then(|socket| bind(socket, any_v6)) {
        Err(e) if e.kind() != std::io::ErrorKind::AddrInUse => {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            bind(socket, any_v4)
        }
        result => result,
    }
}

fn bind(socket: Socket, address: SocketAddr) -> std::io::Result<TcpListener> {
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, state: Arc<State>) {
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, std::convert::Infallible>(state.answer(peer.ip(), request).await) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .half_close(true);
    if let Err(e) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!("status connection of {peer} ended: {e}");
    }
}

impl State {
    async fn answer(self: &Arc<Self>, peer: IpAddr, request: Request<Incoming>) -> Response<Body> {
        let gzip = compress::accepted(request.headers());
        let mut response = self.page(peer, request).await;
        let vary = HeaderValue::from_static("Accept-Encoding");
        response.headers_mut().insert(VARY, vary);
        if gzip {
            return compress::apply(response);
        }
        response
    }

    async fn page(self: &Arc<Self>, peer: IpAddr, request: Request<Incoming>) -> Response<Body> {
        let local = peer.to_canonical().is_loopback();
        match request.uri().path() {
            "/healthz/ready" => self.ready().await,
            "/metrics" | "/stats/prometheus" => {
                if self.localhost_metrics_only && !local {
                    return forbidden();
                }
                self.scrape.answer(&request).await
            }
            "/quitquitquit" => refusal(local, request.method()).unwrap_or_else(|| {
                self.lifecycle.quit();
                text(StatusCode::OK, "OK")
            }),
            "/drain" => match refusal(local, request.method()) {
                Some(refusal) => refusal,
                None => self.drain().await,
            },
            path if path.starts_with("/debug/") => {
                if !local {
                    return forbidden();
                }
                self.debug
                    .answer(&request, &self.readiness, &self.lifecycle)
                    .await
            }
            path if path.starts_with("/app-health/") || path.starts_with("/app-lifecycle/") => {
                self.probes.answer(&request).await
            }
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }

    async fn ready(&self) -> Response<Body> {
        match self.readiness.check(&self.lifecycle).await {
            Ok(()) => text(StatusCode::OK, ""),
            Err(reason) => {
                tracing::warn!("Envoy proxy is NOT ready: {reason}");
                text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
            }
        }
    }

    /// The listeners drain, the agent and the proxy stay: native sidecars are asked before their
    /// application ends. Always 200: a hook that fails helps nobody, and what could not be drained
    /// now is drained at the signal.
    async fn drain(&self) -> Response<Body> {
        if let Some(admin) = &self.admin
            && let Err(e) = admin.drain(self.inbound_only, true).await
        {
            tracing::warn!("failed draining listeners: {e}");
            let text_of = format!("drain failed: {e}; the listeners will drain at SIGTERM\n");
            return text(StatusCode::OK, text_of);
        }
        self.lifecycle.drained();
        text(StatusCode::OK, "OK")
    }
}

/// Why a request may not control the agent, if so.
fn refusal(local: bool, method: &Method) -> Option<Response<Body>> {
    if !local {
        return Some(forbidden());
    }
    let wrong = || text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    (method != Method::POST).then(wrong)
}

fn forbidden() -> Response<Body> {
    text(
        StatusCode::FORBIDDEN,
        "Only requests from localhost are allowed\n",
    )
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
