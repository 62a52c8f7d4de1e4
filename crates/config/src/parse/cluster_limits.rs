//! Circuit breakers and outlier detection.

use std::time::Duration;

use envoy_types::pb;
use pb::envoy::config::cluster::v3 as api;
use pb::envoy::config::core::v3 as core;

use super::wkt::{enum_of, percent, positive_duration, truthy, u32_in, u32_of};
use super::{Cx, Result, TELEMETRY, ignore_set, refuse_set};
use crate::cluster::{CircuitBreakers, OutlierDetection};

pub(super) fn breakers(cx: &mut Cx, value: api::CircuitBreakers) -> Result<CircuitBreakers> {
    let api::CircuitBreakers {
        thresholds,
        per_host_thresholds,
    } = value;
    refuse_set!(cx; per_host_thresholds);
    let parsed = cx.each("thresholds", thresholds, threshold)?;
    // Envoy takes the first one of a priority.
    Ok(parsed.into_iter().flatten().next().unwrap_or_default())
}

fn threshold(
    cx: &mut Cx,
    value: api::circuit_breakers::Thresholds,
) -> Result<Option<CircuitBreakers>> {
    let api::circuit_breakers::Thresholds {
        priority,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
        track_remaining,
        max_connection_pools,
    } = value;
    ignore_set!(cx, TELEMETRY; track_remaining);
    refuse_set!(cx; max_connection_pools);
    let retry_budget = cx.opt("retry_budget", retry_budget, |cx, b| {
        let api::circuit_breakers::thresholds::RetryBudget {
            budget_percent,
            budget_interval,
            min_retry_concurrency,
        } = b;
        refuse_set!(cx; budget_interval);
        Ok((
            percent(cx, "budget_percent", budget_percent)?.unwrap_or(20.0),
            u32_of(min_retry_concurrency).unwrap_or(3),
        ))
    })?;
    if enum_of::<core::RoutingPriority>(cx, "priority", priority)? == core::RoutingPriority::High {
        cx.ignore_here(
            "thresholds of priority HIGH",
            "one set of limits, that of DEFAULT, applies to all requests",
        );
        return Ok(None);
    }
    let d = CircuitBreakers::default();
    Ok(Some(CircuitBreakers {
        max_connections: u32_of(max_connections).unwrap_or(d.max_connections),
        max_pending_requests: u32_of(max_pending_requests).unwrap_or(d.max_pending_requests),
        max_requests: u32_of(max_requests).unwrap_or(d.max_requests),
        max_retries: u32_of(max_retries).unwrap_or(d.max_retries),
        retry_budget,
    }))
}

pub(super) fn outlier(cx: &mut Cx, value: api::OutlierDetection) -> Result<OutlierDetection> {
    let api::OutlierDetection {
        consecutive_5xx,
        interval,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx,
        enforcing_success_rate,
        success_rate_minimum_hosts,
        success_rate_request_volume,
        success_rate_stdev_factor,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure,
        split_external_local_origin_errors,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure,
        enforcing_local_origin_success_rate,
        failure_percentage_threshold,
        enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin,
        failure_percentage_minimum_hosts,
        failure_percentage_request_volume,
        max_ejection_time,
        max_ejection_time_jitter,
        successful_active_health_check_uneject_host,
        monitors,
        always_eject_one_host,
        detect_degraded_hosts,
    } = value;
    for (field, v) in [
        ("enforcing_success_rate", enforcing_success_rate),
        (
            "enforcing_local_origin_success_rate",
            enforcing_local_origin_success_rate,
        ),
        ("enforcing_failure_percentage", enforcing_failure_percentage),
        (
            "enforcing_failure_percentage_local_origin",
            enforcing_failure_percentage_local_origin,
        ),
    ] {
        cx.refuse_if(u32_of(v).unwrap_or(0) > 0, field)?;
    }
    if enforcing_success_rate.is_none() {
        cx.ignore(
            "enforcing_success_rate",
            "success rate ejection",
            "on by default in Envoy and always off under istiod: hosts are not compared here",
        );
    }
    let detect_degraded_hosts = truthy(detect_degraded_hosts);
    refuse_set!(cx; monitors, detect_degraded_hosts);
    ignore_set!(cx, "tunes an ejection rule that is off"; success_rate_minimum_hosts,
        success_rate_request_volume, success_rate_stdev_factor, failure_percentage_threshold,
        failure_percentage_minimum_hosts, failure_percentage_request_volume);
    ignore_set!(cx, "only spreads the ends of ejections"; max_ejection_time_jitter);
    ignore_set!(cx, "there are no active health checks";
        successful_active_health_check_uneject_host);
    let share = |cx: &Cx, field: &str, v, default| u32_in(cx, field, v, 0..=100, default);
    let base = positive_duration(cx, "base_ejection_time", base_ejection_time)?
        .unwrap_or(Duration::from_secs(30));
    let max = positive_duration(cx, "max_ejection_time", max_ejection_time)?
        .unwrap_or(Duration::from_secs(300).max(base));
    if max < base {
        return Err(cx.err_at(
            "max_ejection_time",
            "outlier detector's max_ejection_time cannot be smaller than base_ejection_time",
        ));
    }
    Ok(OutlierDetection {
        consecutive_5xx: u32_of(consecutive_5xx).unwrap_or(5),
        enforcing_consecutive_5xx: share(
            cx,
            "enforcing_consecutive_5xx",
            enforcing_consecutive_5xx,
            100,
        )?,
        consecutive_gateway_failure: u32_of(consecutive_gateway_failure).unwrap_or(5),
        enforcing_consecutive_gateway_failure: share(
            cx,
            "enforcing_consecutive_gateway_failure",
            enforcing_consecutive_gateway_failure,
            0,
        )?,
        split_external_local_origin_errors,
        consecutive_local_origin_failure: u32_of(consecutive_local_origin_failure).unwrap_or(5),
        enforcing_consecutive_local_origin_failure: share(
            cx,
            "enforcing_consecutive_local_origin_failure",
            enforcing_consecutive_local_origin_failure,
            100,
        )?,
        interval: positive_duration(cx, "interval", interval)?.unwrap_or(Duration::from_secs(10)),
        base_ejection_time: base,
        max_ejection_time: max,
        max_ejection_percent: share(cx, "max_ejection_percent", max_ejection_percent, 10)?,
        always_eject_one_host: truthy(always_eject_one_host),
    })
}
