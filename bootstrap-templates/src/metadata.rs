//! Node metadata: the variables that feed it, the keys Istio knows and their JSON forms. Unknown
//! keys pass through unchanged; a known key never lets a variable override what the agent knows.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{FieldError, FieldProblem, Warning};
use crate::node::{Node, NodeInputs, bad_metadata};
use crate::proxy_config::{AuthPolicy, ProxyConfig, ProxySettings};

const META_PREFIX: &str = "ISTIO_META_";
const META_JSON_PREFIX: &str = "ISTIO_METAJSON_";

/// Name istiod's certificate carries when it is reached as `localhost`.
const ISTIOD_DEFAULT_NAME: &str = "istiod.istio-system.svc";

/// Keys that are text and come from variables only.
const TEXT_KEYS: &[&str] = &[
    "NODE_NAME",
    "WORKLOAD_NAME",
    "INTERCEPTION_MODE",
    "MESH_ID",
    "CLUSTER_ID",
    "NETWORK",
    "OWNER",
    "APP_CONTAINERS",
    "ISTIO_PROXY_SHA",
    "ISTIO_REVISION",
    "REQUESTED_NETWORK_VIEW",
    "HTTP_PROXY_PORT",
    "TLS_SERVER_CERT_CHAIN",
    "TLS_SERVER_KEY",
    "TLS_SERVER_ROOT_CERT",
    "TLS_CLIENT_CERT_CHAIN",
    "TLS_CLIENT_KEY",
    "TLS_CLIENT_ROOT_CERT",
    "BASE",
    "IDLE_TIMEOUT",
    "HTTP10",
    "GENERATOR",
    "DNS_PROXY_ADDR",
    "AUTO_REGISTER_GROUP",
    "WORKLOAD_ENTRY",
    "UNPRIVILEGED_POD",
    "CLOUDRUN_ADDR",
];

/// Keys that are booleans and come from variables only.
const BOOL_KEYS: &[&str] = &[
    "DNS_CAPTURE",
    "DNS_AUTO_ALLOCATE",
    "ENABLE_HBONE",
    "DISABLE_HBONE_SEND",
    "ENABLE_SELF_DISCOVERY",
    "INBOUND_LISTENER_EXACT_BALANCE",
    "OUTBOUND_LISTENER_EXACT_BALANCE",
];

/// What the variables say, before typing.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawMetadata(Map<String, Value>);

impl RawMetadata {
    /// Later sources win: `proxyMetadata`, `ISTIO_META_*`, `ISTIO_METAJSON_*`, `DNS_PROXY_ADDR`.
    pub(crate) fn collect(
        inputs: &NodeInputs,
        settings: &ProxySettings,
        warnings: &mut Vec<Warning>,
    ) -> Self {
        let mut raw = Map::new();
        for (name, value) in settings.proxy_metadata.iter().chain(&inputs.meta_variables) {
            if let Some(key) = name.strip_prefix(META_PREFIX) {
                raw.insert(key.to_owned(), Value::from(value.clone()));
            }
        }
        for (name, text) in &inputs.meta_variables {
            if !name.starts_with(META_JSON_PREFIX) {
                continue;
            }
            match serde_json::from_str::<Map<String, Value>>(text) {
                Ok(object) => raw.extend(object),
                Err(e) => warnings.push(Warning::BadMetaJson {
                    variable: name.clone(),
                    reason: e.to_string(),
                }),
            }
        }
        if let Some(address) = &inputs.dns_proxy_addr {
            raw.insert("DNS_PROXY_ADDR".to_owned(), Value::from(address.clone()));
        }
        Self(raw)
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str)
    }

    /// A boolean of any Go spelling. Unparseable text counts as unset, with a warning: a typo in
    /// one variable must not keep a pod from starting.
    pub(crate) fn boolean(&self, key: &'static str, warnings: &mut Vec<Warning>) -> bool {
        let text = match self.0.get(key) {
            None => return false,
            Some(Value::Bool(value)) => return *value,
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        if text.is_empty() {
            return false;
        }
        parse_go_bool(&text).unwrap_or_else(|| {
            let warning = Warning::BadBoolean { key, value: text };
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
            false
        })
    }

    /// A map of strings, which only `ISTIO_METAJSON_*` can carry.
    pub(crate) fn string_map(
        &self,
        key: &str,
    ) -> Result<Option<BTreeMap<String, String>>, FieldError> {
        let Some(value) = self.0.get(key) else {
            return Ok(None);
        };
        let wrong = |e: serde_json::Error| bad_metadata(key, FieldProblem::BadJson(e.to_string()));
        serde_json::from_value(value.clone())
            .map(Some)
            .map_err(wrong)
    }
}

/// What istiod's `StringBool` reads.
fn readable_boolean(value: &Value) -> bool {
    match value {
        Value::Bool(_) => true,
        Value::String(text) => parse_go_bool(text).is_some(),
        _ => false,
    }
}

/// Go's `strconv.ParseBool`.
pub fn parse_go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Name of istiod for certificate checks: the host of the address, except for `localhost`.
pub fn istiod_server_name(discovery_host: &str) -> &str {
    if discovery_host == "localhost" {
        ISTIOD_DEFAULT_NAME
    } else {
        discovery_host
    }
}

struct Typed(Map<String, Value>);

impl Typed {
    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.0.insert(key.to_owned(), Value::from(value));
        }
    }

    fn flag(&mut self, key: &str, value: bool) {
        if value {
            self.0.insert(key.to_owned(), Value::from("true"));
        }
    }

    fn port(&mut self, key: &str, port: u16) {
        if port != 0 {
            self.0.insert(key.to_owned(), Value::from(port));
        }
    }

    fn map(&mut self, key: &str, map: &BTreeMap<String, String>) {
        if !map.is_empty() {
            let object = map.iter().map(|(k, v)| (k.clone(), Value::from(v.clone())));
            self.0
                .insert(key.to_owned(), Value::Object(object.collect()));
        }
    }
}

/// The metadata object as sent to istiod.
pub(crate) fn typed(
    node: &Node,
    inputs: &NodeInputs,
    config: &ProxyConfig,
    settings: &ProxySettings,
    static_labels: &BTreeMap<String, String>,
    warnings: &mut Vec<Warning>,
) -> Result<Map<String, Value>, FieldError> {
    let mut out = Typed(Map::new());
    from_variables(&mut out, node, warnings)?;
    out.0
        .insert("PROXY_CONFIG".to_owned(), Value::Object(config.to_json()));
    out.text("ISTIO_VERSION", version(node, inputs));
    out.map("LABELS", &node.labels);
    out.map("STATIC_LABELS", static_labels);
    out.map("ANNOTATIONS", &node.annotations);
    out.map("PLATFORM_METADATA", &node.platform_metadata);
    let ips: Vec<String> = node.ips.iter().map(ToString::to_string).collect();
    out.text("INSTANCE_IPS", &ips.join(","));
    out.text("NAME", &inputs.pod_name);
    out.text("NAMESPACE", &inputs.namespace);
    out.text("SERVICE_ACCOUNT", &inputs.service_account);
    if settings.control_plane_auth_policy == AuthPolicy::MutualTls {
        let name = istiod_server_name(settings.discovery_host());
        out.0
            .insert("PILOT_SAN".to_owned(), Value::from(vec![name]));
    }
    out.port("ENVOY_STATUS_PORT", inputs.ports.status);
    out.port("ENVOY_PROMETHEUS_PORT", inputs.ports.prometheus);
    out.port("ENVOY_SECURE_METRICS_PORT", inputs.ports.secure_metrics);
    out.port(
        "ENVOY_SECURE_MERGED_METRICS_PORT",
        inputs.ports.secure_merged_metrics,
    );
    out.flag(
        "EXIT_ON_ZERO_ACTIVE_CONNECTIONS",
        inputs.exit_on_zero_active_connections,
    );
    out.flag("ENVOY_SKIP_DEPRECATED_LOGS", inputs.skip_deprecated_logs);
    let discovery = if node.metadata_discovery {
        "true"
    } else {
        "false"
    };
    out.text("METADATA_DISCOVERY", discovery);
    out.text(
        "WORKLOAD_IDENTITY_SOCKET_FILE",
        &inputs.workload_identity_socket_file,
    );
    out.text("OUTLIER_LOG_PATH", &inputs.outlier_log_path);
    if inputs.sts_port != 0 {
        out.text("STS_PORT", &inputs.sts_port.to_string());
    }
    out.flag("credential", inputs.credential_socket);
    out.flag("file-credential", inputs.external_sds);
    // A known key that is at its default falls back to what the variable said, as does an
    // unknown key: istiod and users' filters see every variable that was set. A boolean that does
    // not parse is left out: istiod would refuse the whole node for it.
    for (key, value) in &node.raw.0 {
        if BOOL_KEYS.contains(&key.as_str()) && !readable_boolean(value) {
            continue;
        }
        out.0.entry(key.clone()).or_insert_with(|| value.clone());
    }
    Ok(out.0)
}

fn version<'a>(node: &'a Node, inputs: &'a NodeInputs) -> &'a str {
    let named = node
        .raw
        .text("ISTIO_VERSION")
        .filter(|version| !version.is_empty());
    named.unwrap_or(&inputs.istio_version)
}

fn from_variables(
    out: &mut Typed,
    node: &Node,
    warnings: &mut Vec<Warning>,
) -> Result<(), FieldError> {
    for key in TEXT_KEYS {
        match node.raw.0.get(*key) {
            None => {}
            Some(Value::String(text)) => out.text(key, text),
            Some(other) => {
                return Err(bad_metadata(
                    key,
                    crate::schema::wrong_type(key, "a string", other).problem,
                ));
            }
        }
    }
    for key in BOOL_KEYS {
        out.flag(key, node.raw.boolean(key, warnings));
    }
    if let Some(ports) = pod_ports(&node.raw)? {
        out.text("POD_PORTS", &ports);
    }
    Ok(())
}

/// `POD_PORTS` is a string of JSON. Each port is printed again with exactly `name` (if any),
/// `containerPort` and `protocol`, because istiod compares them.
fn pod_ports(raw: &RawMetadata) -> Result<Option<String>, FieldError> {
    #[derive(serde::Deserialize, serde::Serialize)]
    #[serde(rename_all = "camelCase", default)]
    #[derive(Default)]
    struct PodPort {
        #[serde(skip_serializing_if = "String::is_empty")]
        name: String,
        container_port: i64,
        protocol: String,
    }
    let Some(text) = raw.text("POD_PORTS").filter(|text| !text.trim().is_empty()) else {
        return Ok(None);
    };
    let bad =
        |e: serde_json::Error| bad_metadata("POD_PORTS", FieldProblem::BadJson(e.to_string()));
    let ports: Option<Vec<PodPort>> = serde_json::from_str(text).map_err(bad)?;
    match ports {
        Some(ports) if !ports.is_empty() => serde_json::to_string(&ports).map(Some).map_err(bad),
        _ => Ok(None),
    }
}
