//! `RetryPolicy`.

use std::time::Duration;

use envoy_types::pb;
use pb::envoy::config::route::v3 as api;

use super::wkt::{duration, extension, positive_duration, timer, u32_of, unregistered};
use super::{Cx, Result, matcher, refuse_set};
use crate::route::{RetryOn, RetryPolicy};

const BASE_INTERVAL: Duration = Duration::from_millis(25);

/// `RetryPolicy` with defaults applied.
pub(super) fn retry_policy(cx: &mut Cx, value: api::RetryPolicy) -> Result<RetryPolicy> {
    let api::RetryPolicy {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        host_selection_retry_max_attempts,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = value;
    refuse_set!(cx; per_try_idle_timeout, retry_options_predicates, rate_limited_retry_back_off,
        retriable_request_headers, refresh_cluster_on_retry);
    let previous_priorities = cx
        .opt("retry_priority", retry_priority, priority)?
        .is_some();
    let predicates = cx.each("retry_host_predicate", retry_host_predicate, host_predicate)?;
    let (base_interval, max_interval) = cx
        .opt("retry_back_off", retry_back_off, back_off)?
        .unwrap_or((BASE_INTERVAL, BASE_INTERVAL * 10));
    Ok(RetryPolicy {
        retry_on: conditions(cx, &retry_on),
        num_retries: u32_of(num_retries).unwrap_or(1),
        per_try_timeout: timer(cx, "per_try_timeout", per_try_timeout, None)?,
        per_try_idle_timeout: timer(cx, "per_try_idle_timeout", per_try_idle_timeout, None)?,
        retriable_status_codes: cx.each(
            "retriable_status_codes",
            retriable_status_codes,
            |cx, code| {
                u16::try_from(code)
                    .ok()
                    .filter(|c| (100..1000).contains(c))
                    .ok_or_else(|| cx.err(format!("invalid status code {code}")))
            },
        )?,
        retriable_headers: cx.each("retriable_headers", retriable_headers, matcher::header)?,
        base_interval,
        max_interval,
        avoid_previous_hosts: !predicates.is_empty(),
        host_selection_retry_max_attempts: u32::try_from(
            host_selection_retry_max_attempts.clamp(0, i64::from(u32::MAX)),
        )
        .ok()
        .filter(|n| *n > 0)
        .unwrap_or(1),
        previous_priorities,
    })
}

fn priority(cx: &mut Cx, value: api::retry_policy::RetryPriority) -> Result<()> {
    use pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
    let api::retry_policy::RetryPriority { name, config_type } = value;
    let any = config_type.map(|api::retry_policy::retry_priority::ConfigType::TypedConfig(a)| a);
    let ext = extension(cx, &name, any)?;
    match ext.type_name.as_str() {
        "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig" => {
            let PreviousPrioritiesConfig { update_frequency } = ext.decode(cx)?;
            if update_frequency <= 0 {
                return Err(cx.err_at("update_frequency", "value must be greater than 0"));
            }
            if update_frequency != 2 {
                cx.ignore(
                    "update_frequency",
                    "update_frequency",
                    "tried priorities are left aside after every second attempt",
                );
            }
            Ok(())
        }
        t => Err(unregistered(cx, &name, t)),
    }
}

fn host_predicate(cx: &mut Cx, value: api::retry_policy::RetryHostPredicate) -> Result<()> {
    let api::retry_policy::RetryHostPredicate { name, config_type } = value;
    let any =
        config_type.map(|api::retry_policy::retry_host_predicate::ConfigType::TypedConfig(a)| a);
    let ext = extension(cx, &name, any)?;
    match ext.type_name.as_str() {
        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" => Ok(()),
        t => Err(unregistered(cx, &name, t)),
    }
}

fn back_off(cx: &mut Cx, value: api::retry_policy::RetryBackOff) -> Result<(Duration, Duration)> {
    let api::retry_policy::RetryBackOff {
        base_interval,
        max_interval,
    } = value;
    let base = positive_duration(cx, "base_interval", base_interval)?
        .ok_or_else(|| cx.err_at("base_interval", "value is required"))?
        .max(Duration::from_millis(1));
    let max = duration(cx, "max_interval", max_interval)?.unwrap_or(base.saturating_mul(10));
    if max < base {
        return Err(cx.err_at(
            "max_interval",
            "retry_policy.max_interval must greater than or equal to the base_interval",
        ));
    }
    Ok((base, max))
}

/// Tokens of `retry_on`. Envoy skips tokens that it does not know.
fn conditions(cx: &mut Cx, retry_on: &str) -> RetryOn {
    let mut on = RetryOn::default();
    for token in retry_on.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        match token {
            "5xx" => on.five_xx = true,
            "gateway-error" => on.gateway_error = true,
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "reset" => on.reset = true,
            "reset-before-request" => on.reset_before_request = true,
            "retriable-4xx" => on.retriable_4xx = true,
            "retriable-status-codes" => on.retriable_status_codes = true,
            "retriable-headers" => on.retriable_headers = true,
            "envoy-ratelimited" => on.envoy_ratelimited = true,
            "cancelled" => on.grpc_cancelled = true,
            "deadline-exceeded" => on.grpc_deadline_exceeded = true,
            "internal" => on.grpc_internal = true,
            "resource-exhausted" => on.grpc_resource_exhausted = true,
            "unavailable" => on.grpc_unavailable = true,
            "http3-post-connect-failure" => {
                cx.ignore("retry_on", token, "there are no HTTP/3 upstreams");
            }
            other => cx.ignore(
                "retry_on",
                other,
                "not a retry condition: Envoy skips it too",
            ),
        }
    }
    on
}
