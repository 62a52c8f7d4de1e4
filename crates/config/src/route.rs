//! RouteConfiguration: virtual hosts, routes, actions, retries, header changes.

use std::sync::Arc;
use std::time::Duration;

use crate::format::Format;
use crate::http::PerFilterConfig;
use crate::matcher::{CompiledRegex, HeaderMatcher, QueryParameterMatcher, StringMatcher};

pub use self::table::RouteTable;

mod table;

/// `envoy.config.route.v3.RouteConfiguration`.
#[derive(Debug, Clone)]
pub struct RouteConfiguration {
    /// Resource name (empty inline names allowed).
    pub name: Arc<str>,
    /// In order. Domains are unique over all of them (checked).
    pub virtual_hosts: Vec<VirtualHost>,
    /// `ignore_port_in_host_matching`.
    pub ignore_port_in_host_matching: bool,
    /// Header changes of this level.
    pub headers: HeaderMutations,
    /// `typed_per_filter_config`.
    pub per_filter: PerFilterConfig,
}

/// `VirtualHost`.
#[derive(Debug, Clone)]
pub struct VirtualHost {
    /// Name.
    pub name: Arc<str>,
    /// Lower-cased domains: exact, `*.suffix`, `prefix.*`, `*`.
    pub domains: Vec<Arc<str>>,
    /// Routes in order.
    pub routes: Vec<Route>,
    /// `require_tls`.
    pub require_tls: RequireTls,
    /// `include_request_attempt_count`.
    pub include_request_attempt_count: bool,
    /// `include_attempt_count_in_response`.
    pub include_attempt_count_in_response: bool,
    /// Default retry policy.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// Header changes of this level.
    pub headers: HeaderMutations,
    /// `typed_per_filter_config`.
    pub per_filter: PerFilterConfig,
}

/// `require_tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequireTls {
    /// Not at all.
    None,
    /// Only external requests.
    ExternalOnly,
    /// All.
    All,
}

/// `Route`.
#[derive(Debug, Clone)]
pub struct Route {
    /// Name, logged.
    pub name: Arc<str>,
    /// When it is chosen.
    pub matcher: RouteMatch,
    /// What happens.
    pub action: RouteAction,
    /// Header changes of this level.
    pub headers: HeaderMutations,
    /// `decorator.operation` with `propagate`.
    pub decorator: Option<Decorator>,
    /// `typed_per_filter_config`.
    pub per_filter: PerFilterConfig,
}

/// `Decorator`.
#[derive(Debug, Clone)]
pub struct Decorator {
    /// `operation`.
    pub operation: Arc<str>,
    /// `propagate`, default true.
    pub propagate: bool,
}

/// `RouteMatch`.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    /// Path rule.
    pub path: PathMatch,
    /// `case_sensitive`, default true (prefix, path, path_separated_prefix).
    pub case_sensitive: bool,
    /// `headers`, all must match.
    pub headers: Vec<HeaderMatcher>,
    /// `query_parameters`, all must match.
    pub query_parameters: Vec<QueryParameterMatcher>,
    /// `grpc {}`: content type must be gRPC.
    pub grpc: bool,
    /// `runtime_fraction.default_value`.
    pub runtime_fraction: Option<Percent>,
}

/// Path rule of a route.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// `prefix`.
    Prefix(Arc<str>),
    /// `path`.
    Exact(Arc<str>),
    /// `safe_regex`.
    Regex(Arc<CompiledRegex>),
    /// `path_separated_prefix`.
    PathSeparatedPrefix(Arc<str>),
    /// `connect_matcher`.
    Connect,
}

/// `FractionalPercent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percent {
    /// Numerator.
    pub numerator: u32,
    /// 100, 10 000 or 1 000 000.
    pub denominator: u32,
}

/// What a route does.
#[derive(Debug, Clone)]
pub enum RouteAction {
    /// `route`.
    Forward(Arc<Forward>),
    /// `redirect`.
    Redirect(Arc<Redirect>),
    /// `direct_response`.
    Direct(Arc<DirectResponse>),
}

/// `RouteAction` of the API: forward to a cluster.
#[derive(Debug, Clone)]
pub struct Forward {
    /// Which cluster.
    pub cluster: ClusterSpecifier,
    /// `cluster_not_found_response_code`, default 503.
    pub cluster_not_found_response_code: u16,
    /// `prefix_rewrite`; empty = none.
    pub prefix_rewrite: Option<Arc<str>>,
    /// `regex_rewrite`.
    pub regex_rewrite: Option<RegexRewrite>,
    /// `path_rewrite` and host rewriting.
    pub host_rewrite: Option<HostRewrite>,
    /// `append_x_forwarded_host`.
    pub append_x_forwarded_host: bool,
    /// `timeout`; unset = 15 s, `None` = off (0 s).
    pub timeout: Option<Duration>,
    /// `idle_timeout`; outer `None` = inherit, inner `None` = off.
    pub idle_timeout: Option<Option<Duration>>,
    /// `max_stream_duration` (or the deprecated `max_grpc_timeout`).
    pub max_stream_duration: MaxStreamDuration,
    /// `retry_policy` of the route.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// `request_mirror_policies`.
    pub mirrors: Vec<Mirror>,
    /// `hash_policy`.
    pub hash_policy: Vec<HashPolicy>,
    /// `upgrade_configs` of the route: type and enabled.
    pub upgrades: Vec<(Arc<str>, bool)>,
    /// `priority: HIGH`.
    pub high_priority: bool,
    /// `metadata_match` for subset balancing is refused by the parser.
    pub cors: Option<Arc<CorsPolicy>>,
}

/// Stream duration limits of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MaxStreamDuration {
    /// `max_stream_duration.max_stream_duration`; outer `None` = inherit, inner `None` = off.
    pub max_stream_duration: Option<Option<Duration>>,
    /// `grpc_timeout_header_max` / `max_grpc_timeout`: honour `grpc-timeout`, `Some(None)` = uncapped (0 s).
    pub grpc_timeout_header_max: Option<Option<Duration>>,
}

/// Cluster of a route.
#[derive(Debug, Clone)]
pub enum ClusterSpecifier {
    /// `cluster`.
    Cluster(Arc<str>),
    /// `weighted_clusters`, total > 0.
    Weighted(Vec<WeightedCluster>),
    /// `cluster_header`: the request header that names it.
    Header(Arc<str>),
}

/// One of `weighted_clusters.clusters`.
#[derive(Debug, Clone)]
pub struct WeightedCluster {
    /// Cluster name.
    pub name: Arc<str>,
    /// Weight; 0 is never chosen.
    pub weight: u32,
    /// Header changes of this level.
    pub headers: HeaderMutations,
    /// `host_rewrite_literal`.
    pub host_rewrite_literal: Option<Arc<str>>,
    /// `typed_per_filter_config`.
    pub per_filter: PerFilterConfig,
}

/// Host rewriting.
#[derive(Debug, Clone)]
pub enum HostRewrite {
    /// `host_rewrite_literal`.
    Literal(Arc<str>),
    /// `auto_host_rewrite`: the host name of the chosen endpoint.
    Auto,
    /// `host_rewrite_header`.
    Header(Arc<str>),
}

/// `RegexMatchAndSubstitute`.
#[derive(Debug, Clone)]
pub struct RegexRewrite {
    /// Pattern.
    pub pattern: Arc<CompiledRegex>,
    /// Substitution in the regex crate's syntax (`\N` translated to `${N}`).
    pub substitution: Arc<str>,
}

/// `RequestMirrorPolicy`.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Shadow cluster.
    pub cluster: Arc<str>,
    /// `runtime_fraction.default_value`; `None` = all.
    pub fraction: Option<Percent>,
    /// `disable_shadow_host_suffix_append`.
    pub disable_host_suffix: bool,
}

/// `HashPolicy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashPolicy {
    /// `terminal`.
    pub terminal: bool,
    /// Input.
    pub kind: HashPolicyKind,
}

/// Input of a hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashPolicyKind {
    /// `header`.
    Header(Arc<str>),
    /// `cookie`.
    Cookie {
        /// Cookie name.
        name: Arc<str>,
        /// `ttl`: generate it when absent; zero = session cookie.
        ttl: Option<Duration>,
        /// `path`.
        path: Arc<str>,
    },
    /// `connection_properties.source_ip`.
    SourceIp,
    /// `query_parameter`.
    QueryParameter(Arc<str>),
}

/// `RetryPolicy`.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Conditions of `retry_on`.
    pub retry_on: RetryOn,
    /// `num_retries`, default 1.
    pub num_retries: u32,
    /// `per_try_timeout`.
    pub per_try_timeout: Option<Duration>,
    /// `per_try_idle_timeout`.
    pub per_try_idle_timeout: Option<Duration>,
    /// `retriable_status_codes`.
    pub retriable_status_codes: Vec<u16>,
    /// `retriable_headers` of the answer.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// `retry_back_off.base_interval`, default 25 ms.
    pub base_interval: Duration,
    /// `retry_back_off.max_interval`, default 10 × base.
    pub max_interval: Duration,
    /// `retry_host_predicate: previous_hosts` present.
    pub avoid_previous_hosts: bool,
    /// `host_selection_retry_max_attempts`, default 1.
    pub host_selection_retry_max_attempts: u32,
    /// `retry_priority: previous_priorities`.
    pub previous_priorities: bool,
}

/// Conditions of `retry_on`, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn {
    /// `5xx`.
    pub five_xx: bool,
    /// `gateway-error`.
    pub gateway_error: bool,
    /// `connect-failure`.
    pub connect_failure: bool,
    /// `refused-stream`.
    pub refused_stream: bool,
    /// `reset`.
    pub reset: bool,
    /// `reset-before-request`.
    pub reset_before_request: bool,
    /// `retriable-4xx`.
    pub retriable_4xx: bool,
    /// `retriable-status-codes`.
    pub retriable_status_codes: bool,
    /// `retriable-headers`.
    pub retriable_headers: bool,
    /// `envoy-ratelimited`.
    pub envoy_ratelimited: bool,
    /// gRPC `cancelled`.
    pub grpc_cancelled: bool,
    /// gRPC `deadline-exceeded`.
    pub grpc_deadline_exceeded: bool,
    /// gRPC `internal`.
    pub grpc_internal: bool,
    /// gRPC `resource-exhausted`.
    pub grpc_resource_exhausted: bool,
    /// gRPC `unavailable`.
    pub grpc_unavailable: bool,
}

/// `RedirectAction`.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// `host_redirect`.
    pub host: Option<Arc<str>>,
    /// `path_redirect` or `prefix_rewrite` or `regex_rewrite`.
    pub path: RedirectPath,
    /// `scheme_redirect`, or `https` for `https_redirect`.
    pub scheme: Option<Arc<str>>,
    /// `port_redirect`; 0 = none.
    pub port: Option<u16>,
    /// 301, 302, 303, 307, 308.
    pub response_code: u16,
    /// `strip_query`.
    pub strip_query: bool,
}

/// Path of a redirect.
#[derive(Debug, Clone)]
pub enum RedirectPath {
    /// Unchanged.
    Keep,
    /// `path_redirect`.
    Full(Arc<str>),
    /// `prefix_rewrite`.
    Prefix(Arc<str>),
    /// `regex_rewrite`.
    Regex(RegexRewrite),
}

/// `DirectResponseAction`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponse {
    /// Status.
    pub status: u16,
    /// Body, at most `max_direct_response_body_size_bytes`.
    pub body: bytes::Bytes,
}

/// Header changes of one level, for requests and responses.
#[derive(Debug, Clone, Default)]
pub struct HeaderMutations {
    /// `request_headers_to_add`.
    pub request_add: Vec<HeaderAdd>,
    /// `request_headers_to_remove`, lower case.
    pub request_remove: Vec<Arc<str>>,
    /// `response_headers_to_add`.
    pub response_add: Vec<HeaderAdd>,
    /// `response_headers_to_remove`, lower case.
    pub response_remove: Vec<Arc<str>>,
}

/// `HeaderValueOption`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderAdd {
    /// Lower-case name.
    pub name: Arc<str>,
    /// Value, missing operands render empty.
    pub value: Format,
    /// `append_action`.
    pub action: AppendAction,
    /// `keep_empty_value`.
    pub keep_empty_value: bool,
}

/// `append_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendAction {
    /// Another line.
    AppendIfExistsOrAdd,
    /// Only if absent.
    AddIfAbsent,
    /// Replace or add.
    OverwriteIfExistsOrAdd,
    /// Replace only.
    OverwriteIfExists,
}

/// `CorsPolicy`.
#[derive(Debug, Clone)]
pub struct CorsPolicy {
    /// `allow_origin_string_match`.
    pub allow_origin: Vec<StringMatcher>,
    /// `allow_methods`.
    pub allow_methods: Arc<str>,
    /// `allow_headers`.
    pub allow_headers: Arc<str>,
    /// `expose_headers`.
    pub expose_headers: Arc<str>,
    /// `max_age`.
    pub max_age: Arc<str>,
    /// `allow_credentials`.
    pub allow_credentials: bool,
    /// `filter_enabled` fraction; `None` = all.
    pub enabled: Option<Percent>,
    /// `forward_not_matching_preflights`, default true.
    pub forward_not_matching_preflights: bool,
}
