//! Counters of the DNS server, under the reference's names.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::{Histogram, Page};

/// Upper bounds of the duration histogram, in seconds.
const BOUNDS: [f64; 6] = [0.001, 0.005, 0.01, 0.1, 1.0, 5.0];

/// Counters since the start.
#[derive(Debug)]
pub struct DnsMetrics {
    /// `dns_requests_total`: packets that were queries.
    pub requests: AtomicU64,
    /// `dns_upstream_requests_total`: queries forwarded.
    pub upstream_requests: AtomicU64,
    /// `dns_upstream_failures_total`: forwarded queries that no server answered.
    pub upstream_failures: AtomicU64,
    upstream_durations: Histogram,
}

impl Default for DnsMetrics {
    fn default() -> Self {
        Self {
            requests: AtomicU64::default(),
            upstream_requests: AtomicU64::default(),
            upstream_failures: AtomicU64::default(),
            upstream_durations: Histogram::new(&BOUNDS),
        }
    }
}

impl DnsMetrics {
    /// One forwarded query took so long.
    pub fn upstream_took(&self, duration: Duration) {
        self.upstream_durations.observe(duration.as_secs_f64());
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
        self.upstream_durations.render(
            page,
            "dns_upstream_request_duration_seconds",
            "Time until a name server answered, or none did.",
        );
    }
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
