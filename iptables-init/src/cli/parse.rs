//! Scalar syntax of the command line and the environment: booleans, numbers and durations as the
//! reference's language spells them. A bad flag is an error; a bad variable means zero.

use std::time::Duration;

/// Scalar that does not parse. The process exits with 255.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScalarError {
    /// Not one of the boolean words.
    #[error("invalid syntax {0:?}: want true or false")]
    Bool(String),
    /// Not an unsigned 16-bit number.
    #[error("invalid syntax {0:?}: want a number up to 65535")]
    Number(String),
    /// Not a duration.
    #[error("invalid duration {0:?}: want for example 5s, 700ms or 1m30s")]
    Duration(String),
}

/// `1 t T TRUE true True 0 f F FALSE false False`.
pub fn go_bool(text: &str) -> Result<bool, ScalarError> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(ScalarError::Bool(text.to_owned())),
    }
}

fn unsigned(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = |body: &str, radix| {
        // from_str_radix would take a sign.
        if body.starts_with(['+', '-']) {
            return None;
        }
        u64::from_str_radix(body, radix).ok()
    };
    if let Some(hex) = lower.strip_prefix("0x") {
        return digits(hex, 16);
    }
    if let Some(binary) = lower.strip_prefix("0b") {
        return digits(binary, 2);
    }
    if let Some(octal) = lower.strip_prefix("0o") {
        return digits(octal, 8);
    }
    if lower.len() > 1 && lower.starts_with('0') {
        return digits(&lower[1..], 8);
    }
    digits(&lower, 10)
}

/// A u16, decimal or with a radix prefix such as `0x3a9b`.
pub fn go_u16(text: &str) -> Result<u16, ScalarError> {
    unsigned(text)
        .and_then(|n| u16::try_from(n).ok())
        .ok_or_else(|| ScalarError::Number(text.to_owned()))
}

/// A sum of decimal numbers with units `ns us µs ms s m h`; `0` needs none. Negative values are
/// taken as zero: the only use is a time limit.
pub fn go_duration(text: &str) -> Result<Duration, ScalarError> {
    let bad = || ScalarError::Duration(text.to_owned());
    let (negative, mut rest) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut total = 0_f64;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(bad()),
            };
        rest = &rest[unit..];
    }
    if negative {
        return Ok(Duration::ZERO);
    }
    Duration::try_from_secs_f64(total).map_err(|_| bad())
}

/// Boolean variable: garbage is false.
#[must_use]
pub fn env_bool(text: &str) -> bool {
    go_bool(text).unwrap_or(false)
}

/// u16 variable: too big is the maximum, garbage is 0.
#[must_use]
pub fn env_u16(text: &str) -> u16 {
    unsigned(text).map_or(0, |n| u16::try_from(n).unwrap_or(u16::MAX))
}

/// Duration variable: garbage is 0.
#[must_use]
pub fn env_duration(text: &str) -> Duration {
    go_duration(text).unwrap_or(Duration::ZERO)
}
