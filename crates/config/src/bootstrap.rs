//! Envoy bootstrap: node, static resources, admin, where dynamic resources come from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::cluster::Cluster;
use crate::listener::Listener;
use crate::tls::Secret;

/// `envoy.config.bootstrap.v3.Bootstrap`, what the proxy acts upon.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// `node` as wire bytes (sent verbatim in xDS requests).
    pub node: Bytes,
    /// `node.id`.
    pub node_id: Arc<str>,
    /// `node.cluster`.
    pub node_cluster: Arc<str>,
    /// `tracing.http` is Zipkin: B3 headers are read and written (spans are not exported).
    pub zipkin: Option<Zipkin>,
    /// `static_resources.clusters`.
    pub clusters: Vec<Arc<Cluster>>,
    /// `static_resources.listeners`.
    pub listeners: Vec<Arc<Listener>>,
    /// `static_resources.secrets`.
    pub secrets: Vec<Secret>,
    /// `dynamic_resources.ads_config`, when LDS or CDS use ADS.
    pub ads: Option<AdsConfig>,
    /// `dynamic_resources.lds_config` is ADS.
    pub lds_ads: bool,
    /// `dynamic_resources.cds_config` is ADS.
    pub cds_ads: bool,
    /// `admin.address`.
    pub admin: Option<SocketAddr>,
    /// `application_log_config.log_format` text, or JSON.
    pub log_format: Option<LogFormat>,
    /// `stats_config`.
    pub stats: StatsConfig,
    /// `stats_flush_interval`, default 5 s.
    pub stats_flush_interval: Duration,
    /// `layered_runtime` static layers flattened: key to JSON scalar text.
    pub runtime: Vec<(Arc<str>, Arc<str>)>,
    /// Names of the runtime layers, for `/runtime`.
    pub runtime_layers: Vec<Arc<str>>,
    /// `overload_manager` global downstream connection limit.
    pub max_active_downstream_connections: Option<u64>,
    /// The whole document as wire bytes, for `/config_dump`.
    pub raw: Bytes,
}

/// What Zipkin's configuration changes in requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zipkin {
    /// `trace_id_128bit`.
    pub trace_id_128bit: bool,
    /// `shared_span_context`, default true.
    pub shared_span_context: bool,
}

/// `ads_config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdsConfig {
    /// DELTA_GRPC instead of GRPC.
    pub delta: bool,
    /// `envoy_grpc.cluster_name`.
    pub cluster: Arc<str>,
}

/// `application_log_config.log_format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogFormat {
    /// `text_format`.
    Text(Arc<str>),
    /// `json_format`, compact JSON text of the object.
    Json(Arc<str>),
}

/// `stats_config`.
#[derive(Debug, Clone, Default)]
pub struct StatsConfig {
    /// `use_all_default_tags`, default true.
    pub use_all_default_tags: bool,
    /// `stats_tags` with a regex.
    pub tags: Vec<(Arc<str>, Arc<str>)>,
    /// `stats_tags` with a fixed value.
    pub fixed_tags: Vec<(Arc<str>, Arc<str>)>,
    /// `stats_matcher`.
    pub matcher: StatsMatcher,
    /// `histogram_bucket_settings`.
    pub histogram_buckets: Vec<(crate::matcher::StringMatcher, Vec<f64>)>,
}

/// `stats_matcher`.
#[derive(Debug, Clone, Default)]
pub enum StatsMatcher {
    /// Everything.
    #[default]
    All,
    /// `reject_all`.
    None,
    /// `inclusion_list`.
    Include(Vec<crate::matcher::StringMatcher>),
    /// `exclusion_list`.
    Exclude(Vec<crate::matcher::StringMatcher>),
}
