//! Route actions: forward, redirect, direct response.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb;
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::route::v3 as api;
use pb::google::protobuf as gp;

use super::matcher::{header_name, string, substitution};
use super::retry::retry_policy;
use super::route::{mutations, per_filter};
use super::wkt::{
    bool_or, duration, enum_of, inline_data, non_empty, optional_str, port, runtime_percent, timer,
    truthy, u32_of,
};
use super::{Cx, Result, TELEMETRY, UNSUPPORTED, ignore_set, refuse_set};
use crate::route::{
    ClusterSpecifier, CorsPolicy, DirectResponse, Forward, HashPolicy, HashPolicyKind, HostRewrite,
    MaxStreamDuration, Mirror, Redirect, RedirectPath, WeightedCluster,
};

const ROUTE_TIMEOUT: Duration = Duration::from_secs(15);

/// `RouteAction`: forward to a cluster.
pub(super) fn forward(cx: &mut Cx, value: api::RouteAction, route: &str) -> Result<Forward> {
    use api::route_action::ClusterNotFoundResponseCode as C;
    let api::RouteAction {
        cluster_not_found_response_code,
        metadata_match,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout,
        early_data_policy,
        retry_policy: retry,
        retry_policy_typed_config,
        request_mirror_policies,
        priority,
        rate_limits,
        include_vh_rate_limits,
        hash_policy: hash_policies,
        cors,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = value;
    let include_vh_rate_limits = truthy(include_vh_rate_limits);
    refuse_set!(cx; metadata_match, path_rewrite_policy, path_rewrite, flush_timeout,
        early_data_policy, retry_policy_typed_config, rate_limits, include_vh_rate_limits,
        grpc_timeout_offset, internal_redirect_policy, internal_redirect_action,
        max_internal_redirects, hedge_policy);
    if !prefix_rewrite.is_empty() && regex_rewrite.is_some() {
        return Err(
            cx.err("Specify only one of prefix_rewrite, regex_rewrite or path_rewrite_policy")
        );
    }
    let max_stream_duration = stream_duration(cx, max_stream_duration, max_grpc_timeout)?;
    Ok(Forward {
        cluster: cluster(cx, cluster_specifier, route)?,
        cluster_not_found_response_code: match enum_of::<C>(
            cx,
            "cluster_not_found_response_code",
            cluster_not_found_response_code,
        )? {
            C::ServiceUnavailable => 503,
            C::NotFound => 404,
            C::InternalServerError => 500,
        },
        prefix_rewrite: optional_str(prefix_rewrite),
        regex_rewrite: cx.opt("regex_rewrite", regex_rewrite, substitution)?,
        host_rewrite: host_rewrite(cx, host_rewrite_specifier)?,
        append_x_forwarded_host,
        timeout: timer(cx, "timeout", timeout, Some(ROUTE_TIMEOUT))?,
        idle_timeout: inherited(cx, "idle_timeout", idle_timeout)?,
        max_stream_duration,
        retry_policy: cx.opt("retry_policy", retry, retry_policy)?.map(Arc::new),
        mirrors: cx.each("request_mirror_policies", request_mirror_policies, mirror)?,
        hash_policy: cx.each("hash_policy", hash_policies, hash_policy)?,
        upgrades: upgrades(cx, upgrade_configs)?,
        high_priority: enum_of::<core::RoutingPriority>(cx, "priority", priority)?
            == core::RoutingPriority::High,
        cors: cx.opt("cors", cors, cors_of_route)?.map(Arc::new),
    })
}

/// A timer of which unset inherits and zero switches off.
fn inherited(
    cx: &Cx,
    field: &str,
    value: Option<gp::Duration>,
) -> Result<Option<Option<Duration>>> {
    Ok(duration(cx, field, value)?.map(|d| (!d.is_zero()).then_some(d)))
}

fn stream_duration(
    cx: &mut Cx,
    value: Option<api::route_action::MaxStreamDuration>,
    max_grpc_timeout: Option<gp::Duration>,
) -> Result<MaxStreamDuration> {
    let deprecated = inherited(cx, "max_grpc_timeout", max_grpc_timeout)?;
    let parsed = cx.opt("max_stream_duration", value, |cx, v| {
        let api::route_action::MaxStreamDuration {
            max_stream_duration,
            grpc_timeout_header_max,
            grpc_timeout_header_offset,
        } = v;
        refuse_set!(cx; grpc_timeout_header_offset);
        Ok(MaxStreamDuration {
            max_stream_duration: inherited(cx, "max_stream_duration", max_stream_duration)?,
            grpc_timeout_header_max: inherited(
                cx,
                "grpc_timeout_header_max",
                grpc_timeout_header_max,
            )?,
        })
    })?;
    let mut out = parsed.unwrap_or_default();
    out.grpc_timeout_header_max = out.grpc_timeout_header_max.or(deprecated);
    Ok(out)
}

fn cluster(
    cx: &mut Cx,
    value: Option<api::route_action::ClusterSpecifier>,
    route: &str,
) -> Result<ClusterSpecifier> {
    use api::route_action::ClusterSpecifier as C;
    Ok(match value {
        Some(C::Cluster(name)) => ClusterSpecifier::Cluster(non_empty(cx, "cluster", name)?),
        Some(C::ClusterHeader(h)) => {
            ClusterSpecifier::Header(header_name(cx, "cluster_header", h)?)
        }
        Some(C::WeightedClusters(w)) => {
            ClusterSpecifier::Weighted(cx.field("weighted_clusters", |cx| weighted(cx, w, route))?)
        }
        Some(C::ClusterSpecifierPlugin(_)) => {
            return Err(cx.err_at("cluster_specifier_plugin", UNSUPPORTED));
        }
        Some(C::InlineClusterSpecifierPlugin(_)) => {
            return Err(cx.err_at("inline_cluster_specifier_plugin", UNSUPPORTED));
        }
        None => return Err(cx.err("cluster_specifier: is required")),
    })
}

fn weighted(cx: &mut Cx, value: api::WeightedCluster, route: &str) -> Result<Vec<WeightedCluster>> {
    let api::WeightedCluster {
        clusters,
        total_weight,
        runtime_key_prefix,
        random_value_specifier,
    } = value;
    refuse_set!(cx; runtime_key_prefix, random_value_specifier);
    if clusters.is_empty() {
        return Err(cx.err_at("clusters", "value must contain at least 1 item(s)"));
    }
    let clusters = cx.each("clusters", clusters, cluster_weight)?;
    let sum: u64 = clusters.iter().map(|c| u64::from(c.weight)).sum();
    if sum == 0 {
        return Err(cx.err("Sum of weights in the weighted_cluster must be greater than 0."));
    }
    if sum > u64::from(u32::MAX) {
        return Err(cx.err(format!(
            "The sum of weights of all weighted clusters of route {route} exceeds {}",
            u32::MAX
        )));
    }
    if u32_of(total_weight).is_some_and(|t| u64::from(t) != sum) {
        return Err(cx.err_at("total_weight", "Sum of weights must equal total_weight"));
    }
    Ok(clusters)
}

fn cluster_weight(
    cx: &mut Cx,
    value: api::weighted_cluster::ClusterWeight,
) -> Result<WeightedCluster> {
    use api::weighted_cluster::cluster_weight::HostRewriteSpecifier as H;
    let api::weighted_cluster::ClusterWeight {
        name,
        cluster_header,
        weight,
        metadata_match,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
        host_rewrite_specifier,
    } = value;
    refuse_set!(cx; cluster_header, metadata_match);
    Ok(WeightedCluster {
        name: non_empty(cx, "name", name)?,
        weight: u32_of(weight).unwrap_or(0),
        headers: mutations(
            cx,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        )?,
        host_rewrite_literal: host_rewrite_specifier
            .and_then(|H::HostRewriteLiteral(h)| optional_str(h)),
        per_filter: per_filter(cx, typed_per_filter_config)?,
    })
}

fn host_rewrite(
    cx: &Cx,
    value: Option<api::route_action::HostRewriteSpecifier>,
) -> Result<Option<HostRewrite>> {
    use api::route_action::HostRewriteSpecifier as H;
    Ok(match value {
        None => None,
        Some(H::HostRewriteLiteral(h)) => optional_str(h).map(HostRewrite::Literal),
        Some(H::AutoHostRewrite(b)) => b.value.then_some(HostRewrite::Auto),
        Some(H::HostRewriteHeader(h)) => Some(HostRewrite::Header(header_name(
            cx,
            "host_rewrite_header",
            h,
        )?)),
        Some(H::HostRewritePathRegex(_)) => {
            return Err(cx.err_at("host_rewrite_path_regex", UNSUPPORTED));
        }
        Some(H::HostRewrite(_)) => return Err(cx.err_at("host_rewrite", UNSUPPORTED)),
    })
}

fn mirror(cx: &mut Cx, value: api::route_action::RequestMirrorPolicy) -> Result<Mirror> {
    let api::route_action::RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction,
        trace_sampled,
        disable_shadow_host_suffix_append,
        request_headers_mutations,
        host_rewrite_literal,
    } = value;
    refuse_set!(cx; cluster_header, request_headers_mutations, host_rewrite_literal);
    ignore_set!(cx, TELEMETRY; trace_sampled);
    Ok(Mirror {
        cluster: non_empty(cx, "cluster", cluster)?,
        fraction: cx
            .opt("runtime_fraction", runtime_fraction, runtime_percent)?
            .flatten(),
        disable_host_suffix: disable_shadow_host_suffix_append,
    })
}

fn hash_policy(cx: &mut Cx, value: api::route_action::HashPolicy) -> Result<HashPolicy> {
    use api::route_action::hash_policy as hp;
    use hp::PolicySpecifier as P;
    let api::route_action::HashPolicy {
        terminal,
        policy_specifier,
    } = value;
    let kind = match policy_specifier {
        Some(P::Header(hp::Header {
            header_name: name,
            regex_rewrite,
        })) => cx.field("header", |cx| {
            refuse_set!(cx; regex_rewrite);
            Ok(HashPolicyKind::Header(header_name(
                cx,
                "header_name",
                name,
            )?))
        })?,
        Some(P::Cookie(hp::Cookie {
            name,
            ttl,
            path,
            attributes,
        })) => cx.field("cookie", |cx| {
            refuse_set!(cx; attributes);
            Ok(HashPolicyKind::Cookie {
                name: non_empty(cx, "name", name)?,
                ttl: duration(cx, "ttl", ttl)?,
                path: path.into(),
            })
        })?,
        Some(P::ConnectionProperties(hp::ConnectionProperties { source_ip: true })) => {
            HashPolicyKind::SourceIp
        }
        Some(P::ConnectionProperties(hp::ConnectionProperties { source_ip: false })) => {
            return Err(cx.err_at("connection_properties", "nothing to hash"));
        }
        Some(P::QueryParameter(hp::QueryParameter { name })) => cx
            .field("query_parameter", |cx| {
                non_empty(cx, "name", name).map(HashPolicyKind::QueryParameter)
            })?,
        Some(P::FilterState(_)) => return Err(cx.err_at("filter_state", UNSUPPORTED)),
        None => return Err(cx.err("policy_specifier: is required")),
    };
    Ok(HashPolicy { terminal, kind })
}

fn upgrades(
    cx: &mut Cx,
    value: Vec<api::route_action::UpgradeConfig>,
) -> Result<Vec<(Arc<str>, bool)>> {
    let mut seen: Vec<(Arc<str>, bool)> = Vec::new();
    for (i, u) in value.into_iter().enumerate() {
        let api::route_action::UpgradeConfig {
            upgrade_type,
            enabled,
            connect_config,
        } = u;
        cx.item("upgrade_configs", i, |cx| {
            refuse_set!(cx; connect_config);
            let name: Arc<str> = non_empty(cx, "upgrade_type", upgrade_type)?
                .to_ascii_lowercase()
                .into();
            if seen.iter().any(|(n, _)| *n == name) {
                return Err(cx.err_at("upgrade_type", format!("Duplicate upgrade {name}")));
            }
            seen.push((name, bool_or(enabled, true)));
            Ok(())
        })?;
    }
    Ok(seen)
}

/// The deprecated `cors` of routes and virtual hosts.
pub(super) fn cors_of_route(cx: &mut Cx, value: api::CorsPolicy) -> Result<CorsPolicy> {
    use api::cors_policy::EnabledSpecifier as E;
    let api::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
        enabled_specifier,
    } = value;
    let allow_private_network_access = truthy(allow_private_network_access);
    refuse_set!(cx; allow_private_network_access);
    ignore_set!(cx, TELEMETRY; shadow_enabled);
    let enabled = enabled_specifier.map(|E::FilterEnabled(f)| f);
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
            .opt("filter_enabled", enabled, runtime_percent)?
            .flatten(),
        forward_not_matching_preflights: bool_or(forward_not_matching_preflights, true),
    })
}

/// `RedirectAction`.
pub(super) fn redirect(cx: &mut Cx, value: api::RedirectAction) -> Result<Redirect> {
    use api::redirect_action::{
        PathRewriteSpecifier as P, RedirectResponseCode as R, SchemeRewriteSpecifier as S,
    };
    let api::RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = value;
    let port = port(cx, "port_redirect", port_redirect)?;
    Ok(Redirect {
        host: optional_str(host_redirect),
        path: match path_rewrite_specifier {
            None => RedirectPath::Keep,
            Some(P::PathRedirect(p)) => RedirectPath::Full(p.into()),
            Some(P::PrefixRewrite(p)) => RedirectPath::Prefix(p.into()),
            Some(P::RegexRewrite(r)) => {
                RedirectPath::Regex(cx.field("regex_rewrite", |cx| substitution(cx, r))?)
            }
            Some(P::PathRewrite(_)) => return Err(cx.err_at("path_rewrite", UNSUPPORTED)),
        },
        scheme: match scheme_rewrite_specifier {
            None | Some(S::HttpsRedirect(false)) => None,
            Some(S::HttpsRedirect(true)) => Some("https".into()),
            Some(S::SchemeRedirect(s)) => optional_str(s),
        },
        port: (port != 0).then_some(port),
        response_code: match enum_of::<R>(cx, "response_code", response_code)? {
            R::MovedPermanently => 301,
            R::Found => 302,
            R::SeeOther => 303,
            R::TemporaryRedirect => 307,
            R::PermanentRedirect => 308,
        },
        strip_query,
    })
}

/// `DirectResponseAction`.
pub(super) fn direct_response(
    cx: &mut Cx,
    value: api::DirectResponseAction,
) -> Result<DirectResponse> {
    let api::DirectResponseAction {
        status,
        body,
        body_format,
    } = value;
    refuse_set!(cx; body_format);
    let status = u16::try_from(status)
        .ok()
        .filter(|s| (200..600).contains(s))
        .ok_or_else(|| cx.err_at("status", "value must be inside range [200, 600)"))?;
    let body = cx
        .opt("body", body, |cx, b| inline_data(cx, b))?
        .unwrap_or_default();
    if body.len() > cx.direct_response_limit {
        return Err(cx.err_at(
            "body",
            format!(
                "response body size is {} bytes; maximum is {}",
                body.len(),
                cx.direct_response_limit
            ),
        ));
    }
    Ok(DirectResponse { status, body })
}
