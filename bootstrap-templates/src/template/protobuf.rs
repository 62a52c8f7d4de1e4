//! A protobuf message as Go's generated structure: exported field names, nil for what is unset,
//! and one field for each `oneof`.

use serde_json::{Map, Value as Json};

use super::value::Value;
use crate::duration::parse_proto_duration;
use crate::schema::{Field, Kind, Message, json_name};

/// The structure for `object`, which is in canonical protobuf JSON.
pub(crate) fn structure(
    type_name: &'static str,
    message: &Message,
    object: &Map<String, Json>,
) -> Value {
    let mut fields: Vec<(String, Value)> = Vec::new();
    for field in message.fields {
        let json = object.get(&json_name(field.name));
        let name = go_name(field.name);
        let Some(group) = field.oneof else {
            fields.push((name, value(&field.kind, json)));
            continue;
        };
        let group = go_name(group);
        match json {
            Some(_) => {
                let member = value(&field.kind, json);
                fields.push((format!("Get{name}"), member.clone()));
                fields.push((
                    group,
                    Value::structure(MESSAGE, [(name, member)], Json::Null),
                ));
            }
            None => {
                fields.push((format!("Get{name}"), unset(field)));
                if !fields.iter().any(|(known, _)| *known == group) {
                    fields.push((group, Value::Nil));
                }
            }
        }
    }
    Value::structure(type_name, fields, Json::Object(object.clone()))
}

const MESSAGE: &str = "message of ProxyConfig";

fn unset(field: &Field) -> Value {
    value(&field.kind, None)
}

fn value(kind: &Kind, json: Option<&Json>) -> Value {
    let integer = |json: &Json| match json {
        Json::String(text) => text.parse().unwrap_or(0),
        other => other.as_i64().unwrap_or(0),
    };
    let wrapped = |value: Value, json: &Json| {
        Value::structure(MESSAGE, [("Value".to_owned(), value)], json.clone())
    };
    match kind {
        Kind::String => Value::from(json.and_then(Json::as_str).unwrap_or_default()),
        Kind::Bool => Value::Bool(json.and_then(Json::as_bool).unwrap_or(false)),
        Kind::Int32 | Kind::UInt32 => Value::Int(json.map_or(0, integer)),
        Kind::Double => Value::Float(json.and_then(Json::as_f64).unwrap_or(0.0)),
        Kind::Enum(names) => {
            let zero = names.iter().find(|(_, number)| *number == 0);
            let name = json.and_then(Json::as_str).or(zero.map(|(name, _)| *name));
            Value::from(name.unwrap_or_default())
        }
        Kind::BoolValue => json.map_or(Value::Nil, |json| {
            wrapped(Value::Bool(json.as_bool().unwrap_or(false)), json)
        }),
        Kind::Int32Value | Kind::Int64Value => {
            json.map_or(Value::Nil, |json| wrapped(Value::Int(integer(json)), json))
        }
        Kind::Duration => json.map_or(Value::Nil, duration),
        Kind::Message(message) => json
            .and_then(Json::as_object)
            .map_or(Value::Nil, |object| structure(MESSAGE, message, object)),
        Kind::Repeated(kind) => {
            let items = json.and_then(Json::as_array).into_iter().flatten();
            items
                .map(|item| value(kind, Some(item)))
                .collect::<Vec<_>>()
                .into()
        }
        Kind::MapOf(kind) => {
            let members = json.and_then(Json::as_object).into_iter().flatten();
            if matches!(kind, Kind::String) {
                let texts =
                    members.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()));
                let texts: Vec<(String, String)> = texts.collect();
                return Value::texts(texts.iter().map(|(k, v)| (k, v)));
            }
            members
                .map(|(k, v)| (k.clone(), value(kind, Some(v))))
                .collect()
        }
    }
}

fn duration(json: &Json) -> Value {
    let parsed = parse_proto_duration(json.as_str().unwrap_or_default()).unwrap_or_default();
    let seconds = i64::try_from(parsed.as_secs()).unwrap_or(i64::MAX);
    let fields = [
        ("Seconds".to_owned(), Value::Int(seconds)),
        (
            "Nanos".to_owned(),
            Value::Int(i64::from(parsed.subsec_nanos())),
        ),
    ];
    Value::structure(MESSAGE, fields, json.clone())
}

/// protobuf's name of a field in Go: `proxy_admin_port` is `ProxyAdminPort`, `k8s_x` is `K8SX`.
fn go_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = true;
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if c.is_ascii_digit() => {
                out.push(c);
                upper = true;
            }
            c if upper => {
                out.push(c.to_ascii_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    out
}
