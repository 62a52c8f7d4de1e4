//! Taking steps back, last one first. A step that cannot be taken back does not stop the others.

use std::fmt;

use super::{StepError, Transaction};
use crate::iptables::apply as iptables;
use crate::iptables::detect::Tool;
use crate::iptables::state::State;
use crate::nft::apply::{self as nft, Snapshot};
use crate::nft::socket::NftSocket;
use crate::routes::{Change, RouteSocket};

/// How to take one step back.
pub(super) enum Undo {
    /// The nf_tables state of ours, also what iptables-nft programs wrote.
    Nft(Box<Snapshot>),
    /// Legacy rules: the programs and all they printed.
    Legacy(Tool, State),
    /// The inverse of a change of routes.
    Route(Change),
}

impl Undo {
    fn run(&self) -> Result<(), String> {
        match self {
            Self::Nft(before) => NftSocket::open()
                .and_then(|mut socket| nft::restore(&mut socket, before))
                .map_err(|e| format!("nftables rules: {e}")),
            Self::Legacy(tool, before) => {
                iptables::put_back(tool, before).map_err(|e| format!("{} rules: {e}", tool.name))
            }
            Self::Route(change) => RouteSocket::open()
                .map_err(|e| format!("routes: {e}"))
                .and_then(|socket| change.make(&socket).map_err(|e| e.to_string())),
        }
    }
}

/// A failed run and what became of the state.
#[derive(Debug)]
pub struct EngineError {
    /// The step that failed.
    pub cause: StepError,
    /// Whether anything had been changed.
    changed: bool,
    /// What could not be taken back.
    pub not_undone: Vec<String>,
}

impl std::error::Error for EngineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        match (self.changed, self.not_undone.is_empty()) {
            (false, _) => f.write_str("; nothing was changed"),
            (true, true) => f.write_str("; the previous state is restored"),
            (true, false) => {
                let list = self.not_undone.join("; ");
                write!(f, "; restoring the previous state failed: {list}")
            }
        }
    }
}

impl Transaction<'_, '_> {
    /// Takes everything back if the run failed.
    pub(super) fn finish(&mut self, result: Result<(), StepError>) -> Result<(), EngineError> {
        result.map_err(|cause| EngineError {
            cause,
            changed: !self.undo.is_empty(),
            not_undone: self
                .undo
                .drain(..)
                .rev()
                .filter_map(|undo| undo.run().err())
                .collect(),
        })
    }
}
