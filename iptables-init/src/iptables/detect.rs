//! Finds the iptables programs and decides which kernel interface is in use, by reading only: a
//! probe that writes would create the very table that the next run takes for existing rules.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::legacy::LegacyState;
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
    /// The kernel holds something else than was written.
    #[error("{0} rules differ from the plan after writing: {1}")]
    Mismatch(String, String),
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
    /// XTABLES_LOCKFILE of the programs; `None` leaves their own (`/run/xtables.lock`).
    pub lock: Option<PathBuf>,
}

const fn stem(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

impl Tool {
    fn new(family: Family, suffix: &str, legacy: bool, lock: Option<&PathBuf>) -> Self {
        Self {
            name: format!("{}{suffix}", stem(family)),
            family,
            legacy,
            lock: lock.cloned(),
        }
    }

    /// The programs of the legacy variant.
    #[must_use]
    pub fn legacy(family: Family, lock: Option<&PathBuf>) -> Self {
        Self::new(family, "-legacy", true, lock)
    }

    /// The programs of a variant: `-nft` or `-legacy`.
    #[must_use]
    pub fn variant(family: Family, suffix: &str) -> Self {
        Self::new(family, suffix, suffix == "-legacy", None)
    }

    /// The save output.
    ///
    /// # Errors
    /// The program is missing or fails.
    pub fn save(&self) -> Result<String, ToolError> {
        self.run("-save", &[], "")
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
        self.run("-restore", wait, input).map(drop)
    }

    /// Whether a rule exists, by the program's own comparison. `line` is `-A CHAIN …` or
    /// `-I CHAIN n …`.
    #[must_use]
    pub fn has_rule(&self, table: &str, line: &str) -> bool {
        let mut words: Vec<&str> = line.split_ascii_whitespace().collect();
        if words.first() == Some(&"-I") {
            words.remove(2);
        }
        words[0] = "-C";
        self.run("", &[&["-t", table], &words[..]].concat(), "")
            .is_ok()
    }

    fn run(&self, suffix: &str, args: &[&str], input: &str) -> Result<String, ToolError> {
        run(
            &format!("{}{suffix}", self.name),
            args,
            input,
            self.lock.as_ref(),
        )
    }
}

fn run(
    program: &str,
    args: &[&str],
    input: &str,
    lock: Option<&PathBuf>,
) -> Result<String, ToolError> {
    let failed = |source| ToolError::Run {
        program: program.to_owned(),
        source,
    };
    let mut command = Command::new(program);
    if let Some(lock) = lock {
        command.env("XTABLES_LOCKFILE", lock);
    }
    let mut child = command
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

/// What the kernel holds of one family, found without any program.
#[derive(Debug, Clone, Copy)]
pub struct Residue {
    /// The legacy tables.
    pub legacy: LegacyState,
    /// Whether iptables-nft tables hold `ISTIO_*` chains.
    pub own_in_nft: bool,
}

/// The chosen programs and their save output.
#[derive(Debug)]
pub struct Choice {
    /// The programs.
    pub tool: Tool,
    /// What they print now.
    pub before: String,
}

/// Chooses per family: the variant that already holds our chains; else legacy if it holds rules;
/// else nft; else the plain name; else legacy after all. `None` when no program works.
///
/// # Errors
/// A forced variant is not usable.
pub fn choose(
    family: Family,
    forced: Option<Variant>,
    residue: Residue,
    lock: Option<&PathBuf>,
) -> Result<Option<Choice>, ToolError> {
    let usable = |tool: Tool| {
        let before = tool.save().ok()?;
        Some(Choice { tool, before })
    };
    let legacy = || usable(Tool::legacy(family, lock));
    let nft = || usable(Tool::new(family, "-nft", false, lock));
    let missing = |suffix| ToolError::Forced(format!("{}{suffix}", stem(family)));
    match forced {
        Some(Variant::Legacy) => return legacy().map(Some).ok_or_else(|| missing("-legacy")),
        Some(Variant::Nft) => return nft().map(Some).ok_or_else(|| missing("-nft")),
        None => {}
    }
    let prefer_legacy = residue.legacy != LegacyState::Empty && !residue.own_in_nft;
    let first = if prefer_legacy { legacy() } else { None };
    Ok(first
        .or_else(nft)
        .or_else(|| usable(plain(family, lock)))
        .or_else(legacy))
}

/// Whether any variant's program is there, which takes no privilege to find out.
#[must_use]
pub fn installed(family: Family) -> bool {
    ["-nft", "", "-legacy"].iter().any(|suffix| {
        let program = format!("{}{suffix}-save", stem(family));
        run(&program, &["--version"], "", None).is_ok()
    })
}

fn plain(family: Family, lock: Option<&PathBuf>) -> Tool {
    // Very old programs do not know the option; those are legacy.
    let version = run(&format!("{}-save", stem(family)), &["--version"], "", lock);
    let version = version.unwrap_or_default();
    Tool::new(family, "", !version.contains("nf_tables"), lock)
}
