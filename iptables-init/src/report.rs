//! The two dumps at the start of every run, in the reference's names and order; bug reports and
//! people grep them.

use std::fmt::{Display, Write as _};

use crate::config::Config;
use crate::rules::{Flavor, dns_effective};

/// `Istio … environment:` with the variables the reference shows.
#[must_use]
pub fn environment(native: bool, var: &dyn Fn(&str) -> Option<String>) -> String {
    let backend = if native { "nftables" } else { "iptables" };
    let mut out = format!("Istio {backend} environment:\n");
    for name in [
        "ENVOY_PORT",
        "INBOUND_CAPTURE_PORT",
        "ISTIO_INBOUND_INTERCEPTION_MODE",
        "ISTIO_INBOUND_TPROXY_ROUTE_TABLE",
        "ISTIO_INBOUND_PORTS",
        "ISTIO_OUTBOUND_PORTS",
        "ISTIO_LOCAL_EXCLUDE_PORTS",
        "ISTIO_EXCLUDE_INTERFACES",
        "ISTIO_SERVICE_CIDR",
        "ISTIO_SERVICE_EXCLUDE_CIDR",
        "ISTIO_META_DNS_CAPTURE",
        "INVALID_DROP",
    ] {
        let _ = writeln!(out, "{name}={}", var(name).unwrap_or_default());
    }
    out
}

/// `Istio config:` with every resolved setting.
#[must_use]
pub fn config(config: &Config) -> String {
    let s = &config.settings;
    let flavor = if s.native_nftables {
        Flavor::Nft
    } else {
        Flavor::Iptables
    };
    let dns = dns_effective(&config.rules, flavor);
    let v4 = join(&config.rules.nameservers_v4);
    let v6 = join(&config.rules.nameservers_v6);
    let servers = format!("[{v4}],[{v6}]");
    let lines: [(&str, &dyn Display); 31] = [
        ("PROXY_PORT", &s.envoy_port),
        ("PROXY_INBOUND_CAPTURE_PORT", &s.inbound_capture_port),
        ("PROXY_TUNNEL_PORT", &s.inbound_tunnel_port),
        ("PROXY_UID", &s.proxy_uid),
        ("PROXY_GID", &s.proxy_gid),
        ("INBOUND_INTERCEPTION_MODE", &s.mode),
        ("INBOUND_TPROXY_MARK", &s.tproxy_mark),
        ("INBOUND_TPROXY_ROUTE_TABLE", &s.tproxy_route_table),
        ("INBOUND_PORTS_INCLUDE", &s.inbound_ports),
        ("INBOUND_PORTS_EXCLUDE", &s.inbound_exclude_ports),
        ("OUTBOUND_OWNER_GROUPS_INCLUDE", &s.owner_groups),
        ("OUTBOUND_OWNER_GROUPS_EXCLUDE", &s.owner_groups_exclude),
        ("OUTBOUND_IP_RANGES_INCLUDE", &s.service_cidr),
        ("OUTBOUND_IP_RANGES_EXCLUDE", &s.service_exclude_cidr),
        ("OUTBOUND_PORTS_INCLUDE", &s.outbound_ports),
        ("OUTBOUND_PORTS_EXCLUDE", &s.outbound_ports_exclude),
        ("KUBE_VIRT_INTERFACES", &s.kube_virt_interfaces),
        ("ENABLE_INBOUND_IPV6", &config.rules.ipv6),
        ("DUAL_STACK", &s.dual_stack),
        ("DNS_CAPTURE", &dns),
        ("DROP_INVALID", &s.drop_invalid),
        ("CAPTURE_ALL_DNS", &s.capture_all_dns),
        ("DNS_SERVERS", &servers),
        ("NETWORK_NAMESPACE", &s.network_namespace),
        ("CNI_MODE", &s.cni_mode),
        ("EXCLUDE_INTERFACES", &s.exclude_interfaces),
        ("RECONCILE", &s.reconcile),
        ("CLEANUP_ONLY", &s.cleanup_only),
        ("FORCE_APPLY", &s.force_apply),
        ("NATIVE_NFTABLES", &s.native_nftables),
        ("FORCE_IPTABLES_BINARY", &s.force_iptables_binary),
    ];
    let mut out = String::from("Istio config:\n");
    for (name, value) in lines {
        let _ = writeln!(out, "{name}={value}");
    }
    out
}

fn join<T: Display>(items: &[T]) -> String {
    let words: Vec<String> = items.iter().map(ToString::to_string).collect();
    words.join(" ")
}
