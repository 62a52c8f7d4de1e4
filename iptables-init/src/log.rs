//! Log lines in Istio's format: `time<TAB>level<TAB>text`, or JSON with the same facts. This is
//! output that other tools read, so it is written here and not left to a logging library.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
        let time = timestamp(SystemTime::now());
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

/// RFC 3339 in UTC with microseconds.
fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Gregorian date of a day number since 1970-01-01, by 400-year eras that start in March.
const fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + (month <= 2) as u64;
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_utc_with_microseconds() {
        let at = |s, us: u32| timestamp(UNIX_EPOCH + Duration::new(s, us * 1000));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_400, 7), "2000-02-29T00:00:00.000007Z");
        assert_eq!(at(1795232820, 233_308), "2026-11-21T03:47:00.233308Z");
    }

    #[test]
    fn levels_come_from_the_default_scope_or_a_bare_level() {
        let level = |text: &str| Log::new(text, false, vec![]).level;
        assert_eq!(level("default:info"), Level::Info);
        assert_eq!(level("dns:debug,default:error"), Level::Error);
        assert_eq!(level("debug"), Level::Debug);
        assert_eq!(level("nonsense"), Level::Info);
    }
}
