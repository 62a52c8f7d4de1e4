//! Access logs: compiled formats and filters of one listener, tcp_proxy or connection manager. A line is
//! rendered on the worker into a reused buffer and handed to its sink; no file is touched here.

use std::cell::RefCell;
use std::sync::Arc;

use outrigger_config::access_log::{
    AccessLog as Config, Comparison, ComparisonOp, Filter, LogFormat,
};

use crate::http::headers::Headers;
use crate::stream_info::StreamInfo;

pub mod json;
pub mod render;
pub mod sink;
pub mod time;

pub use render::{Missing, render};
pub use sink::{LogSinks, Sink, SinkOptions};

/// The access logs of one listener, tcp_proxy or connection manager.
#[derive(Debug, Default, Clone)]
pub struct AccessLogs {
    logs: Arc<[Log]>,
}

#[derive(Debug)]
struct Log {
    format: LogFormat,
    filter: Option<Filter>,
    sink: Arc<Sink>,
}

/// What a format may print.
#[derive(Debug)]
pub struct LogContext<'a> {
    /// The stream.
    pub info: &'a StreamInfo,
    /// Request head.
    pub request: &'a Headers,
    /// Response head.
    pub response: &'a Headers,
    /// Response trailers.
    pub trailers: &'a Headers,
}

thread_local! {
    /// One line at a time; keeps its capacity so that rendering does not allocate.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A longer line gives its memory back after it was written.
const KEPT_CAPACITY: usize = 16 * 1024;

impl AccessLogs {
    /// Opens sinks and keeps the compiled formats.
    ///
    /// # Errors
    /// When a log file cannot be opened; the listener is refused with it.
    pub fn build(configs: &[Config], sinks: &Arc<LogSinks>) -> Result<Self, std::io::Error> {
        let logs = configs
            .iter()
            .map(|c| {
                Ok(Log {
                    format: c.format.clone(),
                    filter: c.filter.clone(),
                    sink: sinks.open(&c.sink)?,
                })
            })
            .collect::<Result<Vec<_>, std::io::Error>>()?;
        Ok(Self { logs: logs.into() })
    }

    /// Whether there is anything to log.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// [`Self::log`] for a connection that carried no request.
    pub fn log_connection(&self, info: &StreamInfo) {
        let empty = Headers::new();
        self.log(&LogContext {
            info,
            request: &empty,
            response: &empty,
            trailers: &empty,
        });
    }

    /// Writes one line per log whose filter passes. Called once, when the stream or connection ends.
    pub fn log(&self, context: &LogContext<'_>) {
        for log in self.logs.iter() {
            if log.sink.is_null() || log.filter.as_ref().is_some_and(|f| !passes(f, context)) {
                continue;
            }
            LINE.with_borrow_mut(|line| {
                line.clear();
                match &log.format {
                    LogFormat::Text(format) => {
                        let missing = Missing::of(format);
                        render(format, context, line, missing);
                    }
                    LogFormat::Json(format) => json::render(format, context, line),
                }
                log.sink.write(line);
                if line.capacity() > KEPT_CAPACITY {
                    *line = Vec::new();
                }
            });
        }
    }
}

fn passes(filter: &Filter, context: &LogContext<'_>) -> bool {
    let info = context.info;
    match filter {
        Filter::And(all) => all.iter().all(|f| passes(f, context)),
        Filter::Or(any) => any.iter().any(|f| passes(f, context)),
        Filter::ResponseFlag(names) if names.is_empty() => !info.flags.is_empty(),
        Filter::ResponseFlag(names) => info
            .flags
            .iter()
            .any(|f| names.iter().any(|n| **n == *f.short())),
        Filter::StatusCode(c) => compare(c, u64::from(info.response_code)),
        Filter::Duration(c) => {
            let end = info.end.unwrap_or_else(std::time::Instant::now);
            compare(c, render::millis(info.start, end))
        }
        // No health check filter exists here, so no request is one.
        Filter::NotHealthCheck => true,
        Filter::Header(matcher) => crate::http::route::header_matches(matcher, context.request),
    }
}

fn compare(c: &Comparison, value: u64) -> bool {
    let limit = u64::from(c.value);
    match c.op {
        ComparisonOp::Eq => value == limit,
        ComparisonOp::Ge => value >= limit,
        ComparisonOp::Le => value <= limit,
        ComparisonOp::Ne => value != limit,
    }
}

#[cfg(test)]
mod tests;
