//! Stats handles of one cluster.

use crate::stats::{Counter, Gauge, Histogram, Stats};

macro_rules! handles {
    ($(#[$doc:meta])* $name:ident { $($kind:ident $field:ident $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            $(#[doc = concat!("`", $text, "`")] pub $field: handles!(@type $kind),)*
        }
        impl $name {
            fn resolve(stats: &Stats, prefix: &str) -> Self {
                Self { $($field: stats.$kind(&format!(concat!("{}", $text), prefix)),)* }
            }
        }
    };
    (@type counter) => { Counter };
    (@type gauge) => { Gauge };
    (@type histogram) => { Histogram };
}

handles! {
    /// Handles under `cluster.<alt_stat_name>.`.
    Handles {
        counter cx_total "upstream_cx_total",
        gauge cx_active "upstream_cx_active",
        counter cx_http1_total "upstream_cx_http1_total",
        counter cx_http2_total "upstream_cx_http2_total",
        counter cx_connect_fail "upstream_cx_connect_fail",
        counter cx_connect_timeout "upstream_cx_connect_timeout",
        counter cx_connect_attempts_exceeded "upstream_cx_connect_attempts_exceeded",
        counter cx_idle_timeout "upstream_cx_idle_timeout",
        counter cx_overflow "upstream_cx_overflow",
        counter cx_destroy "upstream_cx_destroy",
        counter cx_destroy_local "upstream_cx_destroy_local",
        counter cx_destroy_remote "upstream_cx_destroy_remote",
        counter cx_destroy_with_active_rq "upstream_cx_destroy_with_active_rq",
        counter cx_protocol_error "upstream_cx_protocol_error",
        counter cx_max_requests "upstream_cx_max_requests",
        counter cx_none_healthy "upstream_cx_none_healthy",
        counter cx_rx_bytes_total "upstream_cx_rx_bytes_total",
        counter cx_tx_bytes_total "upstream_cx_tx_bytes_total",
        histogram cx_connect_ms "upstream_cx_connect_ms",
        histogram cx_length_ms "upstream_cx_length_ms",
        counter rq_total "upstream_rq_total",
        gauge rq_active "upstream_rq_active",
        counter rq_pending_total "upstream_rq_pending_total",
        counter rq_pending_overflow "upstream_rq_pending_overflow",
        gauge rq_pending_active "upstream_rq_pending_active",
        counter rq_pending_failure_eject "upstream_rq_pending_failure_eject",
        counter rq_cancelled "upstream_rq_cancelled",
        counter rq_timeout "upstream_rq_timeout",
        counter rq_per_try_timeout "upstream_rq_per_try_timeout",
        counter rq_rx_reset "upstream_rq_rx_reset",
        counter rq_tx_reset "upstream_rq_tx_reset",
        counter rq_retry "upstream_rq_retry",
        counter rq_retry_success "upstream_rq_retry_success",
        counter rq_retry_overflow "upstream_rq_retry_overflow",
        counter rq_retry_limit_exceeded "upstream_rq_retry_limit_exceeded",
        counter rq_retry_backoff_exponential "upstream_rq_retry_backoff_exponential",
        counter retry_or_shadow_abandoned "retry_or_shadow_abandoned",
        counter rq_completed "upstream_rq_completed",
        counter rq_1xx "upstream_rq_1xx",
        counter rq_2xx "upstream_rq_2xx",
        counter rq_3xx "upstream_rq_3xx",
        counter rq_4xx "upstream_rq_4xx",
        counter rq_5xx "upstream_rq_5xx",
        histogram rq_time "upstream_rq_time",
        counter lb_healthy_panic "lb_healthy_panic",
        counter original_dst_host_invalid "original_dst_host_invalid",
        counter bind_errors "bind_errors",
    }
}

/// Stats of one cluster; per-code counters are resolved on first use of the code.
#[derive(Debug, Default)]
pub struct ClusterStats {
    handles: Handles,
    codes: parking_lot::RwLock<Vec<(u16, Counter)>>,
    prefix: String,
    registry: std::sync::Weak<Stats>,
    /// False when the stats matcher leaves every handle out: nothing to count.
    counted: bool,
}

impl std::ops::Deref for ClusterStats {
    type Target = Handles;

    fn deref(&self) -> &Handles {
        &self.handles
    }
}

impl ClusterStats {
    /// Resolves the handles under `cluster.<observability_name>.`.
    #[must_use]
    pub fn new(stats: &std::sync::Arc<Stats>, observability_name: &str) -> Self {
        let prefix = format!("cluster.{observability_name}.");
        let handles = Handles::resolve(stats, &prefix);
        let counted = handles.rq_completed.0.is_some();
        Self {
            handles,
            codes: parking_lot::RwLock::default(),
            registry: std::sync::Arc::downgrade(stats),
            counted,
            prefix,
        }
    }

    /// Counts a finished request: `upstream_rq_completed`, the class and the code.
    pub fn response(&self, code: u16) {
        if !self.counted {
            return;
        }
        self.rq_completed.inc();
        match code / 100 {
            1 => self.rq_1xx.inc(),
            2 => self.rq_2xx.inc(),
            3 => self.rq_3xx.inc(),
            4 => self.rq_4xx.inc(),
            5 => self.rq_5xx.inc(),
            _ => {}
        }
        if let Some((_, c)) = self.codes.read().iter().find(|(k, _)| *k == code) {
            c.inc();
            return;
        }
        let Some(registry) = self.registry.upgrade() else {
            return;
        };
        let counter = registry.counter(&format!("{}upstream_rq_{code}", self.prefix));
        counter.inc();
        let mut codes = self.codes.write();
        if !codes.iter().any(|(k, _)| *k == code) {
            codes.push((code, counter));
        }
    }
}
