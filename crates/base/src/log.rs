//! Log lines in the formats that users' tools parse: Istio's for the agent and istio-iptables, Envoy's for the
//! proxy. The tracing target is the scope (agent) or logger (proxy) name; levels change at run time.

use std::backtrace::Backtrace;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use parking_lot::RwLock;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::time::{Civil, rfc3339_micros};

mod levels;

pub use levels::{AGENT_SCOPES, LevelError, Levels, PROXY_LOGGERS, Verbosity};
use levels::{enabled, scope};

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
#[derive(Debug)]
pub enum Target {
    /// Standard output (agent).
    Stdout,
    /// Standard error (proxy).
    Stderr,
    /// A file, opened for appending.
    File(File),
}

impl Target {
    fn write(&self, line: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Stdout => std::io::stdout().lock().write_all(line),
            Self::Stderr => std::io::stderr().lock().write_all(line),
            Self::File(file) => (&*file).write_all(line),
        }
    }
}

/// What lines of Istio's formats carry on request. Nothing by default.
#[derive(Debug, Default)]
pub struct Details {
    /// Scopes whose lines name the file and line of the code.
    pub callers: BTreeSet<String>,
    /// Levels up to which a line carries the stack. Without symbols in the binary a frame is an address only.
    pub stacks: Option<Levels>,
}

impl Details {
    fn stack(&self, scope: &str, level: Level) -> Option<String> {
        let wanted = self.stacks.as_ref()?.of(scope).allows(level);
        wanted.then(|| Backtrace::force_capture().to_string())
    }
}

struct LineLayer {
    levels: Levels,
    format: Arc<RwLock<Format>>,
    targets: Vec<Target>,
    details: Details,
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
    init_with(levels, format, vec![target], Details::default())
}

/// [`init`] with several targets, each of which gets every line, and with details.
pub fn init_with(levels: Levels, format: Format, targets: Vec<Target>, details: Details) -> Handle {
    let format = Arc::new(RwLock::new(format));
    let handle = Handle {
        levels: levels.clone(),
        format: Arc::clone(&format),
    };
    let layer = LineLayer {
        levels,
        format,
        targets,
        details,
    };
    let subscriber = tracing_subscriber::registry().with(layer);
    // Only a second call fails, and then the first subscriber stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
    handle
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LineLayer {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        enabled(&self.levels, metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let scope = scope(event.metadata(), &self.levels);
        let level = *event.metadata().level();
        let line = render(
            &self.format.read(),
            &Line {
                time: SystemTime::now(),
                level,
                scope,
                with_caller: self.details.callers.contains(scope),
                stack: self.details.stack(scope, level),
                file: event.metadata().file().unwrap_or(""),
                line: event.metadata().line().unwrap_or(0),
                fields: &fields,
            },
        );
        for target in &self.targets {
            // A log that cannot be written has nowhere to complain.
            let _ = target.write(line.as_bytes());
        }
    }
}

#[derive(Debug, Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, serde_json::Value)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.others
                .push((field.name(), format!("{value:?}").into()));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.others.push((field.name(), value.into()));
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.others.push((field.name(), value.to_string().into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.others.push((field.name(), value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinity.
        let value = if value.is_finite() {
            value.into()
        } else {
            value.to_string().into()
        };
        self.others.push((field.name(), value));
    }
}

/// A field's value without the quotes of JSON.
fn plain(value: &serde_json::Value) -> std::borrow::Cow<'_, str> {
    match value {
        serde_json::Value::String(text) => text.into(),
        other => other.to_string().into(),
    }
}

struct Line<'a> {
    time: SystemTime,
    level: Level,
    scope: &'a str,
    with_caller: bool,
    stack: Option<String>,
    file: &'a str,
    line: u32,
    fields: &'a Fields,
}

impl Line<'_> {
    /// `folder/file:line`, if the scope asks for it.
    fn caller(&self) -> Option<String> {
        let start = self
            .file
            .rmatch_indices('/')
            .nth(1)
            .map_or(0, |(at, _)| at + 1);
        self.with_caller
            .then(|| format!("{}:{}", &self.file[start..], self.line))
    }
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
            let _ = write!(
                out,
                "{}\t{}\t",
                rfc3339_micros(line.time),
                istio_level(line.level)
            );
            if line.scope != "default" {
                let _ = write!(out, "{}\t", line.scope);
            }
            if let Some(caller) = line.caller() {
                let _ = write!(out, "{caller}\t");
            }
            out.push_str(&line.fields.message);
            for (i, (key, value)) in line.fields.others.iter().enumerate() {
                let _ = write!(
                    out,
                    "{}{key}={}",
                    if i == 0 { '\t' } else { ' ' },
                    plain(value)
                );
            }
            if let Some(stack) = &line.stack {
                let _ = write!(out, "\n{}", stack.trim_end());
            }
        }
        Format::IstioJson => {
            let mut map = serde_json::Map::new();
            map.insert("level".into(), istio_level(line.level).into());
            map.insert("time".into(), rfc3339_micros(line.time).into());
            if line.scope != "default" {
                map.insert("scope".into(), line.scope.into());
            }
            if let Some(caller) = line.caller() {
                map.insert("caller".into(), caller.into());
            }
            map.insert("msg".into(), line.fields.message.as_str().into());
            if let Some(stack) = &line.stack {
                map.insert("stack".into(), stack.trim_end().into());
            }
            for (key, value) in &line.fields.others {
                map.insert((*key).into(), value.clone());
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
            Some('T') => write!(
                out,
                "{:02}:{:02}:{:02}",
                civil.hour, civil.minute, civil.second
            ),
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
                line.fields
                    .others
                    .iter()
                    .try_for_each(|(k, v)| write!(out, " {k}={}", plain(v)))
            }
            Some('%') => write!(out, "%"),
            Some(other) => write!(out, "%{other}"),
            None => write!(out, "%"),
        };
    }
}

#[cfg(test)]
mod tests;
