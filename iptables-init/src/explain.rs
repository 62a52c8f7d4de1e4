//! `--explain`: what the rules of the given flags do to a packet. Evaluates the rule model that is
//! applied, for either backend and family, as the kernel would. Pure: reads and writes nothing.

pub mod packet;
pub mod ruleset;
mod table;
pub mod text;
pub mod walk;

use std::net::IpAddr;

use crate::host::{OwnerError, OwnerNames};
use crate::rules::{Family, Flavor, RuleConfig};
use packet::PacketError;
use ruleset::Ruleset;

/// The pod as far as routing is concerned.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// Interfaces and their addresses, in the kernel's order.
    pub addresses: Vec<(String, IpAddr)>,
    /// `net.ipv6.conf.lo.disable_ipv6=1`: no `::1`, no `::6`, no IPv6 route of TPROXY, and the kernel
    /// drops whatever IPv6 arrives on lo.
    pub loopback_ipv6_disabled: bool,
}

impl Pod {
    /// Whether the kernel delivers packets for `ip` to this pod.
    #[must_use]
    pub fn is_local(&self, ip: IpAddr) -> bool {
        // ::6 is put on lo whenever IPv6 rules are written and lo takes it.
        let passthrough = IpAddr::from([0, 0, 0, 0, 0, 0, 0, 6]);
        let on_lo = ip.is_loopback() || (ip == passthrough && !self.loopback_ipv6_disabled);
        on_lo || self.addresses.iter().any(|(_, own)| *own == ip)
    }

    /// The pod's first usable address of a family.
    #[must_use]
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        let mut all = self.addresses.iter().map(|(_, ip)| *ip);
        all.find(|ip| usable(*ip, family))
    }

    /// The first usable address of one interface, which is where REDIRECT sends what it receives.
    #[must_use]
    pub fn address_on(&self, dev: &str, family: Family) -> Option<IpAddr> {
        let mut own = self.addresses.iter().filter(|(name, _)| name == dev);
        own.find(|(_, ip)| usable(*ip, family)).map(|(_, ip)| *ip)
    }
}

/// Whether an address is of the family and more than the host's or the link's own.
fn usable(ip: IpAddr, family: Family) -> bool {
    match ip {
        IpAddr::V4(ip) => family == Family::V4 && !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => {
            family == Family::V6
                && !ip.is_loopback()
                && !ip.is_unicast_link_local()
                && ip.segments() != [0, 0, 0, 0, 0, 0, 0, 6]
        }
    }
}

/// Everything besides the packet that the answer depends on.
#[derive(Debug, Clone, Copy)]
pub struct PodFacts<'a> {
    /// Input of the rule model.
    pub config: &'a RuleConfig,
    /// Routing table of TPROXY.
    pub route_table: u32,
    /// The pod's addresses.
    pub pod: &'a Pod,
    /// Users and groups.
    pub names: &'a OwnerNames,
}

/// Why there is no explanation. The process exits with 1.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ExplainError {
    #[error(transparent)]
    Packet(#[from] PacketError),
    #[error(transparent)]
    Owner(#[from] OwnerError),
}

/// Answers one question: a packet in [`packet::GRAMMAR`], or `table` for every kind of packet that
/// the configuration tells apart.
///
/// # Errors
/// A malformed packet, or an owner that cannot be resolved.
pub fn explain(
    question: &str,
    facts: &PodFacts<'_>,
    flavor: Flavor,
) -> Result<String, ExplainError> {
    if question.trim() == "table" {
        return Ok(table::render(facts, flavor)?);
    }
    let packet = packet::parse(question, facts.pod, facts.names)?;
    let rules = Ruleset::load(facts, flavor, packet.family())?;
    let explanation = walk::walk(&packet, &rules, facts);
    Ok(text::render(&explanation, &rules))
}

#[cfg(test)]
mod tests;
