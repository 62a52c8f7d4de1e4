//! The rule model expanded for `inet` tables: one entry per kernel rule, chains known, final
//! order computed. Pure; text, JSON and netlink are three views of this.

use ipnet::IpNet;

use crate::iptables::text::resolve_addr;
use crate::rules::Flavor;
use crate::rules::{Action, Chain, Family, Match, Place, Rule, RuleConfig, Table, build_rules};

/// Tables in the order of the transaction.
pub const TABLES: [Table; 3] = [Table::Nat, Table::Mangle, Table::Raw];

/// Name of the `inet` table.
#[must_use]
pub const fn table_name(table: Table) -> &'static str {
    match table {
        Table::Nat => "istio-proxy-nat",
        Table::Mangle => "istio-proxy-mangle",
        Table::Raw => "istio-proxy-raw",
    }
}

/// Type, hook and priority of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    /// `nat`, `filter` or `route`.
    pub kind: &'static str,
    /// `prerouting` or `output`.
    pub hook: &'static str,
    /// NF_INET_* hook number.
    pub hook_number: u32,
    /// Priority; lower runs earlier.
    pub priority: i32,
}

/// Base chain attributes, `None` for our own chains.
#[must_use]
pub const fn base_chain(table: Table, chain: Chain) -> Option<BaseChain> {
    let (hook, hook_number) = match chain {
        Chain::Prerouting => ("prerouting", 0),
        Chain::Output => ("output", 3),
        _ => return None,
    };
    let (kind, priority) = match (table, chain) {
        (Table::Nat, _) => ("nat", -100),
        // A mark set on output must cause a new route lookup.
        (Table::Mangle, Chain::Output) => ("route", -150),
        (Table::Mangle, _) => ("filter", -150),
        (Table::Raw, _) => ("filter", -300),
    };
    Some(BaseChain {
        kind,
        hook,
        hook_number,
        priority,
    })
}

/// Chains a table may have, in creation order.
#[must_use]
pub const fn chain_order(table: Table) -> &'static [Chain] {
    match table {
        Table::Nat => &[
            Chain::Prerouting,
            Chain::Output,
            Chain::Inbound,
            Chain::Redirect,
            Chain::InRedirect,
            Chain::OutputChain,
            Chain::OutputDns,
        ],
        Table::Mangle => &[
            Chain::Prerouting,
            Chain::Output,
            Chain::Divert,
            Chain::Tproxy,
            Chain::Inbound,
            Chain::Drop,
        ],
        Table::Raw => &[
            Chain::Prerouting,
            Chain::Output,
            Chain::Inbound,
            Chain::OutputDns,
        ],
    }
}

/// A condition with its address resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NftMatch {
    /// Source (`true`) or destination address.
    Address {
        /// Compare the source.
        source: bool,
        /// Inverted.
        not: bool,
        /// Range.
        net: IpNet,
    },
    /// Anything that needs no resolution.
    Other(Match),
}

/// One kernel rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftRule {
    /// Table.
    pub table: Table,
    /// Chain.
    pub chain: Chain,
    /// 0-based insert index; `None` appends.
    pub index: Option<usize>,
    /// Family the rule was expanded for; decides `tproxy ip` or `tproxy ip6`.
    pub family: Family,
    /// Conditions in nft order.
    pub matches: Vec<NftMatch>,
    /// Verdict or statement.
    pub action: Action,
}

/// One table of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftTable {
    /// Which.
    pub table: Table,
    /// Chains that own at least one rule, in creation order.
    pub chains: Vec<Chain>,
    /// Rules in transaction order.
    pub rules: Vec<NftRule>,
}

impl NftTable {
    /// Rules of one chain in their final order.
    #[must_use]
    pub fn chain_rules(&self, chain: Chain) -> Vec<&NftRule> {
        let mut ordered = Vec::new();
        for rule in self.rules.iter().filter(|rule| rule.chain == chain) {
            match rule.index {
                Some(index) => ordered.insert(index, rule),
                None => ordered.push(rule),
            }
        }
        ordered
    }
}

/// Builds all tables that have rules.
#[must_use]
pub fn build_plan(config: &RuleConfig) -> Vec<NftTable> {
    let rules = build_rules(config, Flavor::Nft);
    let mut tables = Vec::new();
    for table in TABLES {
        let mut expanded: Vec<NftRule> = Vec::new();
        for rule in rules.iter().filter(|rule| rule.table == table) {
            expand(rule, config, &mut expanded);
        }
        if expanded.is_empty() {
            continue;
        }
        let chains = chain_order(table)
            .iter()
            .copied()
            .filter(|chain| expanded.iter().any(|rule| rule.chain == *chain))
            .collect();
        tables.push(NftTable {
            table,
            chains,
            rules: expanded,
        });
    }
    tables
}

/// A rule that names an address or a transparent proxy exists once per family, others once.
fn expand(rule: &Rule, config: &RuleConfig, out: &mut Vec<NftRule>) {
    let by_family = rule
        .matches
        .iter()
        .any(|m| matches!(m, Match::Source(_) | Match::Destination { .. }));
    let families: &[Family] = match (by_family, config.ipv6) {
        (true, true) => &[Family::V4, Family::V6],
        (true, false) => &[Family::V4],
        (false, _) => &[Family::V4],
    };
    for family in families {
        if by_family && !rule.scope.covers(*family) {
            continue;
        }
        let present = out.iter().filter(|r| r.chain == rule.chain).count();
        // An insert at or behind the end is an append (and nft refuses the insert).
        let index = match rule.place {
            Place::Insert(position) => {
                Some(usize::from(position) - 1).filter(|index| *index < present)
            }
            Place::Append => None,
        };
        out.push(NftRule {
            table: rule.table,
            chain: rule.chain,
            index,
            family: *family,
            matches: nft_matches(rule, config, *family),
            action: rule.action,
        });
    }
}

fn nft_matches(rule: &Rule, config: &RuleConfig, family: Family) -> Vec<NftMatch> {
    let mut matches: Vec<&Match> = rule.matches.iter().collect();
    matches.sort_by_key(|m| rank(m, rule.table));
    let resolved = matches.into_iter().map(|m| resolve(m, config, family));
    resolved.collect()
}

/// A condition with the address that it names in `family`.
pub(crate) fn resolve(matching: &Match, config: &RuleConfig, family: Family) -> NftMatch {
    match matching {
        Match::Source(addr) => NftMatch::Address {
            source: true,
            not: false,
            net: resolve_addr(*addr, config, family),
        },
        Match::Destination { not, addr } => NftMatch::Address {
            source: false,
            not: *not,
            net: resolve_addr(*addr, config, family),
        },
        other => NftMatch::Other(other.clone()),
    }
}

/// Position of a condition in the nft text of the reference. The raw table names the port first.
const fn rank(matching: &Match, table: Table) -> u8 {
    match matching {
        Match::InInterface(_) | Match::OutInterface(_) | Match::InLo | Match::OutLo => 0,
        Match::Tcp | Match::TcpImplied | Match::Udp => 1,
        Match::Source(_) | Match::Destination { .. } => match table {
            Table::Raw => 5,
            Table::Nat | Table::Mangle => 2,
        },
        Match::Established | Match::Invalid => 3,
        Match::DestinationPort { .. } | Match::SourcePort(_) => 4,
        Match::Mark { .. } | Match::ConnMark(_) => 6,
        Match::User { .. } | Match::Group { .. } => 7,
    }
}
