//! Opening upstream connections: pick a host, bind, TCP connect, TLS. One place for both HTTP pools and
//! tcp_proxy.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrigger_config::cluster::TcpKeepalive;
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::error::Flag;
use crate::io::socket::set_transparent;
use crate::io::stream::{Rewound, Stream};
use crate::stream_info::{ConnectionInfo, TlsInfo, UpstreamInfo};
use crate::tls::context::HandshakeOptions;
use crate::upstream::cluster::Cluster;
use crate::upstream::host::{Host, HostAddress};
use crate::upstream::load_balancer::{self, Choice};
use crate::upstream::outlier::Outcome;
use crate::worker::Worker;

/// Why no upstream connection could be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The cluster has no usable host.
    #[error("no healthy upstream")]
    NoHealthyUpstream,
    /// A circuit breaker is open.
    #[error("overflow")]
    Overflow,
    /// TCP or TLS failed; the text is the transport failure reason, e.g. `delayed_connect_error: Connection refused`.
    #[error("{0}")]
    Failed(String),
    /// The cluster's connect timeout passed.
    #[error("connection timeout")]
    Timeout,
}

impl ConnectError {
    /// The response flag of Envoy.
    #[must_use]
    pub const fn flag(&self) -> Flag {
        match self {
            Self::NoHealthyUpstream => Flag::NoHealthyUpstream,
            Self::Overflow => Flag::UpstreamOverflow,
            Self::Failed(_) | Self::Timeout => Flag::UpstreamConnectionFailure,
        }
    }
}

/// Counts one open connection of a cluster and host for as long as it lives.
#[derive(Debug)]
pub struct ConnectionGuard {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    opened: Instant,
}

impl ConnectionGuard {
    /// Counts a connection about to be opened.
    #[must_use]
    pub fn new(cluster: &Arc<Cluster>, host: &Arc<Host>) -> Self {
        cluster.usage.connections.fetch_add(1, Ordering::Relaxed);
        host.stats.cx_active.fetch_add(1, Ordering::Relaxed);
        host.stats.cx_total.fetch_add(1, Ordering::Relaxed);
        let stats = cluster.stats();
        stats.cx_total.inc();
        stats.cx_active.add(1);
        Self {
            cluster: Arc::clone(cluster),
            host: Arc::clone(host),
            opened: Instant::now(),
        }
    }
}

impl ConnectionGuard {
    /// The cluster the connection belongs to.
    #[must_use]
    pub const fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.cluster
            .usage
            .connections
            .fetch_sub(1, Ordering::Relaxed);
        self.host.stats.cx_active.fetch_sub(1, Ordering::Relaxed);
        let stats = self.cluster.stats();
        stats.cx_active.add(-1);
        stats.cx_destroy.inc();
        stats
            .cx_length_ms
            .record(self.opened.elapsed().as_millis() as u64);
    }
}

/// What a new connection depends on beyond cluster and host.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnectOptions<'a> {
    /// TLS overrides.
    pub tls: HandshakeOptions<'a>,
    /// Bind to the downstream's address with this mark (original_src).
    pub original_src: Option<(SocketAddr, u32)>,
}

/// An open connection.
#[derive(Debug)]
pub struct Opened {
    /// Past TLS where the host asks for it.
    pub stream: Stream,
    /// Local address of the socket, `None` for pipes.
    pub local: Option<SocketAddr>,
    /// TLS facts.
    pub tls: Option<Arc<TlsInfo>>,
}

/// Opens one connection to `host` within the cluster's connect timeout (TCP and TLS together).
///
/// # Errors
/// [`ConnectError::Failed`] with the transport failure reason, or [`ConnectError::Timeout`].
pub async fn open(
    worker: &Worker,
    cluster: &Cluster,
    host: &Host,
    options: ConnectOptions<'_>,
) -> Result<Opened, ConnectError> {
    let start = Instant::now();
    let attempt = open_now(worker, cluster, host, options);
    let result = match tokio::time::timeout(cluster.config.connect_timeout, attempt).await {
        Ok(Ok(opened)) => {
            cluster
                .stats()
                .cx_connect_ms
                .record(start.elapsed().as_millis() as u64);
            return Ok(opened);
        }
        Ok(Err(reason)) => ConnectError::Failed(reason),
        Err(_) => {
            cluster.stats().cx_connect_timeout.inc();
            ConnectError::Timeout
        }
    };
    host.stats.cx_connect_fail.fetch_add(1, Ordering::Relaxed);
    cluster.stats().cx_connect_fail.inc();
    Err(result)
}

async fn open_now(
    worker: &Worker,
    cluster: &Cluster,
    host: &Host,
    options: ConnectOptions<'_>,
) -> Result<Opened, String> {
    let tls = cluster
        .sockets
        .get(host.transport_socket)
        .and_then(|s| s.tls(&worker.store))
        .transpose()
        .map_err(|e| e.reason.clone())?;
    let address = match &host.address {
        HostAddress::Tcp(address) => *address,
        HostAddress::Pipe(path) => {
            let stream = UnixStream::connect(&**path)
                .await
                .map_err(|e| connect_reason(&e))?;
            return Ok(Opened {
                stream: Stream::Unix(stream),
                local: None,
                tls: None,
            });
        }
    };
    let socket = connect_socket(cluster, address, options.original_src).await?;
    let local = socket.local_addr().ok();
    match tls {
        None => {
            let stream = Stream::Plain(Rewound::new(Bytes::new(), socket));
            Ok(Opened {
                stream,
                local,
                tls: None,
            })
        }
        Some(context) => {
            let (stream, info) = context
                .connect(socket, options.tls)
                .await
                .map_err(|e| e.reason)?;
            Ok(Opened {
                stream: Stream::ClientTls(stream),
                local,
                tls: Some(info),
            })
        }
    }
}

async fn connect_socket(
    cluster: &Cluster,
    address: SocketAddr,
    original_src: Option<(SocketAddr, u32)>,
) -> Result<TcpStream, String> {
    let text = |e: io::Error| connect_reason(&e);
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
    .map_err(text)?;
    // The endpoint's own family only: a v6 source cannot reach a v4 host.
    let bind = match original_src {
        Some((source, mark)) => {
            set_transparent(&socket, address)
                .and_then(|()| socket2::SockRef::from(&socket).set_mark(mark))
                .map_err(text)?;
            Some(SocketAddr::new(source.ip(), 0))
        }
        None => cluster
            .config
            .source_addresses
            .iter()
            .find(|s| s.is_ipv4() == address.is_ipv4())
            .copied(),
    };
    if let Some(source) = bind
        && let Err(e) = socket.bind(source)
    {
        cluster.stats().bind_errors.inc();
        return Err(connect_reason(&e));
    }
    let stream = socket.connect(address).await.map_err(text)?;
    stream.set_nodelay(true).map_err(text)?;
    if let Some(k) = cluster.config.tcp_keepalive {
        set_keepalive(&stream, k).map_err(text)?;
    }
    Ok(stream)
}

fn set_keepalive(stream: &TcpStream, k: TcpKeepalive) -> io::Result<()> {
    let seconds = |s: u32| Duration::from_secs(u64::from(s));
    let mut keepalive = socket2::TcpKeepalive::new();
    if let Some(time) = k.time {
        keepalive = keepalive.with_time(seconds(time));
    }
    if let Some(interval) = k.interval {
        keepalive = keepalive.with_interval(seconds(interval));
    }
    if let Some(probes) = k.probes {
        keepalive = keepalive.with_retries(probes);
    }
    let reference = socket2::SockRef::from(stream);
    reference.set_keepalive(true)?;
    reference.set_tcp_keepalive(&keepalive)
}

/// Envoy's reason for a failed connect.
fn connect_reason(e: &io::Error) -> String {
    let text = e.raw_os_error().map_or_else(
        || e.to_string(),
        |n| nix::errno::Errno::from_raw(n).desc().to_owned(),
    );
    format!("delayed_connect_error: {text}")
}

/// A connection for tcp_proxy. Dropping it gives its place in the circuit breaker back.
#[derive(Debug)]
pub struct TcpUpstream {
    /// Past TLS where the host asks for it.
    pub stream: Stream,
    /// The host.
    pub host: Arc<Host>,
    /// Counts the connection.
    pub guard: ConnectionGuard,
}

/// The host a request or connection goes to.
///
/// # Errors
/// [`ConnectError::NoHealthyUpstream`].
pub fn choose_host(
    worker: &Worker,
    cluster: &Cluster,
    connection: &ConnectionInfo,
    choice: &Choice<'_>,
) -> Result<Arc<Host>, ConnectError> {
    if cluster.is_original_dst() {
        // A plain listener has no original destination to go to.
        if !connection.local_restored {
            cluster.stats().original_dst_host_invalid.inc();
            return Err(ConnectError::NoHealthyUpstream);
        }
        return Ok(cluster.original_dst_host(connection.local));
    }
    load_balancer::choose(cluster, choice, || worker.random()).ok_or_else(|| {
        cluster.stats().cx_none_healthy.inc();
        ConnectError::NoHealthyUpstream
    })
}

/// One connect attempt for tcp_proxy. Fills `info` (host, local address, TLS, transport failure) also when it fails.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_tcp(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    connection: &ConnectionInfo,
    hash: Option<u64>,
    info: &mut UpstreamInfo,
) -> Result<TcpUpstream, ConnectError> {
    let host = choose_host(
        worker,
        cluster,
        connection,
        &Choice {
            hash,
            ..Choice::default()
        },
    )?;
    info.host = Some(Arc::clone(&host));
    if !cluster.connections_available() {
        cluster.stats().cx_overflow.inc();
        return Err(ConnectError::Overflow);
    }
    let guard = ConnectionGuard::new(cluster, &host);
    let options = ConnectOptions {
        tls: HandshakeOptions::default(),
        original_src: connection
            .original_src_mark
            .map(|mark| (connection.remote, mark)),
    };
    info.attempts += 1;
    let result = open(worker, cluster, &host, options).await;
    record(worker, cluster, &host, result.is_ok());
    match result {
        Ok(opened) => {
            info.local = opened.local;
            info.tls = opened.tls;
            Ok(TcpUpstream {
                stream: opened.stream,
                host,
                guard,
            })
        }
        Err(error) => {
            if let ConnectError::Failed(reason) = &error {
                info.transport_failure = Some(reason.clone());
            }
            Err(error)
        }
    }
}

/// Tells outlier detection of a connect result: a TCP connection that opened is a success.
fn record(worker: &Worker, cluster: &Cluster, host: &Host, connected: bool) {
    if let Some(outlier) = &cluster.outlier {
        let outcome = if connected {
            Outcome::Response(200)
        } else {
            Outcome::LocalFailure
        };
        outlier.record(&cluster.hosts.load(), host, outcome, worker.random());
    }
}
