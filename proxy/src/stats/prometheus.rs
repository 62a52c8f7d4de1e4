//! Prometheus text page (proxy.md 9.6): counters, gauges, text readouts when asked for, histograms; grouped
//! by tag-extracted name, sorted by full name inside a group.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::histogram::{QUANTILES, Snapshot};
use super::page::{Kind, Query};
use super::tags::Extracted;
use super::{Sample, Stats, Value};

/// Stat name prefixes that stand for a metric namespace of their own: printed without `envoy_`.
const CUSTOM_NAMESPACES: [&str; 2] = ["istiocustom.", "wasmcustom."];

/// Renders the page.
#[must_use]
pub fn render(stats: &Stats, query: &Query) -> String {
    let samples = stats.samples();
    if samples.len() < stats.tags.cached() {
        let names: std::collections::HashSet<&str> = samples.iter().map(|s| &*s.name).collect();
        stats.tags.retain(|n| names.contains(n));
    }
    let mut out = String::new();
    for kind in [Kind::Counter, Kind::Gauge, Kind::Text, Kind::Histogram] {
        if kind == Kind::Text && !query.text_readouts {
            continue;
        }
        let mut groups: BTreeMap<Arc<str>, Vec<(&Sample, Extracted)>> = BTreeMap::new();
        for sample in samples
            .iter()
            .filter(|s| Kind::of(s) == kind && query.accepts(s))
        {
            let extracted = stats.tags.extract(&sample.name);
            groups
                .entry(Arc::clone(&extracted.name))
                .or_default()
                .push((sample, extracted));
        }
        for (name, members) in groups {
            group(&mut out, &metric_name(&name), kind, &members, query);
        }
    }
    out
}

fn group(
    out: &mut String,
    metric: &str,
    kind: Kind,
    members: &[(&Sample, Extracted)],
    query: &Query,
) {
    let kind_name = match kind {
        Kind::Counter => "counter",
        Kind::Gauge | Kind::Text => "gauge",
        Kind::Histogram if query.summary => "summary",
        Kind::Histogram => "histogram",
    };
    let _ = writeln!(out, "# TYPE {metric} {kind_name}");
    for (sample, extracted) in members {
        let labels = labels(extracted);
        match &sample.value {
            Value::Counter(v) => {
                let _ = writeln!(out, "{metric}{{{labels}}} {v}");
            }
            Value::Gauge(v) => {
                let _ = writeln!(out, "{metric}{{{labels}}} {}", *v as u64);
            }
            Value::Text(text) => {
                let comma = if labels.is_empty() { "" } else { "," };
                let _ = writeln!(
                    out,
                    "{metric}{{{labels}{comma}text_value=\"{}\"}} 0",
                    escape(text)
                );
            }
            Value::Histogram(h) => histogram(out, metric, &labels, h, query.summary),
        }
    }
}

fn histogram(out: &mut String, metric: &str, labels: &str, h: &Snapshot, summary: bool) {
    let comma = if labels.is_empty() { "" } else { "," };
    if summary {
        for q in QUANTILES {
            let value = h.quantile(q).map_or_else(|| "NaN".to_owned(), digits);
            let _ = writeln!(out, "{metric}{{{labels}{comma}quantile=\"{q}\"}} {value}");
        }
    } else {
        for bound in h.bounds() {
            let n = h.count_to(*bound);
            let _ = writeln!(out, "{metric}_bucket{{{labels}{comma}le=\"{bound}\"}} {n}");
        }
        let _ = writeln!(
            out,
            "{metric}_bucket{{{labels}{comma}le=\"+Inf\"}} {}",
            h.count()
        );
    }
    let _ = writeln!(out, "{metric}_sum{{{labels}}} {}", digits(h.sum()));
    let _ = writeln!(out, "{metric}_count{{{labels}}} {}", h.count());
}

/// Exact decimal digits of `value`, at most 32 significant ones.
fn digits(value: f64) -> String {
    let whole = if value < 1.0 {
        0
    } else {
        value.log10().floor() as usize + 1
    };
    let text = format!("{value:.*}", 32usize.saturating_sub(whole.max(1)));
    if text.contains('.') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}

/// Metric name of a tag-extracted stat name.
fn metric_name(name: &str) -> String {
    let custom = CUSTOM_NAMESPACES.iter().find_map(|n| name.strip_prefix(n));
    let mut out = String::with_capacity(name.len() + 6);
    if custom.is_none() {
        out.push_str("envoy_");
    }
    let body = custom.unwrap_or(name);
    if custom.is_some() && body.starts_with(|c: char| c.is_ascii_digit()) {
        out.push('_');
    }
    out.extend(body.chars().map(sanitize));
    out
}

const fn sanitize(c: char) -> char {
    if c.is_ascii_alphanumeric() || c == '_' {
        c
    } else {
        '_'
    }
}

fn labels(extracted: &Extracted) -> String {
    let mut out = String::new();
    for (name, value) in extracted.labels.iter() {
        if !out.is_empty() {
            out.push(',');
        }
        out.extend(name.chars().map(sanitize));
        let _ = write!(out, "=\"{}\"", escape(value));
    }
    out
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
