//! Reads, replaces and verifies our `inet` tables. Replacement is one transaction; a result that
//! differs from the plan is rolled back to what was there before.

use super::expr::decode;
use super::message::{Batch, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, kind};
use super::plan::{TABLES, table_name};
use super::socket::{NetlinkError, NftSocket};
use super::state::{BaseState, ChainState, TableState, first_difference, is_restorable};
use super::wire::{Attributes, attribute, attributes, be32, text};
use crate::rules::Family;

/// How often a concurrent change is waited out.
const ATTEMPTS: usize = 5;

/// Failure of the native backend.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Nothing was changed.
    #[error("failed to program nftables rules: {0}")]
    Netlink(#[from] NetlinkError),
    /// The kernel holds something else than was written; the previous state is back.
    #[error(
        "nftables rules differ from the plan after writing ({difference}); previous rules restored"
    )]
    Mismatch {
        /// First difference.
        difference: String,
    },
    /// As above, but the previous state could not be written back.
    #[error(
        "nftables rules differ from the plan after writing ({difference}); restoring the previous rules failed: {reason}"
    )]
    NotRestored {
        /// First difference.
        difference: String,
        /// Why not.
        reason: String,
    },
}

/// What an apply did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The wanted state was already there; nothing was written.
    Unchanged,
    /// The tables were replaced.
    Replaced,
}

fn own_table(name: &str) -> bool {
    TABLES.iter().any(|table| table_name(*table) == name)
}

/// Reads our tables, consistently with respect to one generation.
///
/// # Errors
/// The kernel refuses, or the rule set does not hold still.
pub fn read_state(socket: &mut NftSocket) -> Result<(Vec<TableState>, u32), NetlinkError> {
    for _ in 0..ATTEMPTS {
        let before = socket.generation()?;
        let state = match read_once(socket) {
            Err(NetlinkError::Changed) => continue,
            other => other?,
        };
        if socket.generation()? == before {
            return Ok((state, before));
        }
    }
    Err(NetlinkError::Inconsistent)
}

fn read_once(socket: &mut NftSocket) -> Result<Vec<TableState>, NetlinkError> {
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
    let order = |name: &str| TABLES.iter().position(|t| table_name(*t) == name);
    found.sort_by_key(|table| order(&table.name));
    Ok(found)
}

fn decode_chain(answer: &[u8]) -> ChainState {
    let base = attribute(answer, 4).map(|hook| BaseState {
        kind: text(answer, 7).unwrap_or_default(),
        hook: be32(hook, 1).unwrap_or_default(),
        priority: be32(hook, 2).unwrap_or_default().cast_signed(),
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

/// Makes the kernel hold exactly `wanted`. With `force` the tables are written even if they are
/// already right (which resets the counters).
///
/// # Errors
/// See [`ApplyError`]; except for `NotRestored` the state afterwards is the state before.
pub fn apply(
    socket: &mut NftSocket,
    wanted: &[TableState],
    force: bool,
) -> Result<(Outcome, Vec<TableState>), ApplyError> {
    for _ in 0..ATTEMPTS {
        let (previous, generation) = read_state(socket)?;
        if !force && previous == wanted {
            return Ok((Outcome::Unchanged, previous));
        }
        let mut batch = Batch::default();
        batch.delete_own_tables().create(wanted);
        match socket.commit(&batch, Some(generation)) {
            Err(NetlinkError::Changed) => continue,
            other => other?,
        }
        let (written, _) = read_state(socket)?;
        let Some(difference) = first_difference(wanted, &written) else {
            return Ok((Outcome::Replaced, previous));
        };
        return Err(match restore(socket, &previous) {
            Ok(()) => ApplyError::Mismatch { difference },
            Err(error) => ApplyError::NotRestored {
                difference,
                reason: error.to_string(),
            },
        });
    }
    Err(NetlinkError::Inconsistent.into())
}

/// Writes back a state that [`apply`] returned or found.
///
/// # Errors
/// It holds expressions that are not ours, or the kernel refuses.
pub fn restore(socket: &NftSocket, previous: &[TableState]) -> Result<(), NetlinkError> {
    if !is_restorable(previous) {
        return Err(NetlinkError::Inconsistent);
    }
    let mut batch = Batch::default();
    batch.delete_own_tables().create(previous);
    socket.commit(&batch, None)
}

/// Removes our tables if any exists.
///
/// # Errors
/// The kernel refuses.
pub fn remove(socket: &mut NftSocket) -> Result<Outcome, ApplyError> {
    let (previous, _) = read_state(socket)?;
    if previous.is_empty() {
        return Ok(Outcome::Unchanged);
    }
    let mut batch = Batch::default();
    batch.delete_own_tables();
    socket.commit(&batch, None)?;
    Ok(Outcome::Replaced)
}

/// Whether iptables-nft tables of a family hold chains of ours.
///
/// # Errors
/// The kernel refuses.
pub fn iptables_chains_exist(socket: &mut NftSocket, family: Family) -> Result<bool, NetlinkError> {
    let number = match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    };
    let chains = socket.dump(kind::GETCHAIN, number, &Attributes::default())?;
    Ok(chains
        .iter()
        .any(|chain| text(chain, 3).is_some_and(|name| name.starts_with("ISTIO_"))))
}
