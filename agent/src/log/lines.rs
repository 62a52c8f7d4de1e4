//! Log lines in Istio's formats, as users' tools parse them.

use std::backtrace::Backtrace;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::time::SystemTime;

use outrigger_base::time::rfc3339_micros;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::levels::{Levels, scope};

/// Line format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `<RFC3339 micros>Z \t level \t [scope \t] message [\t key=value]`.
    Text,
    /// One JSON object.
    Json,
}

/// Where lines go.
#[derive(Debug)]
pub(super) enum Target {
    /// Standard output.
    Stdout,
    /// Standard error.
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

/// What lines carry on request. Nothing by default.
#[derive(Debug, Default)]
pub(super) struct Details {
    /// Scopes whose lines name the file and line of the code.
    pub(super) callers: BTreeSet<String>,
    /// Levels up to which a line carries the stack. Without symbols in the binary a frame is an address only.
    pub(super) stacks: Option<Levels>,
}

impl Details {
    fn stack(&self, scope: &str, level: Level) -> Option<String> {
        let wanted = self.stacks.as_ref()?.of(scope).allows(level);
        wanted.then(|| Backtrace::force_capture().to_string())
    }
}

/// Writes every event that its scope lets pass to every target.
pub(super) struct Lines {
    pub(super) levels: Levels,
    pub(super) format: Format,
    pub(super) targets: Vec<Target>,
    pub(super) details: Details,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.levels.allow(metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let scope = scope(event.metadata());
        let level = *event.metadata().level();
        let line = render(
            self.format,
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

const fn level_text(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    }
}

fn render(format: Format, line: &Line<'_>) -> String {
    let mut out = String::with_capacity(160);
    match format {
        Format::Text => {
            let _ = write!(
                out,
                "{}\t{}\t",
                rfc3339_micros(line.time),
                level_text(line.level)
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
        Format::Json => {
            let mut map = serde_json::Map::new();
            map.insert("level".into(), level_text(line.level).into());
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
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests;
