//! HttpConnectionManager.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb;
use pb::envoy::config::core::v3 as core;
use pb::envoy::extensions::filters::network::http_connection_manager::v3 as api;

use super::access_log::access_logs;
use super::http_filter::http_filters;
use super::route::route_configuration;
use super::wkt::{
    ads_source, bool_or, cidr, duration, enum_of, extension, non_empty, optional_str, percent,
    timer, truthy, u32_in, unregistered,
};
use super::{Cx, Result, TELEMETRY, UNSUPPORTED, ignore_set, protocol, refuse_set};
use crate::http::{
    ClientCertDetails, CodecType, EscapedSlashes, ForwardClientCert, HttpConnectionManager,
    RouteSource, ServerHeader, StripPort, Tracing,
};

/// `HttpConnectionManager` with defaults applied.
#[allow(
    clippy::too_many_lines,
    reason = "one message with sixty fields, taken apart in one place"
)]
pub(super) fn http_connection_manager(
    cx: &mut Cx,
    value: api::HttpConnectionManager,
) -> Result<HttpConnectionManager> {
    use api::http_connection_manager as h;
    let api::HttpConnectionManager {
        codec_type,
        stat_prefix,
        http_filters: filters,
        add_user_agent,
        tracing: tracing_config,
        common_http_protocol_options,
        http1_safe_max_connection_duration,
        http_protocol_options,
        http2_protocol_options,
        http3_protocol_options,
        server_name,
        server_header_transformation,
        scheme_header_transformation,
        max_request_headers_kb,
        stream_idle_timeout,
        stream_flush_timeout,
        request_timeout,
        request_headers_timeout,
        drain_timeout,
        drain_timeout_jitter,
        delayed_close_timeout,
        access_log,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        internal_address_config,
        skip_xff_append,
        via,
        generate_request_id,
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert_details,
        set_current_client_cert_details,
        forward_client_cert_matcher,
        proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        upgrade_configs,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port,
        stream_error_on_invalid_http_message,
        path_normalization_options,
        strip_trailing_host_dot,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload,
        add_proxy_protocol_connection_state,
        forward_proto_config,
        route_specifier,
        strip_port_mode,
    } = value;
    let add_user_agent = truthy(add_user_agent);
    let stream_error_on_invalid_http_message = truthy(stream_error_on_invalid_http_message);
    refuse_set!(cx; add_user_agent, http1_safe_max_connection_duration, http3_protocol_options,
        stream_flush_timeout, access_log_flush_interval, flush_access_log_on_new_request,
        access_log_options, original_ip_detection_extensions, early_header_mutation_extensions,
        forward_client_cert_matcher, represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        local_reply_config, stream_error_on_invalid_http_message, path_normalization_options,
        proxy_status_config, typed_header_validation_config, append_local_overload,
        forward_proto_config);
    ignore_set!(cx, "only spreads the ends of connections"; drain_timeout_jitter);
    ignore_set!(cx, TELEMETRY; add_proxy_protocol_connection_state);
    let common = cx.field("common_http_protocol_options", |cx| {
        protocol::common(cx, common_http_protocol_options)
    })?;
    let http1 = cx.field("http_protocol_options", |cx| {
        protocol::http1(cx, http_protocol_options)
    })?;
    let use_request_id = cx
        .opt("request_id_extension", request_id_extension, request_id)?
        .unwrap_or(true);
    let (filters, suppress_envoy_headers) = http_filters(cx, filters)?;
    let (internal_cidrs, internal_unix_sockets) = cx
        .opt("internal_address_config", internal_address_config, internal)?
        .unwrap_or_default();
    let seconds = |n| Some(Duration::from_secs(n));
    Ok(HttpConnectionManager {
        codec_type: match enum_of::<h::CodecType>(cx, "codec_type", codec_type)? {
            h::CodecType::Auto => CodecType::Auto,
            h::CodecType::Http1 => CodecType::Http1,
            h::CodecType::Http2 => CodecType::Http2,
            h::CodecType::Http3 => return Err(cx.err_at("codec_type", UNSUPPORTED)),
        },
        stat_prefix: non_empty(cx, "stat_prefix", stat_prefix)?,
        route: route_source(cx, route_specifier)?,
        filters,
        suppress_envoy_headers,
        server_name: optional_str(server_name).unwrap_or_else(|| "envoy".into()),
        server_header_transformation: server_header(cx, server_header_transformation)?,
        use_remote_address: truthy(use_remote_address),
        xff_num_trusted_hops,
        skip_xff_append,
        append_x_forwarded_port,
        internal_cidrs,
        internal_unix_sockets,
        via: optional_str(via),
        generate_request_id: bool_or(generate_request_id, true),
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert: forward_client_cert(cx, forward_client_cert_details)?,
        client_cert_details: cx
            .opt(
                "set_current_client_cert_details",
                set_current_client_cert_details,
                client_cert_details,
            )?
            .unwrap_or_default(),
        normalize_path: truthy(normalize_path),
        merge_slashes,
        escaped_slashes: escaped_slashes(cx, path_with_escaped_slashes_action)?,
        strip_host_port: strip_port(cx, strip_matching_host_port, strip_port_mode)?,
        strip_trailing_host_dot,
        scheme_to_overwrite: cx
            .opt(
                "scheme_header_transformation",
                scheme_header_transformation,
                scheme,
            )?
            .flatten(),
        stream_idle_timeout: timer(cx, "stream_idle_timeout", stream_idle_timeout, seconds(300))?,
        request_timeout: timer(cx, "request_timeout", request_timeout, None)?,
        request_headers_timeout: timer(
            cx,
            "request_headers_timeout",
            request_headers_timeout,
            None,
        )?,
        drain_timeout: duration(cx, "drain_timeout", drain_timeout)?
            .unwrap_or(Duration::from_secs(5)),
        delayed_close_timeout: timer(
            cx,
            "delayed_close_timeout",
            delayed_close_timeout,
            seconds(1),
        )?,
        idle_timeout: common.idle_timeout,
        max_connection_duration: common.max_connection_duration,
        max_stream_duration: common.max_stream_duration,
        max_requests_per_connection: common.max_requests_per_connection.unwrap_or(0),
        max_headers_count: common.max_headers_count.unwrap_or(100),
        max_request_headers_kb: u32_in(
            cx,
            "max_request_headers_kb",
            max_request_headers_kb,
            1..=8192,
            60,
        )?,
        underscores: common.underscores,
        accept_http_10: http1.accept_http_10,
        default_host_for_http_10: http1.default_host_for_http_10,
        allow_absolute_url: http1.allow_absolute_url,
        enable_trailers: http1.enable_trailers,
        preserve_case: http1.preserve_case,
        proxy_100_continue,
        upgrades: upgrades(cx, upgrade_configs)?,
        http2: cx.field("http2_protocol_options", |cx| {
            protocol::http2(cx, http2_protocol_options)
        })?,
        access_log: access_logs(cx, access_log)?,
        tracing: cx.opt("tracing", tracing_config, |cx, t| {
            tracing(cx, t, use_request_id)
        })?,
    })
}

fn route_source(
    cx: &mut Cx,
    value: Option<api::http_connection_manager::RouteSpecifier>,
) -> Result<RouteSource> {
    use api::http_connection_manager::RouteSpecifier as R;
    match value {
        Some(R::RouteConfig(r)) => cx
            .field("route_config", |cx| route_configuration(cx, r))
            .map(|r| RouteSource::Inline(Arc::new(r))),
        Some(R::Rds(rds)) => cx.field("rds", |cx| {
            let api::Rds {
                config_source,
                route_config_name,
            } = rds;
            Ok(RouteSource::Rds {
                initial_fetch_timeout: cx.required("config_source", config_source, ads_source)?,
                name: non_empty(cx, "route_config_name", route_config_name)?,
            })
        }),
        Some(R::ScopedRoutes(_)) => Err(cx.err_at("scoped_routes", UNSUPPORTED)),
        None => Err(cx.err("route_specifier: is required")),
    }
}

fn server_header(cx: &Cx, value: i32) -> Result<ServerHeader> {
    use api::http_connection_manager::ServerHeaderTransformation as S;
    Ok(
        match enum_of::<S>(cx, "server_header_transformation", value)? {
            S::Overwrite => ServerHeader::Overwrite,
            S::AppendIfAbsent => ServerHeader::AppendIfAbsent,
            S::PassThrough => ServerHeader::PassThrough,
        },
    )
}

fn forward_client_cert(cx: &Cx, value: i32) -> Result<ForwardClientCert> {
    use api::http_connection_manager::ForwardClientCertDetails as F;
    Ok(
        match enum_of::<F>(cx, "forward_client_cert_details", value)? {
            F::Sanitize => ForwardClientCert::Sanitize,
            F::ForwardOnly => ForwardClientCert::ForwardOnly,
            F::AppendForward => ForwardClientCert::AppendForward,
            F::SanitizeSet => ForwardClientCert::SanitizeSet,
            F::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
        },
    )
}

fn client_cert_details(
    cx: &mut Cx,
    value: api::http_connection_manager::SetCurrentClientCertDetails,
) -> Result<ClientCertDetails> {
    let api::http_connection_manager::SetCurrentClientCertDetails {
        subject,
        cert,
        chain,
        dns,
        uri,
        issuer,
        format,
    } = value;
    refuse_set!(cx; issuer, format);
    Ok(ClientCertDetails {
        subject: truthy(subject),
        cert,
        chain,
        dns,
        uri,
    })
}

fn escaped_slashes(cx: &Cx, value: i32) -> Result<EscapedSlashes> {
    use api::http_connection_manager::PathWithEscapedSlashesAction as P;
    Ok(
        match enum_of::<P>(cx, "path_with_escaped_slashes_action", value)? {
            P::ImplementationSpecificDefault | P::KeepUnchanged => EscapedSlashes::KeepUnchanged,
            P::RejectRequest => EscapedSlashes::RejectRequest,
            P::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
            P::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
        },
    )
}

fn strip_port(
    cx: &Cx,
    matching: bool,
    mode: Option<api::http_connection_manager::StripPortMode>,
) -> Result<StripPort> {
    use api::http_connection_manager::StripPortMode as S;
    let any = matches!(mode, Some(S::StripAnyHostPort(true)));
    match (matching, any) {
        (true, true) => Err(cx.err(
            "Error: Only one of `strip_matching_host_port` or `strip_any_host_port` can be set.",
        )),
        (true, false) => Ok(StripPort::Matching),
        (false, true) => Ok(StripPort::Any),
        (false, false) => Ok(StripPort::No),
    }
}

fn scheme(cx: &mut Cx, value: core::SchemeHeaderTransformation) -> Result<Option<Arc<str>>> {
    use core::scheme_header_transformation::Transformation as T;
    let core::SchemeHeaderTransformation {
        match_upstream,
        transformation,
    } = value;
    refuse_set!(cx; match_upstream);
    match transformation {
        None => Ok(None),
        Some(T::SchemeToOverwrite(s)) if s == "http" || s == "https" => Ok(Some(s.into())),
        Some(T::SchemeToOverwrite(_)) => Err(cx.err_at(
            "scheme_to_overwrite",
            "value must be in list [\"http\" \"https\"]",
        )),
    }
}

fn internal(
    cx: &mut Cx,
    value: api::http_connection_manager::InternalAddressConfig,
) -> Result<(Vec<ipnet::IpNet>, bool)> {
    let api::http_connection_manager::InternalAddressConfig {
        unix_sockets,
        cidr_ranges,
    } = value;
    let mut ranges = cx.each("cidr_ranges", cidr_ranges, |cx, c| cidr(cx, c))?;
    if ranges.is_empty() {
        // The message without ranges means private and loopback addresses (seen with Envoy 1.40); only its
        // absence means nobody.
        let private = [
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "127.0.0.1/32",
            "fd00::/8",
            "::1/128",
        ];
        ranges = private.iter().filter_map(|net| net.parse().ok()).collect();
    }
    Ok((ranges, unix_sockets))
}

/// `request_id_extension`: whether trace bits are read and written.
fn request_id(cx: &mut Cx, value: api::RequestIdExtension) -> Result<bool> {
    use pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
    let api::RequestIdExtension { typed_config } = value;
    cx.field("typed_config", |cx| {
        let ext = extension(cx, "", typed_config)?;
        match ext.type_name.as_str() {
            "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" => {
                let UuidRequestIdConfig {
                    pack_trace_reason,
                    use_request_id_for_trace_sampling,
                } = ext.decode(cx)?;
                cx.refuse_if(!bool_or(pack_trace_reason, true), "pack_trace_reason")?;
                Ok(bool_or(use_request_id_for_trace_sampling, true))
            }
            t => Err(unregistered(cx, "", t)),
        }
    })
}

fn upgrades(
    cx: &mut Cx,
    value: Vec<api::http_connection_manager::UpgradeConfig>,
) -> Result<Vec<Arc<str>>> {
    let mut seen: Vec<(Arc<str>, bool)> = Vec::new();
    for (i, u) in value.into_iter().enumerate() {
        let api::http_connection_manager::UpgradeConfig {
            upgrade_type,
            filters,
            enabled,
        } = u;
        cx.item("upgrade_configs", i, |cx| {
            refuse_set!(cx; filters);
            let name: Arc<str> = upgrade_type.to_ascii_lowercase().into();
            if name.is_empty() || seen.iter().any(|(n, _)| *n == name) {
                return Err(cx.err(format!(
                    "Error: multiple upgrade configs with the same name: '{name}'"
                )));
            }
            seen.push((name, bool_or(enabled, true)));
            Ok(())
        })?;
    }
    Ok(seen
        .into_iter()
        .filter_map(|(name, enabled)| enabled.then_some(name))
        .collect())
}

fn tracing(
    cx: &mut Cx,
    value: api::http_connection_manager::Tracing,
    use_request_id: bool,
) -> Result<Tracing> {
    let api::http_connection_manager::Tracing {
        client_sampling,
        random_sampling,
        overall_sampling,
        verbose,
        max_path_tag_length,
        custom_tags,
        provider,
        spawn_upstream_span,
        operation,
        upstream_operation,
        no_context_propagation,
    } = value;
    const SPANS: &str = "spans are not exported and no trace context is written: trace headers of \
                         requests pass unchanged";
    ignore_set!(cx, SPANS; verbose, max_path_tag_length, custom_tags, provider,
        spawn_upstream_span, operation, upstream_operation, no_context_propagation);
    Ok(Tracing {
        random_sampling: percent(cx, "random_sampling", random_sampling)?.unwrap_or(100.0),
        client_sampling: percent(cx, "client_sampling", client_sampling)?.unwrap_or(100.0),
        overall_sampling: percent(cx, "overall_sampling", overall_sampling)?.unwrap_or(100.0),
        use_request_id,
    })
}
