//! Log lines in the formats that users' tools parse: Istio's for the agent and istio-iptables, Envoy's for the
//! proxy. The tracing target is the scope (agent) or logger (proxy) name; levels change at run time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::SystemTime;

use parking_lot::RwLock;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::time::{Civil, rfc3339_micros};

/// Scopes of the agent (spec agent.md 1.1).
pub const AGENT_SCOPES: &[&str] = &[
    "ads", "ca", "cache", "citadelclient", "default", "dns", "gcecred", "grpc", "healthcheck", "klog",
    "mockcred", "monitoring", "probes", "sds", "security", "spiffe", "validation", "wasm", "xdsproxy",
];

/// Loggers of the proxy, those of Envoy that stand for parts this proxy has.
pub const PROXY_LOGGERS: &[&str] = &[
    "admin", "assert", "client", "config", "connection", "conn_handler", "dns", "file", "filter", "forward_proxy",
    "grpc", "http", "http2", "init", "io", "main", "misc", "original_dst", "pool", "rbac", "router", "runtime",
    "secret", "stats", "tcp_proxy", "testing", "tls", "tracing", "upstream",
];

/// How much a scope prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verbosity {
    /// Nothing.
    Off = 0,
    /// Errors; Envoy's `critical` is folded into it.
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
        [Self::Off, Self::Error, Self::Warning, Self::Info, Self::Debug, Self::Trace]
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
            "error" | "fatal" => Self::Error,
            "none" => Self::Off,
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
            "error" | "critical" => Self::Error,
            "off" => Self::Off,
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

    fn allows(self, level: Level) -> bool {
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
    /// Unknown scopes are ignored, as older and newer templates name others.
    ///
    /// # Errors
    /// An unknown level.
    pub fn apply_istio(&self, spec: &str) -> Result<(), LevelError> {
        for item in spec.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            let (scope, level) = item.split_once(':').unwrap_or(("default", item));
            let level = Verbosity::from_istio(level)
                .ok_or_else(|| LevelError::UnknownLevel(level.to_owned()))?;
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

/// Line format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// Istio's text: `<RFC3339 micros>Z \t level \t [scope \t] message [\t key=value]`.
    IstioText,
    /// Istio's JSON.
    IstioJson,
    /// Envoy's text with the format string of the bootstrap (`%Y %T %f %e %l %n %v %t %g %#`).
    EnvoyText(String),
    /// Envoy's JSON: keys to format strings.
    EnvoyJson(Vec<(String, String)>),
}

/// Envoy's default line.
pub const ENVOY_DEFAULT_FORMAT: &str = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v";

/// Where lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Standard output (agent).
    Stdout,
    /// Standard error (proxy).
    Stderr,
}

struct LineLayer {
    levels: Levels,
    format: Arc<RwLock<Format>>,
    target: Target,
}

/// Lets the proxy switch to the bootstrap's format once it has been read.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Levels.
    pub levels: Levels,
    format: Arc<RwLock<Format>>,
}

impl Handle {
    /// Changes the line format.
    pub fn set_format(&self, format: Format) {
        *self.format.write() = format;
    }
}

/// Installs the process's subscriber. A second call leaves the first in place (tests).
pub fn init(levels: Levels, format: Format, target: Target) -> Handle {
    let format = Arc::new(RwLock::new(format));
    let handle = Handle { levels: levels.clone(), format: Arc::clone(&format) };
    let layer = LineLayer { levels, format, target };
    let subscriber = tracing_subscriber::registry().with(layer);
    // Only a second call fails, and then the first subscriber stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
    handle
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LineLayer {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.levels.of(scope(metadata, &self.levels)).allows(*metadata.level())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = render(
            &self.format.read(),
            &Line {
                time: SystemTime::now(),
                level: *event.metadata().level(),
                scope: scope(event.metadata(), &self.levels),
                file: event.metadata().file().unwrap_or(""),
                line: event.metadata().line().unwrap_or(0),
                fields: &fields,
            },
        );
        // A log that cannot be written has nowhere to complain.
        let _ = match self.target {
            Target::Stdout => std::io::stdout().lock().write_all(line.as_bytes()),
            Target::Stderr => std::io::stderr().lock().write_all(line.as_bytes()),
        };
    }
}

/// Targets that are no scope (libraries, modules) belong to the default one.
fn scope<'a>(metadata: &Metadata<'a>, levels: &Levels) -> &'a str {
    let target = metadata.target();
    if levels.0.known.contains(&target) {
        target
    } else if levels.0.known.contains(&"default") {
        "default"
    } else {
        "misc"
    }
}

#[derive(Debug, Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.others.push((field.name(), format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.others.push((field.name(), value.to_owned()));
        }
    }
}

struct Line<'a> {
    time: SystemTime,
    level: Level,
    scope: &'a str,
    file: &'a str,
    line: u32,
    fields: &'a Fields,
}

const fn istio_level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    }
}

const fn envoy_level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn render(format: &Format, line: &Line<'_>) -> String {
    let mut out = String::with_capacity(160);
    match format {
        Format::IstioText => {
            let _ = write!(out, "{}\t{}\t", rfc3339_micros(line.time), istio_level(line.level));
            if line.scope != "default" {
                let _ = write!(out, "{}\t", line.scope);
            }
            out.push_str(&line.fields.message);
            for (i, (key, value)) in line.fields.others.iter().enumerate() {
                let _ = write!(out, "{}{key}={value}", if i == 0 { '\t' } else { ' ' });
            }
        }
        Format::IstioJson => {
            let mut map = serde_json::Map::new();
            map.insert("level".into(), istio_level(line.level).into());
            map.insert("time".into(), rfc3339_micros(line.time).into());
            if line.scope != "default" {
                map.insert("scope".into(), line.scope.into());
            }
            map.insert("msg".into(), line.fields.message.as_str().into());
            for (key, value) in &line.fields.others {
                map.insert((*key).into(), value.as_str().into());
            }
            out = serde_json::Value::Object(map).to_string();
        }
        Format::EnvoyText(pattern) => envoy_pattern(&mut out, pattern, line),
        Format::EnvoyJson(keys) => {
            let mut map = serde_json::Map::new();
            for (key, pattern) in keys {
                let mut value = String::new();
                // `%j` is the escaped message; the JSON printer escapes it once.
                envoy_pattern(&mut value, &pattern.replace("%j", "%v"), line);
                map.insert(key.clone(), value.into());
            }
            out = serde_json::Value::Object(map).to_string();
        }
    }
    out.push('\n');
    out
}

/// Thread number as logs show it.
fn thread_id() -> u64 {
    thread_local! {
        static ID: u64 = {
            static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
            NEXT.fetch_add(1, Ordering::Relaxed)
        };
    }
    ID.with(|id| *id)
}

fn envoy_pattern(out: &mut String, pattern: &str, line: &Line<'_>) {
    let civil = Civil::from_system(line.time);
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let _ = match chars.next() {
            Some('Y') => write!(out, "{:04}", civil.year),
            Some('m') => write!(out, "{:02}", civil.month),
            Some('d') => write!(out, "{:02}", civil.day),
            Some('T') => write!(out, "{:02}:{:02}:{:02}", civil.hour, civil.minute, civil.second),
            Some('H') => write!(out, "{:02}", civil.hour),
            Some('M') => write!(out, "{:02}", civil.minute),
            Some('S') => write!(out, "{:02}", civil.second),
            Some('e') => write!(out, "{:03}", civil.nanos / 1_000_000),
            Some('f') => write!(out, "{:06}", civil.nanos / 1_000),
            Some('t') => write!(out, "{}", thread_id()),
            Some('l') => write!(out, "{}", envoy_level(line.level)),
            Some('n') => write!(out, "{}", line.scope),
            Some('g') => write!(out, "{}", line.file),
            Some('#') => write!(out, "{}", line.line),
            Some('v') => {
                out.push_str(&line.fields.message);
                line.fields.others.iter().try_for_each(|(k, v)| write!(out, " {k}={v}"))
            }
            Some('%') => write!(out, "%"),
            Some(other) => write!(out, "%{other}"),
            None => write!(out, "%"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn show(format: &Format, scope: &str) -> String {
        let fields = Fields { message: "hello \"x\"".into(), others: vec![("a", "1".into())] };
        render(
            format,
            &Line {
                time: UNIX_EPOCH + Duration::new(1_795_232_820, 233_308_000),
                level: Level::WARN,
                scope,
                file: "src/x.rs",
                line: 7,
                fields: &fields,
            },
        )
    }

    #[test]
    fn lines_have_the_forms_tools_parse() {
        assert_eq!(
            show(&Format::IstioText, "default"),
            "2026-11-21T03:47:00.233308Z\twarn\thello \"x\"\ta=1\n"
        );
        assert_eq!(
            show(&Format::IstioText, "sds"),
            "2026-11-21T03:47:00.233308Z\twarn\tsds\thello \"x\"\ta=1\n"
        );
        assert_eq!(
            show(&Format::IstioJson, "default"),
            "{\"level\":\"warn\",\"time\":\"2026-11-21T03:47:00.233308Z\",\"msg\":\"hello \\\"x\\\"\",\"a\":\"1\"}\n"
        );
        let istio = "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v".to_owned();
        assert_eq!(
            show(&Format::EnvoyText(istio), "main"),
            "2026-11-21T03:47:00.233308Z\twarning\tenvoy main src/x.rs:7\thello \"x\" a=1\n"
        );
    }

    #[test]
    fn levels_follow_the_flag() {
        let levels = Levels::new(Verbosity::Info, AGENT_SCOPES);
        levels.apply_istio("debug,sds:none,nobody:info").expect("valid");
        assert_eq!(levels.of("default"), Verbosity::Debug);
        assert_eq!(levels.of("sds"), Verbosity::Off);
        assert_eq!(levels.of("ads"), Verbosity::Info);
        assert_eq!(
            levels.apply_istio("sds:loud"),
            Err(LevelError::UnknownLevel("loud".into()))
        );
        assert!(levels.set("nobody", Verbosity::Info).is_err());
    }
}
