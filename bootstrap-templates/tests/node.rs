//! Node identity and metadata: cluster names, locality, labels and the forms of known keys.

#[path = "support/pod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::Path;

use bootstrap_templates::{Node, Platform, Warning};
use serde_json::{Value, json};

use support::Pod;

fn pod() -> Pod {
    Pod::load(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"),
        "sleep",
    )
}

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn build(pod: &Pod) -> (Node, Vec<Warning>) {
    let settings = pod.settings();
    Node::build(&pod.inputs, &pod.config, &settings).expect("node")
}

fn variable(pod: &mut Pod, name: &str, value: &str) {
    pod.inputs
        .meta_variables
        .insert(name.to_owned(), value.to_owned());
}

#[test]
fn cluster_name_follows_the_configured_scheme() {
    let canonical = ("service.istio.io/canonical-name", "canon");
    for (overlay, labels, workload, want) in [
        (json!({}), &[("app", "a"), canonical][..], "w", "a.sample"),
        (
            json!({}),
            &[("app.kubernetes.io/name", "k"), canonical],
            "w",
            "k.sample",
        ),
        (json!({}), &[canonical], "w", "canon.sample"),
        (json!({}), &[], "w", "w.sample"),
        (json!({}), &[], "", "istio-proxy.sample"),
        (
            json!({ "serviceCluster": "mine" }),
            &[("app", "a")],
            "w",
            "mine",
        ),
        (
            json!({ "tracingServiceName": "CANONICAL_NAME_ONLY" }),
            &[canonical],
            "w",
            "canon",
        ),
        (
            json!({ "tracingServiceName": "CANONICAL_NAME_ONLY" }),
            &[],
            "w",
            "w",
        ),
        (
            json!({ "tracingServiceName": "CANONICAL_NAME_ONLY" }),
            &[],
            "",
            "istio-proxy.sample",
        ),
        (
            json!({ "tracingServiceName": 2 }),
            &[canonical],
            "w",
            "canon.sample",
        ),
        (
            json!({ "tracingServiceName": 0 }),
            &[("app", "a")],
            "w",
            "a.sample",
        ),
    ] {
        let mut pod = pod();
        pod.config.overlay(&overlay).expect("overlay");
        pod.inputs.labels = Some(map(labels));
        variable(&mut pod, "ISTIO_META_WORKLOAD_NAME", workload);
        assert_eq!(
            build(&pod).0.cluster,
            want,
            "{overlay} {labels:?} {workload}"
        );
    }
}

#[test]
fn locality_comes_from_labels_before_the_platform() {
    let platform = Platform {
        locality: bootstrap_templates::Locality::parse("p/q"),
        ..Platform::default()
    };
    for (labels, want, stored) in [
        (&[][..], json!({ "region": "p", "zone": "q" }), None),
        (
            &[("istio-locality", "r.z.s")],
            json!({"region":"r","zone":"z","sub_zone":"s"}),
            Some("r/z/s"),
        ),
        (
            &[
                ("istio-locality", "x"),
                ("topology.istio.io/locality", "a/b.c"),
            ],
            json!({ "region": "a", "zone": "b.c" }),
            Some("a/b.c"),
        ),
    ] {
        let mut pod = pod();
        pod.inputs.labels = Some(map(labels));
        pod.inputs.platform = Some(platform.clone());
        let node = build(&pod).0;
        assert_eq!(node.to_envoy_json()["locality"], want);
        assert_eq!(
            node.labels.get("istio-locality").map(String::as_str),
            stored
        );
    }
}

#[test]
fn labels_come_from_the_pod_over_static_ones_without_the_template_hash() {
    let mut pod = pod();
    variable(
        &mut pod,
        "ISTIO_METAJSON_LABELS",
        r#"{"a":"static","b":"static"}"#,
    );
    pod.inputs.labels = Some(map(&[("a", "pod"), ("pod-template-hash", "x")]));
    let node = build(&pod).0;
    assert_eq!(node.labels, map(&[("a", "pod"), ("b", "static")]));
    assert_eq!(
        node.metadata["STATIC_LABELS"],
        json!({ "a": "static", "b": "static" })
    );
    pod.inputs.labels = None;
    assert_eq!(
        build(&pod).0.labels,
        map(&[("a", "static"), ("b", "static")])
    );
}

#[test]
fn metadata_variables_have_a_fixed_order_and_known_keys_fixed_forms() {
    let mut pod = pod();
    let overlay = json!({ "proxyMetadata": {
        "ISTIO_META_FROM": "proxyMetadata", "ISTIO_META_NETWORK": "net", "OTHER": "x",
    }});
    pod.config.overlay(&overlay).expect("overlay");
    variable(&mut pod, "ISTIO_META_FROM", "env");
    variable(&mut pod, "ISTIO_META_UNKNOWN", "kept");
    variable(&mut pod, "ISTIO_META_NAME", "ignored");
    variable(&mut pod, "ISTIO_META_DNS_CAPTURE", "T");
    variable(&mut pod, "ISTIO_META_DNS_AUTO_ALLOCATE", "0");
    variable(
        &mut pod,
        "ISTIO_META_POD_PORTS",
        r#"[{"name":"h","containerPort":80,"x":1}]"#,
    );
    variable(&mut pod, "ISTIO_METAJSON_ANY", r#"{"NESTED":{"a":[1]}}"#);
    pod.inputs.dns_proxy_addr = Some("localhost:15053".to_owned());
    pod.inputs.sts_port = 15463;
    let (node, warnings) = build(&pod);
    assert_eq!(warnings, []);
    let metadata = Value::Object(node.metadata);
    for (key, want) in [
        ("FROM", json!("env")),
        ("NETWORK", json!("net")),
        ("UNKNOWN", json!("kept")),
        ("NAME", json!("sleep-0")),
        ("DNS_CAPTURE", json!("true")),
        ("DNS_AUTO_ALLOCATE", json!("0")),
        (
            "POD_PORTS",
            json!(r#"[{"name":"h","containerPort":80,"protocol":""}]"#),
        ),
        ("NESTED", json!({ "a": [1] })),
        ("DNS_PROXY_ADDR", json!("localhost:15053")),
        ("STS_PORT", json!("15463")),
        ("OTHER", Value::Null),
    ] {
        assert_eq!(
            metadata.get(key).cloned().unwrap_or_default(),
            want,
            "{key}"
        );
    }
}

#[test]
fn durations_of_go_are_read_and_sent_on_in_protobuf_s_form() {
    let mut config = bootstrap_templates::ProxyConfig::default();
    let overlay = json!({
        "drainDuration": "1h", "terminationDrainDuration": "1m30s", "fileFlushInterval": "500ms",
        "privateKeyProvider": { "qat": { "pollDelay": "10ms" } },
    });
    config.overlay(&overlay).expect("durations");
    let settings = config.validate().expect("valid");
    let termination = settings.termination_drain_duration;
    assert_eq!(termination, Some(std::time::Duration::from_secs(90)));
    let sent = config.to_json();
    assert_eq!(sent["drainDuration"], "3600s");
    assert_eq!(sent["fileFlushInterval"], "0.500s");
    assert_eq!(sent["privateKeyProvider"]["qat"]["pollDelay"], "0.010s");
}

#[test]
fn of_two_members_of_one_choice_the_last_declared_counts() {
    let mut config = bootstrap_templates::ProxyConfig::default();
    let overlay = json!({
        "tracing": { "datadog": { "address": "d:1" }, "zipkin": { "address": "z:1" } },
        "tracingServiceName": "CANONICAL_NAME_ONLY", "serviceCluster": "own",
    });
    let warnings = config.overlay(&overlay).expect("accepted");
    let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    let want = [
        "tracing.zipkin is ignored: datadog is set as well",
        "serviceCluster is ignored: tracing_service_name is set as well",
    ];
    assert_eq!(texts, want);
    let sent = config.to_json();
    assert_eq!(sent["tracing"], json!({ "datadog": { "address": "d:1" } }));
    assert!(!sent.contains_key("serviceCluster"));
    assert_eq!(sent["tracingServiceName"], "CANONICAL_NAME_ONLY");
}

#[test]
fn bad_metadata_is_refused_or_warned_about_by_name() {
    let mut broken = pod();
    variable(&mut broken, "ISTIO_META_DNS_CAPTURE", "yes");
    variable(&mut broken, "ISTIO_METAJSON_X", "[1]");
    let (node, warnings) = build(&broken);
    // istiod refuses a node whose boolean it cannot read.
    assert!(!node.metadata.contains_key("DNS_CAPTURE"));
    let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert!(
        texts[0].starts_with("ISTIO_METAJSON_X is not a JSON object"),
        "{texts:?}"
    );
    assert_eq!(texts[1], "DNS_CAPTURE: \"yes\" is not a boolean, ignored");

    let mut ports = pod();
    variable(&mut ports, "ISTIO_META_POD_PORTS", "{");
    let error = Node::build(&ports.inputs, &ports.config, &ports.settings()).expect_err("refused");
    assert_eq!(error.path, "node metadata POD_PORTS");
}

#[test]
fn proxy_config_is_canonical_without_defaults_and_names_unknown_fields() {
    let mut pod = pod();
    let warnings = pod
        .config
        .overlay(&json!({
            "drain_duration": "60.0s",
            "interceptionMode": "REDIRECT",
            "statsCompression": false,
            "tracing": { "sampling": 0, "zipkin": { "address": "z:1" }, "bogus": 1 },
            "binaryPath": null,
        }))
        .expect("overlay");
    assert_eq!(
        warnings,
        [Warning::UnknownField("tracing.bogus".to_owned())]
    );
    let json = Value::Object(pod.config.to_json());
    assert_eq!(json["drainDuration"], "60s");
    assert_eq!(json.get("interceptionMode"), None);
    assert_eq!(json["statsCompression"], false);
    assert_eq!(json["tracing"], json!({ "zipkin": { "address": "z:1" } }));
    assert_eq!(json["binaryPath"], "/usr/local/bin/envoy");
}

#[test]
fn overlays_replace_but_metadata_and_headers_merge() {
    let mut config = bootstrap_templates::ProxyConfig::default();
    for overlay in [
        json!({
            "proxyMetadata": { "A": "1", "B": "1" },
            "extraStatTags": ["x"],
            "tracing": { "sampling": 5 },
            "proxyHeaders": { "requestId": { "disabled": true } },
        }),
        json!({
            "proxyMetadata": { "B": "2" },
            "extraStatTags": ["y"],
            "tracing": { "zipkin": { "address": "z:1" } },
            "proxyHeaders": { "server": { "value": "s" } },
            "tracingServiceName": "CANONICAL_NAME_ONLY",
        }),
    ] {
        assert_eq!(config.overlay(&overlay).expect("overlay"), []);
    }
    let json = Value::Object(config.to_json());
    assert_eq!(json["proxyMetadata"], json!({ "A": "1", "B": "2" }));
    assert_eq!(json["extraStatTags"], json!(["y"]));
    assert_eq!(json["tracing"], json!({ "zipkin": { "address": "z:1" } }));
    let headers = json!({ "requestId": { "disabled": true }, "server": { "value": "s" } });
    assert_eq!(json["proxyHeaders"], headers);
    assert_eq!(
        json.get("serviceCluster"),
        None,
        "the other member of the oneof is set"
    );
}

#[test]
fn invalid_proxy_config_names_the_field() {
    for (overlay, want) in [
        (json!({ "statusPort": 0 }), "statusPort: 0 is out of range"),
        (
            json!({ "proxyAdminPort": 70000 }),
            "proxyAdminPort: 70000 is out of range",
        ),
        (
            json!({ "drainDuration": "0s" }),
            "drainDuration: 0ns is out of range",
        ),
        (
            json!({ "drainDuration": "1.5s" }),
            "drainDuration: 1.5s is out of range",
        ),
        (
            json!({ "serviceCluster": "" }),
            "serviceCluster: must be set",
        ),
        (json!({ "configPath": "" }), "configPath: must be set"),
        (
            json!({ "discoveryAddress": "istiod" }),
            "discoveryAddress: \"istiod\" is not an address of the form host:port",
        ),
        (
            json!({ "controlPlaneAuthPolicy": "INHERIT" }),
            "controlPlaneAuthPolicy: \"INHERIT\" is not a known value",
        ),
        (
            json!({ "tracing": { "lightstep": { "address": "l:1" } } }),
            "tracing.lightstep.accessToken: must be set",
        ),
        (
            json!({ "tracing": { "zipkin": { "address": "a\"b:9411" } } }),
            "tracing.zipkin.address: \"a\\\"b:9411\" is not an address of the form host:port",
        ),
        (
            json!({ "envoyAccessLogService": { "address": "under_score:1" } }),
            "envoyAccessLogService.address: \"under_score:1\" is not an address of the form \
             host:port",
        ),
        (
            json!({ "privateKeyProvider": {} }),
            "privateKeyProvider: must be set",
        ),
        (
            json!({ "privateKeyProvider": { "qat": { "pollDelay": "0s" } } }),
            "privateKeyProvider.qat.pollDelay: must be set",
        ),
        (
            json!({ "connectionSettings": { "globalDownstreamConnectionLimit": 0 } }),
            "connectionSettings.globalDownstreamConnectionLimit: 0 is out of range",
        ),
        (
            json!({ "connectionSettings": { "http2InitialStreamWindowSize": 65534 } }),
            "connectionSettings.http2InitialStreamWindowSize: 65534 is out of range",
        ),
    ] {
        let mut config = bootstrap_templates::ProxyConfig::default();
        config.overlay(&overlay).expect("types are right");
        assert_eq!(config.validate().expect_err("refused").to_string(), want);
    }
    for (overlay, want) in [
        (json!([]), ": expected an object, got a list"),
        (
            json!({ "statusPort": "x" }),
            "statusPort: expected a whole number, got a string",
        ),
        (
            json!({ "drainDuration": 45 }),
            "drainDuration: expected a duration string, got a number",
        ),
        (
            json!({ "drainDuration": "45" }),
            "drainDuration: \"45\" is not a duration such as \"45s\" or \"1m30s\"",
        ),
        (
            json!({ "extraStatTags": ["a", 1] }),
            "extraStatTags[1]: expected a string, got a number",
        ),
        (
            json!({ "proxyMetadata": { "A": true } }),
            "proxyMetadata[\"A\"]: expected a string, got a boolean",
        ),
    ] {
        let mut config = bootstrap_templates::ProxyConfig::default();
        assert_eq!(
            config.overlay(&overlay).expect_err("refused").to_string(),
            want
        );
    }
}

#[test]
fn the_shipped_template_is_recognised_and_others_are_not() {
    use bootstrap_templates::{STOCK_TEMPLATE, is_stock_template};
    assert!(is_stock_template(STOCK_TEMPLATE));
    assert!(!is_stock_template("{}"));
    assert!(!is_stock_template("{ {{ .nodeID }} }"));
}
