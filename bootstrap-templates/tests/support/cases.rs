//! Combinations of settings and what the specification says the bootstrap then holds. A path steps
//! through objects by key and through lists by index or by `name`; `Null` means absent.

use bootstrap_templates::{CompliancePolicy, EnvoyInputs, NodeType, Platform};
use serde_json::{Value, json};

use super::Pod;

/// One row.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// ProxyConfig over the recorded one.
    pub(crate) overlay: Value,
    /// Pod annotations.
    pub(crate) annotations: &'static [(&'static str, &'static str)],
    /// Other inputs of the node.
    pub(crate) pod: fn(&mut Pod),
    /// Switches of the agent.
    pub(crate) inputs: fn(&mut EnvoyInputs<'_>),
    /// Paths and values.
    pub(crate) want: Vec<(&'static str, Value)>,
}

impl Case {
    pub(crate) fn pod(&self, mut pod: Pod) -> Pod {
        pod.config.overlay(&self.overlay).expect(self.name);
        let annotations = pod.inputs.annotations.get_or_insert_default();
        for (name, value) in self.annotations {
            annotations.insert((*name).to_owned(), (*value).to_owned());
        }
        (self.pod)(&mut pod);
        pod
    }
}

fn case(name: &'static str, overlay: Value, want: Vec<(&'static str, Value)>) -> Case {
    Case {
        name,
        overlay,
        annotations: &[],
        pod: |_| {},
        inputs: |_| {},
        want,
    }
}

fn annotated(
    name: &'static str,
    annotations: &'static [(&'static str, &'static str)],
    want: Vec<(&'static str, Value)>,
) -> Case {
    Case {
        annotations,
        ..case(name, json!({}), want)
    }
}

fn changed(name: &'static str, pod: fn(&mut Pod), want: Vec<(&'static str, Value)>) -> Case {
    Case {
        pod,
        ..case(name, json!({}), want)
    }
}

fn switched(
    name: &'static str,
    inputs: fn(&mut EnvoyInputs<'_>),
    want: Vec<(&'static str, Value)>,
) -> Case {
    Case {
        inputs,
        ..case(name, json!({}), want)
    }
}

fn variable(pod: &mut Pod, name: &str, value: &str) {
    pod.inputs
        .meta_variables
        .insert(name.to_owned(), value.to_owned());
}

fn set_ips(pod: &mut Pod, ips: &[&str]) {
    pod.inputs.ips = ips.iter().map(|ip| ip.parse().expect("ip")).collect();
}

/// The whole table.
pub(crate) fn cases() -> Vec<Case> {
    let mut out = vec![everything()];
    out.extend(runtime());
    out.extend(tracers());
    out.extend(collectors());
    out.extend(statistics());
    out.extend(listeners());
    out.extend(nodes());
    out
}

const LAYER: &str = "layered_runtime/layers/global config/static_layer";

/// Every part that a setting adds, in one document.
fn everything() -> Case {
    Case {
        annotations: &[
            (
                "sidecar.istio.io/statsHistogramBuckets",
                r#"{"istio":[1,5,10]}"#,
            ),
            ("sidecar.istio.io/statsFlushInterval", "1m30s"),
            ("sidecar.istio.io/statsEvictionInterval", "3m"),
        ],
        pod: |pod| {
            pod.inputs.ports.secure_metrics = 15091;
            pod.inputs.ports.secure_merged_metrics = 15092;
            pod.inputs.outlier_log_path = "/dev/stdout".to_owned();
            pod.inputs.external_sds = true;
            pod.inputs.ips.push("2001:db8::1".parse().expect("ip"));
            variable(pod, "ISTIO_META_ENABLE_SELF_DISCOVERY", "true");
        },
        inputs: |i| {
            i.dual_stack = true;
            i.status_proxy_protocol = true;
            i.log_as_json = true;
        },
        ..case(
            "everything",
            json!({
                "tracing": {
                    "zipkin": { "address": "z:1" }, "tlsSettings": { "mode": "ISTIO_MUTUAL" },
                },
                "envoyMetricsService": {
                    "address": "m:2",
                    "tlsSettings": {
                        "mode": "MUTUAL", "clientCertificate": "/c", "privateKey": "/k",
                        "caCertificates": "/r", "subjectAltNames": ["spiffe://x"],
                    },
                    "tcpKeepalive": { "probes": 3, "time": "10s" },
                },
                "envoyAccessLogService": { "address": "a:3" },
                "statsdUdpAddress": "10.1.1.1:9125",
                "extraStatTags": ["mine"],
            }),
            vec![
                ("static_resources/clusters/local_cluster", json!("present")),
                (
                    "static_resources/clusters/envoy_accesslog_service",
                    json!("present"),
                ),
                ("static_resources/listeners/0.0.0.0_15092", json!("present")),
                ("stats_sinks/1", json!("present")),
            ],
        )
    }
}

fn runtime() -> Vec<Case> {
    let limit =
        "overload_manager/resource_monitors/0/typed_config/max_active_downstream_connections";
    vec![
        case(
            "defaults",
            json!({}),
            vec![
                ("dynamic_resources/ads_config/api_type", json!("DELTA_GRPC")),
                (
                    "dynamic_resources/ads_config/set_node_on_first_message_only",
                    json!(true),
                ),
                (
                    "dynamic_resources/lds_config/initial_fetch_timeout",
                    json!("0s"),
                ),
                (limit, json!(2_147_483_647)),
                ("stats_config/use_all_default_tags", json!(false)),
                (
                    "deferred_stat_options/enable_deferred_creation_stats",
                    json!(true),
                ),
                (
                    "bootstrap_extensions/0/name",
                    json!("envoy.bootstrap.internal_listener"),
                ),
                (
                    "bootstrap_extensions/0/typed_config/value/buffer_size_kb",
                    json!(64),
                ),
                ("cluster_manager", Value::Null),
                ("stats_sinks", Value::Null),
                ("stats_flush_interval", Value::Null),
                ("admin/access_log/0/typed_config/path", json!("/dev/null")),
                (
                    "admin/profile_path",
                    json!("/var/lib/istio/data/envoy.prof"),
                ),
                ("layered_runtime/layers/1/admin_layer", json!({})),
            ],
        ),
        switched(
            "JSON log",
            |i| i.log_as_json = true,
            vec![
                (
                    "application_log_config/log_format/json_format/msg",
                    json!("%j"),
                ),
                (
                    "application_log_config/log_format/json_format/scope",
                    json!("envoy %n"),
                ),
                ("application_log_config/log_format/text_format", Value::Null),
            ],
        ),
        switched(
            "state of the world",
            |i| i.delta_xds = false,
            vec![("dynamic_resources/ads_config/api_type", json!("GRPC"))],
        ),
        switched(
            "FIPS 140-2",
            |i| i.compliance = Some(CompliancePolicy::Fips140v2),
            vec![(
                "layered_runtime/layers/0/static_layer/\
                 envoy.reloadable_features.google_grpc_disable_tls_13",
                json!(true),
            )],
        ),
        switched(
            "FIPS 140-3",
            |i| i.compliance = Some(CompliancePolicy::Fips140v3),
            vec![(
                "layered_runtime/layers/0/static_layer/\
                 envoy.reloadable_features.google_grpc_disable_tls_13",
                Value::Null,
            )],
        ),
        switched(
            "fragment kept",
            |i| i.strip_fragment = false,
            vec![(
                "layered_runtime/layers/0/static_layer/\
                 envoy.reloadable_features.http_strip_fragment_from_path_unsafe_if_disabled",
                json!("false"),
            )],
        ),
        case(
            "runtime values",
            json!({ "runtimeValues": {
                "re2.max_program_size.error_level": "",
                "envoy.reloadable_features.fixed_heap_use_allocated": "false",
                "a.flag": "true", "a.number": "7",
            }}),
            vec![(
                LAYER,
                json!({
                    "envoy.deprecated_features:envoy.config.listener.v3.Listener.hidden_envoy_deprecated_use_original_dst": true,
                    "envoy.reloadable_features.http_reject_path_with_fragment": false,
                    "envoy.reloadable_features.fixed_heap_use_allocated": false,
                    "envoy.reloadable_features.coalesce_lb_rebuilds_on_batch_update": false,
                    "a.flag": true, "a.number": "7",
                }),
            )],
        ),
        case(
            "connection limit of the configuration",
            json!({
                "connectionSettings": { "globalDownstreamConnectionLimit": 30 },
                "proxyMetadata": { "ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS": "20" },
            }),
            vec![(limit, json!(30))],
        ),
        case(
            "connection limit of proxyMetadata",
            json!({
                "proxyMetadata": { "ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS": "20" },
                "runtimeValues": { "overload.global_downstream_max_connections": "10" },
            }),
            vec![(limit, json!(20))],
        ),
        case(
            "connection limit of the runtime",
            json!({ "runtimeValues": { "overload.global_downstream_max_connections": "10" } }),
            vec![(limit, json!(10))],
        ),
    ]
}

const ZIPKIN_TLS: &str = "static_resources/clusters/zipkin/transport_socket/typed_config";

fn zipkin_tls(name: &'static str, tls: Value, want: Vec<(&'static str, Value)>) -> Case {
    let tracing = json!({ "zipkin": { "address": "zipkin.tracing:9411" }, "tlsSettings": tls });
    case(name, json!({ "tracing": tracing }), want)
}

fn tracers() -> Vec<Case> {
    vec![
        case(
            "zipkin",
            json!({ "tracing": { "zipkin": { "address": "zipkin.tracing:9411" } } }),
            vec![
                ("tracing/http/name", json!("envoy.tracers.zipkin")),
                (
                    "tracing/http/typed_config/collector_endpoint",
                    json!("/api/v2/spans"),
                ),
                (
                    "tracing/http/typed_config/collector_endpoint_version",
                    json!("HTTP_JSON"),
                ),
                ("tracing/http/typed_config/trace_id_128bit", json!(true)),
                (
                    "tracing/http/typed_config/shared_span_context",
                    json!(false),
                ),
                ("static_resources/clusters/zipkin/type", json!("STRICT_DNS")),
                (
                    "static_resources/clusters/zipkin/respect_dns_ttl",
                    json!(true),
                ),
                (
                    "static_resources/clusters/zipkin/dns_refresh_rate",
                    json!("30s"),
                ),
                (
                    "static_resources/clusters/zipkin/dns_lookup_family",
                    json!("V4_ONLY"),
                ),
                (
                    "static_resources/clusters/zipkin/connect_timeout",
                    json!("1s"),
                ),
                (
                    "static_resources/clusters/zipkin/transport_socket",
                    Value::Null,
                ),
            ],
        ),
        case(
            "no tracer",
            json!({ "tracing": {} }),
            vec![
                ("tracing", Value::Null),
                ("static_resources/clusters/zipkin", Value::Null),
            ],
        ),
        zipkin_tls(
            "zipkin over TLS",
            json!({
                "mode": "SIMPLE", "caCertificates": "/ca.pem", "sni": "z.example",
                "subjectAltNames": ["a", "b"],
            }),
            vec![
                (
                    "static_resources/clusters/zipkin/transport_socket/typed_config/sni",
                    json!("z.example"),
                ),
                (
                    "static_resources/clusters/zipkin/transport_socket/typed_config/common_tls_context/\
                     combined_validation_context/default_validation_context/match_subject_alt_names",
                    json!([{ "exact": "a" }, { "exact": "b" }]),
                ),
                (
                    "static_resources/clusters/zipkin/transport_socket/typed_config/common_tls_context/\
                     combined_validation_context/validation_context_sds_secret_config/name",
                    json!("file-root:/ca.pem"),
                ),
                (
                    "static_resources/clusters/zipkin/transport_socket/typed_config/common_tls_context/\
                     alpn_protocols",
                    Value::Null,
                ),
            ],
        ),
        Case {
            pod: |pod| {
                variable(pod, "ISTIO_META_TLS_CLIENT_CERT_CHAIN", "/meta/chain");
                variable(pod, "ISTIO_META_TLS_CLIENT_KEY", "/meta/key");
                variable(pod, "ISTIO_META_TLS_CLIENT_ROOT_CERT", "/meta/root");
            },
            ..zipkin_tls(
                "zipkin over mutual TLS with the files of the metadata",
                json!({
                    "mode": "MUTUAL", "caCertificates": "/ca", "clientCertificate": "/c",
                    "privateKey": "/k",
                }),
                vec![
                    (
                        "static_resources/clusters/zipkin/transport_socket/typed_config/\
                         common_tls_context/tls_certificate_sds_secret_configs/0/name",
                        json!("file-cert:/meta/chain~/meta/key"),
                    ),
                    (
                        "static_resources/clusters/zipkin/transport_socket/typed_config/\
                         common_tls_context/combined_validation_context/\
                         validation_context_sds_secret_config/name",
                        json!("file-root:/meta/root"),
                    ),
                ],
            )
        },
        zipkin_tls(
            "zipkin with the mesh identity",
            json!({ "mode": "ISTIO_MUTUAL" }),
            vec![
                (
                    "static_resources/clusters/zipkin/transport_socket/typed_config/sni",
                    json!("tracer"),
                ),
                (
                    "static_resources/clusters/zipkin/transport_socket/typed_config/\
                     common_tls_context/tls_certificate_sds_secret_configs/0/name",
                    json!("default"),
                ),
                (
                    "static_resources/clusters/zipkin/transport_socket/typed_config/\
                     common_tls_context/combined_validation_context/\
                     validation_context_sds_secret_config/name",
                    json!("ROOTCA"),
                ),
            ],
        ),
        zipkin_tls(
            "zipkin with the mesh identity and a name",
            json!({ "mode": "ISTIO_MUTUAL", "sni": "mine" }),
            vec![(
                "static_resources/clusters/zipkin/transport_socket/typed_config/sni",
                json!("mine"),
            )],
        ),
        zipkin_tls(
            "zipkin with TLS off",
            json!({ "mode": "DISABLE" }),
            vec![(ZIPKIN_TLS, Value::Null)],
        ),
        Case {
            inputs: |i| i.host_ip = Some("fd00::7"),
            ..case(
                "zipkin on the host",
                json!({ "tracing": { "zipkin": { "address": "$(HOST_IP):9411" } } }),
                vec![(
                    "static_resources/clusters/zipkin/load_assignment/endpoints/0/lb_endpoints/0/\
                     endpoint/address/socket_address",
                    json!({ "address": "fd00::7", "port_value": 9411 }),
                )],
            )
        },
        case(
            "lightstep",
            json!({ "tracing": { "lightstep": { "address": "l:443", "accessToken": "secret" } } }),
            vec![
                ("tracing/http/name", json!("envoy.tracers.lightstep")),
                (
                    "tracing/http/typed_config/access_token_file",
                    json!("./etc/istio/proxy/lightstep_access_token.txt"),
                ),
                (
                    "static_resources/clusters/lightstep/dns_refresh_rate",
                    Value::Null,
                ),
            ],
        ),
        case(
            "lightstep over TLS",
            json!({ "tracing": {
                "lightstep": { "address": "l:443", "accessToken": "secret" },
                "tlsSettings": { "mode": "SIMPLE", "caCertificates": "/ca" },
            }}),
            vec![(
                "static_resources/clusters/lightstep/transport_socket/typed_config/\
                 common_tls_context/alpn_protocols",
                json!(["h2"]),
            )],
        ),
        case(
            "datadog",
            json!({ "tracing": { "datadog": { "address": "$(HOST_IP):8126" } } }),
            vec![
                ("tracing/http/name", json!("envoy.tracers.datadog")),
                (
                    "tracing/http/typed_config/service_name",
                    json!("sleep.sample"),
                ),
                (
                    "static_resources/clusters/datadog_agent/load_assignment/endpoints/0/\
                     lb_endpoints/0/endpoint/address/socket_address/address",
                    json!("10.244.0.1"),
                ),
            ],
        ),
        case(
            "OpenCensus is istiod's business",
            json!({ "tracing": { "openCensusAgent": { "address": "o:1", "context": ["B3"] } } }),
            vec![("tracing", Value::Null)],
        ),
        Case {
            pod: |pod| {
                pod.inputs.platform = Some(Platform {
                    metadata: [("gcp_project".to_owned(), "p".to_owned())].into(),
                    ..Platform::default()
                });
            },
            ..case(
                "Stackdriver with a project is istiod's business",
                json!({ "tracing": { "stackdriver": { "debug": true } } }),
                vec![
                    ("tracing", Value::Null),
                    (
                        "node/metadata/PLATFORM_METADATA",
                        json!({ "gcp_project": "p" }),
                    ),
                ],
            )
        },
        case(
            "sampling and tags are istiod's business",
            json!({ "tracing": {
                "zipkin": { "address": "z:1" }, "sampling": 12.5, "maxPathTagLength": 99,
                "customTags": { "a": { "literal": { "value": "b" } } }, "enableIstioTags": false,
            }}),
            vec![
                ("node/metadata/PROXY_CONFIG/tracing/sampling", json!(12.5)),
                (
                    "node/metadata/PROXY_CONFIG/tracing/maxPathTagLength",
                    json!(99),
                ),
                (
                    "node/metadata/PROXY_CONFIG/tracing/customTags/a/literal/value",
                    json!("b"),
                ),
                (
                    "node/metadata/PROXY_CONFIG/tracing/enableIstioTags",
                    json!(false),
                ),
                ("tracing/http/typed_config/sampling", Value::Null),
            ],
        ),
    ]
}

fn collectors() -> Vec<Case> {
    vec![
        case(
            "metrics service",
            json!({ "envoyMetricsService": { "address": "metrics:9000" } }),
            vec![
                (
                    "stats_sinks/0/name",
                    json!("envoy.stat_sinks.metrics_service"),
                ),
                (
                    "stats_sinks/0/typed_config/transport_api_version",
                    json!("V3"),
                ),
                (
                    "static_resources/clusters/envoy_metrics_service/type",
                    json!("STRICT_DNS"),
                ),
                (
                    "static_resources/clusters/envoy_metrics_service/upstream_connection_options",
                    Value::Null,
                ),
            ],
        ),
        case(
            "metrics service over mutual TLS with keepalive",
            json!({ "envoyMetricsService": {
                "address": "metrics:9000",
                "tlsSettings": {
                    "mode": "MUTUAL", "clientCertificate": "/c", "privateKey": "/k",
                    "caCertificates": "/r",
                },
                "tcpKeepalive": { "probes": 3, "time": "10s", "interval": "5s" },
            }}),
            vec![
                (
                    "static_resources/clusters/envoy_metrics_service/upstream_connection_options/\
                     tcp_keepalive",
                    json!({ "keepalive_probes": 3, "keepalive_time": 10, "keepalive_interval": 5 }),
                ),
                (
                    "static_resources/clusters/envoy_metrics_service/transport_socket/typed_config/\
                     common_tls_context/alpn_protocols",
                    json!(["h2"]),
                ),
            ],
        ),
        case(
            "metrics service under its old name",
            json!({ "envoyMetricsServiceAddress": "metrics:9000" }),
            vec![(
                "stats_sinks/0/name",
                json!("envoy.stat_sinks.metrics_service"),
            )],
        ),
        case(
            "access log service with the mesh identity",
            json!({ "envoyAccessLogService": {
                "address": "als:9001", "tlsSettings": { "mode": "ISTIO_MUTUAL" },
            }}),
            vec![
                (
                    "static_resources/clusters/envoy_accesslog_service/transport_socket/\
                     typed_config/sni",
                    json!("envoy_accesslog_service"),
                ),
                (
                    "static_resources/clusters/envoy_accesslog_service/transport_socket/\
                     typed_config/common_tls_context/alpn_protocols",
                    json!(["istio", "h2"]),
                ),
                ("stats_sinks", Value::Null),
            ],
        ),
        case(
            "access log service over TLS with keepalive",
            json!({ "envoyAccessLogService": {
                "address": "als:9001",
                "tlsSettings": { "mode": "SIMPLE", "caCertificates": "/ca" },
                "tcpKeepalive": { "time": "20s" },
            }}),
            vec![(
                "static_resources/clusters/envoy_accesslog_service/upstream_connection_options/\
                 tcp_keepalive",
                json!({ "keepalive_time": 20 }),
            )],
        ),
        case(
            "statsd",
            json!({ "statsdUdpAddress": "10.0.0.9:9125" }),
            vec![
                ("stats_sinks/0/name", json!("envoy.stat_sinks.statsd")),
                (
                    "stats_sinks/0/typed_config/address/socket_address",
                    json!({ "address": "10.0.0.9", "port_value": 9125 }),
                ),
            ],
        ),
        case(
            "statsd beside the metrics service",
            json!({
                "statsdUdpAddress": "[fd00::9]:9125",
                "envoyMetricsService": { "address": "metrics:9000" },
            }),
            vec![
                (
                    "stats_sinks/0/name",
                    json!("envoy.stat_sinks.metrics_service"),
                ),
                (
                    "stats_sinks/1/typed_config/address/socket_address/address",
                    json!("fd00::9"),
                ),
            ],
        ),
    ]
}

fn statistics() -> Vec<Case> {
    vec![
        case(
            "extra tags",
            json!({ "extraStatTags": ["x", "y", "x", ""] }),
            vec![
                (
                    "stats_config/stats_tags/9",
                    json!({ "tag_name": "x", "regex": "(x=\\.=(.*?);\\.;)" }),
                ),
                ("stats_config/stats_tags/10/tag_name", json!("y")),
                ("stats_config/stats_tags/11/tag_name", json!("cache")),
                ("stats_config/stats_tags/18", Value::Null),
            ],
        ),
        annotated(
            "extra tags by annotation",
            &[("sidecar.istio.io/extraStatTags", "one,,two")],
            vec![
                ("stats_config/stats_tags/9/tag_name", json!("one")),
                ("stats_config/stats_tags/10/tag_name", json!("two")),
            ],
        ),
        case(
            "inclusion lists",
            json!({ "proxyStatsMatcher": {
                "inclusionPrefixes": ["p"], "inclusionSuffixes": ["s"], "inclusionRegexps": ["r.*"],
            }}),
            vec![(
                "stats_config/stats_matcher/inclusion_list/patterns",
                json!([
                    { "prefix": "reporter=" },
                    { "prefix": "p" },
                    { "prefix": "cluster_manager" },
                    { "prefix": "listener_manager" },
                    { "prefix": "server" },
                    { "prefix": "cluster.xds-grpc" },
                    { "prefix": "wasm" },
                    { "suffix": "s" },
                    { "suffix": "rbac.allowed" },
                    { "suffix": "rbac.denied" },
                    { "suffix": "shadow_allowed" },
                    { "suffix": "shadow_denied" },
                    { "safe_regex": { "regex": "r.*" } },
                    { "safe_regex": { "regex": "vhost\\..*\\.route\\..*" } },
                    { "prefix": "component" },
                    { "prefix": "istio" },
                ]),
            )],
        ),
        Case {
            overlay: json!({ "proxyStatsMatcher": { "inclusionSuffixes": ["kept"] } }),
            ..annotated(
                "inclusion lists by annotation with the pod's addresses",
                &[
                    (
                        "sidecar.istio.io/statsInclusionPrefixes",
                        "http.{pod_ip}_,b",
                    ),
                    ("sidecar.istio.io/statsInclusionRegexps", "x.*"),
                ],
                vec![
                    (
                        "stats_config/stats_matcher/inclusion_list/patterns/1/prefix",
                        json!("http.10.244.1.10_"),
                    ),
                    (
                        "stats_config/stats_matcher/inclusion_list/patterns/2/prefix",
                        json!("b"),
                    ),
                    (
                        "stats_config/stats_matcher/inclusion_list/patterns/8/suffix",
                        json!("kept"),
                    ),
                    (
                        "stats_config/stats_matcher/inclusion_list/patterns/13/safe_regex/regex",
                        json!("x.*"),
                    ),
                ],
            )
        },
        changed(
            "exit on zero connections counts connections",
            |pod| pod.inputs.exit_on_zero_active_connections = true,
            vec![
                (
                    "stats_config/stats_matcher/inclusion_list/patterns/10/suffix",
                    json!("downstream_cx_active"),
                ),
                (
                    "node/metadata/EXIT_ON_ZERO_ACTIVE_CONNECTIONS",
                    json!("true"),
                ),
            ],
        ),
        annotated(
            "histogram buckets",
            &[(
                "sidecar.istio.io/statsHistogramBuckets",
                r#"{"istio":[1,5],"a":[0.5]}"#,
            )],
            vec![(
                "stats_config/histogram_bucket_settings",
                json!([
                    { "match": { "prefix": "a" }, "buckets": [0.5] },
                    { "match": { "prefix": "istio" }, "buckets": [1, 5] },
                ]),
            )],
        ),
        annotated(
            "histogram buckets that are no JSON",
            &[("sidecar.istio.io/statsHistogramBuckets", "1,5")],
            vec![("stats_config/histogram_bucket_settings", Value::Null)],
        ),
        annotated(
            "flush interval over a minute",
            &[("sidecar.istio.io/statsFlushInterval", "1m30s")],
            vec![("stats_flush_interval", json!("90s"))],
        ),
        annotated(
            "eviction interval",
            &[
                ("sidecar.istio.io/statsFlushInterval", "10s"),
                ("sidecar.istio.io/statsEvictionInterval", "1m"),
            ],
            vec![
                ("stats_flush_interval", json!("10s")),
                ("stats_eviction_interval", json!("60s")),
            ],
        ),
        annotated(
            "eviction interval between two flushes",
            &[("sidecar.istio.io/statsEvictionInterval", "7s")],
            vec![("stats_eviction_interval", Value::Null)],
        ),
    ]
}

const STATS_MANAGER: &str =
    "static_resources/listeners/0.0.0.0_15090/filter_chains/0/filters/0/typed_config";

fn listeners() -> Vec<Case> {
    vec![
        case(
            "statistics compressed",
            json!({}),
            vec![
                (
                    "static_resources/listeners/0.0.0.0_15090/filter_chains/0/filters/0/typed_config/\
                     http_filters/0/name",
                    json!("envoy.filters.http.compressor.brotli"),
                ),
                (
                    "static_resources/listeners/0.0.0.0_15090/filter_chains/0/filters/0/typed_config/\
                     http_filters/2/name",
                    json!("envoy.filters.http.compressor.gzip"),
                ),
                (
                    "static_resources/listeners/0.0.0.0_15090/ignore_global_conn_limit",
                    json!(true),
                ),
                (
                    "static_resources/listeners/0.0.0.0_15090/bypass_overload_manager",
                    json!(true),
                ),
                (
                    "static_resources/listeners/0.0.0.0_15021/bypass_overload_manager",
                    json!(true),
                ),
            ],
        ),
        case(
            "statistics uncompressed",
            json!({ "statsCompression": false }),
            vec![
                (
                    "static_resources/listeners/0.0.0.0_15090/filter_chains/0/filters/0/typed_config/\
                     http_filters/0/name",
                    json!("envoy.filters.http.router"),
                ),
                (STATS_MANAGER, json!("present")),
            ],
        ),
        case(
            "statistics on loopback",
            json!({ "proxyMetadata": { "METRICS_LOCALHOST_ACCESS_ONLY": "true" } }),
            vec![
                (
                    "static_resources/listeners/127.0.0.1_15090",
                    json!("present"),
                ),
                ("static_resources/listeners/0.0.0.0_15090", Value::Null),
                ("static_resources/listeners/0.0.0.0_15021", json!("present")),
            ],
        ),
        case(
            "another word than true restricts nothing",
            json!({ "proxyMetadata": { "METRICS_LOCALHOST_ACCESS_ONLY": "TRUE" } }),
            vec![("static_resources/listeners/0.0.0.0_15090", json!("present"))],
        ),
        changed(
            "secure statistics",
            |pod| pod.inputs.ports.secure_metrics = 15091,
            vec![
                (
                    "static_resources/listeners/0.0.0.0_15091/filter_chains/0/filter_chain_match/\
                     transport_protocol",
                    json!("tls"),
                ),
                (
                    "static_resources/listeners/0.0.0.0_15091/filter_chains/0/transport_socket/\
                     typed_config/require_client_certificate",
                    json!(true),
                ),
                ("node/metadata/ENVOY_SECURE_METRICS_PORT", json!(15091)),
                ("static_resources/listeners/0.0.0.0_15092", Value::Null),
            ],
        ),
        changed(
            "secure merged statistics",
            |pod| pod.inputs.ports.secure_merged_metrics = 15092,
            vec![
                (
                    "static_resources/listeners/0.0.0.0_15092/filter_chains/0/filters/0/typed_config/\
                     route_config/virtual_hosts/0/routes/1",
                    json!({ "match": { "prefix": "/metrics" }, "route": { "cluster": "agent" } }),
                ),
                (
                    "node/metadata/ENVOY_SECURE_MERGED_METRICS_PORT",
                    json!(15092),
                ),
            ],
        ),
        changed(
            "other ports",
            |pod| {
                pod.inputs.ports.status = 25021;
                pod.inputs.ports.prometheus = 25090;
            },
            vec![
                ("static_resources/listeners/0.0.0.0_25090", json!("present")),
                (
                    "static_resources/listeners/0.0.0.0_25021/address/socket_address/port_value",
                    json!(25021),
                ),
                ("node/metadata/ENVOY_STATUS_PORT", json!(25021)),
                ("node/metadata/ENVOY_PROMETHEUS_PORT", json!(25090)),
            ],
        ),
        switched(
            "PROXY protocol before the health check",
            |i| i.status_proxy_protocol = true,
            vec![
                (
                    "static_resources/listeners/0.0.0.0_15021/listener_filters/0/typed_config/\
                     allow_requests_without_proxy_protocol",
                    json!(true),
                ),
                (
                    "static_resources/listeners/0.0.0.0_15090/listener_filters",
                    Value::Null,
                ),
            ],
        ),
        Case {
            pod: |pod| set_ips(pod, &["2001:db8::1", "fd00::1"]),
            ..case(
                "IPv6 only",
                json!({ "tracing": { "zipkin": { "address": "z:1" } } }),
                vec![
                    ("static_resources/listeners/::_15021", json!("present")),
                    (
                        "static_resources/listeners/::_15090/additionalAddresses",
                        Value::Null,
                    ),
                    ("admin/address/socket_address/address", json!("::1")),
                    (
                        "static_resources/clusters/zipkin/dns_lookup_family",
                        json!("V6_ONLY"),
                    ),
                    (
                        "node/id",
                        json!("sidecar~2001:db8::1~sleep-0.sample~sample.svc.cluster.local"),
                    ),
                    ("node/metadata/INSTANCE_IPS", json!("2001:db8::1,fd00::1")),
                ],
            )
        },
        Case {
            pod: |pod| set_ips(pod, &["10.0.0.1", "2001:db8::1"]),
            inputs: |i| i.dual_stack = true,
            ..case(
                "dual stack, IPv4 first",
                json!({ "tracing": { "zipkin": { "address": "z:1" } } }),
                vec![
                    (
                        "static_resources/listeners/0.0.0.0_15021/additionalAddresses/0/address/\
                         socket_address/address",
                        json!("::"),
                    ),
                    ("admin/address/socket_address/address", json!("127.0.0.1")),
                    (
                        "static_resources/clusters/zipkin/dns_lookup_family",
                        json!("ALL"),
                    ),
                ],
            )
        },
        Case {
            pod: |pod| set_ips(pod, &["2001:db8::1", "10.0.0.1"]),
            inputs: |i| i.dual_stack = true,
            ..case(
                "dual stack, IPv6 first, statistics on loopback",
                json!({ "proxyMetadata": { "METRICS_LOCALHOST_ACCESS_ONLY": "true" } }),
                vec![
                    (
                        "static_resources/listeners/::1_15090/additionalAddresses/0/address/\
                         socket_address/address",
                        json!("127.0.0.1"),
                    ),
                    ("static_resources/listeners/::_15021", json!("present")),
                ],
            )
        },
        changed(
            "both families without dual stack",
            |pod| set_ips(pod, &["2001:db8::1", "10.0.0.1"]),
            vec![
                ("static_resources/listeners/0.0.0.0_15021", json!("present")),
                ("admin/address/socket_address/address", json!("127.0.0.1")),
            ],
        ),
        case(
            "other local ports and folder",
            json!({ "proxyAdminPort": 25000, "statusPort": 25020, "configPath": "/tmp/proxy" }),
            vec![
                ("admin/address/socket_address/port_value", json!(25000)),
                (
                    "static_resources/clusters/prometheus_stats/load_assignment/endpoints/0/\
                     lb_endpoints/0/endpoint/address/socket_address/port_value",
                    json!(25000),
                ),
                (
                    "static_resources/clusters/agent/load_assignment/endpoints/0/lb_endpoints/0/\
                     endpoint/address/socket_address/port_value",
                    json!(25020),
                ),
                (
                    "static_resources/clusters/xds-grpc/load_assignment/endpoints/0/lb_endpoints/0/\
                     endpoint/address/pipe/path",
                    json!("/tmp/proxy/XDS"),
                ),
            ],
        ),
    ]
}

fn nodes() -> Vec<Case> {
    vec![
        changed(
            "metadata discovery",
            |pod| pod.inputs.metadata_discovery = Some(true),
            vec![
                ("bootstrap_extensions/0/name", json!("metadata_discovery")),
                (
                    "bootstrap_extensions/1/name",
                    json!("envoy.bootstrap.internal_listener"),
                ),
                ("node/metadata/METADATA_DISCOVERY", json!("true")),
                (
                    "stats_config/stats_matcher/inclusion_list/patterns/1/prefix",
                    json!("workload_discovery"),
                ),
            ],
        ),
        changed(
            "HBONE asks for metadata discovery",
            |pod| variable(pod, "ISTIO_META_ENABLE_HBONE", "true"),
            vec![
                ("bootstrap_extensions/0/name", json!("metadata_discovery")),
                ("node/metadata/ENABLE_HBONE", json!("true")),
            ],
        ),
        Case {
            inputs: |i| i.delta_xds = false,
            ..changed(
                "waypoint",
                |pod| pod.inputs.node_type = NodeType::Waypoint,
                vec![
                    ("dynamic_resources/ads_config/api_type", json!("DELTA_GRPC")),
                    ("bootstrap_extensions/0/name", json!("metadata_discovery")),
                    ("node/metadata/METADATA_DISCOVERY", json!("false")),
                ],
            )
        },
        changed(
            "self discovery",
            |pod| variable(pod, "ISTIO_META_ENABLE_SELF_DISCOVERY", "true"),
            vec![
                ("cluster_manager/local_cluster_name", json!("local_cluster")),
                (
                    "cluster_manager/enable_deferred_cluster_creation",
                    json!(true),
                ),
                ("static_resources/clusters/local_cluster/type", json!("EDS")),
                (
                    "static_resources/clusters/local_cluster/load_balancing_policy/policies/0/\
                     typed_extension_config/typed_config/locality_lb_config/zone_aware_lb_config/\
                     min_cluster_size",
                    json!("1"),
                ),
            ],
        ),
        changed(
            "load reports",
            |pod| {
                let config = r#"{"api_type":"GRPC","transport_api_version":"V3"}"#;
                variable(pod, "ISTIO_META_LOAD_STATS_CONFIG_JSON", config);
            },
            vec![("cluster_manager/load_stats_config/api_type", json!("GRPC"))],
        ),
        changed(
            "outlier log",
            |pod| pod.inputs.outlier_log_path = "/dev/stdout".to_owned(),
            vec![
                (
                    "cluster_manager/outlier_detection/event_log_path",
                    json!("/dev/stdout"),
                ),
                ("node/metadata/OUTLIER_LOG_PATH", json!("/dev/stdout")),
            ],
        ),
        changed(
            "identities from elsewhere",
            |pod| {
                pod.inputs.external_sds = true;
                pod.inputs.workload_identity_socket_file = "other".to_owned();
                pod.inputs.credential_socket = true;
            },
            vec![
                (
                    "static_resources/clusters/sds-files-grpc/load_assignment/endpoints/0/\
                     lb_endpoints/0/endpoint/address/pipe/path",
                    json!("./var/run/secrets/credential-uds/files-socket"),
                ),
                (
                    "static_resources/clusters/sds-grpc/load_assignment/endpoints/0/lb_endpoints/0/\
                     endpoint/address/pipe/path",
                    json!("./var/run/secrets/workload-spiffe-uds/other"),
                ),
                ("node/metadata/file-credential", json!("true")),
                ("node/metadata/credential", json!("true")),
                (
                    "node/metadata/WORKLOAD_IDENTITY_SOCKET_FILE",
                    json!("other"),
                ),
            ],
        ),
        changed(
            "locality by label",
            |pod| {
                let labels = pod.inputs.labels.get_or_insert_default();
                labels.insert("istio-locality".to_owned(), "r.z.s".to_owned());
            },
            vec![
                (
                    "node/locality",
                    json!({ "region": "r", "zone": "z", "sub_zone": "s" }),
                ),
                ("node/metadata/LABELS/istio-locality", json!("r/z/s")),
            ],
        ),
        case(
            "cluster by canonical name",
            json!({ "tracingServiceName": "CANONICAL_NAME_AND_NAMESPACE" }),
            vec![("node/cluster", json!("sleep.sample"))],
        ),
        case(
            "cluster by name",
            json!({ "serviceCluster": "mine" }),
            vec![("node/cluster", json!("mine"))],
        ),
        case(
            "istiod without TLS",
            json!({ "controlPlaneAuthPolicy": "NONE" }),
            vec![("node/metadata/PILOT_SAN", Value::Null)],
        ),
        changed(
            "security token service",
            |pod| pod.inputs.sts_port = 15463,
            vec![("node/metadata/STS_PORT", json!("15463"))],
        ),
        case(
            "the private key provider is in the secrets, not here",
            json!({ "privateKeyProvider": { "cryptomb": { "pollDelay": "0.01s", "fallback": true } } }),
            vec![(
                "node/metadata/PROXY_CONFIG/privateKeyProvider/cryptomb",
                json!({ "pollDelay": "0.010s", "fallback": true }),
            )],
        ),
    ]
}
