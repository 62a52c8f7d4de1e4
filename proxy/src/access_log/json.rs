//! JSON log lines: typing rules of proxy.md 8.2. One operator keeps its type, mixed text is a string.

use std::cell::RefCell;

use outrigger_config::format::{Format, JsonFormat, JsonValue, Segment};

use super::LogContext;
use super::render::{Missing, is_number, operator};

thread_local! {
    /// Value of the leaf under way; keeps its capacity.
    static LEAF: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Appends one line, line feed included.
pub fn render(format: &JsonFormat, context: &LogContext<'_>, out: &mut Vec<u8>) {
    object(&format.fields, format.omit_empty_values, context, out);
    out.push(b'\n');
}

fn object(
    fields: &[(std::sync::Arc<str>, JsonValue)],
    omit: bool,
    context: &LogContext<'_>,
    out: &mut Vec<u8>,
) {
    out.push(b'{');
    let mut first = true;
    for (key, value) in fields {
        let before = out.len();
        if !first {
            out.push(b',');
        }
        string(key.as_bytes(), out);
        out.push(b':');
        if self::value(value, omit, context, out) {
            first = false;
        } else {
            out.truncate(before);
        }
    }
    out.push(b'}');
}

/// False when the value is to be left out.
fn value(value: &JsonValue, omit: bool, context: &LogContext<'_>, out: &mut Vec<u8>) -> bool {
    match value {
        JsonValue::Format(format) => return leaf(format, omit, context, out),
        JsonValue::Literal(text) => out.extend_from_slice(text.as_bytes()),
        JsonValue::Object(fields) => object(fields, omit, context, out),
        JsonValue::Array(items) => {
            out.push(b'[');
            let mut first = true;
            for item in items {
                let before = out.len();
                if !first {
                    out.push(b',');
                }
                if self::value(item, omit, context, out) {
                    first = false;
                } else {
                    out.truncate(before);
                }
            }
            out.push(b']');
        }
    }
    true
}

fn leaf(format: &Format, omit: bool, context: &LogContext<'_>, out: &mut Vec<u8>) -> bool {
    if let [Segment::Operator(op)] = &*format.segments {
        if is_number(op) {
            if operator(op, context, out) {
                return true;
            }
        } else {
            let present = LEAF.with_borrow_mut(|text| {
                text.clear();
                let present = operator(op, context, text);
                if present {
                    string(text, out);
                }
                present
            });
            if present {
                return true;
            }
        }
        if !omit {
            out.extend_from_slice(b"null");
        }
        return !omit;
    }
    LEAF.with_borrow_mut(|text| {
        text.clear();
        let missing = if omit { Missing::Empty } else { Missing::Dash };
        super::render(format, context, text, missing);
        string(text, out);
    });
    true
}

/// A quoted JSON string; invalid UTF-8 is replaced.
fn string(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for chunk in bytes.utf8_chunks() {
        for b in chunk.valid().bytes() {
            match b {
                b'"' => out.extend_from_slice(b"\\\""),
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                0x08 => out.extend_from_slice(b"\\b"),
                0x0c => out.extend_from_slice(b"\\f"),
                0..0x20 | 0x7f => {
                    let hex = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0') as u8;
                    out.extend_from_slice(&[b'\\', b'u', b'0', b'0', hex(b >> 4), hex(b & 15)]);
                }
                _ => out.push(b),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}
