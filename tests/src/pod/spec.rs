//! Reads an injected pod specification and resolves what a kubelet resolves.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::PodError;

/// The part of a Deployment that matters here.
#[derive(Debug, Clone, Deserialize)]
pub struct Deployment {
    metadata: Meta,
    spec: DeploymentSpec,
}

#[derive(Debug, Clone, Deserialize)]
struct DeploymentSpec {
    template: Template,
}

#[derive(Debug, Clone, Deserialize)]
struct Template {
    #[serde(default)]
    metadata: Meta,
    spec: PodSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Meta {
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    containers: Vec<Container>,
    #[serde(default)]
    init_containers: Vec<Container>,
    #[serde(default)]
    service_account_name: Option<String>,
}

/// One container of the specification.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Name.
    pub name: String,
    /// Arguments with `$(VARIABLE)` unresolved.
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    env: Vec<Env>,
    /// Mounts.
    #[serde(default)]
    pub volume_mounts: Vec<Mount>,
    /// User, group, capabilities.
    #[serde(default)]
    pub security_context: SecurityContext,
}

/// A mount of a volume.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Volume.
    pub name: String,
    /// Where.
    pub mount_path: String,
}

/// Who runs the container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecurityContext {
    /// User id.
    #[serde(default)]
    pub run_as_user: Option<u32>,
    /// Group id.
    #[serde(default)]
    pub run_as_group: Option<u32>,
    /// Capabilities.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// Root file system read-only.
    #[serde(default)]
    pub read_only_root_filesystem: bool,
}

/// Capabilities given on top of none.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Capabilities {
    /// Names as in Kubernetes (`NET_ADMIN`).
    #[serde(default)]
    pub add: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Env {
    name: String,
    #[serde(default)]
    value: Option<String>,
    #[serde(default)]
    value_from: Option<ValueFrom>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ValueFrom {
    #[serde(default)]
    field_ref: Option<FieldRef>,
    #[serde(default)]
    resource_field_ref: Option<ResourceRef>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FieldRef {
    field_path: String,
}

#[derive(Debug, Clone, Deserialize)]
struct ResourceRef {
    resource: String,
}

/// What the downward API answers.
#[derive(Debug, Clone)]
pub struct Downward {
    /// `metadata.name`.
    pub pod_name: String,
    /// `status.podIP`.
    pub pod_ip: String,
    /// `status.hostIP`.
    pub host_ip: String,
}

impl Deployment {
    /// Reads the first document of a YAML file.
    pub fn load(path: &Path) -> Result<Self, PodError> {
        let text = std::fs::read_to_string(path).map_err(|source| PodError::Io {
            what: path.display().to_string(),
            source,
        })?;
        let first = text.split("\n---").next().unwrap_or_default();
        serde_saphyr::from_str(first).map_err(|e| PodError::Spec {
            path: path.to_owned(),
            reason: e.to_string(),
        })
    }

    /// Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// Service account.
    pub fn service_account(&self) -> &str {
        self.spec
            .template
            .spec
            .service_account_name
            .as_deref()
            .unwrap_or("default")
    }

    /// Pod labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.spec.template.metadata.labels
    }

    /// Pod annotations.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.spec.template.metadata.annotations
    }

    /// A container or init container by name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        let spec = &self.spec.template.spec;
        spec.containers
            .iter()
            .chain(&spec.init_containers)
            .find(|c| c.name == name)
    }

    /// The environment of a container, in order, as a kubelet resolves it.
    pub fn environment(
        &self,
        container: &Container,
        downward: &Downward,
    ) -> Result<Vec<(String, String)>, PodError> {
        container
            .env
            .iter()
            .map(|e| Ok((e.name.clone(), self.value(e, downward)?)))
            .collect()
    }

    fn value(&self, env: &Env, downward: &Downward) -> Result<String, PodError> {
        let unknown = |what: &str| PodError::Downward(what.to_owned());
        let Some(from) = &env.value_from else {
            return Ok(env.value.clone().unwrap_or_default());
        };
        if let Some(resource) = &from.resource_field_ref {
            return match resource.resource.as_str() {
                "limits.cpu" => Ok("2".to_owned()),
                "limits.memory" => Ok((1_u64 << 30).to_string()),
                other => Err(unknown(other)),
            };
        }
        let path = from
            .field_ref
            .as_ref()
            .map(|f| f.field_path.as_str())
            .unwrap_or_default();
        Ok(match path {
            "metadata.name" => downward.pod_name.clone(),
            "metadata.namespace" => self.namespace().to_owned(),
            "metadata.uid" => "00000000-0000-0000-0000-000000000001".to_owned(),
            "status.podIP" | "status.podIPs" => downward.pod_ip.clone(),
            "status.hostIP" => downward.host_ip.clone(),
            "spec.serviceAccountName" => self.service_account().to_owned(),
            "spec.nodeName" => "node1".to_owned(),
            other => return Err(unknown(other)),
        })
    }
}

/// Replaces `$(NAME)` as a kubelet does; unknown names stay.
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    env.iter().fold(text.to_owned(), |text, (k, v)| {
        text.replace(&format!("$({k})"), v)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_injected_specifications_can_be_read_and_resolved() {
        let root = match crate::fixtures::root() {
            Ok(root) => root,
            Err(e) => return println!("skipped: {e}"),
        };
        let downward = Downward {
            pod_name: "sleep-0".to_owned(),
            pod_ip: "10.244.1.10".to_owned(),
            host_ip: "10.244.0.1".to_owned(),
        };
        for name in [
            "sleep",
            "helloworld",
            "echo",
            "echotproxy",
            "eastwest",
            "ingressgateway",
        ] {
            let spec = root.join("injected").join(format!("{name}.yaml"));
            let spec = Deployment::load(&spec).unwrap_or_else(|e| panic!("{name}: {e}"));
            let proxy = spec.container("istio-proxy").expect("a proxy container");
            let env = spec.environment(proxy, &downward).expect("resolved");
            assert!(
                env.contains(&("INSTANCE_IP".to_owned(), "10.244.1.10".to_owned())),
                "{name}"
            );
            let args: Vec<_> = proxy.args.iter().map(|a| expand(a, &env)).collect();
            let domain = format!("{}.svc.cluster.local", spec.namespace());
            assert!(args.contains(&domain), "{name}: {args:?}");
        }
    }
}
