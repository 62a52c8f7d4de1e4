//! Listener, filter chains with their match rules, listener filters, network filters.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::access_log::AccessLog;
use crate::http::HttpConnectionManager;
use crate::tls::DownstreamTls;

pub use self::chain_table::{ChainInput, FilterChainTable, Selected};

mod chain_table;

/// `envoy.config.listener.v3.Listener`.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Resource name.
    pub name: Arc<str>,
    /// Main address first, then `additional_addresses`.
    pub addresses: Vec<SocketAddr>,
    /// `bind_to_port`, default true.
    pub bind_to_port: bool,
    /// Hand connections to the listener of the original destination.
    pub use_original_dst: bool,
    /// `transparent`: IP_TRANSPARENT on the listening socket (TPROXY).
    pub transparent: bool,
    /// `freebind`: IP_FREEBIND.
    pub freebind: bool,
    /// `connection_balance_config.exact_balance`.
    pub exact_balance: bool,
    /// `tcp_backlog_size`; `None` = the system's maximum.
    pub tcp_backlog_size: Option<u32>,
    /// `listener_filters` in order.
    pub listener_filters: Vec<ListenerFilter>,
    /// `listener_filters_timeout`; unset = 15 s, `None` = no timer (0 s).
    pub listener_filters_timeout: Option<Duration>,
    /// Go on with what is known when the timer fires, default false.
    pub continue_on_listener_filters_timeout: bool,
    /// `filter_chains` in order.
    pub filter_chains: Vec<Arc<FilterChain>>,
    /// `default_filter_chain`.
    pub default_filter_chain: Option<Arc<FilterChain>>,
    /// Listener-level access logs (connections that found no filter chain).
    pub access_log: Vec<AccessLog>,
    /// `traffic_direction`.
    pub traffic_direction: TrafficDirection,
    /// `stat_prefix`; empty = derived from the address.
    pub stat_prefix: Option<Arc<str>>,
    /// `per_connection_buffer_limit_bytes`, default 1 MiB.
    pub per_connection_buffer_limit_bytes: u32,
    /// Exempt from the global connection limit.
    pub ignore_global_conn_limit: bool,
}

/// `traffic_direction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TrafficDirection {
    /// Not set.
    #[default]
    Unspecified,
    /// Towards the workload.
    Inbound,
    /// From the workload (and every gateway listener).
    Outbound,
}

/// A listener filter.
#[derive(Debug, Clone)]
pub struct ListenerFilter {
    /// What it does.
    pub kind: ListenerFilterKind,
    /// `filter_disabled`: the connection skips the filter when this matches.
    pub disabled: Option<ListenerFilterPredicate>,
}

/// The listener filters istiod sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerFilterKind {
    /// `envoy.filters.listener.original_dst`.
    OriginalDst,
    /// `envoy.filters.listener.original_src` with its mark.
    OriginalSrc {
        /// SO_MARK of upstream sockets; 0 = none.
        mark: u32,
    },
    /// `envoy.filters.listener.tls_inspector`.
    TlsInspector,
    /// `envoy.filters.listener.http_inspector`.
    HttpInspector,
    /// `envoy.filters.listener.proxy_protocol`.
    ProxyProtocol {
        /// Serve connections without the header too.
        allow_requests_without_proxy_protocol: bool,
    },
}

/// `ListenerFilterChainMatchPredicate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerFilterPredicate {
    /// Every branch matches.
    And(Vec<Self>),
    /// Some branch matches.
    Or(Vec<Self>),
    /// The branch does not match.
    Not(Box<Self>),
    /// Always.
    Any,
    /// Destination port in the half-open range.
    DestinationPort {
        /// First port.
        start: u32,
        /// First port after the range.
        end: u32,
    },
}

/// `FilterChain`.
#[derive(Debug)]
pub struct FilterChain {
    /// Name, possibly empty.
    pub name: Arc<str>,
    /// When it is chosen.
    pub filter_chain_match: FilterChainMatch,
    /// TLS to terminate; `None` = raw buffer.
    pub transport_socket: Option<Arc<DownstreamTls>>,
    /// Handshake deadline; `None` = none.
    pub transport_socket_connect_timeout: Option<Duration>,
    /// Non-terminal network filters in order.
    pub filters: Vec<NetworkFilter>,
    /// The terminal filter. A chain without filters closes its connections.
    pub terminal: Option<TerminalFilter>,
}

/// `FilterChainMatch`; every empty member matches all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct FilterChainMatch {
    /// `destination_port`.
    pub destination_port: Option<u16>,
    /// `prefix_ranges` of the destination address.
    pub prefix_ranges: Vec<IpNet>,
    /// Lower-cased `server_names`, `*.suffix` allowed.
    pub server_names: Vec<Arc<str>>,
    /// `tls`, `raw_buffer` or empty.
    pub transport_protocol: Arc<str>,
    /// `application_protocols`.
    pub application_protocols: Vec<Arc<str>>,
    /// `direct_source_prefix_ranges`.
    pub direct_source_prefix_ranges: Vec<IpNet>,
    /// `source_type`.
    pub source_type: SourceType,
    /// `source_prefix_ranges`.
    pub source_prefix_ranges: Vec<IpNet>,
    /// `source_ports`.
    pub source_ports: Vec<u16>,
}

/// `ConnectionSourceType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SourceType {
    /// Any source.
    #[default]
    Any,
    /// The listener's own address or loopback.
    SameIpOrLoopback,
    /// Any other.
    External,
}

/// Non-terminal network filters.
#[derive(Debug, Clone)]
pub enum NetworkFilter {
    /// `envoy.filters.network.sni_cluster`: the SNI names the cluster of the following tcp_proxy.
    SniCluster,
}

/// Terminal network filters.
#[derive(Debug, Clone)]
pub enum TerminalFilter {
    /// `envoy.filters.network.tcp_proxy`.
    TcpProxy(Arc<TcpProxy>),
    /// `envoy.filters.network.http_connection_manager`.
    Http(Arc<HttpConnectionManager>),
}

/// `TcpProxy`.
#[derive(Debug, Clone)]
pub struct TcpProxy {
    /// `stat_prefix`.
    pub stat_prefix: Arc<str>,
    /// Where to: at least one; one entry of weight 1 for `cluster`.
    pub clusters: Vec<TcpWeightedCluster>,
    /// `idle_timeout`; unset = 1 h, `None` = off (0 s).
    pub idle_timeout: Option<Duration>,
    /// `max_downstream_connection_duration`.
    pub max_downstream_connection_duration: Option<Duration>,
    /// `max_connect_attempts`, default 1.
    pub max_connect_attempts: u32,
    /// `hash_policy.source_ip` present.
    pub hash_source_ip: bool,
    /// Access logs, written when the connection ends.
    pub access_log: Vec<AccessLog>,
}

/// One of `weighted_clusters`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpWeightedCluster {
    /// Cluster name.
    pub name: Arc<str>,
    /// Weight, > 0.
    pub weight: u32,
}
