//! What the model of a large configuration keeps: nothing of the messages it was made from.
#![allow(clippy::unwrap_used, reason = "tests")]

use envoy_types::pb;
use outrigger_config::{parse_cluster, parse_route_configuration};
use pb::envoy::config::cluster::v3 as cluster;
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::endpoint::v3 as endpoint;
use pb::envoy::config::route::v3 as route;
use pb::google::protobuf as gp;
use prost::Message;

fn strings(pairs: &[(&str, &str)]) -> gp::Struct {
    let value = |v: &str| gp::Value {
        kind: Some(gp::value::Kind::StringValue(v.to_owned())),
    };
    gp::Struct {
        fields: pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), value(v)))
            .collect(),
    }
}

#[test]
fn route_lists_are_as_large_as_what_they_hold() {
    let action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster("c".into())),
        ..Default::default()
    };
    let routes = vec![route::Route {
        r#match: Some(route::RouteMatch {
            path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(route::route::Action::Route(action)),
        ..Default::default()
    }];
    let config = route::RouteConfiguration {
        name: "80".into(),
        virtual_hosts: (0..5)
            .map(|i| route::VirtualHost {
                name: format!("v{i}"),
                domains: vec![format!("v{i}.example")],
                routes: routes.clone(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let parsed = parse_route_configuration(&config.encode_to_vec()).unwrap();
    let hosts = parsed.value.virtual_hosts;
    assert_eq!(hosts.capacity(), 5);
    for host in &hosts {
        assert_eq!((host.domains.capacity(), host.routes.capacity()), (1, 1));
    }
}

#[test]
fn cluster_lists_are_as_large_as_what_they_hold() {
    use cluster::cluster::{ClusterDiscoveryType, TransportSocketMatch};
    let lb_endpoint = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(
            endpoint::Endpoint {
                address: Some(core::Address {
                    address: Some(core::address::Address::Pipe(core::Pipe {
                        path: "/x".into(),
                        ..Default::default()
                    })),
                }),
                ..Default::default()
            },
        )),
        metadata: Some(core::Metadata {
            filter_metadata: [(
                "envoy.transport_socket_match".to_owned(),
                strings(&[("tlsMode", "istio")]),
            )]
            .into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let config = cluster::Cluster {
        name: "c".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(0)),
        transport_socket_matches: vec![TransportSocketMatch {
            name: "tls".into(),
            r#match: Some(strings(&[("tlsMode", "istio")])),
            transport_socket: None,
        }],
        load_assignment: Some(endpoint::ClusterLoadAssignment {
            cluster_name: "c".into(),
            endpoints: vec![endpoint::LocalityLbEndpoints {
                lb_endpoints: vec![lb_endpoint],
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let parsed = parse_cluster(&config.encode_to_vec()).unwrap().value;
    assert_eq!(parsed.transport_socket_matches.capacity(), 1);
    assert_eq!(parsed.transport_socket_matches[0].criteria.capacity(), 1);
    let outrigger_config::cluster::Discovery::Static(assignment) = parsed.discovery else {
        panic!("a static cluster");
    };
    assert_eq!(assignment.localities.capacity(), 1);
    let endpoints = &assignment.localities[0].endpoints;
    assert_eq!(endpoints.capacity(), 1);
    assert_eq!(endpoints[0].transport_socket_match.capacity(), 1);
}
