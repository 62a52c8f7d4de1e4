//! ClusterLoadAssignment.

use std::sync::Arc;

use envoy_types::pb;
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::endpoint::v3 as api;

use super::wkt::{
    address, enum_of, fractional_percent, malformed_ip, non_empty, string_fields, struct_str,
    u32_in, u32_of,
};
use super::{Cx, METADATA, Result, TELEMETRY, UNSUPPORTED, ignore_set, refuse_set};
use crate::address::Address;
use crate::cluster::{Endpoint, HealthStatus, LoadAssignment, Locality, LocalityEndpoints};
use crate::route::Percent;

/// Whether host names may stand for addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// Only literal IPs and pipes.
    Literal,
    /// STRICT_DNS and LOGICAL_DNS.
    Resolved,
}

const NO_HEALTH_CHECKS: &str = "clusters with active health checks are refused";

/// `ClusterLoadAssignment`.
pub(super) fn load_assignment(
    cx: &mut Cx,
    value: api::ClusterLoadAssignment,
    names: Names,
) -> Result<LoadAssignment> {
    let api::ClusterLoadAssignment {
        cluster_name,
        endpoints,
        named_endpoints,
        policy,
    } = value;
    refuse_set!(cx; named_endpoints);
    let (overprovisioning_factor, drop_overloads) = cx
        .opt("policy", policy, load_policy)?
        .unwrap_or((140, Vec::new()));
    let localities = cx.each("endpoints", endpoints, |cx, l| locality(cx, l, names))?;
    weights_fit(cx, &localities)?;
    Ok(LoadAssignment {
        cluster_name: non_empty(cx, "cluster_name", cluster_name)?,
        localities,
        overprovisioning_factor,
        drop_overloads,
    })
}

/// Weights add up in 32 bits, per priority and per locality.
fn weights_fit(cx: &Cx, localities: &[LocalityEndpoints]) -> Result<()> {
    let limit = u64::from(u32::MAX);
    let mut by_priority = std::collections::BTreeMap::<u32, u64>::new();
    let mut fits = true;
    for l in localities {
        let sum = by_priority.entry(l.priority).or_default();
        *sum += u64::from(l.weight.unwrap_or(0));
        fits &= *sum <= limit;
        fits &= l.endpoints.iter().map(|e| u64::from(e.weight)).sum::<u64>() <= limit;
    }
    if fits {
        Ok(())
    } else {
        Err(cx.err_at(
            "endpoints",
            "The sum of weights of all endpoints or localities at the same priority can't exceed \
             4294967295",
        ))
    }
}

type Drops = Vec<(Arc<str>, Percent)>;

fn load_policy(cx: &mut Cx, value: api::cluster_load_assignment::Policy) -> Result<(u32, Drops)> {
    let api::cluster_load_assignment::Policy {
        drop_overloads,
        overprovisioning_factor,
        endpoint_stale_after,
        weighted_priority_health,
    } = value;
    refuse_set!(cx; endpoint_stale_after, weighted_priority_health, drop_overloads);
    let drops = cx.each("drop_overloads", drop_overloads, |cx, d| {
        let api::cluster_load_assignment::policy::DropOverload {
            category,
            drop_percentage,
        } = d;
        let share = cx.required("drop_percentage", drop_percentage, |cx, p| {
            fractional_percent(cx, p)
        })?;
        Ok((non_empty(cx, "category", category)?, share))
    })?;
    let factor = u32_in(
        cx,
        "overprovisioning_factor",
        overprovisioning_factor,
        1..=u32::MAX,
        140,
    )?;
    Ok((factor, drops))
}

fn locality(
    cx: &mut Cx,
    value: api::LocalityLbEndpoints,
    names: Names,
) -> Result<LocalityEndpoints> {
    let api::LocalityLbEndpoints {
        locality,
        metadata,
        lb_endpoints,
        load_balancing_weight,
        priority,
        proximity,
        lb_config,
    } = value;
    refuse_set!(cx; lb_config);
    ignore_set!(cx, METADATA; metadata);
    ignore_set!(cx, "read by nobody, Envoy included"; proximity);
    if priority > 128 {
        return Err(cx.err_at("priority", "value must be less than or equal to 128"));
    }
    let core::Locality {
        region,
        zone,
        sub_zone,
    } = locality.unwrap_or_default();
    Ok(LocalityEndpoints {
        locality: Locality {
            region: region.into(),
            zone: zone.into(),
            sub_zone: sub_zone.into(),
        },
        weight: u32_of(load_balancing_weight),
        priority,
        endpoints: cx.each("lb_endpoints", lb_endpoints, |cx, e| endpoint(cx, e, names))?,
    })
}

fn endpoint(cx: &mut Cx, value: api::LbEndpoint, names: Names) -> Result<Endpoint> {
    use api::lb_endpoint::HostIdentifier as H;
    use core::HealthStatus as S;
    let api::LbEndpoint {
        health_status,
        metadata,
        load_balancing_weight,
        host_identifier,
    } = value;
    let health = match enum_of::<S>(cx, "health_status", health_status)? {
        S::Unknown => HealthStatus::Unknown,
        S::Healthy => HealthStatus::Healthy,
        S::Unhealthy => HealthStatus::Unhealthy,
        S::Draining => HealthStatus::Draining,
        S::Timeout => HealthStatus::Timeout,
        S::Degraded => HealthStatus::Degraded,
    };
    let weight = u32_in(
        cx,
        "load_balancing_weight",
        load_balancing_weight,
        1..=u32::MAX,
        1,
    )?;
    let core::Metadata {
        mut filter_metadata,
        typed_filter_metadata,
    } = metadata.unwrap_or_default();
    ignore_set!(cx, METADATA; typed_filter_metadata);
    let istio_workload = filter_metadata
        .get("istio")
        .and_then(|s| struct_str(s, "workload"))
        .map(Arc::from);
    let transport_socket_match = filter_metadata
        .remove("envoy.transport_socket_match")
        .map(string_fields)
        .unwrap_or_default();
    let (address, additional_addresses, hostname) = match host_identifier {
        Some(H::Endpoint(e)) => cx.field("endpoint", |cx| host(cx, e, names))?,
        Some(H::EndpointName(_)) => return Err(cx.err_at("endpoint_name", UNSUPPORTED)),
        None => return Err(cx.err("host_identifier: is required")),
    };
    Ok(Endpoint {
        address,
        additional_addresses,
        hostname,
        weight,
        health,
        transport_socket_match,
        istio_workload,
    })
}

fn host(
    cx: &mut Cx,
    value: api::Endpoint,
    names: Names,
) -> Result<(Address, Vec<Address>, Arc<str>)> {
    let api::Endpoint {
        address,
        health_check_config,
        hostname,
        additional_addresses,
        observability_name,
    } = value;
    ignore_set!(cx, NO_HEALTH_CHECKS; health_check_config);
    ignore_set!(cx, TELEMETRY; observability_name);
    ignore_set!(cx, "connections use the first address"; additional_addresses);
    let main = cx.required("address", address, |cx, a| literal(cx, a, names))?;
    let more = cx.each("additional_addresses", additional_addresses, |cx, a| {
        let api::endpoint::AdditionalAddress { address } = a;
        cx.required("address", address, |cx, a| literal(cx, a, names))
    })?;
    Ok((main, more, hostname.into()))
}

fn literal(cx: &mut Cx, value: core::Address, names: Names) -> Result<Address> {
    match (address(cx, value)?, names) {
        (Address::Dns { host, .. }, Names::Literal) => {
            Err(cx.err_at("socket_address.address", malformed_ip(&host)))
        }
        (a, _) => Ok(a),
    }
}
