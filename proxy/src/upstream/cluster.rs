//! Runtime cluster, shared by all workers: hosts, transport sockets, limits, stats handles.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use outrigger_config::address::Address;
use outrigger_config::cluster::{
    Cluster as Config, Discovery, Endpoint, LoadAssignment, Locality, TransportSocket,
};
use parking_lot::Mutex;

use crate::control::store::Store;
use crate::tls::context::{TlsFailure, UpstreamContext};
use crate::upstream::host::{Host, HostAddress};
use crate::upstream::load_balancer::HostSet;
use crate::upstream::outlier::OutlierDetector;
use crate::upstream::stats::ClusterStats;

/// What circuit breakers count, over all workers.
#[derive(Debug, Default)]
pub struct Usage {
    /// Open connections.
    pub connections: AtomicU64,
    /// Requests waiting for a connection.
    pub pending: AtomicU64,
    /// Requests under way.
    pub requests: AtomicU64,
    /// Retries under way.
    pub retries: AtomicU64,
}

/// One transport socket of a cluster, its TLS context compiled on first use.
#[derive(Debug)]
pub struct Socket {
    /// Name of the transport socket match, empty for the default one.
    pub name: Arc<str>,
    config: TransportSocket,
    context: OnceLock<Result<Arc<UpstreamContext>, TlsFailure>>,
}

impl Socket {
    fn new(name: Arc<str>, config: TransportSocket) -> Self {
        Self {
            name,
            config,
            context: OnceLock::new(),
        }
    }

    /// TLS without an SNI of its own: `auto_sni` applies.
    #[must_use]
    pub fn wants_sni(&self) -> bool {
        matches!(&self.config, TransportSocket::Tls(tls) if tls.sni.is_none())
    }

    /// The TLS context, `None` for a raw buffer.
    ///
    /// # Errors
    /// When the context's own certificates do not load: the connection must fail, never go out in plaintext.
    pub fn tls(&self, store: &Store) -> Option<Result<&Arc<UpstreamContext>, &TlsFailure>> {
        match &self.config {
            TransportSocket::RawBuffer => None,
            TransportSocket::Tls(tls) => Some(
                self.context
                    .get_or_init(|| UpstreamContext::build(tls, store))
                    .as_ref(),
            ),
        }
    }
}

/// A cluster as workers see it.
#[derive(Debug)]
pub struct Cluster {
    /// The validated configuration.
    pub config: Arc<Config>,
    /// Endpoints, replaced as a whole by EDS or DNS; hosts that stay keep their object.
    pub hosts: ArcSwap<HostSet>,
    /// Came from xDS rather than the bootstrap.
    pub added_via_api: bool,
    /// Circuit breaker usage.
    pub usage: Usage,
    /// Outlier detection, when configured.
    pub outlier: Option<OutlierDetector>,
    /// Position of round robin, shared by workers.
    pub rotation: AtomicUsize,
    /// Transport socket matches in order, then the default one.
    pub sockets: Vec<Socket>,
    original_dst: Mutex<OriginalDstHosts>,
    stats: OnceLock<ClusterStats>,
    store_stats: Arc<crate::stats::Stats>,
}

#[derive(Debug, Default)]
struct OriginalDstHosts {
    hosts: HashMap<SocketAddr, (Arc<Host>, Instant)>,
    cleaned: Option<Instant>,
}

impl Cluster {
    /// Compiles a cluster. STATIC endpoints are there at once; `previous` lets unchanged hosts keep their
    /// counters, health and pooled connections across an update of the cluster itself.
    #[must_use]
    pub fn build(
        config: Arc<Config>,
        added_via_api: bool,
        store: &Arc<Store>,
        previous: Option<&Self>,
    ) -> Arc<Self> {
        let mut sockets: Vec<_> = config
            .transport_socket_matches
            .iter()
            .map(|m| Socket::new(Arc::clone(&m.name), m.socket.clone()))
            .collect();
        sockets.push(Socket::new("".into(), config.transport_socket.clone()));
        let cluster = Arc::new(Self {
            outlier: config.outlier_detection.clone().map(OutlierDetector::new),
            hosts: ArcSwap::from_pointee(HostSet::default()),
            added_via_api,
            usage: Usage::default(),
            rotation: AtomicUsize::new(0),
            sockets,
            original_dst: Mutex::default(),
            stats: OnceLock::new(),
            store_stats: Arc::clone(&store.stats),
            config,
        });
        if let Some(previous) = previous.filter(|p| p.same_sockets(&cluster)) {
            cluster.hosts.store(previous.hosts.load_full());
        }
        if let Discovery::Static(assignment) = &cluster.config.discovery {
            cluster.update_hosts(assignment);
        }
        cluster
    }

    /// Hosts remember the index of their socket: they can move to the new cluster only if those agree.
    fn same_sockets(&self, other: &Self) -> bool {
        let criteria = |c: &Self| -> Vec<_> {
            c.config
                .transport_socket_matches
                .iter()
                .map(|m| m.criteria.clone())
                .collect()
        };
        criteria(self) == criteria(other)
    }

    /// Cluster name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// Stats handles, resolved on first use (deferred creation, as Istio's bootstrap asks).
    pub fn stats(&self) -> &ClusterStats {
        self.stats
            .get_or_init(|| ClusterStats::new(&self.store_stats, &self.config.observability_name))
    }

    /// Whether requests go to the connection's original destination.
    #[must_use]
    pub fn is_original_dst(&self) -> bool {
        matches!(self.config.discovery, Discovery::OriginalDst { .. })
    }

    /// The transport socket of an endpoint: first match whose criteria all equal the endpoint's metadata.
    fn socket_index(&self, metadata: &[(Arc<str>, Arc<str>)]) -> usize {
        self.config
            .transport_socket_matches
            .iter()
            .position(|m| m.criteria.iter().all(|c| metadata.contains(c)))
            .unwrap_or(self.config.transport_socket_matches.len())
    }

    /// Replaces the endpoints (EDS, DNS). Hosts with the same address, metadata, locality and priority keep
    /// their object; a host in two priorities keeps the first.
    pub fn update_hosts(&self, assignment: &LoadAssignment) {
        let old = self.hosts.load();
        let mut known: HashMap<&HostAddress, &Arc<Host>> =
            old.all.iter().map(|h| (&h.address, h)).collect();
        let mut seen = std::collections::HashSet::new();
        let mut hosts = Vec::new();
        for locality in &assignment.localities {
            for endpoint in &locality.endpoints {
                let address = match &endpoint.address {
                    Address::Ip(a) => HostAddress::Tcp(*a),
                    Address::Pipe(p) => HostAddress::Pipe(Arc::clone(p)),
                    // Resolved by the DNS part of control before it gets here.
                    Address::Dns { .. } => continue,
                };
                if !seen.insert(address.clone()) {
                    continue;
                }
                let same = known.remove(&address).filter(|h| {
                    h.transport_socket_match == endpoint.transport_socket_match
                        && h.locality == locality.locality
                        && h.priority == locality.priority
                        && h.hostname == endpoint.hostname
                });
                match same {
                    Some(host) => {
                        host.update(endpoint);
                        hosts.push(Arc::clone(host));
                    }
                    None => hosts.push(Arc::new(Host::new(
                        address,
                        endpoint,
                        &locality.locality,
                        locality.priority,
                        self.socket_index(&endpoint.transport_socket_match),
                    ))),
                }
            }
        }
        let weights = assignment
            .localities
            .iter()
            .map(|l| (l.locality.clone(), l.priority, l.weight.unwrap_or(0)))
            .collect();
        self.hosts.store(Arc::new(HostSet::new(
            hosts,
            weights,
            assignment.overprovisioning_factor,
        )));
    }

    /// The host of an original destination, created on first use and dropped when unused for the cluster's
    /// cleanup interval.
    pub fn original_dst_host(&self, destination: SocketAddr) -> Arc<Host> {
        let Discovery::OriginalDst {
            cleanup_interval,
            upstream_port_override,
            ..
        } = &self.config.discovery
        else {
            return self.new_original_dst_host(destination);
        };
        let mut address = destination;
        if let Some(port) = upstream_port_override {
            address.set_port(*port);
        }
        let now = Instant::now();
        let mut table = self.original_dst.lock();
        table.clean(now, *cleanup_interval);
        let entry = table
            .hosts
            .entry(address)
            .or_insert_with(|| (self.new_original_dst_host(address), now));
        entry.1 = now;
        Arc::clone(&entry.0)
    }

    fn new_original_dst_host(&self, address: SocketAddr) -> Arc<Host> {
        let endpoint = Endpoint {
            address: Address::Ip(address),
            additional_addresses: Vec::new(),
            hostname: "".into(),
            weight: 1,
            health: outrigger_config::cluster::HealthStatus::Healthy,
            transport_socket_match: Vec::new(),
            istio_workload: None,
        };
        Arc::new(Host::new(
            HostAddress::Tcp(address),
            &endpoint,
            &Locality::default(),
            0,
            self.socket_index(&[]),
        ))
    }

    /// Every host, ORIGINAL_DST ones included, for admin.
    #[must_use]
    pub fn all_hosts(&self) -> Vec<Arc<Host>> {
        let mut hosts = self.hosts.load().all.clone();
        let mut dynamic: Vec<_> = self
            .original_dst
            .lock()
            .hosts
            .values()
            .map(|(h, _)| Arc::clone(h))
            .collect();
        dynamic.sort_by(|a, b| a.address_text.cmp(&b.address_text));
        hosts.extend(dynamic);
        hosts
    }

    /// Whether the host still belongs to the cluster. ORIGINAL_DST hosts do as long as someone holds them.
    #[must_use]
    pub fn knows(&self, host: &Arc<Host>) -> bool {
        self.is_original_dst() || self.hosts.load().all.iter().any(|h| Arc::ptr_eq(h, host))
    }

    /// Requests under way over the configured maximum.
    #[must_use]
    pub fn requests_overflow(&self) -> bool {
        self.usage.requests.load(Ordering::Relaxed)
            >= u64::from(self.config.circuit_breakers.max_requests)
    }

    /// Whether another connection may be opened.
    #[must_use]
    pub fn connections_available(&self) -> bool {
        self.usage.connections.load(Ordering::Relaxed)
            < u64::from(self.config.circuit_breakers.max_connections)
    }

    /// Whether another retry may start (breaker, or budget when configured).
    #[must_use]
    pub fn retries_available(&self) -> bool {
        let retries = self.usage.retries.load(Ordering::Relaxed);
        match self.config.circuit_breakers.retry_budget {
            Some((percent, minimum)) => {
                let active = self.usage.requests.load(Ordering::Relaxed) as f64;
                retries < (active * percent / 100.0).max(f64::from(minimum)) as u64
            }
            None => retries < u64::from(self.config.circuit_breakers.max_retries),
        }
    }
}

impl OriginalDstHosts {
    fn clean(&mut self, now: Instant, interval: Duration) {
        let since = *self.cleaned.get_or_insert(now);
        // A pool or a request that still uses the host keeps it alive through its own reference.
        if now.duration_since(since) >= interval {
            self.hosts.retain(|_, (host, used)| {
                now.duration_since(*used) < interval || Arc::strong_count(host) > 1
            });
            self.cleaned = Some(now);
        }
    }
}
