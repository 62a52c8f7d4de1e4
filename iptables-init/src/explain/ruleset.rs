//! The rules as the kernel holds them for one address family: chains in final order, addresses
//! resolved, each rule with the text that the backend shows. Both backends are brought to this one
//! form, so there is one evaluator.

use std::net::IpAddr;

use super::PodFacts;
use crate::host::{OwnerError, OwnerNames};
use crate::iptables::text::render_rule as iptables_rule;
use crate::nft::plan::{NftMatch, build_plan, resolve};
use crate::nft::text::render_rule as nft_rule;
use crate::rules::{Action, Chain, Family, Flavor, Match, Place, Rule, Table, build_rules};
use crate::values::OwnerId;

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedRule {
    /// As the backend's own listing words it.
    pub text: String,
    /// Conditions.
    pub matches: Vec<NftMatch>,
    /// Verdict or statement.
    pub action: Action,
}

/// All rules of one family.
#[derive(Debug, Clone)]
pub struct Ruleset {
    /// Which backend.
    pub flavor: Flavor,
    chains: Vec<((Table, Chain), Vec<LoadedRule>)>,
}

impl Ruleset {
    /// What a run with this configuration leaves in the kernel for `family`.
    ///
    /// # Errors
    /// A user or group without a number.
    pub fn load(facts: &PodFacts<'_>, flavor: Flavor, family: Family) -> Result<Self, OwnerError> {
        let mut loaded = Self {
            flavor,
            chains: Vec::new(),
        };
        match flavor {
            Flavor::Iptables => loaded.load_iptables(facts, family),
            Flavor::Nft => loaded.load_nft(facts),
        }
        for (_, rules) in &mut loaded.chains {
            for matching in rules.iter_mut().flat_map(|rule| &mut rule.matches) {
                resolve_owner(matching, facts.names)?;
            }
        }
        Ok(loaded)
    }

    /// Rules of a chain in the order in which they are asked.
    #[must_use]
    pub fn chain(&self, table: Table, chain: Chain) -> &[LoadedRule] {
        self.chains
            .iter()
            .find(|(key, _)| *key == (table, chain))
            .map_or(&[], |(_, rules)| rules)
    }

    /// Whether nothing is written for this family.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    fn slot(&mut self, table: Table, chain: Chain) -> &mut Vec<LoadedRule> {
        let key = (table, chain);
        let at = self.chains.iter().position(|(have, _)| *have == key);
        let at = at.unwrap_or_else(|| {
            self.chains.push((key, Vec::new()));
            self.chains.len() - 1
        });
        &mut self.chains[at].1
    }

    fn load_iptables(&mut self, facts: &PodFacts<'_>, family: Family) {
        let config = facts.config;
        if family == Family::V6 && !config.ipv6 {
            return;
        }
        for rule in build_rules(config, Flavor::Iptables) {
            if !rule.scope.covers(family) {
                continue;
            }
            let shown = Rule {
                place: Place::Append,
                ..rule.clone()
            };
            let loaded = LoadedRule {
                text: iptables_rule(&shown, config, family),
                matches: rule
                    .matches
                    .iter()
                    .map(|matching| resolve(matching, config, family))
                    .collect(),
                action: rule.action,
            };
            let slot = self.slot(rule.table, rule.chain);
            let at = match rule.place {
                Place::Append => slot.len(),
                Place::Insert(position) => usize::from(position).saturating_sub(1).min(slot.len()),
            };
            slot.insert(at, loaded);
        }
    }

    fn load_nft(&mut self, facts: &PodFacts<'_>) {
        for table in build_plan(facts.config) {
            for chain in &table.chains {
                let rules = table
                    .chain_rules(*chain)
                    .into_iter()
                    .map(|rule| LoadedRule {
                        text: nft_rule(rule),
                        matches: rule.matches.clone(),
                        action: rule.action,
                    })
                    .collect();
                *self.slot(table.table, *chain) = rules;
            }
        }
    }
}

/// Names become numbers, as the backends make them.
fn resolve_owner(matching: &mut NftMatch, names: &OwnerNames) -> Result<(), OwnerError> {
    let (id, number) = match matching {
        NftMatch::Other(Match::User { id, .. }) => {
            let number = names.user(id);
            (id, number)
        }
        NftMatch::Other(Match::Group { id, .. }) => {
            let number = names.group(id);
            (id, number)
        }
        _ => return Ok(()),
    };
    *id = match number? {
        (low, high) if low == high => OwnerId::Number(low),
        (low, high) => OwnerId::Range(low, high),
    };
    Ok(())
}

/// The address that REDIRECT writes on output: this host, in the packet's family.
#[must_use]
pub fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([127, 0, 0, 1]),
        Family::V6 => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
    }
}
