//! Wire bytes to JSON.

use std::cell::Cell;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};

use super::redact;
use super::wire::{Path, Raw, take_field, take_varint};
use super::{DecodeOptions, JsonError};
use crate::table::{Field, Kind, Message, WellKnown};
use crate::type_url::message_name;

pub(super) struct Decoder {
    options: DecodeOptions,
    /// How many sensitive fields enclose the current one; above 0 nothing readable is printed.
    hidden: Cell<usize>,
}

impl Decoder {
    pub(super) fn new(options: DecodeOptions) -> Self {
        Self {
            options,
            hidden: Cell::new(0),
        }
    }

    fn hides(&self) -> bool {
        self.hidden.get() > 0
    }

    pub(super) fn any_type(
        &self,
        type_name: &str,
        bytes: &[u8],
        path: &mut Path,
    ) -> Result<Value, JsonError> {
        if let Some(known) = WellKnown::by_name(type_name) {
            return self.well_known(known, bytes, path);
        }
        match Message::by_name(type_name) {
            Some(message) => Ok(Value::Object(self.message(message, bytes, path)?)),
            None => path.error(format!("unknown message type {type_name}")),
        }
    }

    fn message(
        &self,
        message: Message,
        bytes: &[u8],
        path: &mut Path,
    ) -> Result<Map<String, Value>, JsonError> {
        path.descend()?;
        // Last value wins, in order of first appearance on the wire; messages that come twice are merged.
        let mut seen: Vec<(Field, Vec<Raw<'_>>)> = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some((number, raw)) = take_field(&mut rest) else {
                return path.error("malformed protobuf");
            };
            if let Some((_, raws)) = seen.iter_mut().find(|(f, _)| f.number == number) {
                raws.push(raw);
            } else if let Some(field) = message.field(number) {
                seen.push((field, vec![raw]));
            }
        }
        seen.sort_by_key(|(f, _)| f.number);
        let mut out = Map::new();
        for (field, raws) in seen {
            path.enter(field.name);
            let sensitive = usize::from(self.options.redact && field.sensitive);
            self.hidden.set(self.hidden.get() + sensitive);
            if let Some(value) = self.field(&field, &raws, path)? {
                out.insert(field.name.to_owned(), value);
            }
            self.hidden.set(self.hidden.get() - sensitive);
            path.leave();
        }
        path.ascend();
        if self.options.redact && redact::is_typed_struct(message.name()) {
            redact::typed_struct(&mut out, self.hides());
        }
        Ok(out)
    }

    fn field(
        &self,
        field: &Field,
        raws: &[Raw<'_>],
        path: &mut Path,
    ) -> Result<Option<Value>, JsonError> {
        if let Some((key, value)) = field.map() {
            return self.map(&key, &value, raws, path).map(Some);
        }
        let readable = matches!(field.kind, Kind::String | Kind::Bytes | Kind::Message);
        if self.hides() && !readable {
            // As Envoy: numbers of a secret are not shown at all.
            return Ok(None);
        }
        if field.repeated {
            let mut list = Vec::new();
            for raw in raws {
                self.repeated(field, *raw, &mut list, path)?;
            }
            return Ok((!list.is_empty()).then_some(Value::Array(list)));
        }
        if field.kind == Kind::Message && raws.len() > 1 {
            let mut merged = Vec::new();
            for raw in raws {
                if let Raw::Bytes(b) = raw {
                    merged.extend_from_slice(b);
                }
            }
            return self.single(field, Raw::Bytes(&merged), path).map(Some);
        }
        let Some(last) = raws.last() else {
            return Ok(None);
        };
        if !field.presence && is_default(*last) && field.kind != Kind::Message {
            return Ok(None);
        }
        self.single(field, *last, path).map(Some)
    }

    fn map(
        &self,
        key: &Field,
        value: &Field,
        raws: &[Raw<'_>],
        path: &mut Path,
    ) -> Result<Value, JsonError> {
        let mut out = Map::new();
        for raw in raws {
            let Raw::Bytes(mut entry) = *raw else {
                return path.error("malformed map entry");
            };
            let (mut k, mut v) = (Value::from(""), None);
            if key.kind != Kind::String {
                k = scalar(key.kind, Raw::Varint(0), path)?;
            }
            while !entry.is_empty() {
                match take_field(&mut entry) {
                    Some((1, raw)) => k = scalar(key.kind, raw, path)?,
                    Some((2, raw)) => {
                        path.enter(format!("[{}]", key_text(&k)));
                        v = Some(self.single(value, raw, path)?);
                        path.leave();
                    }
                    Some(_) => {}
                    None => return path.error("malformed map entry"),
                }
            }
            let v = match v {
                Some(v) => v,
                None => self.absent(value, path)?,
            };
            out.insert(key_text(&k), v);
        }
        Ok(Value::Object(out))
    }

    /// Value of a map entry that did not carry one.
    fn absent(&self, field: &Field, path: &mut Path) -> Result<Value, JsonError> {
        let raw = match field.kind {
            Kind::String | Kind::Bytes | Kind::Message => Raw::Bytes(b""),
            Kind::Double | Kind::Fixed64 | Kind::SFixed64 => Raw::Fixed64(0),
            Kind::Float | Kind::Fixed32 | Kind::SFixed32 => Raw::Fixed32(0),
            _ => Raw::Varint(0),
        };
        self.single(field, raw, path)
    }

    fn repeated(
        &self,
        field: &Field,
        raw: Raw<'_>,
        list: &mut Vec<Value>,
        path: &mut Path,
    ) -> Result<(), JsonError> {
        let packed = !matches!(field.kind, Kind::String | Kind::Bytes | Kind::Message);
        let Raw::Bytes(mut bytes) = raw else {
            list.push(self.single(field, raw, path)?);
            return Ok(());
        };
        if !packed {
            path.enter(list.len());
            list.push(self.single(field, raw, path)?);
            path.leave();
            return Ok(());
        }
        while !bytes.is_empty() {
            let item = match field.kind {
                Kind::Double | Kind::Fixed64 | Kind::SFixed64 => {
                    bytes.split_first_chunk::<8>().map(|(head, rest)| {
                        bytes = rest;
                        Raw::Fixed64(u64::from_le_bytes(*head))
                    })
                }
                Kind::Float | Kind::Fixed32 | Kind::SFixed32 => {
                    bytes.split_first_chunk::<4>().map(|(head, rest)| {
                        bytes = rest;
                        Raw::Fixed32(u32::from_le_bytes(*head))
                    })
                }
                _ => take_varint(&mut bytes).map(Raw::Varint),
            };
            let Some(item) = item else {
                return path.error("malformed packed field");
            };
            list.push(self.single(field, item, path)?);
        }
        Ok(())
    }

    fn single(&self, field: &Field, raw: Raw<'_>, path: &mut Path) -> Result<Value, JsonError> {
        if let (Some(known), Raw::Bytes(bytes)) = (field.well_known, raw)
            && field.kind == Kind::Message
        {
            return self.well_known(known, bytes, path);
        }
        match (field.kind, raw) {
            (Kind::Message, Raw::Bytes(bytes)) => match field.message() {
                Some(message) => Ok(Value::Object(self.message(message, bytes, path)?)),
                None => Ok(Value::Object(Map::new())),
            },
            (Kind::Enum, Raw::Varint(_)) if self.hides() => Ok(zero(Kind::Enum)),
            (Kind::Enum, Raw::Varint(v)) => {
                if field.well_known == Some(WellKnown::NullValue) {
                    return Ok(Value::Null);
                }
                let name = field.enumeration().and_then(|e| e.name_of(v as i32));
                Ok(name.map_or_else(|| Value::from(v as i32), Value::from))
            }
            (kind, raw) => self.scalar(kind, raw, path),
        }
    }

    /// A scalar, or what stands for it inside a sensitive field.
    fn scalar(&self, kind: Kind, raw: Raw<'_>, path: &Path) -> Result<Value, JsonError> {
        let value = scalar(kind, raw, path)?;
        Ok(if self.hides() {
            redact::scalar(kind)
        } else {
            value
        })
    }

    fn well_known(
        &self,
        known: WellKnown,
        bytes: &[u8],
        path: &mut Path,
    ) -> Result<Value, JsonError> {
        path.descend()?;
        let value = self.well_known_value(known, bytes, path)?;
        path.ascend();
        Ok(value)
    }

    fn well_known_value(
        &self,
        known: WellKnown,
        bytes: &[u8],
        path: &mut Path,
    ) -> Result<Value, JsonError> {
        match known {
            WellKnown::Any => self.any(bytes, path),
            WellKnown::Duration if self.hides() => duration(&[], path),
            WellKnown::Duration => duration(bytes, path),
            WellKnown::Timestamp if self.hides() => timestamp(&[], path),
            WellKnown::Timestamp => timestamp(bytes, path),
            WellKnown::Struct => self.structure(bytes, path),
            WellKnown::Value => self.value(bytes, path),
            WellKnown::ListValue => self.list(bytes, path),
            WellKnown::Wrapper(kind) => match find(bytes, 1, path)? {
                Some(raw) => self.scalar(kind, raw, path),
                None => Ok(zero(kind)),
            },
            WellKnown::FieldMask if self.hides() => Ok(redact::scalar(Kind::String)),
            WellKnown::FieldMask => {
                let mut paths = Vec::new();
                let mut rest = bytes;
                while !rest.is_empty() {
                    match take_field(&mut rest) {
                        Some((1, Raw::Bytes(p))) => {
                            paths.push(String::from_utf8_lossy(p).into_owned());
                        }
                        Some(_) => {}
                        None => return path.error("malformed protobuf"),
                    }
                }
                Ok(Value::from(paths.join(",")))
            }
            WellKnown::Empty => Ok(Value::Object(Map::new())),
            WellKnown::NullValue => Ok(Value::Null),
        }
    }

    fn any(&self, bytes: &[u8], path: &mut Path) -> Result<Value, JsonError> {
        let url = match find(bytes, 1, path)? {
            Some(Raw::Bytes(b)) => String::from_utf8_lossy(b).into_owned(),
            _ => String::new(),
        };
        let content = match find(bytes, 2, path)? {
            Some(Raw::Bytes(b)) => b,
            _ => b"",
        };
        let mut out = Map::new();
        if url.is_empty() {
            return Ok(Value::Object(out));
        }
        let name = message_name(&url).to_owned();
        out.insert("@type".to_owned(), Value::from(url));
        if let Some(known) = WellKnown::by_name(&name) {
            out.insert("value".to_owned(), self.well_known(known, content, path)?);
        } else if let Some(message) = Message::by_name(&name) {
            path.enter(format!("[{name}]"));
            out.append(&mut self.message(message, content, path)?);
            path.leave();
        } else {
            let content = if self.hides() {
                redact::scalar(Kind::Bytes)
            } else {
                Value::from(STANDARD.encode(content))
            };
            out.insert("value".to_owned(), content);
        }
        Ok(Value::Object(out))
    }

    fn structure(&self, bytes: &[u8], path: &mut Path) -> Result<Value, JsonError> {
        let mut out = Map::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some((number, raw)) = take_field(&mut rest) else {
                return path.error("malformed protobuf");
            };
            let (1, Raw::Bytes(entry)) = (number, raw) else {
                continue;
            };
            let key = match find(entry, 1, path)? {
                Some(Raw::Bytes(k)) => String::from_utf8_lossy(k).into_owned(),
                _ => String::new(),
            };
            path.enter(key.clone());
            let value = match find(entry, 2, path)? {
                Some(Raw::Bytes(v)) => self.well_known(WellKnown::Value, v, path)?,
                _ => Value::Null,
            };
            path.leave();
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }

    fn value(&self, bytes: &[u8], path: &mut Path) -> Result<Value, JsonError> {
        let mut rest = bytes;
        let mut out = Value::Null;
        while !rest.is_empty() {
            out = match take_field(&mut rest) {
                Some((2, raw @ Raw::Fixed64(_))) => self.scalar(Kind::Double, raw, path)?,
                Some((3, raw @ Raw::Bytes(_))) => self.scalar(Kind::String, raw, path)?,
                Some((4, raw @ Raw::Varint(_))) => self.scalar(Kind::Bool, raw, path)?,
                Some((5, Raw::Bytes(b))) => self.well_known(WellKnown::Struct, b, path)?,
                Some((6, Raw::Bytes(b))) => self.well_known(WellKnown::ListValue, b, path)?,
                Some(_) => Value::Null,
                None => return path.error("malformed protobuf"),
            };
        }
        Ok(out)
    }

    fn list(&self, bytes: &[u8], path: &mut Path) -> Result<Value, JsonError> {
        let mut out = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            match take_field(&mut rest) {
                Some((1, Raw::Bytes(b))) => {
                    path.enter(out.len());
                    out.push(self.well_known(WellKnown::Value, b, path)?);
                    path.leave();
                }
                Some(_) => {}
                None => return path.error("malformed protobuf"),
            }
        }
        Ok(Value::Array(out))
    }
}

fn key_text(key: &Value) -> String {
    match key {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

const fn is_default(raw: Raw<'_>) -> bool {
    match raw {
        Raw::Varint(v) | Raw::Fixed64(v) => v == 0,
        Raw::Bytes(b) => b.is_empty(),
        Raw::Fixed32(v) => v == 0,
    }
}

/// Last value of a field by number.
fn find<'a>(bytes: &'a [u8], number: u32, path: &Path) -> Result<Option<Raw<'a>>, JsonError> {
    let (mut rest, mut found) = (bytes, None);
    while !rest.is_empty() {
        match take_field(&mut rest) {
            Some((n, raw)) if n == number => found = Some(raw),
            Some(_) => {}
            None => return path.error("malformed protobuf"),
        }
    }
    Ok(found)
}

fn number(f: f64) -> Value {
    if f.is_nan() {
        return Value::from("NaN");
    }
    if f.is_infinite() {
        return Value::from(if f > 0.0 { "Infinity" } else { "-Infinity" });
    }
    // Whole numbers print without a fraction.
    if f.fract() == 0.0 && f.abs() < 9_007_199_254_740_992.0 {
        return Value::from(f as i64);
    }
    Number::from_f64(f).map_or(Value::Null, Value::Number)
}

pub(super) fn zero(kind: Kind) -> Value {
    match kind {
        Kind::Bool => Value::from(false),
        Kind::Int64 | Kind::UInt64 => Value::from("0"),
        Kind::String | Kind::Bytes => Value::from(""),
        _ => Value::from(0),
    }
}

const fn zigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

fn scalar(kind: Kind, raw: Raw<'_>, path: &Path) -> Result<Value, JsonError> {
    Ok(match (kind, raw) {
        (Kind::Bool, Raw::Varint(v)) => Value::from(v != 0),
        (Kind::Int32, Raw::Varint(v)) => Value::from(v as i32),
        (Kind::UInt32, Raw::Varint(v)) => Value::from(v as u32),
        (Kind::SInt32, Raw::Varint(v)) => Value::from(zigzag(v) as i32),
        (Kind::Int64, Raw::Varint(v)) => Value::from((v as i64).to_string()),
        (Kind::UInt64, Raw::Varint(v)) => Value::from(v.to_string()),
        (Kind::SInt64, Raw::Varint(v)) => Value::from(zigzag(v).to_string()),
        (Kind::Fixed32, Raw::Fixed32(v)) => Value::from(v),
        (Kind::SFixed32, Raw::Fixed32(v)) => Value::from(v as i32),
        (Kind::Fixed64, Raw::Fixed64(v)) => Value::from(v.to_string()),
        (Kind::SFixed64, Raw::Fixed64(v)) => Value::from((v as i64).to_string()),
        (Kind::Double, Raw::Fixed64(v)) => number(f64::from_bits(v)),
        (Kind::Float, Raw::Fixed32(v)) => {
            // Shortest text of the 32-bit value, not of its 64-bit image.
            number(f32::from_bits(v).to_string().parse().unwrap_or(f64::NAN))
        }
        (Kind::String, Raw::Bytes(b)) => Value::from(String::from_utf8_lossy(b)),
        (Kind::Bytes, Raw::Bytes(b)) => Value::from(STANDARD.encode(b)),
        (Kind::Enum, Raw::Varint(v)) => Value::from(v as i32),
        _ => return path.error("value of the wrong wire type"),
    })
}

fn seconds_nanos(bytes: &[u8], path: &Path) -> Result<(i64, i32), JsonError> {
    let varint = |n| match find(bytes, n, path)? {
        Some(Raw::Varint(v)) => Ok(v),
        None => Ok(0),
        Some(_) => path.error("value of the wrong wire type"),
    };
    Ok((varint(1)? as i64, varint(2)? as i32))
}

/// Fraction of a second with 0, 3, 6 or 9 digits.
fn fraction(nanos: u32) -> String {
    match nanos {
        0 => String::new(),
        n if n % 1_000_000 == 0 => format!(".{:03}", n / 1_000_000),
        n if n % 1_000 == 0 => format!(".{:06}", n / 1_000),
        n => format!(".{n:09}"),
    }
}

fn duration(bytes: &[u8], path: &Path) -> Result<Value, JsonError> {
    let (seconds, nanos) = seconds_nanos(bytes, path)?;
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    let text = format!(
        "{sign}{}{}s",
        seconds.unsigned_abs(),
        fraction(nanos.unsigned_abs() % 1_000_000_000)
    );
    Ok(Value::from(text))
}

fn timestamp(bytes: &[u8], path: &Path) -> Result<Value, JsonError> {
    let (seconds, nanos) = seconds_nanos(bytes, path)?;
    if !(-62_135_596_800..=253_402_300_799).contains(&seconds) {
        return path.error("timestamp out of range");
    }
    let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days since 1970, years starting in March.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (time / 3600, time / 60 % 60, time % 60);
    let tail = fraction(nanos.unsigned_abs() % 1_000_000_000);
    Ok(Value::from(format!(
        "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}{tail}Z"
    )))
}
