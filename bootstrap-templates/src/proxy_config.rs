//! `istio.mesh.v1alpha1.ProxyConfig`: merge of its layers, validation, and the typed settings the
//! agent and the bootstrap act on. Layers are JSON values; reading them is the caller's work.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::duration::parse_proto_duration;
use crate::error::{FieldError, FieldProblem, Warning};
use crate::proxy_config_schema::PROXY_CONFIG;

mod validation;

/// Name of `serviceCluster` in the built-in configuration; it means "derive it from the labels".
pub(crate) const DEFAULT_SERVICE_CLUSTER: &str = "istio-proxy";

/// The merged configuration in protobuf JSON. It starts as Istio's built-in defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxyConfig {
    fields: Map<String, Value>,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        let defaults = json!({
            "configPath": "./etc/istio/proxy",
            "binaryPath": "/usr/local/bin/envoy",
            "serviceCluster": DEFAULT_SERVICE_CLUSTER,
            "drainDuration": "45s",
            "terminationDrainDuration": "5s",
            "proxyAdminPort": 15000,
            "controlPlaneAuthPolicy": "MUTUAL_TLS",
            "discoveryAddress": "istiod.istio-system.svc:15012",
            "statNameLength": 189,
            "statusPort": 15020,
        });
        let Value::Object(fields) = defaults else {
            unreachable!("json! built an object")
        };
        Self { fields }
    }
}

impl ProxyConfig {
    /// Lays `overlay` (protobuf JSON, both name spellings) over this configuration: what it sets
    /// replaces, but `proxyMetadata` merges by key and `proxyHeaders` by member. Unknown fields
    /// are warned about and ignored, as in the reference.
    ///
    /// # Errors
    /// A field with a value of another type, naming its path.
    pub fn overlay(&mut self, overlay: &Value) -> Result<Vec<Warning>, FieldError> {
        let mut warnings = Vec::new();
        for (key, value) in PROXY_CONFIG.canonical(overlay, "", &mut warnings)? {
            for sibling in PROXY_CONFIG.siblings(&key) {
                self.fields.remove(&sibling);
            }
            let merges = key == "proxyMetadata" || key == "proxyHeaders";
            match (merges, self.fields.get_mut(&key), value) {
                (true, Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
                (_, _, value) => {
                    self.fields.insert(key, value);
                }
            }
        }
        Ok(warnings)
    }

    /// Sets one string field, e.g. an address that was resolved or an annotation's override.
    pub fn set(&mut self, json_name: &str, value: impl Into<Value>) {
        self.fields.insert(json_name.to_owned(), value.into());
    }

    /// The protobuf JSON form: what goes into node metadata `PROXY_CONFIG`.
    pub fn to_json(&self) -> Map<String, Value> {
        PROXY_CONFIG.without_defaults(&self.fields)
    }

    /// The fields this product acts on, typed.
    ///
    /// # Errors
    /// Never for a value built by [`ProxyConfig::overlay`]; the table and the structs agree. A
    /// difference is reported as the field's parse error, not hidden.
    pub fn settings(&self) -> Result<ProxySettings, FieldError> {
        let value = Value::Object(self.fields.clone());
        serde_json::from_value(value)
            .map_err(|e| FieldError::new("ProxyConfig", FieldProblem::BadJson(e.to_string())))
    }

    /// The rules of Istio's own validation, plus refusal of what is not implemented.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn validate(&self) -> Result<ProxySettings, FieldError> {
        let settings = self.settings()?;
        settings.validate()?;
        Ok(settings)
    }
}

/// Typed view of the fields that the agent or the bootstrap uses. Absent strings are empty.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxySettings {
    /// Folder of the generated files.
    pub config_path: String,
    /// The proxy's binary.
    pub binary_path: String,
    /// Explicit cluster name, if the oneof holds one.
    pub service_cluster: Option<String>,
    /// Naming scheme of the cluster name, if the oneof holds one.
    pub tracing_service_name: Option<TracingServiceName>,
    /// The proxy's own drain time; passed in whole seconds.
    #[serde(deserialize_with = "optional_duration")]
    pub drain_duration: Option<Duration>,
    /// Wait between drain and kill at termination. Absent: 5 s.
    #[serde(deserialize_with = "optional_duration")]
    pub termination_drain_duration: Option<Duration>,
    /// istiod's `host:port`.
    pub discovery_address: String,
    /// Statsd sink, resolved by the caller.
    pub statsd_udp_address: String,
    /// Deprecated spelling of `envoyMetricsService.address`.
    pub envoy_metrics_service_address: String,
    /// The proxy's admin port.
    pub proxy_admin_port: i32,
    /// Plain or TLS towards istiod.
    pub control_plane_auth_policy: AuthPolicy,
    /// Bootstrap written by the user; nothing is generated then.
    pub custom_config_file: String,
    /// Worker threads; absent or 0: the proxy's own choice.
    pub concurrency: Option<i32>,
    /// Bootstrap template of the user.
    pub proxy_bootstrap_template_path: String,
    /// Tracer.
    pub tracing: Option<Tracing>,
    /// gRPC access log service.
    pub envoy_access_log_service: Option<RemoteService>,
    /// gRPC metrics service.
    pub envoy_metrics_service: Option<RemoteService>,
    /// Extra environment and node metadata.
    pub proxy_metadata: BTreeMap<String, String>,
    /// Runtime flags over the defaults.
    pub runtime_values: BTreeMap<String, String>,
    /// The agent's status port; 0 disables it (only by annotation).
    pub status_port: i32,
    /// Extra stat tags.
    pub extra_stat_tags: Vec<String>,
    /// Probe of the workload, used outside of Kubernetes.
    pub readiness_probe: Option<Value>,
    /// What stats to keep.
    pub proxy_stats_matcher: Option<ProxyStatsMatcher>,
    /// Access log flush interval. Absent: 1 s.
    #[serde(deserialize_with = "optional_duration")]
    pub file_flush_interval: Option<Duration>,
    /// Access log flush size. 0: the proxy's default.
    pub file_flush_min_size_kb: u32,
    /// Compression of the stats listener. Absent: on.
    pub stats_compression: Option<bool>,
    /// Limits; most are istiod's business.
    pub connection_settings: Option<ConnectionSettings>,
    /// Accelerator for private keys.
    pub private_key_provider: Option<PrivateKeyProvider>,
}

/// `ProxyConfig.TracingServiceName`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TracingServiceName {
    /// `<app label>.<namespace>`.
    AppLabelAndNamespace,
    /// Canonical service name.
    CanonicalNameOnly,
    /// Canonical service name and namespace.
    CanonicalNameAndNamespace,
}

/// `AuthenticationPolicy` towards istiod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AuthPolicy {
    /// Plaintext.
    #[default]
    None,
    /// TLS.
    MutualTls,
    /// Not allowed here.
    Inherit,
}

/// `ProxyConfig.ProxyStatsMatcher`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyStatsMatcher {
    /// Name prefixes.
    pub inclusion_prefixes: Vec<String>,
    /// Name suffixes.
    pub inclusion_suffixes: Vec<String>,
    /// Regular expressions.
    pub inclusion_regexps: Vec<String>,
}

/// `ProxyConfig.PrivateKeyProvider`: accelerators that hold the workload's key.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PrivateKeyProvider {
    /// Intel's CryptoMB.
    pub cryptomb: Option<PolledProvider>,
    /// Intel's QAT.
    pub qat: Option<PolledProvider>,
}

/// Settings of either provider.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolledProvider {
    /// How long to wait for more work before a batch starts.
    #[serde(deserialize_with = "optional_duration")]
    pub poll_delay: Option<Duration>,
    /// Whether to go on without the hardware.
    pub fallback: Option<bool>,
}

/// Numbers of `ProxyConfig.ConnectionSettings`. All but the last are istiod's business and only
/// checked here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionSettings {
    /// Bytes.
    pub listener_per_connection_buffer_limit_bytes: Option<i32>,
    /// Bytes.
    pub cluster_per_connection_buffer_limit_bytes: Option<i32>,
    /// Streams of one HTTP/2 connection.
    pub http_max_concurrent_streams: Option<i32>,
    /// Bytes.
    pub http2_initial_stream_window_size: Option<i32>,
    /// Bytes.
    pub http2_initial_connection_window_size: Option<i32>,
    /// Connections of one listener.
    pub listener_connection_limit: Option<i32>,
    /// Connections over all listeners; absent: other sources decide.
    pub global_downstream_connection_limit: Option<i32>,
}

/// `Tracing`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tracing {
    /// Zipkin collector.
    pub zipkin: Option<Collector>,
    /// Lightstep collector.
    pub lightstep: Option<Lightstep>,
    /// Datadog agent.
    pub datadog: Option<Collector>,
    /// Stackdriver; configured by istiod, needs a GCP project.
    pub stackdriver: Option<Value>,
    /// OpenCensus agent; configured by istiod.
    pub open_census_agent: Option<Value>,
    /// TLS to the collector.
    pub tls_settings: Option<ClientTlsSettings>,
}

/// A collector that is only an address.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Collector {
    /// `host:port`; the host may be `$(HOST_IP)`.
    pub address: String,
}

/// `Tracing.Lightstep`.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lightstep {
    /// `host:port`.
    pub address: String,
    /// Secret; goes into a file of its own.
    pub access_token: String,
}

impl std::fmt::Debug for Lightstep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lightstep")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// `RemoteService`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RemoteService {
    /// `host:port`.
    pub address: String,
    /// TLS to it.
    pub tls_settings: Option<ClientTlsSettings>,
    /// TCP keepalive to it.
    pub tcp_keepalive: Option<TcpKeepalive>,
}

/// `TcpKeepalive`. Zero or absent members are left to the operating system.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpKeepalive {
    /// Probes before the connection counts as dead.
    pub probes: u32,
    /// Idle time before the first probe.
    #[serde(deserialize_with = "optional_duration")]
    pub time: Option<Duration>,
    /// Time between probes.
    #[serde(deserialize_with = "optional_duration")]
    pub interval: Option<Duration>,
}

/// `ClientTLSSettings`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTlsSettings {
    /// Kind of TLS.
    pub mode: TlsMode,
    /// File of the client chain.
    pub client_certificate: String,
    /// File of the client key.
    pub private_key: String,
    /// File of the roots.
    pub ca_certificates: String,
    /// Not usable in a bootstrap.
    pub credential_name: String,
    /// Names one of which the server certificate must carry.
    pub subject_alt_names: Vec<String>,
    /// TLS server name.
    pub sni: String,
    /// Not usable in a bootstrap.
    pub insecure_skip_verify: Option<bool>,
    /// Not usable in a bootstrap.
    pub ca_crl: String,
}

/// `ClientTLSSettings.TLSmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// Plaintext.
    #[default]
    Disable,
    /// Server certificate only.
    Simple,
    /// Client certificate from files.
    Mutual,
    /// Client certificate of the workload.
    IstioMutual,
}

fn optional_duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    let text: Option<String> = Option::deserialize(d)?;
    let parse = |t: String| {
        parse_proto_duration(&t).ok_or_else(|| serde::de::Error::custom(format!("duration {t:?}")))
    };
    text.map(parse).transpose()
}

impl ProxySettings {
    /// `connect` name of istiod without its port.
    pub fn discovery_host(&self) -> &str {
        self.discovery_address.split(':').next().unwrap_or_default()
    }
}

/// Splits `host:port`; a bracketed IPv6 host loses its brackets. The host may not be empty.
pub fn split_host_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    let port: u16 = port.parse().ok()?;
    (!host.is_empty() && port != 0).then_some((host, port))
}
