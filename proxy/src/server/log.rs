//! The application log on stderr (or `--log-path`): spdlog patterns as Envoy has them, JSON format, and levels
//! per logger that change at run time.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_config::bootstrap::LogFormat;
use parking_lot::{Mutex, RwLock};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use super::options::{CommandLine, LEVELS, LOGGERS};
use crate::access_log::time::strftime;

/// Pattern without configuration.
pub const DEFAULT_FORMAT: &str = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v";

/// Position in [`LEVELS`], `warn` folded into `warning`.
type Level = u8;

const TRACE: Level = 0;
const OFF: Level = 7;

fn level(name: &str) -> Option<Level> {
    let at = LEVELS.iter().position(|l| *l == name)?;
    Some(if LEVELS[at] == "warn" { 3 } else { at as Level })
}

/// Levels of every logger. Clones share them.
#[derive(Debug, Clone)]
pub struct Levels(Arc<RwLock<Vec<Level>>>);

impl Levels {
    /// Levels of the command line.
    #[must_use]
    pub fn new(options: &CommandLine) -> Self {
        let default = level(&options.log_level).unwrap_or(2);
        let levels = Self(Arc::new(RwLock::new(vec![default; LOGGERS.len()])));
        for (logger, name) in &options.component_log_level {
            levels.set(logger, name);
        }
        levels
    }

    /// Sets one logger; false if logger or level is unknown.
    pub fn set(&self, logger: &str, name: &str) -> bool {
        let (Some(at), Some(level)) = (LOGGERS.iter().position(|l| *l == logger), level(name))
        else {
            return false;
        };
        if let Some(l) = self.0.write().get_mut(at) {
            *l = level;
        }
        tracing::callsite::rebuild_interest_cache();
        true
    }

    /// Sets every logger; false if the level is unknown.
    pub fn set_all(&self, name: &str) -> bool {
        let Some(level) = level(name) else {
            return false;
        };
        self.0.write().fill(level);
        tracing::callsite::rebuild_interest_cache();
        true
    }

    /// `active loggers:` page.
    #[must_use]
    pub fn page(&self) -> String {
        let mut out = "active loggers:\n".to_owned();
        for (logger, level) in LOGGERS.iter().zip(self.0.read().iter()) {
            let _ = writeln!(out, "  {logger}: {}", LEVELS[usize::from(*level)]);
        }
        out.push('\n');
        out
    }

    fn of(&self, logger: &str) -> Level {
        let at = LOGGERS.iter().position(|l| *l == logger);
        at.and_then(|at| self.0.read().get(at).copied())
            .unwrap_or(OFF)
    }

    fn lowest(&self) -> Level {
        self.0.read().iter().copied().min().unwrap_or(OFF)
    }
}

/// Logger of an event: its target when that names one, else by module.
fn logger(target: &str) -> &str {
    if LOGGERS.contains(&target) {
        return target;
    }
    let module = target.split("::").nth(1).unwrap_or("");
    match module {
        "http" => "http",
        "upstream" => "upstream",
        "listener" => "conn_handler",
        "tls" | "io" | "tcp_proxy" => "connection",
        "admin" => "admin",
        "control" => "config",
        "server" | "worker" => "main",
        _ => "misc",
    }
}

const fn of_event(level: tracing::Level) -> Level {
    match level {
        tracing::Level::TRACE => TRACE,
        tracing::Level::DEBUG => 1,
        tracing::Level::INFO => 2,
        tracing::Level::WARN => 3,
        tracing::Level::ERROR => 5,
    }
}

enum Output {
    Stderr,
    File(Mutex<File>),
}

struct Writer {
    levels: Levels,
    format: Format,
    output: Output,
}

enum Format {
    Text(String),
    /// Keys and patterns.
    Json(Vec<(String, String)>),
}

/// Installs the log.
///
/// # Errors
/// A log file that cannot be opened or a JSON format that is no object of strings.
pub fn init(options: &CommandLine, format: Option<&LogFormat>) -> Result<Levels, String> {
    let levels = Levels::new(options);
    let format = match (&options.log_format, format) {
        (Some(text), _) => Format::Text(text.clone()),
        (None, Some(LogFormat::Text(text))) => Format::Text(text.to_string()),
        (None, Some(LogFormat::Json(text))) => Format::Json(json_format(text)?),
        (None, None) => Format::Text(DEFAULT_FORMAT.to_owned()),
    };
    let output = match &options.log_path {
        None => Output::Stderr,
        Some(path) => File::options()
            .append(true)
            .create(true)
            .open(path)
            .map(|f| Output::File(Mutex::new(f)))
            .map_err(|e| format!("Failed to open log-file '{}': {e}", path.display()))?,
    };
    let writer = Writer {
        levels: levels.clone(),
        format,
        output,
    };
    let subscriber = tracing_subscriber::registry().with(writer);
    // A second installation happens only where a test runs several servers in one process.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(levels)
}

fn json_format(text: &str) -> Result<Vec<(String, String)>, String> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)
        .map_err(|e| format!("application_log_config.log_format: {e}"))?;
    object
        .into_iter()
        .map(|(key, value)| match value {
            serde_json::Value::String(pattern) => Ok((key, pattern)),
            _ => Err(format!(
                "application_log_config.log_format.json_format.{key}: not a string"
            )),
        })
        .collect()
}

impl<S: Subscriber> Layer<S> for Writer {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        of_event(*metadata.level()) >= self.levels.of(logger(metadata.target()))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.levels.lowest() {
            0 => LevelFilter::TRACE,
            1 => LevelFilter::DEBUG,
            2 => LevelFilter::INFO,
            3 => LevelFilter::WARN,
            4..=6 => LevelFilter::ERROR,
            _ => LevelFilter::OFF,
        })
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        let text = message.0;
        let metadata = event.metadata();
        let record = Record {
            level: LEVELS[usize::from(of_event(*metadata.level()))],
            logger: logger(metadata.target()),
            file: metadata.file().unwrap_or(""),
            line: metadata.line().unwrap_or(0),
            message: &text,
            at: SystemTime::now(),
        };
        let mut line = match &self.format {
            Format::Text(pattern) => record.render(pattern),
            Format::Json(fields) => {
                let quote = |s: &str| serde_json::Value::from(s).to_string();
                let fields: Vec<_> = fields
                    .iter()
                    .map(|(key, pattern)| match pattern.as_str() {
                        "%j" => format!("{}:{}", quote(key), quote(&text)),
                        pattern => format!("{}:{}", quote(key), quote(&record.render(pattern))),
                    })
                    .collect();
                format!("{{{}}}", fields.join(","))
            }
        };
        line.push('\n');
        // There is nowhere to report a log that cannot be written.
        let _ = match &self.output {
            Output::Stderr => std::io::stderr().lock().write_all(line.as_bytes()),
            Output::File(file) => file.lock().write_all(line.as_bytes()),
        };
    }
}

/// Message and fields of an event.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let fields = std::mem::take(&mut self.0);
            let _ = write!(self.0, "{value:?}{fields}");
        } else {
            let _ = write!(self.0, " {}={value:?}", field.name());
        }
    }
}

struct Record<'a> {
    level: &'a str,
    logger: &'a str,
    file: &'a str,
    line: u32,
    message: &'a str,
    at: SystemTime,
}

impl Record<'_> {
    fn render(&self, pattern: &str) -> String {
        let mut out = Vec::new();
        let mut chars = pattern.chars();
        let sub_second = |digits: usize| {
            let at = self
                .at
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default();
            let text = format!("{:09}", at.subsec_nanos());
            text.get(..digits).unwrap_or("").to_owned()
        };
        while let Some(c) = chars.next() {
            if c != '%' {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            let Some(flag) = chars.next() else { break };
            let _ = match flag {
                'v' | '_' => write!(out, "{}", self.message),
                'j' => write!(out, "{}", json_escaped(self.message)),
                'l' => write!(out, "{}", self.level),
                'L' => write!(out, "{}", self.level.get(..1).unwrap_or("").to_uppercase()),
                'n' => write!(out, "{}", self.logger),
                'g' => write!(out, "{}", self.file),
                's' => write!(out, "{}", self.file.rsplit('/').next().unwrap_or("")),
                '#' => write!(out, "{}", self.line),
                't' => write!(out, "{}", nix::unistd::gettid()),
                'P' => write!(out, "{}", std::process::id()),
                'e' => write!(out, "{}", sub_second(3)),
                'f' => write!(out, "{}", sub_second(6)),
                'F' => write!(out, "{}", sub_second(9)),
                '!' | '^' | '$' => Ok(()),
                'E' => write!(
                    out,
                    "{}",
                    self.at
                        .duration_since(std::time::UNIX_EPOCH)
                        .unwrap_or_default()
                        .as_secs()
                ),
                other => {
                    strftime(&format!("%{other}"), self.at, &mut out);
                    Ok(())
                }
            };
        }
        String::from_utf8_lossy(&out).into_owned()
    }
}

fn json_escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted.get(1..quoted.len() - 1).unwrap_or("").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_of_istio_renders_utc_microseconds_logger_and_thread() {
        let record = Record {
            level: "warning",
            logger: "main",
            file: "proxy/src/server.rs",
            line: 7,
            message: "caught ENVOY_SIGTERM",
            at: std::time::UNIX_EPOCH + std::time::Duration::from_micros(1_795_234_855_871_002),
        };
        let text = record.render("%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t");
        let expected = "2026-11-21T04:20:55.871002Z\twarning\tenvoy main proxy/src/server.rs:7\tcaught ENVOY_SIGTERM\tthread=";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn levels_change_for_one_logger_or_all() {
        let options = CommandLine::parse(
            [
                "envoy",
                "-l",
                "warning",
                "--component-log-level",
                "misc:error",
            ]
            .map(String::from),
        )
        .expect("known flags");
        let levels = Levels::new(&options);
        assert!(
            levels.page().contains("  admin: warning\n")
                && levels.page().contains("  misc: error\n")
        );
        assert!(levels.set("admin", "trace") && !levels.set("nosuch", "trace"));
        assert!(!levels.set_all("loud"));
        assert_eq!(levels.of("admin"), TRACE);
        assert!(levels.set_all("off"));
        assert_eq!(levels.lowest(), OFF);
    }
}
