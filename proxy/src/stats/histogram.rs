//! Log-linear histograms: bins of two significant digits (1, 2 … 9, 10, 11 … 99, 100, 110 …), kept sparse
//! so that a histogram which saw three values costs three bins.

use std::sync::Arc;

use parking_lot::Mutex;

/// Quantiles that `/stats` prints.
pub const QUANTILES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0];

/// Bucket bounds where the bootstrap sets none (proxy.md 9.6).
pub const DEFAULT_BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Cells of a histogram.
#[derive(Debug, Default)]
pub struct HistogramCells {
    /// Lower edge of each bin and its count, sorted.
    bins: Mutex<Vec<(u64, u64)>>,
    bounds: Option<Arc<[f64]>>,
}

/// Lower edge of the bin of a value.
fn bin(value: u64) -> u64 {
    value - value % width(value)
}

/// Width of the bin that starts at or holds `value`.
fn width(value: u64) -> u64 {
    value
        .checked_ilog10()
        .map_or(1, |digits| 10u64.pow(digits.saturating_sub(1)))
}

impl HistogramCells {
    /// An empty histogram; `None` = [`DEFAULT_BOUNDS`].
    #[must_use]
    pub fn new(bounds: Option<Arc<[f64]>>) -> Self {
        Self {
            bins: Mutex::default(),
            bounds,
        }
    }

    /// Counts a value.
    pub fn record(&self, value: u64) {
        let lower = bin(value);
        let mut bins = self.bins.lock();
        match bins.binary_search_by_key(&lower, |b| b.0) {
            Ok(at) => {
                if let Some(b) = bins.get_mut(at) {
                    b.1 += 1;
                }
            }
            Err(at) => bins.insert(at, (lower, 1)),
        }
    }

    /// Forgets every value.
    pub fn reset(&self) {
        self.bins.lock().clear();
    }

    /// The values so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            bins: self.bins.lock().clone(),
            bounds: self.bounds.clone(),
        }
    }
}

/// A histogram at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    bins: Vec<(u64, u64)>,
    bounds: Option<Arc<[f64]>>,
}

impl Snapshot {
    /// Values recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.bins.iter().map(|b| b.1).sum()
    }

    /// Approximate sum: each value counts as the harmonic mean of its bin's edges.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.bins
            .iter()
            .filter(|b| b.0 > 0)
            .map(|&(lower, n)| middle(lower) * n as f64)
            .sum()
    }

    /// Bucket bounds of this histogram.
    #[must_use]
    pub fn bounds(&self) -> &[f64] {
        self.bounds.as_deref().unwrap_or(&DEFAULT_BOUNDS)
    }

    /// Values in bins that start at or below `bound`.
    #[must_use]
    pub fn count_to(&self, bound: f64) -> u64 {
        self.bins
            .iter()
            .take_while(|b| b.0 as f64 <= bound)
            .map(|b| b.1)
            .sum()
    }

    /// The value of quantile `q`: values of one bin are taken as evenly spread inside it. `None` if nothing
    /// was recorded.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = ((q * self.count() as f64).ceil() as u64).max(1);
        let mut before = 0;
        for &(lower, n) in &self.bins {
            if rank <= before + n {
                if lower == 0 {
                    return Some(0.0);
                }
                let share = (rank - before) as f64 / (n + 1) as f64;
                return Some(lower as f64 + width(lower) as f64 * share);
            }
            before += n;
        }
        None
    }
}

fn middle(lower: u64) -> f64 {
    let (low, high) = (lower as f64, (lower.saturating_add(width(lower))) as f64);
    2.0 * low * high / (low + high)
}
