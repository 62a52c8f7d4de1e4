//! One family through the iptables programs: what to feed the restore program so that the kernel
//! holds the wanted rules, and whether it does afterwards.

use super::detect::{Tool, ToolError};
use super::state::{State, TableRules, equivalent, replacement, rule_chain};
use super::text::{TableText, render_restore, table_name};
use crate::host::OwnerNames;

/// One family: its programs and what it must hold.
#[derive(Debug)]
pub struct FamilyPlan {
    /// Programs.
    pub tool: Tool,
    /// Everything that was there before, also of others.
    pub before: State,
    /// Restore input; `None` when the wanted rules are there.
    pub input: Option<String>,
    wanted: Vec<TableRules>,
}

impl FamilyPlan {
    /// Compares what is there (`save_output`) with what is wanted. With `force` it is written
    /// even if nothing differs.
    #[must_use]
    pub fn new(
        tool: Tool,
        save_output: &str,
        tables: &[TableText],
        names: &OwnerNames,
        force: bool,
    ) -> Self {
        let before = State::parse(save_output);
        let own = before.own();
        let wanted: Vec<TableRules> = tables.iter().map(parsed_form).collect();
        let input = if !force && equivalent(&own, &wanted, names) {
            None
        } else if own.tables.is_empty() {
            Some(render_restore(tables))
        } else {
            Some(replacement(&own, &wanted))
        };
        Self {
            tool,
            before,
            input,
            wanted,
        }
    }

    /// Whether the family held nothing of ours.
    #[must_use]
    pub fn was_clean(&self) -> bool {
        self.before.own().tables.is_empty()
    }

    /// Reads back and compares; returns the save output.
    ///
    /// # Errors
    /// The program fails, or the rules are not what was wanted.
    pub fn verify(&self, names: &OwnerNames) -> Result<String, ToolError> {
        let text = self.tool.save()?;
        let own = State::parse(&text).own();
        if equivalent(&own, &self.wanted, names) {
            return Ok(text);
        }
        // A version of the program may print a rule in words that nobody here knows. Then its own
        // comparison decides.
        match self.difference(&own) {
            Some(difference) => Err(ToolError::Mismatch(self.tool.name.clone(), difference)),
            None => Ok(text),
        }
    }

    fn difference(&self, own: &State) -> Option<String> {
        let expected = own.tables.iter().all(|t| {
            let names = self.wanted.iter().find(|w| w.table == t.table);
            names.is_some_and(|w| t.chains.iter().all(|chain| w.chains.contains(chain)))
        });
        if !expected {
            return Some("unexpected chains exist".to_owned());
        }
        for table in &self.wanted {
            let name = &table.table;
            let Some(there) = own.tables.iter().find(|t| t.table == *name) else {
                return Some(format!("table {name} has none of them"));
            };
            for chain in &table.chains {
                let count =
                    |t: &TableRules| t.rules.iter().filter(|l| rule_chain(l) == chain).count();
                let (want, got) = (count(table), count(there));
                if want != got || !there.chains.contains(chain) {
                    return Some(format!(
                        "chain {name} {chain} has {got} rules instead of {want}"
                    ));
                }
            }
            let absent = table
                .rules
                .iter()
                .find(|line| !self.tool.has_rule(name, line));
            if let Some(line) = absent {
                return Some(format!("rule {line:?} of table {name} is missing"));
            }
        }
        None
    }
}

/// A wanted table in the form of parsed save output.
fn parsed_form(table: &TableText) -> TableRules {
    TableRules {
        table: table_name(table.table).to_owned(),
        chains: table.chains.iter().map(ToString::to_string).collect(),
        rules: table.rules.clone(),
    }
}

/// Removes everything of ours that `before` holds.
///
/// # Errors
/// The program fails.
pub fn remove(tool: &Tool, before: &State) -> Result<(), ToolError> {
    tool.restore(&replacement(&before.own(), &[]))
}

/// Writes our part of an earlier state back, at the places it had.
///
/// # Errors
/// The program fails.
pub fn put_back(tool: &Tool, before: &State) -> Result<(), ToolError> {
    let now = State::parse(&tool.save()?);
    if now == *before {
        return Ok(());
    }
    tool.restore(&replacement(&now.own(), &before.own_in_place().tables))
}

/// The tool's exit code in the reference's words.
#[must_use]
pub fn problem(error: &ToolError) -> String {
    let kind = match error {
        ToolError::Failed { code: Some(1), .. } => "xtables other problem: ",
        ToolError::Failed { code: Some(2), .. } => "xtables parameter problem: ",
        ToolError::Failed { code: Some(3), .. } => "xtables version problem: ",
        ToolError::Failed { code: Some(4), .. } => "xtables resource problem: ",
        _ => "",
    };
    format!("{kind}{error}")
}
