//! Lists and maps: Go's `len` and `index`, and Sprig's.

use std::collections::BTreeMap;

use super::super::value::{Entries, Value};
use super::{ANY, Context, Function, any_text, function, items, text};

pub(super) const TABLE: &[Function] = &[
    function("len", 1, 1, |_, a| {
        Ok(Value::Int(i64::try_from(a[0].len()?).unwrap_or(i64::MAX)))
    }),
    function("index", 1, ANY, |_, a| {
        a[1..]
            .iter()
            .try_fold(a[0].clone(), |value, key| index(&value, key))
    }),
    function("slice", 1, 3, slice),
    function("list", 0, ANY, |_, a| Ok(Value::from(a.to_vec()))),
    function("tuple", 0, ANY, |_, a| Ok(Value::from(a.to_vec()))),
    function("first", 1, 1, |_, a| {
        Ok(items(&a[0])?.first().cloned().unwrap_or(Value::Nil))
    }),
    function("last", 1, 1, |_, a| {
        Ok(items(&a[0])?.last().cloned().unwrap_or(Value::Nil))
    }),
    function("rest", 1, 1, |_, a| {
        Ok(items(&a[0])?.get(1..).unwrap_or_default().to_vec().into())
    }),
    function("initial", 1, 1, |_, a| {
        let items = items(&a[0])?;
        Ok(items[..items.len().saturating_sub(1)].to_vec().into())
    }),
    function("append", 2, 2, append),
    function("push", 2, 2, append),
    function("prepend", 2, 2, |_, a| {
        Ok([std::slice::from_ref(&a[1]), items(&a[0])?].concat().into())
    }),
    function("concat", 0, ANY, |_, a| {
        let lists: Result<Vec<&[Value]>, _> = a.iter().map(items).collect();
        Ok(lists?.concat().into())
    }),
    function("reverse", 1, 1, |_, a| {
        Ok(items(&a[0])?
            .iter()
            .rev()
            .cloned()
            .collect::<Vec<_>>()
            .into())
    }),
    function("uniq", 1, 1, |_, a| {
        let mut out: Vec<Value> = Vec::new();
        for item in items(&a[0])? {
            if !out.iter().any(|known| known.same(item)) {
                out.push(item.clone());
            }
        }
        Ok(out.into())
    }),
    function("compact", 1, 1, |_, a| kept(&a[0], Value::is_true)),
    function("without", 1, ANY, |_, a| {
        kept(&a[0], |item| !a[1..].iter().any(|other| other.same(item)))
    }),
    function("has", 2, 2, |_, a| {
        Ok(items(&a[1])?.iter().any(|item| item.same(&a[0])).into())
    }),
    function("join", 2, 2, |_, a| {
        let texts: Result<Vec<_>, _> = listed(&a[1]).iter().map(any_text).collect();
        Ok(texts?.join(text(&a[0])?).into())
    }),
    function("toStrings", 1, 1, |_, a| {
        let texts: Result<Vec<_>, _> = listed(&a[0]).iter().map(any_text).collect();
        Ok(texts?.into_iter().collect())
    }),
    function("sortAlpha", 1, 1, |_, a| {
        let texts: Result<Vec<_>, _> = listed(&a[0]).iter().map(any_text).collect();
        let mut texts = texts?;
        texts.sort();
        Ok(texts.into_iter().collect())
    }),
    function("splitList", 2, 2, |_, a| {
        Ok(split(text(&a[0])?, text(&a[1])?).collect())
    }),
    function("split", 2, 2, |_, a| {
        let parts = split(text(&a[0])?, text(&a[1])?).enumerate();
        Ok(parts
            .map(|(i, part)| (format!("_{i}"), Value::from(part)))
            .collect())
    }),
    function("dict", 0, ANY, |_, a| {
        let mut out = BTreeMap::new();
        for pair in a.chunks(2) {
            out.insert(
                any_text(&pair[0])?,
                pair.get(1).cloned().unwrap_or_else(|| "".into()),
            );
        }
        Ok(out.into_iter().collect())
    }),
    function("get", 2, 2, |_, a| {
        let found = members(&a[0])?.remove(text(&a[1])?);
        Ok(found.unwrap_or_else(|| "".into()))
    }),
    function("hasKey", 2, 2, |_, a| {
        Ok(members(&a[0])?.contains_key(text(&a[1])?).into())
    }),
    function("set", 3, 3, |_, a| {
        let key = text(&a[1])?.to_owned();
        changeable(&a[0])?.borrow_mut().insert(key, a[2].clone());
        Ok(a[0].clone())
    }),
    function("unset", 2, 2, |_, a| {
        changeable(&a[0])?.borrow_mut().remove(text(&a[1])?);
        Ok(a[0].clone())
    }),
    function("keys", 1, ANY, |_, a| {
        let maps: Result<Vec<_>, _> = a.iter().map(members).collect();
        Ok(maps?.into_iter().flat_map(BTreeMap::into_keys).collect())
    }),
    function("values", 1, 1, |_, a| {
        Ok(members(&a[0])?.into_values().collect::<Vec<_>>().into())
    }),
    function("pick", 1, ANY, |_, a| selected(a, true)),
    function("omit", 1, ANY, |_, a| selected(a, false)),
    function("pluck", 1, ANY, |_, a| {
        let name = text(&a[0])?;
        let mut out = Vec::new();
        for map in &a[1..] {
            out.extend(members(map)?.remove(name));
        }
        Ok(out.into())
    }),
    function("dig", 3, ANY, |_, a| {
        let (path, ends) = a.split_at(a.len() - 2);
        let mut value = ends[1].clone();
        for key in path {
            match members(&value)?.remove(text(key)?) {
                Some(found) => value = found,
                None => return Ok(ends[0].clone()),
            }
        }
        Ok(value)
    }),
    function("merge", 1, ANY, |_, a| merged(a, false)),
    function("mustMerge", 1, ANY, |_, a| merged(a, false)),
    function("mergeOverwrite", 1, ANY, |_, a| merged(a, true)),
    function("mustMergeOverwrite", 1, ANY, |_, a| merged(a, true)),
    function("deepCopy", 1, 1, |_, a| Ok(copied(&a[0]))),
    function("mustDeepCopy", 1, 1, |_, a| Ok(copied(&a[0]))),
];

fn index(value: &Value, key: &Value) -> Result<Value, String> {
    match value {
        Value::Nil => Err("index of untyped nil".to_owned()),
        Value::TextMap(entries) => Ok(entries
            .get(text(key)?)
            .cloned()
            .unwrap_or_else(|| "".into())),
        Value::Map(entries) => Ok(entries
            .borrow()
            .get(text(key)?)
            .cloned()
            .unwrap_or(Value::Nil)),
        Value::List(items) => position(key, items.len(), false).map(|at| items[at].clone()),
        Value::Text(text) => {
            position(key, text.len(), false).map(|at| Value::Int(i64::from(text.as_bytes()[at])))
        }
        other => Err(format!("can't index item of type {}", other.kind())),
    }
}

/// A position inside of `length` items; one past the end if `inclusive`.
fn position(key: &Value, length: usize, inclusive: bool) -> Result<usize, String> {
    let Value::Int(number) = key else {
        return Err(format!("cannot index with type {}", key.kind()));
    };
    let found = usize::try_from(*number).ok();
    found
        .filter(|at| *at < length || (inclusive && *at == length))
        .ok_or_else(|| format!("index out of range: {number}"))
}

/// Sprig's `slice list i j`, which hides the one of Go: lists only.
fn slice(_: &Context<'_>, a: &[Value]) -> Result<Value, String> {
    let items = items(&a[0])?;
    let bound = |at: usize, default| {
        a.get(at)
            .map_or(Ok(default), |k| position(k, items.len(), true))
    };
    let (start, end) = (bound(1, 0)?, bound(2, items.len())?);
    if start > end {
        return Err(format!("invalid slice index: {start} > {end}"));
    }
    Ok(items[start..end].to_vec().into())
}

fn append(_: &Context<'_>, a: &[Value]) -> Result<Value, String> {
    Ok([items(&a[0])?, std::slice::from_ref(&a[1])].concat().into())
}

fn kept(list: &Value, keep: impl Fn(&Value) -> bool) -> Result<Value, String> {
    let kept = items(list)?.iter().filter(|item| keep(item));
    Ok(kept.cloned().collect::<Vec<_>>().into())
}

/// A list, or a single value as a list of one, as `join` takes both; nothing is left out.
fn listed(value: &Value) -> Vec<Value> {
    match value {
        Value::List(items) => items
            .iter()
            .filter(|v| !matches!(v, Value::Nil))
            .cloned()
            .collect(),
        Value::Nil => Vec::new(),
        other => vec![other.clone()],
    }
}

/// Go's `strings.Split`: an empty separator cuts into characters.
fn split<'a>(separator: &'a str, text: &'a str) -> Box<dyn Iterator<Item = String> + 'a> {
    if separator.is_empty() {
        return Box::new(text.chars().map(String::from));
    }
    Box::new(text.split(separator).map(str::to_owned))
}

fn members(value: &Value) -> Result<BTreeMap<String, Value>, String> {
    value
        .entries()
        .ok_or_else(|| format!("expected a map, got {}", value.kind()))
}

fn changeable(value: &Value) -> Result<&Entries, String> {
    match value {
        Value::Map(entries) => Ok(entries),
        other => Err(format!("expected a dict, got {}", other.kind())),
    }
}

fn selected(a: &[Value], wanted: bool) -> Result<Value, String> {
    let names: Result<Vec<&str>, _> = a[1..].iter().map(text).collect();
    let names = names?;
    let entries = members(&a[0])?.into_iter();
    Ok(entries
        .filter(|(key, _)| names.contains(&key.as_str()) == wanted)
        .collect())
}

/// Changes the first map. Without `overwrite` what it has stays; maps inside of maps merge too.
fn merged(a: &[Value], overwrite: bool) -> Result<Value, String> {
    for source in &a[1..] {
        merge_into(changeable(&a[0])?, &members(source)?, overwrite);
    }
    Ok(a[0].clone())
}

fn merge_into(target: &Entries, source: &BTreeMap<String, Value>, overwrite: bool) {
    for (key, value) in source {
        let old = target.borrow().get(key).cloned();
        match (old, value.entries()) {
            (Some(Value::Map(old)), Some(new)) => merge_into(&old, &new, overwrite),
            (Some(old), _) if old.is_true() && !overwrite => {}
            _ => {
                target.borrow_mut().insert(key.clone(), copied(value));
            }
        }
    }
}

fn copied(value: &Value) -> Value {
    match value {
        Value::Map(entries) => {
            let entries = entries.borrow();
            entries
                .iter()
                .map(|(key, item)| (key.clone(), copied(item)))
                .collect()
        }
        Value::List(items) => items.iter().map(copied).collect::<Vec<_>>().into(),
        other => other.clone(),
    }
}
