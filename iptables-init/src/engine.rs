//! Applies and cleans up as one transaction over all kernel interfaces: every step records how to
//! take it back before the next one starts, and a failure takes all of them back. The order keeps
//! traffic captured throughout: routes are added before the rules that need them and removed
//! after the rules that needed them; the chosen backend is complete before another one goes.

mod plan;
mod undo;

use std::path::PathBuf;

use crate::config::Config;
use crate::host::{OwnerError, OwnerNames};
use crate::iptables::apply::{self as iptables, FamilyPlan};
use crate::iptables::detect::{Tool, ToolError};
use crate::iptables::legacy::{self, LegacyState};
use crate::iptables::state::State;
use crate::log::Log;
use crate::nft::apply::{self as nft, Wanted};
use crate::nft::socket::{NetlinkError, NftSocket};
use crate::nft::state::TableState;
use crate::nft::text::render_transaction;
use crate::routes::{self, Change, Ownership, RouteError, RoutePlan, RouteSocket};
use crate::rules::Family;
use plan::{Backend, Before};
pub use undo::EngineError;
use undo::Undo;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A step that took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// An address, policy rule or route was added.
    RouteAdded,
    /// The nf_tables transaction was committed.
    NftWritten,
    /// What it wrote was read back and found right.
    NftVerified,
    /// A restore program has written one family.
    Restored(Family),
    /// What it wrote was read back and found right.
    RestoreVerified(Family),
    /// Legacy rules of an earlier run were removed.
    LegacyRemoved(Family),
    /// An address, policy rule or route of an earlier run was removed.
    RouteRemoved,
}

/// Is told of every step right after it; an error stops the run there, and all is undone.
pub type Observer<'a> = dyn FnMut(Step) -> Result<(), String> + 'a;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum StepError {
    #[error(transparent)]
    Owner(#[from] OwnerError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("failed to read the nftables rules: {0}")]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Nft(#[from] nft::ApplyError),
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error("failed to read the legacy iptables rules: {0}")]
    Legacy(#[from] nix::errno::Errno),
    #[error("failed to open the routing socket: {0}")]
    RouteSocket(#[source] nix::errno::Errno),
    #[error("IPv6 rules are wanted but no ip6tables program works")]
    NoIpv6Tool,
    #[error(
        "legacy iptables rules of Istio exist and would act besides the new ones, but {0} does not \
         work here: run this program where the legacy iptables programs are installed, or remove \
         the ISTIO_* chains with them"
    )]
    NoLegacyTool(String),
    #[error("{0} still holds ISTIO_* chains after their removal")]
    StillThere(String),
    #[error("stopped after {0:?}: {1}")]
    Stopped(Step, String),
}

/// Makes the kernel hold the configured rules and nothing else of ours.
///
/// # Errors
/// The first step that failed; the state is the one before, unless the error says otherwise.
pub fn apply(config: &Config, log: &Log, observer: &mut Observer<'_>) -> Result<(), EngineError> {
    let mut run = Transaction::new(config, log, observer);
    let result = run.apply();
    let result = run.finish(result);
    run.log_final_state(result.is_err());
    result
}

/// Removes everything that any version of this program or of the reference leaves, whatever the
/// flags were.
///
/// # Errors
/// As [`apply`].
pub fn cleanup(config: &Config, log: &Log, observer: &mut Observer<'_>) -> Result<(), EngineError> {
    let mut run = Transaction::new(config, log, observer);
    let result = run.cleanup();
    run.finish(result)
}

struct Transaction<'a, 'o> {
    config: &'a Config,
    log: &'a Log,
    observer: &'a mut Observer<'o>,
    undo: Vec<Undo>,
    /// The chosen programs and what they printed last.
    printed: Vec<(Tool, String)>,
    names: OwnerNames,
    lock: Option<PathBuf>,
}

impl<'a, 'o> Transaction<'a, 'o> {
    fn new(config: &'a Config, log: &'a Log, observer: &'a mut Observer<'o>) -> Self {
        Self {
            config,
            log,
            observer,
            undo: Vec::new(),
            printed: Vec::new(),
            names: OwnerNames::read(),
            lock: config.xtables_lock(),
        }
    }

    fn done(&mut self, step: Step) -> Result<(), StepError> {
        (self.observer)(step).map_err(|reason| StepError::Stopped(step, reason))
    }

    fn apply(&mut self) -> Result<(), StepError> {
        let before = self.look(self.config.settings.native_nftables)?;
        let backend = self.choose(&before)?;
        let stale = self.stale_legacy(&before, &backend)?;
        let routes = RouteSocket::open().map_err(StepError::RouteSocket)?;
        let changes = self.plan_routes(&routes, &before, &backend, &stale)?;
        self.make(&routes, &changes.add, Step::RouteAdded)?;
        let written = match &backend {
            Backend::Native { wanted, .. } => self.write_native(wanted)?,
            Backend::Programs(plans) => self.write_programs(plans, &before)?,
        };
        self.remove_legacy(&stale)?;
        self.make(&routes, &changes.remove, Step::RouteRemoved)?;
        if let Backend::Native { plan, .. } = &backend {
            let what = if written {
                "nftables rules programmed:"
            } else {
                "nftables rules are already in place, nothing written:"
            };
            let text = render_transaction(plan);
            self.log.info(&format!("{what}\n{}", text.trim_end()));
        }
        Ok(())
    }

    fn cleanup(&mut self) -> Result<(), StepError> {
        let before = self.look(false)?;
        let stale = self.legacy_of(&before, &FAMILIES)?;
        let routes = RouteSocket::open().map_err(StepError::RouteSocket)?;
        let ours = Ownership::Shape {
            mark: self.config.rules.mark,
            table: self.config.route_table,
        };
        let changes = routes::plan(&routes, RoutePlan::NONE, &ours)?;
        if before.nft.is_some() {
            let wanted = Wanted {
                native: &[],
                without_xtables: &FAMILIES,
                without_empty: true,
            };
            if self.write_nft(wanted, false)? {
                self.log
                    .info("removed all nftables rules and chains of Istio");
            }
        }
        self.remove_legacy(&stale)?;
        self.make(&routes, &changes.remove, Step::RouteRemoved)
    }

    fn make(
        &mut self,
        socket: &RouteSocket,
        changes: &[Change],
        step: Step,
    ) -> Result<(), StepError> {
        for change in changes {
            change.make(socket)?;
            self.undo.push(Undo::Route(change.inverse()));
            if change.adds_address() {
                self.log.info("Added ::6 address on the loopback iface");
            }
            self.done(step)?;
        }
        Ok(())
    }

    fn write_native(&mut self, native: &[TableState]) -> Result<bool, StepError> {
        let wanted = Wanted {
            native,
            without_xtables: &FAMILIES,
            without_empty: false,
        };
        self.write_nft(wanted, self.config.settings.force_apply)
    }

    fn write_nft(&mut self, wanted: Wanted<'_>, force: bool) -> Result<bool, StepError> {
        let mut socket = NftSocket::open()?;
        let Some(before) = nft::replace(&mut socket, wanted, force)? else {
            return Ok(false);
        };
        self.undo.push(Undo::Nft(Box::new(before)));
        self.done(Step::NftWritten)?;
        nft::verify(&mut socket, wanted)?;
        self.done(Step::NftVerified)?;
        Ok(true)
    }

    fn write_programs(&mut self, plans: &[FamilyPlan], before: &Before) -> Result<bool, StepError> {
        let log = self.log;
        let written = plans.iter().any(|plan| plan.input.is_some());
        if !written {
            log.info(
                "Found compatible residues of old iptables rules/chains, reconciliation not needed",
            );
        } else if plans.iter().all(FamilyPlan::was_clean) {
            log.info("Clean-state detected, new iptables are needed");
        } else {
            log.info("Found residues of old iptables rules/chains, replacing them");
        }
        for plan in plans {
            self.write_family(plan, before)?;
        }
        // The rules of the other backends would act besides the new ones.
        let served = |family: &Family| {
            plans
                .iter()
                .any(|p| p.tool.family == *family && !p.tool.legacy)
        };
        let others: Vec<Family> = FAMILIES.into_iter().filter(|f| !served(f)).collect();
        let wanted = Wanted {
            native: &[],
            without_xtables: &others,
            without_empty: false,
        };
        if before.nft.is_some() && self.write_nft(wanted, false)? {
            log.info("removed the nftables rules of an earlier run");
        }
        Ok(written)
    }

    fn write_family(&mut self, plan: &FamilyPlan, before: &Before) -> Result<(), StepError> {
        let Some(input) = &plan.input else {
            return Ok(());
        };
        let (log, family) = (self.log, plan.tool.family);
        log.info(&format!(
            "Running iptables restore with: {}-restore and the following input:\n{}",
            plan.tool.name,
            input.trim_end()
        ));
        // Tables are separate commits: a failure may have left the first of them written.
        self.undo.push(match &before.nft {
            Some(snapshot) if !plan.tool.legacy => Undo::Nft(Box::new(snapshot.clone())),
            _ => Undo::Legacy(plan.tool.clone(), plan.before.clone()),
        });
        if let Err(error) = plan.tool.restore(input) {
            log.error(&format!("Command error: {}", iptables::problem(&error)));
            return Err(error.into());
        }
        self.done(Step::Restored(family))?;
        let text = plan.verify(&self.names)?;
        for (tool, printed) in &mut self.printed {
            if *tool == plan.tool {
                printed.clone_from(&text);
            }
        }
        self.done(Step::RestoreVerified(family))
    }

    fn remove_legacy(&mut self, stale: &[(Tool, State)]) -> Result<(), StepError> {
        for (tool, before) in stale {
            self.undo.push(Undo::Legacy(tool.clone(), before.clone()));
            iptables::remove(tool, before)?;
            if legacy::read(tool.family)? == LegacyState::Own {
                return Err(StepError::StillThere(tool.name.clone()));
            }
            let name = &tool.name;
            self.log
                .info(&format!("removed the rules of an earlier run ({name})"));
            self.done(Step::LegacyRemoved(tool.family))?;
        }
        Ok(())
    }

    /// Also after a failure, because bug reports are made of it; then it is read once more.
    fn log_final_state(&self, failed: bool) {
        for (tool, printed) in &self.printed {
            let family = match tool.family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            };
            let text = if failed {
                tool.save().unwrap_or_else(|error| error.to_string())
            } else {
                printed.clone()
            };
            self.log.info(&format!(
                "Final iptables state ({family}):\n{}",
                text.trim_end()
            ));
        }
    }
}
