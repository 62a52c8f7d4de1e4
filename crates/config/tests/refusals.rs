//! What is refused, where, and in which words: the text becomes the detail of a NACK.
#![allow(
    clippy::unwrap_used,
    deprecated,
    reason = "tests of deprecated fields too"
)]

use envoy_types::pb;
use outrigger_config::{
    ConfigError, parse_bootstrap, parse_cluster, parse_listener, parse_load_assignment,
    parse_route_configuration, parse_secret,
};
use pb::envoy::config::accesslog::v3 as al;
use pb::envoy::config::bootstrap::v3 as bs;
use pb::envoy::config::cluster::v3 as cl;
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::endpoint::v3 as ep;
use pb::envoy::config::listener::v3 as ls;
use pb::envoy::config::route::v3 as rt;
use pb::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};
use pb::envoy::extensions::filters::http::{cors::v3::Cors, router::v3::Router};
use pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use pb::envoy::r#type::matcher::v3 as matcher;
use pb::google::protobuf as gp;
use prost::Message;

fn any(type_name: &str, message: &impl Message) -> gp::Any {
    gp::Any {
        type_url: format!("type.googleapis.com/{type_name}"),
        value: message.encode_to_vec(),
    }
}

fn socket(address: &str, port: u32) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: address.into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    }
}

fn seconds(seconds: i64) -> Option<gp::Duration> {
    Some(gp::Duration { seconds, nanos: 0 })
}

fn u32_value(value: u32) -> Option<gp::UInt32Value> {
    Some(gp::UInt32Value { value })
}

fn regex(regex: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher {
        regex: regex.into(),
        engine_type: None,
    }
}

fn assignment(address: &str) -> ep::ClusterLoadAssignment {
    ep::ClusterLoadAssignment {
        cluster_name: "c".into(),
        endpoints: vec![ep::LocalityLbEndpoints {
            lb_endpoints: vec![ep::LbEndpoint {
                host_identifier: Some(ep::lb_endpoint::HostIdentifier::Endpoint(ep::Endpoint {
                    address: Some(socket(address, 80)),
                    ..Default::default()
                })),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn cluster(change: impl FnOnce(&mut cl::Cluster)) -> Result<(), ConfigError> {
    let mut c = cl::Cluster {
        name: "c".into(),
        load_assignment: Some(assignment("10.0.0.1")),
        ..Default::default()
    };
    change(&mut c);
    parse_cluster(&c.encode_to_vec()).map(drop)
}

fn kind(c: &mut cl::Cluster, kind: cl::cluster::DiscoveryType) {
    c.cluster_discovery_type = Some(cl::cluster::ClusterDiscoveryType::Type(kind as i32));
}

fn eds(change: impl FnOnce(&mut ep::ClusterLoadAssignment)) -> Result<(), ConfigError> {
    let mut a = assignment("10.0.0.1");
    change(&mut a);
    parse_load_assignment(&a.encode_to_vec()).map(drop)
}

fn tcp_filter(change: impl FnOnce(&mut tcp::TcpProxy)) -> ls::Filter {
    let mut proxy = tcp::TcpProxy {
        stat_prefix: "t".into(),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster("c".into())),
        ..Default::default()
    };
    change(&mut proxy);
    filter(
        "envoy.filters.network.tcp_proxy",
        any(
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            &proxy,
        ),
    )
}

fn filter(name: &str, config: gp::Any) -> ls::Filter {
    ls::Filter {
        name: name.into(),
        config_type: Some(ls::filter::ConfigType::TypedConfig(config)),
    }
}

fn chain(filters: Vec<ls::Filter>, m: ls::FilterChainMatch) -> ls::FilterChain {
    ls::FilterChain {
        filters,
        filter_chain_match: Some(m),
        ..Default::default()
    }
}

fn listener(change: impl FnOnce(&mut ls::Listener)) -> Result<(), ConfigError> {
    let mut l = ls::Listener {
        name: "l".into(),
        address: Some(socket("127.0.0.1", 12001)),
        filter_chains: vec![chain(
            vec![tcp_filter(|_| {})],
            ls::FilterChainMatch::default(),
        )],
        ..Default::default()
    };
    change(&mut l);
    parse_listener(&l.encode_to_vec()).map(drop)
}

fn http_filter(name: &str, config: gp::Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

fn router() -> hcm::HttpFilter {
    http_filter(
        "envoy.filters.http.router",
        any(
            "envoy.extensions.filters.http.router.v3.Router",
            &Router::default(),
        ),
    )
}

fn cors() -> hcm::HttpFilter {
    http_filter(
        "envoy.filters.http.cors",
        any(
            "envoy.extensions.filters.http.cors.v3.Cors",
            &Cors::default(),
        ),
    )
}

fn http(change: impl FnOnce(&mut hcm::HttpConnectionManager)) -> Result<(), ConfigError> {
    use hcm::http_connection_manager::RouteSpecifier;
    let mut h = hcm::HttpConnectionManager {
        stat_prefix: "h".into(),
        route_specifier: Some(RouteSpecifier::RouteConfig(
            rt::RouteConfiguration::default(),
        )),
        http_filters: vec![router()],
        ..Default::default()
    };
    change(&mut h);
    listener(|l| {
        l.filter_chains[0].filters = vec![filter(
            "http",
            any(
                "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                &h,
            ),
        )];
    })
}

fn downstream(change: impl FnOnce(&mut tls::DownstreamTlsContext)) -> Result<(), ConfigError> {
    let mut t = tls::DownstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![tls::SdsSecretConfig {
                name: "default".into(),
                sds_config: None,
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    change(&mut t);
    listener(|l| {
        l.filter_chains[0].transport_socket = Some(core::TransportSocket {
            name: "envoy.transport_sockets.tls".into(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(
                "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                &t,
            ))),
        });
    })
}

fn params(change: impl FnOnce(&mut tls::TlsParameters)) -> Result<(), ConfigError> {
    downstream(|t| {
        change(
            t.common_tls_context
                .as_mut()
                .unwrap()
                .tls_params
                .get_or_insert_default(),
        );
    })
}

fn routes(change: impl FnOnce(&mut rt::RouteConfiguration)) -> Result<(), ConfigError> {
    let mut r = rt::RouteConfiguration {
        name: "80".into(),
        virtual_hosts: vec![rt::VirtualHost {
            name: "v".into(),
            domains: vec!["*".into()],
            ..Default::default()
        }],
        ..Default::default()
    };
    change(&mut r);
    parse_route_configuration(&r.encode_to_vec()).map(drop)
}

fn route(change: impl FnOnce(&mut rt::Route)) -> Result<(), ConfigError> {
    let mut r = rt::Route {
        r#match: Some(rt::RouteMatch {
            path_specifier: Some(rt::route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: forward(|_| {}),
        ..Default::default()
    };
    change(&mut r);
    routes(|c| c.virtual_hosts[0].routes = vec![r])
}

fn forward(change: impl FnOnce(&mut rt::RouteAction)) -> Option<rt::route::Action> {
    let mut a = rt::RouteAction {
        cluster_specifier: Some(rt::route_action::ClusterSpecifier::Cluster("c".into())),
        ..Default::default()
    };
    change(&mut a);
    Some(rt::route::Action::Route(a))
}

fn header(key: &str, value: &str) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn weights(list: &[u32]) -> Option<rt::route::Action> {
    let clusters = list
        .iter()
        .map(|w| rt::weighted_cluster::ClusterWeight {
            name: "c".into(),
            weight: u32_value(*w),
            ..Default::default()
        })
        .collect();
    forward(|a| {
        a.cluster_specifier = Some(rt::route_action::ClusterSpecifier::WeightedClusters(
            rt::WeightedCluster {
                clusters,
                ..Default::default()
            },
        ));
    })
}

fn body(length: usize) -> Option<rt::route::Action> {
    Some(rt::route::Action::DirectResponse(
        rt::DirectResponseAction {
            status: 200,
            body: Some(core::DataSource {
                specifier: Some(core::data_source::Specifier::InlineString(
                    "x".repeat(length),
                )),
                ..Default::default()
            }),
            ..Default::default()
        },
    ))
}

fn log(format: &str) -> al::AccessLog {
    al::AccessLog {
        name: "envoy.access_loggers.file".into(),
        config_type: Some(al::access_log::ConfigType::TypedConfig(any(
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            &FileAccessLog {
                path: "/dev/stdout".into(),
                access_log_format: Some(file_access_log::AccessLogFormat::Format(format.into())),
            },
        ))),
        ..Default::default()
    }
}

#[test]
fn the_bases_of_the_table_are_accepted() {
    cluster(|_| {}).unwrap();
    eds(|_| {}).unwrap();
    listener(|_| {}).unwrap();
    http(|_| {}).unwrap();
    downstream(|_| {}).unwrap();
    routes(|_| {}).unwrap();
    route(|_| {}).unwrap();
    route(|r| r.action = body(4096)).unwrap();
    parse_bootstrap(&[]).unwrap();
}

type Row = (Result<(), ConfigError>, &'static str, &'static str);

fn check(rows: Vec<Row>) {
    for (result, path, reason) in rows {
        let error = result.expect_err(&format!("{path}: {reason}"));
        assert_eq!(error.path, path, "{error}");
        assert!(
            error.reason.contains(reason),
            "{error}\nshould contain\n{reason}"
        );
    }
}

const NOT: &str = "not supported by this proxy";
const REQUIRED: &str = "is required";

#[test]
fn clusters_are_refused_with_path_and_reason() {
    use cl::cluster::DiscoveryType as D;
    check(vec![
        (parse_cluster(&[0xff]).map(drop), "", "unable to parse"),
        (
            cluster(|c| c.name.clear()),
            "name",
            "value length must be at least 1 characters",
        ),
        (
            cluster(|c| c.load_assignment = Some(assignment("not-an-ip"))),
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
            "malformed IP address: not-an-ip. Consider setting resolver_name or setting cluster \
             type to 'STRICT_DNS' or 'LOGICAL_DNS'",
        ),
        (
            cluster(|c| c.connect_timeout = seconds(0)),
            "connect_timeout",
            "must be greater than 0s",
        ),
        (
            cluster(|c| c.connect_timeout = seconds(-1)),
            "connect_timeout",
            "must be greater than or equal to 0s",
        ),
        (
            cluster(|c| c.health_checks = vec![Default::default()]),
            "health_checks",
            NOT,
        ),
        (
            cluster(|c| c.lb_policy = 77),
            "lb_policy",
            "one of the defined enum values",
        ),
        (cluster(|c| c.lb_policy = 7), "lb_policy", NOT),
        (
            cluster(|c| c.lb_policy = 6),
            "lb_policy",
            "LB policy CLUSTER_PROVIDED",
        ),
        (cluster(|c| kind(c, D::Eds)), "eds_cluster_config", REQUIRED),
        (
            cluster(|c| {
                kind(c, D::OriginalDst);
                c.lb_policy = 6;
            }),
            "load_assignment",
            "must have no load assignment",
        ),
        (
            cluster(|c| {
                kind(c, D::OriginalDst);
                c.load_assignment = None;
            }),
            "lb_policy",
            "cluster: LB policy ROUND_ROBIN is not valid for Cluster type ORIGINAL_DST",
        ),
        (
            cluster(|c| {
                kind(c, D::LogicalDns);
                c.load_assignment = None;
            }),
            "load_assignment",
            "must have a single locality_lb_endpoint",
        ),
        (
            cluster(|c| {
                c.cluster_discovery_type = Some(cl::cluster::ClusterDiscoveryType::ClusterType(
                    cl::cluster::CustomClusterType {
                        name: "x".into(),
                        typed_config: Some(any("a.B", &())),
                    },
                ));
            }),
            "cluster_type",
            "Didn't find a registered implementation for 'x' with type URL: 'a.B'",
        ),
        (
            cluster(|c| {
                c.lb_policy = 5;
                c.lb_config = Some(cl::cluster::LbConfig::MaglevLbConfig(
                    cl::cluster::MaglevLbConfig {
                        table_size: Some(gp::UInt64Value { value: 65_536 }),
                    },
                ));
            }),
            "maglev_lb_config.table_size",
            "prime",
        ),
        (
            cluster(|c| {
                c.outlier_detection = Some(cl::OutlierDetection {
                    enforcing_success_rate: u32_value(1),
                    ..Default::default()
                });
            }),
            "outlier_detection.enforcing_success_rate",
            NOT,
        ),
        (
            cluster(|c| {
                c.transport_socket = Some(core::TransportSocket {
                    name: "q".into(),
                    config_type: None,
                });
            }),
            "transport_socket.typed_config",
            "implementation for 'q' with type URL: ''",
        ),
        (
            cluster(|c| {
                c.typed_extension_protocol_options
                    .insert("z".into(), any("z.Z", &()));
            }),
            "typed_extension_protocol_options[\"z\"]",
            "implementation for 'z'",
        ),
        (
            eds(|a| a.cluster_name.clear()),
            "cluster_name",
            "at least 1",
        ),
        (
            eds(|a| a.endpoints[0].priority = 129),
            "endpoints[0].priority",
            "128",
        ),
        (
            eds(|a| {
                a.endpoints[0].load_balancing_weight = u32_value(u32::MAX);
                a.endpoints.push(a.endpoints[0].clone());
            }),
            "endpoints",
            "can't exceed 4294967295",
        ),
    ]);
}

#[test]
fn listeners_are_refused_with_path_and_reason() {
    let tls_match = || ls::FilterChainMatch {
        transport_protocol: "tls".into(),
        ..Default::default()
    };
    let sni = |name: &str| ls::FilterChainMatch {
        server_names: vec![name.into()],
        ..Default::default()
    };
    let chains = |list: Vec<ls::FilterChainMatch>| {
        listener(|l| {
            l.filter_chains = list
                .into_iter()
                .map(|m| chain(vec![tcp_filter(|_| {})], m))
                .collect();
        })
    };
    check(vec![
        (listener(|l| l.address = None), "address", REQUIRED),
        (
            listener(|l| l.address = Some(socket("nope", 1))),
            "address.socket_address.address",
            "malformed IP address: nope",
        ),
        (
            listener(|l| l.address = Some(socket("1.2.3.4", 70_000))),
            "address.socket_address.port_value",
            "65535",
        ),
        (
            listener(|l| l.filter_chains.clear()),
            "filter_chains",
            "error adding listener '127.0.0.1:12001': no filter chains specified",
        ),
        (
            chains(vec![tls_match(), tls_match()]),
            "filter_chains[1].filter_chain_match",
            "error adding listener '127.0.0.1:12001': filter chain '' has the same matching rules \
             defined as ''. duplicate matcher is: {\"transport_protocol\":\"tls\"}",
        ),
        (
            chains(vec![
                sni("a.com"),
                ls::FilterChainMatch {
                    server_names: vec!["b.com".into(), "A.com".into()],
                    ..Default::default()
                },
            ]),
            "filter_chains[1].filter_chain_match",
            "multiple filter chains with overlapping matching rules are defined",
        ),
        (
            chains(vec![sni("*")]),
            "filter_chains[0].filter_chain_match.server_names[0]",
            "partial wildcards are not supported in \"server_names\"",
        ),
        (
            chains(vec![sni("a*.com")]),
            "filter_chains[0].filter_chain_match.server_names[0]",
            "partial wildcards",
        ),
        (
            chains(vec![ls::FilterChainMatch {
                address_suffix: "1".into(),
                ..Default::default()
            }]),
            "filter_chains[0].filter_chain_match.address_suffix",
            NOT,
        ),
        (listener(|l| l.enable_mptcp = true), "enable_mptcp", NOT),
        (
            listener(|l| {
                l.filter_chains[0].filters.push(tcp_filter(|_| {}));
            }),
            "filter_chains[0].filters[0]",
            "Error: terminal filter named envoy.filters.network.tcp_proxy of type \
             envoy.filters.network.tcp_proxy must be the last filter in a network filter chain.",
        ),
        (
            listener(|l| {
                l.filter_chains[0].filters =
                    vec![filter("istio.stats", any("stats.PluginConfig", &()))];
            }),
            "filter_chains[0].filters[0]",
            "Error: non-terminal filter named istio.stats",
        ),
        (
            listener(|l| {
                l.filter_chains[0].filters.insert(
                    0,
                    filter(
                        "envoy.filters.network.rbac",
                        any("envoy.extensions.filters.network.rbac.v3.RBAC", &()),
                    ),
                );
            }),
            "filter_chains[0].filters[0].typed_config",
            "Didn't find a registered implementation for 'envoy.filters.network.rbac' with type \
             URL: 'envoy.extensions.filters.network.rbac.v3.RBAC'",
        ),
        (
            listener(|l| {
                l.filter_chains[0].filters = vec![tcp_filter(|t| t.cluster_specifier = None)];
            }),
            "filter_chains[0].filters[0].typed_config",
            "cluster_specifier: is required",
        ),
        (
            listener(|l| {
                l.filter_chains[0].filters = vec![tcp_filter(|t| {
                    t.tunneling_config = Some(Default::default())
                })];
            }),
            "filter_chains[0].filters[0].typed_config.tunneling_config",
            NOT,
        ),
        (
            listener(|l| l.access_log = vec![log("%NOPE%")]),
            "access_log[0].typed_config.format",
            "Not supported field in StreamInfo: NOPE",
        ),
        (
            listener(|l| {
                l.access_log = vec![al::AccessLog {
                    filter: Some(al::AccessLogFilter {
                        filter_specifier: Some(
                            al::access_log_filter::FilterSpecifier::ResponseFlagFilter(
                                al::ResponseFlagFilter {
                                    flags: vec!["XX".into()],
                                },
                            ),
                        ),
                    }),
                    ..log("x")
                }];
            }),
            "access_log[0].filter.response_flag_filter.flags",
            "'XX'",
        ),
    ]);
}

#[test]
fn connection_managers_are_refused_with_path_and_reason() {
    const AT: &str = "filter_chains[0].filters[0].typed_config";
    let at = |rest: &str| -> &'static str { Box::leak(format!("{AT}.{rest}").into_boxed_str()) };
    check(vec![
        (
            http(|h| h.stat_prefix.clear()),
            at("stat_prefix"),
            "at least 1 characters",
        ),
        (
            http(|h| h.http_filters.clear()),
            at("http_filters"),
            "no terminal filter",
        ),
        (
            http(|h| h.http_filters = vec![router(), cors()]),
            at("http_filters[0]"),
            "Error: terminal filter named envoy.filters.http.router of type \
             envoy.filters.http.router must be the last filter in a http filter chain.",
        ),
        (
            http(|h| h.http_filters = vec![cors()]),
            at("http_filters[0]"),
            "Error: non-terminal filter named envoy.filters.http.cors",
        ),
        (
            http(|h| {
                h.http_filters.insert(
                    0,
                    http_filter(
                        "envoy.filters.http.rbac",
                        any("envoy.extensions.filters.http.rbac.v3.RBAC", &()),
                    ),
                );
            }),
            at("http_filters[0].typed_config"),
            "implementation for 'envoy.filters.http.rbac'",
        ),
        (
            http(|h| {
                h.http_filters.insert(
                    0,
                    hcm::HttpFilter {
                        is_optional: true,
                        ..http_filter(
                            "authz",
                            any("envoy.extensions.filters.http.ext_authz.v3.ExtAuthz", &()),
                        )
                    },
                );
            }),
            at("http_filters[0].typed_config"),
            "implementation for 'authz'",
        ),
        (
            http(|h| h.route_specifier = None),
            AT,
            "route_specifier: is required",
        ),
        (
            http(|h| h.local_reply_config = Some(Default::default())),
            at("local_reply_config"),
            NOT,
        ),
        (http(|h| h.codec_type = 3), at("codec_type"), NOT),
        (
            http(|h| h.max_request_headers_kb = u32_value(9000)),
            at("max_request_headers_kb"),
            "[1, 8192]",
        ),
        (
            http(|h| {
                h.http2_protocol_options = Some(core::Http2ProtocolOptions {
                    initial_stream_window_size: u32_value(1),
                    ..Default::default()
                });
            }),
            at("http2_protocol_options.initial_stream_window_size"),
            "[65535, 2147483647]",
        ),
        (
            http(|h| {
                h.upgrade_configs = ["websocket", "WebSocket"]
                    .map(|t| hcm::http_connection_manager::UpgradeConfig {
                        upgrade_type: t.into(),
                        ..Default::default()
                    })
                    .into();
            }),
            at("upgrade_configs[1]"),
            "multiple upgrade configs with the same name",
        ),
    ]);
}

#[test]
fn tls_is_refused_with_path_and_reason() {
    const AT: &str = "filter_chains[0].transport_socket.typed_config";
    let at = |rest: &str| -> &'static str { Box::leak(format!("{AT}.{rest}").into_boxed_str()) };
    let validation = |c: tls::CertificateValidationContext| {
        downstream(|t| {
            t.common_tls_context
                .as_mut()
                .unwrap()
                .validation_context_type =
                Some(tls::common_tls_context::ValidationContextType::ValidationContext(c));
        })
    };
    check(vec![
        (
            downstream(|t| t.common_tls_context = None),
            at("common_tls_context"),
            "No TLS certificates found for server context",
        ),
        (
            params(|p| p.tls_maximum_protocol_version = 2),
            at("common_tls_context.tls_params.tls_maximum_protocol_version"),
            NOT,
        ),
        (
            params(|p| {
                p.tls_minimum_protocol_version = 4;
                p.tls_maximum_protocol_version = 3;
            }),
            at("common_tls_context.tls_params.tls_minimum_protocol_version"),
            "above",
        ),
        (
            params(|p| p.cipher_suites = vec!["AES128-SHA".into(), "nope".into()]),
            at("common_tls_context.tls_params.cipher_suites"),
            "none of the 2",
        ),
        (
            params(|p| p.ecdh_curves = vec!["P-7".into()]),
            at("common_tls_context.tls_params.ecdh_curves"),
            "none of the 1",
        ),
        (
            params(|p| p.compliance_policies = vec![0]),
            at("common_tls_context.tls_params.compliance_policies"),
            NOT,
        ),
        (
            validation(tls::CertificateValidationContext {
                verify_certificate_spki: vec!["x".into()],
                ..Default::default()
            }),
            at("common_tls_context.validation_context.verify_certificate_spki[0]"),
            "Invalid base64-encoded SHA-256",
        ),
        (
            validation(tls::CertificateValidationContext {
                verify_certificate_hash: vec!["zz".into()],
                ..Default::default()
            }),
            at("common_tls_context.validation_context.verify_certificate_hash[0]"),
            "Invalid hex-encoded SHA-256",
        ),
        (
            validation(tls::CertificateValidationContext {
                max_verify_depth: u32_value(1),
                ..Default::default()
            }),
            at("common_tls_context.validation_context.max_verify_depth"),
            NOT,
        ),
        (
            parse_secret(&tls::Secret::default().encode_to_vec()).map(drop),
            "",
            "Secret type not implemented",
        ),
        (
            parse_secret(
                &tls::Secret {
                    name: "x".into(),
                    r#type: Some(tls::secret::Type::TlsCertificate(Default::default())),
                }
                .encode_to_vec(),
            )
            .map(drop),
            "tls_certificate.certificate_chain",
            REQUIRED,
        ),
    ]);
}

#[test]
fn routes_are_refused_with_path_and_reason() {
    const AT: &str = "virtual_hosts[0].routes[0]";
    let at = |rest: &str| -> &'static str { Box::leak(format!("{AT}.{rest}").into_boxed_str()) };
    let domains = |list: &[&str]| {
        let list = list.iter().map(|d| (*d).to_owned()).collect();
        routes(|c| c.virtual_hosts[0].domains = list)
    };
    check(vec![
        (domains(&[]), "virtual_hosts[0].domains", "at least 1 item"),
        (
            domains(&["*", "*"]),
            "virtual_hosts[0].domains",
            "Only a single wildcard domain is permitted in route 80",
        ),
        (
            domains(&["a.com", "A.com"]),
            "virtual_hosts[0].domains",
            "Only unique values for domains are permitted. Duplicate entry of domain a.com in route 80",
        ),
        (
            routes(|c| c.virtual_hosts[0].name.clear()),
            "virtual_hosts[0].name",
            "at least 1",
        ),
        (routes(|c| c.vhds = Some(Default::default())), "vhds", NOT),
        (route(|r| r.r#match = None), at("match"), REQUIRED),
        (route(|r| r.action = None), AT, "action: is required"),
        (
            route(|r| {
                r.r#match.as_mut().unwrap().path_specifier =
                    Some(rt::route_match::PathSpecifier::SafeRegex(regex("(")));
            }),
            at("match.safe_regex.regex"),
            "Invalid regex '('",
        ),
        (
            route(|r| {
                r.r#match.as_mut().unwrap().path_specifier = Some(
                    rt::route_match::PathSpecifier::PathSeparatedPrefix("/a/".into()),
                );
            }),
            at("match.path_separated_prefix"),
            "regex pattern",
        ),
        (
            route(|r| {
                r.r#match.as_mut().unwrap().headers = vec![rt::HeaderMatcher {
                    name: "a b".into(),
                    ..Default::default()
                }];
            }),
            at("match.headers[0].name"),
            "not a valid header name",
        ),
        (
            route(|r| r.r#match.as_mut().unwrap().dynamic_metadata = vec![Default::default()]),
            at("match.dynamic_metadata"),
            NOT,
        ),
        (
            route(|r| r.action = weights(&[0, 0])),
            at("route.weighted_clusters"),
            "Sum of weights in the weighted_cluster must be greater than 0.",
        ),
        (
            route(|r| r.action = weights(&[u32::MAX, 1])),
            at("route.weighted_clusters"),
            "exceeds 4294967295",
        ),
        (
            route(|r| r.action = weights(&[])),
            at("route.weighted_clusters.clusters"),
            "at least 1 item",
        ),
        (
            route(|r| r.action = body(4097)),
            at("direct_response.body"),
            "response body size is 4097 bytes; maximum is 4096",
        ),
        (
            route(|r| {
                r.action = Some(rt::route::Action::DirectResponse(
                    rt::DirectResponseAction {
                        status: 100,
                        ..Default::default()
                    },
                ));
            }),
            at("direct_response.status"),
            "[200, 600)",
        ),
        (
            route(|r| r.request_headers_to_add = vec![header("host", "x")]),
            at("request_headers_to_add[0].header.key"),
            ":-prefixed or host headers may not be modified",
        ),
        (
            route(|r| r.response_headers_to_add = vec![header("x", "%FOO%")]),
            at("response_headers_to_add[0].header.value"),
            "Not supported field in StreamInfo: FOO",
        ),
        (
            route(|r| r.request_headers_to_remove = vec![":path".into()]),
            at("request_headers_to_remove[0]"),
            "may not be removed",
        ),
        (
            route(|r| r.response_headers_to_remove = vec!["a b".into()]),
            at("response_headers_to_remove[0]"),
            "not a valid header name",
        ),
        (
            route(|r| {
                r.action = forward(|a| {
                    a.retry_policy = Some(rt::RetryPolicy {
                        retry_back_off: Some(rt::retry_policy::RetryBackOff {
                            base_interval: seconds(2),
                            max_interval: seconds(1),
                        }),
                        ..Default::default()
                    });
                });
            }),
            at("route.retry_policy.retry_back_off.max_interval"),
            "must greater than or equal to the base_interval",
        ),
        (
            route(|r| {
                r.action = forward(|a| {
                    a.regex_rewrite = Some(matcher::RegexMatchAndSubstitute {
                        pattern: Some(regex("a")),
                        substitution: "\\1".into(),
                    });
                });
            }),
            at("route.regex_rewrite.substitution"),
            "Invalid substitution '\\1'",
        ),
        (
            route(|r| r.action = forward(|a| a.metadata_match = Some(Default::default()))),
            at("route.metadata_match"),
            NOT,
        ),
        (
            route(|r| {
                r.typed_per_filter_config
                    .insert("x".into(), any("a.B", &()));
            }),
            at("typed_per_filter_config[\"x\"]"),
            "implementation for 'x' with type URL: 'a.B'",
        ),
        (
            routes(|c| c.virtual_hosts[0].rate_limits = vec![Default::default()]),
            "virtual_hosts[0].rate_limits",
            NOT,
        ),
    ]);
}

#[test]
fn settings_that_are_not_acted_upon_are_refused() {
    let h2 = |change: fn(&mut core::Http2ProtocolOptions)| {
        http(|h| {
            let mut options = core::Http2ProtocolOptions::default();
            change(&mut options);
            h.http2_protocol_options = Some(options);
        })
    };
    let policy = |p: ep::cluster_load_assignment::Policy| eds(|a| a.policy = Some(p));
    let refused = [
        (h2(|o| o.allow_connect = true), "allow_connect"),
        (
            h2(|o| {
                o.connection_keepalive = Some(core::KeepaliveSettings {
                    interval: seconds(1),
                    timeout: seconds(1),
                    ..Default::default()
                });
            }),
            "connection_keepalive.interval",
        ),
        (
            policy(ep::cluster_load_assignment::Policy {
                drop_overloads: vec![ep::cluster_load_assignment::policy::DropOverload {
                    category: "x".into(),
                    drop_percentage: None,
                }],
                ..Default::default()
            }),
            "policy.drop_overloads",
        ),
        (
            routes(|r| {
                r.virtual_hosts[0].retry_policy = Some(rt::RetryPolicy {
                    per_try_idle_timeout: seconds(1),
                    ..Default::default()
                });
            }),
            "retry_policy.per_try_idle_timeout",
        ),
    ];
    for (result, path) in refused {
        let error = result.unwrap_err();
        assert!(error.path.ends_with(path), "{error} instead of {path}");
    }
}

#[test]
fn bootstraps_are_refused_with_path_and_reason() {
    let with = |change: &dyn Fn(&mut bs::Bootstrap)| {
        let mut b = bs::Bootstrap::default();
        change(&mut b);
        parse_bootstrap(&b.encode_to_vec()).map(drop)
    };
    check(vec![
        (
            with(&|b| {
                b.static_resources = Some(bs::bootstrap::StaticResources {
                    clusters: vec![cl::Cluster::default()],
                    ..Default::default()
                });
            }),
            "static_resources.clusters[0].name",
            "at least 1",
        ),
        (
            with(&|b| {
                b.dynamic_resources = Some(bs::bootstrap::DynamicResources {
                    lds_config: Some(core::ConfigSource {
                        config_source_specifier: Some(
                            core::config_source::ConfigSourceSpecifier::Path("/x".into()),
                        ),
                        ..Default::default()
                    }),
                    ..Default::default()
                });
            }),
            "dynamic_resources.lds_config.path",
            NOT,
        ),
        (
            with(&|b| {
                b.admin = Some(bs::Admin {
                    allow_paths: vec![Default::default()],
                    ..Default::default()
                });
            }),
            "admin.allow_paths",
            NOT,
        ),
    ]);
}
