//! Log lines in Istio's format: `time<TAB>level<TAB>text`, or JSON with the same facts. This is
//! output that other tools read, so it is written here and not left to a logging library.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::SystemTime;

use outrigger_base::time::rfc3339_micros;

/// Severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the variants are the level names")]
pub enum Level {
    None,
    Fatal,
    Error,
    Warn,
    Info,
    Debug,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "none" => Self::None,
            "fatal" => Self::Fatal,
            "error" => Self::Error,
            "warn" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            _ => return None,
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Fatal => "fatal",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// Where and how lines go.
#[derive(Debug, Clone)]
pub struct Log {
    level: Level,
    json: bool,
    targets: Vec<String>,
}

impl Log {
    /// From the log flags. Unknown scopes do not matter here; only `default`, `all` and a bare
    /// level count. An unknown level keeps `info`.
    #[must_use]
    pub fn new(output_level: &str, json: bool, targets: Vec<String>) -> Self {
        let level = output_level
            .split(',')
            .filter_map(|item| match item.trim().split_once(':') {
                Some(("default" | "all", level)) => Level::parse(level),
                Some(_) => None,
                None => Level::parse(item.trim()),
            })
            .next_back()
            .unwrap_or(Level::Info);
        let targets = if targets.is_empty() {
            vec!["stdout".to_owned()]
        } else {
            targets
        };
        Self {
            level,
            json,
            targets,
        }
    }

    /// Writes one line if the level is enabled.
    pub fn write(&self, level: Level, text: &str) {
        if level > self.level {
            return;
        }
        let time = rfc3339_micros(SystemTime::now());
        let line = if self.json {
            let level = level.name();
            let text = serde_json::Value::from(text);
            format!("{{\"level\":\"{level}\",\"time\":\"{time}\",\"msg\":{text}}}\n")
        } else {
            format!("{time}\t{}\t{text}\n", level.name())
        };
        for target in &self.targets {
            // A log that cannot be written must not stop the rules from being written.
            let _ = match target.as_str() {
                "stdout" => std::io::stdout().write_all(line.as_bytes()),
                "stderr" => std::io::stderr().write_all(line.as_bytes()),
                path => OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .and_then(|mut file| file.write_all(line.as_bytes())),
            };
        }
    }

    /// Detail for debugging.
    pub fn debug(&self, text: &str) {
        self.write(Level::Debug, text);
    }

    /// Information.
    pub fn info(&self, text: &str) {
        self.write(Level::Info, text);
    }

    /// Warning.
    pub fn warn(&self, text: &str) {
        self.write(Level::Warn, text);
    }

    /// Error.
    pub fn error(&self, text: &str) {
        self.write(Level::Error, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_come_from_the_default_scope_or_a_bare_level() {
        let level = |text: &str| Log::new(text, false, vec![]).level;
        assert_eq!(level("default:info"), Level::Info);
        assert_eq!(level("dns:debug,default:error"), Level::Error);
        assert_eq!(level("debug"), Level::Debug);
        assert_eq!(level("nonsense"), Level::Info);
    }
}
