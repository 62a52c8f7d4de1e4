//! Scopes of the log and their levels, the `<scope>:<level>,…` syntax, and the handle that changes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tracing::level_filters::LevelFilter;

use super::LogError;

/// Every scope, in alphabetical order. An event names its scope as its target.
pub const SCOPES: [&str; 19] = [
    "ads",
    "ca",
    "cache",
    "citadelclient",
    "default",
    "dns",
    "gcecred",
    "grpc",
    "healthcheck",
    "klog",
    "mockcred",
    "monitoring",
    "probes",
    "sds",
    "security",
    "spiffe",
    "validation",
    "wasm",
    "xdsproxy",
];

/// Position of `default` in [`SCOPES`].
const DEFAULT: usize = 4;
/// Item of a level list that stands for every scope.
const ALL: &str = "all";

/// What a scope prints: this level and the graver ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Nothing.
    None,
    /// What ends the process. No `tracing` level maps to it, so it silences a scope but for those.
    Fatal,
    /// Errors.
    Error,
    /// Warnings.
    Warn,
    /// Normal events.
    Info,
    /// Everything but `tracing`'s trace level, which no scope prints.
    Debug,
}

const LEVELS: [(Level, &str); 6] = [
    (Level::None, "none"),
    (Level::Fatal, "fatal"),
    (Level::Error, "error"),
    (Level::Warn, "warn"),
    (Level::Info, "info"),
    (Level::Debug, "debug"),
];

impl Level {
    /// The level of a word of the flag syntax.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        LEVELS
            .iter()
            .find(|(_, name)| *name == word)
            .map(|(level, _)| *level)
    }

    /// The word of the flag syntax and of log lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        LEVELS[self as usize].1
    }

    fn from_number(number: u8) -> Self {
        LEVELS
            .get(usize::from(number))
            .map_or(Self::None, |(level, _)| *level)
    }

    pub(super) const fn of_event(level: &tracing::Level) -> Self {
        match *level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warn,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG | tracing::Level::TRACE => Self::Debug,
        }
    }

    pub(super) const fn filter(self) -> LevelFilter {
        match self {
            Self::None | Self::Fatal => LevelFilter::OFF,
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
        }
    }
}

/// A scope, by its position in [`SCOPES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scope(usize);

impl Scope {
    pub(super) fn by_name(name: &str) -> Option<Self> {
        SCOPES.iter().position(|s| *s == name).map(Self)
    }

    /// `None` for the default scope, which lines do not show.
    pub(super) fn name(self) -> Option<&'static str> {
        SCOPES.get(self.0).copied().filter(|_| self.0 != DEFAULT)
    }
}

/// The scopes of a comma list; unknown names are ignored, `all` is all.
pub(super) fn parse_scopes(list: &str) -> Vec<Scope> {
    let mut scopes = Vec::new();
    for name in list.split(',').map(str::trim) {
        if name == ALL {
            return (0..SCOPES.len()).map(Scope).collect();
        }
        scopes.extend(Scope::by_name(name));
    }
    scopes
}

/// Levels per scope.
#[derive(Debug)]
struct Table([AtomicU8; SCOPES.len()]);

impl Table {
    fn new(level: Level) -> Self {
        Self(std::array::from_fn(|_| AtomicU8::new(level as u8)))
    }

    fn level(&self, scope: Scope) -> Level {
        let number = self.0.get(scope.0).map_or(0, |l| l.load(Ordering::Relaxed));
        Level::from_number(number)
    }

    /// Applies a level list, all of it or, if a word is wrong, nothing.
    fn apply(&self, list: &str) -> Result<(), LogError> {
        let mut changes = Vec::new();
        for item in list.split(',').map(str::trim) {
            let (scope, word) = match item.split_once(':') {
                None => ("default", item),
                Some((_, level)) if level.contains(':') => {
                    return Err(LogError::Format(item.to_owned()));
                }
                Some(pair) => pair,
            };
            let level = Level::parse(word).ok_or_else(|| LogError::Level(item.to_owned()))?;
            if scope == ALL {
                changes = (0..SCOPES.len()).map(|s| (Scope(s), level)).collect();
                break;
            }
            changes.extend(Scope::by_name(scope).map(|scope| (scope, level)));
        }
        for (scope, level) in changes {
            if let Some(cell) = self.0.get(scope.0) {
                cell.store(level as u8, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// What every scope prints.
#[derive(Debug)]
pub(super) struct Scopes {
    output: Table,
    stack: Table,
    caller: Vec<Scope>,
    modules: &'static [(&'static str, &'static str)],
}

impl Scopes {
    pub(super) fn new(
        modules: &'static [(&'static str, &'static str)],
        caller: Vec<Scope>,
    ) -> Self {
        // Scopes that a list does not name keep these.
        Self {
            output: Table::new(Level::Info),
            stack: Table::new(Level::None),
            caller,
            modules,
        }
    }

    /// Scope of a target: its name, else that of the longest module prefix, else the default.
    pub(super) fn of(&self, target: &str) -> Scope {
        let by_module = || {
            self.modules
                .iter()
                .filter(|(prefix, _)| is_module_of(target, prefix))
                .max_by_key(|(prefix, _)| prefix.len())
                .and_then(|(_, scope)| Scope::by_name(scope))
        };
        Scope::by_name(target)
            .or_else(by_module)
            .unwrap_or(Scope(DEFAULT))
    }

    pub(super) fn enabled(&self, scope: Scope, level: &tracing::Level) -> bool {
        *level != tracing::Level::TRACE && Level::of_event(level) <= self.output.level(scope)
    }

    pub(super) fn prints_caller(&self, scope: Scope) -> bool {
        self.caller.contains(&scope)
    }

    pub(super) fn prints_stack(&self, scope: Scope, level: Level) -> bool {
        level <= self.stack.level(scope)
    }

    /// The most talkative level of all scopes.
    pub(super) fn highest(&self) -> Level {
        (0..SCOPES.len())
            .map(|s| self.output.level(Scope(s)))
            .max()
            .unwrap_or(Level::None)
    }
}

fn is_module_of(target: &str, prefix: &str) -> bool {
    target
        .strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Changes the levels of a running log. Clones share it.
#[derive(Debug, Clone)]
pub struct LogHandle {
    scopes: Arc<Scopes>,
}

impl LogHandle {
    pub(super) fn new(scopes: Arc<Scopes>) -> Self {
        Self { scopes }
    }

    /// Applies a list in the syntax of `--log_output_level`; scopes it does not name keep their level. Nothing
    /// changes on error.
    ///
    /// # Errors
    /// [`LogError::Level`] and [`LogError::Format`].
    pub fn set_output_level(&self, list: &str) -> Result<(), LogError> {
        self.scopes.output.apply(list)?;
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }

    /// Applies a list in the syntax of `--log_stacktrace_level`.
    ///
    /// # Errors
    /// [`LogError::Level`] and [`LogError::Format`].
    pub fn set_stacktrace_level(&self, list: &str) -> Result<(), LogError> {
        self.scopes.stack.apply(list)
    }

    /// Every scope with its level.
    pub fn levels(&self) -> impl Iterator<Item = (&'static str, Level)> {
        SCOPES
            .iter()
            .enumerate()
            .map(|(i, name)| (*name, self.scopes.output.level(Scope(i))))
    }
}
