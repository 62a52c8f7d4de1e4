//! Stats registry. Handles are resolved when an object is built; the request path does no name look-up.
//! A stat that the matcher leaves out does not exist: its handle is empty and costs one branch.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use outrigger_config::bootstrap::{StatsConfig, StatsMatcher};
use outrigger_config::matcher::StringMatcher;
use parking_lot::RwLock;

pub mod histogram;
pub mod page;
pub mod prometheus;
pub mod tags;

pub use histogram::HistogramCells;
use tags::{TagError, Tags};

/// A counter; `None` when the stats matcher leaves it out.
#[derive(Debug, Clone, Default)]
pub struct Counter(pub(crate) Option<Arc<CounterCell>>);

/// Cell of a counter.
#[derive(Debug, Default)]
pub struct CounterCell(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        if let Some(c) = &self.0 {
            c.0.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// The value; 0 for an empty handle.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.as_ref().map_or(0, |c| c.0.load(Ordering::Relaxed))
    }
}

/// A gauge; `None` when the stats matcher leaves it out.
#[derive(Debug, Clone, Default)]
pub struct Gauge(pub(crate) Option<Arc<GaugeCell>>);

/// Cell of a gauge.
#[derive(Debug, Default)]
pub struct GaugeCell {
    value: AtomicI64,
    /// Written at least once, for `usedonly`.
    used: AtomicBool,
}

impl Gauge {
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        if let Some(c) = &self.0 {
            c.value.fetch_add(n, Ordering::Relaxed);
            if !c.used.load(Ordering::Relaxed) {
                c.used.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Sets the value.
    pub fn set(&self, n: i64) {
        if let Some(c) = &self.0 {
            c.value.store(n, Ordering::Relaxed);
            c.used.store(true, Ordering::Relaxed);
        }
    }

    /// The value; 0 for an empty handle.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.0
            .as_ref()
            .map_or(0, |c| c.value.load(Ordering::Relaxed))
    }
}

/// A histogram; `None` when the stats matcher leaves it out.
#[derive(Debug, Clone, Default)]
pub struct Histogram(pub(crate) Option<Arc<HistogramCells>>);

impl Histogram {
    /// Records a value in the histogram's unit (ms for times, bytes for sizes).
    pub fn record(&self, value: u64) {
        if let Some(h) = &self.0 {
            h.record(value);
        }
    }
}

/// A text readout; `None` when the stats matcher leaves it out.
#[derive(Debug, Clone, Default)]
pub struct TextReadout(Option<Arc<RwLock<String>>>);

impl TextReadout {
    /// Sets the text.
    pub fn set(&self, text: &str) {
        if let Some(t) = &self.0 {
            text.clone_into(&mut t.write());
        }
    }
}

#[derive(Debug, Clone)]
enum Cell {
    Counter(Arc<CounterCell>),
    Gauge(Arc<GaugeCell>),
    Histogram(Arc<HistogramCells>),
    Text(Arc<RwLock<String>>),
}

/// What a stat shows on a page.
#[derive(Debug, Clone)]
pub enum Value {
    /// Counter.
    Counter(u64),
    /// Gauge. Printed as unsigned, as version hashes use all 64 bits.
    Gauge(i64),
    /// Text readout.
    Text(String),
    /// Histogram.
    Histogram(histogram::Snapshot),
}

/// One stat at scrape time.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Full name.
    pub name: Arc<str>,
    /// Its value.
    pub value: Value,
    /// Written at least once.
    pub used: bool,
}

/// The registry.
#[derive(Debug, Default)]
pub struct Stats {
    matcher: StatsMatcher,
    cells: RwLock<HashMap<Arc<str>, Cell>>,
    tags: Tags,
    buckets: Vec<(StringMatcher, Vec<f64>)>,
}

impl Stats {
    /// A registry with the matcher, tags and histogram buckets of the bootstrap.
    ///
    /// # Errors
    /// A tag regex that cannot be translated.
    pub fn new(config: &StatsConfig) -> Result<Self, TagError> {
        Ok(Self {
            matcher: config.matcher.clone(),
            cells: RwLock::default(),
            tags: Tags::new(config)?,
            buckets: config.histogram_buckets.clone(),
        })
    }

    /// Whether a stat of that full name exists.
    #[must_use]
    pub fn accepts(&self, name: &str) -> bool {
        let any = |list: &[StringMatcher]| list.iter().any(|m| m.matches(name.as_bytes()));
        match &self.matcher {
            StatsMatcher::All => true,
            StatsMatcher::None => false,
            StatsMatcher::Include(list) => any(list),
            StatsMatcher::Exclude(list) => !any(list),
        }
    }

    fn cell(&self, name: &str, make: impl FnOnce() -> Cell) -> Option<Cell> {
        if let Some(cell) = self.cells.read().get(name) {
            return Some(cell.clone());
        }
        if !self.accepts(name) {
            return None;
        }
        let mut cells = self.cells.write();
        Some(cells.entry(name.into()).or_insert_with(make).clone())
    }

    /// The counter of that full name, created on first mention; a no-op handle if the matcher excludes it
    /// or the name already belongs to another kind.
    #[must_use]
    pub fn counter(&self, name: &str) -> Counter {
        match self.cell(name, || Cell::Counter(Arc::default())) {
            Some(Cell::Counter(c)) => Counter(Some(c)),
            _ => Counter(None),
        }
    }

    /// The gauge of that full name.
    #[must_use]
    pub fn gauge(&self, name: &str) -> Gauge {
        match self.cell(name, || Cell::Gauge(Arc::default())) {
            Some(Cell::Gauge(c)) => Gauge(Some(c)),
            _ => Gauge(None),
        }
    }

    /// The histogram of that full name.
    #[must_use]
    pub fn histogram(&self, name: &str) -> Histogram {
        let make = || Cell::Histogram(Arc::new(HistogramCells::new(self.bounds(name))));
        match self.cell(name, make) {
            Some(Cell::Histogram(c)) => Histogram(Some(c)),
            _ => Histogram(None),
        }
    }

    /// The text readout of that full name.
    #[must_use]
    pub fn text(&self, name: &str) -> TextReadout {
        match self.cell(name, || Cell::Text(Arc::default())) {
            Some(Cell::Text(c)) => TextReadout(Some(c)),
            _ => TextReadout(None),
        }
    }

    fn bounds(&self, name: &str) -> Option<Arc<[f64]>> {
        self.buckets
            .iter()
            .find(|(m, _)| m.matches(name.as_bytes()))
            .map(|(_, b)| b.as_slice().into())
    }

    /// Every stat, sorted by full name.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples: Vec<_> = self
            .cells
            .read()
            .iter()
            .map(|(name, cell)| {
                let (value, used) = cell.read();
                Sample {
                    name: Arc::clone(name),
                    value,
                    used,
                }
            })
            .collect();
        samples.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        samples
    }

    /// `/reset_counters`: counters and histograms to zero.
    pub fn reset_counters(&self) {
        for cell in self.cells.read().values() {
            match cell {
                Cell::Counter(c) => c.0.store(0, Ordering::Relaxed),
                Cell::Histogram(h) => h.reset(),
                Cell::Gauge(_) | Cell::Text(_) => {}
            }
        }
    }

    /// Forgets stats under `prefix` that nobody holds a handle of, so that removed resources free memory.
    pub fn forget_unused(&self, prefix: &str) {
        self.cells.write().retain(|name, cell| {
            !name.starts_with(prefix)
                || match cell {
                    Cell::Counter(c) => Arc::strong_count(c) > 1,
                    Cell::Gauge(c) => Arc::strong_count(c) > 1,
                    Cell::Histogram(c) => Arc::strong_count(c) > 1,
                    Cell::Text(c) => Arc::strong_count(c) > 1,
                }
        });
    }
}

impl Cell {
    fn read(&self) -> (Value, bool) {
        match self {
            Self::Counter(c) => {
                let v = c.0.load(Ordering::Relaxed);
                (Value::Counter(v), v != 0)
            }
            Self::Gauge(c) => {
                let v = c.value.load(Ordering::Relaxed);
                (Value::Gauge(v), c.used.load(Ordering::Relaxed))
            }
            Self::Histogram(h) => {
                let s = h.snapshot();
                let used = s.count() > 0;
                (Value::Histogram(s), used)
            }
            Self::Text(t) => {
                let text = t.read().clone();
                let used = !text.is_empty();
                (Value::Text(text), used)
            }
        }
    }
}

#[cfg(test)]
mod tests;
