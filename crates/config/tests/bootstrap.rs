//! A bootstrap as the agent's template writes it, reduced to one of each kind of thing.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;

use envoy_types::pb;
use outrigger_config::bootstrap::{AdsConfig, StatsMatcher};
use outrigger_config::parse_bootstrap;
use pb::envoy::config::bootstrap::v3 as bs;
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::metrics::v3 as metrics;
use pb::envoy::r#type::matcher::v3 as matcher;
use pb::google::protobuf as gp;
use prost::Message;

fn value(kind: gp::value::Kind) -> gp::Value {
    gp::Value { kind: Some(kind) }
}

fn ads() -> Option<core::ConfigSource> {
    Some(core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        initial_fetch_timeout: Some(gp::Duration::default()),
        resource_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    })
}

fn ads_stream() -> core::ApiConfigSource {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::DeltaGrpc as i32,
        transport_api_version: core::ApiVersion::V3 as i32,
        set_node_on_first_message_only: true,
        grpc_services: vec![core::GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name: "xds-grpc".into(),
                ..Default::default()
            })),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn layer(name: &str, fields: Option<Vec<(&str, gp::Value)>>) -> bs::RuntimeLayer {
    use bs::runtime_layer::{AdminLayer, LayerSpecifier};
    bs::RuntimeLayer {
        name: name.into(),
        layer_specifier: Some(match fields {
            Some(fields) => LayerSpecifier::StaticLayer(gp::Struct {
                fields: fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            }),
            None => LayerSpecifier::AdminLayer(AdminLayer {}),
        }),
    }
}

#[test]
fn the_agents_bootstrap_is_read() {
    use gp::value::Kind;
    let nested = gp::Struct {
        fields: HashMap::from([("c".to_owned(), value(Kind::NumberValue(3.0)))]),
    };
    let bootstrap = bs::Bootstrap {
        node: Some(core::Node {
            id: "sidecar~10.0.0.1~a.b~b.svc.cluster.local".into(),
            cluster: "a.b".into(),
            ..Default::default()
        }),
        dynamic_resources: Some(bs::bootstrap::DynamicResources {
            lds_config: ads(),
            cds_config: ads(),
            ads_config: Some(ads_stream()),
            ..Default::default()
        }),
        layered_runtime: Some(bs::LayeredRuntime {
            layers: vec![
                layer(
                    "global config",
                    Some(vec![
                        ("flag", value(Kind::BoolValue(true))),
                        ("size", value(Kind::StringValue("32768".into()))),
                        ("b", value(Kind::StructValue(nested))),
                    ]),
                ),
                layer("more", Some(vec![("flag", value(Kind::BoolValue(false)))])),
                layer("admin", None),
            ],
        }),
        stats_config: Some(metrics::StatsConfig {
            use_all_default_tags: Some(gp::BoolValue { value: false }),
            stats_matcher: Some(metrics::StatsMatcher {
                stats_matcher: Some(metrics::stats_matcher::StatsMatcher::InclusionList(
                    matcher::ListStringMatcher {
                        patterns: vec![matcher::StringMatcher {
                            match_pattern: Some(matcher::string_matcher::MatchPattern::Prefix(
                                "server".into(),
                            )),
                            ..Default::default()
                        }],
                    },
                )),
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let bytes = bootstrap.encode_to_vec();
    let b = parse_bootstrap(&bytes).unwrap().value;
    assert_eq!(&*b.node_id, "sidecar~10.0.0.1~a.b~b.svc.cluster.local");
    assert_eq!(core::Node::decode(b.node).unwrap(), bootstrap.node.unwrap());
    assert_eq!(
        b.ads,
        Some(AdsConfig {
            delta: true,
            cluster: "xds-grpc".into()
        })
    );
    assert!(b.lds_ads && b.cds_ads);
    let runtime: Vec<_> = b.runtime.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(
        runtime,
        [("b.c", "3"), ("flag", "false"), ("size", "\"32768\"")]
    );
    assert_eq!(
        b.runtime_layers,
        ["global config".into(), "more".into(), "admin".into()]
    );
    assert!(!b.stats.use_all_default_tags);
    assert!(matches!(&b.stats.matcher, StatsMatcher::Include(l) if l[0].matches(b"server.live")));
    assert_eq!(b.stats_flush_interval, std::time::Duration::from_secs(5));
    assert_eq!(b.raw, bytes);
}

#[test]
fn a_bootstrap_of_the_reference_agent_is_read() {
    let parsed = parse_bootstrap(include_bytes!("fixtures/sleep-bootstrap.pb")).unwrap();
    let b = parsed.value;
    let names: Vec<_> = b.clusters.iter().map(|c| &*c.name).collect();
    assert_eq!(
        names,
        [
            "prometheus_stats",
            "agent",
            "sds-grpc",
            "xds-grpc",
            "zipkin"
        ]
    );
    assert_eq!(b.clusters[3].max_requests_per_connection, 1);
    assert_eq!(b.clusters[3].circuit_breakers.max_connections, 100_000);
    let ports: Vec<_> = b.listeners.iter().map(|l| l.addresses[0].port()).collect();
    assert_eq!(ports, [15090, 15021]);
    assert!(b.listeners.iter().all(|l| l.ignore_global_conn_limit));
    assert_eq!(b.admin, Some("127.0.0.1:15000".parse().unwrap()));
    assert_eq!(b.max_active_downstream_connections, Some(2_147_483_647));
    assert_eq!(b.stats.tags.len(), 16);
    let skipped: Vec<_> = parsed.ignored.iter().map(|i| &*i.name).collect();
    assert!(
        skipped.contains(&"envoy.filters.http.compressor.gzip"),
        "{skipped:?}"
    );
    assert!(skipped.contains(&"tracing"), "{skipped:?}");
}
