//! Printing: `print`, `printf`, escapes for other languages, and quoting.

use super::super::value::{Value, print_float};
use super::{ANY, Function, any_text, function};

/// Widths and precisions beyond this are refused.
const MAX_WIDTH: usize = 1000;

pub(super) const TABLE: &[Function] = &[
    function("print", 0, ANY, |_, a| print(a).map(Value::from)),
    function("println", 0, ANY, |_, a| {
        let texts: Result<Vec<_>, _> = a.iter().map(any_text).collect();
        Ok(Value::from(texts?.join(" ") + "\n"))
    }),
    function("printf", 1, ANY, |_, a| {
        printf(super::text(&a[0])?, &a[1..]).map(Value::from)
    }),
    function("html", 0, ANY, |_, a| {
        Ok(Value::from(escape(&print(a)?, html)))
    }),
    function("js", 0, ANY, |_, a| {
        Ok(Value::from(escape(&print(a)?, javascript)))
    }),
    function("urlquery", 0, ANY, |_, a| {
        Ok(Value::from(url_query(&print(a)?)))
    }),
    function("quote", 0, ANY, |_, a| joined(a, quoted)),
    function("squote", 0, ANY, |_, a| {
        joined(a, |text| format!("'{text}'"))
    }),
    function("toString", 1, 1, |_, a| any_text(&a[0]).map(Value::from)),
];

/// Go's `Sprint`: a space between operands of which neither is text.
fn print(arguments: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut text_before = true;
    for value in arguments {
        let is_text = matches!(value, Value::Text(_));
        if !is_text && !text_before {
            out.push(' ');
        }
        out.push_str(&any_text(value)?);
        text_before = is_text;
    }
    Ok(out)
}

fn joined(arguments: &[Value], quote: impl Fn(&str) -> String) -> Result<Value, String> {
    let present = arguments.iter().filter(|v| !matches!(v, Value::Nil));
    let texts: Result<Vec<_>, String> = present.map(|v| Ok(quote(&any_text(v)?))).collect();
    Ok(Value::from(texts?.join(" ")))
}

/// Go's `%q` for text.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if u32::from(c) < 0x80 && c.is_control() => {
                out.push_str(&format!("\\x{:02x}", u32::from(c)));
            }
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn escape(text: &str, replace: fn(char) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match replace(c) {
            Some(escaped) => out.push_str(&escaped),
            None => out.push(c),
        }
    }
    out
}

fn html(c: char) -> Option<String> {
    let escaped = match c {
        '\0' => "\u{fffd}",
        '"' => "&#34;",
        '\'' => "&#39;",
        '&' => "&amp;",
        '<' => "&lt;",
        '>' => "&gt;",
        _ => return None,
    };
    Some(escaped.to_owned())
}

fn javascript(c: char) -> Option<String> {
    match c {
        '\\' => Some("\\\\".to_owned()),
        '\'' => Some("\\'".to_owned()),
        '"' => Some("\\\"".to_owned()),
        '<' | '>' | '&' | '=' => Some(format!("\\u{:04X}", u32::from(c))),
        c if c.is_control() => Some(format!("\\u{:04X}", u32::from(c))),
        _ => None,
    }
}

fn url_query(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[derive(Default)]
struct Verb {
    minus: bool,
    plus: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

/// Go's `Sprintf` for text, numbers and truth. What Go would mark as `%!` in the output is an
/// error here.
fn printf(format: &str, arguments: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut verb = Verb::default();
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '+' | '0' | ' ' | '#')) {
            match flag {
                '-' => verb.minus = true,
                '+' => verb.plus = true,
                '0' => verb.zero = true,
                other => return Err(format!("printf flag {other:?} is not supported")),
            }
        }
        let mut number = || {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            digits
        };
        let width = number();
        verb.width = width.parse().unwrap_or(0);
        if chars.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            verb.precision = Some(digits.parse().unwrap_or(0));
        }
        if verb.width.max(verb.precision.unwrap_or(0)) > MAX_WIDTH || width.len() > 4 {
            return Err("printf width is too large".to_owned());
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some(letter) => {
                let value = arguments
                    .next()
                    .ok_or_else(|| format!("no argument for %{letter}"))?;
                out.push_str(&formatted(&verb, letter, value)?);
            }
            None => return Err("printf format ends in %".to_owned()),
        }
    }
    match arguments.next() {
        Some(_) => Err("printf has more arguments than verbs".to_owned()),
        None => Ok(out),
    }
}

fn formatted(verb: &Verb, letter: char, value: &Value) -> Result<String, String> {
    let precision = verb.precision;
    let text = match (letter, value) {
        ('v', Value::Int(_) | Value::Float(_)) if precision.is_none() => value.print()?,
        ('v', other) => any_text(other)?,
        ('s', Value::Text(text)) => match precision {
            Some(limit) => text.chars().take(limit).collect(),
            None => text.to_string(),
        },
        ('s', Value::List(_) | Value::Map(_) | Value::TextMap(_)) => value.print()?,
        ('q', Value::Text(text)) => quoted(text),
        ('t', Value::Bool(value)) => value.to_string(),
        ('d', Value::Int(value)) => value.to_string(),
        ('x', Value::Int(value)) => signed(*value, format!("{:x}", value.unsigned_abs())),
        ('X', Value::Int(value)) => signed(*value, format!("{:X}", value.unsigned_abs())),
        ('o', Value::Int(value)) => signed(*value, format!("{:o}", value.unsigned_abs())),
        ('b', Value::Int(value)) => signed(*value, format!("{:b}", value.unsigned_abs())),
        ('x', Value::Text(text)) => text.bytes().map(|b| format!("{b:02x}")).collect(),
        ('c', Value::Int(value)) => u32::try_from(*value)
            .ok()
            .and_then(char::from_u32)
            .map_or_else(|| "\u{fffd}".to_owned(), String::from),
        ('f' | 'F', Value::Float(value)) => format!("{value:.*}", precision.unwrap_or(6)),
        ('g', Value::Float(value)) if precision.is_none() => print_float(*value),
        (letter, other) => {
            return Err(format!("%{letter} of {} is not supported", other.kind()));
        }
    };
    Ok(padded(verb, value, text))
}

fn signed(value: i64, digits: String) -> String {
    if value < 0 {
        format!("-{digits}")
    } else {
        digits
    }
}

fn padded(verb: &Verb, value: &Value, mut text: String) -> String {
    let numeric = matches!(value, Value::Int(_) | Value::Float(_));
    if verb.plus && numeric && !text.starts_with('-') {
        text.insert(0, '+');
    }
    let missing = verb.width.saturating_sub(text.chars().count());
    if missing == 0 {
        return text;
    }
    if verb.minus {
        return text + &" ".repeat(missing);
    }
    if verb.zero && numeric {
        let sign = usize::from(text.starts_with(['-', '+']));
        text.insert_str(sign, &"0".repeat(missing));
        return text;
    }
    " ".repeat(missing) + &text
}
