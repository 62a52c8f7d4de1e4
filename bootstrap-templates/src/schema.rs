//! Protobuf JSON without protobuf: a message is a static table of fields, and one walk turns any
//! accepted spelling into the canonical one. It knows no field by name.

use std::time::Duration;

use serde_json::{Map, Number, Value};

use crate::duration::{format_proto_duration, parse_go_duration, parse_proto_duration};
use crate::error::{FieldError, FieldProblem, Warning};

/// Type of a field.
#[derive(Debug)]
pub(crate) enum Kind {
    String,
    Bool,
    Int32,
    UInt32,
    Double,
    /// `google.protobuf.BoolValue`: false is not the same as absent.
    BoolValue,
    Int32Value,
    /// Printed as a string, as protobuf JSON does with 64-bit numbers.
    Int64Value,
    Duration,
    Enum(&'static [(&'static str, i64)]),
    Message(&'static Message),
    Repeated(&'static Self),
    /// `map<string, …>`.
    MapOf(&'static Self),
}

/// One field: its protobuf name (the JSON name is derived) and type. `oneof` members keep their
/// default value when printed and exclude each other.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) oneof: Option<&'static str>,
}

/// A message type.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) fields: &'static [Field],
}

pub(crate) const fn field(name: &'static str, kind: Kind) -> Field {
    Field {
        name,
        kind,
        oneof: None,
    }
}

pub(crate) const fn one_of(group: &'static str, name: &'static str, kind: Kind) -> Field {
    Field {
        name,
        kind,
        oneof: Some(group),
    }
}

/// protobuf's JSON name: underscores go, the letter after one is upper-cased.
pub(crate) fn json_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else {
            out.push(if upper { c.to_ascii_uppercase() } else { c });
            upper = false;
        }
    }
    out
}

impl Message {
    fn field_of(&self, key: &str) -> Option<&'static Field> {
        self.fields
            .iter()
            .find(|f| f.name == key || json_name(f.name) == key)
    }

    /// Members of the same `oneof` as `key` (a JSON name), as JSON names.
    pub(crate) fn siblings(&self, key: &str) -> Vec<String> {
        let group = self.field_of(key).and_then(|f| f.oneof);
        self.fields
            .iter()
            .filter(|f| group.is_some() && f.oneof == group)
            .map(|f| json_name(f.name))
            .filter(|name| name != key)
            .collect()
    }

    /// Checks `value` against the table. Keys come out in JSON names; explicit default values are
    /// kept, so that an overlay can reset a field. `null` means absent.
    pub(crate) fn canonical(
        &self,
        value: &Value,
        path: &str,
        warnings: &mut Vec<Warning>,
    ) -> Result<Map<String, Value>, FieldError> {
        let object = value
            .as_object()
            .ok_or_else(|| wrong_type(path, "an object", value))?;
        let mut out = Map::new();
        for (key, value) in object {
            let here = join(path, key);
            let Some(field) = self.field_of(key) else {
                warnings.push(Warning::UnknownField(here));
                continue;
            };
            if value.is_null() {
                continue;
            }
            out.insert(
                json_name(field.name),
                field.kind.canonical(value, &here, warnings)?,
            );
        }
        self.settle(&mut out, path, warnings);
        Ok(out)
    }

    /// Of several members of one `oneof` the last that the message declares stays, as in Istio.
    fn settle(&self, object: &mut Map<String, Value>, path: &str, warnings: &mut Vec<Warning>) {
        for (at, field) in self.fields.iter().enumerate() {
            let name = json_name(field.name);
            let by = self.fields[at + 1..].iter().rev().find(|later| {
                let same = field.oneof.is_some() && later.oneof == field.oneof;
                same && object.contains_key(&json_name(later.name))
            });
            if let Some(by) = by
                && object.shift_remove(&name).is_some()
            {
                warnings.push(Warning::Overruled {
                    field: join(path, &name),
                    by: by.name,
                });
            }
        }
    }

    /// Drops plain fields that hold their default value: the form protobuf prints.
    pub(crate) fn without_defaults(&self, object: &Map<String, Value>) -> Map<String, Value> {
        let mut out = Map::new();
        for (key, value) in object {
            let Some(field) = self.field_of(key) else {
                continue;
            };
            if field.oneof.is_none() && field.kind.is_default(value) {
                continue;
            }
            out.insert(key.clone(), field.kind.printed(value));
        }
        out
    }
}

impl Kind {
    fn canonical(
        &self,
        value: &Value,
        path: &str,
        warnings: &mut Vec<Warning>,
    ) -> Result<Value, FieldError> {
        match self {
            Self::String => match value {
                Value::String(_) => Ok(value.clone()),
                _ => Err(wrong_type(path, "a string", value)),
            },
            Self::Bool | Self::BoolValue => match value {
                Value::Bool(_) => Ok(value.clone()),
                _ => Err(wrong_type(path, "true or false", value)),
            },
            Self::Int32 | Self::Int32Value => {
                integer(value, path, i64::from(i32::MIN), i64::from(i32::MAX)).map(Value::from)
            }
            Self::UInt32 => integer(value, path, 0, i64::from(u32::MAX)).map(Value::from),
            Self::Int64Value => {
                integer(value, path, i64::MIN, i64::MAX).map(|n| Value::from(n.to_string()))
            }
            Self::Double => double(value, path),
            Self::Duration => duration(value, path),
            Self::Enum(values) => enumeration(values, value, path),
            Self::Message(message) => message.canonical(value, path, warnings).map(Value::Object),
            Self::Repeated(kind) => {
                let items = value
                    .as_array()
                    .ok_or_else(|| wrong_type(path, "a list", value))?;
                let parse = |(i, item)| kind.canonical(item, &format!("{path}[{i}]"), warnings);
                items
                    .iter()
                    .enumerate()
                    .map(parse)
                    .collect::<Result<_, _>>()
                    .map(Value::Array)
            }
            Self::MapOf(kind) => {
                let object = value
                    .as_object()
                    .ok_or_else(|| wrong_type(path, "an object", value))?;
                let mut out = Map::new();
                for (key, item) in object {
                    let here = format!("{path}[{key:?}]");
                    out.insert(key.clone(), kind.canonical(item, &here, warnings)?);
                }
                Ok(Value::Object(out))
            }
        }
    }

    fn is_default(&self, value: &Value) -> bool {
        match self {
            Self::String => value.as_str() == Some(""),
            Self::Bool => value.as_bool() == Some(false),
            Self::Int32 | Self::UInt32 => value.as_i64() == Some(0),
            Self::Double => value.as_f64() == Some(0.0),
            Self::Enum(values) => values
                .iter()
                .any(|(name, n)| *n == 0 && value.as_str() == Some(name)),
            Self::Repeated(_) => value.as_array().is_some_and(Vec::is_empty),
            Self::MapOf(_) => value.as_object().is_some_and(Map::is_empty),
            Self::BoolValue | Self::Int32Value | Self::Int64Value => false,
            Self::Duration | Self::Message(_) => false,
        }
    }

    fn printed(&self, value: &Value) -> Value {
        match (self, value) {
            (Self::Message(message), Value::Object(object)) => {
                Value::Object(message.without_defaults(object))
            }
            (Self::Repeated(kind), Value::Array(items)) => {
                Value::Array(items.iter().map(|item| kind.printed(item)).collect())
            }
            (Self::MapOf(kind), Value::Object(object)) => object
                .iter()
                .map(|(key, item)| (key.clone(), kind.printed(item)))
                .collect(),
            _ => value.clone(),
        }
    }
}

fn integer(value: &Value, path: &str, min: i64, max: i64) -> Result<i64, FieldError> {
    let number = match value {
        Value::Number(n) => whole(n),
        Value::String(text) => text.parse().ok(),
        _ => return Err(wrong_type(path, "a whole number", value)),
    };
    match number {
        Some(n) if (min..=max).contains(&n) => Ok(n),
        Some(n) => Err(FieldError::new(
            path,
            FieldProblem::OutOfRange(n.to_string()),
        )),
        None => Err(wrong_type(path, "a whole number", value)),
    }
}

/// Whole numbers may be written as floats (`1e3`, `2.0`), as protobuf JSON allows.
fn whole(number: &Number) -> Option<i64> {
    let exact = |f: f64| (f.fract() == 0.0 && f.abs() < 9.0e15).then_some(f as i64);
    number.as_i64().or_else(|| number.as_f64().and_then(exact))
}

/// Whole doubles are printed without a fraction, as Go does.
fn double(value: &Value, path: &str) -> Result<Value, FieldError> {
    let number = match value {
        Value::Number(n) => n.as_f64(),
        Value::String(text) => text.parse().ok().filter(|f: &f64| f.is_finite()),
        _ => None,
    };
    let number = number.ok_or_else(|| wrong_type(path, "a number", value))?;
    Ok(match Number::from_f64(number) {
        Some(float) => whole(&float).map_or(Value::Number(float), Value::from),
        None => Value::Null,
    })
}

/// Istio reads the `1m30s` and `500ms` that users write in annotations as well as protobuf's form,
/// which is what it sends on.
fn duration(value: &Value, path: &str) -> Result<Value, FieldError> {
    let text = value
        .as_str()
        .ok_or_else(|| wrong_type(path, "a duration string", value))?;
    let parsed: Option<Duration> = parse_proto_duration(text).or_else(|| parse_go_duration(text));
    let bad = || FieldError::new(path, FieldProblem::BadDuration(text.to_owned()));
    parsed
        .map(|d| Value::from(format_proto_duration(d)))
        .ok_or_else(bad)
}

fn enumeration(
    values: &'static [(&'static str, i64)],
    value: &Value,
    path: &str,
) -> Result<Value, FieldError> {
    let found = match value {
        Value::String(text) => values.iter().find(|(name, _)| name == text),
        Value::Number(n) => values
            .iter()
            .find(|(_, number)| n.as_i64() == Some(*number)),
        _ => return Err(wrong_type(path, "an enumeration value", value)),
    };
    let unknown = || FieldProblem::UnknownEnumValue(value.to_string().replace('"', ""));
    found
        .map(|(name, _)| Value::from(*name))
        .ok_or_else(|| FieldError::new(path, unknown()))
}

pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

pub(crate) fn wrong_type(path: &str, expected: &'static str, value: &Value) -> FieldError {
    let got = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    FieldError::new(path, FieldProblem::WrongType { expected, got })
}
