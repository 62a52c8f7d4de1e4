//! Counters of fetching and rewriting, under the reference's names.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::{Histogram, Page};

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
/// Upper bounds of the duration histogram, in milliseconds.
const BOUNDS: [f64; 15] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0,
];

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
#[derive(Debug)]
pub struct WasmMetrics {
    /// `wasm_cache_entries`.
    pub(super) entries: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    fetches: [AtomicU64; 5],
    conversions: [AtomicU64; 6],
    durations: Histogram,
}

impl Default for WasmMetrics {
    fn default() -> Self {
        Self {
            entries: AtomicU64::default(),
            hits: AtomicU64::default(),
            misses: AtomicU64::default(),
            fetches: Default::default(),
            conversions: Default::default(),
            durations: Histogram::new(&BOUNDS),
        }
    }
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
        self.durations.observe(duration.as_secs_f64() * 1000.0);
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
        self.durations.render(
            page,
            "wasm_config_conversion_duration",
            "Total time in milliseconds istio-agent spends on converting remote load in Wasm config.",
        );
    }
}
