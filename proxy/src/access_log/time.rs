//! Wall clock as text: RFC 3339, HTTP dates and strftime, UTC only. The second is cached per thread, so a
//! busy worker formats a calendar date once per second.

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_base::time::Civil;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const LONG_MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const LONG_DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

thread_local! {
    static SECOND: RefCell<(u64, [u8; 20])> = const { RefCell::new((u64::MAX, [0; 20])) };
}

/// Appends `2026-11-21T03:51:18.276Z`.
pub fn rfc3339_millis(at: SystemTime, out: &mut Vec<u8>) {
    let t = since_epoch(at);
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != t.as_secs() {
            let c = Civil::from_seconds(t.as_secs());
            let mut cursor = &mut text[..];
            let _ = write!(
                cursor,
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.",
                c.year, c.month, c.day, c.hour, c.minute, c.second
            );
            *second = t.as_secs();
        }
        out.extend_from_slice(text);
    });
    let ms = t.subsec_millis();
    out.extend_from_slice(&[
        b'0' + (ms / 100) as u8,
        b'0' + (ms / 10 % 10) as u8,
        b'0' + (ms % 10) as u8,
        b'Z',
    ]);
}

/// [`rfc3339_millis`] as a string.
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    let mut out = Vec::with_capacity(24);
    rfc3339_millis(at, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// `Sat, 21 Nov 2026 04:26:16 GMT`.
#[must_use]
pub fn http_date(at: SystemTime) -> String {
    let mut out = Vec::new();
    strftime("%a, %d %b %Y %H:%M:%S GMT", at, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// `2026-11-21T04:18:51Z` of seconds since the epoch.
#[must_use]
pub fn rfc3339_seconds(seconds: i64) -> String {
    let mut out = Vec::new();
    let at = UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs());
    strftime("%Y-%m-%dT%H:%M:%SZ", at, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// strftime with `%f` and `%1f` to `%9f` (digits of the second's fraction) and `%s`, as Envoy extends it.
pub fn strftime(format: &str, at: SystemTime, out: &mut Vec<u8>) {
    let t = since_epoch(at);
    let c = Civil::from_seconds(t.as_secs());
    let mut chars = format.chars();
    while let Some(ch) = chars.next() {
        if ch != '%' {
            out.extend_from_slice(ch.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match chars.next() {
            Some(d @ '1'..='9') if chars.as_str().starts_with('f') => {
                chars.next();
                fraction(t.subsec_nanos(), d as usize - '0' as usize, out);
            }
            Some('E' | 'O') => {
                if let Some(d) = chars.next() {
                    directive(d, &c, t, out);
                }
            }
            Some(d) => directive(d, &c, t, out),
            None => out.push(b'%'),
        }
    }
}

fn fraction(nanos: u32, digits: usize, out: &mut Vec<u8>) {
    let text = format!("{nanos:09}");
    out.extend_from_slice(text.get(..digits.min(9)).unwrap_or(&text).as_bytes());
}

fn directive(d: char, c: &Civil, t: Duration, out: &mut Vec<u8>) {
    let month = usize::from(c.month - 1);
    let weekday = (c.days % 7) as usize;
    let hour12 = (c.hour + 11) % 12 + 1;
    let _ = match d {
        'Y' => write!(out, "{:04}", c.year),
        'C' => write!(out, "{:02}", c.year / 100),
        'y' => write!(out, "{:02}", c.year % 100),
        'm' => write!(out, "{:02}", c.month),
        'd' => write!(out, "{:02}", c.day),
        'e' => write!(out, "{:>2}", c.day),
        'H' => write!(out, "{:02}", c.hour),
        'I' => write!(out, "{hour12:02}"),
        'M' => write!(out, "{:02}", c.minute),
        'S' => write!(out, "{:02}", c.second),
        'p' => write!(out, "{}", if c.hour < 12 { "AM" } else { "PM" }),
        'a' => write!(out, "{}", DAYS[weekday]),
        'A' => write!(out, "{}", LONG_DAYS[weekday]),
        'b' | 'h' => write!(out, "{}", MONTHS[month]),
        'B' => write!(out, "{}", LONG_MONTHS[month]),
        'F' => write!(out, "{:04}-{:02}-{:02}", c.year, c.month, c.day),
        'D' => write!(out, "{:02}/{:02}/{:02}", c.month, c.day, c.year % 100),
        'T' => write!(out, "{:02}:{:02}:{:02}", c.hour, c.minute, c.second),
        'R' => write!(out, "{:02}:{:02}", c.hour, c.minute),
        'j' => write!(out, "{:03}", day_of_year(c)),
        'u' => write!(out, "{}", (weekday + 3) % 7 + 1),
        'w' => write!(out, "{}", (weekday + 4) % 7),
        's' => write!(out, "{}", t.as_secs()),
        'f' => write!(out, "{:09}", t.subsec_nanos()),
        'z' => write!(out, "+0000"),
        'Z' => write!(out, "UTC"),
        'n' => out.write_all(b"\n"),
        't' => out.write_all(b"\t"),
        '%' => out.write_all(b"%"),
        other => write!(out, "%{other}"),
    };
}

fn day_of_year(c: &Civil) -> u32 {
    const BEFORE: [u32; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leap =
        c.year.is_multiple_of(4) && (!c.year.is_multiple_of(100) || c.year.is_multiple_of(400));
    BEFORE[usize::from(c.month - 1)] + u32::from(c.day) + u32::from(leap && c.month > 2)
}
