//! Scopes, loggers and how much each of them prints.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::RwLock;
use tracing::{Level, Metadata};

/// Scopes of the agent (spec agent.md 1.1).
pub const AGENT_SCOPES: &[&str] = &[
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

/// Loggers of the proxy, those of Envoy that stand for parts this proxy has.
pub const PROXY_LOGGERS: &[&str] = &[
    "admin",
    "assert",
    "client",
    "config",
    "connection",
    "conn_handler",
    "dns",
    "file",
    "filter",
    "forward_proxy",
    "grpc",
    "http",
    "http2",
    "init",
    "io",
    "main",
    "misc",
    "original_dst",
    "pool",
    "rbac",
    "router",
    "runtime",
    "secret",
    "stats",
    "tcp_proxy",
    "testing",
    "tls",
    "tracing",
    "upstream",
];

/// How much a scope prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verbosity {
    /// Nothing, and also Istio's `fatal` and Envoy's `critical`: no event is graver than an error, and both hide errors.
    Off = 0,
    /// Errors.
    Error = 1,
    /// Warnings too.
    Warning = 2,
    /// Information too.
    Info = 3,
    /// Debugging too.
    Debug = 4,
    /// Everything.
    Trace = 5,
}

impl Verbosity {
    fn from_number(n: u8) -> Self {
        [
            Self::Off,
            Self::Error,
            Self::Warning,
            Self::Info,
            Self::Debug,
            Self::Trace,
        ]
        .into_iter()
        .find(|v| *v as u8 == n)
        .unwrap_or(Self::Info)
    }

    /// A level of Istio's logs: debug, info, warn, error, fatal, none.
    #[must_use]
    pub fn from_istio(text: &str) -> Option<Self> {
        Some(match text {
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" => Self::Warning,
            "error" => Self::Error,
            "fatal" | "none" => Self::Off,
            _ => return None,
        })
    }

    /// A level of Envoy's logs: trace, debug, info, warning (warn), error, critical, off.
    #[must_use]
    pub fn from_envoy(text: &str) -> Option<Self> {
        Some(match text {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warning" | "warn" => Self::Warning,
            "error" => Self::Error,
            "critical" | "off" => Self::Off,
            _ => return None,
        })
    }

    /// Envoy's name.
    #[must_use]
    pub const fn envoy_name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    pub(super) fn allows(self, level: Level) -> bool {
        let needed = match level {
            Level::ERROR => Self::Error,
            Level::WARN => Self::Warning,
            Level::INFO => Self::Info,
            Level::DEBUG => Self::Debug,
            Level::TRACE => Self::Trace,
        };
        self >= needed
    }
}

/// Levels by scope, shared with whoever changes them.
#[derive(Debug, Clone)]
pub struct Levels(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    default: AtomicU8,
    scopes: RwLock<BTreeMap<String, Verbosity>>,
    known: &'static [&'static str],
}

/// Why a level could not be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// Not a level.
    #[error("unknown log level: {0}")]
    UnknownLevel(String),
    /// Not a logger.
    #[error("unknown logger: {0}")]
    UnknownLogger(String),
}

impl Levels {
    /// Every scope at `default`.
    #[must_use]
    pub fn new(default: Verbosity, known: &'static [&'static str]) -> Self {
        Self(Arc::new(Inner {
            default: AtomicU8::new(default as u8),
            scopes: RwLock::default(),
            known,
        }))
    }

    /// Level of a scope.
    #[must_use]
    pub fn of(&self, scope: &str) -> Verbosity {
        self.0
            .scopes
            .read()
            .get(scope)
            .copied()
            .unwrap_or_else(|| Verbosity::from_number(self.0.default.load(Ordering::Relaxed)))
    }

    /// Sets every scope.
    pub fn set_all(&self, level: Verbosity) {
        self.0.scopes.write().clear();
        self.0.default.store(level as u8, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Sets one scope.
    ///
    /// # Errors
    /// The scope is not known.
    pub fn set(&self, scope: &str, level: Verbosity) -> Result<(), LevelError> {
        if !self.0.known.contains(&scope) {
            return Err(LevelError::UnknownLogger(scope.to_owned()));
        }
        self.0.scopes.write().insert(scope.to_owned(), level);
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }

    /// Every known scope with its level, sorted.
    #[must_use]
    pub fn list(&self) -> Vec<(&'static str, Verbosity)> {
        self.0.known.iter().map(|s| (*s, self.of(s))).collect()
    }

    /// Applies `--log_output_level`: `scope:level,...`, a bare level sets the scope `default`, `all` sets all.
    /// Unknown scopes are ignored, as older and newer templates name others. Nothing changes on error.
    ///
    /// # Errors
    /// An unknown level.
    pub fn apply_istio(&self, spec: &str) -> Result<(), LevelError> {
        let mut changes = Vec::new();
        for item in spec.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            let (scope, level) = item.split_once(':').unwrap_or(("default", item));
            let level = Verbosity::from_istio(level)
                .ok_or_else(|| LevelError::UnknownLevel(level.to_owned()))?;
            changes.push((scope, level));
        }
        for (scope, level) in changes {
            match scope {
                "all" => self.set_all(level),
                scope => {
                    // Not an error by design, see above.
                    let _ = self.set(scope, level);
                }
            }
        }
        Ok(())
    }
}

pub(super) fn enabled(levels: &Levels, metadata: &Metadata<'_>) -> bool {
    levels.of(scope(metadata, levels)).allows(*metadata.level())
}

/// Crates below gRPC; their events are as many as frames.
const GRPC_CRATES: &[&str] = &["h2", "hyper", "hyper_util", "tonic", "tower"];

/// Targets that are no scope belong to the default one, but for the libraries below gRPC.
pub(super) fn scope<'a>(metadata: &Metadata<'a>, levels: &Levels) -> &'a str {
    let target = metadata.target();
    if levels.0.known.contains(&target) {
        target
    } else if GRPC_CRATES.contains(&target.split("::").next().unwrap_or_default())
        && levels.0.known.contains(&"grpc")
    {
        "grpc"
    } else if levels.0.known.contains(&"default") {
        "default"
    } else {
        "misc"
    }
}
