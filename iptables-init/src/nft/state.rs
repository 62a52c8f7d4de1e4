//! The content of our `inet` tables as plain values: what is wanted, what was there before, and
//! what the kernel reports afterwards all have this one type, so comparing them is `==`.

use super::expr::Expr;
use super::plan::BaseChain;

/// Type, hook and priority of a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseState {
    /// `nat`, `filter` or `route`.
    pub kind: String,
    /// NF_INET_* hook number.
    pub hook: u32,
    /// Priority.
    pub priority: i32,
    /// Verdict at the end of the chain: 1 accept, 0 drop.
    pub policy: u32,
}

/// NF_ACCEPT, the kernel's default.
pub const POLICY_ACCEPT: u32 = 1;

impl From<BaseChain> for BaseState {
    fn from(base: BaseChain) -> Self {
        Self {
            kind: base.kind.to_owned(),
            hook: base.hook_number,
            priority: base.priority,
            policy: POLICY_ACCEPT,
        }
    }
}

/// One chain with its rules in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainState {
    /// Name.
    pub name: String,
    /// Hook, for base chains.
    pub base: Option<BaseState>,
    /// Rules.
    pub rules: Vec<Vec<Expr>>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableState {
    /// Name.
    pub name: String,
    /// Chains in creation order.
    pub chains: Vec<ChainState>,
}

impl TableState {
    /// The chain of this name.
    #[must_use]
    pub fn chain(&self, name: &str) -> Option<&ChainState> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// Whether `old` can become this by changing rules and adding or removing chains: no chain is
    /// on another hook in it.
    #[must_use]
    pub fn can_follow(&self, old: &Self) -> bool {
        let same = |chain: &ChainState| {
            let was = old.chain(&chain.name);
            was.is_none_or(|was| was.base == chain.base)
        };
        self.chains.iter().all(same)
    }
}

/// The first difference in words, for error messages.
#[must_use]
pub fn first_difference(want: &[TableState], got: &[TableState]) -> Option<String> {
    for table in want {
        let Some(there) = got.iter().find(|t| t.name == table.name) else {
            return Some(format!("table {} is missing", table.name));
        };
        for chain in &table.chains {
            let path = format!("{} {}", table.name, chain.name);
            let Some(found) = there.chains.iter().find(|c| c.name == chain.name) else {
                return Some(format!("chain {path} is missing"));
            };
            if chain.base != found.base {
                return Some(format!("chain {path} has another hook or policy"));
            }
            if chain.rules.len() != found.rules.len() {
                let (want, got) = (chain.rules.len(), found.rules.len());
                return Some(format!("chain {path} has {got} rules instead of {want}"));
            }
            let differs = chain
                .rules
                .iter()
                .zip(&found.rules)
                .position(|(a, b)| a != b);
            if let Some(index) = differs {
                return Some(format!("rule {index} of chain {path} differs"));
            }
        }
        if there.chains.len() != table.chains.len() {
            return Some(format!("table {} has unexpected chains", table.name));
        }
    }
    (want.len() != got.len()).then(|| "unexpected tables exist".to_owned())
}
