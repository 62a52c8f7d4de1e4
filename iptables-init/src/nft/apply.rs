//! Reads, replaces, verifies and puts back the nf_tables state: our `inet` tables and what the
//! iptables-nft programs left of ours. Every write is one transaction over all of it.

use super::expr::{Expr, decode};
use super::message::{Batch, NFPROTO_INET, kind};
use super::plan::{TABLES, chain_order, table_name};
use super::socket::{Dump, NetlinkError, NftSocket};
use super::state::{BaseState, ChainState, POLICY_ACCEPT, TableState, first_difference};
use super::wire::{Attributes, attribute, attributes, be32, text};
use super::xtables::Xtables;
use crate::rules::Family;

/// How often a concurrent change is waited out.
const ATTEMPTS: usize = 5;

/// Failure of the native backend.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Nothing was changed.
    #[error("failed to program nftables rules: {0}")]
    Netlink(#[from] NetlinkError),
    /// The kernel holds something else than was written.
    #[error("nftables rules differ from the plan after writing: {0}")]
    Mismatch(String),
}

/// Everything of ours in nf_tables at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Our `inet` tables.
    pub native: Vec<TableState>,
    /// Our part of the tables that the iptables-nft programs write.
    pub xtables: Xtables,
    generation: u32,
}

impl Snapshot {
    /// Marks that TPROXY rules of either kind set.
    #[must_use]
    pub fn tproxy_marks(&self) -> Vec<u32> {
        let chains = self.native.iter().flat_map(|t| &t.chains);
        let native = chains.flat_map(|c| &c.rules).filter_map(|rule| {
            let at = rule.iter().position(|e| matches!(e, Expr::Tproxy { .. }))?;
            match rule.get(at + 1)? {
                Expr::Immediate(mark) => Some(u32::from_ne_bytes(mark[..].try_into().ok()?)),
                _ => None,
            }
        });
        let mut marks: Vec<u32> = native.collect();
        marks.extend(self.xtables.tproxy_marks());
        marks
    }
}

/// What a write shall leave behind.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Our `inet` tables.
    pub native: &'a [TableState],
    /// Families in which nothing of the iptables-nft programs may stay.
    pub without_xtables: &'a [Family],
    /// Remove iptables-nft tables that hold nothing at all, too.
    pub without_empty: bool,
}

fn own_table(name: &str) -> bool {
    TABLES.iter().any(|table| table_name(*table) == name)
}

/// Reads the state, consistently with respect to one generation.
///
/// # Errors
/// The kernel refuses, or the rule set does not hold still.
pub fn read(socket: &mut NftSocket) -> Result<Snapshot, NetlinkError> {
    read_with(socket, None)
}

fn read_with(socket: &mut NftSocket, also: Option<&Xtables>) -> Result<Snapshot, NetlinkError> {
    for _ in 0..ATTEMPTS {
        let generation = socket.generation()?;
        let state =
            read_native(socket).and_then(|native| Ok((native, Xtables::read(socket, also)?)));
        let (native, xtables) = match state {
            Err(NetlinkError::Changed) => continue,
            other => other?,
        };
        if socket.generation()? == generation {
            return Ok(Snapshot {
                native,
                xtables,
                generation,
            });
        }
    }
    Err(NetlinkError::Inconsistent)
}

fn read_native(socket: &mut NftSocket) -> Result<Vec<TableState>, NetlinkError> {
    let mut found: Vec<TableState> = Vec::new();
    let none = Attributes::default();
    // GETTABLE: an empty table is a difference too.
    for answer in socket.dump(kind::GETTABLE, NFPROTO_INET, &none)? {
        if let Some(name) = text(&answer, 1).filter(|name| own_table(name)) {
            found.push(TableState {
                name,
                chains: Vec::new(),
            });
        }
    }
    if found.is_empty() {
        return Ok(found);
    }
    for answer in socket.dump(kind::GETCHAIN, NFPROTO_INET, &none)? {
        let table = text(&answer, 1).unwrap_or_default();
        if let Some(table) = found.iter_mut().find(|t| t.name == table) {
            table.chains.push(decode_chain(&answer));
        }
    }
    for answer in socket.dump(kind::GETRULE, NFPROTO_INET, &none)? {
        let table = text(&answer, 1).unwrap_or_default();
        let chain = text(&answer, 2).unwrap_or_default();
        let Some(state) = found.iter_mut().find(|t| t.name == table) else {
            continue;
        };
        let Some(state) = state.chains.iter_mut().find(|c| c.name == chain) else {
            return Err(NetlinkError::Changed);
        };
        let mut failure = None;
        let list = attribute(&answer, 4).unwrap_or_default();
        let rule = decode(list, &mut |set, _| {
            set_keys(socket, &table, set).unwrap_or_else(|error| {
                failure = Some(error);
                Vec::new()
            })
        });
        if let Some(error) = failure {
            return Err(error);
        }
        state.rules.push(rule);
    }
    sort(&mut found);
    Ok(found)
}

/// Into the order of the plan: a chain that was added later is listed last.
fn sort(tables: &mut [TableState]) {
    let table = |name: &str| TABLES.into_iter().find(|t| table_name(*t) == name);
    tables.sort_by_key(|state| TABLES.iter().position(|t| table_name(*t) == state.name));
    for state in tables {
        let order = table(&state.name).map_or(&[][..], chain_order);
        let rank = |name: &str| order.iter().position(|c| c.nft_name() == name);
        // Chains of somebody else come last.
        state
            .chains
            .sort_by_key(|chain| rank(&chain.name).unwrap_or(usize::MAX));
    }
}

fn decode_chain(answer: &[u8]) -> ChainState {
    let base = attribute(answer, 4).map(|hook| BaseState {
        kind: text(answer, 7).unwrap_or_default(),
        hook: be32(hook, 1).unwrap_or_default(),
        priority: be32(hook, 2).unwrap_or_default().cast_signed(),
        policy: be32(answer, 5).unwrap_or(POLICY_ACCEPT),
    });
    ChainState {
        name: text(answer, 3).unwrap_or_default(),
        base,
        rules: Vec::new(),
    }
}

fn set_keys(socket: &mut NftSocket, table: &str, set: &str) -> Result<Vec<Vec<u8>>, NetlinkError> {
    let mut query = Attributes::default();
    query.text(1, table).text(2, set);
    let mut keys = Vec::new();
    for answer in socket.dump(kind::GETSETELEM, NFPROTO_INET, &query)? {
        let list = attribute(&answer, 3).unwrap_or_default();
        for (_, element) in attributes(list) {
            let key = attribute(element, 1).and_then(|key| attribute(key, 1));
            keys.extend(key.map(<[u8]>::to_vec));
        }
    }
    // The kernel's hash order carries no meaning.
    keys.sort();
    Ok(keys)
}

/// Makes the kernel hold `wanted`, in one transaction. With `force` the tables are written even
/// if they are already right (which resets the counters). Returns the state before if anything
/// was written.
///
/// # Errors
/// The kernel refuses, or the rule set does not hold still; nothing was changed then.
pub fn replace(
    socket: &mut NftSocket,
    wanted: Wanted<'_>,
    force: bool,
) -> Result<Option<Snapshot>, ApplyError> {
    for _ in 0..ATTEMPTS {
        let before = read(socket)?;
        let mut batch = Batch::default();
        if force || before.native != wanted.native {
            batch.update(&before.native, wanted.native);
        }
        before
            .xtables
            .remove(wanted.without_xtables, wanted.without_empty, &mut batch);
        if batch.is_empty() {
            return Ok(None);
        }
        match socket.commit(&batch, Some(before.generation)) {
            Err(NetlinkError::Changed) => {}
            other => return Ok(other.map(|()| Some(before))?),
        }
    }
    Err(NetlinkError::Inconsistent.into())
}

/// Reads back and compares with what was wanted.
///
/// # Errors
/// The kernel refuses, or holds something else.
pub fn verify(socket: &mut NftSocket, wanted: Wanted<'_>) -> Result<(), ApplyError> {
    let now = read(socket)?;
    let left = wanted
        .without_xtables
        .iter()
        .find(|family| now.xtables.has_own_chains(**family));
    let difference = first_difference(wanted.native, &now.native)
        .or_else(|| left.map(|family| format!("{family:?} chains of iptables are still there")));
    match difference {
        Some(difference) => Err(ApplyError::Mismatch(difference)),
        None => Ok(()),
    }
}

/// Turns whatever is there now back into an earlier state; writes nothing if it is that state.
///
/// # Errors
/// The kernel refuses, or the rule set does not hold still.
pub fn restore(socket: &mut NftSocket, before: &Snapshot) -> Result<(), NetlinkError> {
    for _ in 0..ATTEMPTS {
        let now = read_with(socket, Some(&before.xtables))?;
        let mut batch = Batch::default();
        if now.native != before.native {
            batch.update(&now.native, &before.native);
        }
        if !now.xtables.same(&before.xtables) {
            before.xtables.put_back(&now.xtables, &mut batch);
        }
        if batch.is_empty() {
            return Ok(());
        }
        match socket.commit(&batch, Some(now.generation)) {
            Err(NetlinkError::Changed) => {}
            other => return other,
        }
    }
    Err(NetlinkError::Inconsistent)
}
