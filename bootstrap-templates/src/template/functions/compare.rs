//! Truth, comparison and choice. `and` and `or` are evaluated by the caller, which may stop early.

use std::cmp::Ordering;

use super::super::value::Value;
use super::{ANY, Function, function, text};

pub(super) const TABLE: &[Function] = &[
    function("and", 1, ANY, |_, _| Err("not callable".to_owned())),
    function("or", 1, ANY, |_, _| Err("not callable".to_owned())),
    function("not", 1, 1, |_, a| Ok(Value::Bool(!a[0].is_true()))),
    function("eq", 2, ANY, |_, a| {
        for other in &a[1..] {
            if equal(&a[0], other)? {
                return Ok(Value::Bool(true));
            }
        }
        Ok(Value::Bool(false))
    }),
    function("ne", 2, 2, |_, a| Ok(Value::Bool(!equal(&a[0], &a[1])?))),
    function("lt", 2, 2, |_, a| {
        Ok(Value::Bool(order(&a[0], &a[1])?.is_lt()))
    }),
    function("le", 2, 2, |_, a| {
        Ok(Value::Bool(order(&a[0], &a[1])?.is_le()))
    }),
    function("gt", 2, 2, |_, a| {
        Ok(Value::Bool(order(&a[0], &a[1])?.is_gt()))
    }),
    function("ge", 2, 2, |_, a| {
        Ok(Value::Bool(order(&a[0], &a[1])?.is_ge()))
    }),
    function("default", 1, 2, |_, a| {
        Ok(a.get(1).filter(|v| v.is_true()).unwrap_or(&a[0]).clone())
    }),
    function("empty", 1, 1, |_, a| Ok(Value::Bool(!a[0].is_true()))),
    function("coalesce", 0, ANY, |_, a| {
        Ok(a.iter()
            .find(|v| v.is_true())
            .cloned()
            .unwrap_or(Value::Nil))
    }),
    function("all", 0, ANY, |_, a| {
        Ok(Value::Bool(a.iter().all(Value::is_true)))
    }),
    function("any", 0, ANY, |_, a| {
        Ok(Value::Bool(a.iter().any(Value::is_true)))
    }),
    function("ternary", 3, 3, |_, a| match &a[2] {
        Value::Bool(true) => Ok(a[0].clone()),
        Value::Bool(false) => Ok(a[1].clone()),
        other => Err(format!("expected bool, got {}", other.kind())),
    }),
    function("fail", 1, 1, |_, a| Err(text(&a[0])?.to_owned())),
    function("kindOf", 1, 1, |_, a| Ok(Value::from(a[0].kind()))),
    function("kindIs", 2, 2, |_, a| {
        Ok(Value::Bool(text(&a[0])? == a[1].kind()))
    }),
    function("deepEqual", 2, 2, |_, a| Ok(Value::Bool(a[0].same(&a[1])))),
];

/// Go's `eq`: values of different kinds cannot be compared, except with `nil`.
fn equal(left: &Value, right: &Value) -> Result<bool, String> {
    match (left, right) {
        (Value::Nil, Value::Nil) => Ok(true),
        (Value::Nil, _) | (_, Value::Nil) => Ok(false),
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::Int(a), Value::Int(b)) => Ok(a == b),
        (Value::Float(a), Value::Float(b)) => Ok(a == b),
        (Value::Text(a), Value::Text(b)) => Ok(a == b),
        (a, b) if a.kind() == b.kind() => Err(format!("non-comparable type {}", a.kind())),
        (a, b) => Err(incompatible(a, b)),
    }
}

fn order(left: &Value, right: &Value) -> Result<Ordering, String> {
    match (left, right) {
        (Value::Int(a), Value::Int(b)) => Ok(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => {
            a.partial_cmp(b).ok_or_else(|| "not a number".to_owned())
        }
        (Value::Text(a), Value::Text(b)) => Ok(a.cmp(b)),
        (a, b) => Err(incompatible(a, b)),
    }
}

fn incompatible(left: &Value, right: &Value) -> String {
    format!(
        "incompatible types for comparison: {} and {}",
        left.kind(),
        right.kind()
    )
}
