//! Tables for the texts of times and durations.

use super::*;

fn at(seconds: i64, nanos: u32) -> SystemTime {
    let length = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 {
        UNIX_EPOCH - length
    } else {
        UNIX_EPOCH + length
    };
    base + Duration::from_nanos(u64::from(nanos))
}

#[test]
fn times_print_in_utc_with_the_digits_asked_for() {
    let time = at(1_795_234_828, 36_238_999);
    assert_eq!(rfc3339(time, Precision::Seconds), "2026-11-21T04:20:28Z");
    assert_eq!(rfc3339(time, Precision::Millis), "2026-11-21T04:20:28.036Z");
    assert_eq!(
        rfc3339(time, Precision::Micros),
        "2026-11-21T04:20:28.036238Z"
    );
    assert_eq!(
        rfc3339(time, Precision::Nanos),
        "2026-11-21T04:20:28.036238999Z"
    );
}

#[test]
fn times_of_leap_days_centuries_and_before_1970_are_right() {
    let cases = [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (951_868_800, "2000-03-01T00:00:00Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
        (1_704_067_199, "2023-12-31T23:59:59Z"),
        (-1, "1969-12-31T23:59:59Z"),
        (-2_208_988_800, "1900-01-01T00:00:00Z"),
    ];
    for (seconds, text) in cases {
        assert_eq!(rfc3339(at(seconds, 0), Precision::Seconds), text);
    }
    assert_eq!(
        rfc3339(at(-1, 250_000_000), Precision::Millis),
        "1969-12-31T23:59:59.250Z"
    );
}

#[test]
fn go_durations_parse() {
    let cases = [
        ("0", 0),
        ("0s", 0),
        ("-0s", 0),
        ("5s", 5_000_000_000),
        ("+5s", 5_000_000_000),
        ("1m30s", 90_000_000_000),
        ("2h45m", 9_900_000_000_000),
        ("1.5h", 5_400_000_000_000),
        (".5s", 500_000_000),
        ("1.s", 1_000_000_000),
        ("300ms", 300_000_000),
        ("1us1µs1μs1ns", 3001),
        ("24h0m0s", 86_400_000_000_000),
    ];
    for (text, nanos) in cases {
        assert_eq!(
            parse_go_duration(text),
            Ok(Duration::from_nanos(nanos)),
            "{text}"
        );
    }
}

#[test]
fn texts_that_are_no_go_duration_are_refused() {
    let cases = [
        ("", DurationError::Empty),
        ("-", DurationError::Empty),
        ("3", DurationError::Unit),
        ("1d", DurationError::Unit),
        ("1s2", DurationError::Unit),
        ("s", DurationError::Number),
        (".s", DurationError::Number),
        ("1.2.3s", DurationError::Number),
        ("-1s", DurationError::Negative),
        ("1 s", DurationError::Unit),
        ("9999999999h", DurationError::TooLong),
        (
            "99999999999999999999999999999999999999999999h",
            DurationError::TooLong,
        ),
    ];
    for (text, error) in cases {
        assert_eq!(parse_go_duration(text), Err(error), "{text}");
    }
}

#[test]
fn go_durations_print_as_go_prints_them_and_parse_back() {
    let cases = [
        (0, "0s"),
        (1, "1ns"),
        (1_100, "1.1µs"),
        (2_200_000, "2.2ms"),
        (3_300_000_000, "3.3s"),
        (45_000_000_000, "45s"),
        (90_000_000_000, "1m30s"),
        (3_600_000_000_000, "1h0m0s"),
        (3_601_001_000_000, "1h0m1.001s"),
    ];
    for (nanos, text) in cases {
        assert_eq!(format_go_duration(Duration::from_nanos(nanos)), text);
        assert_eq!(parse_go_duration(text), Ok(Duration::from_nanos(nanos)));
    }
}

#[test]
fn proto_durations_parse_within_their_limits() {
    let cases = [
        ("0s", Ok(Duration::ZERO)),
        ("1.5s", Ok(Duration::from_millis(1500))),
        ("0.000000001s", Ok(Duration::from_nanos(1))),
        ("315576000000s", Ok(Duration::from_secs(315_576_000_000))),
        ("315576000001s", Err(DurationError::TooLong)),
        ("99999999999999999999s", Err(DurationError::TooLong)),
        ("", Err(DurationError::Empty)),
        ("5", Err(DurationError::Unit)),
        ("5m", Err(DurationError::Unit)),
        ("s", Err(DurationError::Number)),
        ("1.s", Err(DurationError::Number)),
        ("1.0000000001s", Err(DurationError::Number)),
        ("+1s", Err(DurationError::Number)),
        ("-1s", Err(DurationError::Negative)),
        ("-0s", Ok(Duration::ZERO)),
    ];
    for (text, expected) in cases {
        assert_eq!(parse_proto_duration(text), expected, "{text}");
    }
}
