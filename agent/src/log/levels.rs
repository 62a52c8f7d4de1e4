//! Scopes and how much each of them prints.

use std::collections::BTreeMap;

use tracing::{Level, Metadata};

/// Scopes of the agent (spec agent.md 1.1).
pub(super) const SCOPES: &[&str] = &[
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

/// How much a scope prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verbosity {
    /// Nothing, and also Istio's `fatal`: no event is graver than an error.
    Off,
    /// Errors.
    Error,
    /// Warnings too.
    Warning,
    /// Information too.
    Info,
    /// Debugging too.
    Debug,
}

impl Verbosity {
    /// debug, info, warn, error, fatal, none.
    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" => Self::Warning,
            "error" => Self::Error,
            "fatal" | "none" => Self::Off,
            _ => return None,
        })
    }

    pub(super) fn allows(self, level: Level) -> bool {
        let needed = match level {
            Level::ERROR => Self::Error,
            Level::WARN => Self::Warning,
            Level::INFO => Self::Info,
            Level::DEBUG => Self::Debug,
            // Istio's logs know nothing below.
            Level::TRACE => return false,
        };
        self >= needed
    }
}

/// Levels by scope.
#[derive(Debug, Clone)]
pub(super) struct Levels {
    default: Verbosity,
    scopes: BTreeMap<&'static str, Verbosity>,
}

/// Not a level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown log level: {0}")]
pub struct LevelError(pub(super) String);

impl Levels {
    /// Every scope at `default`.
    pub(super) const fn new(default: Verbosity) -> Self {
        Self {
            default,
            scopes: BTreeMap::new(),
        }
    }

    /// Level of a scope.
    pub(super) fn of(&self, scope: &str) -> Verbosity {
        self.scopes.get(scope).copied().unwrap_or(self.default)
    }

    /// Sets one scope. Unknown ones are ignored, as older and newer templates name others.
    pub(super) fn set(&mut self, scope: &str, level: Verbosity) {
        if let Some(known) = SCOPES.iter().find(|known| **known == scope) {
            self.scopes.insert(known, level);
        }
    }

    /// Whether no scope prints anything.
    pub(super) fn are_off(&self) -> bool {
        SCOPES.iter().all(|scope| self.of(scope) == Verbosity::Off)
    }

    /// Applies `--log_output_level`: `scope:level,...`, a bare level sets the scope `default`, `all` sets all.
    /// Nothing changes on error.
    ///
    /// # Errors
    /// An unknown level.
    pub(super) fn apply(&mut self, spec: &str) -> Result<(), LevelError> {
        let mut changes = Vec::new();
        for item in spec.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            let (scope, level) = item.split_once(':').unwrap_or(("default", item));
            let level = Verbosity::from_text(level).ok_or_else(|| LevelError(level.to_owned()))?;
            changes.push((scope, level));
        }
        for (scope, level) in changes {
            match scope {
                "all" => *self = Self::new(level),
                scope => self.set(scope, level),
            }
        }
        Ok(())
    }

    pub(super) fn allow(&self, metadata: &Metadata<'_>) -> bool {
        self.of(scope(metadata)).allows(*metadata.level())
    }
}

/// Crates below gRPC; their events are as many as frames.
const GRPC_CRATES: &[&str] = &["h2", "hyper", "hyper_util", "tonic", "tower"];

/// Targets that are no scope belong to the default one, but for the libraries below gRPC.
pub(super) fn scope<'a>(metadata: &Metadata<'a>) -> &'a str {
    let target = metadata.target();
    if SCOPES.contains(&target) {
        target
    } else if GRPC_CRATES.contains(&target.split("::").next().unwrap_or_default()) {
        "grpc"
    } else {
        "default"
    }
}
