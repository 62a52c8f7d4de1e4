//! What workers read of a listener: its chains with their contexts and terminal filters, its stats, the
//! sockets it is reached by. Built by the control thread, immutable afterwards except for atomics.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use outrigger_config::listener::{
    FilterChain, FilterChainTable, Listener, ListenerFilterKind, NetworkFilter, TerminalFilter,
};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::access_log::AccessLogs;
use crate::control::store::Store;
use crate::http::conn_manager::HttpConnectionManager;
use crate::listener::drain::DrainHandle;
use crate::stats::{Counter, Gauge, Histogram, Stats};
use crate::tcp_proxy::TcpProxy;
use crate::tls::context::{DownstreamContext, TlsFailure};
use crate::tls::stats::SslStats;
use crate::worker::CommandSender;

/// Why a listener is refused. The text is the NACK detail.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// An address cannot be bound.
    #[error("cannot bind '{address}': {cause}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        cause: std::io::Error,
    },
    /// An access log cannot be opened.
    #[error("unable to open access log file: {0}")]
    AccessLog(std::io::Error),
    /// The TLS context of a chain does not load.
    #[error("filter chain '{chain}': {cause}")]
    Tls {
        /// Chain name.
        chain: Arc<str>,
        /// Why.
        cause: TlsFailure,
    },
    /// The chains cannot be told apart, or the like.
    #[error("{0}")]
    Config(#[from] outrigger_config::error::ConfigError),
    /// A worker has ended; the process cannot serve.
    #[error("a worker is gone")]
    WorkerGone,
}

/// The filter that serves a connection.
#[derive(Debug)]
pub enum Terminal {
    /// A chain without filters: connections are closed.
    None,
    /// tcp_proxy.
    Tcp(Arc<TcpProxy>),
    /// HTTP connection manager.
    Http(Arc<HttpConnectionManager>),
}

/// A filter chain at run time. Survives updates that leave the chain alone, and so do its connections.
#[derive(Debug)]
pub struct ChainRuntime {
    /// The validated configuration.
    pub config: Arc<FilterChain>,
    /// TLS to terminate.
    pub tls: Option<Arc<DownstreamContext>>,
    /// Who serves.
    pub terminal: Terminal,
    /// Drains the chain's connections.
    pub drain: DrainHandle,
}

impl ChainRuntime {
    fn build(
        config: &Arc<FilterChain>,
        listener: &Listener,
        store: &Arc<Store>,
    ) -> Result<Arc<Self>, ListenerError> {
        let tls = config.transport_socket.as_ref().map(|tls| {
            DownstreamContext::build(tls, store).map_err(|cause| ListenerError::Tls {
                chain: Arc::clone(&config.name),
                cause,
            })
        });
        let sni_cluster = config
            .filters
            .iter()
            .any(|f| matches!(f, NetworkFilter::SniCluster));
        let terminal = match &config.terminal {
            None => Terminal::None,
            Some(TerminalFilter::TcpProxy(tcp)) => Terminal::Tcp(
                TcpProxy::build(Arc::clone(tcp), sni_cluster, store)
                    .map_err(ListenerError::AccessLog)?,
            ),
            Some(TerminalFilter::Http(http)) => Terminal::Http(
                HttpConnectionManager::build(Arc::clone(http), listener.traffic_direction, store)
                    .map_err(ListenerError::AccessLog)?,
            ),
        };
        Ok(Arc::new(Self {
            config: Arc::clone(config),
            tls: tls.transpose()?,
            terminal,
            drain: DrainHandle::default(),
        }))
    }
}

/// Cap on connections of the whole process (`global_downstream_max_connections`).
#[derive(Debug, Default)]
pub struct ConnectionLimit {
    max: Option<u64>,
    active: AtomicU64,
}

impl ConnectionLimit {
    /// At most `max` connections; `None` = no cap.
    #[must_use]
    pub fn new(max: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            max,
            active: AtomicU64::new(0),
        })
    }

    /// Takes a place if one is free. Give it back with [`Self::release`].
    #[must_use]
    pub fn acquire(&self) -> bool {
        let before = self.active.fetch_add(1, Ordering::AcqRel);
        let fits = self.max.is_none_or(|max| before < max);
        if !fits {
            self.release();
        }
        fits
    }

    /// Gives a place back.
    pub fn release(&self) {
        self.active.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Counters under `listener.<address>.`.
#[derive(Debug)]
pub struct ListenerStats {
    /// `downstream_cx_total`.
    pub cx_total: Counter,
    /// `downstream_cx_active`.
    pub cx_active: Gauge,
    /// `downstream_cx_destroy`.
    pub cx_destroy: Counter,
    /// `downstream_cx_length_ms`.
    pub cx_length_ms: Histogram,
    /// `downstream_global_cx_overflow`.
    pub global_cx_overflow: Counter,
    /// `downstream_cx_transport_socket_connect_timeout`.
    pub transport_socket_connect_timeout: Counter,
    /// `downstream_pre_cx_timeout`.
    pub pre_cx_timeout: Counter,
    /// `downstream_pre_cx_active`.
    pub pre_cx_active: Gauge,
    /// `downstream_listener_filter_remote_close`.
    pub filter_remote_close: Counter,
    /// `downstream_listener_filter_error`.
    pub filter_error: Counter,
    /// `no_filter_chain_match`.
    pub no_filter_chain_match: Counter,
    /// `server_ssl_socket_factory.downstream_context_secrets_not_ready`.
    pub secrets_not_ready: Counter,
    /// `worker_N.downstream_cx_total` and `.downstream_cx_active`.
    pub workers: Vec<(Counter, Gauge)>,
    /// `ssl.*`.
    pub ssl: SslStats,
}

impl ListenerStats {
    fn new(stats: &Arc<Stats>, prefix: &str, workers: usize) -> Arc<Self> {
        let counter = |name: &str| stats.counter(&format!("{prefix}.{name}"));
        let gauge = |name: &str| stats.gauge(&format!("{prefix}.{name}"));
        let worker = |i: usize| {
            let total = counter(&format!("worker_{i}.downstream_cx_total"));
            (total, gauge(&format!("worker_{i}.downstream_cx_active")))
        };
        Arc::new(Self {
            cx_total: counter("downstream_cx_total"),
            cx_active: gauge("downstream_cx_active"),
            cx_destroy: counter("downstream_cx_destroy"),
            cx_length_ms: stats.histogram(&format!("{prefix}.downstream_cx_length_ms")),
            global_cx_overflow: counter("downstream_global_cx_overflow"),
            transport_socket_connect_timeout: counter(
                "downstream_cx_transport_socket_connect_timeout",
            ),
            pre_cx_timeout: counter("downstream_pre_cx_timeout"),
            pre_cx_active: gauge("downstream_pre_cx_active"),
            filter_remote_close: counter("downstream_listener_filter_remote_close"),
            filter_error: counter("downstream_listener_filter_error"),
            no_filter_chain_match: counter("no_filter_chain_match"),
            secrets_not_ready: counter(
                "server_ssl_socket_factory.downstream_context_secrets_not_ready",
            ),
            workers: (0..workers).map(worker).collect(),
            ssl: SslStats::new(stats, prefix),
        })
    }
}

/// `listener.<address with _ for :>` or `listener.<stat_prefix>`.
fn stat_prefix(config: &Listener) -> String {
    match (&config.stat_prefix, config.addresses.first()) {
        (Some(prefix), _) if !prefix.is_empty() => format!("listener.{prefix}"),
        (_, Some(address)) => format!("listener.{}", address.to_string().replace(':', "_")),
        _ => format!("listener.{}", config.name),
    }
}

/// Counters of the inspectors; process-wide, as Envoy has them.
#[derive(Debug)]
pub struct InspectorStats {
    /// `tls_inspector.tls_found`.
    pub tls_found: Counter,
    /// `tls_inspector.tls_not_found`.
    pub tls_not_found: Counter,
    /// `tls_inspector.alpn_found`.
    pub alpn_found: Counter,
    /// `tls_inspector.alpn_not_found`.
    pub alpn_not_found: Counter,
    /// `tls_inspector.sni_found`.
    pub sni_found: Counter,
    /// `tls_inspector.sni_not_found`.
    pub sni_not_found: Counter,
    /// `tls_inspector.client_hello_too_large`.
    pub client_hello_too_large: Counter,
    /// `tls_inspector.bytes_processed`.
    pub bytes_processed: Histogram,
    /// `http_inspector.http10_found`.
    pub http10_found: Counter,
    /// `http_inspector.http11_found`.
    pub http11_found: Counter,
    /// `http_inspector.http2_found`.
    pub http2_found: Counter,
    /// `http_inspector.http_not_found`.
    pub http_not_found: Counter,
}

impl InspectorStats {
    fn new(stats: &Stats) -> Self {
        let tls = |name: &str| stats.counter(&format!("tls_inspector.{name}"));
        let http = |name: &str| stats.counter(&format!("http_inspector.{name}"));
        Self {
            tls_found: tls("tls_found"),
            tls_not_found: tls("tls_not_found"),
            alpn_found: tls("alpn_found"),
            alpn_not_found: tls("alpn_not_found"),
            sni_found: tls("sni_found"),
            sni_not_found: tls("sni_not_found"),
            client_hello_too_large: tls("client_hello_too_large"),
            bytes_processed: stats.histogram("tls_inspector.bytes_processed"),
            http10_found: http("http10_found"),
            http11_found: http("http11_found"),
            http2_found: http("http2_found"),
            http_not_found: http("http_not_found"),
        }
    }
}

/// What listeners of a process share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Stats, logs, clusters, secrets.
    pub store: Arc<Store>,
    /// Every listener by address.
    pub table: Arc<ListenerTable>,
    /// Process-wide cap.
    pub limit: Arc<ConnectionLimit>,
    /// Command channels of the workers, by index.
    pub workers: Arc<[CommandSender]>,
}

/// A listener as workers see it. In-place updates make a new one that shares what did not change.
#[derive(Debug)]
pub struct ListenerRuntime {
    /// The validated configuration.
    pub config: Arc<Listener>,
    /// Chain choice.
    pub chains: FilterChainTable,
    /// Chains by the address of their configuration.
    runtimes: HashMap<usize, Arc<ChainRuntime>>,
    /// Listener-level access logs.
    pub logs: AccessLogs,
    /// Counters.
    pub stats: Arc<ListenerStats>,
    /// Counters of the inspectors.
    pub inspectors: InspectorStats,
    /// Connections per worker, for exact balance.
    pub load: Arc<[AtomicU64]>,
    /// Some listener filter reads bytes.
    pub inspects: bool,
    /// What all listeners share.
    pub shared: Shared,
}

fn key(chain: &Arc<FilterChain>) -> usize {
    Arc::as_ptr(chain) as usize
}

impl ListenerRuntime {
    /// Builds a listener. `keep` gives the runtime of a chain that is equal to one before.
    ///
    /// # Errors
    /// See [`ListenerError`]; nothing has been bound or published then.
    pub fn build(
        config: Arc<Listener>,
        shared: &Shared,
        keep: &HashMap<usize, Arc<ChainRuntime>>,
        previous: Option<&Self>,
    ) -> Result<Arc<Self>, ListenerError> {
        let mut runtimes = HashMap::new();
        for chain in config
            .filter_chains
            .iter()
            .chain(&config.default_filter_chain)
        {
            let runtime = match keep.get(&key(chain)) {
                Some(kept) => Arc::clone(kept),
                None => ChainRuntime::build(chain, &config, &shared.store)?,
            };
            runtimes.insert(key(chain), runtime);
        }
        let logs = AccessLogs::build(&config.access_log, &shared.store.logs)
            .map_err(ListenerError::AccessLog)?;
        let workers = shared.workers.len();
        let prefix = stat_prefix(&config);
        Ok(Arc::new(Self {
            chains: FilterChainTable::build(&config)?,
            runtimes,
            logs,
            stats: ListenerStats::new(&shared.store.stats, &prefix, workers),
            inspectors: InspectorStats::new(&shared.store.stats),
            load: previous.map_or_else(
                || (0..workers).map(|_| AtomicU64::new(0)).collect(),
                |p| Arc::clone(&p.load),
            ),
            inspects: config.listener_filters.iter().any(|f| reads(&f.kind)),
            shared: shared.clone(),
            config,
        }))
    }

    /// The runtime of a chain of this listener.
    #[must_use]
    pub fn chain(&self, config: &Arc<FilterChain>) -> Option<&Arc<ChainRuntime>> {
        self.runtimes.get(&key(config))
    }

    /// The runtimes in no order.
    pub fn chain_runtimes(&self) -> impl Iterator<Item = &Arc<ChainRuntime>> {
        self.runtimes.values()
    }
}

const fn reads(kind: &ListenerFilterKind) -> bool {
    match kind {
        ListenerFilterKind::OriginalDst | ListenerFilterKind::OriginalSrc { .. } => false,
        ListenerFilterKind::TlsInspector
        | ListenerFilterKind::HttpInspector
        | ListenerFilterKind::ProxyProtocol { .. } => true,
    }
}

/// Listeners by address, for original-destination hand-off. A lock held for one map operation: connections
/// take it once, and only those of listeners that hand off.
#[derive(Debug, Default)]
pub struct ListenerTable {
    entries: RwLock<HashMap<SocketAddr, Arc<ListenerRuntime>>>,
}

impl ListenerTable {
    /// The listener for an original destination: the exact address, else the wildcard of the family.
    #[must_use]
    pub fn find(&self, destination: SocketAddr) -> Option<Arc<ListenerRuntime>> {
        let wildcard = if destination.is_ipv4() {
            SocketAddr::from(([0; 4], destination.port()))
        } else {
            SocketAddr::from(([0u16; 8], destination.port()))
        };
        let entries = self.entries.read();
        entries
            .get(&destination)
            .or_else(|| entries.get(&wildcard))
            .cloned()
    }

    /// Publishes a listener under its addresses.
    pub fn publish(&self, runtime: &Arc<ListenerRuntime>) {
        let mut entries = self.entries.write();
        for address in &runtime.config.addresses {
            entries.insert(*address, Arc::clone(runtime));
        }
    }

    /// Takes addresses away, unless another listener has taken them over since.
    pub fn withdraw(&self, addresses: &[SocketAddr], name: &str) {
        let mut entries = self.entries.write();
        for address in addresses {
            if entries
                .get(address)
                .is_some_and(|r| *r.config.name == *name)
            {
                entries.remove(address);
            }
        }
    }
}

/// A bound address: one socket per worker, which outlives updates of the listener behind it.
#[derive(Debug)]
pub struct Binding {
    /// Address with the port the system chose.
    pub address: SocketAddr,
    /// Current listener; swapped by updates.
    pub runtime: ArcSwap<ListenerRuntime>,
    stop: watch::Sender<bool>,
    stopped: AtomicBool,
}

impl Binding {
    /// A binding of `runtime`.
    #[must_use]
    pub fn new(address: SocketAddr, runtime: Arc<ListenerRuntime>) -> Arc<Self> {
        Arc::new(Self {
            address,
            runtime: ArcSwap::new(runtime),
            stop: watch::channel(false).0,
            stopped: AtomicBool::new(false),
        })
    }

    /// Closes the listening sockets. Returns whether they were open.
    pub fn stop(&self) -> bool {
        self.stop.send_replace(true);
        !self.stopped.swap(true, Ordering::AcqRel)
    }

    /// Becomes true when the sockets must be closed.
    #[must_use]
    pub fn stop_signal(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// The sockets were closed.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}
