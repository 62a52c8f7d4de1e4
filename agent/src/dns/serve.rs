//! The sockets' side: datagrams answered in place, connections with several queries at once,
//! forwarded queries as tasks. Everything is bounded; a client can only slow itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::answer::{Transport, Verdict, answer};
use super::metrics::{DnsMetrics, add};
use super::table::Table;
use super::upstream::{Upstream, UpstreamError, framed};
use super::wire::Query;

/// Longest datagram.
const MAX_DATAGRAM: usize = 65_535;
/// Connections at once; the next ones wait in the backlog.
const MAX_CONNECTIONS: usize = 256;
/// Queries of one connection under way at once.
const MAX_PIPELINED: usize = 16;
/// A connection without a whole query is closed after this.
const IDLE: Duration = Duration::from_secs(10);
/// A client that does not take its answer is given up after this.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept or receive; only resource exhaustion fails repeatedly.
const PAUSE: Duration = Duration::from_millis(50);

/// What all sockets share.
#[derive(Debug)]
pub(super) struct Server {
    /// `None` until the first table arrives.
    pub(super) table: RwLock<Option<Arc<Table>>>,
    /// Forward until then.
    pub(super) forward_before_sync: bool,
    pub(super) upstream: Upstream,
    pub(super) metrics: Arc<DnsMetrics>,
    connections: Arc<Semaphore>,
}

impl Server {
    pub(super) fn new(upstream: Upstream, metrics: Arc<DnsMetrics>, forward: bool) -> Self {
        Self {
            table: RwLock::new(None),
            forward_before_sync: forward,
            upstream,
            metrics,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    fn answer<'a>(&self, transport: Transport, packet: &'a [u8], out: &mut Vec<u8>) -> Verdict<'a> {
        let table = self.table.read().clone();
        let verdict = answer(
            table.as_deref(),
            self.forward_before_sync,
            transport,
            packet,
            out,
        );
        if !matches!(verdict, Verdict::Drop) {
            add(&self.metrics.requests, 1);
        }
        verdict
    }

    /// Whether a query from `peer` may be forwarded now.
    fn admit(&self, peer: SocketAddr) -> Result<tokio::sync::OwnedSemaphorePermit, UpstreamError> {
        if self.upstream.is_own(peer) {
            return Err(UpstreamError::Loop);
        }
        self.upstream.reserve()
    }
}

/// Answers datagrams for ever.
pub(super) async fn serve_udp(server: Arc<Server>, socket: Arc<UdpSocket>) {
    let mut packet = vec![0; MAX_DATAGRAM];
    let mut reply = Vec::with_capacity(4096);
    loop {
        let (len, peer) = match socket.recv_from(&mut packet).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(target: "dns", "cannot receive: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        match server.answer(Transport::Udp, &packet[..len], &mut reply) {
            Verdict::Reply => send(&socket, &reply, peer),
            Verdict::Drop => {}
            Verdict::Forward(query) => match server.admit(peer) {
                Ok(permit) => {
                    let (server, socket) = (Arc::clone(&server), Arc::clone(&socket));
                    let packet = query.bytes().to_vec();
                    tokio::spawn(async move {
                        // It was parsed a moment ago.
                        if let Ok(query) = Query::parse(&packet) {
                            let reply = server.upstream.resolve(query, Transport::Udp).await;
                            send(&socket, &reply, peer);
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    let reply = server.upstream.fail(query, Transport::Udp, &error);
                    send(&socket, &reply, peer);
                }
            },
        }
    }
}

/// Never waits: an answer that the socket has no room for is lost, as on any network.
fn send(socket: &UdpSocket, reply: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.try_send_to(reply, peer) {
        tracing::debug!(target: "dns", "cannot answer {peer}: {error}");
    }
}

/// Accepts connections for ever.
pub(super) async fn serve_tcp(server: Arc<Server>, listener: Arc<TcpListener>) {
    loop {
        // Never closed.
        let Ok(permit) = Arc::clone(&server.connections).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    if let Err(error) = serve_connection(&server, stream, peer).await {
                        tracing::debug!(target: "dns", "connection of {peer} ended: {error}");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(target: "dns", "cannot accept: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Queries of one connection, answered in the order in which the answers are there (RFC 7766).
async fn serve_connection(
    server: &Server,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.split();
    let mut received = Vec::new();
    let mut reply = Vec::new();
    let mut pending = FuturesUnordered::new();
    let mut idle_at = Instant::now() + IDLE;
    let mut open = true;
    loop {
        while pending.len() < MAX_PIPELINED
            && let Some(packet) = take_message(&mut received)
        {
            idle_at = Instant::now() + IDLE;
            match server.answer(Transport::Tcp, &packet, &mut reply) {
                Verdict::Reply => write_message(&mut write, &reply).await?,
                // Whoever sends answers to a server is no client.
                Verdict::Drop => return Ok(()),
                Verdict::Forward(_) => pending.push(forward(server, packet, peer)),
            }
        }
        if pending.is_empty() && !open {
            return Ok(());
        }
        tokio::select! {
            Some(reply) = pending.next() => {
                write_message(&mut write, &reply).await?;
                idle_at = Instant::now() + IDLE;
            }
            len = read.read_buf(&mut received), if open && pending.len() < MAX_PIPELINED => {
                open = len? != 0;
            }
            () = tokio::time::sleep_until(idle_at), if pending.is_empty() => return Ok(()),
        }
    }
}

async fn forward(server: &Server, packet: Vec<u8>, peer: SocketAddr) -> Vec<u8> {
    // It was parsed a moment ago.
    let Ok(query) = Query::parse(&packet) else {
        return Vec::new();
    };
    match server.admit(peer) {
        Ok(_permit) => server.upstream.resolve(query, Transport::Tcp).await,
        Err(error) => server.upstream.fail(query, Transport::Tcp, &error),
    }
}

/// The first whole message of what was received. At most one message and a half are ever kept.
fn take_message(received: &mut Vec<u8>) -> Option<Vec<u8>> {
    let (&length, rest) = received.split_first_chunk::<2>()?;
    let len = usize::from(u16::from_be_bytes(length));
    let message = rest.get(..len)?.to_vec();
    received.drain(..2 + len);
    Some(message)
}

async fn write_message(
    write: &mut (impl AsyncWriteExt + Unpin),
    message: &[u8],
) -> std::io::Result<()> {
    let message = framed(message);
    let written = tokio::time::timeout(WRITE_TIMEOUT, write.write_all(&message)).await;
    written.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}
