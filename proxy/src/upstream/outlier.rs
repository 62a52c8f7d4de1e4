//! Outlier detection: ejects hosts that fail in a row and lets them back on the interval tick. There is no
//! timer: the tick runs on the first request at or after its time, which gives the same result for whoever
//! sends requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outrigger_config::cluster::OutlierDetection as Config;

use crate::upstream::host::Host;
use crate::upstream::load_balancer::HostSet;

/// Result of one request as outlier detection sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An answer of the upstream.
    Response(u16),
    /// Connect failure, timeout or reset: counts as 503/504 unless split.
    LocalFailure,
}

/// Detector of one cluster.
#[derive(Debug)]
pub struct OutlierDetector {
    /// The validated configuration.
    pub config: Config,
    start: Instant,
    next_tick: AtomicU64,
    /// Ejections now in force.
    pub ejections_active: AtomicU64,
    /// Ejections that happened.
    pub ejections_enforced_total: AtomicU64,
    /// Ejections refused because of `max_ejection_percent`.
    pub ejections_overflow: AtomicU64,
    /// Hosts detected by consecutive 5xx.
    pub detected_consecutive_5xx: AtomicU64,
}

impl OutlierDetector {
    /// A detector that starts now.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let next_tick = AtomicU64::new(millis(config.interval));
        Self {
            config,
            start: Instant::now(),
            next_tick,
            ejections_active: AtomicU64::new(0),
            ejections_enforced_total: AtomicU64::new(0),
            ejections_overflow: AtomicU64::new(0),
            detected_consecutive_5xx: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        millis(self.start.elapsed())
    }

    /// Counts a result and ejects the host when a limit is reached. `random` decides enforcing percentages.
    pub fn record(&self, hosts: &HostSet, host: &Host, outcome: Outcome, random: u64) {
        let c = &self.config;
        let state = &host.outlier;
        if outcome == Outcome::LocalFailure && c.split_external_local_origin_errors {
            let n = state.consecutive_local.fetch_add(1, Ordering::Relaxed) + 1;
            if reached(n, c.consecutive_local_origin_failure) {
                state.consecutive_local.store(0, Ordering::Relaxed);
                self.eject(
                    hosts,
                    host,
                    c.enforcing_consecutive_local_origin_failure,
                    random,
                );
            }
            return;
        }
        let code = match outcome {
            Outcome::Response(code) => code,
            Outcome::LocalFailure => 503,
        };
        if c.split_external_local_origin_errors {
            state.consecutive_local.store(0, Ordering::Relaxed);
        }
        if matches!(code, 502..=504) {
            let n = state.consecutive_gateway.fetch_add(1, Ordering::Relaxed) + 1;
            if reached(n, c.consecutive_gateway_failure) {
                state.consecutive_gateway.store(0, Ordering::Relaxed);
                self.eject(hosts, host, c.enforcing_consecutive_gateway_failure, random);
            }
        } else if state.consecutive_gateway.load(Ordering::Relaxed) != 0 {
            state.consecutive_gateway.store(0, Ordering::Relaxed);
        }
        if code >= 500 {
            let n = state.consecutive_5xx.fetch_add(1, Ordering::Relaxed) + 1;
            if reached(n, c.consecutive_5xx) {
                state.consecutive_5xx.store(0, Ordering::Relaxed);
                self.detected_consecutive_5xx
                    .fetch_add(1, Ordering::Relaxed);
                self.eject(hosts, host, c.enforcing_consecutive_5xx, random);
            }
        } else if state.consecutive_5xx.load(Ordering::Relaxed) != 0 {
            state.consecutive_5xx.store(0, Ordering::Relaxed);
        }
    }

    fn eject(&self, hosts: &HostSet, host: &Host, enforcing: u32, random: u64) {
        if host.is_ejected() || u64::from(enforcing) <= random % 100 {
            return;
        }
        let ejected = hosts.all.iter().filter(|h| h.is_ejected()).count();
        let after = (ejected + 1) * 100;
        let first_of_many = self.config.always_eject_one_host && ejected == 0;
        // The cap holds after the ejection: 10 % of two hosts is nobody (proxy.md 5.7).
        if after > self.config.max_ejection_percent as usize * hosts.all.len() && !first_of_many {
            self.ejections_overflow.fetch_add(1, Ordering::Relaxed);
            return;
        }
        host.outlier.times_ejected.fetch_add(1, Ordering::Relaxed);
        host.outlier
            .ejected_at
            .store(self.now().max(1), Ordering::Relaxed);
        self.ejections_active.fetch_add(1, Ordering::Relaxed);
        self.ejections_enforced_total
            .fetch_add(1, Ordering::Relaxed);
        hosts.health_changed();
    }

    /// Runs the interval tick if it is due: lets hosts back whose ejection time has passed.
    pub fn tick(&self, hosts: &HostSet) {
        let now = self.now();
        let due = self.next_tick.load(Ordering::Relaxed);
        if now < due {
            return;
        }
        let interval = millis(self.config.interval).max(1);
        let next = now + interval - (now - due) % interval;
        if self
            .next_tick
            .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
            .is_err()
        {
            return;
        }
        for host in &hosts.all {
            let at = host.outlier.ejected_at.load(Ordering::Relaxed);
            let times = host.outlier.times_ejected.load(Ordering::Relaxed);
            if at == 0 {
                if times > 0 {
                    host.outlier
                        .times_ejected
                        .store(times - 1, Ordering::Relaxed);
                }
            } else if now >= at + self.ejection_time(times) {
                host.outlier.ejected_at.store(0, Ordering::Relaxed);
                host.outlier.consecutive_5xx.store(0, Ordering::Relaxed);
                host.outlier.consecutive_gateway.store(0, Ordering::Relaxed);
                host.outlier.consecutive_local.store(0, Ordering::Relaxed);
                self.ejections_active.fetch_sub(1, Ordering::Relaxed);
                hosts.health_changed();
            }
        }
    }

    fn ejection_time(&self, times: u32) -> u64 {
        let base = millis(self.config.base_ejection_time);
        base.saturating_mul(u64::from(times.max(1)))
            .min(millis(self.config.max_ejection_time))
    }
}

const fn reached(count: u32, limit: u32) -> bool {
    limit > 0 && count >= limit
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
