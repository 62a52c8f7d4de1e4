//! Environment, files and flags become one validated [`Options`]. Everything that reads the
//! process environment is here; what cannot be honoured is refused here, before anything starts.

mod addresses;
mod dns;
mod environment;
mod proxy_config;
pub mod security;
mod wasm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bootstrap_templates::{
    CompliancePolicy, FieldError, Node, NodeInputs, NodePorts, NodeType, ProxyConfig, ProxySettings,
};

pub use addresses::AddressError;
pub use dns::DnsOptions;
pub use environment::Environment;
pub use proxy_config::ProxyConfigError;

use crate::cli::ProxyArgs;
use crate::health::{HealthConfig, HealthConfigError};
use crate::wasm::WasmConfig;

/// Istio version whose behaviour this agent has; istiod gates features by it.
pub const ISTIO_VERSION: &str = "1.31.0";
/// Where the kubelet writes pod labels; relative, like every path of the agent.
const POD_LABELS: &str = "./etc/istio/pod/labels";
const POD_ANNOTATIONS: &str = "./etc/istio/pod/annotations";
/// The template that the image carries.
const STOCK_TEMPLATE_PATH: &str = "./var/lib/istio/envoy/envoy_bootstrap_tmpl.json";
const DEFAULT_GRPC_BOOTSTRAP: &str = "./etc/istio/proxy/grpc-bootstrap.json";
const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";

/// Why the options cannot be used. All end the agent with code 255.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// ProxyConfig or one of its layers.
    #[error(transparent)]
    ProxyConfig(#[from] ProxyConfigError),
    /// Node metadata.
    #[error("node metadata: {0}")]
    Metadata(#[from] FieldError),
    /// The machine's addresses cannot be read.
    #[error(transparent)]
    Addresses(#[from] AddressError),
    /// A variable with a value that is not implemented or makes no sense.
    #[error("{variable}={value}: {reason}")]
    Variable {
        /// Name.
        variable: &'static str,
        /// Text found.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// `readinessProbe` of ProxyConfig.
    #[error(transparent)]
    Health(#[from] HealthConfigError),
}

/// Where Envoy's bootstrap comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootstrapSource {
    /// Built by this agent.
    Generated,
    /// Rendered from the user's template.
    Template(PathBuf),
    /// `customConfigFile`: the user's file, given to the proxy as it is and never removed.
    File(PathBuf),
}

/// Settings of the status server.
#[derive(Debug, Clone)]
pub struct StatusOptions {
    /// Port; 0 means no server.
    pub port: u16,
    /// `ISTIO_KUBE_APP_PROBERS`.
    pub app_probers: String,
    /// `ISTIO_PROMETHEUS_ANNOTATIONS`, sidecars only.
    pub prometheus: Option<String>,
    /// Address of the application for probes: the pod's, or `None` for `localhost`
    /// (`REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION`).
    pub probe_destination: Option<std::net::IpAddr>,
    /// `ISTIO_ENABLE_HTTP2_PROBING`.
    pub http2_probing: bool,
    /// `ENABLE_PROBE_KEEPALIVE_CONNECTIONS`.
    pub probe_keep_alive: bool,
    /// `METRICS_LOCALHOST_ACCESS_ONLY`.
    pub localhost_metrics_only: bool,
    /// `PILOT_AGENT_MERGE_ENVOY_STATS`, false also without a proxy.
    pub merge_proxy_stats: bool,
    /// `ENVOY_PROMETHEUS_PORT`.
    pub prometheus_port: u16,
}

/// Settings of the supervisor.
#[derive(Debug, Clone)]
pub struct DrainOptions {
    /// `terminationDrainDuration`, or `TERMINATION_DRAIN_DURATION_SECONDS` if that is set.
    pub termination: Duration,
    /// `MINIMUM_DRAIN_DURATION`.
    pub minimum: Duration,
    /// `drainDuration`: how long the proxy itself takes connections while it drains.
    pub proxy: Duration,
    /// `EXIT_ON_ZERO_ACTIVE_CONNECTIONS`.
    pub exit_on_zero: bool,
    /// Inbound listeners only: sidecars, whose application may still call out.
    pub inbound_only: bool,
    /// Ports of the proxy's own listeners, whose connections do not count.
    pub own_ports: Vec<u16>,
}

impl DrainOptions {
    /// Upper bound of the wait for zero connections: `terminationDrainDuration` where it leaves
    /// time after the minimum; else the minimum and the proxy's own drain time (the default of
    /// the former is as short as the minimum, and would leave none).
    pub fn limit(&self) -> Duration {
        if self.termination > self.minimum {
            self.termination
        } else {
            self.minimum.saturating_add(self.proxy)
        }
    }
}

/// Everything the agent was told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Arguments of `proxy`.
    pub args: ProxyArgs,
    /// `--log_as_json`.
    pub log_as_json: bool,
    /// The environment, for modules with variables of their own.
    pub environment: Environment,
    /// Merged configuration.
    pub config: ProxyConfig,
    /// The same, typed and validated, with the annotations' overrides.
    pub settings: ProxySettings,
    /// Inputs of node metadata; the members about SDS sockets and the platform are filled
    /// in at start.
    pub node: NodeInputs,
    /// Bootstrap.
    pub bootstrap: BootstrapSource,
    /// `GRPC_XDS_BOOTSTRAP`; `None` if set to nothing.
    pub grpc_bootstrap: Option<PathBuf>,
    /// `ISTIO_BOOTSTRAP_OVERRIDE`.
    pub bootstrap_override: Option<PathBuf>,
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
    /// `HOST_IP`.
    pub host_ip: Option<String>,
    /// `DISABLE_ENVOY`.
    pub disable_envoy: bool,
    /// `ISTIO_ENVOY_ENABLE_CORE_DUMP`.
    pub core_dump: bool,
    /// DNS server; `None` if nothing asks for it.
    pub dns: Option<DnsOptions>,
    /// Status server.
    pub status: StatusOptions,
    /// Drain.
    pub drain: DrainOptions,
    /// `readinessProbe`.
    pub health: Option<HealthConfig>,
    /// Wasm modules; `None` passes extension configs unchanged.
    pub wasm: Option<WasmConfig>,
}

impl Options {
    /// Reads files and addresses, merges, validates.
    ///
    /// # Errors
    /// The first thing that cannot be honoured.
    pub async fn load(
        args: ProxyArgs,
        log_as_json: bool,
        environment: Environment,
    ) -> Result<Self, OptionsError> {
        refuse_unsupported(&environment)?;
        let annotations = pod_file(Path::new(POD_ANNOTATIONS));
        let overrides = proxy_config::Layers::read(&args, &environment, annotations.as_ref())?;
        let (config, settings) = overrides.merge(&args, &environment).await?;
        let bootstrap = bootstrap_source(&environment, &settings);
        let node = node_inputs(&args, &environment, annotations)?;
        let port = u16::try_from(settings.status_port).unwrap_or(0);
        let disable_envoy = environment.boolean("DISABLE_ENVOY", false);
        let root = nix::unistd::geteuid().is_root();
        Ok(Self {
            dns: dns::dns_options(&environment, node.node_type == NodeType::Sidecar, root),
            status: status_options(&environment, &node, port, disable_envoy),
            drain: drain_options(&environment, &node, &settings),
            health: health(&environment, &node, &settings)?,
            wasm: wasm::config(&environment)?,
            grpc_bootstrap: non_empty_path(
                &environment.text_or("GRPC_XDS_BOOTSTRAP", DEFAULT_GRPC_BOOTSTRAP),
            ),
            bootstrap_override: non_empty_path(&environment.text("ISTIO_BOOTSTRAP_OVERRIDE")),
            delta_xds: environment.boolean("ISTIO_DELTA_XDS", true),
            dual_stack: environment.boolean("ISTIO_DUAL_STACK", false),
            strip_fragment: environment
                .boolean("HTTP_STRIP_FRAGMENT_FROM_PATH_UNSAFE_IF_DISABLED", true),
            status_proxy_protocol: environment
                .boolean("ENVOY_STATUS_PORT_ENABLE_PROXY_PROTOCOL", false),
            compliance: CompliancePolicy::parse(&environment.text("COMPLIANCE_POLICY")),
            host_ip: Some(environment.text("HOST_IP")).filter(|ip| !ip.is_empty()),
            core_dump: environment.boolean("ISTIO_ENVOY_ENABLE_CORE_DUMP", false),
            disable_envoy,
            args,
            log_as_json,
            environment,
            config,
            settings,
            node,
            bootstrap,
        })
    }

    /// Node metadata, complete. Warnings are logged.
    ///
    /// # Errors
    /// A metadata variable of the wrong shape.
    pub fn build_node(&self) -> Result<Node, OptionsError> {
        let (node, warnings) = Node::build(&self.node, &self.config, &self.settings)?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok(node)
    }

    /// `<configPath>/envoy-rev.json`; `.yaml` if the template is named so, because the proxy goes
    /// by the extension.
    pub fn bootstrap_path(&self) -> PathBuf {
        let yaml = match &self.bootstrap {
            BootstrapSource::Template(path) => {
                let name = path.to_string_lossy();
                name.ends_with(".yaml") || name.ends_with(".yaml.tmpl")
            }
            _ => false,
        };
        let name = if yaml {
            "envoy-rev.yaml"
        } else {
            "envoy-rev.json"
        };
        Path::new(&self.settings.config_path).join(name)
    }

    /// `./etc/istio/proxy/XDS`, also when `configPath` is elsewhere: the proxy finds it there by
    /// its bootstrap.
    pub fn xds_socket_path(&self) -> PathBuf {
        Path::new(&self.settings.config_path).join("XDS")
    }
}

fn non_empty_path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

/// A labels or annotations file. Absent is normal; unreadable or unparseable is said.
fn pod_file(path: &Path) -> Option<BTreeMap<String, String>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            tracing::debug!("no {}", path.display());
            return None;
        }
        Err(e) => {
            tracing::warn!("cannot read {}: {e}", path.display());
            return None;
        }
    };
    let parsed = bootstrap_templates::parse_downward_api(&text);
    parsed
        .inspect_err(|e| tracing::warn!("cannot read {}: {e}", path.display()))
        .ok()
}

/// Variables that change what is authenticated, or that ask for a part this agent does not have.
/// Starting without it would look like success.
fn refuse_unsupported(environment: &Environment) -> Result<(), OptionsError> {
    let refuse = |variable, reason| {
        let value = environment.text(variable);
        Err(OptionsError::Variable {
            variable,
            value,
            reason,
        })
    };
    if !matches!(
        environment.text_or("CA_PROVIDER", "Citadel").as_str(),
        "Citadel" | "" | "GkeWorkloadCertificate"
    ) {
        return refuse(
            "CA_PROVIDER",
            "only Citadel and GkeWorkloadCertificate are supported",
        );
    }
    if environment.text("CA_ADDR").contains("googleapis.com") {
        return refuse("CA_ADDR", "Google's CA is not supported");
    }
    if !matches!(
        environment.text("ECC_SIGNATURE_ALGORITHM").as_str(),
        "" | "ECDSA"
    ) {
        return refuse("ECC_SIGNATURE_ALGORITHM", "only ECDSA is supported");
    }
    let policy = environment.text("COMPLIANCE_POLICY");
    if !policy.is_empty() && CompliancePolicy::parse(&policy).is_none() {
        return refuse(
            "COMPLIANCE_POLICY",
            "is not one of fips-140-2, fips-140-3, pqc",
        );
    }
    if environment
        .text("WORKLOAD_IDENTITY_SOCKET_FILE")
        .contains('/')
    {
        return refuse(
            "WORKLOAD_IDENTITY_SOCKET_FILE",
            "must be a file name, not a path",
        );
    }
    if environment.boolean("FILE_MOUNTED_CERTS", false) && !environment.text("PROV_CERT").is_empty()
    {
        return refuse("PROV_CERT", "cannot be combined with FILE_MOUNTED_CERTS");
    }
    Ok(())
}

/// The workload's health is asked for as kubelet would: at the pod's address, or `localhost` with
/// `REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION`.
fn health(
    environment: &Environment,
    node: &NodeInputs,
    settings: &ProxySettings,
) -> Result<Option<HealthConfig>, HealthConfigError> {
    let Some(probe) = &settings.readiness_probe else {
        return Ok(None);
    };
    let legacy = environment.boolean("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", false);
    let local = node.ips.first().copied().filter(|_| !legacy);
    HealthConfig::parse(probe, local).map(Some)
}

/// The first that is named: `customConfigFile`, `ISTIO_BOOTSTRAP`, `proxyBootstrapTemplatePath`
/// (`--templateFile` has been merged into it). Without any, what stands at the stock path counts if it is not
/// ours: an image with a template of its own means it.
fn bootstrap_source(environment: &Environment, settings: &ProxySettings) -> BootstrapSource {
    if !settings.custom_config_file.is_empty() {
        return BootstrapSource::File(PathBuf::from(&settings.custom_config_file));
    }
    let named = [
        environment.text("ISTIO_BOOTSTRAP"),
        settings.proxy_bootstrap_template_path.clone(),
    ];
    let is_stock = |path: &Path| {
        std::fs::read_to_string(path).is_ok_and(|t| bootstrap_templates::is_stock_template(&t))
    };
    let stock = PathBuf::from(STOCK_TEMPLATE_PATH);
    let named = named.into_iter().find(|path| !path.is_empty());
    match named.map(PathBuf::from).or(stock.exists().then_some(stock)) {
        Some(path) if !is_stock(&path) => BootstrapSource::Template(path),
        _ => BootstrapSource::Generated,
    }
}

fn node_inputs(
    args: &ProxyArgs,
    environment: &Environment,
    annotations: Option<BTreeMap<String, String>>,
) -> Result<NodeInputs, OptionsError> {
    let namespace = environment.text("POD_NAMESPACE");
    let default_domain = format!("{namespace}.svc.cluster.local");
    let domain = if args.domain.is_empty() {
        default_domain
    } else {
        args.domain.clone()
    };
    let excluded = annotations.as_ref().and_then(|a| a.get(EXCLUDE_INTERFACES));
    let excluded = excluded.map(String::as_str).unwrap_or_default();
    let node_type = NodeType::parse(&args.kind).unwrap_or(NodeType::Sidecar);
    Ok(NodeInputs {
        node_type,
        ips: addresses::discover(&environment.text("INSTANCE_IP"), excluded)?,
        pod_name: environment.text("POD_NAME"),
        namespace,
        service_account: environment.text("SERVICE_ACCOUNT"),
        domain,
        meta_variables: environment.with_prefix("ISTIO_META"),
        dns_proxy_addr: Some(environment.text("DNS_PROXY_ADDR")).filter(|a| !a.is_empty()),
        istio_version: ISTIO_VERSION.to_owned(),
        labels: pod_file(Path::new(POD_LABELS)),
        annotations,
        ports: NodePorts {
            status: environment.number("ENVOY_STATUS_PORT", 15021),
            prometheus: environment.number("ENVOY_PROMETHEUS_PORT", 15090),
            secure_metrics: environment.number("ENVOY_SECURE_METRICS_PORT", 0),
            secure_merged_metrics: environment.number("ENVOY_SECURE_MERGED_METRICS_PORT", 0),
        },
        exit_on_zero_active_connections: environment
            .boolean("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", false),
        metadata_discovery: environment
            .is_set("PEER_METADATA_DISCOVERY")
            .then(|| environment.boolean("PEER_METADATA_DISCOVERY", false)),
        skip_deprecated_logs: environment.boolean("ENVOY_SKIP_DEPRECATED_LOGS", true),
        workload_identity_socket_file: environment
            .text_or("WORKLOAD_IDENTITY_SOCKET_FILE", "socket"),
        outlier_log_path: args.outlier_log_path.clone(),
        sts_port: args.sts_port,
        credential_socket: false,
        external_sds: false,
        platform: None,
        kubernetes: environment.is_set("KUBERNETES_SERVICE_HOST"),
    })
}

fn status_options(
    environment: &Environment,
    node: &NodeInputs,
    port: u16,
    disable_envoy: bool,
) -> StatusOptions {
    let sidecar = node.node_type == NodeType::Sidecar;
    let legacy = environment.boolean("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", false);
    let pod_ip = environment
        .text("INSTANCE_IP")
        .parse()
        .ok()
        .filter(|_| !legacy);
    let annotations = environment.text("ISTIO_PROMETHEUS_ANNOTATIONS");
    StatusOptions {
        port,
        app_probers: environment.text("ISTIO_KUBE_APP_PROBERS"),
        prometheus: Some(annotations).filter(|text| sidecar && !text.is_empty()),
        probe_destination: pod_ip,
        http2_probing: environment.boolean("ISTIO_ENABLE_HTTP2_PROBING", true),
        probe_keep_alive: environment.boolean("ENABLE_PROBE_KEEPALIVE_CONNECTIONS", false),
        localhost_metrics_only: environment.boolean("METRICS_LOCALHOST_ACCESS_ONLY", false),
        merge_proxy_stats: !disable_envoy
            && environment.boolean("PILOT_AGENT_MERGE_ENVOY_STATS", true),
        prometheus_port: node.ports.prometheus,
    }
}

fn drain_options(
    environment: &Environment,
    node: &NodeInputs,
    settings: &ProxySettings,
) -> DrainOptions {
    let ports = node.ports;
    let own = [
        ports.status,
        ports.prometheus,
        ports.secure_metrics,
        ports.secure_merged_metrics,
    ];
    let configured = settings.termination_drain_duration;
    let seconds = environment
        .is_set("TERMINATION_DRAIN_DURATION_SECONDS")
        .then(|| environment.number("TERMINATION_DRAIN_DURATION_SECONDS", -1_i64))
        .and_then(|n| u64::try_from(n).ok());
    DrainOptions {
        termination: seconds
            .map(Duration::from_secs)
            .or(configured)
            .unwrap_or(Duration::from_secs(5)),
        proxy: settings.drain_duration.unwrap_or(Duration::from_secs(45)),
        minimum: environment.duration("MINIMUM_DRAIN_DURATION", Duration::from_secs(5)),
        exit_on_zero: node.exit_on_zero_active_connections,
        inbound_only: node.node_type == NodeType::Sidecar,
        own_ports: own.into_iter().filter(|port| *port != 0).collect(),
    }
}

#[cfg(test)]
mod tests;
