//! Makes single resources for tests that no recorded configuration fits.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, Locality, Metadata, SocketAddress};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, UInt32Value, Value};

use super::snapshot::{ENDPOINT, Resource, Snapshot};

/// A TCP address.
pub fn address(at: SocketAddr) -> Address {
    let socket = SocketAddress {
        address: at.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(u32::from(at.port()))),
        ..Default::default()
    };
    Address {
        address: Some(AddressKind::SocketAddress(socket)),
    }
}

fn tls_mode() -> Metadata {
    let value = Value {
        kind: Some(Kind::StringValue("istio".to_owned())),
    };
    let fields = Struct {
        fields: [("tlsMode".to_owned(), value)].into(),
    };
    let filter_metadata = [("envoy.transport_socket_match".to_owned(), fields)].into();
    Metadata {
        filter_metadata,
        ..Default::default()
    }
}

/// The endpoints of a cluster, one locality, weight 1 each; `mtls` marks them as istiod marks
/// endpoints that have a sidecar.
pub fn endpoints(cluster: &str, hosts: &[SocketAddr], mtls: bool) -> Resource {
    let lb_endpoints = hosts
        .iter()
        .map(|host| LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                address: Some(address(*host)),
                ..Default::default()
            })),
            metadata: mtls.then(tls_mode),
            load_balancing_weight: Some(UInt32Value { value: 1 }),
            ..Default::default()
        })
        .collect();
    let assignment = ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            // As istiod, also where it knows none: gRPC's clients insist on it.
            locality: Some(Locality::default()),
            lb_endpoints,
            load_balancing_weight: Some(UInt32Value { value: 1 }),
            ..Default::default()
        }],
        ..Default::default()
    };
    Resource::new(cluster, ENDPOINT, &assignment)
}

/// Gives every endpoint list whose cluster name contains `service` these hosts instead.
pub fn replace_endpoints(snapshot: &mut Snapshot, service: &str, hosts: &[SocketAddr]) {
    let names: Vec<String> = snapshot
        .of(ENDPOINT)
        .filter(|r| r.name.contains(service))
        .map(|r| r.name.clone())
        .collect();
    for name in names {
        snapshot.insert(endpoints(&name, hosts, true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_one_service_are_replaced_and_others_kept() {
        let host = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let mut snapshot = Snapshot::default();
        snapshot.insert(endpoints("outbound|80||a.b", &[host("10.0.0.1:80")], true));
        let other = endpoints("outbound|80||c.b", &[host("10.0.0.2:80")], false);
        snapshot.insert(other.clone());
        replace_endpoints(&mut snapshot, "a.b", &[host("10.0.0.9:81")]);
        let new = endpoints("outbound|80||a.b", &[host("10.0.0.9:81")], true);
        assert_eq!(snapshot.find(ENDPOINT, "outbound|80||a.b"), Some(&new));
        assert_eq!(snapshot.find(ENDPOINT, "outbound|80||c.b"), Some(&other));
    }
}
