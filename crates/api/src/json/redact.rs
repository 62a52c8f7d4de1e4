//! What stands for sensitive values, and sensitive fields inside a `TypedStruct`, which carries JSON. Never shows
//! a value it does not understand below a sensitive field.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::decode::zero;
use crate::table::{Field, Kind, Message};
use crate::type_url::message_name;

const REDACTED: &str = "[redacted]";

/// What is printed instead of a sensitive scalar.
pub(super) fn scalar(kind: Kind) -> Value {
    match kind {
        Kind::String => Value::from(REDACTED),
        Kind::Bytes => Value::from(STANDARD.encode(REDACTED)),
        kind => zero(kind),
    }
}

/// Both types that wrap JSON of another type.
pub(super) fn is_typed_struct(name: &str) -> bool {
    matches!(name, "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct")
}

/// Redacts the content of a printed `TypedStruct` by the type it names; a type that is not known has no sensitive
/// fields. `hidden`: everything is sensitive.
pub(super) fn typed_struct(object: &mut Map<String, Value>, hidden: bool) {
    if hidden {
        // The struct itself was printed redacted.
        return;
    }
    let url = object
        .get("type_url")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let message = Message::by_name(message_name(url));
    if let (Some(message), Some(Value::Object(content))) = (message, object.get_mut("value")) {
        fields(message, content);
    }
}

/// The nesting of a printed struct is bounded, and with it this recursion.
fn fields(message: Message, object: &mut Map<String, Value>) {
    for (key, value) in object.iter_mut() {
        let Some(field) = message.field_by_name(key) else {
            continue;
        };
        if field.sensitive {
            hide(value, field.kind == Kind::Bytes);
        } else {
            items(&field, value);
        }
    }
    if is_typed_struct(message.name()) {
        typed_struct(object, false);
    }
}

fn items(field: &Field, value: &mut Value) {
    if let Some((_, entry)) = field.map() {
        if let Value::Object(object) = value {
            object.values_mut().for_each(|value| content(&entry, value));
        }
        return;
    }
    match value {
        Value::Array(list) if field.repeated => list.iter_mut().for_each(|v| content(field, v)),
        value => content(field, value),
    }
}

fn content(field: &Field, value: &mut Value) {
    let Value::Object(object) = value else { return };
    let url = object
        .get("@type")
        .and_then(Value::as_str)
        .map(|url| message_name(url).to_owned());
    let message = match url {
        Some(name) => Message::by_name(&name),
        None => field.message(),
    };
    if let Some(message) = message {
        fields(message, object);
    }
}

/// Everything below a sensitive field. JSON does not tell bytes from text: only the field itself does.
fn hide(value: &mut Value, bytes: bool) {
    match value {
        Value::Null => {}
        Value::Bool(b) => *b = false,
        Value::Number(n) => *n = 0.into(),
        Value::String(_) if bytes => *value = scalar(Kind::Bytes),
        Value::String(_) => *value = scalar(Kind::String),
        Value::Array(list) => list.iter_mut().for_each(|v| hide(v, bytes)),
        Value::Object(object) => object.values_mut().for_each(|v| hide(v, bytes)),
    }
}
