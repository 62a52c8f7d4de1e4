//! The node's addresses: the pod's own first, then those of the interfaces that are up.

use std::net::IpAddr;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;

/// The interfaces cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error("cannot list network interfaces: {0}")]
pub struct AddressError(#[from] nix::Error);

/// `pod_ip` (if it is an address) and every usable interface address, without duplicates and
/// without the interfaces in the comma list `excluded`. Without any interface address, both
/// loopbacks are added, so that the list is never empty.
pub(super) fn discover(pod_ip: &str, excluded: &str) -> Result<Vec<IpAddr>, AddressError> {
    let found = getifaddrs()?
        .filter_map(|i| Some((usable(&i)?, i.interface_name)))
        .collect();
    Ok(merge(pod_ip.parse().ok(), found, excluded))
}

fn usable(interface: &InterfaceAddress) -> Option<IpAddr> {
    let flags = interface.flags;
    if !flags.contains(InterfaceFlags::IFF_UP) || flags.contains(InterfaceFlags::IFF_LOOPBACK) {
        return None;
    }
    let address = interface.address.as_ref()?;
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        .filter(|ip| routable(*ip))
}

fn routable(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            !(ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.octets()[..3] == [224, 0, 0])
        }
        IpAddr::V6(ip) => {
            let link_local_multicast = ip.segments()[0] & 0xff0f == 0xff02;
            !(ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unicast_link_local()
                || link_local_multicast)
        }
    }
}

/// Addresses of excluded interfaces keep the loopbacks away: a pod whose only interface is excluded
/// has its own address alone, and that decides the families it serves.
fn merge(pod_ip: Option<IpAddr>, found: Vec<(IpAddr, String)>, excluded: &str) -> Vec<IpAddr> {
    let excluded: Vec<&str> = excluded.split(',').map(str::trim).collect();
    let none_found = found.is_empty();
    let mut found: Vec<IpAddr> = found
        .into_iter()
        .filter(|(_, interface)| !excluded.contains(&interface.as_str()))
        .map(|(ip, _)| ip)
        .collect();
    if found.is_empty() && (none_found || pod_ip.is_none()) {
        found = vec![
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ];
    }
    let mut out: Vec<IpAddr> = Vec::new();
    for ip in pod_ip.into_iter().chain(found).map(|ip| ip.to_canonical()) {
        if !out.contains(&ip) {
            out.push(ip);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    fn on(interface: &str, addresses: &[&str]) -> Vec<(IpAddr, String)> {
        let named = |text: &&str| (ip(text), interface.to_owned());
        addresses.iter().map(named).collect()
    }

    #[test]
    fn pod_address_comes_first_and_once() {
        let found = on(
            "eth0",
            &["10.0.0.2", "10.0.0.1", "::ffff:10.0.0.2", "fd00::1"],
        );
        let want = [ip("10.0.0.1"), ip("10.0.0.2"), ip("fd00::1")];
        assert_eq!(merge(Some(ip("10.0.0.1")), found, ""), want);
        let loopback = [ip("10.1.2.3"), ip("127.0.0.1"), ip("::1")];
        assert_eq!(merge(Some(ip("10.1.2.3")), Vec::new(), ""), loopback);
    }

    #[test]
    fn excluded_interfaces_leave_the_pod_address_alone() {
        let found = || on("eth0", &["10.0.0.1", "fd00::1"]);
        let merged = merge(Some(ip("10.0.0.1")), found(), "eth1, eth0");
        assert_eq!(merged, [ip("10.0.0.1")]);
        let loopback = [ip("127.0.0.1"), ip("::1")];
        assert_eq!(merge(None, found(), "eth0"), loopback, "never empty");
    }

    #[test]
    fn local_only_addresses_are_left_out() {
        for (text, want) in [
            ("10.0.0.1", true),
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("0.0.0.0", false),
            ("fe80::1", false),
            ("::1", false),
            ("2001:db8::1", true),
        ] {
            assert_eq!(routable(ip(text)), want, "{text}");
        }
    }
}
