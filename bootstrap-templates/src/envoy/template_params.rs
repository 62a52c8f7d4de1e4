//! The parameters of a user's bootstrap template, under the names that Istio's agent gives them.
//! What a setting does not ask for is absent, so that `if` sees it as false.

use serde_json::{Map, Value as Json, json};

use super::tracing::TracerKind;
use super::transport_socket::upstream;
use super::{
    Derived, EnvoyInputs, clusters, connection_limit, runtime_flags, socket_address, stats,
};
use crate::error::{FieldError, Warning};
use crate::node::Node;
use crate::proxy_config::{RemoteService, Tracing};
use crate::proxy_config_schema::PROXY_CONFIG;
use crate::template::{Value, structure};

/// Limits of Stackdriver spans without a setting.
const STACKDRIVER_LIMIT: i64 = 200;

/// Collects the parameters by name.
struct Parameters(Vec<(String, Value)>);

impl Parameters {
    fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.0.push((name.to_owned(), value.into()));
    }

    /// Leaves empty text out.
    fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.set(name, value);
        }
    }

    /// Leaves zero out.
    fn port(&mut self, name: &str, port: u16) {
        if port != 0 {
            self.set(name, i64::from(port));
        }
    }

    /// Leaves an empty list out.
    fn list(&mut self, name: &str, items: Vec<String>) {
        if !items.is_empty() {
            self.0.push((name.to_owned(), items.into_iter().collect()));
        }
    }

    /// Documents are given as JSON text, to be put into the template as they are.
    fn json(&mut self, name: &str, document: &Json) {
        self.set(name, document.to_string());
    }
}

/// All parameters.
pub(super) fn parameters(
    inputs: &EnvoyInputs<'_>,
    derived: &Derived,
    warnings: &mut Vec<Warning>,
) -> Result<Value, FieldError> {
    let mut out = Parameters(Vec::new());
    identity(&mut out, inputs, derived);
    addresses(&mut out, inputs, derived);
    statistics(&mut out, inputs, warnings);
    tracing(&mut out, inputs, derived)?;
    let settings = inputs.settings;
    if !settings.statsd_udp_address.is_empty() {
        let statsd = socket_address(inputs, "statsdUdpAddress", &settings.statsd_udp_address)?;
        out.json("statsd", &statsd);
    }
    let metrics = clusters::metrics_service_address(settings).map(|address| RemoteService {
        address: address.to_owned(),
        ..settings.envoy_metrics_service.clone().unwrap_or_default()
    });
    let name = "envoy_metrics_service";
    remote_service(
        &mut out,
        inputs,
        "envoyMetricsService",
        name,
        metrics.as_ref(),
    )?;
    let logs = settings.envoy_access_log_service.as_ref();
    let name = "envoy_accesslog_service";
    remote_service(&mut out, inputs, "envoyAccessLogService", name, logs)?;
    Ok(out.0.into_iter().collect())
}

fn identity(out: &mut Parameters, inputs: &EnvoyInputs<'_>, derived: &Derived) {
    let EnvoyInputs { node, settings, .. } = *inputs;
    let config = proxy_config(node);
    out.set("config", config.clone());
    out.set("metadata", node_metadata(node, config));
    out.set("nodeID", node.id.as_str());
    out.set("nodeType", node.node_type.as_str());
    out.set("cluster", node.cluster.as_str());
    out.text("region", &node.locality.region);
    out.text("zone", &node.locality.zone);
    out.text("sub_zone", &node.locality.sub_zone);
    out.json("meta_json_str", &Json::Object(node.metadata.clone()));
    out.json("runtime_flags", &Json::Object(runtime_flags(inputs)));
    out.set(
        "xds_type",
        if derived.delta { "DELTA_GRPC" } else { "GRPC" },
    );
    out.set("metadata_discovery", derived.discovery);
    out.set("log_json", inputs.log_as_json);
    out.text("outlier_log_path", &node.outlier_log_path);
    out.set(
        "workload_identity_socket_file",
        node.workload_identity_socket_file.as_str(),
    );
    if node.external_sds {
        out.set("custom_file_path", clusters::FILES_SDS_SOCKET);
    }
    if node.self_discovery {
        out.set("enable_self_discovery", true);
    }
    if let Some(text) = node.raw.text("LOAD_STATS_CONFIG_JSON") {
        out.set("load_stats_config_json_str", text);
    }
    let names = node.metadata.get("PILOT_SAN").and_then(Json::as_array);
    let names = names
        .into_iter()
        .flatten()
        .map(|name| json!({ "exact": name }));
    out.json("pilot_SAN", &names.collect());
    let platform = &node.platform_metadata;
    if let Some(number) = platform.get("gcp_project_number") {
        out.set("gcp_project_number", number.as_str());
    }
    let sts = node.metadata.get("STS_PORT").and_then(Json::as_str);
    if let Some(port) = sts.and_then(|text| text.parse::<i64>().ok()) {
        out.set("sts", true);
        out.set("sts_port", port);
        if let Some(project) = platform.get("gcp_project") {
            out.set("gcp_project_id", project.as_str());
        }
    }
    out.set(
        "global_downstream_max_connections",
        connection_limit(settings),
    );
}

fn addresses(out: &mut Parameters, inputs: &EnvoyInputs<'_>, derived: &Derived) {
    let EnvoyInputs { node, settings, .. } = *inputs;
    let families = &derived.families;
    out.set("localhost", families.localhost);
    out.set("wildcard", families.wildcard);
    out.set("dns_lookup_family", families.dns_lookup);
    if let Some((localhost, wildcard)) = families.additional {
        out.set("additional_localhost", localhost);
        out.set("additional_wildcard", wildcard);
        out.set("dual_stack", true);
    }
    out.set("discovery_address", settings.discovery_address.as_str());
    out.set("discovery_host", settings.discovery_host());
    if let Ok(address) = socket_address(inputs, "discoveryAddress", &settings.discovery_address) {
        out.json("pilot_grpc_address", &address);
    }
    out.set("envoy_status_port", i64::from(node.ports.status));
    out.set("envoy_prometheus_port", i64::from(node.ports.prometheus));
    out.port("secure_metrics_port", node.ports.secure_metrics);
    out.port(
        "secure_merged_metrics_port",
        node.ports.secure_merged_metrics,
    );
    if inputs.status_proxy_protocol {
        out.set("envoy_status_port_enable_proxy_protocol", true);
    }
    let restricted = settings.proxy_metadata.get("METRICS_LOCALHOST_ACCESS_ONLY");
    let restricted = restricted.is_some_and(|value| value == "true");
    out.set("metrics_localhost_access_only", restricted);
}

fn statistics(out: &mut Parameters, inputs: &EnvoyInputs<'_>, warnings: &mut Vec<Warning>) {
    let EnvoyInputs { node, settings, .. } = *inputs;
    let compression = settings.stats_compression.unwrap_or(true);
    out.set("envoy_metrics_stats_compression", compression);
    out.list("extraStatTags", stats::extra_tags(node, settings));
    let inclusion = stats::inclusion(node, settings);
    out.list("inclusionPrefix", inclusion.prefixes);
    out.list("inclusionSuffix", inclusion.suffixes);
    out.list("inclusionRegexps", inclusion.regexps);
    let buckets = stats::histogram_buckets(node, warnings).unwrap_or_else(|| json!([]));
    let buckets = buckets
        .as_array()
        .into_iter()
        .flatten()
        .map(histogram_bucket);
    out.set("histogram_buckets", buckets.collect::<Vec<_>>());
    let mut intervals = Map::new();
    stats::intervals(node, &mut intervals, warnings);
    for (name, value) in &intervals {
        out.text(name, value.as_str().unwrap_or_default());
    }
}

fn histogram_bucket(json: &Json) -> Value {
    let prefix = json["match"]["prefix"].as_str().unwrap_or_default();
    let prefix = ("Prefix".to_owned(), Value::from(prefix));
    let bounds = json["buckets"].as_array().into_iter().flatten();
    let bounds: Vec<Value> = bounds
        .map(|b| Value::Float(b.as_f64().unwrap_or(0.0)))
        .collect();
    let fields = [
        (
            "Match".to_owned(),
            Value::structure("histogram match", [prefix], json["match"].clone()),
        ),
        ("Buckets".to_owned(), Value::from(bounds)),
    ];
    Value::structure("histogram bucket", fields, json.clone())
}

fn tracing(
    out: &mut Parameters,
    inputs: &EnvoyInputs<'_>,
    derived: &Derived,
) -> Result<(), FieldError> {
    let Some(settings) = &inputs.settings.tracing else {
        return Ok(());
    };
    if let Some(tracer) = &derived.tracer {
        let name = match tracer.kind {
            TracerKind::Zipkin => "zipkin",
            TracerKind::Lightstep => "lightstep",
            TracerKind::Datadog => "datadog",
        };
        out.json(name, &tracer.address);
        if let Some(file) = &tracer.token_file {
            out.set("lightstepToken", file.path.as_str());
        }
    }
    stackdriver(out, inputs.node, settings);
    let http2 = settings.lightstep.is_some();
    let tls = settings.tls_settings.as_ref();
    if let Some(socket) = upstream(inputs.node, "tracing.tlsSettings", tls, "tracer", http2)? {
        out.json("tracing_tls", &socket);
    }
    Ok(())
}

fn stackdriver(out: &mut Parameters, node: &Node, tracing: &Tracing) {
    let Some(settings) = &tracing.stackdriver else {
        return;
    };
    let limit = |name: &str| {
        let text = settings[name].as_str();
        text.and_then(|t| t.parse().ok())
            .unwrap_or(STACKDRIVER_LIMIT)
    };
    let project = node.platform_metadata.get("gcp_project");
    out.set("stackdriver", true);
    out.set("stackdriverProjectID", project.map_or("", String::as_str));
    out.set(
        "stackdriverDebug",
        settings["debug"].as_bool().unwrap_or(false),
    );
    out.set("stackdriverMaxAnnotations", limit("maxNumberOfAnnotations"));
    out.set("stackdriverMaxAttributes", limit("maxNumberOfAttributes"));
    out.set("stackdriverMaxEvents", limit("maxNumberOfMessageEvents"));
}

fn remote_service(
    out: &mut Parameters,
    inputs: &EnvoyInputs<'_>,
    path: &str,
    name: &str,
    service: Option<&RemoteService>,
) -> Result<(), FieldError> {
    let Some(service) = service.filter(|s| !s.address.is_empty()) else {
        return Ok(());
    };
    let address = socket_address(inputs, &format!("{path}.address"), &service.address)?;
    out.json(&format!("{name}_address"), &address);
    let tls_path = format!("{path}.tlsSettings");
    let tls = service.tls_settings.as_ref();
    if let Some(socket) = upstream(inputs.node, &tls_path, tls, name, true)? {
        out.json(&format!("{name}_tls"), &socket);
    }
    if let Some(keepalive) = &service.tcp_keepalive {
        let options = json!({ "tcp_keepalive": clusters::tcp_keepalive(keepalive) });
        out.json(&format!("{name}_tcp_keepalive"), &options);
    }
    Ok(())
}

/// ProxyConfig as the agent's structure.
fn proxy_config(node: &Node) -> Value {
    let empty = Map::new();
    let object = node.metadata.get("PROXY_CONFIG").and_then(Json::as_object);
    structure("ProxyConfig", &PROXY_CONFIG, object.unwrap_or(&empty))
}

/// How a metadata field looks to Go.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Flag,
    Number,
    Texts,
    List,
}

/// Fields of node metadata: Go's name, the key in JSON, the form.
const METADATA_FIELDS: &[(&str, &str, Form)] = &[
    ("InstanceName", "NAME", Form::Text),
    ("Owner", "OWNER", Form::Text),
    ("PilotSubjectAltName", "PILOT_SAN", Form::List),
    ("OutlierLogPath", "OUTLIER_LOG_PATH", Form::Text),
    ("AppContainers", "APP_CONTAINERS", Form::Text),
    ("IstioProxySHA", "ISTIO_PROXY_SHA", Form::Text),
    ("IstioVersion", "ISTIO_VERSION", Form::Text),
    ("IstioRevision", "ISTIO_REVISION", Form::Text),
    ("Labels", "LABELS", Form::Texts),
    ("StaticLabels", "STATIC_LABELS", Form::Texts),
    ("Annotations", "ANNOTATIONS", Form::Texts),
    ("InstanceIPs", "INSTANCE_IPS", Form::List),
    ("Namespace", "NAMESPACE", Form::Text),
    ("NodeName", "NODE_NAME", Form::Text),
    ("WorkloadName", "WORKLOAD_NAME", Form::Text),
    ("InterceptionMode", "INTERCEPTION_MODE", Form::Text),
    ("ServiceAccount", "SERVICE_ACCOUNT", Form::Text),
    ("HTTPProxyPort", "HTTP_PROXY_PORT", Form::Text),
    ("MeshID", "MESH_ID", Form::Text),
    ("ClusterID", "CLUSTER_ID", Form::Text),
    ("Network", "NETWORK", Form::Text),
    ("RequestedNetworkView", "REQUESTED_NETWORK_VIEW", Form::List),
    ("TLSServerCertChain", "TLS_SERVER_CERT_CHAIN", Form::Text),
    ("TLSServerKey", "TLS_SERVER_KEY", Form::Text),
    ("TLSServerRootCert", "TLS_SERVER_ROOT_CERT", Form::Text),
    ("TLSClientCertChain", "TLS_CLIENT_CERT_CHAIN", Form::Text),
    ("TLSClientKey", "TLS_CLIENT_KEY", Form::Text),
    ("TLSClientRootCert", "TLS_CLIENT_ROOT_CERT", Form::Text),
    ("CertBaseDir", "BASE", Form::Text),
    ("IdleTimeout", "IDLE_TIMEOUT", Form::Text),
    ("HTTP10", "HTTP10", Form::Text),
    ("Generator", "GENERATOR", Form::Text),
    ("EnableSelfDiscovery", "ENABLE_SELF_DISCOVERY", Form::Flag),
    ("DNSCapture", "DNS_CAPTURE", Form::Flag),
    ("DNSAutoAllocate", "DNS_AUTO_ALLOCATE", Form::Flag),
    ("DNSProxyAddr", "DNS_PROXY_ADDR", Form::Text),
    ("EnableHBONE", "ENABLE_HBONE", Form::Flag),
    ("DisableHBONESend", "DISABLE_HBONE_SEND", Form::Flag),
    ("AutoRegisterGroup", "AUTO_REGISTER_GROUP", Form::Text),
    ("WorkloadEntry", "WORKLOAD_ENTRY", Form::Text),
    ("UnprivilegedPod", "UNPRIVILEGED_POD", Form::Text),
    ("PlatformMetadata", "PLATFORM_METADATA", Form::Texts),
    ("StsPort", "STS_PORT", Form::Text),
    ("EnvoyStatusPort", "ENVOY_STATUS_PORT", Form::Number),
    ("EnvoyPrometheusPort", "ENVOY_PROMETHEUS_PORT", Form::Number),
    (
        "EnvoySecureMetricsPort",
        "ENVOY_SECURE_METRICS_PORT",
        Form::Number,
    ),
    (
        "EnvoySecureMergedMetricsPort",
        "ENVOY_SECURE_MERGED_METRICS_PORT",
        Form::Number,
    ),
    (
        "ExitOnZeroActiveConnections",
        "EXIT_ON_ZERO_ACTIVE_CONNECTIONS",
        Form::Flag,
    ),
    (
        "InboundListenerExactBalance",
        "INBOUND_LISTENER_EXACT_BALANCE",
        Form::Flag,
    ),
    (
        "OutboundListenerExactBalance",
        "OUTBOUND_LISTENER_EXACT_BALANCE",
        Form::Flag,
    ),
    ("CloudrunAddr", "CLOUDRUN_ADDR", Form::Text),
    ("MetadataDiscovery", "METADATA_DISCOVERY", Form::Flag),
    (
        "EnvoySkipDeprecatedLogs",
        "ENVOY_SKIP_DEPRECATED_LOGS",
        Form::Flag,
    ),
    (
        "WorkloadIdentitySocketFile",
        "WORKLOAD_IDENTITY_SOCKET_FILE",
        Form::Text,
    ),
];

/// Node metadata as the agent's structure.
fn node_metadata(node: &Node, config: Value) -> Value {
    let field = |(name, key, form): &(&str, &str, Form)| {
        let json = node.metadata.get(*key);
        let text = json.and_then(Json::as_str).unwrap_or_default();
        let value = match form {
            Form::Text => Value::from(text),
            Form::Flag => Value::Bool(text == "true"),
            Form::Number => Value::Int(json.and_then(Json::as_i64).unwrap_or(0)),
            Form::Texts => {
                let members = json.and_then(Json::as_object).into_iter().flatten();
                let texts = members.map(|(k, v)| (k.clone(), v.as_str().unwrap_or("").to_owned()));
                let texts: Vec<(String, String)> = texts.collect();
                Value::texts(texts.iter().map(|(k, v)| (k, v)))
            }
            Form::List => match json.and_then(Json::as_array) {
                Some(items) => items
                    .iter()
                    .filter_map(Json::as_str)
                    .map(str::to_owned)
                    .collect(),
                None => text
                    .split(',')
                    .filter(|t| !t.is_empty())
                    .map(str::to_owned)
                    .collect(),
            },
        };
        ((*name).to_owned(), value)
    };
    let mut fields: Vec<(String, Value)> = METADATA_FIELDS.iter().map(field).collect();
    fields.push(("ProxyConfig".to_owned(), config));
    Value::structure("node metadata", fields, Json::Object(node.metadata.clone()))
}
