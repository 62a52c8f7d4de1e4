//! The agent's own metrics, in Prometheus text with the reference's names. The names are fixed and
//! partly without `_total`, which the OpenMetrics encoder of prometheus-client would add; hence
//! the few lines of text here. A series appears with its first use, as in the reference.

use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

mod histogram;
mod process;
mod runtime;

pub use histogram::Histogram;

/// Which part of a merged scrape failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScrapePart {
    /// The proxy.
    Envoy,
    /// The application.
    Application,
    /// The agent itself.
    Agent,
}

const PARTS: [(&str, ScrapePart); 3] = [
    ("envoy", ScrapePart::Envoy),
    ("application", ScrapePart::Application),
    ("agent", ScrapePart::Agent),
];

type Source = Box<dyn Fn(&mut Page) + Send + Sync>;

/// Counters of the status server, and the sources of the other modules.
pub struct Metrics {
    start: Instant,
    startup_seconds: OnceLock<f64>,
    scrapes: AtomicU64,
    failures: [AtomicU64; 3],
    /// 0: never scraped, 1: the last attempt failed, 2: it succeeded.
    up: [AtomicU8; 3],
    sources: Mutex<Vec<Source>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            startup_seconds: OnceLock::new(),
            scrapes: AtomicU64::new(0),
            failures: Default::default(),
            up: Default::default(),
            sources: Mutex::new(Vec::new()),
        }
    }
}

impl Metrics {
    /// Adds a source that is asked at every scrape.
    pub fn add_source(&self, source: impl Fn(&mut Page) + Send + Sync + 'static) {
        self.sources.lock().push(Box::new(source));
    }

    /// The proxy became ready. Only the first call counts; it says so.
    pub fn ready(&self) -> bool {
        let seconds = self.start.elapsed().as_secs_f64();
        self.startup_seconds.set(seconds).is_ok()
    }

    /// One merged scrape began.
    pub fn scrape(&self) {
        self.scrapes.fetch_add(1, Ordering::Relaxed);
    }

    /// A part of a scrape failed.
    pub fn scrape_failed(&self, part: ScrapePart) {
        let index = PARTS.iter().position(|(_, p)| *p == part);
        if let Some(counter) = index.and_then(|i| self.failures.get(i)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the last answer of a part could be used.
    pub fn scraped(&self, part: ScrapePart, usable: bool) {
        let index = PARTS.iter().position(|(_, p)| *p == part);
        if let Some(up) = index.and_then(|i| self.up.get(i)) {
            up.store(1 + u8::from(usable), Ordering::Relaxed);
        }
    }

    /// The page in text format 0.0.4.
    pub fn render(&self) -> String {
        let mut page = Page::default();
        if let Some(seconds) = self.startup_seconds.get() {
            let help = "The time from the process starting to being marked ready.";
            page.gauge("startup_duration_seconds", help, &[], *seconds);
        }
        let scrapes = self.scrapes.load(Ordering::Relaxed);
        page.counter(
            "scrapes_total",
            "The total number of scrapes.",
            &[],
            scrapes,
        );
        for ((name, _), counter) in PARTS.iter().zip(&self.failures) {
            let help = "The total number of failed scrapes.";
            let value = counter.load(Ordering::Relaxed);
            page.counter("scrape_failures_total", help, &[("type", name)], value);
        }
        for ((name, _), up) in PARTS.iter().zip(&self.up) {
            let value = up.load(Ordering::Relaxed);
            if value != 0 {
                let help = "Whether the last scrape of a source gave its metrics.";
                page.gauge("scrape_up", help, &[("type", name)], f64::from(value - 1));
            }
        }
        for source in self.sources.lock().iter() {
            source(&mut page);
        }
        process::render(&mut page);
        runtime::render(&mut page);
        page.text()
    }
}

/// A page being written. Names are given without the prefix `istio_agent_`. The samples of a name
/// stand together, whatever the order they come in: the format asks for it.
#[derive(Default)]
pub struct Page(Vec<Family>);

struct Family {
    name: String,
    header: String,
    samples: String,
}

impl Page {
    /// A counter; nothing is written while it is 0.
    pub fn counter(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: u64) {
        if value != 0 {
            self.sample(name, "counter", help, labels, &value.to_string());
        }
    }

    /// A gauge.
    pub fn gauge(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.sample(name, "gauge", help, labels, &number(value));
    }

    /// A histogram: counts per bucket (not cumulative) with their upper bounds, the count above
    /// the last bound, and the sum. Nothing is written while it is empty.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        buckets: &[(f64, u64)],
        above: u64,
        sum: f64,
    ) {
        let count = buckets.iter().map(|(_, n)| n).sum::<u64>() + above;
        if count == 0 {
            return;
        }
        let samples = self.family(name, "histogram", help);
        let mut total = 0;
        for (bound, n) in buckets {
            total += n;
            let bound = bound.to_string();
            sample(
                samples,
                &format!("{name}_bucket"),
                &[("le", &bound)],
                &total.to_string(),
            );
        }
        let count = count.to_string();
        sample(
            samples,
            &format!("{name}_bucket"),
            &[("le", "+Inf")],
            &count,
        );
        sample(samples, &format!("{name}_sum"), &[], &number(sum));
        sample(samples, &format!("{name}_count"), &[], &count);
    }

    fn sample(&mut self, name: &str, kind: &str, help: &str, labels: &[(&str, &str)], value: &str) {
        sample(self.family(name, kind, help), name, labels, value);
    }

    /// Where the samples of `name` go; its first use decides type and help.
    fn family(&mut self, name: &str, kind: &str, help: &str) -> &mut String {
        let index = self.0.iter().position(|family| family.name == name);
        let index = index.unwrap_or_else(|| {
            self.0.push(Family {
                name: name.to_owned(),
                header: format!(
                    "# HELP istio_agent_{name} {help}\n# TYPE istio_agent_{name} {kind}\n"
                ),
                samples: String::new(),
            });
            self.0.len() - 1
        });
        &mut self.0[index].samples
    }

    fn text(&self) -> String {
        let families = self.0.iter();
        families
            .map(|family| format!("{}{}", family.header, family.samples))
            .collect()
    }
}

fn sample(out: &mut String, name: &str, labels: &[(&str, &str)], value: &str) {
    let labels: Vec<String> = labels
        .iter()
        .map(|(k, v)| format!("{k}=\"{}\"", escaped(v)))
        .collect();
    let set = if labels.is_empty() {
        String::new()
    } else {
        format!("{{{}}}", labels.join(","))
    };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "istio_agent_{name}{set} {value}");
}

/// Prometheus' words for what is no number.
fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_appear_with_their_first_use_under_their_exact_names() {
        let metrics = Metrics::default();
        let before = metrics.render();
        assert!(!before.contains("istio_agent_scrape"), "{before}");
        metrics.scrape();
        metrics.scrape_failed(ScrapePart::Application);
        metrics.ready();
        metrics.add_source(|page| {
            for kind in ["cancelled", "error"] {
                page.counter("istiod_connection_terminations", "x", &[("type", kind)], 2);
            }
        });
        let page = metrics.render();
        for line in [
            "istio_agent_scrapes_total 1",
            "istio_agent_scrape_failures_total{type=\"application\"} 1",
            "# TYPE istio_agent_istiod_connection_terminations counter",
            "istio_agent_istiod_connection_terminations{type=\"error\"} 2",
        ] {
            assert_eq!(
                page.lines().filter(|l| *l == line).count(),
                1,
                "{line} in\n{page}"
            );
        }
        assert!(page.contains("istio_agent_startup_duration_seconds "));
        assert!(page.contains("istio_agent_process_resident_memory_bytes "));
    }

    #[test]
    fn histograms_are_cumulative_and_samples_of_a_name_stand_together() {
        let mut page = Page::default();
        let buckets = [(0.001, 2), (0.1, 0), (5.0, 3)];
        page.histogram("empty", "h", &[(1.0, 0)], 0, 0.0);
        page.counter("c", "h", &[("type", "a")], 1);
        page.histogram("d_seconds", "h", &buckets, 1, 7.5);
        page.counter("c", "ignored", &[("type", "b")], 1024);
        page.gauge("g", "h", &[], f64::INFINITY);
        let want = "\
            # HELP istio_agent_c h\n# TYPE istio_agent_c counter\n\
            istio_agent_c{type=\"a\"} 1\nistio_agent_c{type=\"b\"} 1024\n\
            # HELP istio_agent_d_seconds h\n# TYPE istio_agent_d_seconds histogram\n\
            istio_agent_d_seconds_bucket{le=\"0.001\"} 2\n\
            istio_agent_d_seconds_bucket{le=\"0.1\"} 2\n\
            istio_agent_d_seconds_bucket{le=\"5\"} 5\n\
            istio_agent_d_seconds_bucket{le=\"+Inf\"} 6\n\
            istio_agent_d_seconds_sum 7.5\nistio_agent_d_seconds_count 6\n\
            # HELP istio_agent_g h\n# TYPE istio_agent_g gauge\nistio_agent_g +Inf\n";
        assert_eq!(page.text(), want);
    }

    #[test]
    fn label_values_are_escaped() {
        let mut page = Page::default();
        page.gauge("g", "h", &[("l", "a\"b\\c\n")], 1.5);
        let text = page.text();
        let want = "istio_agent_g{l=\"a\\\"b\\\\c\\n\"} 1.5\n";
        assert!(text.ends_with(want), "{text}");
    }
}
