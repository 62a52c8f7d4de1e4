//! One endpoint of a cluster: address, health, counters. Shared by all workers; health and counters are
//! atomics, never a republish.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use outrigger_config::cluster::{Endpoint, HealthStatus, Locality};

/// Where a host is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// Unix socket.
    Pipe(Arc<str>),
}

impl std::fmt::Display for HostAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(a) => a.fmt(f),
            Self::Pipe(p) => f.write_str(p),
        }
    }
}

/// Counters of a host, as `/clusters` prints them.
#[derive(Debug, Default)]
pub struct HostStats {
    /// Connections opened.
    pub cx_total: AtomicU64,
    /// Connections open now.
    pub cx_active: AtomicU64,
    /// Connections that failed to open.
    pub cx_connect_fail: AtomicU64,
    /// Requests sent.
    pub rq_total: AtomicU64,
    /// Requests under way.
    pub rq_active: AtomicU64,
    /// Requests answered without 5xx.
    pub rq_success: AtomicU64,
    /// Requests answered 5xx or reset.
    pub rq_error: AtomicU64,
    /// Requests that timed out.
    pub rq_timeout: AtomicU64,
}

/// Consecutive failures, as outlier detection counts them.
#[derive(Debug, Default)]
pub struct OutlierState {
    /// 5xx in a row (local failures included unless split).
    pub consecutive_5xx: AtomicU32,
    /// 502, 503, 504 in a row.
    pub consecutive_gateway: AtomicU32,
    /// Local origin failures in a row (split mode).
    pub consecutive_local: AtomicU32,
    /// Times ejected; shrinks by one per healthy interval.
    pub times_ejected: AtomicU32,
    /// Milliseconds since the detector's start at which the host was ejected; 0 = not ejected.
    pub ejected_at: AtomicU64,
}

/// One endpoint. The identity (address, metadata, locality, priority) never changes; weight and health do.
#[derive(Debug)]
pub struct Host {
    /// Address.
    pub address: HostAddress,
    /// `address` printed once, for logs and headers.
    pub address_text: Arc<str>,
    /// `hostname` of the endpoint.
    pub hostname: Arc<str>,
    /// Priority.
    pub priority: u32,
    /// Locality.
    pub locality: Locality,
    /// Metadata `envoy.transport_socket_match`.
    pub transport_socket_match: Vec<(Arc<str>, Arc<str>)>,
    /// Metadata `istio.workload`.
    pub istio_workload: Option<Arc<str>>,
    /// Index into the cluster's transport sockets.
    pub transport_socket: usize,
    weight: AtomicU32,
    health: AtomicU8,
    /// Outlier detection.
    pub outlier: OutlierState,
    /// Counters.
    pub stats: HostStats,
}

impl Host {
    /// A host of `address` with the facts of its endpoint.
    #[must_use]
    pub fn new(
        address: HostAddress,
        endpoint: &Endpoint,
        locality: &Locality,
        priority: u32,
        transport_socket: usize,
    ) -> Self {
        let address_text = address.to_string().into();
        Self {
            address,
            address_text,
            hostname: Arc::clone(&endpoint.hostname),
            priority,
            locality: locality.clone(),
            transport_socket_match: endpoint.transport_socket_match.clone(),
            istio_workload: endpoint.istio_workload.clone(),
            transport_socket,
            weight: AtomicU32::new(endpoint.weight),
            health: AtomicU8::new(endpoint.health as u8),
            outlier: OutlierState::default(),
            stats: HostStats::default(),
        }
    }

    /// `load_balancing_weight`.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Health by EDS.
    #[must_use]
    pub fn eds_health(&self) -> HealthStatus {
        const ALL: [HealthStatus; 6] = [
            HealthStatus::Healthy,
            HealthStatus::Unknown,
            HealthStatus::Unhealthy,
            HealthStatus::Draining,
            HealthStatus::Timeout,
            HealthStatus::Degraded,
        ];
        ALL.into_iter()
            .find(|h| *h as u8 == self.health.load(Ordering::Relaxed))
            .unwrap_or(HealthStatus::Unknown)
    }

    /// Takes over weight and health of a newer assignment; true if something changed.
    pub fn update(&self, endpoint: &Endpoint) -> bool {
        let weight = self.weight.swap(endpoint.weight, Ordering::Relaxed);
        let health = self.health.swap(endpoint.health as u8, Ordering::Relaxed);
        weight != endpoint.weight || health != endpoint.health as u8
    }

    /// Ejected by outlier detection.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.outlier.ejected_at.load(Ordering::Relaxed) != 0
    }

    /// May be balanced to: healthy by EDS and not ejected.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        matches!(
            self.eds_health(),
            HealthStatus::Healthy | HealthStatus::Unknown
        ) && !self.is_ejected()
    }
}
