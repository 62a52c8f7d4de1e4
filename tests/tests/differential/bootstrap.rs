//! The static bootstrap that both proxies get: one listener per case, a fixed set of clusters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::cases::Case;

/// Istio's default text format without what differs by nature (times, durations, own ports).
const LOG: &str = "\"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% \"%REQ(X-FORWARDED-FOR)%\" \
\"%REQ(USER-AGENT)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Addresses of the applications behind the proxies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Upstreams {
    pub(super) http: SocketAddr,
    pub(super) tcp: SocketAddr,
    pub(super) reset: SocketAddr,
    /// Nothing listens there.
    pub(super) dead: SocketAddr,
}

pub(super) fn typed(kind: &str, mut fields: Value) -> Value {
    fields["@type"] = json!(format!("type.googleapis.com/{kind}"));
    fields
}

fn address(at: SocketAddr) -> Value {
    json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
}

/// Merges like a protobuf: objects field by field, everything else replaced.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn access_log(folder: &Path, case: &Case) -> Value {
    let path = folder.join(format!("{}.log", case.id()));
    json!([{"name": "envoy.access_loggers.file", "typed_config": typed(
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        json!({"path": path, "log_format": {"text_format_source": {"inline_string": LOG}}}))}])
}

fn router() -> Value {
    json!({"name": "envoy.filters.http.router", "typed_config": typed(
        "envoy.extensions.filters.http.router.v3.Router", json!({}))})
}

fn http_listener(case: &Case, folder: &Path) -> Value {
    let mut filters = case.filters.clone();
    filters.push(router());
    let mut hcm = json!({
        "stat_prefix": case.id(),
        "access_log": access_log(folder, case),
        "normalize_path": true,
        "use_remote_address": false,
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": filters,
        "route_config": {"name": case.id(), "validate_clusters": false, "virtual_hosts": case.hosts},
    });
    merge(&mut hcm, &case.hcm);
    json!({"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", hcm)}]})
}

fn tcp_listener(case: &Case, folder: &Path, cluster: &str) -> Value {
    let mut proxy = json!({
        "stat_prefix": case.id(), "cluster": cluster, "access_log": access_log(folder, case)});
    merge(&mut proxy, &case.hcm);
    json!({"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": typed(
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", proxy)}]})
}

fn cluster(name: &str, hosts: &[SocketAddr], extra: &Value) -> Value {
    let endpoints: Vec<Value> = hosts
        .iter()
        .map(|h| json!({"endpoint": {"address": address(*h)}}))
        .collect();
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}});
    merge(&mut cluster, extra);
    cluster
}

fn clusters(up: Upstreams) -> Value {
    let h2 = json!({"typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            json!({"explicit_http_config": {"http2_protocol_options": {}}}))}});
    let closed = json!({"circuit_breakers": {"thresholds": [{"max_requests": 0}]}});
    let none = json!({});
    json!([
        cluster("ok", &[up.http], &none),
        cluster("h2", &[up.http], &h2),
        cluster("tcp", &[up.tcp], &none),
        cluster("dead", &[up.dead], &none),
        cluster("reset", &[up.reset], &none),
        cluster("empty", &[], &none),
        cluster("full", &[up.http], &closed),
    ])
}

/// The bootstrap, with the listener port of each case.
pub(super) fn build(
    cases: &[Case],
    ports: &BTreeMap<String, u16>,
    admin: u16,
    folder: &Path,
    up: Upstreams,
) -> String {
    let loopback = |port: u16| address(([127, 0, 0, 1], port).into());
    let listeners: Vec<Value> = cases
        .iter()
        .map(|case| {
            let chain = match case.tcp {
                Some(cluster) => tcp_listener(case, folder, cluster),
                None => http_listener(case, folder),
            };
            json!({"name": case.id(), "address": loopback(ports[&case.id()]),
                "filter_chains": [chain]})
        })
        .collect();
    let bootstrap = json!({
        "node": {"id": "sidecar~127.0.0.1~test.test~test.svc.cluster.local", "cluster": "test"},
        "admin": {"address": loopback(admin)},
        "layered_runtime": {"layers": [{"name": "global config", "static_layer": {
            "envoy.reloadable_features.http_reject_path_with_fragment": false}}]},
        "static_resources": {"listeners": listeners, "clusters": clusters(up)},
    });
    bootstrap.to_string()
}
