//! Load balancing of a cluster: policy, slow start, common settings.

use envoy_types::pb;
use pb::envoy::config::cluster::v3 as api;
use pb::envoy::config::core::v3 as core;

use super::wkt::{enum_of, ignore_runtime_key, percent, positive_duration, u32_in};
use super::{Cx, Result, UNSUPPORTED, ignore_set, refuse_set};
use crate::cluster::{Discovery, LbPolicy, SlowStart};

pub(super) fn lb_policy_of(
    cx: &mut Cx,
    policy: i32,
    config: Option<api::cluster::LbConfig>,
    discovery: &Discovery,
) -> Result<(LbPolicy, Option<SlowStart>)> {
    use api::cluster::{LbConfig as C, LbPolicy as P};
    let policy = enum_of::<P>(cx, "lb_policy", policy)?;
    let provided = policy == P::ClusterProvided;
    match (matches!(discovery, Discovery::OriginalDst { .. }), provided) {
        (true, false) => {
            return Err(cx.err_at(
                "lb_policy",
                format!(
                    "cluster: LB policy {} is not valid for Cluster type ORIGINAL_DST. Only \
                     'CLUSTER_PROVIDED' is allowed with cluster type 'ORIGINAL_DST'",
                    policy.as_str_name()
                ),
            ));
        }
        (false, true) => {
            return Err(cx.err_at(
                "lb_policy",
                "cluster: LB policy CLUSTER_PROVIDED is allowed only for clusters that provide one",
            ));
        }
        _ => {}
    }
    let mut slow_start = None;
    let lb = match (policy, config) {
        (P::RoundRobin, Some(C::RoundRobinLbConfig(c))) => {
            let api::cluster::RoundRobinLbConfig { slow_start_config } = c;
            slow_start = cx.opt(
                "round_robin_lb_config.slow_start_config",
                slow_start_config,
                slow_start_of,
            )?;
            LbPolicy::RoundRobin
        }
        (P::LeastRequest, Some(C::LeastRequestLbConfig(c))) => {
            cx.field("least_request_lb_config", |cx| {
                let api::cluster::LeastRequestLbConfig {
                    choice_count,
                    active_request_bias,
                    slow_start_config,
                } = c;
                refuse_set!(cx; active_request_bias);
                slow_start = cx.opt("slow_start_config", slow_start_config, slow_start_of)?;
                Ok(LbPolicy::LeastRequest {
                    choice_count: u32_in(cx, "choice_count", choice_count, 2..=u32::MAX, 2)?,
                })
            })?
        }
        (P::RingHash, Some(C::RingHashLbConfig(c))) => {
            cx.field("ring_hash_lb_config", |cx| ring_hash(cx, c))?
        }
        (P::Maglev, Some(C::MaglevLbConfig(c))) => {
            cx.field("maglev_lb_config", |cx| maglev(cx, c))?
        }
        (P::RoundRobin, _) => LbPolicy::RoundRobin,
        (P::LeastRequest, _) => LbPolicy::LeastRequest { choice_count: 2 },
        (P::Random, _) => LbPolicy::Random,
        (P::RingHash, _) => LbPolicy::RingHash {
            minimum_ring_size: 1024,
            maximum_ring_size: MAX_RING,
        },
        (P::Maglev, _) => LbPolicy::Maglev { table_size: 65_537 },
        (P::ClusterProvided, _) => LbPolicy::ClusterProvided,
        (P::LoadBalancingPolicyConfig, _) => return Err(cx.err_at("lb_policy", UNSUPPORTED)),
    };
    Ok((lb, slow_start))
}

/// Largest ring.
const MAX_RING: u64 = 8 * 1024 * 1024;

fn ring_hash(cx: &Cx, value: api::cluster::RingHashLbConfig) -> Result<LbPolicy> {
    let api::cluster::RingHashLbConfig {
        minimum_ring_size,
        hash_function,
        maximum_ring_size,
    } = value;
    refuse_set!(cx; hash_function);
    let min = minimum_ring_size.map_or(1024, |v| v.value);
    let max = maximum_ring_size.map_or(MAX_RING, |v| v.value);
    if min > MAX_RING || max > MAX_RING {
        return Err(cx.err("ring sizes must be less than or equal to 8388608"));
    }
    if min > max {
        return Err(cx.err(format!(
            "ring hash: minimum_ring_size ({min}) > maximum_ring_size ({max})"
        )));
    }
    Ok(LbPolicy::RingHash {
        minimum_ring_size: min,
        maximum_ring_size: max,
    })
}

fn maglev(cx: &Cx, value: api::cluster::MaglevLbConfig) -> Result<LbPolicy> {
    let api::cluster::MaglevLbConfig { table_size } = value;
    let table_size = table_size.map_or(65_537, |v| v.value);
    if table_size > 5_000_011 {
        return Err(cx.err_at("table_size", "value must be less than or equal to 5000011"));
    }
    let prime = table_size >= 2
        && (2..)
            .take_while(|d| d * d <= table_size)
            .all(|d| !table_size.is_multiple_of(d));
    if prime {
        Ok(LbPolicy::Maglev { table_size })
    } else {
        Err(cx.err_at(
            "table_size",
            "The table size of maglev must be prime number",
        ))
    }
}

fn slow_start_of(cx: &mut Cx, value: api::cluster::SlowStartConfig) -> Result<SlowStart> {
    cx.ignore_here(
        "slow_start_config",
        "a new host gets its full share at once",
    );
    let api::cluster::SlowStartConfig {
        slow_start_window,
        aggression,
        min_weight_percent,
    } = value;
    let aggression = match aggression {
        None => 1.0,
        Some(core::RuntimeDouble {
            default_value,
            runtime_key,
        }) => {
            // "(" is istiod's way to satisfy the field's own rule; it names no key.
            if runtime_key != "(" {
                ignore_runtime_key(cx, &runtime_key);
            }
            default_value
        }
    };
    if !aggression.is_finite() || aggression <= 0.0 {
        return Err(cx.err_at("aggression", "value must be greater than 0"));
    }
    Ok(SlowStart {
        window: positive_duration(cx, "slow_start_window", slow_start_window)?
            .ok_or_else(|| cx.err_at("slow_start_window", "value is required"))?,
        aggression,
        min_weight_percent: percent(cx, "min_weight_percent", min_weight_percent)?.unwrap_or(10.0),
    })
}

pub(super) struct CommonLb {
    pub(super) panic_threshold: f64,
    pub(super) locality_weighted: bool,
    pub(super) close_on_host_set_change: bool,
}

pub(super) fn common_lb(cx: &mut Cx, value: api::cluster::CommonLbConfig) -> Result<CommonLb> {
    use api::cluster::common_lb_config::{LocalityConfigSpecifier as L, ZoneAwareLbConfig};
    let api::cluster::CommonLbConfig {
        healthy_panic_threshold,
        update_merge_window,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
        locality_config_specifier,
    } = value;
    refuse_set!(cx; consistent_hashing_lb_config);
    ignore_set!(cx, "updates are applied at once"; update_merge_window);
    ignore_set!(cx, "connections to hosts that left are closed, the others go on";
        close_connections_on_host_set_change);
    ignore_set!(cx, "there are no active health checks"; ignore_new_hosts_until_first_hc);
    ignore_set!(cx, "no filter overrides the chosen host"; override_host_status);
    let locality_weighted = match locality_config_specifier {
        None => false,
        Some(L::LocalityWeightedLbConfig(_)) => true,
        Some(L::ZoneAwareLbConfig(ZoneAwareLbConfig {
            routing_enabled,
            min_cluster_size,
            fail_traffic_on_panic,
        })) => {
            refuse_set!(cx; fail_traffic_on_panic);
            ignore_set!(cx, "endpoints of every zone are chosen from: zone-aware routing is not done";
                routing_enabled, min_cluster_size);
            false
        }
    };
    Ok(CommonLb {
        panic_threshold: percent(cx, "healthy_panic_threshold", healthy_panic_threshold)?
            .unwrap_or(50.0),
        locality_weighted,
        close_on_host_set_change: close_connections_on_host_set_change,
    })
}
