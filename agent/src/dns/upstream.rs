//! Queries that the mesh has no answer to, asked at the name servers of resolv.conf over the
//! client's transport. Every attempt has a socket and an id of its own; an answer from another
//! address, with another id or question is not taken. Nothing is cached.

use std::collections::HashSet;
use std::io::{self, ErrorKind::WouldBlock};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::answer::Transport;
use super::metrics::{DnsMetrics, add};
use super::wire::{Code, Query};

/// Silence after which the next server is asked as well (or a single one again): one lost packet
/// must not cost the client its whole timeout. The first answer to any attempt counts.
const RETRANSMIT: Duration = Duration::from_secs(1);
/// Most queries under way at once. More are refused: a dead name server must not fill the memory.
const MAX_IN_FLIGHT: usize = 1024;
/// Part of the allowed open files that queries under way may use.
const FILES_SHARE: u64 = 4;
/// Longest message.
const MAX_MESSAGE: usize = 65_535;

/// How name servers are asked.
#[derive(Debug, Clone)]
pub struct UpstreamConfig {
    /// Servers.
    pub servers: Vec<SocketAddr>,
    /// `DNS_FORWARD_PARALLEL`: all at once.
    pub parallel: bool,
    /// `DNS_FORWARD_TIMEOUT`: how long one server may take.
    pub timeout: Duration,
}

/// Why a query got no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpstreamError {
    /// resolv.conf names no server.
    #[error("no name server configured")]
    NoServer,
    /// Too many queries under way.
    #[error("too many queries under way")]
    Busy,
    /// The query came from this agent itself: its own traffic is redirected to it.
    #[error(
        "the agent's own query came back: it must run as the user or group that the redirect \
         rules exempt"
    )]
    Loop,
    /// Every attempt failed; the last one so.
    #[error("{server}: {problem}")]
    Server {
        /// Who.
        server: SocketAddr,
        /// Why.
        problem: io::Error,
    },
    /// Nobody answered in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The answer is too long and cannot be shortened.
    #[error("malformed answer")]
    Malformed,
}

/// Forwards queries.
#[derive(Debug)]
pub(super) struct Upstream {
    config: UpstreamConfig,
    metrics: Arc<DnsMetrics>,
    slots: Arc<Semaphore>,
    /// Local addresses of the attempts under way.
    own: Mutex<HashSet<SocketAddr>>,
    /// The loop has been said; once is enough.
    loop_said: AtomicBool,
    /// Datagrams are received here, so that waiting attempts hold no buffer.
    scratch: Mutex<Box<[u8]>>,
}

impl Upstream {
    /// Nothing is opened yet.
    #[must_use]
    pub(super) fn new(config: UpstreamConfig, metrics: Arc<DnsMetrics>) -> Self {
        Self {
            config,
            metrics,
            slots: Arc::new(Semaphore::new(slots())),
            own: Mutex::default(),
            loop_said: AtomicBool::new(false),
            scratch: Mutex::new(vec![0; MAX_MESSAGE].into()),
        }
    }

    /// A place for one more query under way, if there is one. Taken before anything is allocated.
    pub(super) fn reserve(&self) -> Result<OwnedSemaphorePermit, UpstreamError> {
        let permit = Arc::clone(&self.slots).try_acquire_owned();
        permit.map_err(|_| UpstreamError::Busy)
    }

    /// Whether a packet from `peer` is one of the agent's own queries.
    pub(super) fn is_own(&self, peer: SocketAddr) -> bool {
        self.own.lock().contains(&canonical(peer))
    }

    /// The answer for the client, always; SERVFAIL if there is none to be had.
    pub(super) async fn resolve(&self, query: Query<'_>, transport: Transport) -> Vec<u8> {
        add(&self.metrics.upstream_requests, 1);
        let limit = transport.limit(&query);
        let start = Instant::now();
        let answer = self.exchange(query, transport).await;
        self.metrics.upstream_took(start.elapsed());
        let adopted = answer.and_then(|mut reply| {
            let fits = query.adopt(&mut reply, limit);
            fits.map(|()| reply).map_err(|_| UpstreamError::Malformed)
        });
        adopted.unwrap_or_else(|error| self.fail(query, transport, &error))
    }

    /// Counts a query that cannot be forwarded; its answer.
    pub(super) fn fail(
        &self,
        query: Query<'_>,
        transport: Transport,
        error: &UpstreamError,
    ) -> Vec<u8> {
        add(&self.metrics.upstream_failures, 1);
        if matches!(error, UpstreamError::Loop) && !self.loop_said.swap(true, Ordering::Relaxed) {
            tracing::warn!(target: "dns", "{error}");
        }
        tracing::debug!(target: "dns", "upstream dns failure: {error}");
        let mut out = Vec::new();
        let limit = transport.limit(&query);
        query.answer(&mut out, Code::ServFail, limit).finish();
        out
    }

    async fn exchange(
        &self,
        query: Query<'_>,
        transport: Transport,
    ) -> Result<Vec<u8>, UpstreamError> {
        let mut servers = self.config.servers.clone();
        let only = match servers.as_slice() {
            [] => return Err(UpstreamError::NoServer),
            [only] => Some(*only),
            _ => None,
        };
        servers.shuffle(&mut rand::rng());
        // A stream does not lose packets: asking the same server twice would help nobody.
        servers.extend(only.filter(|_| transport == Transport::Udp));
        let asked_at_once = if self.config.parallel && only.is_none() {
            servers.len()
        } else {
            1
        };
        let waits = u32::try_from(servers.len() - asked_at_once).unwrap_or(u32::MAX);
        let limit = self.config.timeout + RETRANSMIT.saturating_mul(waits);
        let attempts = self.attempts(query, transport, servers, asked_at_once);
        let answer = tokio::time::timeout(limit, attempts).await;
        answer.unwrap_or(Err(UpstreamError::Timeout(limit)))
    }

    /// Starts `at_once` attempts, then one more after each failure or silence.
    async fn attempts(
        &self,
        query: Query<'_>,
        transport: Transport,
        servers: Vec<SocketAddr>,
        at_once: usize,
    ) -> Result<Vec<u8>, UpstreamError> {
        let mut left = servers.into_iter();
        let mut pending: FuturesUnordered<_> = left
            .by_ref()
            .take(at_once)
            .map(|server| self.attempt(query, transport, server))
            .collect();
        let mut failure = UpstreamError::NoServer;
        loop {
            let silence = tokio::time::sleep(RETRANSMIT);
            tokio::select! {
                ended = pending.next() => match ended {
                    Some(Ok(reply)) => return Ok(reply),
                    Some(Err(error)) => {
                        tracing::debug!(target: "dns", "name server failed: {error}");
                        failure = error;
                        if !pending.is_empty() {
                            continue;
                        }
                    }
                    None => return Err(failure),
                },
                () = silence => {}
            }
            if let Some(server) = left.next() {
                pending.push(self.attempt(query, transport, server));
            }
        }
    }

    async fn attempt(
        &self,
        query: Query<'_>,
        transport: Transport,
        server: SocketAddr,
    ) -> Result<Vec<u8>, UpstreamError> {
        let exchange = async {
            match transport {
                Transport::Udp => self.ask_udp(query, server).await,
                Transport::Tcp => self.ask_tcp(query, server).await,
            }
        };
        let answer = tokio::time::timeout(self.config.timeout, exchange).await;
        let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        answer.map_err(|problem| UpstreamError::Server { server, problem })
    }

    async fn ask_udp(&self, query: Query<'_>, server: SocketAddr) -> io::Result<Vec<u8>> {
        let socket = UdpSocket::bind(any(server)).await?;
        // From now on the kernel drops what other addresses send.
        socket.connect(server).await?;
        let _own = self.remember(socket.local_addr()?);
        let id = rand::random();
        socket.send(&with_id(query, id)).await?;
        loop {
            let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
            if ready.is_error() {
                // Nobody listens there: the kernel shows it as an error and nothing else.
                let refused = || Err(socket.take_error()?.unwrap_or(WouldBlock.into()));
                match socket.try_io(Interest::ERROR, refused) {
                    Err(error) if error.kind() != WouldBlock => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            let mut scratch = self.scratch.lock();
            match socket.try_recv(&mut scratch) {
                Ok(len) if query.is_answered_by(&scratch[..len], id) => {
                    return Ok(scratch[..len].to_vec());
                }
                // May be forged: the answer can still come.
                Ok(_) => {}
                Err(error) if error.kind() == WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn ask_tcp(&self, query: Query<'_>, server: SocketAddr) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(server).await?;
        let _own = self.remember(stream.local_addr()?);
        let id = rand::random();
        stream.write_all(&framed(&with_id(query, id))).await?;
        let len = stream.read_u16().await?;
        // Grows with what arrives, not with what is announced.
        let mut reply = Vec::new();
        stream.take(len.into()).read_to_end(&mut reply).await?;
        if reply.len() == usize::from(len) && query.is_answered_by(&reply, id) {
            return Ok(reply);
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    fn remember(&self, address: SocketAddr) -> Own<'_> {
        let address = canonical(address);
        self.own.lock().insert(address);
        Own(self, address)
    }
}

/// Keeps a local address among the agent's own while it lives.
struct Own<'u>(&'u Upstream, SocketAddr);

impl Drop for Own<'_> {
    fn drop(&mut self) {
        self.0.own.lock().remove(&self.1);
    }
}

/// How many queries may be under way: the files they open must leave enough for the rest.
fn slots() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(files / FILES_SHARE)
        .unwrap_or(MAX_IN_FLIGHT)
        .clamp(1, MAX_IN_FLIGHT)
}

/// A socket for both families shows IPv4 peers in IPv6 form.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn any(server: SocketAddr) -> SocketAddr {
    if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    }
}

fn with_id(query: Query<'_>, id: u16) -> Vec<u8> {
    let mut bytes = query.bytes().to_vec();
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    bytes
}

/// A message as TCP carries it.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    // Messages are at most as long as the length can say: they came so, or were cut.
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    [&len.to_be_bytes(), message].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A redirect rule that does not exempt the agent brings its queries back to it, source
    /// address and all.
    #[tokio::test]
    async fn the_agent_knows_its_own_queries_while_they_are_under_way() {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let metrics = Arc::new(DnsMetrics::default());
        let config = UpstreamConfig {
            servers: vec![server.local_addr().expect("address")],
            parallel: false,
            timeout: Duration::from_secs(20),
        };
        let upstream = Upstream::new(config, metrics);
        let packet = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
        let query = Query::parse(packet).expect("a query");
        let serve = async {
            let mut buffer = [0; 512];
            let (len, peer) = server.recv_from(&mut buffer).await.expect("query");
            assert!(upstream.is_own(peer));
            let mapped: std::net::Ipv4Addr = [127, 0, 0, 1].into();
            assert!(upstream.is_own(SocketAddr::new(mapped.to_ipv6_mapped().into(), peer.port())));
            buffer[2] |= 0x80;
            server.send_to(&buffer[..len], peer).await.expect("send");
            peer
        };
        let (reply, peer) = tokio::join!(upstream.resolve(query, Transport::Udp), serve);
        assert_eq!(reply[..3], [0x12, 0x34, 0x81]);
        assert!(!upstream.is_own(peer));
        assert!(upstream.own.lock().is_empty());
    }

    #[tokio::test]
    async fn more_than_the_limit_is_refused_not_queued() {
        let config = UpstreamConfig {
            servers: Vec::new(),
            parallel: false,
            timeout: Duration::from_secs(5),
        };
        let upstream = Upstream::new(config, Arc::default());
        let mut held = Vec::new();
        let busy = loop {
            match upstream.reserve() {
                Ok(permit) => held.push(permit),
                Err(error) => break error,
            }
        };
        assert!((1..=MAX_IN_FLIGHT).contains(&held.len()));
        assert_eq!(busy.to_string(), "too many queries under way");
        held.pop();
        assert!(upstream.reserve().is_ok(), "a place again");
    }
}
