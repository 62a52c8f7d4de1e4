//! The agent's own metrics, in Prometheus text with the reference's names. The names are fixed and
//! partly without `_total`, which the OpenMetrics encoder of prometheus-client would add; hence
//! the few lines of text here. A series appears with its first use, as in the reference.

use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

mod process;

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
    sources: Mutex<Vec<Source>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            startup_seconds: OnceLock::new(),
            scrapes: AtomicU64::new(0),
            failures: Default::default(),
            sources: Mutex::new(Vec::new()),
        }
    }
}

impl Metrics {
    /// Adds a source that is asked at every scrape.
    pub fn add_source(&self, source: impl Fn(&mut Page) + Send + Sync + 'static) {
        self.sources.lock().push(Box::new(source));
    }

    /// The proxy became ready; only the first call counts.
    pub fn ready(&self) {
        self.startup_seconds
            .get_or_init(|| self.start.elapsed().as_secs_f64());
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

    /// The page in text format 0.0.4.
    pub fn render(&self) -> String {
        let mut page = Page(String::with_capacity(4096));
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
        for source in self.sources.lock().iter() {
            source(&mut page);
        }
        process::render(&mut page);
        page.0
    }
}

/// A page being written. Names are given without the prefix `istio_agent_`.
pub struct Page(String);

impl Page {
    /// A counter; nothing is written while it is 0.
    pub fn counter(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: u64) {
        if value != 0 {
            self.sample(name, "counter", help, labels, &value.to_string());
        }
    }

    /// A gauge.
    pub fn gauge(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.sample(name, "gauge", help, labels, &value.to_string());
    }

    fn sample(&mut self, name: &str, kind: &str, help: &str, labels: &[(&str, &str)], value: &str) {
        let header = format!("# TYPE istio_agent_{name} {kind}\n");
        if !self.0.contains(&header) {
            self.0
                .push_str(&format!("# HELP istio_agent_{name} {help}\n{header}"));
        }
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
        let _ = writeln!(self.0, "istio_agent_{name}{set} {value}");
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
    fn label_values_are_escaped() {
        let mut page = Page(String::new());
        page.gauge("g", "h", &[("l", "a\"b\\c\n")], 1.5);
        assert!(
            page.0
                .ends_with("istio_agent_g{l=\"a\\\"b\\\\c\\n\"} 1.5\n"),
            "{}",
            page.0
        );
    }
}
