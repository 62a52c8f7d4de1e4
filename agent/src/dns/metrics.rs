//! Counters of the DNS server, under the reference's names.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::Page;

/// Upper bounds of the duration histogram, in microseconds: 1 ms to 5 s.
const BOUNDS_MICROS: [u64; 6] = [1_000, 5_000, 10_000, 100_000, 1_000_000, 5_000_000];

/// Counters since the start.
#[derive(Debug, Default)]
pub struct DnsMetrics {
    /// `dns_requests_total`: packets that were queries.
    pub requests: AtomicU64,
    /// `dns_upstream_requests_total`: queries forwarded.
    pub upstream_requests: AtomicU64,
    /// `dns_upstream_failures_total`: forwarded queries that no server answered.
    pub upstream_failures: AtomicU64,
    /// Forwarded queries per bound, not summed up; the last has no bound.
    buckets: [AtomicU64; BOUNDS_MICROS.len() + 1],
    sum_micros: AtomicU64,
}

impl DnsMetrics {
    /// One forwarded query took so long.
    pub fn upstream_took(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|&bound| bound < micros);
        add(&self.buckets[bucket], 1);
        add(&self.sum_micros, micros);
    }

    /// Writes the series that have been used.
    pub fn render(&self, page: &mut Page) {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        for (name, help, value) in [
            (
                "dns_requests_total",
                "DNS queries received.",
                &self.requests,
            ),
            (
                "dns_upstream_requests_total",
                "DNS queries passed on to a name server.",
                &self.upstream_requests,
            ),
            (
                "dns_upstream_failures_total",
                "DNS queries passed on that no name server answered.",
                &self.upstream_failures,
            ),
        ] {
            page.counter(name, help, &[], load(value));
        }
        let bounds = BOUNDS_MICROS.map(|micros| micros as f64 / 1e6);
        let buckets: Vec<_> = bounds
            .into_iter()
            .zip(self.buckets.iter().map(load))
            .collect();
        page.histogram(
            "dns_upstream_request_duration_seconds",
            "Time until a name server answered, or none did.",
            &buckets,
            load(&self.buckets[BOUNDS_MICROS.len()]),
            load(&self.sum_micros) as f64 / 1e6,
        );
    }
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
