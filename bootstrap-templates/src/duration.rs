//! The two textual durations of Istio's configuration: protobuf JSON (`1.5s`) and Go (`1h30m`).

use std::time::Duration;

/// Longest duration protobuf allows, in seconds (about 10,000 years).
const MAX_SECONDS: u64 = 315_576_000_000;

/// Parses protobuf's JSON duration: decimal seconds with at most nine fraction digits and the
/// suffix `s`. Negative durations are refused: no field of Istio's configuration means one.
pub fn parse_proto_duration(text: &str) -> Option<Duration> {
    let number = text.strip_suffix('s')?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || number.ends_with('.') {
        return None;
    }
    if !whole
        .bytes()
        .chain(fraction.bytes())
        .all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let seconds: u64 = whole.parse().ok().filter(|s| *s <= MAX_SECONDS)?;
    let nanos: u32 = format!("{fraction:0<9}").parse().ok()?;
    Some(Duration::new(seconds, nanos))
}

/// Prints a duration in protobuf's JSON form with 0, 3, 6 or 9 fraction digits.
pub fn format_proto_duration(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    match nanos {
        0 => format!("{seconds}s"),
        n if n % 1_000_000 == 0 => format!("{seconds}.{:03}s", n / 1_000_000),
        n if n % 1_000 == 0 => format!("{seconds}.{:06}s", n / 1_000),
        n => format!("{seconds}.{n:09}s"),
    }
}

/// Parses a Go duration such as `300ms`, `1.5h` or `2h45m`; `0` needs no unit. Negative values and
/// values over 292 years (the range of Go) are refused.
pub fn parse_go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        nanos = nanos.checked_add(scaled(number, unit_nanos(unit)?)?)?;
        rest = next;
    }
    u64::try_from(nanos)
        .ok()
        .filter(|n| *n <= i64::MAX as u64)
        .map(Duration::from_nanos)
}

fn unit_nanos(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// `number` (decimal, maybe with a fraction) times `unit` nanoseconds, truncated.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let mut total = match whole {
        "" => 0,
        digits => digits
            .parse::<u64>()
            .ok()
            .map(u128::from)?
            .checked_mul(unit)?,
    };
    let mut scale = unit;
    for digit in fraction.bytes() {
        scale /= 10;
        total = total.checked_add(u128::from(digit - b'0') * scale)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_protobuf_durations_and_prints_them_canonically() {
        for (text, canonical) in [
            ("45s", Some("45s")),
            ("0.5s", Some("0.500s")),
            ("1.0000005s", Some("1.000000500s")),
            ("1.000001s", Some("1.000001s")),
            ("0s", Some("0s")),
            ("45", None),
            ("-1s", None),
            ("1m", None),
            ("1.s", None),
            (".5s", None),
            ("s", None),
            ("1.0000000001s", None),
            ("999999999999999s", None),
        ] {
            let printed = parse_proto_duration(text).map(format_proto_duration);
            assert_eq!(printed.as_deref(), canonical, "{text}");
        }
    }

    #[test]
    fn reads_go_durations() {
        for (text, millis) in [
            ("300ms", Some(300)),
            ("1.5h", Some(5_400_000)),
            ("2h45m", Some(9_900_000)),
            ("0", Some(0)),
            ("90s", Some(90_000)),
            (".5s", Some(500)),
            ("", None),
            ("5", None),
            ("-5s", None),
            ("5d", None),
            (".s", None),
            ("1..5s", None),
            ("99999999999999999999h", None),
        ] {
            let parsed = parse_go_duration(text).map(|d| d.as_millis());
            assert_eq!(parsed, millis, "{text}");
        }
    }
}
