//! One question to the application: HTTP, TCP, a command, or gRPC. Connections to the machine's own
//! addresses leave from 127.0.0.6 (`::6`), which the redirect rules let through untouched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Request};
use http_body_util::Empty;
use serde::Deserialize;
use tokio::net::{TcpSocket as Socket, TcpStream};

use super::HealthConfigError;
use crate::probing::{grpc_health, http1};
use crate::resolver::Resolver;
use crate::status::probe::tls;

const PROBE_AGENT: &str = "istio-probe/1.0";

/// What to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// GET; 200 to 399 is healthy. Redirects are not followed.
    Http {
        /// Where.
        target: Target,
        /// With TLS; the certificate is not checked, as kubelet does.
        https: bool,
        /// Path and query.
        path: http::uri::PathAndQuery,
        /// As given, with `host` and `user-agent` filled in.
        headers: HeaderMap,
    },
    /// A connection.
    Tcp(Target),
    /// A command; exit code 0 is healthy.
    Exec(Vec<String>),
    /// `grpc.health.v1.Health/Check`; SERVING is healthy.
    Grpc {
        /// Where.
        target: Target,
        /// Service; empty is the server.
        service: String,
    },
}

/// Host and port of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The machine's own address by which the redirect rules know the application, if known.
    pub local: Option<IpAddr>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct HttpGet {
    path: String,
    port: u32,
    host: String,
    scheme: String,
    #[serde(rename = "httpHeaders")]
    headers: Vec<Header>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Header {
    name: String,
    value: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct TcpSocket {
    host: String,
    port: u32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Exec {
    command: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Grpc {
    port: u32,
    service: String,
}

fn bad(field: &'static str, reason: &'static str) -> HealthConfigError {
    HealthConfigError::Method { field, reason }
}

impl Target {
    fn new(
        host: String,
        port: u32,
        local: Option<IpAddr>,
        field: &'static str,
    ) -> Result<Self, HealthConfigError> {
        let port = u16::try_from(port).unwrap_or_default();
        if port == 0 {
            return Err(bad(field, "must be between 1 and 65535"));
        }
        let own = || local.map_or_else(|| "localhost".to_owned(), |ip| ip.to_string());
        let host = if host.is_empty() { own() } else { host };
        Ok(Self { host, port, local })
    }

    /// `host:port` as in a URL.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') && !self.host.starts_with('[') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    async fn connect(&self) -> Result<TcpStream, String> {
        let addresses = Resolver::default().lookup(&self.host).await;
        let mut failure = String::new();
        for ip in addresses.map_err(|e| e.to_string())? {
            match self.connect_to(SocketAddr::new(ip, self.port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = format!("connect to {ip}:{}: {error}", self.port),
            }
        }
        Err(failure)
    }

    async fn connect_to(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let (socket, source) = match address.ip() {
            IpAddr::V4(_) => (Socket::new_v4()?, IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6))),
            IpAddr::V6(_) => {
                let source = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
                (Socket::new_v6()?, IpAddr::V6(source))
            }
        };
        // Closed at once when the probe is over, without a long TIME_WAIT.
        socket.set_zero_linger()?;
        if self.local == Some(address.ip()) {
            let bound = socket.bind(SocketAddr::new(source, 0));
            // `::6` has to be given to the loopback interface; without it any address will do.
            if address.is_ipv4() {
                bound?;
            }
        }
        socket.connect(address).await
    }
}

impl HttpGet {
    pub(super) fn check(self, local: Option<IpAddr>) -> Result<Probe, HealthConfigError> {
        let target = Target::new(self.host, self.port, local, "httpGet.port")?;
        let https = match self.scheme.to_ascii_lowercase().as_str() {
            "" | "http" => false,
            "https" => true,
            _ => return Err(bad("httpGet.scheme", "must be http or https")),
        };
        let path = if self.path.starts_with('/') {
            self.path
        } else {
            format!("/{}", self.path)
        };
        let path = path
            .parse()
            .map_err(|_| bad("httpGet.path", "is no path of a URL"))?;
        let mut headers = HeaderMap::new();
        for header in self.headers {
            let name = HeaderName::from_bytes(header.name.as_bytes());
            let value = HeaderValue::from_str(&header.value);
            let (Ok(name), Ok(value)) = (name, value) else {
                return Err(bad("httpGet.httpHeaders", "holds what no header can carry"));
            };
            headers.append(name, value);
        }
        let agent = HeaderValue::from_static(PROBE_AGENT);
        headers.entry(USER_AGENT).or_insert(agent);
        if !headers.contains_key(HOST) {
            let host = HeaderValue::from_str(&target.authority())
                .map_err(|_| bad("httpGet.host", "is no host name"))?;
            headers.insert(HOST, host);
        }
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        Ok(Probe::Http {
            target,
            https,
            path,
            headers,
        })
    }
}

impl TcpSocket {
    /// Without a host, the pod's address: an application may listen on nothing else.
    pub(super) fn check(self, local: Option<IpAddr>) -> Result<Probe, HealthConfigError> {
        Target::new(self.host, self.port, local, "tcpSocket.port").map(Probe::Tcp)
    }
}

impl Exec {
    pub(super) fn check(self) -> Result<Probe, HealthConfigError> {
        match self.command.first().map(String::as_str) {
            None | Some("") => Err(bad("exec.command", "is empty")),
            Some(_) => Ok(Probe::Exec(self.command)),
        }
    }
}

impl Grpc {
    pub(super) fn check(self, local: Option<IpAddr>) -> Result<Probe, HealthConfigError> {
        let target = Target::new(String::new(), self.port, local, "grpc.port")?;
        let service = self.service;
        Ok(Probe::Grpc { target, service })
    }
}

impl Probe {
    /// Asks once.
    ///
    /// # Errors
    /// Why the application is not healthy; istiod gets to see the text.
    pub async fn run(&self, timeout: Duration) -> Result<(), String> {
        let ask = async {
            match self {
                Self::Http {
                    target,
                    https,
                    path,
                    headers,
                } => get(target, *https, path, headers).await,
                Self::Tcp(target) => target.connect().await.map(drop),
                Self::Exec(command) => exec(command).await,
                Self::Grpc { target, service } => {
                    let (stream, agent) = (target.connect().await?, PROBE_AGENT.to_owned());
                    grpc_health(stream, target.authority(), agent, service).await
                }
            }
        };
        tokio::time::timeout(timeout, ask)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))
    }
}

async fn get(
    target: &Target,
    https: bool,
    path: &http::uri::PathAndQuery,
    headers: &HeaderMap,
) -> Result<(), String> {
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = path.clone().into();
    request.headers_mut().clone_from(headers);
    let stream = target.connect().await?;
    let connection = if https {
        let (stream, _) = tls::connect(stream, &target.authority(), false)
            .await
            .map_err(|e| e.to_string())?;
        http1(stream).await
    } else {
        http1(stream).await
    };
    let mut connection = connection.map_err(|e| e.to_string())?;
    let answer = connection.send_request(request).await;
    let status = answer.map_err(|e| e.to_string())?.status();
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(format!("HTTP status {}", status.as_u16()))
    }
}

async fn exec(command: &[String]) -> Result<(), String> {
    let [program, arguments @ ..] = command else {
        return Err("no command".to_owned());
    };
    let status = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|e| format!("{program}: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {status}"))
    }
}
