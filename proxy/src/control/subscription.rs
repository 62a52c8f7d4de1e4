//! Where subscriptions and verdicts go, and the stats of one subscription.

use std::time::SystemTime;

use outrigger_xds::{AdsHandle, UpdateId};
use xxhash_rust::xxh64::xxh64;

use crate::stats::{Counter, Gauge, Histogram, Stats, TextReadout};

/// One xDS stream as the engine sees it.
pub trait Xds {
    /// Every resource of a type.
    fn subscribe_wildcard(&mut self, type_url: &str);
    /// Names of a type.
    fn subscribe(&mut self, type_url: &str, names: Vec<String>);
    /// Names no longer wanted.
    fn unsubscribe(&mut self, type_url: &str, names: Vec<String>);
    /// An update was applied.
    fn ack(&mut self, id: UpdateId);
    /// An update was refused, wholly or in part.
    fn nack(&mut self, id: UpdateId, message: String);
}

impl Xds for AdsHandle {
    fn subscribe_wildcard(&mut self, type_url: &str) {
        Self::subscribe_wildcard(self, type_url);
    }

    fn subscribe(&mut self, type_url: &str, names: Vec<String>) {
        Self::subscribe(self, type_url, names);
    }

    fn unsubscribe(&mut self, type_url: &str, names: Vec<String>) {
        Self::unsubscribe(self, type_url, names);
    }

    fn ack(&mut self, id: UpdateId) {
        Self::ack(self, id);
    }

    fn nack(&mut self, id: UpdateId, message: String) {
        Self::nack(self, id, message);
    }
}

/// `<prefix>.update_*` of one subscription.
#[derive(Debug, Default)]
pub struct SubscriptionStats {
    /// Subscriptions sent and updates received.
    pub attempt: Counter,
    /// Updates applied wholly.
    pub success: Counter,
    /// Streams that failed.
    pub failure: Counter,
    /// Updates refused, wholly or in part.
    pub rejected: Counter,
    /// The first update did not come in time.
    pub init_fetch_timeout: Counter,
    time: Gauge,
    version: Gauge,
    version_text: TextReadout,
    duration: Histogram,
}

impl SubscriptionStats {
    /// Handles under `prefix`, e.g. `cluster_manager.cds`.
    #[must_use]
    pub fn new(stats: &Stats, prefix: &str) -> Self {
        let name = |n: &str| format!("{prefix}.{n}");
        Self {
            attempt: stats.counter(&name("update_attempt")),
            success: stats.counter(&name("update_success")),
            failure: stats.counter(&name("update_failure")),
            rejected: stats.counter(&name("update_rejected")),
            init_fetch_timeout: stats.counter(&name("init_fetch_timeout")),
            time: stats.gauge(&name("update_time")),
            version: stats.gauge(&name("version")),
            version_text: stats.text(&name("version_text")),
            duration: stats.histogram(&name("update_duration")),
        }
    }

    /// Counts one update that took `milliseconds` to apply.
    pub fn updated(&self, accepted: bool, version: &str, milliseconds: u64) {
        self.attempt.inc();
        self.duration.record(milliseconds);
        if !accepted {
            self.rejected.inc();
            return;
        }
        self.success.inc();
        let now = SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        self.time
            .set(i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
        self.version.set(version_hash(version) as i64);
        self.version_text.set(version);
    }
}

/// xxHash64 of a version, as Envoy's `version` gauges have it.
#[must_use]
pub fn version_hash(version: &str) -> u64 {
    xxh64(version.as_bytes(), 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn version_gauge_equals_the_one_of_envoy() {
        assert_eq!(
            super::version_hash("2026-11-21T04:17:32Z/1"),
            9_332_394_884_207_306_476
        );
    }
}
