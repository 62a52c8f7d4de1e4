//! When an attempt is tried again, and how long to wait.

use std::time::Duration;

use outrigger_config::route::RetryPolicy;

use crate::http::headers::Headers;
use crate::http::route::header_matches;
use crate::http::upstream::Reset;

/// How an attempt ended without an answer for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptFailure {
    /// No connection.
    Connect,
    /// The stream was reset; whether the request had been written.
    Reset(Reset, bool),
    /// The per-try timeout passed.
    PerTryTimeout,
}

/// Whether the policy retries after a failure.
#[must_use]
pub fn on_failure(policy: &RetryPolicy, failure: AttemptFailure) -> bool {
    let on = &policy.retry_on;
    if on.five_xx || on.gateway_error {
        return true;
    }
    match failure {
        AttemptFailure::Connect => on.connect_failure || on.reset || on.reset_before_request,
        AttemptFailure::Reset(reset, sent) => {
            on.reset
                || (on.refused_stream && reset == Reset::RemoteRefused)
                || (on.reset_before_request && !sent)
        }
        AttemptFailure::PerTryTimeout => on.reset,
    }
}

/// Whether the policy retries an answer. gRPC conditions look at a status in the head (trailers-only answers).
#[must_use]
pub fn on_response(policy: &RetryPolicy, response: &Headers) -> bool {
    let on = &policy.retry_on;
    let status = response.status();
    if response.contains(b"x-envoy-overloaded") {
        return false;
    }
    if response.contains(b"x-envoy-ratelimited") {
        return on.envoy_ratelimited;
    }
    let grpc = response.get(b"grpc-status").unwrap_or_default();
    (on.five_xx && status >= 500)
        || (on.gateway_error && matches!(status, 502..=504))
        || (on.retriable_4xx && status == 409)
        || (on.retriable_status_codes && policy.retriable_status_codes.contains(&status))
        || (on.retriable_headers
            && policy
                .retriable_headers
                .iter()
                .any(|m| header_matches(m, response)))
        || match grpc {
            b"1" => on.grpc_cancelled,
            b"4" => on.grpc_deadline_exceeded,
            b"8" => on.grpc_resource_exhausted,
            b"13" => on.grpc_internal,
            b"14" => on.grpc_unavailable,
            _ => false,
        }
}

/// Back-off before retry `k` (1 = first): full jitter over `base * (2^k - 1)`, capped.
#[must_use]
pub fn back_off(policy: &RetryPolicy, k: u32, random: u64) -> Duration {
    let factor = 2_u32.saturating_pow(k.min(16)).saturating_sub(1).max(1);
    let window = policy
        .base_interval
        .saturating_mul(factor)
        .min(policy.max_interval);
    let micros = window.as_micros().max(1) as u64;
    Duration::from_micros(random % micros)
}
