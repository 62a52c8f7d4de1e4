//! HttpConnectionManager and the HTTP filters.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::access_log::AccessLog;
use crate::route::{CorsPolicy, Percent, RouteConfiguration};

/// `HttpConnectionManager` with defaults applied.
#[derive(Debug, Clone)]
pub struct HttpConnectionManager {
    /// `codec_type`.
    pub codec_type: CodecType,
    /// `stat_prefix` as sent (with Istio's trailing `;`).
    pub stat_prefix: Arc<str>,
    /// Where routes come from.
    pub route: RouteSource,
    /// HTTP filters before the router, in order.
    pub filters: Vec<HttpFilter>,
    /// `router.suppress_envoy_headers`.
    pub suppress_envoy_headers: bool,
    /// `server_name`, default `envoy`.
    pub server_name: Arc<str>,
    /// `server_header_transformation`.
    pub server_header_transformation: ServerHeader,
    /// `use_remote_address`, default false.
    pub use_remote_address: bool,
    /// `xff_num_trusted_hops`.
    pub xff_num_trusted_hops: u32,
    /// `skip_xff_append`.
    pub skip_xff_append: bool,
    /// `append_x_forwarded_port`.
    pub append_x_forwarded_port: bool,
    /// `internal_address_config.cidr_ranges`; empty = nobody is internal.
    pub internal_cidrs: Vec<IpNet>,
    /// `internal_address_config.unix_sockets`.
    pub internal_unix_sockets: bool,
    /// `via`; empty = none.
    pub via: Option<Arc<str>>,
    /// `generate_request_id`, default true.
    pub generate_request_id: bool,
    /// `preserve_external_request_id`.
    pub preserve_external_request_id: bool,
    /// `always_set_request_id_in_response`.
    pub always_set_request_id_in_response: bool,
    /// `forward_client_cert_details`.
    pub forward_client_cert: ForwardClientCert,
    /// `set_current_client_cert_details`.
    pub client_cert_details: ClientCertDetails,
    /// `normalize_path`.
    pub normalize_path: bool,
    /// `merge_slashes`.
    pub merge_slashes: bool,
    /// `path_with_escaped_slashes_action`.
    pub escaped_slashes: EscapedSlashes,
    /// `strip_matching_host_port` / `strip_any_host_port`.
    pub strip_host_port: StripPort,
    /// `strip_trailing_host_dot`.
    pub strip_trailing_host_dot: bool,
    /// `scheme_header_transformation.scheme_to_overwrite`.
    pub scheme_to_overwrite: Option<Arc<str>>,
    /// `stream_idle_timeout`; unset = 5 min, `None` = off (0 s).
    pub stream_idle_timeout: Option<Duration>,
    /// `request_timeout`; `None` = off.
    pub request_timeout: Option<Duration>,
    /// `request_headers_timeout`; `None` = off.
    pub request_headers_timeout: Option<Duration>,
    /// `drain_timeout`, default 5 s.
    pub drain_timeout: Duration,
    /// `delayed_close_timeout`, default 1 s; `None` = off.
    pub delayed_close_timeout: Option<Duration>,
    /// `common_http_protocol_options.idle_timeout`; unset = 1 h, `None` = off.
    pub idle_timeout: Option<Duration>,
    /// `common_http_protocol_options.max_connection_duration`.
    pub max_connection_duration: Option<Duration>,
    /// `common_http_protocol_options.max_stream_duration`.
    pub max_stream_duration: Option<Duration>,
    /// `common_http_protocol_options.max_requests_per_connection`; 0 = no limit.
    pub max_requests_per_connection: u32,
    /// `common_http_protocol_options.max_headers_count`, default 100.
    pub max_headers_count: u32,
    /// `max_request_headers_kb`, default 60.
    pub max_request_headers_kb: u32,
    /// `common_http_protocol_options.headers_with_underscores_action`.
    pub underscores: UnderscoresAction,
    /// `http_protocol_options.accept_http_10`.
    pub accept_http_10: bool,
    /// `http_protocol_options.default_host_for_http_10`.
    pub default_host_for_http_10: Option<Arc<str>>,
    /// `http_protocol_options.allow_absolute_url`, default true.
    pub allow_absolute_url: bool,
    /// `http_protocol_options.enable_trailers`.
    pub enable_trailers: bool,
    /// `http_protocol_options.header_key_format.stateful_formatter` preserve_case.
    pub preserve_case: bool,
    /// `proxy_100_continue`.
    pub proxy_100_continue: bool,
    /// `upgrade_configs`: lower-case types that are enabled.
    pub upgrades: Vec<Arc<str>>,
    /// HTTP/2 settings.
    pub http2: Http2Options,
    /// Access logs.
    pub access_log: Vec<AccessLog>,
    /// `tracing` is present (decorator header on responses, sampling bits in x-request-id).
    pub tracing: Option<Tracing>,
}

/// `codec_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodecType {
    /// By ALPN, else by the first bytes.
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// Where a connection manager's routes come from.
#[derive(Debug, Clone)]
pub enum RouteSource {
    /// `route_config`.
    Inline(Arc<RouteConfiguration>),
    /// `rds` over ADS.
    Rds {
        /// `route_config_name`.
        name: Arc<str>,
        /// `None` = wait for ever (0 s); unset = 15 s.
        initial_fetch_timeout: Option<Duration>,
    },
}

/// What tracing changes in requests and answers, even without a span exporter.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// `random_sampling`, percent.
    pub random_sampling: f64,
    /// `client_sampling`, percent.
    pub client_sampling: f64,
    /// `overall_sampling`, percent.
    pub overall_sampling: f64,
    /// `request_id_extension.use_request_id_for_trace_sampling`, default true.
    pub use_request_id: bool,
}

/// `server_header_transformation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerHeader {
    /// Always `server_name`.
    Overwrite,
    /// Only where the answer has none.
    AppendIfAbsent,
    /// Untouched.
    PassThrough,
}

/// `forward_client_cert_details`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardClientCert {
    /// Remove.
    Sanitize,
    /// Keep on mTLS.
    ForwardOnly,
    /// Append on mTLS.
    AppendForward,
    /// Replace on mTLS.
    SanitizeSet,
    /// Always keep.
    AlwaysForwardOnly,
}

/// `set_current_client_cert_details`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientCertDetails {
    /// Subject.
    pub subject: bool,
    /// Cert.
    pub cert: bool,
    /// Chain.
    pub chain: bool,
    /// DNS SANs.
    pub dns: bool,
    /// URI SANs.
    pub uri: bool,
}

/// `path_with_escaped_slashes_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// As is (also the implementation default).
    KeepUnchanged,
    /// 400.
    RejectRequest,
    /// 307 to the unescaped path.
    UnescapeAndRedirect,
    /// Unescape and go on.
    UnescapeAndForward,
}

/// Port stripping of the authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StripPort {
    /// Keep.
    No,
    /// When it equals the listener's port.
    Matching,
    /// Always.
    Any,
}

/// `headers_with_underscores_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnderscoresAction {
    /// Pass.
    Allow,
    /// 400 / stream reset.
    RejectRequest,
    /// Drop the header.
    DropHeader,
}

/// `Http2ProtocolOptions` with Envoy's defaults applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Options {
    /// `max_concurrent_streams`, default 1024.
    pub max_concurrent_streams: u32,
    /// `initial_stream_window_size` in bytes, default 16 MiB.
    pub initial_stream_window_size: u32,
    /// `initial_connection_window_size` in bytes, default 24 MiB.
    pub initial_connection_window_size: u32,
    /// `hpack_table_size`, default 4096.
    pub hpack_table_size: u32,
    /// `allow_connect` (extended CONNECT).
    pub allow_connect: bool,
    /// `connection_keepalive.interval`.
    pub keepalive_interval: Option<Duration>,
    /// `connection_keepalive.timeout`.
    pub keepalive_timeout: Option<Duration>,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            initial_stream_window_size: 16 * 1024 * 1024,
            initial_connection_window_size: 24 * 1024 * 1024,
            hpack_table_size: 4096,
            allow_connect: false,
            keepalive_interval: None,
            keepalive_timeout: None,
        }
    }
}

/// An HTTP filter before the router.
#[derive(Debug, Clone)]
pub struct HttpFilter {
    /// Configured name: the key of `typed_per_filter_config`.
    pub name: Arc<str>,
    /// `disabled`: off unless a route enables it.
    pub disabled: bool,
    /// What it does.
    pub kind: HttpFilterKind,
}

/// The HTTP filters that are acted upon.
#[derive(Debug, Clone)]
pub enum HttpFilterKind {
    /// `istio.alpn`.
    IstioAlpn(Arc<IstioAlpn>),
    /// `envoy.filters.http.cors`: active where a route has a policy.
    Cors,
    /// `envoy.filters.http.fault`: the listener's own setting; routes may override.
    Fault(Option<Arc<Fault>>),
    /// `istio.metadata_exchange`: a peer's metadata headers must not reach the application or the client. What they
    /// say is telemetry and not used.
    PeerMetadata,
    /// `envoy.filters.http.grpc_stats` (counts messages for stats; changes no answer).
    GrpcStats,
}

/// `istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`: ALPN lists by upstream protocol.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IstioAlpn {
    /// For HTTP/1.0 upstreams.
    pub http10: Vec<Arc<str>>,
    /// For HTTP/1.1 upstreams.
    pub http11: Vec<Arc<str>>,
    /// For HTTP/2 upstreams.
    pub http2: Vec<Arc<str>>,
}

/// `HTTPFault`.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Fixed delay and its share.
    pub delay: Option<(Duration, Percent)>,
    /// Abort and its share.
    pub abort: Option<(FaultAbort, Percent)>,
    /// `max_active_faults`.
    pub max_active_faults: Option<u32>,
    /// `headers`: only requests that match all.
    pub headers: Vec<crate::matcher::HeaderMatcher>,
}

impl PartialEq for crate::matcher::HeaderMatcher {
    fn eq(&self, other: &Self) -> bool {
        use crate::matcher::HeaderMatchKind as K;
        self.name == other.name
            && self.invert == other.invert
            && self.treat_missing_as_empty == other.treat_missing_as_empty
            && match (&self.kind, &other.kind) {
                (K::Present(a), K::Present(b)) => a == b,
                (K::String(a), K::String(b)) => a == b,
                (K::Range { start, end }, K::Range { start: s, end: e }) => start == s && end == e,
                _ => false,
            }
    }
}

/// How a fault ends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultAbort {
    /// `http_status`.
    Http(u16),
    /// `grpc_status`.
    Grpc(u32),
}

/// `typed_per_filter_config` of one route, virtual host or weighted cluster, resolved by filter name.
#[derive(Debug, Clone, Default)]
pub struct PerFilterConfig {
    /// Entries by filter name.
    pub entries: Vec<(Arc<str>, PerFilter)>,
}

/// One per-route filter setting.
#[derive(Debug, Clone)]
pub enum PerFilter {
    /// `FilterConfig.disabled`.
    Disabled,
    /// `CorsPolicy`.
    Cors(Arc<CorsPolicy>),
    /// `HTTPFault`.
    Fault(Arc<Fault>),
}
