//! The rule sequence. Each step corresponds to one row of the reference's capture order; an
//! earlier row must win over a later one, so steps may never be reordered.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Action, Addr, Chain, Flavor, Match, Place, Ports, Rule, RuleConfig, Scope, Table};
use crate::values::{OwnerId, PortRange, Selection};

/// Port of the agent's DNS server; fixed in the reference.
const DNS_PORT: u16 = 15053;
/// Mark of loopback packets that come from the proxy in TPROXY mode; fixed in the reference.
const PROXY_LOOPBACK_MARK: u32 = 1338;
/// Conntrack zone of the proxy's own DNS queries.
const ZONE_PROXY: u16 = 1;
/// Conntrack zone of the applications' DNS queries.
const ZONE_APP: u16 = 2;

/// Whether DNS rules are written. Asked for without a usable nameserver means "off" (the caller
/// warns). In `inet` tables a nameserver of a family that is off is not usable; the iptables
/// rules keep the reference's behaviour, which counts it.
#[must_use]
pub fn dns_effective(config: &RuleConfig, flavor: Flavor) -> bool {
    let v6_counts = flavor == Flavor::Iptables || config.ipv6;
    config.redirect_dns
        && (config.capture_all_dns
            || !config.nameservers_v4.is_empty()
            || (v6_counts && !config.nameservers_v6.is_empty()))
}

/// Builds the whole sequence. The flavours differ in: dropping invalid packets (TCP only in nft),
/// the meaning of "a nameserver exists" ([`dns_effective`]), and the DNS jumps, which `inet`
/// tables write once for both families.
#[must_use]
pub fn build_rules(config: &RuleConfig, flavor: Flavor) -> Vec<Rule> {
    let mut b = Builder {
        config,
        flavor,
        dns: dns_effective(config, flavor),
        rules: Vec::new(),
    };
    b.exclude_interfaces();
    b.kube_virt_returns();
    b.drop_invalid();
    b.redirect_targets();
    b.inbound();
    b.outbound_entry();
    b.proxy_owners();
    b.owner_groups();
    if b.dns {
        b.dns_jumps();
        b.dns_redirects();
        b.dns_zones();
    }
    b.outbound_ranges();
    if config.tproxy {
        b.tproxy_marks();
    }
    b.rules
}

/// Which owner match a loop over users and groups produces.
#[derive(Clone, Copy)]
enum OwnerKind {
    User,
    Group,
}

impl OwnerKind {
    fn matching(self, not: bool, id: &OwnerId) -> Match {
        let id = id.clone();
        match self {
            Self::User => Match::User { not, id },
            Self::Group => Match::Group { not, id },
        }
    }
}

const NOT_LOOPBACK: Match = Match::Destination {
    not: true,
    addr: Addr::Loopback,
};

const fn dport(port: u16) -> Match {
    Match::DestinationPort {
        not: false,
        ports: Ports::Range(PortRange::single(port)),
    }
}

const fn dport_not(port: u16) -> Match {
    Match::DestinationPort {
        not: true,
        ports: Ports::Range(PortRange::single(port)),
    }
}

const fn dports(range: PortRange) -> Match {
    Match::DestinationPort {
        not: false,
        ports: Ports::Range(range),
    }
}

const fn to(net: IpNet) -> Match {
    Match::Destination {
        not: false,
        addr: Addr::Net(net),
    }
}

struct Builder<'a> {
    config: &'a RuleConfig,
    flavor: Flavor,
    dns: bool,
    rules: Vec<Rule>,
}

impl Builder<'_> {
    fn push(&mut self, table: Table, chain: Chain, matches: Vec<Match>, action: Action) {
        self.push_scoped(Scope::Both, table, chain, matches, action);
    }

    fn push_scoped(
        &mut self,
        scope: Scope,
        table: Table,
        chain: Chain,
        matches: Vec<Match>,
        action: Action,
    ) {
        self.rules.push(Rule {
            table,
            chain,
            scope,
            place: Place::Append,
            matches,
            action,
        });
    }

    fn insert(
        &mut self,
        scope: Scope,
        at: (Table, Chain, u8),
        matches: Vec<Match>,
        action: Action,
    ) {
        let (table, chain, position) = at;
        self.rules.push(Rule {
            table,
            chain,
            scope,
            place: Place::Insert(position),
            matches,
            action,
        });
    }

    /// Steps 1 and 2: interface exceptions win over everything.
    fn exclude_interfaces(&mut self) {
        let config = self.config;
        let tables: &[Table] = if config.tproxy {
            &[Table::Nat, Table::Mangle]
        } else {
            &[Table::Nat]
        };
        for table in tables {
            for interface in &config.exclude_interfaces {
                let input = Match::InInterface(interface.clone());
                let output = Match::OutInterface(interface.clone());
                self.push(*table, Chain::Prerouting, vec![input], Action::Return);
                self.push(*table, Chain::Output, vec![output], Action::Return);
            }
        }
    }

    /// Step 3.
    fn kube_virt_returns(&mut self) {
        let config = self.config;
        for interface in &config.kube_virt_interfaces {
            let input = Match::InInterface(interface.clone());
            self.insert(
                Scope::Both,
                (Table::Nat, Chain::Prerouting, 1),
                vec![input],
                Action::Return,
            );
        }
    }

    /// Step 4.
    fn drop_invalid(&mut self) {
        if !self.config.drop_invalid {
            return;
        }
        let matches = match self.flavor {
            Flavor::Iptables => vec![Match::Invalid],
            Flavor::Nft => vec![Match::Tcp, Match::Invalid],
        };
        let jump = Action::Jump(Chain::Drop);
        self.push(Table::Mangle, Chain::Prerouting, matches, jump);
        self.push(Table::Mangle, Chain::Drop, vec![], Action::Drop);
    }

    /// Steps 5 to 7: HBONE stays untouched; the two redirect targets.
    fn redirect_targets(&mut self) {
        let config = self.config;
        let tunnel = vec![Match::Tcp, dport(config.tunnel_port)];
        self.push(Table::Nat, Chain::Inbound, tunnel, Action::Return);
        let out = Action::Redirect(config.proxy_port);
        self.push(Table::Nat, Chain::Redirect, vec![Match::Tcp], out);
        let inbound = Action::Redirect(config.inbound_capture_port);
        self.push(Table::Nat, Chain::InRedirect, vec![Match::Tcp], inbound);
    }

    /// Step 8.
    fn inbound(&mut self) {
        let config = self.config;
        if config.inbound_ports.is_none() {
            return;
        }
        let (mark, port) = (config.mark, config.inbound_capture_port);
        let table = if config.tproxy {
            self.push(Table::Mangle, Chain::Divert, vec![], Action::SetMark(mark));
            self.push(Table::Mangle, Chain::Divert, vec![], Action::Accept);
            let matches = vec![NOT_LOOPBACK, Match::Tcp];
            let action = Action::Tproxy { port, mark };
            self.push(Table::Mangle, Chain::Tproxy, matches, action);
            Table::Mangle
        } else {
            Table::Nat
        };
        let jump = Action::Jump(Chain::Inbound);
        self.push(table, Chain::Prerouting, vec![Match::Tcp], jump);
        if config.inbound_ports == Selection::All {
            for range in &config.inbound_exclude {
                let matches = vec![Match::Tcp, dports(*range)];
                self.push(table, Chain::Inbound, matches, Action::Return);
            }
            self.capture_inbound(table, None);
        }
        for range in config.inbound_ports.items() {
            self.capture_inbound(table, Some(*range));
        }
    }

    fn capture_inbound(&mut self, table: Table, range: Option<PortRange>) {
        let mut matches = vec![Match::Tcp];
        matches.extend(range.map(dports));
        if !self.config.tproxy {
            let jump = Action::Jump(Chain::InRedirect);
            self.push(table, Chain::Inbound, matches, jump);
            return;
        }
        let mut established = matches.clone();
        established.push(Match::Established);
        let divert = Action::Jump(Chain::Divert);
        self.push(table, Chain::Inbound, established, divert);
        let tproxy = Action::Jump(Chain::Tproxy);
        self.push(table, Chain::Inbound, matches, tproxy);
    }

    /// Steps 9 to 11.
    fn outbound_entry(&mut self) {
        let config = self.config;
        let jump = Action::Jump(Chain::OutputChain);
        self.push(Table::Nat, Chain::Output, vec![], jump);
        for range in &config.outbound_exclude_ports {
            for protocol in [Match::TcpImplied, Match::Udp] {
                let matches = vec![protocol, dports(*range)];
                self.push(Table::Nat, Chain::OutputChain, matches, Action::Return);
            }
        }
        let own = vec![Match::OutLo, Match::Source(Addr::Passthrough)];
        self.push(Table::Nat, Chain::OutputChain, own, Action::Return);
    }

    /// Steps 12 and 13. The order (all three rules of one owner, then the next owner) is golden
    /// although it makes the first rule of every later owner unreachable; the other order is
    /// there for a proxy that runs as another user than the listed ones.
    fn proxy_owners(&mut self) {
        let config = self.config;
        let users = config.proxy_uids.iter().map(|id| (OwnerKind::User, id));
        let groups = config.proxy_gids.iter().map(|id| (OwnerKind::Group, id));
        let owners = users.chain(groups);
        if config.proxy_owners_first {
            for (kind, id) in owners.clone() {
                self.capture_own_calls(kind, id);
            }
        }
        for (kind, id) in owners {
            if !config.proxy_owners_first {
                self.capture_own_calls(kind, id);
            }
            self.exempt_owner(kind, id);
        }
    }

    fn capture_own_calls(&mut self, kind: OwnerKind, id: &OwnerId) {
        let tunnel = self.config.tunnel_port;
        // A proxy query to a resolver on this host must not loop through the proxy itself.
        let spared = match (self.dns, kind) {
            (true, OwnerKind::User) => Match::DestinationPort {
                not: true,
                ports: Ports::Pair(53, tunnel),
            },
            _ => dport_not(tunnel),
        };
        let to_self = vec![
            Match::OutLo,
            NOT_LOOPBACK,
            Match::Tcp,
            spared,
            kind.matching(false, id),
        ];
        let jump = Action::Jump(Chain::InRedirect);
        self.push(Table::Nat, Chain::OutputChain, to_self, jump);
    }

    fn exempt_owner(&mut self, kind: OwnerKind, id: &OwnerId) {
        if !self.includes_loopback() {
            let mut direct = vec![Match::OutLo];
            if self.dns {
                direct.extend([Match::Tcp, dport_not(53)]);
            }
            direct.push(kind.matching(true, id));
            self.push(Table::Nat, Chain::OutputChain, direct, Action::Return);
        }
        let exempt = vec![kind.matching(false, id)];
        self.push(Table::Nat, Chain::OutputChain, exempt, Action::Return);
    }

    fn includes_loopback(&self) -> bool {
        self.config
            .outbound_cidrs
            .items()
            .iter()
            .any(|net| net.addr().is_loopback())
    }

    /// Step 14.
    fn owner_groups(&mut self) {
        let config = self.config;
        match &config.owner_groups {
            Selection::All => {
                for id in &config.owner_groups_exclude {
                    let matches = vec![OwnerKind::Group.matching(false, id)];
                    self.push(Table::Nat, Chain::OutputChain, matches, Action::Return);
                }
            }
            other => {
                let matches = other
                    .items()
                    .iter()
                    .map(|id| OwnerKind::Group.matching(true, id))
                    .collect();
                self.push(Table::Nat, Chain::OutputChain, matches, Action::Return);
            }
        }
    }

    /// Families in which a nameserver (or all of them) is captured.
    fn dns_scope(&self) -> Scope {
        let config = self.config;
        let v4 = config.capture_all_dns || !config.nameservers_v4.is_empty();
        let v6 = config.capture_all_dns || !config.nameservers_v6.is_empty();
        match (self.flavor, v4, v6) {
            (Flavor::Nft, ..) | (_, true, true) => Scope::Both,
            (_, true, false) => Scope::V4,
            (_, false, _) => Scope::V6,
        }
    }

    fn nameservers(&self) -> Vec<(Scope, IpNet)> {
        let v4 = self.config.nameservers_v4.iter();
        let v6 = self.config.nameservers_v6.iter();
        v4.map(|s| (Scope::V4, IpNet::from(IpAddr::V4(*s))))
            .chain(v6.map(|s| (Scope::V6, IpNet::from(IpAddr::V6(*s)))))
            .collect()
    }

    /// Step 15.
    fn dns_jumps(&mut self) {
        let jump = Action::Jump(Chain::OutputDns);
        self.push(Table::Raw, Chain::Output, vec![], jump);
        let scope = self.dns_scope();
        self.push_scoped(scope, Table::Nat, Chain::OutputChain, vec![], jump);
    }

    /// Step 16.
    fn dns_redirects(&mut self) {
        let redirect = Action::Redirect(DNS_PORT);
        let (table, chain) = (Table::Nat, Chain::OutputDns);
        if self.config.capture_all_dns {
            self.push(table, chain, vec![Match::Tcp, dport(53)], redirect);
            self.push(table, chain, vec![Match::Udp, dport(53)], redirect);
            return;
        }
        for protocol in [Match::TcpImplied, Match::Udp] {
            for (scope, server) in self.nameservers() {
                let matches = vec![protocol.clone(), dport(53), to(server)];
                self.push_scoped(scope, table, chain, matches, redirect);
            }
        }
    }

    /// Steps 17 and 18: queries of the proxy get their own zone first, because the first zone
    /// given to a packet stays.
    fn dns_zones(&mut self) {
        let config = self.config;
        let raw = Table::Raw;
        let users = config.proxy_uids.iter().map(|id| (OwnerKind::User, id));
        let groups = config.proxy_gids.iter().map(|id| (OwnerKind::Group, id));
        for (kind, id) in users.chain(groups) {
            let owner = kind.matching(false, id);
            let query = vec![Match::Udp, dport(53), owner.clone()];
            self.push(raw, Chain::OutputDns, query, Action::Zone(ZONE_PROXY));
            let answer = vec![Match::Udp, Match::SourcePort(DNS_PORT), owner];
            self.push(raw, Chain::OutputDns, answer, Action::Zone(ZONE_APP));
        }
        let jump = Action::Jump(Chain::Inbound);
        let scope = self.dns_scope();
        self.push_scoped(scope, raw, Chain::Prerouting, vec![], jump);
        if config.capture_all_dns {
            let query = vec![Match::Udp, dport(53)];
            self.push(raw, Chain::OutputDns, query, Action::Zone(ZONE_APP));
            let answer = vec![Match::Udp, Match::SourcePort(53)];
            self.push(raw, Chain::Inbound, answer, Action::Zone(ZONE_PROXY));
            return;
        }
        for (scope, server) in self.nameservers() {
            let query = vec![Match::Udp, dport(53), to(server)];
            let zone = Action::Zone(ZONE_APP);
            self.push_scoped(scope, raw, Chain::OutputDns, query, zone);
            let from = Match::Source(Addr::Net(server));
            let answer = vec![Match::Udp, Match::SourcePort(53), from];
            let zone = Action::Zone(ZONE_PROXY);
            self.push_scoped(scope, raw, Chain::Inbound, answer, zone);
        }
    }

    /// Steps 19 to 22.
    fn outbound_ranges(&mut self) {
        let config = self.config;
        let (nat, chain) = (Table::Nat, Chain::OutputChain);
        let local = Match::Destination {
            not: false,
            addr: Addr::Loopback,
        };
        self.push(nat, chain, vec![local], Action::Return);
        for net in by_family(&config.outbound_exclude_cidrs) {
            self.push_scoped(
                family_scope(net),
                nat,
                chain,
                vec![to(*net)],
                Action::Return,
            );
        }
        let capture = Action::Jump(Chain::Redirect);
        for range in &config.outbound_ports {
            let matches = vec![Match::TcpImplied, dports(*range)];
            self.push(nat, chain, matches, capture);
        }
        let entry = (nat, Chain::Prerouting, 1);
        if config.outbound_cidrs == Selection::All {
            self.push(nat, chain, vec![], capture);
            for interface in &config.kube_virt_interfaces {
                let input = Match::InInterface(interface.clone());
                self.insert(Scope::Both, entry, vec![input], capture);
            }
        }
        for net in by_family(config.outbound_cidrs.items()) {
            let scope = family_scope(net);
            for interface in &config.kube_virt_interfaces {
                let matches = vec![Match::InInterface(interface.clone()), to(*net)];
                self.insert(scope, entry, matches, capture);
            }
            self.push_scoped(scope, nat, chain, vec![to(*net)], capture);
        }
    }

    /// Step 23: keep answers and the proxy's own loopback traffic out of a second interception.
    fn tproxy_marks(&mut self) {
        let config = self.config;
        let mark = config.mark;
        let mangle = Table::Mangle;
        let marked = Match::Mark { not: false, mark };
        let matches = vec![Match::Tcp, marked.clone()];
        self.push(mangle, Chain::Prerouting, matches, Action::SaveMark);
        let matches = vec![Match::Tcp, Match::OutLo, marked.clone()];
        self.push(mangle, Chain::Output, matches, Action::Return);
        let users = config.proxy_uids.iter().map(|id| (OwnerKind::User, id));
        let groups = config.proxy_gids.iter().map(|id| (OwnerKind::Group, id));
        for (kind, id) in users.chain(groups) {
            let owner = kind.matching(false, id);
            let matches = vec![NOT_LOOPBACK, Match::Tcp, Match::OutLo, owner];
            let action = Action::SetMark(PROXY_LOOPBACK_MARK);
            self.push(mangle, Chain::Output, matches, action);
        }
        let matches = vec![Match::Tcp, Match::ConnMark(mark)];
        self.push(mangle, Chain::Output, matches, Action::RestoreMark);
        let from_proxy = Match::Mark {
            not: true,
            mark: PROXY_LOOPBACK_MARK,
        };
        let early = [
            vec![Match::Tcp, marked],
            vec![Match::Tcp, Match::Source(Addr::Passthrough), Match::InLo],
            vec![Match::Tcp, Match::InLo, from_proxy],
        ];
        for (position, matches) in (1..).zip(early) {
            let at = (mangle, Chain::Inbound, position);
            self.insert(Scope::Both, at, matches, Action::Return);
        }
    }
}

fn by_family(nets: &[IpNet]) -> impl Iterator<Item = &IpNet> {
    let v4 = nets.iter().filter(|net| matches!(net, IpNet::V4(_)));
    let v6 = nets.iter().filter(|net| matches!(net, IpNet::V6(_)));
    v4.chain(v6)
}

const fn family_scope(net: &IpNet) -> Scope {
    match net {
        IpNet::V4(_) => Scope::V4,
        IpNet::V6(_) => Scope::V6,
    }
}
