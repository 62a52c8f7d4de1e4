//! Runs the application's probes in the kubelet's place. Connections leave from 127.0.0.6 (`::6`),
//! which the redirect rules let through to the application untouched.

pub(crate) mod tls;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

use super::probe_config::{Probe, ProbeConfigError, ProbeMethod, parse};
use super::{Body, full, text};
use crate::options::StatusOptions;

/// How much of the application's answer kubelet gets to see.
const MAX_ANSWER: usize = 10_240;
const MAX_REDIRECTS: usize = 10;
/// Stands for "no limit" where the probe sets none; kubelet's own limit ends the request earlier.
const NO_LIMIT: Duration = Duration::from_secs(3600);

type AnyError = Box<dyn std::error::Error + Send + Sync>;

pub(super) struct Probes {
    probes: BTreeMap<String, Probe>,
    destination: IpAddr,
    source: IpAddr,
    status_port: u16,
    http2: bool,
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is SERVING.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
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
        })
    }

    pub(super) async fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let path = request.uri().path();
        let Some(probe) = self.probes.get(path) else {
            let message = format!("app prober config does not exists for {path}\n");
            return text(StatusCode::BAD_REQUEST, message);
        };
        let grpc = matches!(probe.method, ProbeMethod::Grpc { .. });
        let limit = if probe.timeout.is_zero() && !grpc {
            NO_LIMIT
        } else {
            probe.timeout
        };
        let run = self.run(&probe.method, request.headers());
        let result = match tokio::time::timeout(limit, run).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {limit:?}").into()),
        };
        match result {
            Ok((status, body)) => {
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

    async fn run(
        &self,
        method: &ProbeMethod,
        headers: &HeaderMap,
    ) -> Result<(StatusCode, Bytes), AnyError> {
        match method {
            ProbeMethod::TcpSocket { port } => {
                self.connect(*port).await?;
                Ok((StatusCode::OK, Bytes::new()))
            }
            ProbeMethod::Grpc { port, service } => {
                self.grpc(*port, service, headers.get(USER_AGENT)).await?;
                Ok((StatusCode::OK, Bytes::new()))
            }
            ProbeMethod::HttpGet { port, path, https } => {
                self.http_get(*port, path, *https, headers).await
            }
        }
    }

    /// A connection is closed at once when the probe is over, without a long TIME_WAIT.
    async fn connect(&self, port: u16) -> Result<TcpStream, AnyError> {
        let socket = if self.destination.is_ipv6() {
            TcpSocket::new_v6()?
        } else {
            TcpSocket::new_v4()?
        };
        socket.set_zero_linger()?;
        socket.bind(SocketAddr::new(self.source, 0))?;
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
    ) -> Result<(StatusCode, Bytes), AnyError> {
        let host = self.host(headers, port);
        let mut target = Target {
            port,
            path: path.to_owned(),
            https,
        };
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.http_once(&target, &host, headers).await?;
            if !answer.status().is_redirection() {
                return Ok((answer.status(), read_start(answer.into_body()).await?));
            }
            match target.follow(&answer, &host, self.destination) {
                Some(next) => target = next,
                // Another host is not the application's health, but the application answered.
                None => return Ok((StatusCode::OK, Bytes::new())),
            }
        }
        Err(format!("stopped after {MAX_REDIRECTS} redirects").into())
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

    async fn http_once(
        &self,
        target: &Target,
        host: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, AnyError> {
        let stream = self.connect(target.port).await?;
        if !target.https {
            return http1(stream, target, host, headers).await;
        }
        let (stream, http2) = tls::connect(stream, host, self.http2).await?;
        if http2 {
            return http2_get(stream, target, host, headers).await;
        }
        http1(stream, target, host, headers).await
    }

    async fn grpc(
        &self,
        port: u16,
        service: &str,
        agent: Option<&HeaderValue>,
    ) -> Result<(), AnyError> {
        let stream = self.connect(port).await?;
        let authority = SocketAddr::new(self.destination, port);
        let message = HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(u32::try_from(message.encoded_len())?);
        message.encode(&mut body)?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{authority}/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(agent) = agent {
            request = request.header(USER_AGENT, agent);
        }
        let request = request.body(Full::new(body.freeze()))?;
        let answer = http2_send(stream, request).await?;
        let (parts, body) = answer.into_parts();
        let collected = http_body_util::Limited::new(body, MAX_ANSWER)
            .collect()
            .await?;
        let trailer = collected
            .trailers()
            .and_then(|t| t.get("grpc-status").cloned());
        let status = trailer.or_else(|| parts.headers.get("grpc-status").cloned());
        if status.as_ref().is_some_and(|s| s.as_bytes() != b"0") {
            return Err(format!("grpc-status {status:?}").into());
        }
        let bytes = collected.to_bytes();
        let message = bytes.get(5..).ok_or("no message in the answer")?;
        match HealthCheckResponse::decode(message)?.status {
            1 => Ok(()),
            other => Err(format!("health status {other}, not SERVING").into()),
        }
    }
}

struct Target {
    port: u16,
    path: String,
    https: bool,
}

impl Target {
    /// Where a redirect on the same host leads; `None` for another host or no usable location.
    fn follow(&self, answer: &Response<Incoming>, host: &str, ip: IpAddr) -> Option<Self> {
        let location: Uri = answer
            .headers()
            .get(LOCATION)?
            .to_str()
            .ok()?
            .parse()
            .ok()?;
        let path = location
            .path_and_query()
            .map_or("/", |p| p.as_str())
            .to_owned();
        let Some(authority) = location.authority() else {
            return Some(Self { path, ..*self });
        };
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let target = authority.host();
        if target != name && target.trim_matches(['[', ']']) != ip.to_string() {
            return None;
        }
        let https = location.scheme_str() == Some("https");
        let default = if https { 443 } else { 80 };
        Some(Self {
            port: authority.port_u16().unwrap_or(default),
            path,
            https,
        })
    }
}

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

async fn http1<S>(
    stream: S,
    target: &Target,
    host: &str,
    headers: &HeaderMap,
) -> Result<Response<Incoming>, AnyError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut request = Request::builder().uri(&target.path).header(HOST, host);
    for (name, value) in forwarded(headers) {
        request = request.header(name, value);
    }
    let request = request
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::new()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // A failure of the connection is seen on the response.
    tokio::spawn(async move { connection.await.ok() });
    Ok(sender.send_request(request).await?)
}

async fn http2_get<S>(
    stream: S,
    target: &Target,
    host: &str,
    headers: &HeaderMap,
) -> Result<Response<Incoming>, AnyError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut request = Request::builder().uri(format!("https://{host}{}", target.path));
    for (name, value) in forwarded(headers) {
        request = request.header(name, value);
    }
    http2_send(stream, request.body(Full::new(Bytes::new()))?).await
}

async fn http2_send<S>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, AnyError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // A failure of the connection is seen on the response.
    tokio::spawn(async move { connection.await.ok() });
    Ok(sender.send_request(request).await?)
}

/// The first bytes of a body; the rest is not read.
async fn read_start(mut body: Incoming) -> Result<Bytes, AnyError> {
    let mut out = BytesMut::new();
    while out.len() < MAX_ANSWER {
        let Some(frame) = body.frame().await else {
            break;
        };
        if let Ok(data) = frame?.into_data() {
            let take = data.len().min(MAX_ANSWER - out.len());
            out.extend_from_slice(&data[..take]);
        }
    }
    Ok(out.freeze())
}
