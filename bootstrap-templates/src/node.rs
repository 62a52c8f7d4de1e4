//! The node a proxy presents to istiod: identity, cluster name, locality and metadata. Built once
//! from typed inputs and used by both bootstraps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::error::{FieldError, FieldProblem, Warning};
use crate::metadata::{self, RawMetadata};
use crate::proxy_config::{
    DEFAULT_SERVICE_CLUSTER, ProxyConfig, ProxySettings, TracingServiceName,
};

/// Label that carries the locality after it was cleaned.
const LOCALITY_LABEL: &str = "istio-locality";
const TOPOLOGY_LOCALITY_LABEL: &str = "topology.istio.io/locality";
const CANONICAL_NAME_LABEL: &str = "service.istio.io/canonical-name";
/// Changes with every rollout of a Deployment; istiod must not see it.
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// Kind of proxy: the first part of the node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeType {
    /// Beside an application.
    Sidecar,
    /// Gateway.
    Router,
    /// Waypoint of ambient mode.
    Waypoint,
    /// Node proxy of ambient mode.
    Ztunnel,
    /// Gateway that is not Envoy.
    Agentgateway,
}

impl NodeType {
    /// Parses the word of the command line.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "sidecar" => Self::Sidecar,
            "router" => Self::Router,
            "waypoint" => Self::Waypoint,
            "ztunnel" => Self::Ztunnel,
            "agentgateway" => Self::Agentgateway,
            _ => return None,
        })
    }

    /// The word of the command line and of the node id.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
            Self::Waypoint => "waypoint",
            Self::Ztunnel => "ztunnel",
            Self::Agentgateway => "agentgateway",
        }
    }
}

/// Region, zone and sub-zone; empty members are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locality {
    /// First part.
    pub region: String,
    /// Second part.
    pub zone: String,
    /// Third part.
    pub sub_zone: String,
}

impl Locality {
    /// Splits `region/zone/subzone`; missing parts are empty.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self {
            region: next(),
            zone: next(),
            sub_zone: next(),
        }
    }

    fn to_json(&self) -> Value {
        let parts = [
            ("region", &self.region),
            ("zone", &self.zone),
            ("sub_zone", &self.sub_zone),
        ];
        let set = parts.into_iter().filter(|(_, value)| !value.is_empty());
        Value::Object(
            set.map(|(key, value)| (key.to_owned(), Value::from(value.clone())))
                .collect(),
        )
    }
}

/// What a cloud platform says about the machine. Nothing by default.
#[derive(Debug, Clone, Default)]
pub struct Platform {
    /// Goes into `PLATFORM_METADATA`.
    pub metadata: BTreeMap<String, String>,
    /// Used when no label names a locality.
    pub locality: Locality,
    /// Instance labels; only used outside of Kubernetes.
    pub labels: BTreeMap<String, String>,
}

/// Ports that istiod must know. 0 means off.
#[derive(Debug, Clone, Copy)]
pub struct NodePorts {
    /// Health listener of the proxy.
    pub status: u16,
    /// Prometheus listener of the proxy.
    pub prometheus: u16,
    /// mTLS listener with the proxy's statistics.
    pub secure_metrics: u16,
    /// mTLS listener with the merged statistics.
    pub secure_merged_metrics: u16,
}

/// Everything node metadata is made of.
#[derive(Debug, Clone)]
pub struct NodeInputs {
    /// Kind of proxy.
    pub node_type: NodeType,
    /// Addresses, the pod's own first; never empty.
    pub ips: Vec<IpAddr>,
    /// `POD_NAME`.
    pub pod_name: String,
    /// `POD_NAMESPACE`.
    pub namespace: String,
    /// `SERVICE_ACCOUNT`.
    pub service_account: String,
    /// DNS domain of the id.
    pub domain: String,
    /// Variables `ISTIO_META_*` and `ISTIO_METAJSON_*`, full names.
    pub meta_variables: BTreeMap<String, String>,
    /// `DNS_PROXY_ADDR` if set and not empty.
    pub dns_proxy_addr: Option<String>,
    /// Version reported unless `ISTIO_META_ISTIO_VERSION` says otherwise.
    pub istio_version: String,
    /// Pod labels; `None` without a labels file.
    pub labels: Option<BTreeMap<String, String>>,
    /// Pod annotations; `None` without an annotations file.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Ports.
    pub ports: NodePorts,
    /// `EXIT_ON_ZERO_ACTIVE_CONNECTIONS`.
    pub exit_on_zero_active_connections: bool,
    /// `PEER_METADATA_DISCOVERY` if set.
    pub metadata_discovery: Option<bool>,
    /// `ENVOY_SKIP_DEPRECATED_LOGS`.
    pub skip_deprecated_logs: bool,
    /// `WORKLOAD_IDENTITY_SOCKET_FILE`.
    pub workload_identity_socket_file: String,
    /// `--outlierLogPath`, maybe empty.
    pub outlier_log_path: String,
    /// `--stsPort`; 0 means off.
    pub sts_port: u32,
    /// `credential-uds/socket` exists and answers.
    pub credential_socket: bool,
    /// Identities come from an SDS server outside of the agent.
    pub external_sds: bool,
    /// Cloud platform.
    pub platform: Option<Platform>,
    /// Whether the pod runs in Kubernetes; instance labels count only outside.
    pub kubernetes: bool,
}

/// The finished node.
#[derive(Debug, Clone)]
pub struct Node {
    /// `type~ip~name~domain`.
    pub id: String,
    /// Kind of proxy.
    pub node_type: NodeType,
    /// `node.cluster`.
    pub cluster: String,
    /// `node.locality`.
    pub locality: Locality,
    /// `node.metadata` as sent.
    pub metadata: Map<String, Value>,
    /// Addresses without duplicates.
    pub ips: Vec<IpAddr>,
    /// Effective labels.
    pub labels: BTreeMap<String, String>,
    /// Effective annotations.
    pub annotations: BTreeMap<String, String>,
    pub(crate) ports: NodePorts,
    pub(crate) raw: RawMetadata,
    pub(crate) metadata_discovery: bool,
    pub(crate) self_discovery: bool,
    pub(crate) exit_on_zero: bool,
    pub(crate) external_sds: bool,
    pub(crate) outlier_log_path: String,
    pub(crate) workload_identity_socket_file: String,
    pub(crate) platform_metadata: BTreeMap<String, String>,
}

impl Node {
    /// Builds the node.
    ///
    /// # Errors
    /// A metadata variable of the wrong shape, naming it.
    pub fn build(
        inputs: &NodeInputs,
        config: &ProxyConfig,
        settings: &ProxySettings,
    ) -> Result<(Self, Vec<Warning>), FieldError> {
        let mut warnings = Vec::new();
        let raw = RawMetadata::collect(inputs, settings, &mut warnings);
        let static_labels = static_labels(inputs, &raw)?;
        let mut labels = labels(inputs, &raw, &static_labels)?;
        let mut annotations = raw.string_map("ANNOTATIONS")?.unwrap_or_default();
        annotations.extend(inputs.annotations.clone().unwrap_or_default());
        let locality = locality(inputs, &mut labels);
        let hbone = raw.boolean("ENABLE_HBONE", &mut warnings);
        let platform = inputs.platform.clone().unwrap_or_default();
        let mut node = Self {
            id: node_id(inputs),
            node_type: inputs.node_type,
            cluster: cluster_name(inputs, settings, &labels, raw.text("WORKLOAD_NAME")),
            locality,
            metadata: Map::new(),
            ips: deduplicated(&inputs.ips),
            labels,
            annotations,
            ports: inputs.ports,
            metadata_discovery: inputs.metadata_discovery.unwrap_or(hbone),
            self_discovery: raw.boolean("ENABLE_SELF_DISCOVERY", &mut warnings),
            exit_on_zero: inputs.exit_on_zero_active_connections,
            external_sds: inputs.external_sds,
            outlier_log_path: inputs.outlier_log_path.clone(),
            workload_identity_socket_file: inputs.workload_identity_socket_file.clone(),
            platform_metadata: platform.metadata,
            raw,
        };
        node.metadata = metadata::typed(
            &node,
            inputs,
            config,
            settings,
            &static_labels,
            &mut warnings,
        )?;
        Ok((node, warnings))
    }

    /// The `node` member of Envoy's bootstrap.
    pub fn to_envoy_json(&self) -> Value {
        json!({
            "id": self.id,
            "cluster": self.cluster,
            "locality": self.locality.to_json(),
            "metadata": self.metadata,
        })
    }

    /// The `node` member of gRPC's bootstrap: no cluster, and `GENERATOR: grpc`.
    pub fn to_grpc_json(&self) -> Value {
        let mut metadata = self.metadata.clone();
        metadata.insert("GENERATOR".to_owned(), Value::from("grpc"));
        json!({ "id": self.id, "metadata": metadata, "locality": self.locality.to_json() })
    }
}

fn node_id(inputs: &NodeInputs) -> String {
    let ip = inputs
        .ips
        .first()
        .map(ToString::to_string)
        .unwrap_or_default();
    let NodeInputs {
        pod_name,
        namespace,
        domain,
        ..
    } = inputs;
    format!(
        "{}~{ip}~{pod_name}.{namespace}~{domain}",
        inputs.node_type.as_str()
    )
}

fn deduplicated(ips: &[IpAddr]) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    ips.iter().copied().filter(|ip| seen.insert(*ip)).collect()
}

/// `ISTIO_METAJSON_LABELS` names labels outside of Kubernetes; a platform may add its own there.
fn static_labels(
    inputs: &NodeInputs,
    raw: &RawMetadata,
) -> Result<BTreeMap<String, String>, FieldError> {
    let mut labels = match inputs.meta_variables.get("ISTIO_METAJSON_LABELS") {
        Some(text) => serde_json::from_str(text).unwrap_or_default(),
        None => BTreeMap::new(),
    };
    if labels.is_empty() {
        labels = raw.string_map("STATIC_LABELS")?.unwrap_or_default();
    }
    if let Some(platform) = inputs.platform.as_ref().filter(|_| !inputs.kubernetes) {
        labels.extend(platform.labels.clone());
    }
    Ok(labels)
}

fn labels(
    inputs: &NodeInputs,
    raw: &RawMetadata,
    static_labels: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, FieldError> {
    let Some(pod_labels) = &inputs.labels else {
        let from_variable = inputs.meta_variables.contains_key("ISTIO_METAJSON_LABELS");
        let named = if from_variable {
            Some(static_labels.clone())
        } else {
            None
        };
        return Ok(named.or(raw.string_map("LABELS")?).unwrap_or_default());
    };
    let mut labels = static_labels.clone();
    let wanted = pod_labels
        .iter()
        .filter(|(key, _)| key.as_str() != TEMPLATE_HASH_LABEL);
    labels.extend(wanted.map(|(key, value)| (key.clone(), value.clone())));
    Ok(labels)
}

/// A label beats the platform. Label values cannot hold a slash, so dots may stand for them.
fn locality(inputs: &NodeInputs, labels: &mut BTreeMap<String, String>) -> Locality {
    let non_empty = |key: &str| labels.get(key).filter(|value| !value.is_empty()).cloned();
    let Some(label) = non_empty(TOPOLOGY_LOCALITY_LABEL).or_else(|| non_empty(LOCALITY_LABEL))
    else {
        return inputs
            .platform
            .as_ref()
            .map(|p| p.locality.clone())
            .unwrap_or_default();
    };
    let clean = if label.contains('/') {
        label
    } else {
        label.replace('.', "/")
    };
    labels.insert(LOCALITY_LABEL.to_owned(), clean.clone());
    Locality::parse(&clean)
}

fn cluster_name(
    inputs: &NodeInputs,
    settings: &ProxySettings,
    labels: &BTreeMap<String, String>,
    workload: Option<&str>,
) -> String {
    let canonical = || {
        let keys = [CANONICAL_NAME_LABEL, "app.kubernetes.io/name", "app"];
        let label = keys.iter().find_map(|key| labels.get(*key)).cloned();
        label.unwrap_or_else(|| {
            workload
                .filter(|w| !w.is_empty())
                .unwrap_or(DEFAULT_SERVICE_CLUSTER)
                .to_owned()
        })
    };
    let or_default = |name: String| {
        if name.is_empty() || name == DEFAULT_SERVICE_CLUSTER {
            default_cluster(labels, workload, &inputs.namespace)
        } else {
            name
        }
    };
    match settings.tracing_service_name {
        None => or_default(settings.service_cluster.clone().unwrap_or_default()),
        Some(TracingServiceName::AppLabelAndNamespace) => or_default(String::new()),
        Some(TracingServiceName::CanonicalNameOnly) => or_default(canonical()),
        Some(TracingServiceName::CanonicalNameAndNamespace) => match inputs.namespace.as_str() {
            "" => or_default(canonical()),
            namespace => format!("{}.{namespace}", canonical()),
        },
    }
}

fn default_cluster(
    labels: &BTreeMap<String, String>,
    workload: Option<&str>,
    namespace: &str,
) -> String {
    let keys = ["app", "app.kubernetes.io/name", CANONICAL_NAME_LABEL];
    let app = keys
        .iter()
        .find_map(|key| labels.get(*key))
        .map(String::as_str);
    match app.or(workload.filter(|w| !w.is_empty())) {
        Some(name) => format!("{name}.{namespace}"),
        None if !namespace.is_empty() => format!("{DEFAULT_SERVICE_CLUSTER}.{namespace}"),
        None => DEFAULT_SERVICE_CLUSTER.to_owned(),
    }
}

/// Refusal of a metadata value that has another shape than its key.
pub(crate) fn bad_metadata(key: &str, problem: FieldProblem) -> FieldError {
    FieldError::new(format!("node metadata {key}"), problem)
}
