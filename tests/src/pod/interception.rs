//! How a pod's traffic is intercepted, where that is not what its specification says: the changes that
//! the injector makes to the containers and istiod to the listeners for other annotations and values.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, ExtraSourceAddress, SocketAddress};
use envoy_types::pb::envoy::config::listener::v3::listener_filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{AdditionalAddress, Listener, ListenerFilter};
use envoy_types::pb::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;
use envoy_types::pb::google::protobuf::{Any, BoolValue};
use prost::Message as _;

use super::rootfs::Container;
use crate::istiod::Snapshot;
use crate::istiod::snapshot::{CLUSTER, LISTENER};

/// Mark of packets that the transparent listener took; the default of `istio-iptables`.
const MARK: u32 = 1337;
/// Where the proxy's inbound connections come from without TPROXY.
const PASSTHROUGH: (&str, &str) = ("127.0.0.6", "::6");

/// Backend and mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// TPROXY for inbound traffic: the application sees the client's address.
    Tproxy,
    /// REDIRECT with nftables through netlink.
    Nft,
    /// REDIRECT with the iptables-nft programs.
    Iptables,
    /// REDIRECT with the iptables-legacy programs.
    Legacy,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tproxy => "TPROXY",
            Self::Nft => "REDIRECT by native nftables",
            Self::Iptables => "REDIRECT by iptables-nft",
            Self::Legacy => "REDIRECT by iptables-legacy",
        })
    }
}

/// What differs from the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interception {
    /// `None`: as specified.
    pub mode: Option<Mode>,
    /// The pod has an IPv6 address too, and the mesh is dual stack.
    pub ipv6: bool,
}

/// The IPv6 address beside a pod's IPv4 address: its numbers after `fd00:`.
pub fn ipv6_of(ip: &str) -> Option<Ipv6Addr> {
    let numbers: Vec<&str> = ip.split('.').collect();
    let [a, b, c, d] = numbers[..] else {
        return None;
    };
    format!("fd00:{a}:{b}::{c}:{d}").parse().ok()
}

impl Interception {
    pub(super) const fn tproxy(self) -> bool {
        matches!(self.mode, Some(Mode::Tproxy))
    }

    /// Arguments of the init container, as the injector would have written them.
    pub(super) fn init_arguments(self, arguments: &mut Vec<String>) {
        let more: &[&str] = match self.mode {
            None => &[],
            // The last of two equal flags counts.
            Some(Mode::Tproxy) => &["-m", "TPROXY"],
            Some(Mode::Nft) => &["--native-nftables"],
            Some(Mode::Iptables) => &["--force-iptables-binary", "nft"],
            Some(Mode::Legacy) => &["--force-iptables-binary", "legacy"],
        };
        arguments.extend(more.iter().map(ToString::to_string));
    }

    /// Environment of both containers (`proxyMetadata`).
    pub(super) fn environment(self) -> Vec<(String, String)> {
        let mut env = Vec::new();
        if self.ipv6 {
            env.push(("ISTIO_DUAL_STACK".to_owned(), "true".to_owned()));
        }
        if self.tproxy() {
            let mode = "ISTIO_META_INTERCEPTION_MODE".to_owned();
            env.push((mode, "TPROXY".to_owned()));
        }
        env
    }

    /// Annotations of the pod.
    pub(super) fn annotations(self) -> Option<(String, String)> {
        let mode = "sidecar.istio.io/interceptionMode".to_owned();
        self.tproxy().then(|| (mode, "TPROXY".to_owned()))
    }

    /// User and capabilities of the proxy's container: a transparent socket needs NET_ADMIN.
    pub(super) fn privileges(self, proxy: &mut Container) {
        if self.tproxy() {
            proxy.user = (0, 1337);
            let net_admin = "net_admin".to_owned();
            if !proxy.capabilities.contains(&net_admin) {
                proxy.capabilities.push(net_admin);
            }
        }
    }

    /// What istiod sends to a pod of this kind.
    ///
    /// # Errors
    /// A recorded resource that does not decode.
    pub fn configure(self, snapshot: &mut Snapshot) -> Result<(), prost::DecodeError> {
        if self.tproxy() {
            snapshot.edit(LISTENER, transparent)?;
        }
        if self.ipv6 {
            snapshot.edit(LISTENER, listen_on_both)?;
            snapshot.edit(CLUSTER, leave_from_both)?;
        }
        Ok(())
    }
}

fn transparent(listener: &mut Listener) {
    if !matches!(listener.name.as_str(), "virtualInbound" | "virtualOutbound") {
        return;
    }
    listener.transparent = Some(BoolValue { value: true });
    if listener.name != "virtualInbound" {
        return;
    }
    let filter = OriginalSrc {
        mark: MARK,
        ..OriginalSrc::default()
    };
    let any = Any {
        type_url:
            "type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc"
                .to_owned(),
        value: filter.encode_to_vec(),
    };
    let filter = ListenerFilter {
        name: "envoy.filters.listener.original_src".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any)),
        ..ListenerFilter::default()
    };
    // Right behind the filter that restores the destination.
    let after = listener
        .listener_filters
        .iter()
        .position(|f| f.name == "envoy.filters.listener.original_dst")
        .map_or(0, |index| index + 1);
    listener.listener_filters.insert(after, filter);
}

fn socket(address: Option<&Address>) -> Option<&SocketAddress> {
    match address?.address.as_ref()? {
        AddressKind::SocketAddress(socket) => Some(socket),
        _ => None,
    }
}

fn on(ip: &str, port: Option<PortSpecifier>) -> Address {
    Address {
        address: Some(AddressKind::SocketAddress(SocketAddress {
            address: ip.to_owned(),
            port_specifier: port,
            ..SocketAddress::default()
        })),
    }
}

fn listen_on_both(listener: &mut Listener) {
    let any = match socket(listener.address.as_ref()) {
        Some(socket) if socket.address == "0.0.0.0" => socket.port_specifier.clone(),
        _ => return,
    };
    listener.additional_addresses.push(AdditionalAddress {
        address: Some(on("::", any)),
        ..AdditionalAddress::default()
    });
}

fn leave_from_both(cluster: &mut Cluster) {
    let Some(bind) = &mut cluster.upstream_bind_config else {
        return;
    };
    if bind
        .source_address
        .as_ref()
        .is_some_and(|a| a.address == PASSTHROUGH.0)
    {
        bind.extra_source_addresses.push(ExtraSourceAddress {
            address: socket(Some(&on(PASSTHROUGH.1, Some(PortSpecifier::PortValue(0))))).cloned(),
            ..ExtraSourceAddress::default()
        });
    }
}

/// What an application behind this interception sees as its peer.
pub fn peer_of(interception: Interception, client: IpAddr) -> IpAddr {
    let (v4, v6) = PASSTHROUGH;
    let six = if client.is_ipv4() { v4 } else { v6 };
    if interception.tproxy() {
        client
    } else {
        six.parse().unwrap_or(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn the_configuration_of_a_tproxy_pod_is_what_istiod_recorded() {
        let root = match fixtures::root() {
            Ok(root) => root.join("xds/04-traffic"),
            Err(e) => return println!("skipped: {e}"),
        };
        let load = |node| Snapshot::load(&root.join(node)).expect("recorded responses");
        let mut changed = load("echo");
        let interception = Interception {
            mode: Some(Mode::Tproxy),
            ipv6: false,
        };
        interception.configure(&mut changed).expect("as recorded");
        let recorded = load("echo-tproxy");
        for name in ["virtualInbound", "virtualOutbound"] {
            let decode = |snapshot: &Snapshot| {
                let found = snapshot.find(LISTENER, name).expect("a listener");
                Listener::decode(found.any.value.as_slice()).expect("as recorded")
            };
            assert_eq!(decode(&changed), decode(&recorded), "{name}");
        }
    }
}
