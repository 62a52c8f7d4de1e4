//! `/config_dump`: resources as they were received, turned into JSON on demand.

use outrigger_api::json::{DecodeOptions, decode};
use outrigger_xds::wire::{Fields, Value as Wire};
use regex::Regex;
use serde_json::{Map, Value, json};

use super::server::{Request, Response};
use crate::access_log::time::rfc3339;
use crate::control::registry::{Failed, Raw, Resources, Section};
use crate::server::Process;

const TYPE_PREFIX: &str = "type.googleapis.com/";
const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ENDPOINT: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTE: &str = "envoy.config.route.v3.RouteConfiguration";
const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";

/// Builds the page.
pub(super) fn page(process: &Process, request: &Request) -> Response {
    let regex = match request.parameter("name_regex").map(Regex::new) {
        None => None,
        Some(Ok(regex)) => Some(regex),
        Some(Err(error)) => {
            return Response::error(
                400,
                format!("Error while parsing name_regex from {error}\n"),
            );
        }
    };
    let dump = Dump { process, regex };
    let mut configs = dump.sections(request.has("include_eds"));
    if let Some(resource) = request.parameter("resource") {
        match elements(configs, resource) {
            Some(found) => configs = found,
            None => return Response::error(404, format!("{resource} not found in config dump")),
        }
    }
    if let Some(mask) = request.parameter("mask") {
        let paths: Vec<Vec<&str>> = mask.split(',').map(|p| p.split('.').collect()).collect();
        for config in &mut configs {
            keep(config, &paths);
        }
        let empty = |c: &Value| c.as_object().is_none_or(|o| o.len() <= 1);
        if configs.iter().all(empty) && !configs.is_empty() {
            let text = format!("FieldMask paths {mask} could not be successfully used.");
            return Response::error(400, text);
        }
        configs.retain(|c| !empty(c));
    }
    Response::json(&json!({"configs": configs}))
}

/// `node` of the bootstrap with what Envoy adds to it.
pub(super) fn node(process: &Process) -> Value {
    let Ok(bootstrap) = decoded(BOOTSTRAP, &process.bootstrap.raw) else {
        return json!({});
    };
    let mut node = match bootstrap.get("node") {
        Some(Value::Object(node)) => node.clone(),
        _ => Map::new(),
    };
    add_user_agent(&mut node);
    Value::Object(node)
}

fn add_user_agent(node: &mut Map<String, Value>) {
    node.insert("user_agent_name".into(), "envoy".into());
    node.insert(
        "user_agent_build_version".into(),
        json!({
            "version": {"major_number": 1, "minor_number": 40, "patch": 0},
            "metadata": {"revision.status": "Clean", "build.type": "RELEASE", "ssl.version": "AWS-LC"},
        }),
    );
}

fn decoded(kind: &str, bytes: &[u8]) -> Result<Value, outrigger_api::json::JsonError> {
    decode(kind, bytes, &DecodeOptions { redact: true })
}

/// A resource as `Any` in JSON. What cannot be read (only refused resources) is shown as such.
fn any(kind: &str, bytes: &[u8]) -> Value {
    let mut out = Map::new();
    out.insert("@type".into(), format!("{TYPE_PREFIX}{kind}").into());
    match decoded(kind, bytes) {
        Ok(Value::Object(fields)) => out.extend(fields),
        Ok(_) => {}
        Err(error) => {
            out.insert("undecodable".into(), error.to_string().into());
        }
    }
    Value::Object(out)
}

struct Dump<'a> {
    process: &'a Process,
    regex: Option<Regex>,
}

fn section(kind: &str) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert(
        "@type".into(),
        format!("{TYPE_PREFIX}envoy.admin.v3.{kind}").into(),
    );
    out
}

fn version(out: &mut Map<String, Value>, version: &str) {
    if !version.is_empty() {
        out.insert("version_info".into(), version.into());
    }
}

fn list(out: &mut Map<String, Value>, key: &str, items: Vec<Value>) {
    if !items.is_empty() {
        out.insert(key.into(), items.into());
    }
}

impl Dump<'_> {
    fn wanted(&self, name: &str) -> bool {
        self.regex.as_ref().is_none_or(|r| {
            r.find_iter(name)
                .any(|m| m.start() == 0 && m.end() == name.len())
        })
    }

    fn sections(&self, include_eds: bool) -> Vec<Value> {
        let engine = self.process.engine.borrow();
        let registry = &engine.registry;
        let mut configs = vec![self.bootstrap(), self.clusters(&registry.clusters)];
        if include_eds {
            configs.push(self.endpoints(&registry.endpoints));
        }
        configs.push(self.listeners(&registry.listeners));
        configs.push(Value::Object(section("ScopedRoutesConfigDump")));
        configs.push(self.routes(&registry.routes));
        configs.push(self.secrets(&registry.secrets));
        configs
    }

    fn loaded(&self) -> String {
        rfc3339(self.process.engine.borrow().registry.bootstrap_updated)
    }

    fn bootstrap(&self) -> Value {
        let mut out = section("BootstrapConfigDump");
        match decoded(BOOTSTRAP, &self.process.bootstrap.raw) {
            Ok(mut bootstrap) => {
                if let Some(Value::Object(node)) = bootstrap.get_mut("node") {
                    add_user_agent(node);
                }
                out.insert("bootstrap".into(), bootstrap);
            }
            Err(error) => {
                out.insert("undecodable".into(), error.to_string().into());
            }
        }
        out.insert("last_updated".into(), self.loaded().into());
        Value::Object(out)
    }

    /// Static resources in field `number` of the bootstrap's `static_resources`.
    fn statics(&self, number: u32, kind: &str, key: &str) -> Vec<Value> {
        let resources = Fields::new(self.process.bootstrap.raw.clone())
            .flatten()
            .filter_map(|f| match f {
                (2, Wire::Bytes(b)) => Some(b),
                _ => None,
            })
            .flat_map(|b| Fields::new(b).flatten().collect::<Vec<_>>());
        resources
            .filter_map(|f| match f {
                (n, Wire::Bytes(b)) if n == number => Some(any(kind, &b)),
                _ => None,
            })
            .filter(|v| self.wanted(v.get("name").and_then(Value::as_str).unwrap_or("")))
            .map(|v| {
                let mut entry = Map::new();
                entry.insert(key.into(), v);
                entry.insert("last_updated".into(), self.loaded().into());
                Value::Object(entry)
            })
            .collect()
    }

    fn state(&self, kind: &str, key: &str, raw: &Raw) -> Map<String, Value> {
        let mut out = Map::new();
        version(&mut out, &raw.version);
        out.insert(key.into(), any(kind, &raw.body));
        out.insert("last_updated".into(), rfc3339(raw.last_updated).into());
        out
    }

    fn each(&self, resources: &Resources, kind: &str, key: &str) -> Vec<Value> {
        resources
            .ordered()
            .into_iter()
            .filter(|(name, _)| self.wanted(name))
            .map(|(_, raw)| Value::Object(self.state(kind, key, raw)))
            .collect()
    }

    fn failed(kind: &str, failed: &Failed) -> Value {
        let mut out = Map::new();
        out.insert("failed_configuration".into(), any(kind, &failed.body));
        out.insert(
            "last_update_attempt".into(),
            rfc3339(failed.last_update_attempt).into(),
        );
        out.insert("details".into(), failed.details.clone().into());
        version(&mut out, &failed.version);
        Value::Object(out)
    }

    fn clusters(&self, clusters: &Section) -> Value {
        let mut out = section("ClustersConfigDump");
        version(&mut out, &clusters.version);
        list(
            &mut out,
            "static_clusters",
            self.statics(2, CLUSTER, "cluster"),
        );
        let with_errors = |resources: &Resources| -> Vec<Value> {
            resources
                .ordered()
                .into_iter()
                .filter(|(name, _)| self.wanted(name))
                .map(|(name, raw)| {
                    let mut state = self.state(CLUSTER, "cluster", raw);
                    if let Some(error) = clusters.errors.get(name) {
                        state.insert("error_state".into(), Self::failed(CLUSTER, error));
                    }
                    Value::Object(state)
                })
                .collect()
        };
        list(
            &mut out,
            "dynamic_active_clusters",
            with_errors(&clusters.active),
        );
        let mut warming = with_errors(&clusters.warming);
        let orphan = clusters.errors.iter().filter(|(name, _)| {
            clusters.active.get(name).is_none()
                && clusters.warming.get(name).is_none()
                && self.wanted(name)
        });
        warming
            .extend(orphan.map(|(_, error)| json!({"error_state": Self::failed(CLUSTER, error)})));
        list(&mut out, "dynamic_warming_clusters", warming);
        Value::Object(out)
    }

    fn endpoints(&self, endpoints: &Section) -> Value {
        let mut out = section("EndpointsConfigDump");
        let key = "endpoint_config";
        list(
            &mut out,
            "dynamic_endpoint_configs",
            self.each(&endpoints.active, ENDPOINT, key),
        );
        Value::Object(out)
    }

    fn listeners(&self, listeners: &Section) -> Value {
        let mut out = section("ListenersConfigDump");
        version(&mut out, &listeners.version);
        list(
            &mut out,
            "static_listeners",
            self.statics(1, LISTENER, "listener"),
        );
        let mut names: Vec<_> = listeners
            .active
            .ordered()
            .into_iter()
            .map(|(n, _)| n)
            .collect();
        names.extend(listeners.warming.ordered().into_iter().map(|(n, _)| n));
        names.extend(listeners.errors.keys());
        let mut seen = std::collections::HashSet::new();
        names.retain(|n| seen.insert(std::sync::Arc::clone(n)) && self.wanted(n));
        let dynamic = names
            .into_iter()
            .map(|name| {
                let mut entry = Map::new();
                entry.insert("name".into(), (&**name).into());
                for (key, resources) in [
                    ("active_state", &listeners.active),
                    ("warming_state", &listeners.warming),
                ] {
                    if let Some(raw) = resources.get(name) {
                        let state = self.state(LISTENER, "listener", raw);
                        entry.insert(key.into(), Value::Object(state));
                    }
                }
                if let Some(error) = listeners.errors.get(name) {
                    entry.insert("error_state".into(), Self::failed(LISTENER, error));
                }
                Value::Object(entry)
            })
            .collect();
        list(&mut out, "dynamic_listeners", dynamic);
        Value::Object(out)
    }

    fn routes(&self, routes: &Section) -> Value {
        let mut out = section("RoutesConfigDump");
        let dynamic = self.each(&routes.active, ROUTE, "route_config");
        list(&mut out, "dynamic_route_configs", dynamic);
        Value::Object(out)
    }

    fn secrets(&self, secrets: &Section) -> Value {
        let mut out = section("SecretsConfigDump");
        let fixed = self
            .statics(3, SECRET, "secret")
            .into_iter()
            .map(|mut entry| {
                if let (Some(name), Some(object)) =
                    (entry["secret"].get("name").cloned(), entry.as_object_mut())
                {
                    object.insert("name".into(), name);
                }
                entry
            });
        list(&mut out, "static_secrets", fixed.collect());
        let dynamic = secrets
            .active
            .ordered()
            .into_iter()
            .filter(|(name, _)| self.wanted(name))
            .map(|(name, raw)| {
                let mut entry = Map::new();
                entry.insert("name".into(), (&**name).into());
                entry.extend(self.state(SECRET, "secret", raw));
                if let Some(error) = secrets.errors.get(name) {
                    entry.insert("error_state".into(), Self::failed(SECRET, error));
                }
                Value::Object(entry)
            })
            .collect();
        list(&mut out, "dynamic_active_secrets", dynamic);
        Value::Object(out)
    }
}

/// Elements of the repeated field `resource` with their type; `None` if no section has it.
fn elements(configs: Vec<Value>, resource: &str) -> Option<Vec<Value>> {
    const FIELDS: [(&str, &str); 12] = [
        ("static_clusters", "ClustersConfigDump.StaticCluster"),
        (
            "dynamic_active_clusters",
            "ClustersConfigDump.DynamicCluster",
        ),
        (
            "dynamic_warming_clusters",
            "ClustersConfigDump.DynamicCluster",
        ),
        (
            "static_endpoint_configs",
            "EndpointsConfigDump.StaticEndpointConfig",
        ),
        (
            "dynamic_endpoint_configs",
            "EndpointsConfigDump.DynamicEndpointConfig",
        ),
        ("static_listeners", "ListenersConfigDump.StaticListener"),
        ("dynamic_listeners", "ListenersConfigDump.DynamicListener"),
        ("static_route_configs", "RoutesConfigDump.StaticRouteConfig"),
        (
            "dynamic_route_configs",
            "RoutesConfigDump.DynamicRouteConfig",
        ),
        ("static_secrets", "SecretsConfigDump.StaticSecret"),
        ("dynamic_active_secrets", "SecretsConfigDump.DynamicSecret"),
        ("dynamic_warming_secrets", "SecretsConfigDump.DynamicSecret"),
    ];
    let (_, kind) = FIELDS.iter().find(|(name, _)| *name == resource)?;
    let mut found = Vec::new();
    for mut config in configs {
        if let Some(Value::Array(items)) = config.get_mut(resource).map(Value::take) {
            found.extend(items.into_iter().map(|item| {
                let mut out = Map::new();
                out.insert(
                    "@type".into(),
                    format!("{TYPE_PREFIX}envoy.admin.v3.{kind}").into(),
                );
                if let Value::Object(fields) = item {
                    out.extend(fields);
                }
                Value::Object(out)
            }));
        }
    }
    Some(found)
}

/// Keeps only the masked paths (and `@type`).
fn keep(value: &mut Value, paths: &[Vec<&str>]) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, _| {
                key == "@type" || paths.iter().any(|p| p.first().is_some_and(|f| f == key))
            });
            for (key, value) in fields.iter_mut() {
                let below: Vec<Vec<&str>> = paths
                    .iter()
                    .filter(|p| p.first().is_some_and(|f| f == key))
                    .map(|p| p[1..].to_vec())
                    .collect();
                if !below.is_empty() && below.iter().all(|p| !p.is_empty()) {
                    keep(value, &below);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|v| keep(v, paths)),
        _ => {}
    }
}
