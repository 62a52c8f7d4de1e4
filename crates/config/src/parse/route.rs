//! RouteConfiguration, virtual hosts, route matches, header changes, per-route filter settings.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use envoy_types::pb;
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::route::v3 as api;
use pb::google::protobuf as gp;

use super::matcher::{header, header_name, query_parameter, regex};
use super::retry::retry_policy;
use super::route_action::{cors_of_route, direct_response, forward, redirect};
use super::wkt::{
    bool_or, enum_of, extension, non_empty, runtime_percent, sorted, truthy, u32_of, unregistered,
};
use super::{Cx, METADATA, Result, TELEMETRY, UNSUPPORTED, http_filter, ignore_set, refuse_set};
use crate::format::Format;
use crate::http::{PerFilter, PerFilterConfig};
use crate::route::{
    AppendAction, Decorator, HeaderAdd, HeaderMutations, PathMatch, RequireTls, Route, RouteAction,
    RouteConfiguration, RouteMatch, VirtualHost,
};

/// `RouteConfiguration`.
pub(super) fn route_configuration(
    cx: &mut Cx,
    value: api::RouteConfiguration,
) -> Result<RouteConfiguration> {
    let api::RouteConfiguration {
        name,
        virtual_hosts,
        vhds,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        validate_clusters,
        max_direct_response_body_size_bytes,
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        metadata,
        route_specifiers,
    } = value;
    refuse_set!(cx; vhds, internal_only_headers, most_specific_header_mutations_wins,
        cluster_specifier_plugins, request_mirror_policies, vhost_header,
        ignore_path_parameters_in_path_matching, route_specifiers);
    ignore_set!(cx, METADATA; metadata);
    if truthy(validate_clusters) {
        cx.ignore(
            "validate_clusters",
            "validate_clusters",
            "clusters are looked up per request: an unknown one answers as cluster_not_found",
        );
    }
    cx.direct_response_limit = u32_of(max_direct_response_body_size_bytes).unwrap_or(4096) as usize;
    let virtual_hosts = cx.each("virtual_hosts", virtual_hosts, virtual_host)?;
    unique_domains(cx, &name, &virtual_hosts)?;
    Ok(RouteConfiguration {
        name: name.into(),
        virtual_hosts,
        ignore_port_in_host_matching,
        headers: mutations(
            cx,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        )?,
        per_filter: per_filter(cx, typed_per_filter_config)?,
    })
}

fn unique_domains(cx: &Cx, route: &str, hosts: &[VirtualHost]) -> Result<()> {
    let mut seen = HashSet::new();
    for (i, host) in hosts.iter().enumerate() {
        for domain in &host.domains {
            if !seen.insert(Arc::clone(domain)) {
                return Err(cx.err_at(
                    &format!("virtual_hosts[{i}].domains"),
                    if &**domain == "*" {
                        format!("Only a single wildcard domain is permitted in route {route}")
                    } else {
                        format!(
                            "Only unique values for domains are permitted. Duplicate entry of \
                             domain {domain} in route {route}"
                        )
                    },
                ));
            }
        }
    }
    Ok(())
}

fn virtual_host(cx: &mut Cx, value: api::VirtualHost) -> Result<VirtualHost> {
    use api::virtual_host::TlsRequirementType as T;
    let api::VirtualHost {
        name,
        domains,
        routes,
        matcher,
        require_tls,
        virtual_clusters,
        rate_limits,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy: retry,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        request_mirror_policies,
        metadata,
        route_specifiers,
    } = value;
    refuse_set!(cx; matcher, rate_limits, retry_policy_typed_config, hedge_policy,
        include_is_timeout_retry_header, per_request_buffer_limit_bytes, request_body_buffer_limit,
        request_mirror_policies, route_specifiers);
    ignore_set!(cx, TELEMETRY; virtual_clusters);
    ignore_set!(cx, METADATA; metadata);
    if domains.is_empty() {
        return Err(cx.err_at("domains", "value must contain at least 1 item(s)"));
    }
    let mut per_filter = per_filter(cx, typed_per_filter_config)?;
    if let Some(cors) = cx.opt("cors", cors, cors_of_route)? {
        let named = "envoy.filters.http.cors";
        if !per_filter.entries.iter().any(|(n, _)| &**n == named) {
            per_filter
                .entries
                .push((named.into(), PerFilter::Cors(Arc::new(cors))));
        }
    }
    Ok(VirtualHost {
        name: non_empty(cx, "name", name)?,
        domains: cx.each("domains", domains, |cx, d| domain(cx, d))?,
        routes: cx.each("routes", routes, route)?,
        require_tls: match enum_of::<T>(cx, "require_tls", require_tls)? {
            T::None => RequireTls::None,
            T::ExternalOnly => RequireTls::ExternalOnly,
            T::All => RequireTls::All,
        },
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy: cx.opt("retry_policy", retry, retry_policy)?.map(Arc::new),
        headers: mutations(
            cx,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        )?,
        per_filter,
    })
}

fn domain(cx: &Cx, value: String) -> Result<Arc<str>> {
    if value.is_empty() || value.bytes().any(|b| b.is_ascii_control()) {
        return Err(cx.err(format!("'{value}' is not a domain")));
    }
    Ok(value.to_ascii_lowercase().into())
}

fn route(cx: &mut Cx, value: api::Route) -> Result<Route> {
    use api::route::Action as A;
    let api::Route {
        name,
        r#match,
        metadata,
        decorator,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing,
        per_request_buffer_limit_bytes,
        stat_prefix,
        request_body_buffer_limit,
        route_specifiers,
        action,
    } = value;
    refuse_set!(cx; per_request_buffer_limit_bytes, request_body_buffer_limit, route_specifiers);
    ignore_set!(cx, METADATA; metadata);
    ignore_set!(cx, TELEMETRY; tracing, stat_prefix);
    let matcher = cx.required("match", r#match, route_match)?;
    let action = match action {
        Some(A::Route(a)) => {
            RouteAction::Forward(Arc::new(cx.field("route", |cx| forward(cx, a, &name))?))
        }
        Some(A::Redirect(a)) => {
            RouteAction::Redirect(Arc::new(cx.field("redirect", |cx| redirect(cx, a))?))
        }
        Some(A::DirectResponse(a)) => RouteAction::Direct(Arc::new(
            cx.field("direct_response", |cx| direct_response(cx, a))?,
        )),
        Some(A::FilterAction(_)) => return Err(cx.err_at("filter_action", UNSUPPORTED)),
        Some(A::NonForwardingAction(_)) => {
            return Err(cx.err_at("non_forwarding_action", UNSUPPORTED));
        }
        None => return Err(cx.err("action: is required")),
    };
    Ok(Route {
        matcher,
        action,
        headers: mutations(
            cx,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        )?,
        decorator: cx.opt("decorator", decorator, |cx, d| {
            let api::Decorator {
                operation,
                propagate,
            } = d;
            Ok(Decorator {
                operation: non_empty(cx, "operation", operation)?,
                propagate: bool_or(propagate, true),
            })
        })?,
        per_filter: per_filter(cx, typed_per_filter_config)?,
        name: name.into(),
    })
}

fn route_match(cx: &mut Cx, value: api::RouteMatch) -> Result<RouteMatch> {
    use api::route_match::PathSpecifier as P;
    let api::RouteMatch {
        case_sensitive,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = value;
    refuse_set!(cx; cookies, tls_context, dynamic_metadata, filter_state);
    let path = match path_specifier {
        Some(P::Prefix(p)) => PathMatch::Prefix(p.into()),
        Some(P::Path(p)) => PathMatch::Exact(p.into()),
        Some(P::SafeRegex(r)) => PathMatch::Regex(cx.field("safe_regex", |cx| regex(cx, r))?),
        Some(P::PathSeparatedPrefix(p)) => {
            if !p.starts_with('/') || p.len() < 2 || p.ends_with('/') || p.contains(['?', '#']) {
                return Err(cx.err_at(
                    "path_separated_prefix",
                    "value does not match regex pattern \"^[^?#]+[^?#/]$\"",
                ));
            }
            PathMatch::PathSeparatedPrefix(p.into())
        }
        Some(P::ConnectMatcher(api::route_match::ConnectMatcher {})) => PathMatch::Connect,
        Some(P::PathMatchPolicy(_)) => return Err(cx.err_at("path_match_policy", UNSUPPORTED)),
        None => return Err(cx.err("path_specifier: is required")),
    };
    Ok(RouteMatch {
        path,
        case_sensitive: bool_or(case_sensitive, true),
        headers: cx.each("headers", headers, header)?,
        query_parameters: cx.each("query_parameters", query_parameters, query_parameter)?,
        grpc: grpc.is_some(),
        runtime_fraction: cx
            .opt("runtime_fraction", runtime_fraction, runtime_percent)?
            .flatten(),
    })
}

/// Header changes of one level.
pub(super) fn mutations(
    cx: &mut Cx,
    request_add: Vec<core::HeaderValueOption>,
    request_remove: Vec<String>,
    response_add: Vec<core::HeaderValueOption>,
    response_remove: Vec<String>,
) -> Result<HeaderMutations> {
    Ok(HeaderMutations {
        request_add: cx.each("request_headers_to_add", request_add, header_add)?,
        request_remove: cx.each("request_headers_to_remove", request_remove, header_remove)?,
        response_add: cx.each("response_headers_to_add", response_add, header_add)?,
        response_remove: cx.each("response_headers_to_remove", response_remove, header_remove)?,
    })
}

fn header_remove(cx: &mut Cx, name: String) -> Result<Arc<str>> {
    let name = header_name(cx, "", name)?;
    if name.starts_with(':') || &*name == "host" {
        return Err(cx.err(":-prefixed or host headers may not be removed"));
    }
    Ok(name)
}

fn header_add(cx: &mut Cx, value: core::HeaderValueOption) -> Result<HeaderAdd> {
    use core::header_value_option::HeaderAppendAction as A;
    let core::HeaderValueOption {
        header,
        append,
        append_action,
        keep_empty_value,
    } = value;
    let action = match enum_of::<A>(cx, "append_action", append_action)? {
        // The deprecated boolean, honoured as Envoy does when only it is given.
        A::AppendIfExistsOrAdd if append.is_some_and(|a| !a.value) => {
            AppendAction::OverwriteIfExistsOrAdd
        }
        A::AppendIfExistsOrAdd => AppendAction::AppendIfExistsOrAdd,
        A::AddIfAbsent => AppendAction::AddIfAbsent,
        A::OverwriteIfExistsOrAdd => AppendAction::OverwriteIfExistsOrAdd,
        A::OverwriteIfExists => AppendAction::OverwriteIfExists,
    };
    cx.required("header", header, |cx, h| {
        let core::HeaderValue {
            key,
            value,
            raw_value,
        } = h;
        refuse_set!(cx; raw_value);
        let name = header_name(cx, "key", key)?;
        if name.starts_with(':') || &*name == "host" {
            return Err(cx.err_at("key", ":-prefixed or host headers may not be modified"));
        }
        if value.bytes().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
            return Err(cx.err_at("value", "value does not match a valid header value"));
        }
        let value = Format::parse(&value, true).map_err(|e| cx.err_at("value", e.to_string()))?;
        Ok(HeaderAdd {
            name,
            value,
            action,
            keep_empty_value,
        })
    })
}

/// `typed_per_filter_config`.
pub(super) fn per_filter(cx: &mut Cx, value: HashMap<String, gp::Any>) -> Result<PerFilterConfig> {
    let entries = sorted(value)
        .into_iter()
        .map(|(name, any)| {
            let parsed = cx.entry("typed_per_filter_config", &name, |cx| {
                per_filter_entry(cx, &name, any, true)
            })?;
            Ok(parsed.map(|p| (name.into(), p)))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(PerFilterConfig {
        entries: entries.into_iter().flatten().collect(),
    })
}

fn per_filter_entry(
    cx: &mut Cx,
    name: &str,
    any: gp::Any,
    wrapper_allowed: bool,
) -> Result<Option<PerFilter>> {
    let ext = extension(cx, name, Some(any))?;
    match ext.type_name.as_str() {
        "envoy.config.route.v3.FilterConfig" if wrapper_allowed => {
            let api::FilterConfig {
                config,
                is_optional,
                disabled,
            } = ext.decode(cx)?;
            match config {
                _ if disabled => Ok(Some(PerFilter::Disabled)),
                Some(inner) => match per_filter_entry(cx, name, inner, false) {
                    Err(_) if is_optional && !name.starts_with("envoy.") => {
                        cx.ignore_here(name, "is_optional: unknown per-route filters are skipped");
                        Ok(None)
                    }
                    parsed => parsed,
                },
                None => Err(cx.err_at(
                    "config",
                    "enabling a filter without a config is not supported",
                )),
            }
        }
        "envoy.extensions.filters.http.cors.v3.CorsPolicy" => {
            let policy = ext.decode(cx)?;
            http_filter::cors_policy(cx, policy).map(|p| Some(PerFilter::Cors(Arc::new(p))))
        }
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
            let fault = ext.decode(cx)?;
            http_filter::fault(cx, fault).map(|f| Some(PerFilter::Fault(Arc::new(f))))
        }
        t => Err(unregistered(cx, name, t)),
    }
}
