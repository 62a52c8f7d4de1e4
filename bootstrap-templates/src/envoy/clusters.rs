//! Static clusters of Envoy's bootstrap. Every one sets `alt_stat_name` to its name and `;`, which
//! the stat tag regexes rely on.

use serde_json::{Map, Value, json};

use super::tracing::{Tracer, TracerKind};
use super::transport_socket::upstream;
use super::{EnvoyInputs, Families, socket_address};
use crate::error::FieldError;
use crate::proxy_config::{ProxySettings, RemoteService, TcpKeepalive};

/// Folder of the workload's SDS socket; relative, like every path of the agent.
const WORKLOAD_UDS: &str = "./var/run/secrets/workload-spiffe-uds";
/// The agent's socket for certificates from files, when identities come from elsewhere.
pub(super) const FILES_SDS_SOCKET: &str = "./var/run/secrets/credential-uds/files-socket";
/// `circuit_breakers` of the xDS cluster: practically none.
const XDS_LIMIT: u32 = 100_000;

pub(super) fn static_clusters(
    inputs: &EnvoyInputs<'_>,
    families: &Families,
    tracer: Option<&Tracer>,
) -> Result<Vec<Value>, FieldError> {
    let EnvoyInputs { node, settings, .. } = *inputs;
    let local = |port: i32| {
        json!({ "socket_address": {
            "protocol": "TCP", "address": families.localhost, "port_value": port,
        }})
    };
    let pipe = |path: &str| json!({ "pipe": { "path": path } });
    let workload_socket = format!("{WORKLOAD_UDS}/{}", node.workload_identity_socket_file);
    let mut clusters = vec![
        fixed(
            "prometheus_stats",
            "0.250s",
            local(settings.proxy_admin_port),
        ),
        fixed("agent", "0.250s", local(settings.status_port)),
        with_http2(fixed("sds-grpc", "1s", pipe(&workload_socket))),
    ];
    if node.external_sds {
        clusters.push(with_http2(fixed(
            "sds-files-grpc",
            "1s",
            pipe(FILES_SDS_SOCKET),
        )));
    }
    clusters.push(xds(pipe(&format!("{}/XDS", settings.config_path))));
    if let Some(tracer) = tracer {
        clusters.push(collector(inputs, families, tracer)?);
    }
    clusters.extend(metrics_service(inputs, families)?);
    clusters.extend(access_log_service(inputs, families)?);
    if node.self_discovery {
        clusters.push(local_cluster());
    }
    Ok(clusters)
}

fn cluster(name: &str, kind: &str, connect_timeout: &str) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("name".to_owned(), name.into());
    map.insert("alt_stat_name".to_owned(), format!("{name};").into());
    map.insert("type".to_owned(), kind.into());
    map.insert("connect_timeout".to_owned(), connect_timeout.into());
    map
}

fn with_endpoint(
    mut cluster: Map<String, Value>,
    name: &str,
    address: Value,
) -> Map<String, Value> {
    cluster.insert("lb_policy".to_owned(), "ROUND_ROBIN".into());
    cluster.insert(
        "load_assignment".to_owned(),
        json!({
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
        }),
    );
    cluster
}

fn fixed(name: &str, connect_timeout: &str, address: Value) -> Value {
    Value::Object(with_endpoint(
        cluster(name, "STATIC", connect_timeout),
        name,
        address,
    ))
}

fn with_http2(mut cluster: Value) -> Value {
    const TYPE: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    cluster["typed_extension_protocol_options"] = json!({ TYPE: {
        "@type": format!("type.googleapis.com/{TYPE}"),
        "explicit_http_config": { "http2_protocol_options": {} },
    }});
    cluster
}

/// One connection carries one stream (`max_requests_per_connection`): istiod must see a new
/// stream on a new connection, and a stuck one must be noticed by keepalive.
fn xds(address: Value) -> Value {
    let mut cluster = with_http2(fixed("xds-grpc", "1s", address));
    let threshold = |priority: &str| {
        json!({
            "priority": priority,
            "max_connections": XDS_LIMIT,
            "max_pending_requests": XDS_LIMIT,
            "max_requests": XDS_LIMIT,
        })
    };
    cluster["circuit_breakers"] =
        json!({ "thresholds": [threshold("DEFAULT"), threshold("HIGH")] });
    cluster["upstream_connection_options"] = json!({ "tcp_keepalive": { "keepalive_time": 300 } });
    cluster["max_requests_per_connection"] = 1.into();
    cluster
}

fn by_dns(name: &str, families: &Families, socket_address: Value) -> Value {
    let mut map = cluster(name, "STRICT_DNS", "1s");
    map.insert("respect_dns_ttl".to_owned(), true.into());
    map.insert("dns_lookup_family".to_owned(), families.dns_lookup.into());
    Value::Object(with_endpoint(
        map,
        name,
        json!({ "socket_address": socket_address }),
    ))
}

fn collector(
    inputs: &EnvoyInputs<'_>,
    families: &Families,
    tracer: &Tracer,
) -> Result<Value, FieldError> {
    let http2 = tracer.kind == TracerKind::Lightstep;
    let mut cluster = by_dns(tracer.kind.cluster_name(), families, tracer.address.clone());
    if http2 {
        cluster = with_http2(cluster);
    }
    if tracer.kind == TracerKind::Zipkin {
        cluster["dns_refresh_rate"] = "30s".into();
    }
    let tls = inputs
        .settings
        .tracing
        .as_ref()
        .and_then(|t| t.tls_settings.as_ref());
    if let Some(socket) = upstream(inputs.node, "tracing.tlsSettings", tls, "tracer", http2)? {
        cluster["transport_socket"] = socket;
    }
    Ok(cluster)
}

/// The metrics service's address; the deprecated field counts when the current one is unset.
pub(super) fn metrics_service_address(settings: &ProxySettings) -> Option<&str> {
    let current = settings
        .envoy_metrics_service
        .as_ref()
        .map(|s| s.address.as_str());
    let current = current.filter(|address| !address.is_empty());
    let old = settings.envoy_metrics_service_address.as_str();
    current.or((!old.is_empty()).then_some(old))
}

fn metrics_service(
    inputs: &EnvoyInputs<'_>,
    families: &Families,
) -> Result<Option<Value>, FieldError> {
    let Some(address) = metrics_service_address(inputs.settings) else {
        return Ok(None);
    };
    let service = RemoteService {
        address: address.to_owned(),
        ..inputs
            .settings
            .envoy_metrics_service
            .clone()
            .unwrap_or_default()
    };
    let path = "envoyMetricsService";
    grpc_service(inputs, families, path, "envoy_metrics_service", &service).map(Some)
}

fn access_log_service(
    inputs: &EnvoyInputs<'_>,
    families: &Families,
) -> Result<Option<Value>, FieldError> {
    let service = inputs.settings.envoy_access_log_service.as_ref();
    let Some(service) = service.filter(|s| !s.address.is_empty()) else {
        return Ok(None);
    };
    let path = "envoyAccessLogService";
    grpc_service(inputs, families, path, "envoy_accesslog_service", service).map(Some)
}

fn grpc_service(
    inputs: &EnvoyInputs<'_>,
    families: &Families,
    path: &str,
    name: &str,
    service: &RemoteService,
) -> Result<Value, FieldError> {
    let address = socket_address(inputs, &format!("{path}.address"), &service.address)?;
    let mut cluster = with_http2(by_dns(name, families, address));
    let tls_path = format!("{path}.tlsSettings");
    let tls = service.tls_settings.as_ref();
    if let Some(socket) = upstream(inputs.node, &tls_path, tls, name, true)? {
        cluster["transport_socket"] = socket;
    }
    if let Some(keepalive) = &service.tcp_keepalive {
        cluster["upstream_connection_options"] =
            json!({ "tcp_keepalive": tcp_keepalive(keepalive) });
    }
    Ok(cluster)
}

pub(super) fn tcp_keepalive(keepalive: &TcpKeepalive) -> Map<String, Value> {
    let seconds = |d: Option<std::time::Duration>| d.map_or(0, |d| d.as_secs());
    let members = [
        ("keepalive_probes", u64::from(keepalive.probes)),
        ("keepalive_time", seconds(keepalive.time)),
        ("keepalive_interval", seconds(keepalive.interval)),
    ];
    let set = members.into_iter().filter(|(_, value)| *value > 0);
    set.map(|(key, value)| (key.to_owned(), value.into()))
        .collect()
}

/// The proxy's own service, so that load balancing can prefer its zone.
fn local_cluster() -> Value {
    let mut map = cluster("local_cluster", "EDS", "1s");
    map.insert(
        "load_balancing_policy".to_owned(),
        json!({ "policies": [{ "typed_extension_config": {
            "name": "envoy.load_balancing_policies.least_request",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.\
                          least_request.v3.LeastRequest",
                "locality_lb_config": { "zone_aware_lb_config": { "min_cluster_size": "1" } },
            },
        }}]}),
    );
    map.insert(
        "eds_cluster_config".to_owned(),
        json!({
            "eds_config": { "ads": {}, "resource_api_version": "V3" },
            "service_name": "local_cluster",
        }),
    );
    Value::Object(map)
}
