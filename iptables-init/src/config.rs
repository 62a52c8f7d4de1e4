//! From settings to a checked configuration: value parsing, host addresses, nameservers, proxy
//! owner defaults. Reads the environment of the process (interfaces, resolv.conf, passwd) through
//! [`Host`] so that tests can stand in; writes nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use crate::cli::Settings;
use crate::rules::RuleConfig;
use crate::values::{self, ValueError};

/// Why no configuration could be made. The process exits with 1.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value does not parse.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// No interface has a usable address.
    #[error("no valid local IP address found")]
    NoAddress,
    /// The interfaces could not be listed.
    #[error("failed to list interface addresses: {0}")]
    Interfaces(#[source] std::io::Error),
    /// The nameserver file could not be read.
    #[error("failed to load /etc/resolv.conf: {0}")]
    ResolvConf(#[source] std::io::Error),
}

/// What the configuration asks of the machine.
pub trait Host {
    /// Addresses of all interfaces, IPv4 of every interface first, then IPv6 (kernel dump order).
    fn addresses(&self) -> Result<Vec<IpAddr>, std::io::Error>;
    /// Content of `/etc/resolv.conf`.
    fn resolv_conf(&self) -> Result<String, std::io::Error>;
    /// UID of a passwd user.
    fn user_id(&self, name: &str) -> Option<u32>;
}

/// Which iptables variant is forced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The x_tables kernel interface.
    Legacy,
    /// The nf_tables kernel interface.
    Nft,
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Settings with proxy UID and GID filled in.
    pub settings: Settings,
    /// Input of the rule model.
    pub rules: RuleConfig,
    /// Routing table of TPROXY.
    pub route_table: u32,
    /// Address of this host that decided the family.
    pub host_ip: IpAddr,
    /// Variant demanded by FORCE_IPTABLES_BINARY.
    pub forced: Option<Variant>,
}

impl Config {
    /// Parses and detects. Runs for dry-run and skip-rule-apply too.
    ///
    /// # Errors
    /// The first value or fact that is missing or refused.
    pub fn build(mut settings: Settings, host: &dyn Host) -> Result<Self, ConfigError> {
        if settings.proxy_uid.is_empty() {
            let uid = host.user_id(&settings.envoy_user).unwrap_or(1337);
            settings.proxy_uid = uid.to_string();
        }
        if settings.proxy_gid.is_empty() {
            settings.proxy_gid.clone_from(&settings.proxy_uid);
        }
        let addresses = host.addresses().map_err(ConfigError::Interfaces)?;
        let (host_ip, ipv6) =
            select_host_ip(&addresses, settings.dual_stack).ok_or(ConfigError::NoAddress)?;
        let (v4, v6) = if settings.redirect_dns && !settings.capture_all_dns {
            parse_nameservers(&host.resolv_conf().map_err(ConfigError::ResolvConf)?)
        } else {
            (Vec::new(), Vec::new())
        };
        let s = &settings;
        let forced = match s.force_iptables_binary.as_str() {
            "" => None,
            "legacy" => Some(Variant::Legacy),
            "nft" => Some(Variant::Nft),
            other => return Err(ValueError::Binary(other.to_owned()).into()),
        };
        let rules = RuleConfig {
            proxy_port: values::parse_port("PROXY_PORT", &s.envoy_port)?,
            inbound_capture_port: values::parse_port(
                "PROXY_INBOUND_CAPTURE_PORT",
                &s.inbound_capture_port,
            )?,
            tunnel_port: values::parse_port("PROXY_TUNNEL_PORT", &s.inbound_tunnel_port)?,
            proxy_uids: values::parse_owners("PROXY_UID", &s.proxy_uid)?,
            proxy_gids: values::parse_owners("PROXY_GID", &s.proxy_gid)?,
            proxy_owners_first: s.proxy_owners_first,
            tproxy: s.mode == "TPROXY",
            mark: values::parse_u32("INBOUND_TPROXY_MARK", &s.tproxy_mark)?,
            inbound_ports: values::parse_port_selection("INBOUND_PORTS_INCLUDE", &s.inbound_ports)?,
            inbound_exclude: values::parse_ports(
                "INBOUND_PORTS_EXCLUDE",
                &s.inbound_exclude_ports,
            )?,
            exclude_interfaces: values::parse_interfaces(
                "EXCLUDE_INTERFACES",
                &s.exclude_interfaces,
            )?,
            kube_virt_interfaces: values::parse_interfaces(
                "KUBE_VIRT_INTERFACES",
                &s.kube_virt_interfaces,
            )?,
            outbound_cidrs: values::parse_cidr_selection(
                "OUTBOUND_IP_RANGES_INCLUDE",
                &s.service_cidr,
            )?,
            outbound_exclude_cidrs: values::parse_cidrs(
                "OUTBOUND_IP_RANGES_EXCLUDE",
                &s.service_exclude_cidr,
            )?,
            outbound_ports: values::parse_ports("OUTBOUND_PORTS_INCLUDE", &s.outbound_ports)?,
            outbound_exclude_ports: values::parse_ports(
                "OUTBOUND_PORTS_EXCLUDE",
                &s.outbound_ports_exclude,
            )?,
            owner_groups: values::parse_group_selection(
                "OUTBOUND_OWNER_GROUPS_INCLUDE",
                &s.owner_groups,
            )?,
            owner_groups_exclude: values::parse_owners(
                "OUTBOUND_OWNER_GROUPS_EXCLUDE",
                &s.owner_groups_exclude,
            )?,
            redirect_dns: s.redirect_dns,
            capture_all_dns: s.capture_all_dns,
            nameservers_v4: v4,
            nameservers_v6: v6,
            drop_invalid: s.drop_invalid,
            ipv6,
            loopback_v4: values::parse_loopback_cidr(&s.loopback_cidr)?,
        };
        let route_table = values::parse_u32("INBOUND_TPROXY_ROUTE_TABLE", &s.tproxy_route_table)?;
        Ok(Self {
            settings,
            rules,
            route_table,
            host_ip,
            forced,
        })
    }
}

impl Config {
    /// In CNI mode the iptables programs lock the namespace they work on, not the node.
    #[must_use]
    pub fn xtables_lock(&self) -> Option<PathBuf> {
        let path = &self.settings.network_namespace;
        (self.settings.cni_mode && !path.is_empty()).then(|| path.into())
    }
}

/// The address that decides the family, and whether IPv6 rules are wanted. Without dual stack the
/// first usable address decides; with it the walk goes on to the first IPv6 address.
fn select_host_ip(addresses: &[IpAddr], dual_stack: bool) -> Option<(IpAddr, bool)> {
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
    };
    let mut found = addresses.iter().map(IpAddr::to_canonical).filter(usable);
    let first = found.next()?;
    let ipv6 = first.is_ipv6() || (dual_stack && found.any(|ip| ip.is_ipv6()));
    Some((first, ipv6))
}

/// `nameserver` lines, split by family; unparsable ones are skipped, a zone is dropped with them.
fn parse_nameservers(text: &str) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        match words.next().map(str::parse::<IpAddr>) {
            Some(Ok(IpAddr::V4(ip))) => v4.push(ip),
            Some(Ok(IpAddr::V6(ip))) => v6.push(ip),
            _ => {}
        }
    }
    (v4, v6)
}

#[cfg(test)]
mod tests;
