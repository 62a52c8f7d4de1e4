//! Envoy's bootstrap (`envoy-rev.json`), built as values, never rendered from text. The parts are
//! in the sub-modules; this file owns the inputs, the address families and the outer document.

mod clusters;
mod listeners;
mod stats;
mod template_params;
mod tracing;
mod transport_socket;

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::error::{FieldError, FieldProblem, Warning};
use crate::node::{Node, NodeType};
use crate::proxy_config::{ProxySettings, split_host_port};
use crate::template::{NoValue, Template, TemplateError};
use tracing::Tracer;

/// "Unlimited" of the overload manager: Envoy's field is a signed 64-bit number, Istio stops at 32.
const NO_CONNECTION_LIMIT: i64 = i32::MAX as i64;
const CONNECTION_LIMIT_KEY: &str = "ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS";
const CONNECTION_LIMIT_RUNTIME: &str = "overload.global_downstream_max_connections";

/// `COMPLIANCE_POLICY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompliancePolicy {
    /// FIPS 140-2: TLS 1.2 only.
    Fips140v2,
    /// FIPS 140-3.
    Fips140v3,
    /// TLS 1.3 with a post-quantum key exchange only.
    Pqc,
}

impl CompliancePolicy {
    /// Parses the variable; `None` for an unknown word.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "fips-140-2" => Some(Self::Fips140v2),
            "fips-140-3" => Some(Self::Fips140v3),
            "pqc" => Some(Self::Pqc),
            _ => None,
        }
    }
}

/// Everything the document depends on besides the node.
#[derive(Debug, Clone)]
pub struct EnvoyInputs<'a> {
    /// The node.
    pub node: &'a Node,
    /// Merged and validated configuration.
    pub settings: &'a ProxySettings,
    /// `--log_as_json`.
    pub log_as_json: bool,
    /// `ISTIO_DELTA_XDS`.
    pub delta_xds: bool,
    /// `ISTIO_DUAL_STACK`.
    pub dual_stack: bool,
    /// `HTTP_STRIP_FRAGMENT_FROM_PATH_UNSAFE_IF_DISABLED`.
    pub strip_fragment: bool,
    /// `ENVOY_STATUS_PORT_ENABLE_PROXY_PROTOCOL`.
    pub status_proxy_protocol: bool,
    /// `COMPLIANCE_POLICY`.
    pub compliance: Option<CompliancePolicy>,
    /// `HOST_IP`, stands for `$(HOST_IP)` in collector addresses.
    pub host_ip: Option<&'a str>,
}

/// A secret the document refers to by path; the caller writes it before the proxy starts.
#[derive(Clone)]
pub struct TokenFile {
    /// Where.
    pub path: String,
    /// What; never logged.
    pub token: String,
}

/// The finished bootstrap.
pub struct EnvoyBootstrap {
    /// The document.
    pub document: Value,
    /// Lightstep's access token, if that tracer is used.
    pub token_file: Option<TokenFile>,
    /// Things to log.
    pub warnings: Vec<Warning>,
}

/// Loopback and wildcard addresses for the families the pod has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Families {
    localhost: &'static str,
    wildcard: &'static str,
    /// The other family's pair, with dual stack.
    additional: Option<(&'static str, &'static str)>,
    dns_lookup: &'static str,
}

const V4: (&str, &str) = ("127.0.0.1", "0.0.0.0");
const V6: (&str, &str) = ("::1", "::");

impl Families {
    fn of(ips: &[IpAddr], dual_stack: bool) -> Self {
        let all_v4 = ips.iter().all(IpAddr::is_ipv4);
        let all_v6 = ips.iter().all(IpAddr::is_ipv6);
        let single = |(localhost, wildcard), dns_lookup| Self {
            localhost,
            wildcard,
            additional: None,
            dns_lookup,
        };
        let both = |first: (&'static str, &'static str), second| Self {
            additional: Some(second),
            ..single(first, "ALL")
        };
        match (all_v4, all_v6, dual_stack) {
            (true, ..) => single(V4, "V4_ONLY"),
            (_, true, _) => single(V6, "V6_ONLY"),
            (_, _, false) => single(V4, "V4_ONLY"),
            (_, _, true) if ips.first().is_some_and(IpAddr::is_ipv6) => both(V6, V4),
            (_, _, true) => both(V4, V6),
        }
    }
}

/// Builds Envoy's bootstrap.
///
/// # Errors
/// A setting that the document cannot express, naming it.
pub fn envoy_bootstrap(inputs: &EnvoyInputs<'_>) -> Result<EnvoyBootstrap, FieldError> {
    let mut warnings = Vec::new();
    let EnvoyInputs { node, settings, .. } = *inputs;
    let Derived {
        families,
        delta,
        discovery,
        tracer,
    } = Derived::of(inputs, &mut warnings)?;
    let mut document = json!({
        "application_log_config": { "log_format": log_format(inputs.log_as_json) },
        "node": node.to_envoy_json(),
        "layered_runtime": { "layers": [
            { "name": "global config", "static_layer": runtime_flags(inputs) },
            { "name": "admin", "admin_layer": {} },
        ]},
        "bootstrap_extensions": extensions(discovery),
        "stats_config": stats::stats_config(node, settings, discovery, &mut warnings),
        "admin": admin(&families, settings),
        "dynamic_resources": dynamic_resources(delta),
        "static_resources": {
            "clusters": clusters::static_clusters(inputs, &families, tracer.as_ref())?,
            "listeners": listeners::static_listeners(inputs, &families),
        },
        "overload_manager": overload_manager(settings),
        "deferred_stat_options": { "enable_deferred_creation_stats": true },
    });
    let optional = [
        ("tracing", tracer.as_ref().map(|t| t.block(node))),
        ("stats_sinks", stats_sinks(inputs)?),
        ("cluster_manager", cluster_manager(node)?),
    ];
    if let Value::Object(map) = &mut document {
        stats::intervals(node, map, &mut warnings);
        for (key, value) in optional {
            if let Some(value) = value {
                map.insert(key.to_owned(), value);
            }
        }
    }
    let token_file = tracer.and_then(|t| t.token_file);
    Ok(EnvoyBootstrap {
        document,
        token_file,
        warnings,
    })
}

/// A bootstrap made from a user's template.
pub struct RenderedBootstrap {
    /// The file's contents.
    pub text: String,
    /// Lightstep's access token, if that tracer is used.
    pub token_file: Option<TokenFile>,
    /// Things to log.
    pub warnings: Vec<Warning>,
    /// Places that printed `<no value>`, which is hardly what the author meant.
    pub no_values: Vec<NoValue>,
}

/// Why a template gives no bootstrap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// A setting that the parameters cannot express.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The template itself.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// Renders a user's bootstrap template (Go's text/template) with the parameters that Istio's agent
/// gives to its own. `environment` answers the functions `env` and `expandenv`.
///
/// # Errors
/// A setting that the parameters cannot express, or the line of the template that is wrong.
pub fn render_bootstrap(
    template: &str,
    inputs: &EnvoyInputs<'_>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<RenderedBootstrap, RenderError> {
    let template = Template::parse(template)?;
    let mut warnings = Vec::new();
    let derived = Derived::of(inputs, &mut warnings)?;
    let parameters = template_params::parameters(inputs, &derived, &mut warnings)?;
    let (text, no_values) = template.render(&parameters, environment)?;
    Ok(RenderedBootstrap {
        text,
        token_file: derived.tracer.and_then(|t| t.token_file),
        warnings,
        no_values,
    })
}

/// What both kinds of bootstrap derive from the inputs first.
struct Derived {
    families: Families,
    /// Delta xDS; always for waypoints.
    delta: bool,
    /// Metadata discovery extension.
    discovery: bool,
    tracer: Option<Tracer>,
}

impl Derived {
    fn of(inputs: &EnvoyInputs<'_>, warnings: &mut Vec<Warning>) -> Result<Self, FieldError> {
        let node = inputs.node;
        let waypoint = node.node_type == NodeType::Waypoint;
        let delta = inputs.delta_xds || waypoint;
        Ok(Self {
            families: Families::of(&node.ips, inputs.dual_stack),
            delta,
            discovery: metadata_discovery(node, waypoint, delta, warnings),
            tracer: Tracer::of(inputs, warnings)?,
        })
    }
}

fn metadata_discovery(
    node: &Node,
    waypoint: bool,
    delta: bool,
    warnings: &mut Vec<Warning>,
) -> bool {
    let wanted = node.metadata_discovery || waypoint;
    if wanted && !delta {
        warnings.push(Warning::MetadataDiscoveryNeedsDelta);
    }
    wanted && delta
}

fn log_format(as_json: bool) -> Value {
    if as_json {
        json!({ "json_format": {
            "time": "%Y-%m-%dT%T.%fZ",
            "level": "%l",
            "scope": "envoy %n",
            "msg": "%j",
            "caller": "%g:%#",
            "thread": "%t",
        }})
    } else {
        json!({ "text_format": "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t" })
    }
}

/// Istio's defaults, then the policy's, then the user's. An empty user value removes a default;
/// booleans must be booleans, because Envoy no longer takes them as text.
fn runtime_flags(inputs: &EnvoyInputs<'_>) -> Map<String, Value> {
    const FEATURE: &str = "envoy.reloadable_features.";
    let original_dst = "envoy.deprecated_features:envoy.config.listener.v3.Listener.\
                        hidden_envoy_deprecated_use_original_dst";
    let mut flags = Map::new();
    flags.insert(
        "re2.max_program_size.error_level".to_owned(),
        "32768".into(),
    );
    flags.insert(original_dst.to_owned(), true.into());
    flags.insert(
        format!("{FEATURE}http_reject_path_with_fragment"),
        false.into(),
    );
    flags.insert(format!("{FEATURE}fixed_heap_use_allocated"), true.into());
    flags.insert(
        format!("{FEATURE}coalesce_lb_rebuilds_on_batch_update"),
        false.into(),
    );
    if inputs.compliance == Some(CompliancePolicy::Fips140v2) {
        flags.insert(format!("{FEATURE}google_grpc_disable_tls_13"), true.into());
    }
    if !inputs.strip_fragment {
        let name = format!("{FEATURE}http_strip_fragment_from_path_unsafe_if_disabled");
        flags.insert(name, "false".into());
    }
    for (name, value) in &inputs.settings.runtime_values {
        match value.as_str() {
            "" => flags.remove(name),
            "true" => flags.insert(name.clone(), true.into()),
            "false" => flags.insert(name.clone(), false.into()),
            text => flags.insert(name.clone(), text.into()),
        };
    }
    flags
}

fn extensions(metadata_discovery: bool) -> Value {
    let typed_struct = |name: &str, type_url: &str, value: Value| {
        json!({
            "name": name,
            "typed_config": {
                "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
                "type_url": type_url,
                "value": value,
            },
        })
    };
    let mut list = Vec::new();
    if metadata_discovery {
        list.push(typed_struct(
            "metadata_discovery",
            "type.googleapis.com/istio.workload.BootstrapExtension",
            json!({ "config_source": { "ads": {} } }),
        ));
    }
    list.push(typed_struct(
        "envoy.bootstrap.internal_listener",
        "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
        json!({ "buffer_size_kb": 64 }),
    ));
    Value::Array(list)
}

fn admin(families: &Families, settings: &ProxySettings) -> Value {
    json!({
        "access_log": [{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type":
                    "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": "/dev/null",
            },
        }],
        "profile_path": "/var/lib/istio/data/envoy.prof",
        "address": { "socket_address": {
            "address": families.localhost,
            "port_value": settings.proxy_admin_port,
        }},
    })
}

fn dynamic_resources(delta: bool) -> Value {
    let by_ads =
        || json!({ "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" });
    json!({
        "lds_config": by_ads(),
        "cds_config": by_ads(),
        "ads_config": {
            "api_type": if delta { "DELTA_GRPC" } else { "GRPC" },
            "set_node_on_first_message_only": true,
            "transport_api_version": "V3",
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
        },
    })
}

/// Texts that are no number fall through to the next source, as in the reference.
fn connection_limit(settings: &ProxySettings) -> i64 {
    let configured = settings
        .connection_settings
        .as_ref()
        .and_then(|c| c.global_downstream_connection_limit)
        .filter(|limit| *limit > 0)
        .map(i64::from);
    let number = |text: Option<&String>| text.and_then(|t| t.parse::<i64>().ok());
    configured
        .or_else(|| number(settings.proxy_metadata.get(CONNECTION_LIMIT_KEY)))
        .or_else(|| number(settings.runtime_values.get(CONNECTION_LIMIT_RUNTIME)))
        .unwrap_or(NO_CONNECTION_LIMIT)
}

fn overload_manager(settings: &ProxySettings) -> Value {
    let limit = connection_limit(settings);
    json!({ "resource_monitors": [{
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.resource_monitors.\
                      downstream_connections.v3.DownstreamConnectionsConfig",
            "max_active_downstream_connections": limit,
        },
    }]})
}

fn stats_sinks(inputs: &EnvoyInputs<'_>) -> Result<Option<Value>, FieldError> {
    let mut sinks = Vec::new();
    if clusters::metrics_service_address(inputs.settings).is_some() {
        sinks.push(json!({
            "name": "envoy.stat_sinks.metrics_service",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.metrics.v3.MetricsServiceConfig",
                "transport_api_version": "V3",
                "grpc_service": { "envoy_grpc": { "cluster_name": "envoy_metrics_service" } },
            },
        }));
    }
    let statsd = &inputs.settings.statsd_udp_address;
    if !statsd.is_empty() {
        sinks.push(json!({
            "name": "envoy.stat_sinks.statsd",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.metrics.v3.StatsdSink",
                "address": {
                    "socket_address": socket_address(inputs, "statsdUdpAddress", statsd)?,
                },
            },
        }));
    }
    Ok((!sinks.is_empty()).then_some(Value::Array(sinks)))
}

fn cluster_manager(node: &Node) -> Result<Option<Value>, FieldError> {
    const LOAD_STATS: &str = "LOAD_STATS_CONFIG_JSON";
    let mut manager = Map::new();
    if node.self_discovery {
        manager.insert("local_cluster_name".to_owned(), "local_cluster".into());
    }
    if !node.outlier_log_path.is_empty() {
        let path = json!({ "event_log_path": node.outlier_log_path });
        manager.insert("outlier_detection".to_owned(), path);
    }
    if let Some(text) = node.raw.text(LOAD_STATS) {
        let bad = |e: serde_json::Error| FieldProblem::BadJson(e.to_string());
        let config: Value = serde_json::from_str(text)
            .map_err(|e| FieldError::new(format!("node metadata {LOAD_STATS}"), bad(e)))?;
        manager.insert("load_stats_config".to_owned(), config);
    }
    if manager.is_empty() {
        return Ok(None);
    }
    manager.insert("enable_deferred_cluster_creation".to_owned(), true.into());
    Ok(Some(Value::Object(manager)))
}

/// `host:port` as a socket address; `$(HOST_IP)` becomes the node's address if it is known.
fn socket_address(
    inputs: &EnvoyInputs<'_>,
    path: &str,
    address: &str,
) -> Result<Value, FieldError> {
    let bad = || FieldError::new(path, FieldProblem::BadAddress(address.to_owned()));
    let (host, port) = split_host_port(address).ok_or_else(bad)?;
    let host_ip = inputs.host_ip.filter(|ip| !ip.is_empty());
    let host = match (host, host_ip) {
        ("$(HOST_IP)", Some(ip)) => ip,
        _ => host,
    };
    Ok(json!({ "address": host, "port_value": port }))
}
