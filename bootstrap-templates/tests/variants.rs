//! One test per setting that changes Envoy's bootstrap, each checked on the finished document.

#[path = "support/pod.rs"]
mod support;

use std::path::Path;

use bootstrap_templates::{CompliancePolicy, Warning};
use serde_json::{Value, json};

use support::Pod;

fn pod() -> Pod {
    Pod::load(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"),
        "sleep",
    )
}

fn with(overlay: Value) -> Pod {
    let mut pod = pod();
    assert_eq!(pod.config.overlay(&overlay).expect("overlay"), Vec::new());
    pod
}

fn annotated(name: &str, value: &str) -> Pod {
    let mut pod = pod();
    let annotations = pod.inputs.annotations.get_or_insert_default();
    annotations.insert(name.to_owned(), value.to_owned());
    pod
}

fn cluster(document: &Value, name: &str) -> Value {
    let clusters = document["static_resources"]["clusters"]
        .as_array()
        .expect("clusters");
    let found = clusters.iter().find(|c| c["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no cluster {name}"));
    assert_eq!(
        found["alt_stat_name"],
        format!("{name};"),
        "stat tags need the suffix"
    );
    found.clone()
}

fn listener(document: &Value, name: &str) -> Value {
    let listeners = document["static_resources"]["listeners"]
        .as_array()
        .expect("listeners");
    listeners
        .iter()
        .find(|l| l["name"] == name)
        .cloned()
        .unwrap_or_else(|| {
            let names: Vec<_> = listeners.iter().map(|l| l["name"].clone()).collect();
            panic!("no listener {name} in {names:?}")
        })
}

fn patterns(document: &Value) -> Vec<Value> {
    document["stats_config"]["stats_matcher"]["inclusion_list"]["patterns"]
        .as_array()
        .expect("patterns")
        .clone()
}

#[test]
fn runtime_values_override_extend_and_remove_the_defaults() {
    let pod = with(json!({ "runtimeValues": {
        "re2.max_program_size.error_level": "",
        "envoy.reloadable_features.fixed_heap_use_allocated": "false",
        "my.number": "7",
    }}));
    let document = pod
        .envoy(|i| {
            i.compliance = Some(CompliancePolicy::Fips140v2);
            i.strip_fragment = false;
        })
        .document;
    let layer = &document["layered_runtime"]["layers"][0]["static_layer"];
    assert_eq!(layer.get("re2.max_program_size.error_level"), None);
    assert_eq!(
        layer["envoy.reloadable_features.fixed_heap_use_allocated"],
        false
    );
    assert_eq!(layer["my.number"], "7");
    assert_eq!(
        layer["envoy.reloadable_features.google_grpc_disable_tls_13"],
        true
    );
    let fragment = "envoy.reloadable_features.http_strip_fragment_from_path_unsafe_if_disabled";
    assert_eq!(layer[fragment], "false");
}

#[test]
fn connection_limit_takes_the_first_usable_source() {
    for (overlay, limit) in [
        (json!({}), 2_147_483_647),
        (
            json!({ "runtimeValues": { "overload.global_downstream_max_connections": "10" } }),
            10,
        ),
        (
            json!({
                "proxyMetadata": { "ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS": "20" },
                "runtimeValues": { "overload.global_downstream_max_connections": "10" },
            }),
            20,
        ),
        (
            json!({
                "connectionSettings": { "globalDownstreamConnectionLimit": 30 },
                "proxyMetadata": { "ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS": "20" },
            }),
            30,
        ),
        (
            json!({
                "connectionSettings": {},
                "proxyMetadata": { "ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS": "many" },
            }),
            2_147_483_647,
        ),
    ] {
        let document = with(overlay.clone()).envoy(|_| {}).document;
        let monitor = &document["overload_manager"]["resource_monitors"][0]["typed_config"];
        assert_eq!(
            monitor["max_active_downstream_connections"], limit,
            "{overlay}"
        );
    }
}

#[test]
fn extra_stat_tags_stand_between_mongo_and_cache_without_duplicates() {
    let mut pod = annotated("sidecar.istio.io/extraStatTags", "b,a,,c");
    pod.config
        .overlay(&json!({ "extraStatTags": ["a", ""] }))
        .expect("overlay");
    let document = pod.envoy(|_| {}).document;
    let tags = document["stats_config"]["stats_tags"]
        .as_array()
        .expect("tags");
    let names: Vec<&str> = tags.iter().filter_map(|t| t["tag_name"].as_str()).collect();
    let mongo = names
        .iter()
        .position(|n| *n == "mongo_prefix")
        .expect("mongo");
    assert_eq!(names[mongo + 1..mongo + 5], ["a", "b", "c", "cache"]);
    assert_eq!(tags[mongo + 1]["regex"], r"(a=\.=(.*?);\.;)");
}

#[test]
fn annotation_beats_configured_stats_matcher_and_pod_ip_is_filled_in() {
    let mut pod = annotated(
        "sidecar.istio.io/statsInclusionPrefixes",
        "http.{pod_ip}_,,x",
    );
    let matcher = json!({ "proxyStatsMatcher": {
        "inclusionPrefixes": ["lost"], "inclusionSuffixes": ["kept"], "inclusionRegexps": ["a.*"],
    }});
    pod.config.overlay(&matcher).expect("overlay");
    pod.inputs.exit_on_zero_active_connections = true;
    let patterns = patterns(&pod.envoy(|_| {}).document);
    let wanted = [
        json!({ "prefix": "reporter=" }),
        json!({ "prefix": "http.10.244.1.10_" }),
        json!({ "prefix": "x" }),
        json!({ "prefix": "cluster_manager" }),
    ];
    assert_eq!(patterns[..4], wanted);
    for pattern in [
        json!({ "suffix": "kept" }),
        json!({ "suffix": "downstream_cx_active" }),
        json!({ "safe_regex": { "regex": "a.*" } }),
    ] {
        assert!(patterns.contains(&pattern), "{pattern}");
    }
    assert!(!patterns.contains(&json!({ "prefix": "lost" })));
}

#[test]
fn histogram_buckets_are_sorted_and_bad_ones_are_reported() {
    const NAME: &str = "sidecar.istio.io/statsHistogramBuckets";
    let document = annotated(NAME, r#"{"b":[1,2.5],"a":[10]}"#)
        .envoy(|_| {})
        .document;
    let want = json!([
        { "match": { "prefix": "a" }, "buckets": [10] },
        { "match": { "prefix": "b" }, "buckets": [1, 2.5] },
    ]);
    assert_eq!(document["stats_config"]["histogram_bucket_settings"], want);
    let built = annotated(NAME, "nope").envoy(|_| {});
    assert_eq!(
        built.document["stats_config"].get("histogram_bucket_settings"),
        None
    );
    assert!(matches!(
        built.warnings[..],
        [Warning::BadAnnotation {
            annotation: NAME,
            ..
        }]
    ));
}

#[test]
fn flush_and_eviction_intervals_are_printed_in_seconds() {
    let mut pod = annotated("sidecar.istio.io/statsFlushInterval", "1m30s");
    let annotations = pod.inputs.annotations.get_or_insert_default();
    annotations.insert(
        "sidecar.istio.io/statsEvictionInterval".to_owned(),
        "3m".to_owned(),
    );
    let built = pod.envoy(|_| {});
    assert_eq!(built.document["stats_flush_interval"], "90s");
    assert_eq!(built.document["stats_eviction_interval"], "180s");
    let built = annotated("sidecar.istio.io/statsEvictionInterval", "7s").envoy(|_| {});
    assert_eq!(built.document.get("stats_eviction_interval"), None);
    assert_eq!(
        built.warnings.len(),
        1,
        "7 s is no multiple of the default 5 s"
    );
}

#[test]
fn dual_stack_listens_on_both_families_in_the_order_of_the_first_address() {
    let mut pod = pod();
    pod.inputs.ips.push("2001:db8::1".parse().expect("ip"));
    let document = pod.envoy(|i| i.dual_stack = true).document;
    let stats = listener(&document, "0.0.0.0_15090");
    assert_eq!(
        stats["additionalAddresses"][0]["address"]["socket_address"]["address"],
        "::"
    );
    assert_eq!(cluster(&document, "zipkin")["dns_lookup_family"], "ALL");
    pod.inputs.ips.reverse();
    let document = pod.envoy(|i| i.dual_stack = true).document;
    listener(&document, "::_15021");
    assert_eq!(
        document["admin"]["address"]["socket_address"]["address"],
        "::1"
    );
    let document = pod.envoy(|_| {}).document;
    listener(&document, "0.0.0.0_15021");
    pod.inputs.ips.pop();
    let document = pod.envoy(|_| {}).document;
    listener(&document, "::_15090");
    assert_eq!(cluster(&document, "zipkin")["dns_lookup_family"], "V6_ONLY");
}

#[test]
fn metrics_listener_can_be_bound_to_loopback_and_left_uncompressed() {
    let document = with(json!({
        "proxyMetadata": { "METRICS_LOCALHOST_ACCESS_ONLY": "true" },
        "statsCompression": false,
    }))
    .envoy(|_| {})
    .document;
    let stats = listener(&document, "127.0.0.1_15090");
    let manager = &stats["filter_chains"][0]["filters"][0]["typed_config"];
    let filters = manager["http_filters"].as_array().expect("filters");
    assert_eq!(filters.len(), 1, "only the router");
}

#[test]
fn secure_metrics_listeners_demand_a_client_certificate() {
    let mut pod = pod();
    pod.inputs.ports.secure_metrics = 15091;
    pod.inputs.ports.secure_merged_metrics = 15092;
    let document = pod.envoy(|_| {}).document;
    for (name, routes) in [("0.0.0.0_15091", 1), ("0.0.0.0_15092", 2)] {
        let chain = &listener(&document, name)["filter_chains"][0];
        let tls = &chain["transport_socket"]["typed_config"];
        assert_eq!(tls["require_client_certificate"], true, "{name}");
        let manager = &chain["filters"][0]["typed_config"];
        let found = &manager["route_config"]["virtual_hosts"][0]["routes"];
        assert_eq!(found.as_array().map(Vec::len), Some(routes), "{name}");
    }
    let metadata = &document["node"]["metadata"];
    assert_eq!(metadata["ENVOY_SECURE_MERGED_METRICS_PORT"], 15092);
}

#[test]
fn status_listener_takes_the_proxy_protocol_on_request() {
    let document = pod().envoy(|i| i.status_proxy_protocol = true).document;
    let filters = &listener(&document, "0.0.0.0_15021")["listener_filters"];
    assert_eq!(
        filters[0]["typed_config"]["allow_requests_without_proxy_protocol"],
        true
    );
}

#[test]
fn tracers_make_their_cluster_and_block() {
    let lightstep = json!({ "tracing": {
        "lightstep": { "address": "ls:8080", "accessToken": "hush" },
        "tlsSettings": { "mode": "SIMPLE", "caCertificates": "/ca.pem", "sni": "ls.example" },
    }});
    let built = with(lightstep).envoy(|_| {});
    let token = built.token_file.expect("token file");
    assert_eq!(token.path, "./etc/istio/proxy/lightstep_access_token.txt");
    assert_eq!(token.token, "hush");
    let tracing = &built.document["tracing"]["http"]["typed_config"];
    assert_eq!(tracing["access_token_file"], token.path);
    let tls = &cluster(&built.document, "lightstep")["transport_socket"]["typed_config"];
    assert_eq!(tls["sni"], "ls.example");
    assert_eq!(tls["common_tls_context"]["alpn_protocols"], json!(["h2"]));

    let datadog = json!({ "tracing": { "datadog": { "address": "$(HOST_IP):8126" } } });
    let document = with(datadog).envoy(|_| {}).document;
    assert_eq!(
        document["tracing"]["http"]["typed_config"]["service_name"],
        "sleep.sample"
    );
    let endpoint = &cluster(&document, "datadog_agent")["load_assignment"]["endpoints"][0]["lb_endpoints"]
        [0]["endpoint"]["address"]["socket_address"];
    assert_eq!(
        *endpoint,
        json!({ "address": "10.244.0.1", "port_value": 8126 })
    );
}

#[test]
fn collectors_use_the_workload_identity_or_files() {
    let document = with(json!({
        "tracing": { "zipkin": { "address": "z:1" }, "tlsSettings": { "mode": "ISTIO_MUTUAL" } },
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
    }))
    .envoy(|_| {})
    .document;
    let zipkin = &cluster(&document, "zipkin")["transport_socket"]["typed_config"];
    assert_eq!(zipkin["sni"], "tracer");
    let common = &zipkin["common_tls_context"];
    assert_eq!(common.get("alpn_protocols"), None, "zipkin speaks HTTP/1");
    let validation = &common["combined_validation_context"];
    let root = &validation["validation_context_sds_secret_config"];
    assert_eq!(root["sds_config"]["initial_fetch_timeout"], "0s");

    let metrics = cluster(&document, "envoy_metrics_service");
    let common = &metrics["transport_socket"]["typed_config"]["common_tls_context"];
    let certificate = &common["tls_certificate_sds_secret_configs"][0];
    assert_eq!(certificate["name"], "file-cert:/c~/k");
    let validation = &common["combined_validation_context"];
    assert_eq!(
        validation["validation_context_sds_secret_config"]["name"],
        "file-root:/r"
    );
    let names = &validation["default_validation_context"]["match_subject_alt_names"];
    assert_eq!(*names, json!([{ "exact": "spiffe://x" }]));
    let keepalive = &metrics["upstream_connection_options"]["tcp_keepalive"];
    assert_eq!(
        *keepalive,
        json!({ "keepalive_probes": 3, "keepalive_time": 10 })
    );
    cluster(&document, "envoy_accesslog_service");
    let sinks = document["stats_sinks"].as_array().expect("sinks");
    let names: Vec<_> = sinks.iter().map(|s| s["name"].as_str()).collect();
    let want = [
        Some("envoy.stat_sinks.metrics_service"),
        Some("envoy.stat_sinks.statsd"),
    ];
    assert_eq!(names, want);
}

#[test]
fn deprecated_metrics_service_address_still_works() {
    let document = with(json!({ "envoyMetricsServiceAddress": "m:2" }))
        .envoy(|_| {})
        .document;
    cluster(&document, "envoy_metrics_service");
}

#[test]
fn tls_that_the_document_cannot_express_is_refused_by_name() {
    for (tls, path) in [
        (
            json!({ "mode": "SIMPLE" }),
            "tracing.tlsSettings.caCertificates: must be set",
        ),
        (
            json!({ "mode": "SIMPLE", "caCertificates": "/c", "caCrl": "/crl" }),
            "tracing.tlsSettings.caCrl: is not supported for a server named in ProxyConfig",
        ),
        (
            json!({ "mode": "SIMPLE", "credentialName": "x" }),
            "tracing.tlsSettings.credentialName: is not supported for a server named in \
             ProxyConfig",
        ),
        (
            json!({ "mode": "MUTUAL", "clientCertificate": "/c", "caCertificates": "/r" }),
            "tracing.tlsSettings.privateKey: must be set",
        ),
    ] {
        let mut pod = pod();
        let overlay = json!({ "tracing": { "zipkin": { "address": "z:1" }, "tlsSettings": tls } });
        pod.config.overlay(&overlay).expect("overlay");
        let error = match pod.config.validate() {
            Err(error) => error,
            Ok(_) => pod.try_envoy(|_| {}).err().expect("refused"),
        };
        assert_eq!(error.to_string(), path);
    }
}

#[test]
fn stackdriver_needs_a_project_as_in_the_reference() {
    let pod = with(json!({ "tracing": { "stackdriver": {} } }));
    let error = pod.try_envoy(|_| {}).err().expect("refused");
    assert_eq!(
        error.to_string(),
        "tracing.stackdriver: is not supported without a known GCP project"
    );
}

#[test]
fn waypoints_always_use_delta_and_metadata_discovery() {
    let mut pod = pod();
    pod.inputs.node_type = bootstrap_templates::NodeType::Waypoint;
    let document = pod.envoy(|i| i.delta_xds = false).document;
    assert_eq!(
        document["dynamic_resources"]["ads_config"]["api_type"],
        "DELTA_GRPC"
    );
    assert_eq!(
        document["bootstrap_extensions"][0]["name"],
        "metadata_discovery"
    );
    assert_eq!(document["node"]["metadata"]["METADATA_DISCOVERY"], "false");
    assert!(patterns(&document).contains(&json!({ "prefix": "workload_discovery" })));
}

#[test]
fn metadata_discovery_without_delta_is_off_and_said() {
    let mut pod = pod();
    pod.inputs.metadata_discovery = Some(true);
    let built = pod.envoy(|i| i.delta_xds = false);
    assert_eq!(
        built.document["dynamic_resources"]["ads_config"]["api_type"],
        "GRPC"
    );
    assert_eq!(
        built.document["bootstrap_extensions"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    assert_eq!(built.warnings, [Warning::MetadataDiscoveryNeedsDelta]);
}

#[test]
fn self_discovery_and_external_sds_add_their_clusters() {
    let mut pod = pod();
    let variables = &mut pod.inputs.meta_variables;
    variables.insert(
        "ISTIO_META_ENABLE_SELF_DISCOVERY".to_owned(),
        "1".to_owned(),
    );
    variables.insert(
        "ISTIO_META_LOAD_STATS_CONFIG_JSON".to_owned(),
        r#"{"api_type":"GRPC"}"#.to_owned(),
    );
    pod.inputs.external_sds = true;
    pod.inputs.outlier_log_path = "/dev/stdout".to_owned();
    let document = pod.envoy(|_| {}).document;
    cluster(&document, "local_cluster");
    cluster(&document, "sds-files-grpc");
    let want = json!({
        "local_cluster_name": "local_cluster",
        "outlier_detection": { "event_log_path": "/dev/stdout" },
        "load_stats_config": { "api_type": "GRPC" },
        "enable_deferred_cluster_creation": true,
    });
    assert_eq!(document["cluster_manager"], want);
    assert_eq!(document["node"]["metadata"]["file-credential"], "true");
}

#[test]
fn json_logging_changes_the_application_log_format() {
    let document = pod().envoy(|i| i.log_as_json = true).document;
    let format = &document["application_log_config"]["log_format"]["json_format"];
    assert_eq!(format["msg"], "%j");
}
