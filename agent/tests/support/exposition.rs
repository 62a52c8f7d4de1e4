//! A strict reader of Prometheus' text format 0.0.4: what a lenient scraper lets pass is an error
//! here.

use std::collections::{BTreeMap, BTreeSet};

/// Samples by name and labels as written; the first violation as error.
pub(crate) fn parse(page: &str) -> Result<BTreeMap<String, f64>, String> {
    let mut out = BTreeMap::new();
    let mut families: BTreeMap<String, String> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut closed = BTreeSet::new();
    let mut current = String::new();
    if !page.is_empty() && !page.ends_with('\n') {
        return Err("the page does not end with a newline".to_owned());
    }
    for line in page.lines() {
        let fail = |what: &str| Err(format!("{what}: {line}"));
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (kind, name) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let rest = words.next().unwrap_or("");
            if !is_name(name) {
                return fail("bad name");
            }
            if name != current {
                if !closed.insert(name.to_owned()) {
                    return fail("the family is not in one group");
                }
                current = name.to_owned();
            }
            match kind {
                "HELP" if rest.is_empty() => return fail("empty help"),
                "HELP" if !helped.insert(name.to_owned()) => return fail("second HELP"),
                "HELP" if families.contains_key(name) => return fail("HELP after TYPE"),
                "HELP" => {}
                "TYPE" if !["counter", "gauge", "histogram"].contains(&rest) => {
                    return fail("bad type");
                }
                "TYPE" => {
                    if families.insert(name.to_owned(), rest.to_owned()).is_some() {
                        return fail("second TYPE");
                    }
                }
                _ => return fail("neither HELP nor TYPE"),
            }
            continue;
        }
        let Some((series, value)) = line.rsplit_once(' ') else {
            return fail("no value");
        };
        let Ok(value) = value.parse::<f64>() else {
            return fail("bad value");
        };
        let name = series.split('{').next().unwrap_or_default();
        if !is_name(name) || !labels_are_good(&series[name.len()..]) {
            return fail("bad series");
        }
        let kind = families.get(&current).map(String::as_str).unwrap_or("");
        let belongs = match kind {
            "histogram" => ["_bucket", "_sum", "_count"]
                .iter()
                .any(|end| name.strip_suffix(end) == Some(&current)),
            "" => return fail("no TYPE"),
            _ => name == current,
        };
        if !belongs {
            return fail("another family's sample");
        }
        if kind == "counter" && (value.is_nan() || value < 0.0) {
            return fail("a counter under zero");
        }
        if out.insert(series.to_owned(), value).is_some() {
            return fail("the series is there twice");
        }
    }
    for (name, kind) in &families {
        if kind == "histogram" {
            histogram(name, &out)?;
        }
    }
    Ok(out)
}

fn histogram(name: &str, samples: &BTreeMap<String, f64>) -> Result<(), String> {
    let prefix = format!("{name}_bucket{{le=\"");
    let mut buckets: Vec<(f64, f64)> = samples
        .iter()
        .filter_map(|(series, value)| {
            let bound = series.strip_prefix(&prefix)?.strip_suffix("\"}")?;
            Some((bound.replace("+Inf", "inf").parse().ok()?, *value))
        })
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let cumulative = buckets.windows(2).all(|w| w[0].1 <= w[1].1);
    let last = buckets.last().copied();
    let count = samples.get(&format!("{name}_count")).copied();
    let whole = last.is_some_and(|(bound, n)| bound.is_infinite() && Some(n) == count);
    if cumulative && whole && samples.contains_key(&format!("{name}_sum")) {
        return Ok(());
    }
    Err(format!("{name} is no histogram: {buckets:?} of {count:?}"))
}

fn is_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    first
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
}

/// Nothing, or `{name="escaped",…}`.
fn labels_are_good(text: &str) -> bool {
    if text.is_empty() {
        return true;
    }
    let Some(mut rest) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) else {
        return false;
    };
    loop {
        let Some((name, value)) = rest.split_once("=\"") else {
            return false;
        };
        let mut escaped = false;
        let end = value.char_indices().find(|(_, c)| {
            let is_end = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            is_end
        });
        let Some((end, _)) = end else {
            return false;
        };
        if !is_name(name) || name.contains(':') {
            return false;
        }
        rest = &value[end + 1..];
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => return rest.is_empty(),
        }
    }
}
