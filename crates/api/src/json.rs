//! proto3 JSON both ways between wire bytes and `serde_json::Value`, driven by the descriptor table. Output is what
//! Envoy's admin prints: original field names, defaults left out, 64-bit integers as strings, enums by name.

mod decode;
mod encode;
mod redact;
mod wire;

use std::fmt::Write as _;

use serde_json::Value;

use crate::table::{Message, WellKnown};

/// How deep messages, `Any`s and JSON values may nest.
const MAX_DEPTH: usize = 100;

/// Why a document or message could not be converted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct JsonError {
    /// Field path in proto syntax, empty for the document itself.
    pub path: String,
    /// What is wrong.
    pub reason: String,
}

/// Options of [`encode`].
#[derive(Debug, Clone, Copy, Default)]
pub struct EncodeOptions {
    /// Unknown fields are listed instead of refused.
    pub allow_unknown_fields: bool,
}

/// A message made from JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Wire bytes.
    pub bytes: Vec<u8>,
    /// Paths of unknown fields that were left out.
    pub unknown_fields: Vec<String>,
}

/// Options of [`decode`].
#[derive(Debug, Clone, Copy, Default)]
pub struct DecodeOptions {
    /// Replace what Envoy marks as sensitive: texts and bytes below such a field become `[redacted]` (base64 of it for
    /// bytes), numbers, booleans and enums disappear or become 0. Holds inside `Any` and `TypedStruct` too.
    pub redact: bool,
}

/// Wire bytes of the message `type_name` described by `value`.
///
/// # Errors
/// Unknown type, unknown field (unless allowed), or a value of the wrong form, with its path.
pub fn encode(
    type_name: &str,
    value: &Value,
    options: &EncodeOptions,
) -> Result<Encoded, JsonError> {
    let mut encoder = encode::Encoder {
        options: *options,
        unknown: Vec::new(),
    };
    let mut path = wire::Path::default();
    let bytes = encoder.any_type(type_name, value, &mut path)?;
    Ok(Encoded {
        bytes,
        unknown_fields: encoder.unknown,
    })
}

/// JSON of wire bytes of the message `type_name`. Fields that are not in the table are skipped; an `Any` of an
/// unknown type becomes `{"@type", "value": base64}`.
///
/// # Errors
/// Unknown type, or bytes that are not a message.
pub fn decode(type_name: &str, bytes: &[u8], options: &DecodeOptions) -> Result<Value, JsonError> {
    let mut path = wire::Path::default();
    decode::Decoder::new(*options).any_type(type_name, bytes, &mut path)
}

/// Whether the table knows a message.
#[must_use]
pub fn is_known(type_name: &str) -> bool {
    WellKnown::by_name(type_name).is_some() || Message::by_name(type_name).is_some()
}

/// JSON text with one blank of indent, as protobuf's printer makes it.
#[must_use]
pub fn to_string_pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    // Writing a `Value` into a vector cannot fail.
    if serde::Serialize::serialize(value, &mut serializer).is_err() {
        return String::new();
    }
    let mut text = String::new();
    for c in String::from_utf8(out).unwrap_or_default().chars() {
        match c {
            // As protobuf's printer; these stand only inside strings.
            '<' | '>' | '\u{7f}' | '\u{2028}' | '\u{2029}' => {
                // Writing to a String cannot fail.
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text
}
