//! HTTP filters: those that run, and those that may be skipped.

use std::sync::Arc;

use envoy_types::pb;
use pb::envoy::extensions::filters::common::fault::v3 as common_fault;
use pb::envoy::extensions::filters::http as f;
use pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use prost::Message;

use super::matcher::{header, string};
use super::wkt::{
    bool_or, extension, fractional_percent, non_empty, positive_duration, runtime_percent, truthy,
    u32_of, unregistered,
};
use super::{Cx, Result, TELEMETRY, UNSUPPORTED, ignore_set, refuse_set};
use crate::http::{Fault, FaultAbort, HttpFilter, HttpFilterKind, IstioAlpn};
use crate::route::{CorsPolicy, Percent};

/// `istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`.
#[derive(Clone, PartialEq, Message)]
struct AlpnFilterConfig {
    #[prost(message, repeated, tag = "1")]
    alpn_override: Vec<AlpnOverride>,
}

/// `FilterConfig.AlpnOverride`.
#[derive(Clone, PartialEq, Message)]
struct AlpnOverride {
    #[prost(int32, tag = "1")]
    upstream_protocol: i32,
    #[prost(string, repeated, tag = "2")]
    alpn_override: Vec<String>,
}

/// One entry of `http_filters`.
enum Entry {
    Filter(HttpFilter),
    Skipped,
    Router { suppress_envoy_headers: bool },
}

/// `http_filters`: the filters before the router, and `router.suppress_envoy_headers`.
pub(super) fn http_filters(
    cx: &mut Cx,
    filters: Vec<hcm::HttpFilter>,
) -> Result<(Vec<HttpFilter>, bool)> {
    let last = filters.len().saturating_sub(1);
    let mut kept = Vec::with_capacity(filters.len());
    let mut router = None;
    for (i, filter) in filters.into_iter().enumerate() {
        let name = filter.name.clone();
        let entry = cx.item("http_filters", i, |cx| http_filter(cx, filter))?;
        match entry {
            Entry::Router {
                suppress_envoy_headers,
            } if i == last => router = Some(suppress_envoy_headers),
            Entry::Router { .. } => {
                return Err(cx.err_at(
                    &format!("http_filters[{i}]"),
                    format!(
                        "Error: terminal filter named {name} of type envoy.filters.http.router \
                         must be the last filter in a http filter chain."
                    ),
                ));
            }
            Entry::Filter(_) | Entry::Skipped if i == last => {
                return Err(cx.err_at(
                    &format!("http_filters[{i}]"),
                    format!(
                        "Error: non-terminal filter named {name} of type {name} is the last \
                         filter in a http filter chain."
                    ),
                ));
            }
            Entry::Filter(f) => kept.push(f),
            Entry::Skipped => {}
        }
    }
    match router {
        Some(suppress) => Ok((kept, suppress)),
        None => Err(cx.err_at(
            "http_filters",
            "no terminal filter: envoy.filters.http.router",
        )),
    }
}

fn http_filter(cx: &mut Cx, value: hcm::HttpFilter) -> Result<Entry> {
    let hcm::HttpFilter {
        name,
        is_optional,
        disabled,
        config_type,
    } = value;
    let name = non_empty(cx, "name", name)?;
    let any = match config_type {
        Some(hcm::http_filter::ConfigType::TypedConfig(any)) => Some(any),
        Some(hcm::http_filter::ConfigType::ConfigDiscovery(_)) => {
            return Err(cx.err_at("config_discovery", UNSUPPORTED));
        }
        None => None,
    };
    cx.field("typed_config", |cx| {
        let ext = extension(cx, &name, any)?;
        let kind = match ext.type_name.as_str() {
            "envoy.extensions.filters.http.router.v3.Router" => {
                let message = ext.decode(cx)?;
                return router(cx, message);
            }
            "envoy.extensions.filters.http.cors.v3.Cors" => {
                let f::cors::v3::Cors {} = ext.decode(cx)?;
                HttpFilterKind::Cors
            }
            "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
                let message: f::fault::v3::HttpFault = ext.decode(cx)?;
                let empty = message == f::fault::v3::HttpFault::default();
                let parsed = fault(cx, message)?;
                HttpFilterKind::Fault((!empty).then(|| Arc::new(parsed)))
            }
            "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" => {
                let f::grpc_stats::v3::FilterConfig {
                    emit_filter_state: _,
                    enable_upstream_stats: _,
                    replace_dots_in_grpc_service_name: _,
                    per_method_stat_specifier: _,
                } = ext.decode(cx)?;
                HttpFilterKind::GrpcStats
            }
            "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" => {
                let message = ext.decode(cx)?;
                HttpFilterKind::IstioAlpn(Arc::new(istio_alpn(cx, message)?))
            }
            "stats.PluginConfig" => {
                cx.ignore_here(&name, TELEMETRY);
                return Ok(Entry::Skipped);
            }
            "io.istio.http.peer_metadata.Config" => {
                cx.ignore_here(
                    &name,
                    "telemetry only: peer metadata is neither sent nor read; a peer's headers are removed",
                );
                HttpFilterKind::PeerMetadata
            }
            "envoy.extensions.filters.http.compressor.v3.Compressor" if cx.in_bootstrap => {
                cx.ignore_here(
                    &name,
                    "content coding is negotiated: the proxy's own pages are answered uncompressed",
                );
                return Ok(Entry::Skipped);
            }
            t if is_optional && !t.starts_with("envoy.") => {
                cx.ignore_here(&name, "is_optional: an unknown filter is skipped");
                return Ok(Entry::Skipped);
            }
            t if disabled => {
                let _ = t;
                cx.ignore_here(&name, "disabled: a route that enables it is refused");
                return Ok(Entry::Skipped);
            }
            t => return Err(unregistered(cx, &name, t)),
        };
        Ok(Entry::Filter(HttpFilter {
            name: Arc::clone(&name),
            disabled,
            kind,
        }))
    })
}

fn router(cx: &mut Cx, value: f::router::v3::Router) -> Result<Entry> {
    let f::router::v3::Router {
        dynamic_stats,
        start_child_span,
        upstream_log,
        upstream_log_options,
        suppress_envoy_headers,
        strict_check_headers,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats,
        upstream_http_filters,
        reject_connect_request_early_data,
    } = value;
    let reject_connect_request_early_data = truthy(reject_connect_request_early_data);
    refuse_set!(cx; upstream_log, upstream_log_options, strict_check_headers,
        respect_expected_rq_timeout, upstream_http_filters, reject_connect_request_early_data);
    ignore_set!(cx, TELEMETRY; dynamic_stats, start_child_span,
        suppress_grpc_request_failure_code_stats);
    Ok(Entry::Router {
        suppress_envoy_headers,
    })
}

fn istio_alpn(cx: &Cx, value: AlpnFilterConfig) -> Result<IstioAlpn> {
    let AlpnFilterConfig { alpn_override } = value;
    let mut out = IstioAlpn::default();
    for AlpnOverride {
        upstream_protocol,
        alpn_override,
    } in alpn_override
    {
        let list = match upstream_protocol {
            0 => &mut out.http10,
            1 => &mut out.http11,
            2 => &mut out.http2,
            _ => {
                return Err(cx.err_at(
                    "alpn_override.upstream_protocol",
                    "value must be one of the defined enum values",
                ));
            }
        };
        // As everywhere: its preamble is never sent, so the name is never offered.
        *list = alpn_override
            .into_iter()
            .filter(|p| p != "istio-peer-exchange")
            .map(Arc::from)
            .collect();
    }
    Ok(out)
}

/// `CorsPolicy` of `typed_per_filter_config`.
pub(super) fn cors_policy(cx: &mut Cx, value: f::cors::v3::CorsPolicy) -> Result<CorsPolicy> {
    let f::cors::v3::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    } = value;
    let allow_private_network_access = truthy(allow_private_network_access);
    refuse_set!(cx; allow_private_network_access);
    ignore_set!(cx, TELEMETRY; shadow_enabled);
    Ok(CorsPolicy {
        allow_origin: cx.each(
            "allow_origin_string_match",
            allow_origin_string_match,
            string,
        )?,
        allow_methods: allow_methods.into(),
        allow_headers: allow_headers.into(),
        expose_headers: expose_headers.into(),
        max_age: max_age.into(),
        allow_credentials: truthy(allow_credentials),
        enabled: cx
            .opt("filter_enabled", filter_enabled, runtime_percent)?
            .flatten(),
        forward_not_matching_preflights: bool_or(forward_not_matching_preflights, true),
    })
}

/// `HTTPFault`.
pub(super) fn fault(cx: &mut Cx, value: f::fault::v3::HttpFault) -> Result<Fault> {
    let f::fault::v3::HttpFault {
        delay,
        abort,
        upstream_cluster,
        headers,
        downstream_nodes,
        max_active_faults,
        response_rate_limit,
        delay_percent_runtime,
        abort_percent_runtime,
        delay_duration_runtime,
        abort_http_status_runtime,
        max_active_faults_runtime,
        response_rate_limit_percent_runtime,
        abort_grpc_status_runtime,
        disable_downstream_cluster_stats,
        filter_metadata,
    } = value;
    refuse_set!(cx; upstream_cluster, downstream_nodes, response_rate_limit, delay_percent_runtime,
        abort_percent_runtime, delay_duration_runtime, abort_http_status_runtime,
        max_active_faults_runtime, response_rate_limit_percent_runtime, abort_grpc_status_runtime);
    ignore_set!(cx, TELEMETRY; disable_downstream_cluster_stats, filter_metadata);
    Ok(Fault {
        delay: cx.opt("delay", delay, fault_delay)?,
        abort: cx.opt("abort", abort, fault_abort)?,
        max_active_faults: u32_of(max_active_faults),
        headers: cx.each("headers", headers, header)?,
    })
}

/// An unset percentage is zero of a hundred.
const NEVER: Percent = Percent {
    numerator: 0,
    denominator: 100,
};

fn fault_delay(
    cx: &mut Cx,
    value: common_fault::FaultDelay,
) -> Result<(std::time::Duration, Percent)> {
    use common_fault::fault_delay::FaultDelaySecifier as D;
    let common_fault::FaultDelay {
        percentage,
        fault_delay_secifier,
    } = value;
    let delay = match fault_delay_secifier {
        Some(D::FixedDelay(d)) => positive_duration(cx, "fixed_delay", Some(d))?,
        Some(D::HeaderDelay(_)) => return Err(cx.err_at("header_delay", UNSUPPORTED)),
        None => None,
    }
    .ok_or_else(|| cx.err("fault_delay_secifier: is required"))?;
    let share = cx.opt("percentage", percentage, |cx, p| fractional_percent(cx, p))?;
    Ok((delay, share.unwrap_or(NEVER)))
}

fn fault_abort(cx: &mut Cx, value: f::fault::v3::FaultAbort) -> Result<(FaultAbort, Percent)> {
    use f::fault::v3::fault_abort::ErrorType as E;
    let f::fault::v3::FaultAbort {
        percentage,
        response_body,
        error_type,
    } = value;
    refuse_set!(cx; response_body);
    let abort = match error_type {
        Some(E::HttpStatus(s)) => FaultAbort::Http(
            u16::try_from(s)
                .ok()
                .filter(|s| (200..600).contains(s))
                .ok_or_else(|| cx.err_at("http_status", "value must be inside range [200, 600)"))?,
        ),
        Some(E::GrpcStatus(s)) => FaultAbort::Grpc(s),
        Some(E::HeaderAbort(_)) => return Err(cx.err_at("header_abort", UNSUPPORTED)),
        None => return Err(cx.err("error_type: is required")),
    };
    let share = cx.opt("percentage", percentage, |cx, p| fractional_percent(cx, p))?;
    Ok((abort, share.unwrap_or(NEVER)))
}
