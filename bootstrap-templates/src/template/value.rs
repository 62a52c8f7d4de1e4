//! Values of templates: what Go's `reflect` would see of the parameters, and how Go prints them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::{Map as JsonMap, Number, Value as Json};

/// Members of a map; shared, because `set` and `merge` change a map in place.
pub(super) type Entries = Rc<RefCell<BTreeMap<String, Value>>>;

/// A value. Cloning is cheap and shares lists, maps and structures.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// A missing member, or `nil`.
    Nil,
    /// `true` or `false`.
    Bool(bool),
    /// Any integer.
    Int(i64),
    /// Any floating point number.
    Float(f64),
    /// Text.
    Text(Rc<str>),
    /// Slice.
    List(Rc<Vec<Self>>),
    /// Map from text.
    Map(Entries),
    /// Map from text to text: `index` gives empty text for a missing key.
    TextMap(Rc<BTreeMap<String, Self>>),
    /// Structure of Go.
    Struct(Rc<Struct>),
}

/// A structure: a fixed set of fields, and its own JSON form.
#[derive(Debug)]
pub(crate) struct Struct {
    pub(super) type_name: &'static str,
    pub(super) fields: BTreeMap<String, Value>,
    pub(super) json: Json,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<Vec<Self>> for Value {
    fn from(items: Vec<Self>) -> Self {
        Self::List(Rc::new(items))
    }
}

impl FromIterator<String> for Value {
    fn from_iter<T: IntoIterator<Item = String>>(items: T) -> Self {
        Self::from(items.into_iter().map(Self::from).collect::<Vec<_>>())
    }
}

impl FromIterator<(String, Self)> for Value {
    fn from_iter<T: IntoIterator<Item = (String, Self)>>(items: T) -> Self {
        Self::Map(Rc::new(RefCell::new(items.into_iter().collect())))
    }
}

impl Value {
    /// A structure.
    pub(crate) fn structure(
        type_name: &'static str,
        fields: impl IntoIterator<Item = (String, Self)>,
        json: Json,
    ) -> Self {
        Self::Struct(Rc::new(Struct {
            type_name,
            fields: fields.into_iter().collect(),
            json,
        }))
    }

    /// A map from text to text.
    pub(crate) fn texts<'a>(entries: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let entries = entries.into_iter();
        let owned = entries.map(|(key, value)| (key.clone(), Self::from(value.as_str())));
        Self::TextMap(Rc::new(owned.collect()))
    }

    /// Kind, in Go's words.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "invalid",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float64",
            Self::Text(_) => "string",
            Self::List(_) => "slice",
            Self::Map(_) | Self::TextMap(_) => "map",
            Self::Struct(_) => "struct",
        }
    }

    /// Whether `if` takes the first branch: not false, zero, empty or missing.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Nil => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Struct(_) => true,
            Self::Text(_) | Self::List(_) | Self::Map(_) | Self::TextMap(_) => {
                self.len().is_ok_and(|n| n > 0)
            }
        }
    }

    /// Bytes of text, items of a list, members of a map.
    pub(super) fn len(&self) -> Result<usize, String> {
        match self {
            Self::Text(text) => Ok(text.len()),
            Self::List(items) => Ok(items.len()),
            Self::Map(entries) => Ok(entries.borrow().len()),
            Self::TextMap(entries) => Ok(entries.len()),
            other => Err(format!("len of type {}", other.kind())),
        }
    }

    /// Members of a map in the order of their keys; `None` for another kind.
    pub(super) fn entries(&self) -> Option<BTreeMap<String, Self>> {
        match self {
            Self::Map(entries) => Some(entries.borrow().clone()),
            Self::TextMap(entries) => Some((**entries).clone()),
            _ => None,
        }
    }

    /// `.name`. A key that a map does not have is [`Value::Nil`], and so is every member of that; a
    /// field that a structure does not have is an error.
    pub(super) fn field(&self, name: &str) -> Result<Self, String> {
        match self {
            Self::Nil => Ok(Self::Nil),
            Self::Map(entries) => Ok(entries.borrow().get(name).cloned().unwrap_or(Self::Nil)),
            Self::TextMap(entries) => Ok(entries.get(name).cloned().unwrap_or(Self::Nil)),
            Self::Struct(structure) => {
                let getter = name.strip_prefix("Get").unwrap_or(name);
                let found = structure.fields.get(name);
                let found = found.or_else(|| structure.fields.get(getter));
                let missing = || {
                    format!(
                        "can't evaluate field {name} in type {}",
                        structure.type_name
                    )
                };
                found.cloned().ok_or_else(missing)
            }
            other => Err(format!(
                "can't evaluate field {name} in type {}",
                other.kind()
            )),
        }
    }

    /// What Go's `%v` prints.
    pub(super) fn print(&self) -> Result<String, String> {
        let inside = |value: &Self| match value {
            Self::Nil => Ok("<nil>".to_owned()),
            other => other.print(),
        };
        Ok(match self {
            Self::Nil => "<no value>".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => print_float(*value),
            Self::Text(text) => text.to_string(),
            Self::List(items) => {
                let items: Result<Vec<_>, _> = items.iter().map(inside).collect();
                format!("[{}]", items?.join(" "))
            }
            Self::Map(_) | Self::TextMap(_) => {
                let entries = self.entries().unwrap_or_default();
                let print = |(key, value)| Ok::<_, String>(format!("{key}:{}", inside(value)?));
                let entries: Result<Vec<_>, _> = entries.iter().map(print).collect();
                format!("map[{}]", entries?.join(" "))
            }
            Self::Struct(structure) => {
                return Err(format!(
                    "printing a whole {} is not supported; name a field or use toJson",
                    structure.type_name
                ));
            }
        })
    }

    /// The JSON form.
    pub(super) fn to_json(&self) -> Json {
        match self {
            Self::Nil => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(value) => Json::from(*value),
            Self::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => {
                Json::from(*value as i64)
            }
            Self::Float(value) => Number::from_f64(*value).map_or(Json::Null, Json::Number),
            Self::Text(text) => Json::from(&**text),
            Self::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Self::Map(_) | Self::TextMap(_) => {
                let entries = self.entries().unwrap_or_default();
                let entries = entries.into_iter();
                Json::Object(
                    entries
                        .map(|(key, value)| (key, value.to_json()))
                        .collect::<JsonMap<_, _>>(),
                )
            }
            Self::Struct(structure) => structure.json.clone(),
        }
    }

    /// What `fromJson` gives: every number is a floating point number.
    pub(super) fn from_json(json: &Json) -> Self {
        match json {
            Json::Null => Self::Nil,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => Self::Float(number.as_f64().unwrap_or_default()),
            Json::String(text) => Self::from(text.as_str()),
            Json::Array(items) => items.iter().map(Self::from_json).collect::<Vec<_>>().into(),
            Json::Object(map) => {
                let entries = map.iter();
                entries
                    .map(|(key, value)| (key.clone(), Self::from_json(value)))
                    .collect()
            }
        }
    }

    /// Go's `reflect.DeepEqual`, as far as templates can see.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.kind() == other.kind() && self.to_json() == other.to_json()
    }
}

/// The shortest text that gives the number back; an exponent below 1e-4 and from 1e6 on.
pub(super) fn print_float(value: f64) -> String {
    if !value.is_finite() {
        return match value {
            v if v.is_nan() => "NaN".to_owned(),
            v if v > 0.0 => "+Inf".to_owned(),
            _ => "-Inf".to_owned(),
        };
    }
    let magnitude = value.abs();
    if value != 0.0 && !(1e-4..1e6).contains(&magnitude) {
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or_default();
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    value.to_string()
}
