//! STRICT_DNS and LOGICAL_DNS clusters: resolves names in the background and feeds `Cluster::update_hosts`.
//! Start-up never waits for it; a failed look-up keeps the last good hosts.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use outrigger_config::address::Address;
use outrigger_config::cluster::{
    Discovery, DnsFamily, DnsOptions, Endpoint, LoadAssignment, LocalityEndpoints,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;

use crate::control::engine::Resolve;
use crate::upstream::cluster::Cluster;

/// Waiting time for one server.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Servers of `/etc/resolv.conf` that are asked, as resolvers have it.
const MAX_SERVERS: usize = 3;

/// Why a name did not resolve.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The name is no DNS name.
    #[error("{0:?} is not a DNS name")]
    Name(String),
    /// No server answered.
    #[error("no DNS server answered: {0}")]
    Unreachable(std::io::Error),
    /// The answer is broken.
    #[error("broken DNS answer")]
    Malformed,
    /// NXDOMAIN, SERVFAIL and the like.
    #[error("DNS answer {0}")]
    Refused(ResponseCode),
    /// The name has no address of the wanted family.
    #[error("no address")]
    NoAddress,
}

/// Addresses of a name and how long they may be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// In the order of the answer.
    pub addresses: Vec<IpAddr>,
    /// Lowest TTL of the answer; `None` for `/etc/hosts` and literals.
    pub ttl: Option<Duration>,
}

/// What `/etc/resolv.conf` and `/etc/hosts` say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SystemConfig {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
    hosts: HashMap<String, Vec<IpAddr>>,
}

impl SystemConfig {
    /// Reads the two files of the system; a missing file is empty.
    #[must_use]
    pub fn read() -> Self {
        let text = |p: &str| std::fs::read_to_string(p).unwrap_or_default();
        Self::parse(&text("/etc/resolv.conf"), &text("/etc/hosts"))
    }

    /// Parses the contents of the two files.
    #[must_use]
    pub fn parse(resolv: &str, hosts: &str) -> Self {
        let mut config = Self {
            ndots: 1,
            ..Self::default()
        };
        for line in resolv.lines() {
            let line = line.split(['#', ';']).next().unwrap_or("");
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let ip = words.next().and_then(|w| w.parse::<IpAddr>().ok());
                    config.servers.extend(ip.map(|ip| SocketAddr::new(ip, 53)));
                }
                Some("search" | "domain") => config.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let ndots = words
                        .filter_map(|w| w.strip_prefix("ndots:")?.parse().ok())
                        .next_back();
                    config.ndots = ndots.unwrap_or(config.ndots);
                }
                _ => {}
            }
        }
        config.servers.truncate(MAX_SERVERS);
        if config.servers.is_empty() {
            config.servers.push(SocketAddr::from(([127, 0, 0, 1], 53)));
        }
        for line in hosts.lines() {
            let mut words = line.split('#').next().unwrap_or("").split_whitespace();
            if let Some(ip) = words.next().and_then(|w| w.parse::<IpAddr>().ok()) {
                for name in words {
                    config
                        .hosts
                        .entry(name.to_ascii_lowercase())
                        .or_default()
                        .push(ip);
                }
            }
        }
        config
    }

    /// Names to try, in order: as written first when it has enough dots.
    fn candidates(&self, host: &str) -> Vec<String> {
        if host.ends_with('.') {
            return vec![host.to_owned()];
        }
        let searched = self
            .search
            .iter()
            .map(|s| format!("{host}.{}.", s.trim_end_matches('.')));
        let absolute = format!("{host}.");
        if host.matches('.').count() >= self.ndots {
            std::iter::once(absolute).chain(searched).collect()
        } else {
            searched.chain(std::iter::once(absolute)).collect()
        }
    }
}

/// Resolves a host name.
///
/// # Errors
/// [`DnsError`] of the last name tried.
pub async fn resolve(
    system: &SystemConfig,
    host: &str,
    family: DnsFamily,
) -> Result<Resolved, DnsError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Resolved {
            addresses: vec![ip],
            ttl: None,
        });
    }
    if let Some(known) = system.hosts.get(&host.to_ascii_lowercase()) {
        let addresses: Vec<_> = wanted(family, known);
        if !addresses.is_empty() {
            return Ok(Resolved {
                addresses,
                ttl: None,
            });
        }
    }
    let mut last = DnsError::NoAddress;
    for name in system.candidates(host) {
        match resolve_name(system, &name, family).await {
            Ok(resolved) => return Ok(resolved),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn wanted(family: DnsFamily, all: &[IpAddr]) -> Vec<IpAddr> {
    let v4 = || {
        all.iter()
            .filter(|a| a.is_ipv4())
            .copied()
            .collect::<Vec<_>>()
    };
    let v6 = || {
        all.iter()
            .filter(|a| a.is_ipv6())
            .copied()
            .collect::<Vec<_>>()
    };
    let first = |a: Vec<IpAddr>, b: Vec<IpAddr>| if a.is_empty() { b } else { a };
    match family {
        DnsFamily::Auto => first(v6(), v4()),
        DnsFamily::V4Only => v4(),
        DnsFamily::V6Only => v6(),
        DnsFamily::V4Preferred => first(v4(), v6()),
        DnsFamily::All => all.to_vec(),
    }
}

async fn resolve_name(
    system: &SystemConfig,
    name: &str,
    family: DnsFamily,
) -> Result<Resolved, DnsError> {
    let (first, second) = match family {
        DnsFamily::V4Only => (RecordType::A, None),
        DnsFamily::V6Only => (RecordType::AAAA, None),
        DnsFamily::V4Preferred | DnsFamily::All => (RecordType::A, Some(RecordType::AAAA)),
        DnsFamily::Auto => (RecordType::AAAA, Some(RecordType::A)),
    };
    let one = lookup(system, name, first).await;
    let Some(second) = second else { return one };
    if one.is_ok() && family != DnsFamily::All {
        return one;
    }
    match (one, lookup(system, name, second).await) {
        (Ok(mut a), Ok(b)) => {
            a.addresses.extend(b.addresses);
            a.ttl = a.ttl.min(b.ttl);
            Ok(a)
        }
        (Ok(a), Err(_)) | (Err(_), Ok(a)) => Ok(a),
        (Err(_), Err(e)) => Err(e),
    }
}

async fn lookup(system: &SystemConfig, name: &str, kind: RecordType) -> Result<Resolved, DnsError> {
    let parsed = Name::from_ascii(name).map_err(|_| DnsError::Name(name.to_owned()))?;
    let id: u16 = rand::random();
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(parsed, kind));
    let bytes = message
        .to_vec()
        .map_err(|_| DnsError::Name(name.to_owned()))?;
    let mut last = DnsError::NoAddress;
    for server in &system.servers {
        match tokio::time::timeout(TIMEOUT, ask(*server, id, &bytes)).await {
            Ok(Ok(answer)) => return read(&answer, kind),
            Ok(Err(error)) => last = error,
            Err(_) => last = DnsError::Unreachable(std::io::ErrorKind::TimedOut.into()),
        }
    }
    Err(last)
}

/// One exchange over UDP, again over TCP when the answer is cut.
async fn ask(server: SocketAddr, id: u16, query: &[u8]) -> Result<Message, DnsError> {
    let io = DnsError::Unreachable;
    let local = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(local).await.map_err(io)?;
    socket.connect(server).await.map_err(io)?;
    socket.send(query).await.map_err(io)?;
    let mut buffer = vec![0; 4096];
    loop {
        let n = socket.recv(&mut buffer).await.map_err(io)?;
        let Ok(answer) = Message::from_vec(&buffer[..n]) else {
            continue;
        };
        if answer.metadata.id != id {
            continue;
        }
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        return ask_tcp(server, query).await;
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> Result<Message, DnsError> {
    let io = DnsError::Unreachable;
    let mut stream = TcpStream::connect(server).await.map_err(io)?;
    let length = u16::try_from(query.len()).map_err(|_| DnsError::Malformed)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await.map_err(io)?;
    let length = stream.read_u16().await.map_err(io)?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.map_err(io)?;
    Message::from_vec(&buffer).map_err(|_| DnsError::Malformed)
}

fn read(answer: &Message, kind: RecordType) -> Result<Resolved, DnsError> {
    let code = answer.metadata.response_code;
    if code != ResponseCode::NoError {
        return Err(DnsError::Refused(code));
    }
    let mut addresses = Vec::new();
    let mut ttl = u32::MAX;
    for record in &answer.answers {
        match &record.data {
            RData::A(a) if kind == RecordType::A => addresses.push(IpAddr::V4(a.0)),
            RData::AAAA(a) if kind == RecordType::AAAA => addresses.push(IpAddr::V6(a.0)),
            _ => {}
        }
        ttl = ttl.min(record.ttl);
    }
    if addresses.is_empty() {
        return Err(DnsError::NoAddress);
    }
    Ok(Resolved {
        addresses,
        ttl: Some(Duration::from_secs(u64::from(ttl))),
    })
}

/// Resolver tasks of the control thread, one per cluster.
#[derive(Debug, Default)]
pub struct Resolver {
    tasks: HashMap<Arc<str>, JoinHandle<()>>,
}

impl Resolve for Resolver {
    fn watch(&mut self, cluster: &Arc<Cluster>) {
        self.forget(&cluster.config.name);
        let task = tokio::task::spawn_local(run(Arc::downgrade(cluster)));
        self.tasks.insert(Arc::clone(&cluster.config.name), task);
    }

    fn forget(&mut self, name: &str) {
        if let Some(task) = self.tasks.remove(name) {
            task.abort();
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

async fn run(cluster: Weak<Cluster>) {
    loop {
        let Some(config) = cluster.upgrade().map(|c| Arc::clone(&c.config)) else {
            return;
        };
        let (assignment, options, logical) = match &config.discovery {
            Discovery::StrictDns(a, o) => (a, o, false),
            Discovery::LogicalDns(a, o) => (a, o, true),
            _ => return,
        };
        let system = SystemConfig::read();
        let (resolved, wait) = resolve_all(&system, assignment, options, logical).await;
        let Some(cluster) = cluster.upgrade() else {
            return;
        };
        match resolved {
            Ok(assignment) => cluster.update_hosts(&assignment),
            Err(error) => {
                tracing::debug!(target: "dns", "cluster {}: {error}", config.name);
            }
        }
        drop(cluster);
        tokio::time::sleep(wait).await;
    }
}

/// The assignment with names replaced by addresses, and when to resolve again. One name that fails fails all:
/// the hosts of the last good answer stay.
async fn resolve_all(
    system: &SystemConfig,
    assignment: &LoadAssignment,
    options: &DnsOptions,
    logical: bool,
) -> (Result<LoadAssignment, DnsError>, Duration) {
    let mut wait = options.refresh_rate;
    let mut localities = Vec::new();
    for locality in &assignment.localities {
        let mut endpoints = Vec::new();
        for endpoint in &locality.endpoints {
            let Address::Dns { host, port } = &endpoint.address else {
                endpoints.push(endpoint.clone());
                continue;
            };
            match resolve(system, host, options.family).await {
                Ok(resolved) => {
                    if options.respect_ttl
                        && let Some(ttl) = resolved.ttl
                    {
                        wait = ttl.max(Duration::from_secs(1));
                    }
                    let count = if logical { 1 } else { resolved.addresses.len() };
                    endpoints.extend(resolved.addresses.iter().take(count).map(|ip| {
                        let address = Address::Ip(SocketAddr::new(*ip, *port));
                        let hostname = if endpoint.hostname.is_empty() {
                            Arc::clone(host)
                        } else {
                            Arc::clone(&endpoint.hostname)
                        };
                        Endpoint {
                            address,
                            hostname,
                            ..endpoint.clone()
                        }
                    }));
                }
                Err(error) => return (Err(error), options.refresh_rate),
            }
        }
        localities.push(LocalityEndpoints {
            endpoints,
            ..locality.clone()
        });
    }
    (
        Ok(LoadAssignment {
            localities,
            ..assignment.clone()
        }),
        wait,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_and_hosts_are_read_like_resolvers_do() {
        let system = SystemConfig::parse(
            "# comment\nnameserver 10.96.0.10\nsearch a.svc.cluster.local svc.cluster.local\noptions ndots:5 edns0\n",
            "127.0.0.1 localhost lh # x\n::1 localhost\n",
        );
        assert_eq!(system.servers, ["10.96.0.10:53".parse().expect("literal")]);
        assert_eq!(
            system.candidates("zipkin.istio-system"),
            [
                "zipkin.istio-system.a.svc.cluster.local.",
                "zipkin.istio-system.svc.cluster.local.",
                "zipkin.istio-system.",
            ]
        );
        assert_eq!(system.candidates("x.y.z.a.b.c")[0], "x.y.z.a.b.c.");
        assert_eq!(system.candidates("done."), ["done."]);
        assert_eq!(
            wanted(DnsFamily::V4Only, &system.hosts["localhost"]).len(),
            1
        );
    }

    /// A DNS server for one query over UDP.
    async fn server(truncate: bool) -> (SocketAddr, JoinHandle<()>) {
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let address = udp.local_addr().expect("bound");
        let tcp = tokio::net::TcpListener::bind(address)
            .await
            .expect("same port over TCP");
        let answer = |query: &[u8], truncated: bool| {
            let query = Message::from_vec(query).expect("query");
            let mut answer = Message::response(query.metadata.id, OpCode::Query);
            answer.metadata.truncation = truncated;
            answer.add_query(query.queries[0].clone());
            if !truncated && query.queries[0].query_type() == RecordType::A {
                let record = hickory_proto::rr::Record::from_rdata(
                    query.queries[0].name().clone(),
                    7,
                    RData::A(hickory_proto::rr::rdata::A::new(10, 1, 2, 3)),
                );
                answer.add_answer(record);
            }
            answer.to_vec().expect("encodes")
        };
        let task = tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (n, peer) = udp.recv_from(&mut buffer).await.expect("query");
                udp.send_to(&answer(&buffer[..n], truncate), peer)
                    .await
                    .expect("sent");
                if truncate {
                    let (mut stream, _) = tcp.accept().await.expect("retry over TCP");
                    let n = stream.read_u16().await.expect("length");
                    let mut query = vec![0; usize::from(n)];
                    stream.read_exact(&mut query).await.expect("query");
                    let reply = answer(&query, false);
                    stream.write_u16(reply.len() as u16).await.expect("length");
                    stream.write_all(&reply).await.expect("reply");
                }
            }
        });
        (address, task)
    }

    #[tokio::test]
    async fn addresses_and_ttl_come_from_the_answer_also_over_tcp() {
        for truncate in [false, true] {
            let (address, task) = server(truncate).await;
            let system = SystemConfig {
                servers: vec![address],
                ndots: 1,
                ..SystemConfig::default()
            };
            let resolved = resolve(&system, "zipkin.example", DnsFamily::V4Only)
                .await
                .expect("resolves");
            assert_eq!(resolved.addresses, [IpAddr::from([10, 1, 2, 3])]);
            assert_eq!(resolved.ttl, Some(Duration::from_secs(7)));
            task.abort();
        }
    }

    #[tokio::test]
    async fn a_name_without_addresses_is_an_error() {
        let (address, task) = server(false).await;
        let system = SystemConfig {
            servers: vec![address],
            ndots: 1,
            ..SystemConfig::default()
        };
        let result = resolve(&system, "zipkin.example", DnsFamily::V6Only).await;
        assert!(matches!(result, Err(DnsError::NoAddress)));
        task.abort();
    }
}
