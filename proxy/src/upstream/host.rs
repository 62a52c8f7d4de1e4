//! One endpoint of a cluster: address, health, counters. Shared by all workers; health and counters are
//! atomics, never a republish.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use outrigger_config::cluster::{HealthStatus, Locality};

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

/// One endpoint.
#[derive(Debug)]
pub struct Host {
    /// Address.
    pub address: HostAddress,
    /// `address` printed once, for logs and headers.
    pub address_text: Arc<str>,
    /// `hostname` of the endpoint.
    pub hostname: Arc<str>,
    /// `load_balancing_weight`.
    pub weight: u32,
    /// Priority.
    pub priority: u32,
    /// Locality.
    pub locality: Locality,
    /// Health by EDS.
    pub eds_health: HealthStatus,
    /// Metadata `envoy.transport_socket_match`.
    pub transport_socket_match: Vec<(Arc<str>, Arc<str>)>,
    /// Index into the cluster's transport sockets.
    pub transport_socket: usize,
    /// Outlier state: 0 = in, else ejected (details are in the cluster's detector).
    pub ejected: AtomicU32,
    /// Counters.
    pub stats: HostStats,
}
