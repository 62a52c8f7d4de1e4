//! One log line as text or JSON, in the order of columns and keys that Istio's readers know.

use std::fmt::Write as _;
use std::time::SystemTime;

use serde_json::Value;
use tracing::field::{Field, Visit};

use super::scope::Level;
use crate::time::{Precision, rfc3339};

/// Message and fields of an event.
#[derive(Debug, Default)]
pub(super) struct Message {
    text: String,
    fields: Vec<(&'static str, Value)>,
}

impl Message {
    fn add(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.text = plain(&value);
        } else {
            self.fields.push((field.name(), value));
        }
    }
}

/// A string without quotes, other values as JSON prints them.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl Visit for Message {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // Infinities have no JSON number.
        let number = serde_json::Number::from_f64(value);
        self.add(
            field,
            number.map_or_else(|| Value::from(value.to_string()), Value::Number),
        );
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.add(field, value.to_string().into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }
}

/// Everything a line shows.
pub(super) struct Line<'a> {
    pub(super) at: SystemTime,
    pub(super) level: Level,
    /// `None` for the default scope.
    pub(super) scope: Option<&'static str>,
    /// Path and line of the source.
    pub(super) caller: Option<(&'static str, u32)>,
    pub(super) message: &'a Message,
    pub(super) stack: Option<String>,
}

impl Line<'_> {
    fn caller(&self) -> Option<String> {
        let (path, line) = self.caller?;
        // Folder and file are enough to find the place and hide where it was built.
        let start = path.rmatch_indices('/').nth(1).map_or(0, |(at, _)| at + 1);
        Some(format!("{}:{line}", path.get(start..).unwrap_or(path)))
    }

    /// `time \t level \t [scope \t] [caller \t] message [\t key=value …]`, then the stack on lines of its own.
    pub(super) fn text(&self) -> String {
        let mut out = rfc3339(self.at, Precision::Micros);
        // Writing to a String cannot fail.
        let _ = write!(out, "\t{}\t", self.level.name());
        for column in [self.scope.map(str::to_owned), self.caller()]
            .into_iter()
            .flatten()
        {
            let _ = write!(out, "{column}\t");
        }
        out.push_str(&self.message.text);
        for (i, (key, value)) in self.message.fields.iter().enumerate() {
            let separator = if i == 0 { '\t' } else { ' ' };
            let _ = write!(out, "{separator}{key}={}", plain(value));
        }
        out.push('\n');
        if let Some(stack) = &self.stack {
            let _ = writeln!(out, "{}", stack.trim_end());
        }
        out
    }

    /// Keys `level`, `time`, `scope`, `caller`, `msg`, `stack`, then the fields; what a line does not have is left
    /// out.
    pub(super) fn json(&self) -> String {
        let mut out = String::from("{");
        let mut put = |key: &str, value: Value| {
            let comma = if out.len() == 1 { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(out, "{comma}{}:{value}", Value::from(key));
        };
        put("level", self.level.name().into());
        put("time", rfc3339(self.at, Precision::Micros).into());
        for (key, value) in [
            ("scope", self.scope.map(str::to_owned)),
            ("caller", self.caller()),
        ] {
            if let Some(value) = value {
                put(key, value.into());
            }
        }
        put("msg", self.message.text.as_str().into());
        if let Some(stack) = &self.stack {
            put("stack", stack.as_str().into());
        }
        for (key, value) in &self.message.fields {
            put(key, value.clone());
        }
        out.push_str("}\n");
        out
    }
}
