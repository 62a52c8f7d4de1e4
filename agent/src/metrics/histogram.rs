//! Values counted under upper bounds.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Page;

/// What the sum is kept in: millionths of the value's unit.
const SCALE: f64 = 1e6;

/// A histogram that many tasks add to.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// Values per bound, not summed up; the last has no bound.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    /// `bounds` in ascending order, in the unit of the values.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts one value; it must not be negative.
    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum
            .fetch_add((value * SCALE).round() as u64, Ordering::Relaxed);
    }

    /// Writes the series; nothing while it is empty.
    pub fn render(&self, page: &mut Page, name: &str, help: &str) {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let buckets: Vec<_> = self
            .bounds
            .iter()
            .copied()
            .zip(self.counts.iter().map(load))
            .collect();
        let above = self.counts.last().map_or(0, load);
        page.histogram(name, help, &buckets, above, load(&self.sum) as f64 / SCALE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_under_the_first_bound_that_is_not_below_it() {
        let histogram = Histogram::new(&[0.01, 1.0]);
        let mut page = Page::default();
        histogram.render(&mut page, "d", "h");
        assert_eq!(page.text(), "");
        for value in [0.0, 0.01, 0.5, 30.25] {
            histogram.observe(value);
        }
        let mut page = Page::default();
        histogram.render(&mut page, "d", "h");
        let samples: Vec<_> = page
            .text()
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(str::to_owned)
            .collect();
        let want = [
            "istio_agent_d_bucket{le=\"0.01\"} 2",
            "istio_agent_d_bucket{le=\"1\"} 3",
            "istio_agent_d_bucket{le=\"+Inf\"} 4",
            "istio_agent_d_sum 30.76",
            "istio_agent_d_count 4",
        ];
        assert_eq!(samples, want);
    }
}
