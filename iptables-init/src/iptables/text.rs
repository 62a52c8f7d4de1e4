//! Renders the rule model as `iptables-restore --noflush` input. Pure.

use std::fmt::Write as _;

use ipnet::IpNet;

use crate::rules::{Action, Addr, Chain, Family, Match, Place, Ports, Rule, RuleConfig, Table};
use crate::values::{Interface, PortRange};

const TABLES: [Table; 3] = [Table::Mangle, Table::Nat, Table::Raw];

/// Table name in restore and save text.
#[must_use]
pub const fn table_name(table: Table) -> &'static str {
    match table {
        Table::Mangle => "mangle",
        Table::Nat => "nat",
        Table::Raw => "raw",
    }
}

/// One table of one family: the lines between `* table` and `COMMIT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableText {
    /// Which table.
    pub table: Table,
    /// Own chains in creation order.
    pub chains: Vec<&'static str>,
    /// Rule lines, `-A CHAIN …` or `-I CHAIN n …`.
    pub rules: Vec<String>,
}

/// Renders one family, tables in alphabetical order, tables without rules left out.
#[must_use]
pub fn render_tables(rules: &[Rule], config: &RuleConfig, family: Family) -> Vec<TableText> {
    let in_family = |rule: &&Rule| rule.scope.covers(family);
    let mut tables = Vec::new();
    for table in TABLES {
        let owned: Vec<&Rule> = rules
            .iter()
            .filter(|rule| rule.table == table)
            .filter(in_family)
            .collect();
        if owned.is_empty() {
            continue;
        }
        tables.push(TableText {
            table,
            chains: own_chains(&owned),
            rules: owned
                .iter()
                .map(|rule| render_rule(rule, config, family))
                .collect(),
        });
    }
    tables
}

/// The restore input of one family; empty when the family has no rules.
#[must_use]
pub fn render_restore(tables: &[TableText]) -> String {
    let mut out = String::new();
    for table in tables {
        // The blank after the asterisk is part of the reference's text.
        let _ = writeln!(out, "* {}", table_name(table.table));
        for chain in &table.chains {
            let _ = writeln!(out, "-N {chain}");
        }
        for rule in &table.rules {
            let _ = writeln!(out, "{rule}");
        }
        out.push_str("COMMIT\n");
    }
    out
}

/// Chains that own rules in order of first appearance, then chains that are only jumped to.
fn own_chains(rules: &[&Rule]) -> Vec<&'static str> {
    let mut chains: Vec<Chain> = Vec::new();
    let owners = rules.iter().map(|rule| rule.chain);
    let targets = rules.iter().filter_map(|rule| match rule.action {
        Action::Jump(chain) => Some(chain),
        _ => None,
    });
    for chain in owners.chain(targets) {
        if !chain.is_builtin() && !chains.contains(&chain) {
            chains.push(chain);
        }
    }
    chains.into_iter().map(Chain::iptables_name).collect()
}

/// One rule line.
#[must_use]
pub fn render_rule(rule: &Rule, config: &RuleConfig, family: Family) -> String {
    let chain = rule.chain.iptables_name();
    let mut line = match rule.place {
        Place::Append => format!("-A {chain}"),
        Place::Insert(position) => format!("-I {chain} {position}"),
    };
    for matching in &rule.matches {
        line.push(' ');
        line.push_str(&render_match(matching, config, family));
    }
    line.push_str(" -j ");
    line.push_str(&render_action(rule));
    line
}

/// The configured loopback range, or the host address of IPv6.
#[must_use]
pub fn resolve_addr(addr: Addr, config: &RuleConfig, family: Family) -> IpNet {
    // The literals are complete and constant; the fallible constructor would only hide that.
    let v6 = |last: u16| IpNet::from(std::net::IpAddr::from([0, 0, 0, 0, 0, 0, 0, last]));
    match (addr, family) {
        (Addr::Loopback, Family::V4) => config.loopback_v4,
        (Addr::Loopback, Family::V6) => v6(1),
        (Addr::Passthrough, Family::V4) => IpNet::from(std::net::IpAddr::from([127, 0, 0, 6])),
        (Addr::Passthrough, Family::V6) => v6(6),
        (Addr::Net(net), _) => net,
    }
}

fn render_match(matching: &Match, config: &RuleConfig, family: Family) -> String {
    let net = |addr: &Addr| resolve_addr(*addr, config, family);
    match matching {
        Match::InInterface(interface) => format!("-i {}", interface_name(interface)),
        Match::OutInterface(interface) => format!("-o {}", interface_name(interface)),
        Match::InLo => "-i lo".to_owned(),
        Match::OutLo => "-o lo".to_owned(),
        Match::Tcp | Match::TcpImplied => "-p tcp".to_owned(),
        Match::Udp => "-p udp".to_owned(),
        Match::Source(addr) => format!("-s {}", net(addr)),
        Match::Destination { not, addr } => format!("{}-d {}", bang(*not), net(addr)),
        Match::DestinationPort { not, ports } => match ports {
            Ports::Range(range) => format!("{}--dport {}", bang(*not), port_text(*range)),
            Ports::Pair(a, b) => format!("-m multiport {}--dports {a},{b}", bang(*not)),
        },
        Match::SourcePort(port) => format!("--sport {port}"),
        Match::Established => "-m conntrack --ctstate RELATED,ESTABLISHED".to_owned(),
        Match::Invalid => "-m conntrack --ctstate INVALID".to_owned(),
        Match::Mark { not, mark } => format!("-m mark {}--mark {mark}", bang(*not)),
        Match::ConnMark(mark) => format!("-m connmark --mark {mark}"),
        Match::User { not, id } => format!("-m owner {}--uid-owner {id}", bang(*not)),
        Match::Group { not, id } => format!("-m owner {}--gid-owner {id}", bang(*not)),
    }
}

fn render_action(rule: &Rule) -> String {
    match rule.action {
        Action::Return => "RETURN".to_owned(),
        Action::Accept => "ACCEPT".to_owned(),
        Action::Drop => "DROP".to_owned(),
        Action::Jump(chain) => chain.iptables_name().to_owned(),
        // The singular for UDP is the reference's spelling; both mean the same.
        Action::Redirect(port) if rule.matches.contains(&Match::Udp) => {
            format!("REDIRECT --to-port {port}")
        }
        Action::Redirect(port) => format!("REDIRECT --to-ports {port}"),
        Action::SetMark(mark) => format!("MARK --set-mark {mark}"),
        Action::Tproxy { port, mark } => {
            format!("TPROXY --tproxy-mark {mark}/0xffffffff --on-port {port}")
        }
        Action::SaveMark => "CONNMARK --save-mark".to_owned(),
        Action::RestoreMark => "CONNMARK --restore-mark".to_owned(),
        Action::Zone(zone) => format!("CT --zone {zone}"),
    }
}

const fn bang(not: bool) -> &'static str {
    if not { "! " } else { "" }
}

fn port_text(range: PortRange) -> String {
    if range.is_single() {
        range.low.to_string()
    } else {
        format!("{}:{}", range.low, range.high)
    }
}

fn interface_name(interface: &Interface) -> String {
    let mark = if interface.prefix { "+" } else { "" };
    format!("{}{mark}", interface.name)
}
