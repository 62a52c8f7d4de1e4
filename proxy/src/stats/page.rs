//! `/stats` as text and JSON (proxy.md 9.1).

use std::fmt::Write as _;

use regex::Regex;

use super::histogram::{QUANTILES, Snapshot};
use super::{Sample, Stats, Value};

/// Kind of a stat, for `type=` and grouping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Counter.
    Counter,
    /// Gauge.
    Gauge,
    /// Text readout.
    Text,
    /// Histogram.
    Histogram,
}

impl Kind {
    /// Kind of a sample.
    #[must_use]
    pub const fn of(sample: &Sample) -> Self {
        match sample.value {
            Value::Counter(_) => Self::Counter,
            Value::Gauge(_) => Self::Gauge,
            Value::Text(_) => Self::Text,
            Value::Histogram(_) => Self::Histogram,
        }
    }
}

/// How histograms are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Buckets {
    /// Quantiles.
    #[default]
    Quantiles,
    /// Counts up to each bound.
    Cumulative,
    /// Counts between bounds.
    Disjoint,
}

/// What a stats page shows.
#[derive(Debug, Default)]
pub struct Query {
    /// Only stats that were written.
    pub used_only: bool,
    /// Partial match on the full name.
    pub filter: Option<Regex>,
    /// Keep what does not match `filter`.
    pub invert: bool,
    /// Only this kind.
    pub kind: Option<Kind>,
    /// Prometheus: print text readouts as gauges.
    pub text_readouts: bool,
    /// Prometheus: print histograms as summaries.
    pub summary: bool,
    /// Form of histograms on the text page.
    pub buckets: Buckets,
    /// JSON instead of text.
    pub json: bool,
}

impl Query {
    /// Reads the query parameters of a stats page.
    ///
    /// # Errors
    /// The text of the 400 answer.
    pub fn parse(parameters: &[(String, String)]) -> Result<Self, String> {
        let mut query = Self::default();
        for (key, value) in parameters {
            match key.as_str() {
                "usedonly" => query.used_only = true,
                "invert_filter" => query.invert = true,
                "text_readouts" => query.text_readouts = true,
                "filter" => {
                    let regex = Regex::new(value).map_err(|e| format!("Invalid re2 regex: {e}"))?;
                    query.filter = Some(regex);
                }
                "format" => query.json = format(value)?,
                "type" => query.kind = kind(value)?,
                "histogram_buckets" => match value.as_str() {
                    "" | "none" | "detailed" => {}
                    "cumulative" => query.buckets = Buckets::Cumulative,
                    "disjoint" => query.buckets = Buckets::Disjoint,
                    "summary" => query.summary = true,
                    _ => {
                        return Err(
                            "usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary)\n\n"
                                .to_owned(),
                        );
                    }
                },
                _ => {}
            }
        }
        Ok(query)
    }

    /// Whether the page shows a stat.
    #[must_use]
    pub fn accepts(&self, sample: &Sample) -> bool {
        (sample.used || !self.used_only)
            && self.kind.is_none_or(|k| k == Kind::of(sample))
            && self
                .filter
                .as_ref()
                .is_none_or(|f| f.is_match(&sample.name) != self.invert)
    }
}

fn format(value: &str) -> Result<bool, String> {
    match value {
        "json" => Ok(true),
        "text" | "html" | "prometheus" => Ok(false),
        _ => Err("usage: /stats?format=(html|json|prometheus|text)\n\n".to_owned()),
    }
}

fn kind(value: &str) -> Result<Option<Kind>, String> {
    Ok(Some(match value {
        "All" | "" => return Ok(None),
        "Counters" => Kind::Counter,
        "Gauges" => Kind::Gauge,
        "Histograms" => Kind::Histogram,
        "TextReadouts" => Kind::Text,
        _ => {
            return Err(
                "usage: /stats?type=(All|Counters|Gauges|Histograms|TextReadouts)\n\n".to_owned(),
            );
        }
    }))
}

/// Text readouts first, then counters and gauges merged, then histograms; each by name.
fn ordered(stats: &Stats, query: &Query) -> Vec<Sample> {
    let mut samples: Vec<_> = stats
        .samples()
        .into_iter()
        .filter(|s| query.accepts(s))
        .collect();
    samples.sort_by_key(|s| match Kind::of(s) {
        Kind::Text => 0,
        Kind::Counter | Kind::Gauge => 1,
        Kind::Histogram => 2,
    });
    samples
}

/// The text page.
#[must_use]
pub fn text(stats: &Stats, query: &Query) -> String {
    let mut out = String::new();
    for sample in ordered(stats, query) {
        let name = &sample.name;
        let _ = match &sample.value {
            Value::Counter(v) => writeln!(out, "{name}: {v}"),
            Value::Gauge(v) => writeln!(out, "{name}: {}", *v as u64),
            Value::Text(t) => writeln!(out, "{name}: \"{}\"", t.replace('"', "\\\"")),
            Value::Histogram(h) => writeln!(out, "{name}: {}", histogram_text(h, query.buckets)),
        };
    }
    out
}

fn histogram_text(h: &Snapshot, buckets: Buckets) -> String {
    if h.count() == 0 {
        return "No recorded values".to_owned();
    }
    let mut parts = Vec::new();
    let mut below = 0;
    for bound in h.bounds() {
        let n = h.count_to(*bound);
        match buckets {
            Buckets::Quantiles => break,
            Buckets::Cumulative => parts.push(format!("B{bound}(0,{n})")),
            Buckets::Disjoint => parts.push(format!("B{bound}(0,{})", n - below)),
        }
        below = n;
    }
    if buckets == Buckets::Quantiles {
        for q in QUANTILES {
            if let Some(v) = h.quantile(q) {
                parts.push(format!("P{}(nan,{v})", percent(q)));
            }
        }
    }
    parts.join(" ")
}

/// 0.995 as `99.5`.
fn percent(q: f64) -> f64 {
    (q * 1000.0).round() / 10.0
}

/// The JSON page.
#[must_use]
pub fn json(stats: &Stats, query: &Query) -> String {
    let quote = |s: &str| serde_json::Value::from(s).to_string();
    let (mut plain, mut histograms) = (Vec::new(), Vec::new());
    for sample in ordered(stats, query) {
        let name = quote(&sample.name);
        match &sample.value {
            Value::Counter(v) => plain.push(format!("{{\"name\":{name},\"value\":{v}}}")),
            Value::Gauge(v) => plain.push(format!("{{\"name\":{name},\"value\":{}}}", *v as u64)),
            Value::Text(t) => plain.push(format!("{{\"name\":{name},\"value\":{}}}", quote(t))),
            Value::Histogram(h) => {
                let values: Vec<_> = QUANTILES
                    .iter()
                    .map(|q| {
                        let v = h
                            .quantile(*q)
                            .map_or_else(|| "null".to_owned(), |v| v.to_string());
                        format!("{{\"cumulative\":{v},\"interval\":null}}")
                    })
                    .collect();
                histograms.push(format!(
                    "{{\"name\":{name},\"values\":[{}]}}",
                    values.join(",")
                ));
            }
        }
    }
    if !histograms.is_empty() {
        let quantiles: Vec<_> = QUANTILES.iter().map(|q| percent(*q).to_string()).collect();
        plain.push(format!(
            "{{\"histograms\":{{\"supported_quantiles\":[{}],\"computed_quantiles\":[{}]}}}}",
            quantiles.join(","),
            histograms.join(",")
        ));
    }
    format!("{{\"stats\":[{}]}}", plain.join(","))
}
