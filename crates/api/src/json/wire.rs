//! Wire format primitives and the field path of errors.

use std::fmt::Write as _;

use super::{JsonError, MAX_DEPTH};

/// Path of the field being converted. Written out only for an error: a large document enters millions of fields.
#[derive(Debug, Default)]
pub(super) struct Path {
    parts: Vec<Part>,
    depth: usize,
}

/// One step of a [`Path`].
#[derive(Debug)]
pub(super) enum Part {
    Field(&'static str),
    Index(usize),
    /// A key of the document, in brackets for a map entry.
    Key(String),
}

impl From<&'static str> for Part {
    fn from(name: &'static str) -> Self {
        Self::Field(name)
    }
}

impl From<usize> for Part {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

impl From<String> for Part {
    fn from(key: String) -> Self {
        Self::Key(key)
    }
}

impl Path {
    pub(super) fn enter(&mut self, part: impl Into<Part>) {
        self.parts.push(part.into());
    }

    pub(super) fn leave(&mut self) {
        self.parts.pop();
    }

    /// One message deeper; every message, `Any` and JSON value counts, so that recursion is bounded by the input's
    /// nesting alone.
    pub(super) fn descend(&mut self) -> Result<(), JsonError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            self.error("nested too deeply")
        } else {
            Ok(())
        }
    }

    /// Back from [`Self::descend`]. Not needed on the way of an error.
    pub(super) fn ascend(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        for part in &self.parts {
            let name = match part {
                Part::Field(name) => name,
                Part::Key(key) => key.as_str(),
                Part::Index(index) => {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "[{index}]");
                    continue;
                }
            };
            if !out.is_empty() && !name.starts_with('[') {
                out.push('.');
            }
            out.push_str(name);
        }
        out
    }

    pub(super) fn error<T>(&self, reason: impl Into<String>) -> Result<T, JsonError> {
        Err(JsonError {
            path: self.text(),
            reason: reason.into(),
        })
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

pub(super) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, (u64::from(number) << 3) | u64::from(wire_type));
}

pub(super) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A value as the wire carries it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

pub(super) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(shift).unwrap_or(0);
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    Some(head)
}

/// The next field of a message: number and value; `None` when the bytes are malformed.
pub(super) fn take_field<'a>(bytes: &mut &'a [u8]) -> Option<(u32, Raw<'a>)> {
    let tag = take_varint(bytes)?;
    let number = u32::try_from(tag >> 3).ok().filter(|n| *n > 0)?;
    let raw = match tag & 7 {
        0 => Raw::Varint(take_varint(bytes)?),
        1 => Raw::Fixed64(u64::from_le_bytes(take(bytes, 8)?.try_into().ok()?)),
        2 => {
            let n = usize::try_from(take_varint(bytes)?).ok()?;
            Raw::Bytes(take(bytes, n)?)
        }
        5 => Raw::Fixed32(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?)),
        _ => return None,
    };
    Some((number, raw))
}
