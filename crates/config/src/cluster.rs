//! Clusters and their endpoints.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;
use crate::http::Http2Options;
use crate::tls::UpstreamTls;

/// `envoy.config.cluster.v3.Cluster` with defaults applied.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Name.
    pub name: Arc<str>,
    /// `alt_stat_name`, default the name.
    pub observability_name: Arc<str>,
    /// How endpoints are found.
    pub discovery: Discovery,
    /// `lb_policy`.
    pub lb_policy: LbPolicy,
    /// `connect_timeout`, default 5 s.
    pub connect_timeout: Duration,
    /// `per_connection_buffer_limit_bytes`, default 1 MiB.
    pub per_connection_buffer_limit_bytes: u32,
    /// Transport sockets by endpoint metadata, first match wins, then `transport_socket`.
    pub transport_socket_matches: Vec<TransportSocketMatch>,
    /// `transport_socket`; raw buffer when unset.
    pub transport_socket: TransportSocket,
    /// Protocol towards the endpoints.
    pub protocol: UpstreamProtocol,
    /// HTTP/2 settings.
    pub http2: Http2Options,
    /// `common_http_protocol_options.idle_timeout`; unset = 1 h, `None` = off.
    pub idle_timeout: Option<Duration>,
    /// `common_http_protocol_options.max_requests_per_connection`; 0 = no limit.
    pub max_requests_per_connection: u32,
    /// `common_http_protocol_options.max_connection_duration`.
    pub max_connection_duration: Option<Duration>,
    /// `upstream_http_protocol_options.auto_sni`.
    pub auto_sni: bool,
    /// `upstream_http_protocol_options.auto_san_validation`.
    pub auto_san_validation: bool,
    /// `header_key_format` preserve_case towards the endpoints.
    pub preserve_case: bool,
    /// `circuit_breakers` of priority DEFAULT.
    pub circuit_breakers: CircuitBreakers,
    /// `outlier_detection`.
    pub outlier_detection: Option<OutlierDetection>,
    /// `upstream_bind_config.source_address` per family.
    pub source_addresses: Vec<SocketAddr>,
    /// `upstream_connection_options.tcp_keepalive`.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// `common_lb_config.healthy_panic_threshold` in percent, default 50.
    pub healthy_panic_threshold: f64,
    /// `common_lb_config.locality_weighted_lb_config` present.
    pub locality_weighted: bool,
    /// `common_lb_config.close_connections_on_host_set_change`.
    pub close_connections_on_host_set_change: bool,
    /// `slow_start_config` of least request and round robin.
    pub slow_start: Option<SlowStart>,
    /// `metadata.filter_metadata.istio` facts the filters read.
    pub istio: IstioClusterMetadata,
}

/// How endpoints are found.
#[derive(Debug, Clone)]
pub enum Discovery {
    /// `STATIC`.
    Static(LoadAssignment),
    /// `EDS` over ADS.
    Eds {
        /// `service_name`, default the cluster name.
        service_name: Arc<str>,
        /// `initial_fetch_timeout`; `None` = wait for ever (0 s), unset = 15 s.
        initial_fetch_timeout: Option<Duration>,
    },
    /// `STRICT_DNS`.
    StrictDns(LoadAssignment, DnsOptions),
    /// `LOGICAL_DNS`.
    LogicalDns(LoadAssignment, DnsOptions),
    /// `ORIGINAL_DST`.
    OriginalDst {
        /// `cleanup_interval`, default 5 s.
        cleanup_interval: Duration,
        /// `upstream_port_override`.
        upstream_port_override: Option<u16>,
        /// `use_http_header` with its header name.
        http_header: Option<Arc<str>>,
    },
}

/// DNS settings of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOptions {
    /// `dns_lookup_family`.
    pub family: DnsFamily,
    /// `dns_refresh_rate`, default 5 s.
    pub refresh_rate: Duration,
    /// `respect_dns_ttl`.
    pub respect_ttl: bool,
}

/// `dns_lookup_family`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv6, else IPv4.
    Auto,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// IPv4, else IPv6.
    V4Preferred,
    /// Both.
    All,
}

/// `lb_policy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LbPolicy {
    /// `ROUND_ROBIN`.
    RoundRobin,
    /// `LEAST_REQUEST`.
    LeastRequest {
        /// `choice_count`, default 2.
        choice_count: u32,
    },
    /// `RANDOM`.
    Random,
    /// `RING_HASH`.
    RingHash {
        /// `minimum_ring_size`, default 1024.
        minimum_ring_size: u64,
        /// `maximum_ring_size`, default 8 388 608.
        maximum_ring_size: u64,
    },
    /// `MAGLEV`.
    Maglev {
        /// `table_size`, default 65537.
        table_size: u64,
    },
    /// `CLUSTER_PROVIDED`.
    ClusterProvided,
}

/// `TransportSocketMatch`.
#[derive(Debug, Clone)]
pub struct TransportSocketMatch {
    /// `name`.
    pub name: Arc<str>,
    /// All must equal the endpoint's `envoy.transport_socket_match` metadata; empty matches all.
    pub criteria: Vec<(Arc<str>, Arc<str>)>,
    /// The socket.
    pub socket: TransportSocket,
}

/// Upstream transport socket.
#[derive(Debug, Clone)]
pub enum TransportSocket {
    /// `raw_buffer` or none.
    RawBuffer,
    /// `tls`.
    Tls(Arc<UpstreamTls>),
}

/// Which protocol requests are sent with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// `explicit_http_config.http_protocol_options` and the default.
    Http1,
    /// `explicit_http_config.http2_protocol_options`.
    Http2,
    /// `use_downstream_protocol_config`.
    Downstream,
    /// `auto_config`: by ALPN.
    Auto,
}

/// `CircuitBreakers.Thresholds` of DEFAULT with Envoy's defaults (1024, 1024, 1024, 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CircuitBreakers {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_pending_requests`.
    pub max_pending_requests: u32,
    /// `max_requests`.
    pub max_requests: u32,
    /// `max_retries`.
    pub max_retries: u32,
    /// `retry_budget`: percent of active requests and minimum.
    pub retry_budget: Option<(f64, u32)>,
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
        }
    }
}

/// `OutlierDetection` with defaults applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// `consecutive_5xx`, default 5; 0 = off.
    pub consecutive_5xx: u32,
    /// `enforcing_consecutive_5xx` in percent, default 100.
    pub enforcing_consecutive_5xx: u32,
    /// `consecutive_gateway_failure`, default 5.
    pub consecutive_gateway_failure: u32,
    /// `enforcing_consecutive_gateway_failure`, default 0.
    pub enforcing_consecutive_gateway_failure: u32,
    /// `split_external_local_origin_errors`.
    pub split_external_local_origin_errors: bool,
    /// `consecutive_local_origin_failure`, default 5.
    pub consecutive_local_origin_failure: u32,
    /// `enforcing_consecutive_local_origin_failure`, default 100.
    pub enforcing_consecutive_local_origin_failure: u32,
    /// `interval`, default 10 s.
    pub interval: Duration,
    /// `base_ejection_time`, default 30 s.
    pub base_ejection_time: Duration,
    /// `max_ejection_time`, default 300 s or the base if larger.
    pub max_ejection_time: Duration,
    /// `max_ejection_percent`, default 10.
    pub max_ejection_percent: u32,
    /// `always_eject_one_host`.
    pub always_eject_one_host: bool,
}

/// `TcpKeepalive`; `None` members use the kernel's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// `keepalive_probes`.
    pub probes: Option<u32>,
    /// `keepalive_time` in seconds.
    pub time: Option<u32>,
    /// `keepalive_interval` in seconds.
    pub interval: Option<u32>,
}

/// `SlowStartConfig`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowStart {
    /// `slow_start_window`.
    pub window: Duration,
    /// `aggression.default_value`, default 1.0.
    pub aggression: f64,
    /// `min_weight_percent`, default 10.
    pub min_weight_percent: f64,
}

/// What Istio writes into cluster metadata under `istio`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IstioClusterMetadata {
    /// `alpn_override == "false"`: istio.alpn leaves the ALPN alone.
    pub alpn_override_disabled: bool,
    /// `external: true`.
    pub external: bool,
    /// `services[0]`: host, name, namespace.
    pub service: Option<(Arc<str>, Arc<str>, Arc<str>)>,
    /// `subset`.
    pub subset: Option<Arc<str>>,
}

/// `ClusterLoadAssignment`.
#[derive(Debug, Clone, Default)]
pub struct LoadAssignment {
    /// `cluster_name`.
    pub cluster_name: Arc<str>,
    /// Localities in order.
    pub localities: Vec<LocalityEndpoints>,
    /// `policy.overprovisioning_factor`, default 140.
    pub overprovisioning_factor: u32,
    /// `policy.drop_overloads`: category and share.
    pub drop_overloads: Vec<(Arc<str>, crate::route::Percent)>,
}

/// `LocalityLbEndpoints`.
#[derive(Debug, Clone)]
pub struct LocalityEndpoints {
    /// Region, zone, sub zone.
    pub locality: Locality,
    /// `load_balancing_weight`; `None` = unset.
    pub weight: Option<u32>,
    /// `priority`.
    pub priority: u32,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// `Locality`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// `region`.
    pub region: Arc<str>,
    /// `zone`.
    pub zone: Arc<str>,
    /// `sub_zone`.
    pub sub_zone: Arc<str>,
}

/// `LbEndpoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Address.
    pub address: Address,
    /// `additional_addresses`.
    pub additional_addresses: Vec<Address>,
    /// `hostname`.
    pub hostname: Arc<str>,
    /// `load_balancing_weight`, default 1.
    pub weight: u32,
    /// `health_status`.
    pub health: HealthStatus,
    /// Metadata `envoy.transport_socket_match`, string values.
    pub transport_socket_match: Vec<(Arc<str>, Arc<str>)>,
    /// Metadata `istio.workload`.
    pub istio_workload: Option<Arc<str>>,
}

/// `HealthStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HealthStatus {
    /// Healthy.
    Healthy,
    /// Unknown counts as healthy.
    Unknown,
    /// Unhealthy.
    Unhealthy,
    /// Draining: excluded from balancing.
    Draining,
    /// Timed out: unhealthy.
    Timeout,
    /// Degraded.
    Degraded,
}
