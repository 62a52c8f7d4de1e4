//! JSON to wire bytes.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Map, Value};

use super::wire::{Path, put_bytes, put_tag, put_varint};
use super::{EncodeOptions, JsonError};
use crate::table::{Field, Kind, Message, WellKnown};
use crate::type_url::message_name;

pub(super) struct Encoder {
    pub(super) options: EncodeOptions,
    pub(super) unknown: Vec<String>,
}

impl Encoder {
    pub(super) fn any_type(
        &mut self,
        type_name: &str,
        value: &Value,
        path: &mut Path,
    ) -> Result<Vec<u8>, JsonError> {
        if let Some(known) = WellKnown::by_name(type_name) {
            return self.well_known(known, value, path);
        }
        match (Message::by_name(type_name), value) {
            (Some(message), Value::Object(object)) => self.message(message, object, false, path),
            (Some(_), _) => path.error("expected an object"),
            (None, _) => path.error(format!("unknown message type {type_name}")),
        }
    }

    fn message(
        &mut self,
        message: Message,
        object: &Map<String, Value>,
        in_any: bool,
        path: &mut Path,
    ) -> Result<Vec<u8>, JsonError> {
        path.descend()?;
        let mut parts: Vec<(u32, Vec<u8>)> = Vec::with_capacity(object.len());
        let mut oneofs = 0_u32;
        for (key, value) in object {
            let Some(field) = message.field_by_name(key) else {
                if in_any && key == "@type" {
                    continue;
                }
                path.enter(key.clone());
                if !self.options.allow_unknown_fields {
                    return path.error(format!("unknown field in {}", message.name()));
                }
                self.unknown.push(path.text());
                path.leave();
                continue;
            };
            if parts.iter().any(|(n, _)| *n == field.number) {
                path.enter(key.clone());
                return path.error("field given twice");
            }
            path.enter(field.name);
            let is_set = !value.is_null() || field.keeps_null();
            if field.oneof > 0 && is_set {
                let bit = 1 << (field.oneof & 31);
                if oneofs & bit != 0 {
                    return path.error("another field of the same oneof is set");
                }
                oneofs |= bit;
            }
            let mut out = Vec::new();
            self.field(&field, value, &mut out, path)?;
            parts.push((field.number, out));
            path.leave();
        }
        path.ascend();
        parts.sort_by_key(|(n, _)| *n);
        let mut all = Vec::with_capacity(parts.iter().map(|(_, bytes)| bytes.len()).sum());
        for (_, bytes) in &parts {
            all.extend_from_slice(bytes);
        }
        Ok(all)
    }

    fn field(
        &mut self,
        field: &Field,
        value: &Value,
        out: &mut Vec<u8>,
        path: &mut Path,
    ) -> Result<(), JsonError> {
        let keeps_null = field.keeps_null();
        if value.is_null() && !keeps_null {
            return Ok(());
        }
        if let Some((key, entry)) = field.map() {
            return self.map(field.number, &key, &entry, value, out, path);
        }
        if !field.repeated {
            return self.single(field, value, out, path);
        }
        let Value::Array(items) = value else {
            return path.error("expected an array");
        };
        for (i, item) in items.iter().enumerate() {
            path.enter(i);
            if item.is_null() && !keeps_null {
                return path.error("null in an array");
            }
            self.single(field, item, out, path)?;
            path.leave();
        }
        Ok(())
    }

    fn map(
        &mut self,
        number: u32,
        key: &Field,
        entry: &Field,
        value: &Value,
        out: &mut Vec<u8>,
        path: &mut Path,
    ) -> Result<(), JsonError> {
        let Value::Object(object) = value else {
            return path.error("expected an object");
        };
        for (name, value) in object {
            path.enter(format!("[{name}]"));
            let key_value = match key.kind {
                Kind::String => Value::from(name.as_str()),
                Kind::Bool => match name.as_str() {
                    "true" => Value::from(true),
                    "false" => Value::from(false),
                    _ => return path.error("expected true or false as key"),
                },
                _ => Value::from(name.as_str()),
            };
            let mut bytes = Vec::new();
            self.single(key, &key_value, &mut bytes, path)?;
            self.single(entry, value, &mut bytes, path)?;
            put_bytes(out, number, &bytes);
            path.leave();
        }
        Ok(())
    }

    fn single(
        &mut self,
        field: &Field,
        value: &Value,
        out: &mut Vec<u8>,
        path: &mut Path,
    ) -> Result<(), JsonError> {
        match field.kind {
            Kind::Message => {
                let bytes = match (field.well_known, field.message(), value) {
                    (Some(known), _, value) => self.well_known(known, value, path)?,
                    (None, Some(message), Value::Object(object)) => {
                        self.message(message, object, false, path)?
                    }
                    _ => return path.error("expected an object"),
                };
                put_bytes(out, field.number, &bytes);
            }
            Kind::Enum => {
                let number = match value {
                    Value::Null => Some(0),
                    Value::Number(n) => n.as_i64().and_then(|n| i32::try_from(n).ok()),
                    Value::String(s) => field.enumeration().and_then(|e| e.number_of(s)),
                    _ => None,
                };
                let Some(number) = number else {
                    return path.error(format!("unknown enum value {value}"));
                };
                put_tag(out, field.number, 0);
                put_varint(out, i64::from(number) as u64);
            }
            kind => scalar(kind, field.number, value, out, path)?,
        }
        Ok(())
    }

    fn well_known(
        &mut self,
        known: WellKnown,
        value: &Value,
        path: &mut Path,
    ) -> Result<Vec<u8>, JsonError> {
        path.descend()?;
        let bytes = self.well_known_bytes(known, value, path)?;
        path.ascend();
        Ok(bytes)
    }

    fn well_known_bytes(
        &mut self,
        known: WellKnown,
        value: &Value,
        path: &mut Path,
    ) -> Result<Vec<u8>, JsonError> {
        let mut out = Vec::new();
        match known {
            WellKnown::Any => return self.any(value, path),
            WellKnown::Duration => {
                let Some((seconds, nanos)) = value.as_str().and_then(parse_duration) else {
                    return path.error("expected a duration such as \"1.5s\"");
                };
                seconds_nanos(&mut out, seconds, nanos);
            }
            WellKnown::Timestamp => {
                let Some((seconds, nanos)) = value.as_str().and_then(parse_timestamp) else {
                    return path.error("expected an RFC 3339 time");
                };
                seconds_nanos(&mut out, seconds, nanos);
            }
            WellKnown::Struct => {
                let Value::Object(object) = value else {
                    return path.error("expected an object");
                };
                for (key, value) in object {
                    path.enter(key.clone());
                    let mut entry = Vec::new();
                    put_bytes(&mut entry, 1, key.as_bytes());
                    put_bytes(
                        &mut entry,
                        2,
                        &self.well_known(WellKnown::Value, value, path)?,
                    );
                    put_bytes(&mut out, 1, &entry);
                    path.leave();
                }
            }
            WellKnown::Value => match value {
                Value::Null => out.extend_from_slice(&[1 << 3, 0]),
                Value::Bool(b) => out.extend_from_slice(&[4 << 3, u8::from(*b)]),
                Value::Number(n) => {
                    put_tag(&mut out, 2, 1);
                    out.extend_from_slice(&n.as_f64().unwrap_or(f64::NAN).to_le_bytes());
                }
                Value::String(s) => put_bytes(&mut out, 3, s.as_bytes()),
                Value::Object(_) => {
                    put_bytes(
                        &mut out,
                        5,
                        &self.well_known(WellKnown::Struct, value, path)?,
                    );
                }
                Value::Array(_) => {
                    put_bytes(
                        &mut out,
                        6,
                        &self.well_known(WellKnown::ListValue, value, path)?,
                    );
                }
            },
            WellKnown::ListValue => {
                let Value::Array(items) = value else {
                    return path.error("expected an array");
                };
                for (i, item) in items.iter().enumerate() {
                    path.enter(i);
                    put_bytes(&mut out, 1, &self.well_known(WellKnown::Value, item, path)?);
                    path.leave();
                }
            }
            WellKnown::Wrapper(kind) => scalar(kind, 1, value, &mut out, path)?,
            WellKnown::FieldMask => {
                let Value::String(text) = value else {
                    return path.error("expected a string");
                };
                for part in text.split(',').filter(|p| !p.is_empty()) {
                    put_bytes(&mut out, 1, part.as_bytes());
                }
            }
            WellKnown::Empty | WellKnown::NullValue => {}
        }
        Ok(out)
    }

    fn any(&mut self, value: &Value, path: &mut Path) -> Result<Vec<u8>, JsonError> {
        let Value::Object(object) = value else {
            return path.error("expected an object");
        };
        let mut out = Vec::new();
        let url = match object.get("@type") {
            Some(Value::String(url)) => url,
            None if object.is_empty() => return Ok(out),
            _ => return path.error("missing \"@type\""),
        };
        let name = message_name(url);
        let content = if let Some(known) = WellKnown::by_name(name) {
            self.well_known(known, object.get("value").unwrap_or(&Value::Null), path)?
        } else if let Some(message) = Message::by_name(name) {
            self.message(message, object, true, path)?
        } else {
            return path.error(format!("unknown message type {name}"));
        };
        put_bytes(&mut out, 1, url.as_bytes());
        put_bytes(&mut out, 2, &content);
        Ok(out)
    }
}

fn seconds_nanos(out: &mut Vec<u8>, seconds: i64, nanos: i32) {
    if seconds != 0 {
        put_tag(out, 1, 0);
        put_varint(out, seconds as u64);
    }
    if nanos != 0 {
        put_tag(out, 2, 0);
        put_varint(out, i64::from(nanos) as u64);
    }
}

/// Nanoseconds of a decimal fraction of up to nine digits.
fn parse_fraction(text: &str) -> Option<i32> {
    if text.is_empty() || text.len() > 9 || !text.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    format!("{text:0<9}").parse().ok()
}

fn parse_duration(text: &str) -> Option<(i64, i32)> {
    let text = text.strip_suffix('s')?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |t| (true, t));
    let (whole, nanos) = match text.split_once('.') {
        Some((whole, fraction)) => (whole, parse_fraction(fraction)?),
        None => (text, 0),
    };
    if !whole.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok().filter(|s| *s <= 315_576_000_000)?;
    Some(if negative {
        (-seconds, -nanos)
    } else {
        (seconds, nanos)
    })
}

fn parse_timestamp(text: &str) -> Option<(i64, i32)> {
    let (date, time) = text.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (time, offset) = if let Some(time) = time.strip_suffix('Z') {
        (time, 0)
    } else {
        let at = time.rfind(['+', '-'])?;
        let (h, m) = time[at + 1..].split_once(':')?;
        let minutes = h.parse::<i64>().ok()? * 60 + m.parse::<i64>().ok()?;
        (
            &time[..at],
            if time.as_bytes()[at] == b'-' {
                -minutes
            } else {
                minutes
            },
        )
    };
    let (time, nanos) = match time.split_once('.') {
        Some((time, fraction)) => (time, parse_fraction(fraction)?),
        None => (time, 0),
    };
    let mut time = time.splitn(3, ':').map(str::parse::<i64>);
    let (h, m, s) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
    let fits = (1..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&h)
        && (0..60).contains(&m)
        && (0..=60).contains(&s);
    if !fits {
        return None;
    }
    // Days since 1970 of a civil date, years starting in March.
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let mp = (month + 9) % 12;
    let doy = (153 * mp + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    let days = era * 146_097 + doe - 719_468;
    Some((days * 86_400 + h * 3600 + m * 60 + s - offset * 60, nanos))
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => match s.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            s => s.parse().ok(),
        },
        _ => None,
    }
}

fn signed(value: &Value) -> Option<i64> {
    match value {
        Value::Number(n) => n.as_i64().or_else(|| {
            n.as_f64()
                .filter(|f| f.fract() == 0.0 && f.abs() < 9e18)
                .map(|f| f as i64)
        }),
        Value::String(s) => s.parse().ok(),
        _ => None,
    }
}

fn unsigned(value: &Value) -> Option<u64> {
    match value {
        Value::Number(n) => n.as_u64().or_else(|| {
            n.as_f64()
                .filter(|f| f.fract() == 0.0 && (0.0..1.8e19).contains(f))
                .map(|f| f as u64)
        }),
        Value::String(s) => s.parse().ok(),
        _ => None,
    }
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let padded = format!("{text}{}", "=".repeat((4 - text.len() % 4) % 4));
    STANDARD
        .decode(&padded)
        .or_else(|_| URL_SAFE.decode(&padded))
        .ok()
}

fn scalar(
    kind: Kind,
    number: u32,
    value: &Value,
    out: &mut Vec<u8>,
    path: &Path,
) -> Result<(), JsonError> {
    let wrong = |what: &str| path.error(format!("expected {what}, found {value}"));
    let varint = |out: &mut Vec<u8>, v: u64| {
        put_tag(out, number, 0);
        put_varint(out, v);
    };
    match kind {
        Kind::Bool => match value {
            Value::Bool(b) => varint(out, u64::from(*b)),
            _ => return wrong("true or false"),
        },
        Kind::Int32 | Kind::SInt32 | Kind::SFixed32 => {
            let Some(v) = signed(value).and_then(|v| i32::try_from(v).ok()) else {
                return wrong("a 32-bit integer");
            };
            match kind {
                Kind::Int32 => varint(out, i64::from(v) as u64),
                Kind::SInt32 => varint(out, u64::from(((v << 1) ^ (v >> 31)) as u32)),
                _ => {
                    put_tag(out, number, 5);
                    out.extend_from_slice(&v.to_le_bytes());
                }
            }
        }
        Kind::UInt32 | Kind::Fixed32 => {
            let Some(v) = unsigned(value).and_then(|v| u32::try_from(v).ok()) else {
                return wrong("an unsigned 32-bit integer");
            };
            if kind == Kind::UInt32 {
                varint(out, u64::from(v));
            } else {
                put_tag(out, number, 5);
                out.extend_from_slice(&v.to_le_bytes());
            }
        }
        Kind::Int64 | Kind::SInt64 | Kind::SFixed64 => {
            let Some(v) = signed(value) else {
                return wrong("a 64-bit integer");
            };
            match kind {
                Kind::Int64 => varint(out, v as u64),
                Kind::SInt64 => varint(out, ((v << 1) ^ (v >> 63)) as u64),
                _ => {
                    put_tag(out, number, 1);
                    out.extend_from_slice(&v.to_le_bytes());
                }
            }
        }
        Kind::UInt64 | Kind::Fixed64 => {
            let Some(v) = unsigned(value) else {
                return wrong("an unsigned 64-bit integer");
            };
            if kind == Kind::UInt64 {
                varint(out, v);
            } else {
                put_tag(out, number, 1);
                out.extend_from_slice(&v.to_le_bytes());
            }
        }
        Kind::Double => {
            let Some(v) = float(value) else {
                return wrong("a number");
            };
            put_tag(out, number, 1);
            out.extend_from_slice(&v.to_le_bytes());
        }
        Kind::Float => {
            let fits = |v: &f64| v.is_finite() == (*v as f32).is_finite();
            let Some(v) = float(value).filter(fits) else {
                return wrong("a 32-bit number");
            };
            put_tag(out, number, 5);
            out.extend_from_slice(&(v as f32).to_le_bytes());
        }
        Kind::String => {
            let Value::String(s) = value else {
                return wrong("a string");
            };
            put_bytes(out, number, s.as_bytes());
        }
        Kind::Bytes => {
            let Some(bytes) = value.as_str().and_then(decode_base64) else {
                return wrong("base64 text");
            };
            put_bytes(out, number, &bytes);
        }
        Kind::Message | Kind::Enum => return wrong("a scalar"),
    }
    Ok(())
}
