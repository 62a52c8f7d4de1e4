//! Host names to addresses without libc: hosts file, then the servers of resolv.conf.
//! Keeps no cache; files are read per lookup, so that their changes are seen.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

mod resolv_conf;

pub use resolv_conf::ResolvConf;

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name cannot be a DNS name.
    #[error("{0:?} is no host name")]
    BadName(String),
    /// Every server answered that there is no such name or no address.
    #[error("no such host {0:?}")]
    NotFound(String),
    /// No server gave a usable answer.
    #[error("lookup of {host:?} failed at {server}: {problem}")]
    Server {
        /// The name asked for.
        host: String,
        /// The last server asked.
        server: SocketAddr,
        /// What it did.
        problem: ServerProblem,
    },
    /// resolv.conf names no server.
    #[error("lookup of {0:?}: no name server configured")]
    NoServer(String),
}

/// What one name server did instead of answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServerProblem {
    /// No answer in time.
    #[error("timeout")]
    Timeout,
    /// A socket error.
    #[error("{0}")]
    Io(std::io::ErrorKind),
    /// An answer that is no DNS message or does not fit the question.
    #[error("malformed answer")]
    Malformed,
    /// A response code other than NOERROR and NXDOMAIN.
    #[error("answered {0}")]
    Code(ResponseCode),
}

/// Resolver for A and AAAA.
#[derive(Debug, Clone)]
pub struct Resolver {
    hosts: PathBuf,
    resolv_conf: PathBuf,
}

impl Default for Resolver {
    /// `/etc/hosts` and `/etc/resolv.conf`.
    fn default() -> Self {
        Self::new("/etc/hosts", "/etc/resolv.conf")
    }
}

impl Resolver {
    /// A resolver that reads the given files.
    pub fn new(hosts: impl Into<PathBuf>, resolv_conf: impl Into<PathBuf>) -> Self {
        Self {
            hosts: hosts.into(),
            resolv_conf: resolv_conf.into(),
        }
    }

    /// Addresses of `host`, IPv4 first, never empty. An IP literal is its own address.
    ///
    /// # Errors
    /// If no server knows the name, or none answers (bounded by the `timeout` and `attempts`
    /// options of resolv.conf, by default two rounds of 5 s per server).
    pub async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(vec![ip]);
        }
        let listed = hosts_entries(&self.hosts, host);
        if !listed.is_empty() {
            return Ok(listed);
        }
        if host.eq_ignore_ascii_case("localhost") {
            return Ok(vec![
                IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
                IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            ]);
        }
        let conf = ResolvConf::read(&self.resolv_conf);
        if conf.servers.is_empty() {
            return Err(ResolveError::NoServer(host.to_owned()));
        }
        let mut failure = None;
        for candidate in conf.candidates(host) {
            let name =
                Name::from_ascii(&candidate).map_err(|_| ResolveError::BadName(host.to_owned()))?;
            match lookup_name(&conf, &name).await {
                Ok(addresses) if !addresses.is_empty() => return Ok(addresses),
                Ok(_) => {}
                Err((server, problem)) => {
                    failure = Some(ResolveError::Server {
                        host: host.to_owned(),
                        server,
                        problem,
                    });
                }
            }
        }
        Err(failure.unwrap_or_else(|| ResolveError::NotFound(host.to_owned())))
    }
}

/// Addresses of `host` in a hosts file; a missing file is an empty one.
fn hosts_entries(path: &Path, host: &str) -> Vec<IpAddr> {
    let host = host.trim_end_matches('.');
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut found: Vec<IpAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line
                .split('#')
                .next()
                .unwrap_or_default()
                .split_whitespace();
            let ip: IpAddr = words.next()?.parse().ok()?;
            words
                .any(|name| name.eq_ignore_ascii_case(host))
                .then_some(ip)
        })
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

type Failure = (SocketAddr, ServerProblem);

/// A and AAAA of one absolute name; empty if it does not exist.
async fn lookup_name(conf: &ResolvConf, name: &Name) -> Result<Vec<IpAddr>, Failure> {
    let (v4, v6) = tokio::join!(
        ask(conf, name, RecordType::A),
        ask(conf, name, RecordType::AAAA)
    );
    match (v4, v6) {
        (Ok(mut v4), Ok(v6)) => {
            v4.extend(v6);
            Ok(v4)
        }
        // One family that answers is enough.
        (Ok(some), Err(_)) | (Err(_), Ok(some)) if !some.is_empty() => Ok(some),
        (Err(failure), _) | (_, Err(failure)) => Err(failure),
    }
}

/// Asks the servers in turn, `attempts` rounds.
async fn ask(conf: &ResolvConf, name: &Name, kind: RecordType) -> Result<Vec<IpAddr>, Failure> {
    let mut failure = (SocketAddr::from(([0, 0, 0, 0], 0)), ServerProblem::Timeout);
    for _ in 0..conf.attempts {
        for &server in &conf.servers {
            match exchange(server, name, kind, conf.timeout).await {
                Ok(addresses) => return Ok(addresses),
                Err(problem) => failure = (server, problem),
            }
        }
    }
    Err(failure)
}

async fn exchange(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    timeout: Duration,
) -> Result<Vec<IpAddr>, ServerProblem> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name.clone(), kind));
    let bytes = query.to_vec().map_err(|_| ServerProblem::Malformed)?;
    let answer = async {
        let answer = exchange_udp(server, &bytes, &query).await?;
        if answer.metadata.truncation {
            return exchange_tcp(server, &bytes, &query).await;
        }
        Ok(answer)
    };
    let answer = tokio::time::timeout(timeout, answer)
        .await
        .map_err(|_| ServerProblem::Timeout)??;
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        code => return Err(ServerProblem::Code(code)),
    }
    Ok(answer
        .answers
        .iter()
        .filter(|record| record.record_type() == kind)
        .filter_map(|record| record.data.ip_addr())
        .collect())
}

async fn exchange_udp(
    server: SocketAddr,
    bytes: &[u8],
    query: &Message,
) -> Result<Message, ServerProblem> {
    let local: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(local).await.map_err(io_problem)?;
    socket.connect(server).await.map_err(io_problem)?;
    socket.send(bytes).await.map_err(io_problem)?;
    let mut buf = vec![0; 65_535];
    loop {
        let len = socket.recv(&mut buf).await.map_err(io_problem)?;
        // A datagram that does not fit the question may be forged: keep waiting for the answer.
        if let Some(answer) = fitting_answer(&buf[..len], query) {
            return Ok(answer);
        }
    }
}

async fn exchange_tcp(
    server: SocketAddr,
    bytes: &[u8],
    query: &Message,
) -> Result<Message, ServerProblem> {
    let mut stream = TcpStream::connect(server).await.map_err(io_problem)?;
    let len = u16::try_from(bytes.len()).map_err(|_| ServerProblem::Malformed)?;
    let mut framed = len.to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await.map_err(io_problem)?;
    let len = stream.read_u16().await.map_err(io_problem)?;
    let mut buf = vec![0; usize::from(len)];
    stream.read_exact(&mut buf).await.map_err(io_problem)?;
    fitting_answer(&buf, query).ok_or(ServerProblem::Malformed)
}

fn fitting_answer(bytes: &[u8], query: &Message) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let fits = answer.metadata.id == query.metadata.id
        && answer.metadata.message_type == hickory_proto::op::MessageType::Response
        && answer.queries == query.queries;
    fits.then_some(answer)
}

fn io_problem(error: std::io::Error) -> ServerProblem {
    ServerProblem::Io(error.kind())
}

#[cfg(test)]
mod tests;
