//! Times and durations as text, without a calendar library.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment split into UTC calendar fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Civil {
    /// Year.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
    /// Nanoseconds of the second.
    pub nanos: u32,
}

impl Civil {
    /// UTC fields of a time; before 1970 counts as 1970.
    #[must_use]
    pub fn from_system(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        // Days to a civil date, with years that start in March so that leap days come last.
        let z = days + 719_468;
        let era = z / 146_097;
        let doe = z % 146_097;
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        Self {
            year: yoe + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: (doy - (153 * mp + 2) / 5 + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
            nanos: since.subsec_nanos(),
        }
    }

    fn seconds_text(&self) -> String {
        let Self {
            year,
            month,
            day,
            hour,
            minute,
            second,
            ..
        } = self;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
    }
}

/// `2026-11-21T03:47:00Z`.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    format!("{}Z", Civil::from_system(time).seconds_text())
}

/// `2026-11-21T03:47:00.233Z`.
#[must_use]
pub fn rfc3339_millis(time: SystemTime) -> String {
    let civil = Civil::from_system(time);
    format!("{}.{:03}Z", civil.seconds_text(), civil.nanos / 1_000_000)
}

/// `2026-11-21T03:47:00.233308Z`.
#[must_use]
pub fn rfc3339_micros(time: SystemTime) -> String {
    let civil = Civil::from_system(time);
    format!("{}.{:06}Z", civil.seconds_text(), civil.nanos / 1_000)
}

/// A duration as Go prints and reads it: `300ms`, `1.5h`, `2h45m`. Negative ones are refused.
#[must_use]
pub fn parse_go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "ns" => 1e-9,
                // The micro sign and the Greek letter, as Go.
                "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(total).ok()
}

/// Longest duration protobuf allows, in seconds.
const PROTO_MAX_SECONDS: u64 = 315_576_000_000;

/// A protobuf duration of zero or more: seconds with at most nine decimals and the unit `s`. Negative ones are
/// refused.
#[must_use]
pub fn parse_proto_duration(text: &str) -> Option<Duration> {
    let number = text.strip_suffix('s')?;
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (number, ""),
    };
    let digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let seconds = whole.parse().ok().filter(|s| *s <= PROTO_MAX_SECONDS)?;
    Some(Duration::new(
        seconds,
        format!("{fraction:0<9}").parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proto_durations_within_their_limits() {
        let table = [
            ("0s", Some(Duration::ZERO)),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("0.000000001s", Some(Duration::from_nanos(1))),
            ("315576000000s", Some(Duration::from_secs(315_576_000_000))),
            ("315576000001s", None),
            ("99999999999999999999s", None),
            ("", None),
            ("s", None),
            ("5", None),
            ("5m", None),
            ("1.s", None),
            ("1.0000000001s", None),
            ("+1s", None),
            ("-1s", None),
        ];
        for (text, want) in table {
            assert_eq!(parse_proto_duration(text), want, "{text}");
        }
    }

    #[test]
    fn prints_known_times() {
        let time = UNIX_EPOCH + Duration::new(1_795_232_820, 233_308_000);
        assert_eq!(rfc3339_micros(time), "2026-11-21T03:47:00.233308Z");
        assert_eq!(rfc3339_millis(time), "2026-11-21T03:47:00.233Z");
        assert_eq!(
            rfc3339(UNIX_EPOCH + Duration::from_secs(951_782_400)),
            "2000-02-29T00:00:00Z"
        );
    }

    #[test]
    fn reads_go_durations() {
        let table = [
            ("300ms", Some(Duration::from_millis(300))),
            ("1m30s", Some(Duration::from_secs(90))),
            ("1.5h", Some(Duration::from_secs(5400))),
            ("0", Some(Duration::ZERO)),
            ("5", None),
            ("", None),
            ("5x", None),
            ("1us1µs1μs", Some(Duration::from_micros(3))),
            (".5s", Some(Duration::from_millis(500))),
            ("1.2.3s", None),
            ("s", None),
            ("1 s", None),
            ("1e3s", None),
            ("99999999999999999999999999h", None),
            ("-5s", None),
        ];
        for (text, want) in table {
            assert_eq!(parse_go_duration(text), want, "{text}");
        }
    }
}
