//! The layers of ProxyConfig in their order: built-in, mesh file, `PROXY_CONFIG`, annotation, then
//! the single settings that flags, variables and annotations override.

use std::collections::BTreeMap;
use std::path::Path;

use bootstrap_templates::{FieldError, ProxyConfig, ProxySettings, split_host_port};
use serde_json::Value;

use super::Environment;
use crate::cli::ProxyArgs;
use crate::resolver::Resolver;

const CONFIG_ANNOTATION: &str = "proxy.istio.io/config";
const DISCOVERY_ANNOTATION: &str = "sidecar.istio.io/discoveryAddress";
const STATUS_PORT_ANNOTATION: &str = "status.sidecar.istio.io/port";
/// Statsd is optional, so its name may not hold up the start for longer.
const STATSD_RESOLVE_LIMIT: std::time::Duration = std::time::Duration::from_secs(15);

/// Why there is no usable ProxyConfig.
#[derive(Debug, thiserror::Error)]
pub enum ProxyConfigError {
    /// The mesh file exists and cannot be read.
    #[error("failed to read mesh config file {path}: {source}")]
    MeshFile {
        /// File.
        path: String,
        /// System error.
        source: std::io::Error,
    },
    /// A layer is neither YAML nor JSON.
    #[error("could not parse {layer}: {reason}")]
    Syntax {
        /// Which layer.
        layer: &'static str,
        /// Parser message.
        reason: String,
    },
    /// A field of a layer, or of the merged configuration.
    #[error("{layer}: {source}")]
    Field {
        /// Which layer.
        layer: &'static str,
        /// Field and reason.
        source: FieldError,
    },
}

const MESH_LAYER: &str = "mesh config file";
const ENV_LAYER: &str = "PROXY_CONFIG";
const ANNOTATION_LAYER: &str = "annotation proxy.istio.io/config";

/// The texts of all layers.
pub(super) struct Layers {
    mesh: Option<Value>,
    variable: Option<Value>,
    annotation: Option<Value>,
    discovery_address: Option<String>,
    status_port: Option<String>,
}

impl Layers {
    pub(super) fn read(
        args: &ProxyArgs,
        environment: &Environment,
        annotations: Option<&BTreeMap<String, String>>,
    ) -> Result<Self, ProxyConfigError> {
        let annotation = |name: &str| annotations.and_then(|a| a.get(name)).cloned();
        let mesh = match mesh_file(Path::new(&args.mesh_config))? {
            Some(text) => yaml(MESH_LAYER, &text)?.map(|mesh| mesh["defaultConfig"].clone()),
            None => None,
        };
        Ok(Self {
            mesh: mesh.filter(|value| !value.is_null()),
            variable: yaml(ENV_LAYER, &environment.text("PROXY_CONFIG"))?,
            annotation: yaml(
                ANNOTATION_LAYER,
                &annotation(CONFIG_ANNOTATION).unwrap_or_default(),
            )?,
            discovery_address: annotation(DISCOVERY_ANNOTATION),
            status_port: annotation(STATUS_PORT_ANNOTATION),
        })
    }

    pub(super) async fn merge(
        self,
        args: &ProxyArgs,
        environment: &Environment,
    ) -> Result<(ProxyConfig, ProxySettings), ProxyConfigError> {
        let mut config = ProxyConfig::default();
        let layers = [
            (MESH_LAYER, self.mesh),
            (ENV_LAYER, self.variable),
            (ANNOTATION_LAYER, self.annotation),
        ];
        for (layer, value) in layers {
            let Some(value) = value else { continue };
            let warnings = config
                .overlay(&value)
                .map_err(|source| field(layer, source))?;
            for warning in warnings {
                tracing::warn!("{layer}: {warning}");
            }
        }
        let settings = config
            .settings()
            .map_err(|source| field("ProxyConfig", source))?;
        concurrency(&mut config, &settings, args, environment);
        if settings.service_cluster.as_deref() == Some("") {
            config.set("serviceCluster", args.service_cluster.clone());
        }
        if !settings.statsd_udp_address.is_empty() {
            config.set(
                "statsdUdpAddress",
                resolve(&settings.statsd_udp_address).await,
            );
        }
        let mut settings = config
            .validate()
            .map_err(|source| field("ProxyConfig", source))?;
        if !args.template_file.is_empty() && settings.custom_config_file.is_empty() {
            settings
                .proxy_bootstrap_template_path
                .clone_from(&args.template_file);
            config.set("proxyBootstrapTemplatePath", args.template_file.clone());
        }
        // After validation, as in the reference: port 0 is how an annotation turns the status
        // server off.
        if let Some(address) = self.discovery_address {
            settings.discovery_address.clone_from(&address);
            config.set("discoveryAddress", address);
        }
        if let Some(text) = self.status_port {
            let port: i32 = text.parse().unwrap_or_else(|_| {
                tracing::error!("Invalid annotation {STATUS_PORT_ANNOTATION}={text}");
                0
            });
            settings.status_port = port;
            config.set("statusPort", port);
        }
        Ok((config, settings))
    }
}

fn field(layer: &'static str, source: FieldError) -> ProxyConfigError {
    ProxyConfigError::Field { layer, source }
}

fn mesh_file(path: &Path) -> Result<Option<String>, ProxyConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ProxyConfigError::MeshFile {
            path: path.display().to_string(),
            source,
        }),
    }
}

/// YAML, of which JSON is a part. Empty text and `null` are no layer.
fn yaml(layer: &'static str, text: &str) -> Result<Option<Value>, ProxyConfigError> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let bad = |reason: String| ProxyConfigError::Syntax { layer, reason };
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) => serde_saphyr::from_str(text).map_err(|e| bad(e.to_string()))?,
    };
    match value {
        Value::Null => Ok(None),
        Value::Object(_) => Ok(Some(value)),
        _ => Err(bad("not a mapping".to_owned())),
    }
}

/// The flag wins, then the configuration, then the container's CPU limit: a thread per core of a
/// large machine would be throttled.
fn concurrency(
    config: &mut ProxyConfig,
    settings: &ProxySettings,
    args: &ProxyArgs,
    environment: &Environment,
) {
    let limit: i32 = environment.number("ISTIO_CPU_LIMIT", 0);
    if settings.concurrency.is_none() && limit != 0 {
        tracing::info!("cpu limit detected as {limit}, setting concurrency");
        config.set("concurrency", limit);
    }
    if args.concurrency != 0 {
        tracing::warn!(
            "legacy --concurrency={} flag detected; prefer to use ProxyConfig",
            args.concurrency
        );
        config.set("concurrency", args.concurrency);
    }
}

/// The address with its host resolved, IPv4 first; empty (statsd off) if that fails.
async fn resolve(address: &str) -> String {
    let Some((host, port)) = split_host_port(address) else {
        return address.to_owned();
    };
    let resolver = Resolver::default();
    let lookup = tokio::time::timeout(STATSD_RESOLVE_LIMIT, resolver.lookup(host)).await;
    match lookup {
        Ok(Ok(ips)) => match ips.first() {
            Some(ip) => std::net::SocketAddr::new(*ip, port).to_string(),
            None => String::new(),
        },
        Ok(Err(e)) => {
            tracing::warn!("resolve StatsdUdpAddress failed: {e}");
            String::new()
        }
        Err(_) => {
            tracing::warn!("resolve StatsdUdpAddress failed: no answer in time");
            String::new()
        }
    }
}
