//! Counters of fetching and rewriting, under the reference's names.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::Page;

/// Results of a fetch, in the order of [`WasmMetrics`]' counters.
const FETCHES: [&str; 5] = [
    "success",
    "download_failure",
    "manifest_failure",
    "checksum_mismatched",
    "fetch_failure",
];
/// Results of a conversion.
const CONVERSIONS: [&str; 6] = [
    "success",
    "no_remote_load",
    "marshal_failure",
    "unmarshal_failure",
    "fetch_failure",
    "miss_remote_fetch_hint",
];
/// Bounds of the duration histogram are 1, 2, 4 … 16384 ms.
const BOUNDS: usize = 15;

/// Result of one fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetch {
    Success,
    Download,
    Manifest,
    Checksum,
    Invalid,
}

/// Result of one conversion. The reference also counts failures to encode, which cannot happen
/// here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conversion {
    Success = 0,
    NoRemoteLoad = 1,
    Unmarshal = 3,
    Fetch = 4,
    MissingHint = 5,
}

/// Counters of a cache.
#[derive(Debug, Default)]
pub struct WasmMetrics {
    /// `wasm_cache_entries`.
    pub(super) entries: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    fetches: [AtomicU64; 5],
    conversions: [AtomicU64; 6],
    durations: [AtomicU64; BOUNDS],
    longer: AtomicU64,
    total_ms: AtomicU64,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl WasmMetrics {
    pub(super) fn looked_up(&self, hit: bool) {
        add(if hit { &self.hits } else { &self.misses });
    }

    pub(super) fn fetched(&self, result: Fetch) {
        add(&self.fetches[result as usize]);
    }

    pub(super) fn converted(&self, result: Conversion) {
        add(&self.conversions[result as usize]);
    }

    pub(super) fn took(&self, duration: Duration) {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let bucket = self.durations.iter().enumerate();
        let bucket = bucket.map(|(i, counter)| (1 << i, counter));
        let found = bucket.into_iter().find(|(bound, _)| ms <= *bound);
        add(found.map_or(&self.longer, |(_, counter)| counter));
        self.total_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Writes the series of section 11.
    pub fn render(&self, page: &mut Page) {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let entries = value(&self.entries);
        if entries != 0 || value(&self.misses) != 0 {
            let help = "number of Wasm remote fetch cache entries.";
            page.gauge("wasm_cache_entries", help, &[], entries as f64);
        }
        for (hit, counter) in [("true", &self.hits), ("false", &self.misses)] {
            let help = "number of Wasm remote fetch cache lookups.";
            page.counter(
                "wasm_cache_lookup_count",
                help,
                &[("hit", hit)],
                value(counter),
            );
        }
        for (result, counter) in FETCHES.iter().zip(&self.fetches) {
            let help = "number of Wasm remote fetches and results, including success, download \
                        failure, and checksum mismatch.";
            let labels = [("result", *result)];
            page.counter("wasm_remote_fetch_count", help, &labels, value(counter));
        }
        for (result, counter) in CONVERSIONS.iter().zip(&self.conversions) {
            let help = "number of Wasm config conversion count and results, including success, no \
                        remote load, marshal failure, remote fetch failure, miss remote fetch hint.";
            let labels = [("result", *result)];
            page.counter(
                "wasm_config_conversion_count",
                help,
                &labels,
                value(counter),
            );
        }
        let durations = self.durations.iter().enumerate();
        let buckets: Vec<(f64, u64)> = durations
            .map(|(i, counter)| (f64::from(1 << i), value(counter)))
            .collect();
        page.histogram(
            "wasm_config_conversion_duration",
            "Total time in milliseconds istio-agent spends on converting remote load in Wasm config.",
            &buckets,
            value(&self.longer),
            value(&self.total_ms) as f64,
        );
    }
}
