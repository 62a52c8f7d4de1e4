//! Renders the plan as an `nft -f` transaction in the reference's words: what is logged and what
//! `--dry-run` prints. Pure.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::plan::{NftMatch, NftRule, NftTable, base_chain, table_name};
use crate::rules::{Action, Family, Match, Ports, Table};
use crate::values::{Interface, PortRange};

/// The whole transaction.
#[must_use]
pub fn render_transaction(tables: &[NftTable]) -> String {
    let mut out = String::new();
    for table in tables {
        let name = table_name(table.table);
        let _ = writeln!(out, "add table inet {name}");
        let _ = writeln!(out, "flush table inet {name}");
        for chain in &table.chains {
            let _ = write!(out, "add chain inet {name} {}", chain.nft_name());
            if let Some(base) = base_chain(table.table, *chain) {
                let (kind, hook, priority) = (base.kind, base.hook, base.priority);
                let _ = write!(out, " {{ type {kind} hook {hook} priority {priority} ; }}");
            }
            out.push('\n');
        }
        for rule in &table.rules {
            let chain = rule.chain.nft_name();
            let _ = match rule.index {
                Some(index) => write!(out, "insert rule inet {name} {chain} index {index}"),
                None => write!(out, "add rule inet {name} {chain}"),
            };
            let _ = writeln!(out, " {}", render_rule(rule));
        }
    }
    out
}

/// The transaction that removes everything.
#[must_use]
pub fn render_cleanup() -> String {
    let mut out = String::new();
    for table in super::plan::TABLES {
        let name = table_name(table);
        let _ = writeln!(out, "add table inet {name}");
        let _ = writeln!(out, "delete table inet {name}");
    }
    out
}

/// Conditions and action of one rule.
#[must_use]
pub fn render_rule(rule: &NftRule) -> String {
    let mut words = Vec::new();
    let mut protocol = "tcp";
    for matching in &rule.matches {
        if matches!(matching, NftMatch::Other(Match::Udp)) {
            protocol = "udp";
        }
        if let Some(text) = render_match(matching, protocol, rule.table) {
            words.push(text);
        }
    }
    words.push(render_action(rule));
    words.join(" ")
}

fn render_match(matching: &NftMatch, protocol: &str, table: Table) -> Option<String> {
    let matching = match matching {
        NftMatch::Address { source, not, net } => {
            let family = match net {
                IpNet::V4(_) => "ip",
                IpNet::V6(_) => "ip6",
            };
            let side = if *source { "saddr" } else { "daddr" };
            return Some(format!("{family} {side} {}{net}", bang(*not)));
        }
        NftMatch::Other(matching) => matching,
    };
    // Only the conntrack zone rules of the reference write the full word.
    let meta = if table == Table::Raw { "meta " } else { "" };
    Some(match matching {
        Match::InInterface(interface) => format!("iifname {}", interface_name(interface)),
        Match::OutInterface(interface) => format!("oifname {}", interface_name(interface)),
        Match::InLo => "iifname lo".to_owned(),
        Match::OutLo => "oifname lo".to_owned(),
        Match::Tcp => "meta l4proto tcp".to_owned(),
        // The port match implies them; addresses never get here.
        Match::TcpImplied | Match::Udp | Match::Source(_) | Match::Destination { .. } => {
            return None;
        }
        Match::DestinationPort { not, ports } => {
            format!("{protocol} dport {}{}", bang(*not), port_text(*ports))
        }
        Match::SourcePort(port) => format!("{protocol} sport {port}"),
        Match::Established => "ct state related,established".to_owned(),
        Match::Invalid => "ct state invalid".to_owned(),
        Match::Mark { not, mark } => format!("mark {}{mark}", bang(*not)),
        Match::ConnMark(mark) => format!("ct mark {mark}"),
        Match::User { not, id } => format!("{meta}skuid {}{id}", bang(*not)),
        Match::Group { not, id } => format!("{meta}skgid {}{id}", bang(*not)),
    })
}

fn render_action(rule: &NftRule) -> String {
    match rule.action {
        Action::Return => "counter return".to_owned(),
        Action::Accept => "counter accept".to_owned(),
        Action::Drop => "counter drop".to_owned(),
        Action::Jump(chain) => format!("counter jump {}", chain.nft_name()),
        Action::Redirect(port) => format!("counter redirect to :{port}"),
        Action::SetMark(mark) => format!("counter meta mark set {mark}"),
        Action::Tproxy { port, mark } => {
            let family = match rule.family {
                Family::V4 => "ip",
                Family::V6 => "ip6",
            };
            format!("tproxy {family} to :{port} meta mark set {mark} counter accept")
        }
        Action::SaveMark => "counter ct mark set mark".to_owned(),
        Action::RestoreMark => "counter meta mark set ct mark".to_owned(),
        Action::Zone(zone) => format!("counter ct zone set {zone}"),
    }
}

const fn bang(not: bool) -> &'static str {
    if not { "!= " } else { "" }
}

fn port_text(ports: Ports) -> String {
    match ports {
        Ports::Range(PortRange { low, high }) if low == high => low.to_string(),
        Ports::Range(PortRange { low, high }) => format!("{low}-{high}"),
        Ports::Pair(a, b) => format!("{{ {a}, {b} }}"),
    }
}

fn interface_name(interface: &Interface) -> String {
    let mark = if interface.prefix { "*" } else { "" };
    format!("{}{mark}", interface.name)
}
