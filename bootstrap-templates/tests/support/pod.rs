//! Runs a recorded pod spec through the crate: what the kubelet and the agent's option parser do,
//! reduced to what these specs use.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bootstrap_templates::{
    EnvoyBootstrap, EnvoyInputs, FieldError, Node, NodeInputs, NodePorts, NodeType, ProxyConfig,
    ProxySettings, RenderError, RenderedBootstrap, envoy_bootstrap, grpc_bootstrap,
    render_bootstrap,
};
use serde_json::Value;

/// Folder with `injected/` and `nodes/` of the shared fixtures, if present.
pub(crate) fn fixture_root() -> Option<PathBuf> {
    let shared = std::env::var_os("OUTRIGGER_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"));
    let root = shared.join("fixtures");
    if root.join("nodes").is_dir() {
        return Some(root);
    }
    eprintln!("shared fixtures not found, only the two nodes of the repository run");
    None
}

pub(crate) fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("fixture");
    serde_json::from_str(&text).expect("fixture is JSON")
}

pub(crate) struct Pod {
    pub(crate) config: ProxyConfig,
    pub(crate) inputs: NodeInputs,
}

impl Pod {
    /// The pod of `injected/NAME.yaml` with the address recorded for it.
    pub(crate) fn load(root: &Path, name: &str) -> Self {
        let text = std::fs::read_to_string(root.join(format!("injected/{name}.yaml")))
            .expect("injected spec");
        let first = text.split("\n---").next().expect("a document");
        let spec: Value = serde_saphyr::from_str(first).expect("spec is YAML");
        let recorded = read_json(&root.join("nodes").join(name).join("envoy-rev.json"));
        let ip = recorded["node"]["metadata"]["INSTANCE_IPS"]
            .as_str()
            .expect("ips")
            .to_owned();
        Self::from_spec(&spec, name, &ip)
    }

    fn from_spec(spec: &Value, name: &str, ip: &str) -> Self {
        let template = &spec["spec"]["template"];
        let namespace = spec["metadata"]["namespace"].as_str().expect("namespace");
        let proxy = template["spec"]["containers"]
            .as_array()
            .expect("containers")
            .iter()
            .find(|c| c["name"] == "istio-proxy")
            .expect("istio-proxy");
        let account = template["spec"]["serviceAccountName"]
            .as_str()
            .expect("account");
        let field = |path: &str| match path {
            "metadata.name" => format!("{name}-0"),
            "metadata.namespace" => namespace.to_owned(),
            "status.podIP" => ip.to_owned(),
            "status.hostIP" => "10.244.0.1".to_owned(),
            "spec.serviceAccountName" => account.to_owned(),
            "spec.nodeName" => "node1".to_owned(),
            other => panic!("downward field {other}"),
        };
        let mut env = BTreeMap::new();
        for e in proxy["env"].as_array().expect("env") {
            let key = e["name"].as_str().expect("name").to_owned();
            if let Some(value) = e["value"].as_str() {
                env.insert(key, value.to_owned());
            } else if let Some(path) = e["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                env.insert(key, field(path));
            } else if e["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu" {
                env.insert(key, "2".to_owned());
            }
        }
        env.insert("ISTIO_META_ISTIO_VERSION".to_owned(), "unknown".to_owned());
        let args: Vec<&str> = proxy["args"]
            .as_array()
            .expect("args")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        Self {
            config: config(&env),
            inputs: node_inputs(&env, args[1], strings(&template["metadata"])),
        }
    }

    pub(crate) fn settings(&self) -> ProxySettings {
        self.config.validate().expect("settings are valid")
    }

    pub(crate) fn node(&self) -> Node {
        let (node, warnings) =
            Node::build(&self.inputs, &self.config, &self.settings()).expect("node");
        assert_eq!(warnings, Vec::new());
        node
    }

    /// Builds Envoy's bootstrap after `change` was applied to the default inputs.
    pub(crate) fn envoy(&self, change: impl FnOnce(&mut EnvoyInputs<'_>)) -> EnvoyBootstrap {
        self.try_envoy(change).expect("bootstrap")
    }

    pub(crate) fn try_envoy(
        &self,
        change: impl FnOnce(&mut EnvoyInputs<'_>),
    ) -> Result<EnvoyBootstrap, FieldError> {
        self.with_inputs(change, envoy_bootstrap)
    }

    /// Renders `template` after `change` was applied to the default inputs. One environment
    /// variable is set: `FROM_ENV=environment`.
    pub(crate) fn rendered(
        &self,
        template: &str,
        change: impl FnOnce(&mut EnvoyInputs<'_>),
    ) -> Result<RenderedBootstrap, RenderError> {
        let environment = |name: &str| (name == "FROM_ENV").then(|| "environment".to_owned());
        self.with_inputs(change, |inputs| {
            render_bootstrap(template, inputs, &environment)
        })
    }

    fn with_inputs<T>(
        &self,
        change: impl FnOnce(&mut EnvoyInputs<'_>),
        build: impl FnOnce(&EnvoyInputs<'_>) -> T,
    ) -> T {
        let settings = self.settings();
        let node = self.node();
        let mut inputs = EnvoyInputs {
            node: &node,
            settings: &settings,
            log_as_json: false,
            delta_xds: true,
            dual_stack: false,
            strip_fragment: true,
            status_proxy_protocol: false,
            compliance: None,
            host_ip: Some("10.244.0.1"),
        };
        change(&mut inputs);
        build(&inputs)
    }

    pub(crate) fn grpc(&self) -> Value {
        grpc_bootstrap(&self.node(), "etc/istio/proxy/XDS", None)
    }
}

fn config(env: &BTreeMap<String, String>) -> ProxyConfig {
    let mut config = ProxyConfig::default();
    let overlay = serde_json::from_str(&env["PROXY_CONFIG"]).expect("PROXY_CONFIG is JSON");
    assert_eq!(config.overlay(&overlay).expect("PROXY_CONFIG"), Vec::new());
    config.set("concurrency", 2);
    config
}

fn strings(metadata: &Value) -> [BTreeMap<String, String>; 2] {
    ["labels", "annotations"].map(|key| {
        let map = metadata[key].as_object().expect("labels and annotations");
        let text = |v: &Value| v.as_str().expect("string").to_owned();
        map.iter().map(|(k, v)| (k.clone(), text(v))).collect()
    })
}

fn node_inputs(
    env: &BTreeMap<String, String>,
    kind: &str,
    [labels, annotations]: [BTreeMap<String, String>; 2],
) -> NodeInputs {
    let namespace = env["POD_NAMESPACE"].clone();
    NodeInputs {
        node_type: NodeType::parse(kind).expect("node type"),
        ips: vec![env["INSTANCE_IP"].parse().expect("ip")],
        pod_name: env["POD_NAME"].clone(),
        domain: format!("{namespace}.svc.cluster.local"),
        namespace,
        service_account: env["SERVICE_ACCOUNT"].clone(),
        meta_variables: env
            .iter()
            .filter(|(key, _)| key.starts_with("ISTIO_META"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        dns_proxy_addr: None,
        istio_version: "1.31.0".to_owned(),
        labels: Some(labels),
        annotations: Some(annotations),
        ports: NodePorts {
            status: 15021,
            prometheus: 15090,
            secure_metrics: 0,
            secure_merged_metrics: 0,
        },
        exit_on_zero_active_connections: false,
        metadata_discovery: None,
        skip_deprecated_logs: true,
        workload_identity_socket_file: "socket".to_owned(),
        outlier_log_path: String::new(),
        sts_port: 0,
        credential_socket: false,
        external_sds: false,
        platform: None,
        kubernetes: true,
    }
}

/// Paths at which two documents differ, for a readable failure.
pub(crate) fn diff(path: &str, built: &Value, want: &Value, out: &mut Vec<String>) {
    match (built, want) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().filter(|key| !b.contains_key(*key)) {
                out.push(format!("{path}.{key}: unexpected {}", a[key]));
            }
            for (key, value) in b {
                match a.get(key) {
                    Some(ours) => diff(&format!("{path}.{key}"), ours, value, out),
                    None => out.push(format!("{path}.{key}: missing {value}")),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (ours, value)) in a.iter().zip(b).enumerate() {
                diff(&format!("{path}[{i}]"), ours, value, out);
            }
        }
        (ours, value) if ours != value => out.push(format!("{path}: {ours} instead of {value}")),
        _ => {}
    }
}
