//! Finds the iptables programs and decides which kernel interface is in use, by reading only: a
//! probe that writes would create the very table that the next run takes for existing rules.

use std::fs;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use super::state::State;
use crate::config::Variant;
use crate::rules::Family;

/// Failure of an iptables program.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started or fed.
    #[error("failed to run {program}: {source}")]
    Run {
        /// Program name.
        program: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It ran and failed.
    #[error("{program}: {status}: {stderr}")]
    Failed {
        /// Program name.
        program: String,
        /// `exit status N`.
        status: String,
        /// Exit code, if it exited.
        code: Option<i32>,
        /// What it said.
        stderr: String,
    },
    /// The demanded variant does not work.
    #[error("iptables variant demanded by FORCE_IPTABLES_BINARY is not usable: {0}-save")]
    Forced(String),
    /// Rules of one family were refused and those of the other could not be put back.
    #[error("{cause}; restoring the previous IPv4 rules failed too: {undo}")]
    NotUndone {
        /// Why the run failed.
        cause: Box<Self>,
        /// Why it could not be undone.
        undo: Box<Self>,
    },
}

/// One usable set of programs, e.g. `iptables-nft`, `iptables-nft-save`, `iptables-nft-restore`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Program name without suffix.
    pub name: String,
    /// Family it works on.
    pub family: Family,
    /// Legacy programs take a lock and can be told to wait for it.
    pub legacy: bool,
}

const fn stem(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

impl Tool {
    fn new(family: Family, suffix: &str, legacy: bool) -> Self {
        Self {
            name: format!("{}{suffix}", stem(family)),
            family,
            legacy,
        }
    }

    /// The save output.
    ///
    /// # Errors
    /// The program is missing or fails.
    pub fn save(&self) -> Result<String, ToolError> {
        run(&format!("{}-save", self.name), &[], "")
    }

    /// Feeds the restore program.
    ///
    /// # Errors
    /// The program is missing or refuses the input.
    pub fn restore(&self, input: &str) -> Result<(), ToolError> {
        let wait: &[&str] = if self.legacy {
            &["--noflush", "--wait=30"]
        } else {
            &["--noflush"]
        };
        run(&format!("{}-restore", self.name), wait, input).map(drop)
    }

    fn usable(self) -> Option<Self> {
        self.save().ok().map(|_| self)
    }
}

fn run(program: &str, args: &[&str], input: &str) -> Result<String, ToolError> {
    let failed = |source| ToolError::Run {
        program: program.to_owned(),
        source,
    };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops reading reports why in its exit status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let code = output.status.code();
    Err(ToolError::Failed {
        program: program.to_owned(),
        status: code.map_or_else(|| "killed".to_owned(), |c| format!("exit status {c}")),
        code,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Whether the kernel has any legacy table in this namespace. Reading creates nothing.
#[must_use]
pub fn legacy_tables_exist(family: Family) -> bool {
    let path = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    fs::read_to_string(path).is_ok_and(|names| !names.trim().is_empty())
}

/// The chosen programs, and another variant whose rules of ours must go.
#[derive(Debug)]
pub struct Choice {
    /// The programs to use.
    pub tool: Tool,
    /// A second variant that also holds rules of ours.
    pub stale: Option<Tool>,
}

/// Chooses per family: the variant that already holds our chains; else legacy if it holds real
/// rules; else nft; else the plain name. `None` when no program works.
///
/// # Errors
/// A forced variant is not usable.
pub fn choose(family: Family, forced: Option<Variant>) -> Result<Option<Choice>, ToolError> {
    let legacy = legacy_tables_exist(family)
        .then(|| Tool::new(family, "-legacy", true).usable())
        .flatten();
    let nft = Tool::new(family, "-nft", false).usable();
    let state = |tool: &Option<Tool>| {
        let text = tool.as_ref().and_then(|tool| tool.save().ok());
        State::parse(&text.unwrap_or_default())
    };
    let (legacy_state, nft_state) = (state(&legacy), state(&nft));
    if let Some(variant) = forced {
        let (suffix, is_legacy) = match variant {
            Variant::Legacy => ("-legacy", true),
            Variant::Nft => ("-nft", false),
        };
        let tool = Tool::new(family, suffix, is_legacy);
        let name = tool.name.clone();
        let tool = tool.usable().ok_or(ToolError::Forced(name))?;
        let (other, other_state) = match variant {
            Variant::Legacy => (nft, nft_state),
            Variant::Nft => (legacy, legacy_state),
        };
        let stale = other.filter(|_| other_state.has_own_chains());
        return Ok(Some(Choice { tool, stale }));
    }
    let (tool, stale) = match (legacy, nft) {
        (Some(legacy), Some(nft)) => {
            let prefer_nft = nft_state.has_own_chains()
                || !(legacy_state.has_own_chains() || legacy_state.has_rules());
            let both = nft_state.has_own_chains() && legacy_state.has_own_chains();
            if prefer_nft {
                (nft, both.then_some(legacy))
            } else {
                (legacy, None)
            }
        }
        (Some(legacy), None) => (legacy, None),
        (None, Some(nft)) => (nft, None),
        (None, None) => match plain(family) {
            Some(tool) => (tool, None),
            None => return Ok(None),
        },
    };
    Ok(Some(Choice { tool, stale }))
}

fn plain(family: Family) -> Option<Tool> {
    let version = run(&format!("{}-save", stem(family)), &["--version"], "").unwrap_or_default();
    Tool::new(family, "", !version.contains("nf_tables")).usable()
}
