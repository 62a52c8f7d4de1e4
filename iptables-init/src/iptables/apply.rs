//! Makes the kernel hold the wanted rules through the iptables programs: nothing if they are
//! there, a plain restore on a clean state, a replacement otherwise. Both families or none.

use super::detect::{Tool, ToolError};
use super::state::{State, TableRules, equivalent, replacement};
use super::text::{TableText, render_restore, table_name};
use crate::host::OwnerNames;
use crate::log::Log;

/// One family: its programs and what it must hold.
#[derive(Debug)]
pub struct FamilyPlan {
    /// Programs.
    pub tool: Tool,
    /// Wanted tables; empty removes ours.
    pub tables: Vec<TableText>,
}

/// The wanted tables in the form of parsed save output.
fn wanted(tables: &[TableText]) -> Vec<TableRules> {
    tables
        .iter()
        .map(|table| TableRules {
            table: table_name(table.table).to_owned(),
            chains: table.chains.iter().map(ToString::to_string).collect(),
            rules: table.rules.clone(),
        })
        .collect()
}

/// What must be written for one family; `None` when nothing.
fn input(
    plan: &FamilyPlan,
    names: &OwnerNames,
    force: bool,
) -> Result<(State, Option<String>), ToolError> {
    let own = State::parse(&plan.tool.save()?).own();
    let want = wanted(&plan.tables);
    let must_write = force && !want.is_empty();
    if !must_write && equivalent(&own, &want, names) {
        return Ok((own, None));
    }
    let text = if own.tables.is_empty() {
        render_restore(&plan.tables)
    } else {
        replacement(&own, &want)
    };
    Ok((own, Some(text)))
}

/// Applies all families. Returns whether anything was written.
///
/// # Errors
/// A program fails; families written before it are back in their previous state, unless the
/// error says otherwise.
pub fn apply(plans: &[FamilyPlan], force: bool, log: &Log) -> Result<bool, ToolError> {
    let names = OwnerNames::read();
    let mut inputs = Vec::new();
    for plan in plans {
        inputs.push(input(plan, &names, force)?);
    }
    if inputs.iter().all(|(_, text)| text.is_none()) {
        log.info(
            "Found compatible residues of old iptables rules/chains, reconciliation not needed",
        );
        return Ok(false);
    }
    if inputs.iter().all(|(own, _)| own.tables.is_empty()) {
        log.info("Clean-state detected, new iptables are needed");
    } else {
        log.info("Found residues of old iptables rules/chains, replacing them");
    }
    log.info("Applying iptables chains and rules");
    let mut done: Vec<(&Tool, &State)> = Vec::new();
    for (plan, (own, text)) in plans.iter().zip(&inputs) {
        let Some(text) = text else { continue };
        let name = &plan.tool.name;
        log.info(&format!(
            "Running iptables restore with: {name}-restore and the following input:\n{}",
            text.trim_end()
        ));
        // Tables are separate commits: a failure may have left the first of them written.
        done.push((&plan.tool, own));
        if let Err(error) = plan.tool.restore(text) {
            log.error(&format!("Command error: {}", problem(&error)));
            return Err(undo(&done, error));
        }
    }
    Ok(true)
}

fn undo(done: &[(&Tool, &State)], cause: ToolError) -> ToolError {
    for (tool, previous) in done.iter().rev() {
        if let Err(error) = put_back_state(tool, previous) {
            return ToolError::NotUndone {
                cause: Box::new(cause),
                undo: Box::new(error),
            };
        }
    }
    cause
}

/// The tool's exit code in the reference's words.
fn problem(error: &ToolError) -> String {
    let kind = match error {
        ToolError::Failed { code: Some(1), .. } => "xtables other problem: ",
        ToolError::Failed { code: Some(2), .. } => "xtables parameter problem: ",
        ToolError::Failed { code: Some(3), .. } => "xtables version problem: ",
        ToolError::Failed { code: Some(4), .. } => "xtables resource problem: ",
        _ => "",
    };
    format!("{kind}{error}")
}

/// Removes everything of ours that one set of programs sees.
///
/// # Errors
/// A program fails.
pub fn cleanup(tool: &Tool) -> Result<bool, ToolError> {
    let own = State::parse(&tool.save()?).own();
    if own.tables.is_empty() {
        return Ok(false);
    }
    tool.restore(&replacement(&own, &[]))?;
    Ok(true)
}

/// Writes back our part of earlier save output.
///
/// # Errors
/// A program fails.
pub fn put_back(tool: &Tool, save_output: &str) -> Result<(), ToolError> {
    put_back_state(tool, &State::parse(save_output).own())
}

fn put_back_state(tool: &Tool, previous: &State) -> Result<(), ToolError> {
    let now = State::parse(&tool.save()?).own();
    if now == *previous {
        return Ok(());
    }
    tool.restore(&replacement(&now, &previous.tables))
}
