//! Stats handles of one connection manager.

use crate::stats::{Counter, Gauge, Histogram, Stats};

/// Handles under `http.<stat_prefix>.`.
#[derive(Debug, Default)]
pub struct HttpStats {
    /// `downstream_cx_total`
    pub cx_total: Counter,
    /// `downstream_cx_active`
    pub cx_active: Gauge,
    /// `downstream_cx_http1_total`
    pub cx_http1_total: Counter,
    /// `downstream_cx_http2_total`
    pub cx_http2_total: Counter,
    /// `downstream_cx_protocol_error`
    pub cx_protocol_error: Counter,
    /// `downstream_cx_idle_timeout`
    pub cx_idle_timeout: Counter,
    /// `downstream_cx_drain_close`
    pub cx_drain_close: Counter,
    /// `downstream_rq_total`
    pub rq_total: Counter,
    /// `downstream_rq_active`
    pub rq_active: Gauge,
    /// `downstream_rq_http1_total`
    pub rq_http1_total: Counter,
    /// `downstream_rq_http2_total`
    pub rq_http2_total: Counter,
    /// `downstream_rq_completed`
    pub rq_completed: Counter,
    /// `downstream_rq_1xx` to `5xx`
    pub rq_classes: [Counter; 5],
    /// `downstream_rq_timeout`
    pub rq_timeout: Counter,
    /// `downstream_rq_header_timeout`
    pub rq_header_timeout: Counter,
    /// `downstream_rq_idle_timeout`
    pub rq_idle_timeout: Counter,
    /// `downstream_rq_max_duration_reached`
    pub rq_max_duration_reached: Counter,
    /// `downstream_rq_non_relative_path`
    pub rq_non_relative_path: Counter,
    /// `downstream_rq_ws_on_non_ws_route`
    pub rq_ws_on_non_ws_route: Counter,
    /// `downstream_rq_time`, ms
    pub rq_time: Histogram,
    /// `no_route`
    pub no_route: Counter,
    /// `no_cluster`
    pub no_cluster: Counter,
    /// `rq_direct_response`
    pub rq_direct_response: Counter,
    /// `rq_redirect`
    pub rq_redirect: Counter,
    /// `rq_total` of the router
    pub router_rq_total: Counter,
}

impl HttpStats {
    /// Resolves the handles.
    #[must_use]
    pub fn new(stats: &Stats, stat_prefix: &str) -> Self {
        let counter = |name: &str| stats.counter(&format!("http.{stat_prefix}.{name}"));
        let gauge = |name: &str| stats.gauge(&format!("http.{stat_prefix}.{name}"));
        Self {
            cx_total: counter("downstream_cx_total"),
            cx_active: gauge("downstream_cx_active"),
            cx_http1_total: counter("downstream_cx_http1_total"),
            cx_http2_total: counter("downstream_cx_http2_total"),
            cx_protocol_error: counter("downstream_cx_protocol_error"),
            cx_idle_timeout: counter("downstream_cx_idle_timeout"),
            cx_drain_close: counter("downstream_cx_drain_close"),
            rq_total: counter("downstream_rq_total"),
            rq_active: gauge("downstream_rq_active"),
            rq_http1_total: counter("downstream_rq_http1_total"),
            rq_http2_total: counter("downstream_rq_http2_total"),
            rq_completed: counter("downstream_rq_completed"),
            rq_classes: [1, 2, 3, 4, 5].map(|c| counter(&format!("downstream_rq_{c}xx"))),
            rq_timeout: counter("downstream_rq_timeout"),
            rq_header_timeout: counter("downstream_rq_header_timeout"),
            rq_idle_timeout: counter("downstream_rq_idle_timeout"),
            rq_max_duration_reached: counter("downstream_rq_max_duration_reached"),
            rq_non_relative_path: counter("downstream_rq_non_relative_path"),
            rq_ws_on_non_ws_route: counter("downstream_rq_ws_on_non_ws_route"),
            rq_time: stats.histogram(&format!("http.{stat_prefix}.downstream_rq_time")),
            no_route: counter("no_route"),
            no_cluster: counter("no_cluster"),
            rq_direct_response: counter("rq_direct_response"),
            rq_redirect: counter("rq_redirect"),
            router_rq_total: counter("rq_total"),
        }
    }

    /// Counts a finished request.
    pub fn completed(&self, status: u16, millis: u64) {
        self.rq_completed.inc();
        if let Some(counter) = usize::from(status / 100)
            .checked_sub(1)
            .and_then(|c| self.rq_classes.get(c))
        {
            counter.inc();
        }
        self.rq_time.record(millis);
    }
}
