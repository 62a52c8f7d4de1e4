//! JSON both ways. Go's printer escapes `<`, `>` and `&`; the raw one does not.

use super::super::value::Value;
use super::{Context, Function, function, text};

pub(super) const TABLE: &[Function] = &[
    function("toJSON", 1, 1, |_, a| match &a[0] {
        Value::Nil => Ok(Value::from("{}")),
        value => Ok(Value::from(escaped(value.to_json().to_string()))),
    }),
    function("toJson", 1, 1, to_json),
    function("mustToJson", 1, 1, to_json),
    function("toRawJson", 1, 1, to_raw_json),
    function("mustToRawJson", 1, 1, to_raw_json),
    function("toPrettyJson", 1, 1, to_pretty_json),
    function("mustToPrettyJson", 1, 1, to_pretty_json),
    function("fromJson", 1, 1, from_json),
    function("mustFromJson", 1, 1, from_json),
];

fn to_json(_: &Context<'_>, arguments: &[Value]) -> Result<Value, String> {
    Ok(Value::from(escaped(arguments[0].to_json().to_string())))
}

fn to_raw_json(_: &Context<'_>, arguments: &[Value]) -> Result<Value, String> {
    Ok(Value::from(arguments[0].to_json().to_string()))
}

fn to_pretty_json(_: &Context<'_>, arguments: &[Value]) -> Result<Value, String> {
    let text = serde_json::to_string_pretty(&arguments[0].to_json());
    text.map(|t| Value::from(escaped(t)))
        .map_err(|e| e.to_string())
}

/// Text that is no JSON is an error; Sprig's `fromJson` would go on with nothing.
fn from_json(_: &Context<'_>, arguments: &[Value]) -> Result<Value, String> {
    let parsed = serde_json::from_str(text(&arguments[0])?);
    parsed
        .map(|json| Value::from_json(&json))
        .map_err(|e| e.to_string())
}

/// The three characters stand only inside of strings.
fn escaped(json: String) -> String {
    json.replace('&', "\\u0026")
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
}
