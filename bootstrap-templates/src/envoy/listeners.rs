//! Static listeners of Envoy's bootstrap: statistics, the two mTLS metrics listeners and health.
//! All are exempt from connection limits and overload, or a busy pod would be killed by its probe.

use serde_json::{Value, json};

use super::transport_socket::mesh_downstream;
use super::{EnvoyInputs, Families};

const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";
/// In `proxyMetadata` only the exact word `true` restricts the statistics listener.
const LOCALHOST_ONLY: &str = "METRICS_LOCALHOST_ACCESS_ONLY";

pub(super) fn static_listeners(inputs: &EnvoyInputs<'_>, families: &Families) -> Vec<Value> {
    let ports = &inputs.node.ports;
    let mut listeners = vec![stats(inputs, families)];
    if ports.secure_metrics != 0 {
        let routes = [("/stats/prometheus", "prometheus_stats")];
        listeners.push(secure(
            families,
            ports.secure_metrics,
            "secure_stats",
            &routes,
        ));
    }
    if ports.secure_merged_metrics != 0 {
        let routes = [("/stats/prometheus", "agent"), ("/metrics", "agent")];
        let port = ports.secure_merged_metrics;
        listeners.push(secure(families, port, "secure_merged_stats", &routes));
    }
    listeners.push(health(inputs, families));
    listeners
}

fn listener(address: &str, additional: Option<&str>, port: u16, filter_chain: Value) -> Value {
    let socket = |address: &str| {
        json!({ "socket_address": {
            "protocol": "TCP", "address": address, "port_value": port,
        }})
    };
    let mut listener = json!({
        "name": format!("{address}_{port}"),
        "address": socket(address),
        "ignore_global_conn_limit": true,
        "bypass_overload_manager": true,
        "filter_chains": [filter_chain],
    });
    if let Some(additional) = additional {
        listener["additionalAddresses"] = json!([{ "address": socket(additional) }]);
    }
    listener
}

/// One HTTP connection manager that routes path prefixes to clusters.
fn http(stat_prefix: &str, routes: &[(&str, &str)], filters: Vec<Value>) -> Value {
    let routes: Vec<Value> = routes
        .iter()
        .map(|(prefix, cluster)| {
            json!({ "match": { "prefix": prefix }, "route": { "cluster": cluster } })
        })
        .collect();
    let mut http_filters = filters;
    http_filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": format!("{EXTENSIONS}.filters.http.router.v3.Router") },
    }));
    json!([{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": format!(
                "{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"
            ),
            "codec_type": "AUTO",
            "stat_prefix": stat_prefix,
            "route_config": { "virtual_hosts": [{
                "name": "backend", "domains": ["*"], "routes": routes,
            }]},
            "http_filters": http_filters,
        },
    }])
}

fn stats(inputs: &EnvoyInputs<'_>, families: &Families) -> Value {
    let metadata = &inputs.settings.proxy_metadata;
    let restricted = metadata
        .get(LOCALHOST_ONLY)
        .is_some_and(|value| value == "true");
    let pick = |localhost, wildcard| if restricted { localhost } else { wildcard };
    let address = pick(families.localhost, families.wildcard);
    let additional = families
        .additional
        .map(|(localhost, wildcard)| pick(localhost, wildcard));
    let compress = inputs.settings.stats_compression.unwrap_or(true);
    let filters = if compress {
        [("brotli", "Brotli"), ("zstd", "Zstd"), ("gzip", "Gzip")]
            .map(compressor)
            .to_vec()
    } else {
        Vec::new()
    };
    let routes = [("/stats/prometheus", "prometheus_stats")];
    let chain = json!({ "filters": http("stats", &routes, filters) });
    listener(address, additional, inputs.node.ports.prometheus, chain)
}

fn compressor((name, message): (&str, &str)) -> Value {
    json!({
        "name": format!("envoy.filters.http.compressor.{name}"),
        "typed_config": {
            "@type": format!("{EXTENSIONS}.filters.http.compressor.v3.Compressor"),
            "compressor_library": {
                "name": format!("stats_{name}"),
                "typed_config": {
                    "@type": format!("{EXTENSIONS}.compression.{name}.compressor.v3.{message}"),
                },
            },
            "response_direction_config": { "common_config": { "content_type": [
                "text/plain",
                "application/vnd.google.protobuf",
                "application/openmetrics-text",
                "application/openmetrics-protobuf",
            ]}},
        },
    })
}

fn secure(families: &Families, port: u16, stat_prefix: &str, routes: &[(&str, &str)]) -> Value {
    let chain = json!({
        "filter_chain_match": { "transport_protocol": "tls" },
        "transport_socket": mesh_downstream(),
        "filters": http(stat_prefix, routes, Vec::new()),
    });
    let mut listener = listener(families.wildcard, None, port, chain);
    listener["listener_filters"] = json!([{
        "name": "envoy.filters.listener.tls_inspector",
        "typed_config": {
            "@type": format!("{EXTENSIONS}.filters.listener.tls_inspector.v3.TlsInspector"),
        },
    }]);
    listener
}

fn health(inputs: &EnvoyInputs<'_>, families: &Families) -> Value {
    let additional = families.additional.map(|(_, wildcard)| wildcard);
    let chain = json!({ "filters": http("agent", &[("/healthz/ready", "agent")], Vec::new()) });
    let port = inputs.node.ports.status;
    let mut listener = listener(families.wildcard, additional, port, chain);
    if inputs.status_proxy_protocol {
        listener["listener_filters"] = json!([{
            "name": "envoy.listener.proxy_protocol",
            "typed_config": {
                "@type": format!("{EXTENSIONS}.filters.listener.proxy_protocol.v3.ProxyProtocol"),
                "allow_requests_without_proxy_protocol": true,
            },
        }]);
    }
    listener
}
