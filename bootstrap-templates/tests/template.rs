//! Users' bootstrap templates: every parameter under its name, rendered as text.

#[path = "support/pod.rs"]
mod support;

use std::path::Path;

use bootstrap_templates::{NoValue, Platform, RenderError};
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

/// What each line of `table` (template, text) renders to.
fn assert_renders(pod: &Pod, table: &[(&str, &str)]) {
    for (template, want) in table {
        let rendered = pod.rendered(template, |_| {}).expect(template);
        assert_eq!(rendered.text, *want, "{template}");
    }
}

#[test]
fn simple_parameters_have_the_names_of_istio() {
    let mut pod = with(json!({
        "statsdUdpAddress": "10.1.1.1:9125", "extraStatTags": ["t"], "statsCompression": false,
    }));
    pod.inputs.sts_port = 15463;
    pod.inputs.outlier_log_path = "/o".to_owned();
    let labels = pod.inputs.labels.get_or_insert_default();
    labels.insert("istio-locality".to_owned(), "r.z.s".to_owned());
    pod.inputs.platform = Some(Platform {
        metadata: [("gcp_project", "p"), ("gcp_project_number", "1")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        ..Platform::default()
    });
    assert_renders(
        &pod,
        &[
            (
                "{{ .nodeID }}",
                "sidecar~10.244.1.10~sleep-0.sample~sample.svc.cluster.local",
            ),
            ("{{ .nodeType }} {{ .cluster }}", "sidecar sleep.sample"),
            ("{{ .region }}/{{ .zone }}/{{ .sub_zone }}", "r/z/s"),
            (
                "{{ .localhost }} {{ .wildcard }} {{ .dns_lookup_family }}",
                "127.0.0.1 0.0.0.0 V4_ONLY",
            ),
            (
                "{{ .additional_localhost }}{{ if .dual_stack }}x{{ end }}",
                "<no value>",
            ),
            (
                "{{ .xds_type }} {{ .log_json }} {{ .metadata_discovery }}",
                "DELTA_GRPC false false",
            ),
            (
                "{{ .envoy_status_port }} {{ .envoy_prometheus_port }}",
                "15021 15090",
            ),
            ("{{ .global_downstream_max_connections }}", "2147483647"),
            (
                "{{ .statsd }}",
                "{\"address\":\"10.1.1.1\",\"port_value\":9125}",
            ),
            ("{{ .discovery_host }}", "istiod.istio-system.svc"),
            ("{{ .discovery_address }}", "istiod.istio-system.svc:15012"),
            (
                "{{ .pilot_SAN }}",
                "[{\"exact\":\"istiod.istio-system.svc\"}]",
            ),
            (
                "{{ .sts }} {{ .sts_port }} {{ .gcp_project_id }} {{ .gcp_project_number }}",
                "true 15463 p 1",
            ),
            (
                "{{ .outlier_log_path }} {{ .workload_identity_socket_file }}",
                "/o socket",
            ),
            (
                "{{ .envoy_metrics_stats_compression }} {{ .metrics_localhost_access_only }}",
                "false false",
            ),
            ("{{ join \",\" .extraStatTags }}", "t"),
            (
                "{{ range .inclusionSuffix }}{{ . }};{{ end }}",
                "rbac.allowed;rbac.denied;shadow_allowed;shadow_denied;",
            ),
            (
                "{{ js (index .inclusionRegexps 0) }}",
                "vhost\\\\..*\\\\.route\\\\..*",
            ),
            ("{{ env \"FROM_ENV\" }}{{ env \"OTHER\" }}", "environment"),
        ],
    );
}

#[test]
fn the_configuration_and_the_metadata_are_structures() {
    let pod = with(json!({
        "tracing": { "zipkin": { "address": "z:1" }, "sampling": 2.5 },
        "drainDuration": "90s",
        "gatewayTopology": { "numTrustedProxies": 2 },
        "proxyMetadata": { "A": "1" },
        "holdApplicationUntilProxyStarts": true,
    }));
    assert_renders(
        &pod,
        &[
            (
                "{{ .config.ProxyAdminPort }} {{ .config.StatusPort }}",
                "15000 15020",
            ),
            (
                "{{ .config.ConfigPath }} {{ .config.BinaryPath }}",
                "./etc/istio/proxy /usr/local/bin/envoy",
            ),
            ("{{ .config.ControlPlaneAuthPolicy }}", "MUTUAL_TLS"),
            ("{{ .config.DrainDuration.Seconds }}", "90"),
            ("{{ .config.Concurrency.Value }}", "2"),
            (
                "{{ .config.HoldApplicationUntilProxyStarts.Value }}",
                "true",
            ),
            (
                "{{ .config.Tracing.Tracer.Zipkin.Address }} {{ .config.Tracing.GetZipkin.Address }}",
                "z:1 z:1",
            ),
            (
                "{{ .config.Tracing.Sampling }} {{ .config.GatewayTopology.NumTrustedProxies }}",
                "2.5 2",
            ),
            (
                "{{ index .config.ProxyMetadata \"A\" }}{{ .config.CustomConfigFile }}",
                "1",
            ),
            ("{{ if .config.EnvoyAccessLogService }}x{{ end }}", ""),
            (
                "{{ .metadata.Namespace }} {{ .metadata.Labels.app }}",
                "sample sleep",
            ),
            ("{{ index .metadata.Labels \"none\" }}", ""),
            (
                "{{ .metadata.EnvoyStatusPort }} {{ .metadata.MetadataDiscovery }}",
                "15021 false",
            ),
            ("{{ index .metadata.InstanceIPs 0 }}", "10.244.1.10"),
            ("{{ .metadata.ProxyConfig.StatusPort }}", "15020"),
        ],
    );
    let rendered = pod.rendered("{{ toJSON .config }}", |_| {}).expect("JSON");
    let config: Value = serde_json::from_str(&rendered.text).expect("JSON");
    assert_eq!(config, Value::Object(pod.config.to_json()));
}

#[test]
fn documents_are_json_and_equal_to_the_built_in_ones() {
    let mut pod = with(json!({
        "tracing": { "zipkin": { "address": "z:1" }, "tlsSettings": { "mode": "ISTIO_MUTUAL" } },
        "envoyMetricsService": {
            "address": "m:2", "tcpKeepalive": { "probes": 3 },
            "tlsSettings": { "mode": "ISTIO_MUTUAL" },
        },
        "envoyAccessLogService": { "address": "a:3" },
    }));
    let annotations = pod.inputs.annotations.get_or_insert_default();
    for (name, value) in [
        (
            "sidecar.istio.io/statsHistogramBuckets",
            r#"{"a":[0.5,10]}"#,
        ),
        ("sidecar.istio.io/statsFlushInterval", "90s"),
        ("sidecar.istio.io/statsEvictionInterval", "3m"),
    ] {
        annotations.insert(name.to_owned(), value.to_owned());
    }
    pod.inputs.external_sds = true;
    let template = r#"{
        "metadata": {{ .meta_json_str }}, "runtime": {{ .runtime_flags }},
        "buckets": {{ toJson .histogram_buckets }},
        "flush": "{{ .stats_flush_interval }}", "eviction": "{{ .stats_eviction_interval }}",
        "zipkin": {{ .zipkin }}, "tracing": {{ .tracing_tls }},
        "metrics": {{ .envoy_metrics_service_address }},
        "metrics_tls": {{ .envoy_metrics_service_tls }},
        "metrics_options": {{ .envoy_metrics_service_tcp_keepalive }},
        "logs": {{ .envoy_accesslog_service_address }}, "sds": "{{ .custom_file_path }}"
    }"#;
    let rendered = pod.rendered(template, |_| {}).expect("rendered");
    assert_eq!(rendered.no_values, []);
    let found: Value = serde_json::from_str(&rendered.text).expect("JSON");
    let built = pod.envoy(|_| {}).document;
    let cluster = |name: &str| {
        let clusters = built["static_resources"]["clusters"]
            .as_array()
            .expect("clusters");
        clusters
            .iter()
            .find(|c| c["name"] == name)
            .cloned()
            .expect("cluster")
    };
    let address = |name: &str| {
        let endpoint = &cluster(name)["load_assignment"]["endpoints"][0]["lb_endpoints"][0];
        endpoint["endpoint"]["address"]["socket_address"].clone()
    };
    let want = json!({
        "metadata": built["node"]["metadata"],
        "runtime": built["layered_runtime"]["layers"][0]["static_layer"],
        "buckets": built["stats_config"]["histogram_bucket_settings"],
        "flush": "90s", "eviction": "180s",
        "zipkin": address("zipkin"), "tracing": cluster("zipkin")["transport_socket"],
        "metrics": address("envoy_metrics_service"),
        "metrics_tls": cluster("envoy_metrics_service")["transport_socket"],
        "metrics_options": cluster("envoy_metrics_service")["upstream_connection_options"],
        "logs": address("envoy_accesslog_service"),
        "sds": "./var/run/secrets/credential-uds/files-socket",
    });
    assert_eq!(found, want);
}

#[test]
fn mistakes_are_named_with_their_line() {
    for (template, want) in [
        (
            "{\n{{ .config.Nope }}",
            "line 2: can't evaluate field Nope in type ProxyConfig",
        ),
        (
            "{{ .metadata.nope }}",
            "line 1: can't evaluate field nope in type node metadata",
        ),
        (
            "\n\n{{ .config }}",
            "line 3: printing a whole ProxyConfig is not supported; name a field or use toJson",
        ),
        ("{{ if .region }}", "line 1: unclosed {{if}}"),
        (
            "{{ uuidv4 }}",
            "line 1: function \"uuidv4\" is not supported in bootstrap templates",
        ),
    ] {
        let error = pod().rendered(template, |_| {}).err().expect(template);
        assert!(matches!(error, RenderError::Template(_)), "{template}");
        assert_eq!(error.to_string(), want);
    }
    let rendered = pod().rendered("a\n{{ .regoin }}", |_| {}).expect("renders");
    assert_eq!(rendered.text, "a\n<no value>");
    assert_eq!(rendered.no_values, [NoValue { line: 2 }]);
    let broken = with(json!({ "tracing": {
        "zipkin": { "address": "z:1" }, "tlsSettings": { "mode": "SIMPLE" },
    }}));
    let error = broken.rendered("x", |_| {}).err().expect("refused");
    assert_eq!(
        error.to_string(),
        "tracing.tlsSettings.caCertificates: must be set"
    );
}
