//! Stats registry. Handles are resolved when an object is built; the request path does no name look-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A counter; `None` when the stats matcher leaves it out.
#[derive(Debug, Clone, Default)]
pub struct Counter(pub(crate) Option<Arc<AtomicU64>>);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        if let Some(c) = &self.0 {
            c.fetch_add(n, Ordering::Relaxed);
        }
    }
}

/// A gauge; `None` when the stats matcher leaves it out.
#[derive(Debug, Clone, Default)]
pub struct Gauge(pub(crate) Option<Arc<AtomicI64>>);

impl Gauge {
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        if let Some(c) = &self.0 {
            c.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Sets the value.
    pub fn set(&self, n: i64) {
        if let Some(c) = &self.0 {
            c.store(n, Ordering::Relaxed);
        }
    }
}

/// A histogram; `None` when the stats matcher leaves it out.
#[derive(Debug, Clone, Default)]
pub struct Histogram(pub(crate) Option<Arc<HistogramCells>>);

/// Cells of a histogram.
#[derive(Debug, Default)]
pub struct HistogramCells {}

impl Histogram {
    /// Records a value in the histogram's unit (ms for times, bytes for sizes).
    pub fn record(&self, _value: u64) {}
}

/// The registry.
#[derive(Debug, Default)]
pub struct Stats {}

impl Stats {
    /// The counter of that full name, created on first mention; a no-op handle if the matcher excludes it.
    #[must_use]
    pub fn counter(&self, _name: &str) -> Counter {
        Counter::default()
    }

    /// The gauge of that full name.
    #[must_use]
    pub fn gauge(&self, _name: &str) -> Gauge {
        Gauge::default()
    }

    /// The histogram of that full name.
    #[must_use]
    pub fn histogram(&self, _name: &str) -> Histogram {
        Histogram::default()
    }
}
