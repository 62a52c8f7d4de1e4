//! Whole-number arithmetic as Sprig has it. Overflow and division by zero are errors.

use super::super::value::Value;
use super::{ANY, Function, function, whole};

/// Longest list that `until` and `seq` make.
const MAX_ITEMS: i64 = 10_000;

pub(super) const TABLE: &[Function] = &[
    function("int", 1, 1, |_, a| Ok(Value::Int(whole(&a[0])))),
    function("int64", 1, 1, |_, a| Ok(Value::Int(whole(&a[0])))),
    function("atoi", 1, 1, |_, a| {
        Ok(Value::Int(super::text(&a[0])?.parse().unwrap_or(0)))
    }),
    function("float64", 1, 1, |_, a| Ok(Value::Float(float(&a[0])))),
    function("add", 0, ANY, |_, a| fold(a, 0, i64::checked_add)),
    function("add1", 1, 1, |_, a| fold(a, 1, i64::checked_add)),
    function("mul", 1, ANY, |_, a| fold(a, 1, i64::checked_mul)),
    function("sub", 2, 2, |_, a| pair(a, i64::checked_sub)),
    function("div", 2, 2, |_, a| pair(a, i64::checked_div)),
    function("mod", 2, 2, |_, a| pair(a, i64::checked_rem)),
    function("max", 1, ANY, |_, a| most(a, Iterator::max)),
    function("biggest", 1, ANY, |_, a| most(a, Iterator::max)),
    function("min", 1, ANY, |_, a| most(a, Iterator::min)),
    function("ceil", 1, 1, |_, a| Ok(Value::Float(float(&a[0]).ceil()))),
    function("floor", 1, 1, |_, a| Ok(Value::Float(float(&a[0]).floor()))),
    function("round", 2, 2, |_, a| {
        let scale = 10_f64.powi(i32::try_from(whole(&a[1])).unwrap_or(0).clamp(0, 15));
        Ok(Value::Float((float(&a[0]) * scale).round() / scale))
    }),
    function("until", 1, 1, |_, a| {
        let end = whole(&a[0]);
        steps(0, end, if end < 0 { -1 } else { 1 })
    }),
    function("untilStep", 3, 3, |_, a| {
        steps(whole(&a[0]), whole(&a[1]), whole(&a[2]))
    }),
];

fn float(value: &Value) -> f64 {
    match value {
        Value::Float(value) => *value,
        Value::Text(text) => text.parse().unwrap_or(0.0),
        other => whole(other) as f64,
    }
}

fn overflow() -> String {
    "overflow or division by zero".to_owned()
}

fn fold(a: &[Value], start: i64, op: fn(i64, i64) -> Option<i64>) -> Result<Value, String> {
    let sum = a.iter().try_fold(start, |sum, value| op(sum, whole(value)));
    sum.map(Value::Int).ok_or_else(overflow)
}

fn pair(a: &[Value], op: fn(i64, i64) -> Option<i64>) -> Result<Value, String> {
    op(whole(&a[0]), whole(&a[1]))
        .map(Value::Int)
        .ok_or_else(overflow)
}

fn most(a: &[Value], pick: fn(std::vec::IntoIter<i64>) -> Option<i64>) -> Result<Value, String> {
    let numbers: Vec<i64> = a.iter().map(whole).collect();
    Ok(Value::Int(pick(numbers.into_iter()).unwrap_or(0)))
}

fn steps(start: i64, end: i64, step: i64) -> Result<Value, String> {
    let mut out = Vec::new();
    let mut at = start;
    while step != 0 && ((step > 0 && at < end) || (step < 0 && at > end)) {
        if i64::try_from(out.len()).is_ok_and(|n| n >= MAX_ITEMS) {
            return Err(format!("more than {MAX_ITEMS} items"));
        }
        out.push(Value::Int(at));
        at = at.checked_add(step).ok_or_else(overflow)?;
    }
    Ok(Value::from(out))
}
