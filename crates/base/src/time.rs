//! The calendar, and times as text.

use std::time::{SystemTime, UNIX_EPOCH};

/// A moment split into fields of the proleptic Gregorian calendar, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Civil {
    /// Year.
    pub year: u64,
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
    /// Days since 1970-01-01, a Thursday.
    pub days: u64,
}

impl Civil {
    /// UTC fields of a time; before 1970 counts as 1970.
    #[must_use]
    pub fn from_system(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            nanos: since.subsec_nanos(),
            ..Self::from_seconds(since.as_secs())
        }
    }

    /// UTC fields of a whole second since 1970.
    #[must_use]
    pub const fn from_seconds(seconds: u64) -> Self {
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
            year: yoe + era * 400 + (month <= 2) as u64,
            month: month as u8,
            day: (doy - (153 * mp + 2) / 5 + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
            nanos: 0,
            days,
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

/// `2026-11-21T03:47:00.233308Z`.
#[must_use]
pub fn rfc3339_micros(time: SystemTime) -> String {
    let civil = Civil::from_system(time);
    format!("{}.{:06}Z", civil.seconds_text(), civil.nanos / 1_000)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_gregorian() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_232_879, "2026-11-21T03:47:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(rfc3339(time), text);
            assert_eq!(Civil::from_system(time).days, seconds / 86_400);
        }
        let time = UNIX_EPOCH + Duration::new(1_795_232_820, 233_308_000);
        assert_eq!(rfc3339_micros(time), "2026-11-21T03:47:00.233308Z");
        assert_eq!(
            rfc3339(UNIX_EPOCH - Duration::from_secs(1)),
            "1970-01-01T00:00:00Z"
        );
    }
}
