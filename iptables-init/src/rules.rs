//! The rule model: one list of typed rules from which every backend is rendered.
//! Pure: no IO, no environment, no clock. Order of the list is the contract.

mod build;

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

pub use build::{build_rules, dns_effective};

use crate::values::{Interface, OwnerId, PortRange, Selection};

/// Everything the rules depend on, already parsed and detected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleConfig {
    /// Outbound listener of the proxy (default 15001).
    pub proxy_port: u16,
    /// Inbound listener of the proxy (default 15006).
    pub inbound_capture_port: u16,
    /// HBONE port, never redirected in nat (default 15008).
    pub tunnel_port: u16,
    /// Users exempt from capture.
    pub proxy_uids: Vec<OwnerId>,
    /// Groups exempt from capture.
    pub proxy_gids: Vec<OwnerId>,
    /// Inbound through TPROXY in mangle instead of REDIRECT in nat.
    pub tproxy: bool,
    /// Redirect the calls to this host of every proxy user and group before the first of them is
    /// exempt. Off by default: the reference's order is the contract.
    pub proxy_owners_first: bool,
    /// TPROXY packet and connection mark (default 1337).
    pub mark: u32,
    /// Inbound ports to capture.
    pub inbound_ports: Selection<PortRange>,
    /// Inbound ports left alone; meaningful only with [`Selection::All`].
    pub inbound_exclude: Vec<PortRange>,
    /// Interfaces without capture in either direction.
    pub exclude_interfaces: Vec<Interface>,
    /// Interfaces whose incoming traffic is treated as outbound.
    pub kube_virt_interfaces: Vec<Interface>,
    /// Outbound ranges to capture.
    pub outbound_cidrs: Selection<IpNet>,
    /// Outbound ranges left alone.
    pub outbound_exclude_cidrs: Vec<IpNet>,
    /// Outbound TCP ports captured whatever the ranges say.
    pub outbound_ports: Vec<PortRange>,
    /// Outbound TCP and UDP ports left alone.
    pub outbound_exclude_ports: Vec<PortRange>,
    /// Groups whose traffic is captured.
    pub owner_groups: Selection<OwnerId>,
    /// Groups whose traffic is not captured; ignored unless `owner_groups` is `All`.
    pub owner_groups_exclude: Vec<OwnerId>,
    /// DNS capture was asked for.
    pub redirect_dns: bool,
    /// With `redirect_dns`: every port 53, not only the nameservers.
    pub capture_all_dns: bool,
    /// IPv4 nameservers of resolv.conf.
    pub nameservers_v4: Vec<Ipv4Addr>,
    /// IPv6 nameservers of resolv.conf.
    pub nameservers_v6: Vec<Ipv6Addr>,
    /// Drop packets that conntrack calls invalid.
    pub drop_invalid: bool,
    /// Write IPv6 rules.
    pub ipv6: bool,
    /// IPv4 range of this host (default 127.0.0.1/32).
    pub loopback_v4: IpNet,
}

/// Netfilter table, in the order of the iptables text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Packet marks and TPROXY.
    Mangle,
    /// Redirection.
    Nat,
    /// Conntrack zones.
    Raw,
}

/// Chain, built-in or our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(
    missing_docs,
    reason = "the variants are the chain names of the two rule languages"
)]
pub enum Chain {
    Prerouting,
    Output,
    Inbound,
    Redirect,
    InRedirect,
    OutputChain,
    OutputDns,
    Divert,
    Tproxy,
    Drop,
}

impl Chain {
    /// Name in iptables.
    #[must_use]
    pub const fn iptables_name(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Output => "OUTPUT",
            Self::Inbound => "ISTIO_INBOUND",
            Self::Redirect => "ISTIO_REDIRECT",
            Self::InRedirect => "ISTIO_IN_REDIRECT",
            Self::OutputChain => "ISTIO_OUTPUT",
            Self::OutputDns => "ISTIO_OUTPUT_DNS",
            Self::Divert => "ISTIO_DIVERT",
            Self::Tproxy => "ISTIO_TPROXY",
            Self::Drop => "ISTIO_DROP",
        }
    }

    /// Name in the `inet istio-proxy-*` tables.
    #[must_use]
    pub const fn nft_name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
            Self::Inbound => "istio-inbound",
            Self::Redirect => "istio-redirect",
            Self::InRedirect => "istio-in-redirect",
            Self::OutputChain => "istio-output",
            Self::OutputDns => "istio-output-dns",
            Self::Divert => "istio-divert",
            Self::Tproxy => "istio-tproxy",
            Self::Drop => "istio-drop",
        }
    }

    /// Whether the kernel owns the chain.
    #[must_use]
    pub const fn is_builtin(self) -> bool {
        matches!(self, Self::Prerouting | Self::Output)
    }
}

/// Address families a rule is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// IPv4, and IPv6 when it is on.
    Both,
    /// IPv4 only.
    V4,
    /// IPv6 only, dropped when it is off.
    V6,
}

impl Scope {
    /// Whether the rule exists in `family`.
    #[must_use]
    pub fn covers(self, family: Family) -> bool {
        match self {
            Self::Both => true,
            Self::V4 => family == Family::V4,
            Self::V6 => family == Family::V6,
        }
    }
}

/// Address family of one rendered rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Where a rule goes in its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At the end.
    Append,
    /// Before the rule that has this 1-based position at that moment.
    Insert(u8),
}

/// What an address is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addr {
    /// This host: the configured IPv4 range or `::1/128`.
    Loopback,
    /// Source of the proxy's inbound passthrough: `127.0.0.6/32` or `::6/128`.
    Passthrough,
    /// A fixed range.
    Net(IpNet),
}

/// Ports of one comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// One port or range.
    Range(PortRange),
    /// Two separate ports.
    Pair(u16, u16),
}

/// One condition. `bool` fields called `not` invert it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields repeat the variant's words")]
pub enum Match {
    /// Incoming interface.
    InInterface(Interface),
    /// Outgoing interface.
    OutInterface(Interface),
    /// The loopback interface as incoming one.
    InLo,
    /// The loopback interface as outgoing one.
    OutLo,
    /// TCP, spelled out in both languages.
    Tcp,
    /// TCP that the nft text leaves to the port match.
    TcpImplied,
    /// UDP; always with a port match.
    Udp,
    /// Source address.
    Source(Addr),
    /// Destination address.
    Destination { not: bool, addr: Addr },
    /// Destination port.
    DestinationPort { not: bool, ports: Ports },
    /// Source port.
    SourcePort(u16),
    /// Conntrack RELATED or ESTABLISHED.
    Established,
    /// Conntrack INVALID.
    Invalid,
    /// Packet mark.
    Mark { not: bool, mark: u32 },
    /// Connection mark.
    ConnMark(u32),
    /// Socket user.
    User { not: bool, id: OwnerId },
    /// Socket group.
    Group { not: bool, id: OwnerId },
}

/// What happens to a matching packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Back to the calling chain.
    Return,
    /// Accept.
    Accept,
    /// Drop.
    Drop,
    /// Continue in another chain.
    Jump(Chain),
    /// NAT to a local port.
    Redirect(u16),
    /// Set the packet mark.
    SetMark(u32),
    /// Hand to the transparent socket on `port` and set `mark`.
    Tproxy {
        /// Port of the listener.
        port: u16,
        /// Mark that routes the packet to loopback.
        mark: u32,
    },
    /// Copy the packet mark to the connection.
    SaveMark,
    /// Copy the connection mark to the packet.
    RestoreMark,
    /// Conntrack zone.
    Zone(u16),
}

/// One rule; `matches` are in iptables argument order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Table.
    pub table: Table,
    /// Chain.
    pub chain: Chain,
    /// Families.
    pub scope: Scope,
    /// Position.
    pub place: Place,
    /// Conditions, all of which must hold.
    pub matches: Vec<Match>,
    /// Verdict or statement.
    pub action: Action,
}

/// The two rule languages differ on purpose in three places; see [`build_rules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavor {
    /// One rule set per family in the kernel's ip and ip6 tables.
    Iptables,
    /// One rule set for both families in `inet` tables.
    Nft,
}
