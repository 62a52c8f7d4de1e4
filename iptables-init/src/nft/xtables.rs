//! What the iptables-nft programs wrote into the `ip` and `ip6` tables: our part of it is found,
//! removed and put back through netlink alone, so that no iptables program is needed and the
//! removal can be part of the transaction that writes the native tables.

use super::expr::{Expr, Verdict, decode};
use super::message::{Batch, NFPROTO_IPV4, NFPROTO_IPV6, NLM_F_APPEND, NLM_F_CREATE, kind};
use super::ours::{is_own_chain, is_own_rule};
use super::socket::{Dump, NetlinkError};
use super::state::POLICY_ACCEPT;
use super::wire::{Attributes, attribute, be32, be64, text};
use crate::rules::Family;

/// Tables that iptables has and that ever held rules of ours.
const TABLES: [&str; 4] = ["filter", "mangle", "nat", "raw"];
/// Chains that iptables creates with a table.
const BUILTIN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// nfgen_family of a family's own tables.
const fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

/// A rule of ours as the kernel reported it, and its place.
#[derive(Debug, Clone)]
struct Placed {
    handle: u64,
    /// Body of NFTA_RULE_EXPRESSIONS, counter values included.
    exprs: Vec<u8>,
    /// NFTA_RULE_USERDATA, e.g. a comment.
    userdata: Option<Vec<u8>>,
    /// Handle of the next rule that is not ours; `None` at the end.
    before: Option<u64>,
}

/// Hook, policy and type attributes of a base chain, as reported.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BaseAttributes {
    hook: Vec<u8>,
    policy: u32,
    kind: String,
}

#[derive(Debug, Clone)]
struct Chain {
    name: String,
    base: Option<BaseAttributes>,
    /// Number of rules in a base chain, known without reading them.
    uses: usize,
    /// Ours only; of our own chains all. Not read where nothing of ours is.
    rules: Vec<Placed>,
    /// Handles of everybody else's rules, where they were read.
    others: Vec<u64>,
}

impl Chain {
    /// Whether without our rules this is what the programs create by themselves.
    fn is_empty_builtin(&self) -> bool {
        let accepts = self
            .base
            .as_ref()
            .is_some_and(|b| b.policy == POLICY_ACCEPT);
        BUILTIN.contains(&self.name.as_str()) && accepts && self.uses == self.rules.len()
    }
}

#[derive(Debug, Clone)]
struct Table {
    family: Family,
    name: String,
    /// Number of chains, sets and other objects in it.
    uses: u32,
    chains: Vec<Chain>,
}

/// The `ip` and `ip6` tables of iptables-nft with our rules in them.
#[derive(Debug, Clone, Default)]
pub struct Xtables {
    tables: Vec<Table>,
}

impl Xtables {
    /// Reads the tables. Rules are read only where an `ISTIO_*` chain is, or where `also` (an
    /// earlier reading that may have to be put back) has rules.
    ///
    /// # Errors
    /// The kernel refuses, or the state changed between two of the reads.
    pub fn read(socket: &mut impl Dump, also: Option<&Self>) -> Result<Self, NetlinkError> {
        let mut tables = Vec::new();
        for family in [Family::V4, Family::V6] {
            let mut found = read_chains(socket, family)?;
            let beside_own = found.iter().any(Table::has_own_chain);
            let needed = beside_own || also.is_some_and(|also| also.has_rules(family));
            for table in found.iter_mut().filter(|_| needed) {
                read_rules(socket, table, beside_own)?;
            }
            tables.append(&mut found);
        }
        Ok(Self { tables })
    }

    fn has_rules(&self, family: Family) -> bool {
        self.of(family)
            .any(|t| t.chains.iter().any(|c| !c.rules.is_empty()))
    }

    fn of(&self, family: Family) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(move |t| t.family == family)
    }

    fn get(&self, family: Family, name: &str) -> Option<&Table> {
        self.of(family).find(|t| t.name == name)
    }

    /// Whether an `ISTIO_*` chain exists in a family.
    #[must_use]
    pub fn has_own_chains(&self, family: Family) -> bool {
        self.of(family).any(Table::has_own_chain)
    }

    /// Marks that our TPROXY rules set.
    #[must_use]
    pub fn tproxy_marks(&self) -> Vec<u32> {
        let rules = self.tables.iter().flat_map(|t| &t.chains);
        let rules = rules
            .filter(|c| is_own_chain(&c.name))
            .flat_map(|c| &c.rules);
        rules
            .flat_map(|placed| expressions(&placed.exprs))
            .filter_map(|expr| match expr {
                Expr::Unknown { name, data } if name == "target" => super::ours::tproxy_mark(&data),
                _ => None,
            })
            .collect()
    }

    /// Whether the same rules of ours are at the same places of the same tables.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        let shape = |x: &Self| -> Vec<_> {
            let chains = x.tables.iter().flat_map(|t| {
                t.chains.iter().map(move |c| {
                    let rules = c.rules.iter().map(|p| (expressions(&p.exprs), p.before));
                    let rules: Vec<_> = rules.collect();
                    (t.family, t.name.clone(), c.name.clone(), rules)
                })
            });
            let mut all: Vec<_> = chains.collect();
            all.sort_by(|a, b| (a.0, &a.1, &a.2).cmp(&(b.0, &b.1, &b.2)));
            all
        };
        shape(self) == shape(other)
    }

    /// Adds the removal of our chains and rules in `families`, and of the tables that are nothing
    /// but empty built-in chains then; with `empty_too` also of those that never held ours.
    pub fn remove(&self, families: &[Family], empty_too: bool, batch: &mut Batch) {
        for table in families.iter().flat_map(|family| self.of(*family)) {
            if !(empty_too || table.has_ours()) {
                continue;
            }
            if table.is_empty_without_ours() {
                batch.delete_table(family_number(table.family), &table.name);
                continue;
            }
            table.remove_ours(batch);
            table.remove_chains(batch, Chain::is_empty_builtin);
        }
    }

    /// Adds what turns `now` back into this state.
    pub fn put_back(&self, now: &Self, batch: &mut Batch) {
        for table in &now.tables {
            match self.get(table.family, &table.name) {
                // Made by the run that failed.
                None if table.is_empty_without_ours() => {
                    batch.delete_table(family_number(table.family), &table.name);
                }
                was => {
                    table.remove_ours(batch);
                    let known =
                        |name: &str| was.is_some_and(|t| t.chains.iter().any(|c| c.name == name));
                    table.remove_chains(batch, |c| c.is_empty_builtin() && !known(&c.name));
                }
            }
        }
        for table in &self.tables {
            table.put_back(now.get(table.family, &table.name), batch);
        }
    }
}

impl Table {
    fn has_own_chain(&self) -> bool {
        self.chains.iter().any(|c| is_own_chain(&c.name))
    }

    fn has_ours(&self) -> bool {
        self.has_own_chain() || self.chains.iter().any(|c| !c.rules.is_empty())
    }

    /// Whether only built-in chains without rules, sets or a policy would be left: what the
    /// programs create by themselves and a fresh namespace does not have.
    fn is_empty_without_ours(&self) -> bool {
        let chains = u32::try_from(self.chains.len()).unwrap_or(u32::MAX);
        let plain = |c: &Chain| c.is_empty_builtin() || is_own_chain(&c.name);
        self.uses == chains && self.chains.iter().all(plain)
    }

    fn remove_ours(&self, batch: &mut Batch) {
        let number = family_number(self.family);
        for chain in &self.chains {
            for placed in &chain.rules {
                batch.delete_rule(number, &self.name, &chain.name, placed.handle);
            }
        }
        self.remove_chains(batch, |chain| is_own_chain(&chain.name));
    }

    fn remove_chains(&self, batch: &mut Batch, which: impl Fn(&Chain) -> bool) {
        for chain in self.chains.iter().filter(|chain| which(chain)) {
            batch.delete_chain(family_number(self.family), &self.name, &chain.name);
        }
    }

    fn put_back(&self, now: Option<&Self>, batch: &mut Batch) {
        let number = family_number(self.family);
        if now.is_none() {
            batch.create_table(number, &self.name);
        }
        let exists = |name: &str| now.is_some_and(|t| t.chains.iter().any(|c| c.name == name));
        for chain in &self.chains {
            if !is_own_chain(&chain.name) && exists(&chain.name) {
                continue;
            }
            let mut a = Attributes::default();
            a.text(1, &self.name).text(3, &chain.name);
            if let Some(base) = &chain.base {
                a.nest(4, |hook| hook.0.extend_from_slice(&base.hook));
                a.be32(5, base.policy).text(7, &base.kind);
            }
            batch.push(kind::NEWCHAIN, NLM_F_CREATE, number, a);
        }
        for chain in &self.chains {
            let others = now
                .and_then(|t| t.chains.iter().find(|c| c.name == chain.name))
                .map_or(&[][..], |c| &c.others);
            for placed in &chain.rules {
                // A neighbour that is gone meanwhile leaves the end as the only honest place.
                let before = placed.before.filter(|handle| others.contains(handle));
                self.put_back_rule(&chain.name, placed, before, batch);
            }
        }
    }

    fn put_back_rule(&self, chain: &str, rule: &Placed, before: Option<u64>, batch: &mut Batch) {
        let mut a = Attributes::default();
        a.text(1, &self.name).text(2, chain);
        a.nest(4, |list| list.0.extend_from_slice(&rule.exprs));
        if let Some(protocol) = super::ours::compared_protocol(&rule.exprs) {
            // Wrapped iptables extensions check it; the kernel does not report it.
            a.nest(5, |compat| {
                compat.be32(1, u32::from(protocol)).be32(2, 0);
            });
        }
        if let Some(userdata) = &rule.userdata {
            a.bytes(7, userdata);
        }
        let flags = match before {
            Some(handle) => {
                a.bytes(6, &handle.to_be_bytes());
                NLM_F_CREATE
            }
            None => NLM_F_CREATE | NLM_F_APPEND,
        };
        batch.push(kind::NEWRULE, flags, family_number(self.family), a);
    }
}

/// Typed form for looking and comparing. The programs write no sets.
fn expressions(raw: &[u8]) -> Vec<Expr> {
    decode(raw, &mut |_, _| Vec::new())
}

fn read_chains(socket: &mut impl Dump, family: Family) -> Result<Vec<Table>, NetlinkError> {
    let number = family_number(family);
    let none = Attributes::default();
    let mut tables = Vec::new();
    for answer in socket.dump(kind::GETTABLE, number, &none)? {
        let name = text(&answer, 1).unwrap_or_default();
        if TABLES.contains(&name.as_str()) {
            tables.push(Table {
                family,
                name,
                uses: be32(&answer, 3).unwrap_or(u32::MAX),
                chains: Vec::new(),
            });
        }
    }
    if tables.is_empty() {
        return Ok(tables);
    }
    for answer in socket.dump(kind::GETCHAIN, number, &none)? {
        let table = text(&answer, 1).unwrap_or_default();
        let Some(table) = tables.iter_mut().find(|t| t.name == table) else {
            continue;
        };
        table.chains.push(Chain {
            name: text(&answer, 3).unwrap_or_default(),
            base: attribute(&answer, 4).map(|hook| BaseAttributes {
                hook: hook.to_vec(),
                policy: be32(&answer, 5).unwrap_or(POLICY_ACCEPT),
                kind: text(&answer, 7).unwrap_or_default(),
            }),
            uses: be32(&answer, 6)
                .and_then(|uses| uses.try_into().ok())
                .unwrap_or(usize::MAX),
            rules: Vec::new(),
            others: Vec::new(),
        });
    }
    Ok(tables)
}

fn read_rules(
    socket: &mut impl Dump,
    table: &mut Table,
    beside_own: bool,
) -> Result<(), NetlinkError> {
    let mut query = Attributes::default();
    query.text(1, &table.name);
    for answer in socket.dump(kind::GETRULE, family_number(table.family), &query)? {
        let name = text(&answer, 2).unwrap_or_default();
        let handle = be64(&answer, 3).unwrap_or_default();
        let Some(chain) = table.chains.iter_mut().find(|c| c.name == name) else {
            return Err(NetlinkError::Changed);
        };
        let raw = attribute(&answer, 4).unwrap_or_default();
        let exprs = expressions(raw);
        let jumps = exprs.iter().any(
            |e| matches!(e, Expr::Verdict(Verdict::Jump(to) | Verdict::Goto(to)) if is_own_chain(to)),
        );
        let ours =
            is_own_chain(&name) || jumps || (beside_own && is_own_rule(&table.name, &name, &exprs));
        if !ours {
            for placed in chain.rules.iter_mut().rev() {
                if placed.before.is_some() {
                    break;
                }
                placed.before = Some(handle);
            }
            chain.others.push(handle);
            continue;
        }
        chain.rules.push(Placed {
            handle,
            exprs: raw.to_vec(),
            userdata: attribute(&answer, 7).map(<[u8]>::to_vec),
            before: None,
        });
    }
    Ok(())
}
