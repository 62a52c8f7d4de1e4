//! Upstream HTTP connections of one worker: idle HTTP/1 connections taken last-in first-out, HTTP/2 connections
//! shared up to their stream limit. Created on first use; nothing is kept for unused hosts.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;

use crate::control::store::Store;
use crate::http::h1::io::H1Io;
use crate::stream_info::{Protocol, TlsInfo};
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::{ConnectError, ConnectOptions, ConnectionGuard, Opened, open};
use crate::upstream::host::Host;
use crate::worker::Worker;

/// How often idle connections are looked over while there are any.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Connections may be shared by requests that agree in this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    /// Address of the cluster object: a changed cluster never shares connections with its predecessor, whose
    /// TLS checks may have been others.
    cluster: usize,
    /// Address of the host object, which every entry keeps alive.
    host: usize,
    /// Hash of SNI, ALPN and source overrides.
    variant: u64,
    http2: bool,
}

/// Hashes a [`Key`]: addresses of our own objects and a hash. Nobody outside chooses them, so one multiplication
/// per part spreads them well enough.
#[derive(Debug, Default)]
struct KeyHasher(u64);

impl KeyHasher {
    fn add(&mut self, part: u64) {
        // The odd constant is 2^64 divided by the golden ratio.
        self.0 = (self.0.rotate_left(5) ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        // The table takes its index from the low bits; the multiplication mixes the high ones best.
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.add(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, part: u8) {
        self.add(u64::from(part));
    }

    fn write_u64(&mut self, part: u64) {
        self.add(part);
    }

    fn write_usize(&mut self, part: usize) {
        self.add(part as u64);
    }
}

/// What is kept by [`Key`].
type ByKey<T> = HashMap<Key, T, BuildHasherDefault<KeyHasher>>;

/// An HTTP/1 connection, owned by one request at a time.
#[derive(Debug)]
pub struct H1Connection {
    /// Buffered stream.
    pub io: H1Io,
    /// Local address.
    pub local: Option<SocketAddr>,
    /// TLS facts.
    pub tls: Option<Arc<TlsInfo>>,
    /// Served a request before.
    pub reused: bool,
    host: Arc<Host>,
    key: Key,
    requests: u32,
    opened: Instant,
    idle_since: Instant,
    guard: ConnectionGuard,
}

/// An HTTP/2 connection shared by requests of this worker.
#[derive(Debug)]
pub struct H2Connection {
    send: RefCell<SendRequest<Bytes>>,
    /// Local address.
    pub local: Option<SocketAddr>,
    /// TLS facts.
    pub tls: Option<Arc<TlsInfo>>,
    host: Arc<Host>,
    active: Cell<u32>,
    requests: Cell<u32>,
    opened: Instant,
    idle_since: Cell<Instant>,
    /// No new streams: GOAWAY, closed, or too many requests.
    retired: Cell<bool>,
    guard: ConnectionGuard,
}

/// A stream's place on an HTTP/2 connection; gives it back when dropped.
#[derive(Debug)]
pub struct H2Lease {
    /// The connection.
    pub connection: Rc<H2Connection>,
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        let c = &self.connection;
        c.active.set(c.active.get() - 1);
        c.idle_since.set(Instant::now());
    }
}

impl H2Connection {
    /// A handle to send one request with.
    #[must_use]
    pub fn sender(&self) -> SendRequest<Bytes> {
        self.send.borrow().clone()
    }

    /// No further streams on this connection.
    pub fn retire(&self) {
        self.retired.set(true);
    }

    fn has_room(&self, limit: u32) -> bool {
        let peer = u32::try_from(self.send.borrow().current_max_send_streams()).unwrap_or(u32::MAX);
        !self.retired.get() && self.active.get() < limit.min(peer)
    }
}

/// A connection for one request.
#[derive(Debug)]
pub enum Acquired {
    /// HTTP/1.
    H1(Box<H1Connection>),
    /// HTTP/2.
    H2(H2Lease),
}

impl Acquired {
    /// Local address of the socket.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::H1(c) => c.local,
            Self::H2(l) => l.connection.local,
        }
    }

    /// TLS facts of the connection.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<TlsInfo>> {
        match self {
            Self::H1(c) => c.tls.clone(),
            Self::H2(l) => l.connection.tls.clone(),
        }
    }

    /// Protocol.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        match self {
            Self::H1(_) => Protocol::Http11,
            Self::H2(_) => Protocol::Http2,
        }
    }
}

/// Which protocol a request must be sent with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Whatever the TLS handshake agrees on; HTTP/1.1 without TLS.
    Auto,
}

/// Pools of one worker.
#[derive(Debug, Default)]
pub struct Pools {
    #[allow(
        clippy::vec_box,
        reason = "a connection moves between pool and exchange once per request"
    )]
    idle: ByKey<Vec<Box<H1Connection>>>,
    shared: ByKey<Vec<Rc<H2Connection>>>,
    /// Woken when a connection of any host comes back: requests held by a circuit breaker try again.
    returned: Rc<Notify>,
    sweeping: bool,
}

fn variant(options: &ConnectOptions<'_>) -> u64 {
    let tls = &options.tls;
    if tls.server_name.is_none()
        && tls.alpn.is_none()
        && tls.verify_dns_name.is_none()
        && options.original_src.is_none()
    {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    (tls.server_name, tls.alpn, tls.verify_dns_name).hash(&mut hasher);
    options
        .original_src
        .map(|(a, m)| (a.ip(), m))
        .hash(&mut hasher);
    hasher.finish()
}

/// A pending request counted for the circuit breaker.
struct Pending<'a>(&'a Cluster);

impl<'a> Pending<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        cluster.usage.pending.fetch_add(1, Ordering::Relaxed);
        cluster.stats().rq_pending_active.add(1);
        cluster.stats().rq_pending_total.inc();
        Self(cluster)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.usage.pending.fetch_sub(1, Ordering::Relaxed);
        self.0.stats().rq_pending_active.add(-1);
    }
}

/// A connection to `host` for one request: pooled, or newly opened.
///
/// # Errors
/// [`ConnectError::Overflow`] when a circuit breaker is open, else why connecting failed.
pub async fn acquire(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    options: ConnectOptions<'_>,
    wanted: Wanted,
) -> Result<Acquired, ConnectError> {
    let mut key = Key {
        cluster: Arc::as_ptr(cluster) as usize,
        host: Arc::as_ptr(host) as usize,
        variant: variant(&options),
        http2: wanted == Wanted::Http2,
    };
    if let Some(found) = find(worker, cluster, key, wanted) {
        return Ok(found);
    }
    let breakers = &cluster.config.circuit_breakers;
    if cluster.usage.pending.load(Ordering::Relaxed) >= u64::from(breakers.max_pending_requests) {
        cluster.stats().rq_pending_overflow.inc();
        return Err(ConnectError::Overflow);
    }
    let _pending = Pending::new(cluster);
    // One connection per host is always allowed, as Envoy keeps it.
    while !cluster.connections_available() && host.stats.cx_active.load(Ordering::Relaxed) > 0 {
        cluster.stats().cx_overflow.inc();
        let returned = Rc::clone(&worker.pools.borrow().returned);
        returned.notified().await;
        if let Some(found) = find(worker, cluster, key, wanted) {
            return Ok(found);
        }
    }
    let guard = ConnectionGuard::new(cluster, host);
    let opened = match open(worker, cluster, host, options).await {
        Ok(opened) => opened,
        Err(error) => {
            drop(guard);
            worker.pools.borrow().returned.notify_waiters();
            return Err(error);
        }
    };
    if wanted == Wanted::Auto {
        key.http2 = opened
            .tls
            .as_ref()
            .is_some_and(|t| t.alpn.as_deref() == Some(b"h2"));
    }
    if key.http2 {
        return new_http2(worker, cluster, host, opened, key, guard).await;
    }
    cluster.stats().cx_http1_total.inc();
    let now = Instant::now();
    Ok(Acquired::H1(Box::new(H1Connection {
        io: H1Io::new(opened.stream, BytesMut::new()),
        local: opened.local,
        tls: opened.tls,
        reused: false,
        host: Arc::clone(host),
        key,
        requests: 0,
        opened: now,
        idle_since: now,
        guard,
    })))
}

fn find(worker: &Worker, cluster: &Cluster, key: Key, wanted: Wanted) -> Option<Acquired> {
    if wanted == Wanted::Auto {
        let found = pooled(worker, cluster, Key { http2: true, ..key });
        return found.or_else(|| {
            pooled(
                worker,
                cluster,
                Key {
                    http2: false,
                    ..key
                },
            )
        });
    }
    pooled(worker, cluster, key)
}

fn pooled(worker: &Worker, cluster: &Cluster, key: Key) -> Option<Acquired> {
    let mut pools = worker.pools.borrow_mut();
    if key.http2 {
        let limit = cluster.config.http2.max_concurrent_streams;
        let list = pools.shared.get_mut(&key)?;
        list.retain(|c| !c.retired.get());
        let found = list
            .iter()
            .find(|c| c.has_room(limit) && c.fresh(cluster))?;
        found.active.set(found.active.get() + 1);
        let served = found.requests.get() + 1;
        found.requests.set(served);
        let limit = cluster.config.max_requests_per_connection;
        if limit > 0 && served >= limit {
            cluster.stats().cx_max_requests.inc();
            found.retire();
        }
        return Some(Acquired::H2(H2Lease {
            connection: Rc::clone(found),
        }));
    }
    let list = pools.idle.get_mut(&key)?;
    while let Some(mut connection) = list.pop() {
        if connection.is_usable(cluster) {
            connection.reused = true;
            return Some(Acquired::H1(connection));
        }
    }
    None
}

impl H1Connection {
    /// Alive, not idle for too long, not too old. Asks the kernel only when the reactor saw something.
    fn is_usable(&self, cluster: &Cluster) -> bool {
        let config = &cluster.config;
        let idle = config
            .idle_timeout
            .is_some_and(|t| self.idle_since.elapsed() >= t);
        if idle {
            cluster.stats().cx_idle_timeout.inc();
        }
        let old = config
            .max_connection_duration
            .is_some_and(|t| self.opened.elapsed() >= t);
        !idle && !old && self.io.with_stream(is_quiet)
    }
}

impl H2Connection {
    fn fresh(&self, cluster: &Cluster) -> bool {
        let old = cluster
            .config
            .max_connection_duration
            .is_some_and(|t| self.opened.elapsed() >= t);
        if old {
            self.retire();
        }
        !old
    }
}

/// Whether nothing arrived on an idle connection. A FIN, a reset or stray bytes make it unusable.
fn is_quiet(stream: &mut crate::io::stream::Stream) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    if let Some(tcp) = stream.tcp()
        && tcp.poll_read_ready(&mut cx).is_pending()
    {
        return true;
    }
    let mut byte = [0_u8; 1];
    let mut buf = ReadBuf::new(&mut byte);
    // TLS session tickets are consumed here without data; anything else ends the connection.
    matches!(Pin::new(stream).poll_read(&mut cx, &mut buf), Poll::Pending)
}

async fn new_http2(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    opened: Opened,
    key: Key,
    guard: ConnectionGuard,
) -> Result<Acquired, ConnectError> {
    let o = &cluster.config.http2;
    let handshake = h2::client::Builder::new()
        .initial_window_size(o.initial_stream_window_size)
        .initial_connection_window_size(o.initial_connection_window_size)
        .header_table_size(o.hpack_table_size)
        .max_concurrent_reset_streams(256)
        .enable_push(false)
        .handshake::<_, Bytes>(opened.stream);
    let (send, connection) =
        match tokio::time::timeout(cluster.config.connect_timeout, handshake).await {
            Ok(Ok(pair)) => pair,
            Ok(Err(e)) => return Err(ConnectError::Failed(format!("http2 error: {e}"))),
            Err(_) => return Err(ConnectError::Timeout),
        };
    cluster.stats().cx_http2_total.inc();
    let now = Instant::now();
    let shared = Rc::new(H2Connection {
        send: RefCell::new(send),
        local: opened.local,
        tls: opened.tls,
        host: Arc::clone(host),
        active: Cell::new(1),
        requests: Cell::new(1),
        opened: now,
        idle_since: Cell::new(now),
        retired: Cell::new(cluster.config.max_requests_per_connection == 1),
        guard,
    });
    let weak = Rc::downgrade(&shared);
    Worker::spawn(async move {
        // Ends with the connection; requests on it see the error themselves.
        if let Err(error) = connection.await {
            tracing::debug!(target: "http2", %error, "upstream connection ended");
        }
        if let Some(shared) = weak.upgrade() {
            shared.retire();
        }
    });
    let mut pools = worker.pools.borrow_mut();
    pools
        .shared
        .entry(key)
        .or_default()
        .push(Rc::clone(&shared));
    pools.start_sweeping(worker);
    Ok(Acquired::H2(H2Lease { connection: shared }))
}

/// Gives an HTTP/1 connection back after a complete exchange.
pub fn release(worker: &Rc<Worker>, cluster: &Cluster, mut connection: Box<H1Connection>) {
    connection.requests += 1;
    let limit = cluster.config.max_requests_per_connection;
    let worn = limit > 0 && connection.requests >= limit;
    if worn {
        cluster.stats().cx_max_requests.inc();
    }
    let mut pools = worker.pools.borrow_mut();
    if !worn && connection.io.with_input(|i| i.is_empty()) {
        connection.idle_since = Instant::now();
        pools
            .idle
            .entry(connection.key)
            .or_default()
            .push(connection);
        pools.start_sweeping(worker);
    }
    pools.returned.notify_waiters();
}

impl Pools {
    /// Tells requests held by a circuit breaker that a connection is gone.
    pub fn notify_returned(&self) {
        self.returned.notify_waiters();
    }

    fn start_sweeping(&mut self, worker: &Rc<Worker>) {
        if self.sweeping {
            return;
        }
        self.sweeping = true;
        let weak = Rc::downgrade(worker);
        Worker::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_INTERVAL).await;
                let Some(worker) = weak.upgrade() else { return };
                if !worker.pools.borrow_mut().sweep(&worker.store) {
                    return;
                }
            }
        });
    }

    /// Closes what is dead, idle for too long, or whose host left its cluster; false when nothing is left.
    fn sweep(&mut self, store: &Store) -> bool {
        let current = |cluster: &Arc<Cluster>| {
            let slot = store.clusters.lookup(cluster.name()).and_then(|s| s.load());
            slot.is_some_and(|c| Arc::ptr_eq(&c, cluster))
        };
        self.idle.retain(|_, list| {
            list.retain_mut(|c| {
                let cluster = c.cluster();
                c.io.shrink();
                current(&cluster) && cluster.knows(&c.host) && c.is_usable(&cluster)
            });
            !list.is_empty()
        });
        self.shared.retain(|_, list| {
            list.retain(|c| {
                let cluster = c.guard.cluster();
                let idle = c.active.get() == 0
                    && cluster
                        .config
                        .idle_timeout
                        .is_some_and(|t| c.idle_since.get().elapsed() >= t);
                !c.retired.get() && !idle && current(cluster) && cluster.knows(&c.host)
            });
            !list.is_empty()
        });
        self.sweeping = !self.idle.is_empty() || !self.shared.is_empty();
        self.sweeping
    }

    /// Connections kept by this worker: for tests and admin.
    #[must_use]
    pub fn len(&self) -> usize {
        self.idle.values().map(Vec::len).sum::<usize>()
            + self.shared.values().map(Vec::len).sum::<usize>()
    }

    /// No connection is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl H1Connection {
    fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(self.guard.cluster())
    }
}
