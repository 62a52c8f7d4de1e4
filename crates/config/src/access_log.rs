//! Access loggers and their filters.

use std::sync::Arc;

use crate::format::{Format, JsonFormat};

/// `envoy.config.accesslog.v3.AccessLog` for the file, stdout and stderr loggers.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// Where lines go.
    pub sink: Sink,
    /// How a line looks.
    pub format: LogFormat,
    /// When a line is written; `None` = always.
    pub filter: Option<Filter>,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Sink {
    /// `path` of the file logger (`/dev/stdout` included).
    File(Arc<str>),
    /// `envoy.access_loggers.stdout`.
    Stdout,
    /// `envoy.access_loggers.stderr`.
    Stderr,
}

/// How a line looks.
#[derive(Debug, Clone)]
pub enum LogFormat {
    /// Text with command operators.
    Text(Arc<Format>),
    /// JSON object; a line feed is added.
    Json(Arc<JsonFormat>),
}

/// `AccessLogFilter`.
#[derive(Debug, Clone)]
pub enum Filter {
    /// Every one.
    And(Vec<Self>),
    /// Any one.
    Or(Vec<Self>),
    /// `response_flag_filter`: some listed flag is set; empty list = any flag.
    ResponseFlag(Vec<Arc<str>>),
    /// `status_code_filter`.
    StatusCode(Comparison),
    /// `duration_filter`, milliseconds.
    Duration(Comparison),
    /// `not_health_check_filter`.
    NotHealthCheck,
    /// `header_filter`.
    Header(crate::matcher::HeaderMatcher),
}

/// `ComparisonFilter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// Operator.
    pub op: ComparisonOp,
    /// `value.default_value`.
    pub value: u32,
}

/// `ComparisonFilter.Op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComparisonOp {
    /// Equal.
    Eq,
    /// Greater or equal.
    Ge,
    /// Less or equal.
    Le,
    /// Not equal.
    Ne,
}
