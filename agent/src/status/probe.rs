//! Runs the application's probes in the kubelet's place. Connections leave from 127.0.0.6 (`::6`),
//! which the redirect rules let through to the application untouched.

pub(crate) mod tls;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

use super::probe_config::{Probe, ProbeConfigError, ProbeMethod, parse};
use super::redirect::{MAX_REDIRECTS, Target, host_name};
use super::{Body, full, text};
use crate::options::StatusOptions;
use crate::probing::{grpc_health, http1};

/// How much of the application's answer kubelet gets to see.
const MAX_ANSWER: usize = 10_240;
/// Stands for "no limit" where the probe sets none; kubelet's own limit ends the request earlier.
const NO_LIMIT: Duration = Duration::from_secs(3600);

type AnyError = Box<dyn std::error::Error + Send + Sync>;

pub(super) struct Probes {
    probes: BTreeMap<String, Probe>,
    destination: IpAddr,
    source: IpAddr,
    status_port: u16,
    http2: bool,
    /// `ENABLE_PROBE_KEEPALIVE_CONNECTIONS`.
    keep_alive: bool,
    /// Connections kept, one per port and scheme.
    idle: Mutex<BTreeMap<(u16, bool), Http1>>,
}

impl Probes {
    pub(super) fn new(options: &StatusOptions, ipv6_only: bool) -> Result<Self, ProbeConfigError> {
        let loopback = if ipv6_only {
            IpAddr::V6(Ipv6Addr::LOCALHOST)
        } else {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        };
        let destination = options.probe_destination.unwrap_or(loopback);
        let source = if destination.is_ipv6() {
            IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6))
        } else {
            IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6))
        };
        Ok(Self {
            probes: parse(&options.app_probers)?,
            destination,
            source,
            status_port: options.port,
            http2: options.http2_probing,
            keep_alive: options.probe_keep_alive,
            idle: Mutex::default(),
        })
    }

    pub(super) async fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let path = request.uri().path();
        let Some(probe) = self.probes.get(path) else {
            let message = format!("app prober config does not exists for {path}\n");
            return text(StatusCode::BAD_REQUEST, message);
        };
        let grpc = matches!(probe.method, ProbeMethod::Grpc { .. });
        let limit = if probe.timeout.is_zero() {
            NO_LIMIT
        } else {
            probe.timeout
        };
        let deadline = Instant::now() + limit;
        let run = self.run(&probe.method, request.headers());
        let result = if grpc && probe.timeout.is_zero() {
            Err("timeoutSeconds 0 leaves a gRPC probe no time".into())
        } else {
            let run = timeout_at(deadline, run).await;
            run.unwrap_or_else(|_| Err(format!("no answer within {limit:?}").into()))
        };
        match result {
            Ok(Answer { status, rest }) => {
                let body = match rest {
                    Some(rest) => self.read_start(rest, deadline).await,
                    None => Bytes::new(),
                };
                let mut response = Response::new(full(body));
                *response.status_mut() = status;
                response
            }
            Err(e) => {
                tracing::warn!(target: "probes", "probe {path} failed: {e}");
                text(StatusCode::INTERNAL_SERVER_ERROR, "")
            }
        }
    }

    async fn run(&self, method: &ProbeMethod, headers: &HeaderMap) -> Result<Answer, AnyError> {
        match method {
            ProbeMethod::TcpSocket { port } => {
                self.connect(*port).await?;
                Ok(Answer::OK)
            }
            ProbeMethod::Grpc { port, service } => {
                let stream = self.connect(*port).await?;
                let authority = SocketAddr::new(self.destination, *port).to_string();
                let agent = headers.get(USER_AGENT).and_then(|a| a.to_str().ok());
                let agent = agent.unwrap_or_default().to_owned();
                grpc_health(stream, authority, agent, service).await?;
                Ok(Answer::OK)
            }
            ProbeMethod::HttpGet { port, path, https } => {
                self.http_get(*port, path, *https, headers).await
            }
        }
    }

    /// Closed in the ordinary way: a reset would be an error in the application's log.
    async fn connect(&self, port: u16) -> Result<TcpStream, AnyError> {
        let socket = if self.destination.is_ipv6() {
            TcpSocket::new_v6()?
        } else {
            TcpSocket::new_v4()?
        };
        // While the closed connection is in TIME_WAIT its port stays free for an application to listen on.
        socket.set_reuseaddr(true)?;
        match socket.bind(SocketAddr::new(self.source, 0)) {
            // The redirect rules bring the IPv6 source along; without rules any source does.
            Err(e) if e.kind() == std::io::ErrorKind::AddrNotAvailable => {}
            bound => bound?,
        }
        Ok(socket
            .connect(SocketAddr::new(self.destination, port))
            .await?)
    }

    async fn http_get(
        &self,
        port: u16,
        path: &str,
        https: bool,
        headers: &HeaderMap,
    ) -> Result<Answer, AnyError> {
        let host = self.host(headers, port);
        let name = host_name(&host).to_owned();
        let mut target = Target {
            port,
            path: path.to_owned(),
            https,
            host,
        };
        for _ in 0..=MAX_REDIRECTS {
            let (answer, connection) = self.http_once(&target, headers).await?;
            if !answer.status().is_redirection() {
                return Ok(Answer {
                    status: answer.status(),
                    rest: Some(Rest {
                        body: answer.into_body(),
                        connection: connection.map(|c| (target.key(), c)),
                    }),
                });
            }
            match target.follow(&answer, &name, self.destination) {
                Some(next) => target = next,
                // Another host is not the application's health, but the application answered.
                None => return Ok(Answer::OK),
            }
        }
        Err(format!("stopped after {MAX_REDIRECTS} redirects").into())
    }

    /// The first bytes of a body: what arrives until `deadline`. The application has answered with
    /// its status, so a body that breaks off or never ends (an event stream) is no failure.
    async fn read_start(&self, rest: Rest, deadline: Instant) -> Bytes {
        let Rest {
            mut body,
            connection,
        } = rest;
        let mut out = BytesMut::new();
        let read = timeout_at(deadline, read_start(&mut body, &mut out)).await;
        if let (Ok(Ok(true)), Some((key, connection))) = (read, connection) {
            self.idle.lock().insert(key, connection);
        }
        out.freeze()
    }

    /// The incoming host, with the application's port in the place of the agent's.
    fn host(&self, headers: &HeaderMap, port: u16) -> String {
        let incoming = headers
            .get(HOST)
            .and_then(|h| h.to_str().ok())
            .unwrap_or_default();
        let own_port = format!(":{}", self.status_port);
        match incoming.strip_suffix(&own_port) {
            Some(name) => format!("{name}:{port}"),
            None if incoming.is_empty() => SocketAddr::new(self.destination, port).to_string(),
            None => incoming.to_owned(),
        }
    }

    /// One exchange; the connection is given back if another may follow on it.
    async fn http_once(
        &self,
        target: &Target,
        headers: &HeaderMap,
    ) -> Result<(Response<Incoming>, Option<Http1>), AnyError> {
        let kept = self.idle.lock().remove(&target.key());
        if let Some(mut connection) = kept
            && connection.ready().await.is_ok()
            && let Ok(answer) = self.http1(&mut connection, target, headers).await
        {
            return Ok((answer, Some(connection)));
        }
        let stream = self.connect(target.port).await?;
        let mut connection = if target.https {
            let (stream, http2) = tls::connect(stream, &target.host, self.http2).await?;
            if http2 {
                let answer = http2_get(stream, target, headers).await?;
                return Ok((answer, None));
            }
            http1(stream).await?
        } else {
            http1(stream).await?
        };
        let answer = self.http1(&mut connection, target, headers).await?;
        Ok((answer, Some(connection).filter(|_| self.keep_alive)))
    }

    async fn http1(
        &self,
        connection: &mut Http1,
        target: &Target,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, AnyError> {
        let mut request = Request::builder()
            .uri(&target.path)
            .header(HOST, &target.host);
        for (name, value) in forwarded(headers) {
            request = request.header(name, value);
        }
        if !self.keep_alive {
            request = request.header(CONNECTION, "close");
        }
        let request = request.body(Full::new(Bytes::new()))?;
        Ok(connection.send_request(request).await?)
    }
}

/// What a probe is answered with.
struct Answer {
    status: StatusCode,
    /// Of an HTTP probe: the body, still to be read.
    rest: Option<Rest>,
}

impl Answer {
    const OK: Self = Self {
        status: StatusCode::OK,
        rest: None,
    };
}

struct Rest {
    body: Incoming,
    /// To be kept once the body is read to its end.
    connection: Option<((u16, bool), Http1)>,
}

/// A connection that can take another request.
type Http1 = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

/// Hop-by-hop headers belong to the kubelet's connection.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    const NAMES: [&str; 8] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
    ];
    name == HOST || NAMES.contains(&name.as_str())
}

fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    headers.iter().filter(|(name, _)| !is_hop_by_hop(name))
}

async fn http2_get<S>(
    stream: S,
    target: &Target,
    headers: &HeaderMap,
) -> Result<Response<Incoming>, AnyError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut request = Request::builder().uri(format!("https://{}{}", target.host, target.path));
    for (name, value) in forwarded(headers) {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::new()))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // A failure of the connection is seen on the response.
    tokio::spawn(async move { connection.await.ok() });
    Ok(sender.send_request(request).await?)
}

/// Reads up to [`MAX_ANSWER`] bytes into `out`; says whether that was all of the body.
async fn read_start(body: &mut Incoming, out: &mut BytesMut) -> Result<bool, hyper::Error> {
    while out.len() < MAX_ANSWER {
        let Some(frame) = body.frame().await else {
            return Ok(true);
        };
        if let Ok(data) = frame?.into_data() {
            let take = data.len().min(MAX_ANSWER - out.len());
            out.extend_from_slice(&data[..take]);
        }
    }
    Ok(body.is_end_stream())
}
