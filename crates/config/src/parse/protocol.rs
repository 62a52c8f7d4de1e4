//! HTTP protocol options that listeners and clusters share.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb;
use pb::envoy::config::core::v3 as core;

use super::wkt::{
    bool_or, enum_of, extension, optional_str, positive_duration, timer, truthy, u32_in, u32_of,
    unregistered,
};
use super::{Cx, Result, UNSUPPORTED, ignore_set, refuse_set};
use crate::http::{Http2Options, UnderscoresAction};

/// Default of `idle_timeout`.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// `HttpProtocolOptions` of both sides.
pub(super) struct Common {
    pub(super) idle_timeout: Option<Duration>,
    pub(super) max_connection_duration: Option<Duration>,
    pub(super) max_stream_duration: Option<Duration>,
    pub(super) max_requests_per_connection: Option<u32>,
    pub(super) max_headers_count: Option<u32>,
    pub(super) underscores: UnderscoresAction,
}

/// `HttpProtocolOptions`.
pub(super) fn common(cx: &mut Cx, value: Option<core::HttpProtocolOptions>) -> Result<Common> {
    use core::http_protocol_options::HeadersWithUnderscoresAction as U;
    let core::HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = value.unwrap_or_default();
    refuse_set!(cx; max_response_headers_kb);
    ignore_set!(cx, "only spreads the ends of connections"; max_connection_duration_jitter);
    Ok(Common {
        idle_timeout: timer(cx, "idle_timeout", idle_timeout, Some(IDLE_TIMEOUT))?,
        max_connection_duration: timer(
            cx,
            "max_connection_duration",
            max_connection_duration,
            None,
        )?,
        max_stream_duration: timer(cx, "max_stream_duration", max_stream_duration, None)?,
        max_requests_per_connection: u32_of(max_requests_per_connection),
        max_headers_count: max_headers_count
            .map(|n| u32_in(cx, "max_headers_count", Some(n), 1..=u32::MAX, 100))
            .transpose()?,
        underscores: match enum_of::<U>(
            cx,
            "headers_with_underscores_action",
            headers_with_underscores_action,
        )? {
            U::Allow => UnderscoresAction::Allow,
            U::RejectRequest => UnderscoresAction::RejectRequest,
            U::DropHeader => UnderscoresAction::DropHeader,
        },
    })
}

/// What is read of `Http1ProtocolOptions`.
pub(super) struct Http1 {
    pub(super) allow_absolute_url: bool,
    pub(super) accept_http_10: bool,
    pub(super) default_host_for_http_10: Option<Arc<str>>,
    pub(super) enable_trailers: bool,
    pub(super) preserve_case: bool,
}

/// `Http1ProtocolOptions`.
pub(super) fn http1(cx: &mut Cx, value: Option<core::Http1ProtocolOptions>) -> Result<Http1> {
    let core::Http1ProtocolOptions {
        allow_absolute_url,
        accept_http_10,
        default_host_for_http_10,
        header_key_format,
        enable_trailers,
        allow_chunked_length,
        override_stream_error_on_invalid_http_message,
        send_fully_qualified_url,
        use_balsa_parser,
        allow_custom_methods,
        ignore_http_11_upgrade,
    } = value.unwrap_or_default();
    let override_stream_error_on_invalid_http_message =
        truthy(override_stream_error_on_invalid_http_message);
    refuse_set!(cx; allow_chunked_length, override_stream_error_on_invalid_http_message,
        send_fully_qualified_url, allow_custom_methods, ignore_http_11_upgrade);
    ignore_set!(cx, "there is one HTTP/1 parser"; use_balsa_parser);
    let preserve_case = cx
        .opt("header_key_format", header_key_format, key_format)?
        .unwrap_or(false);
    cx.refuse_if(preserve_case, "header_key_format.stateful_formatter")?;
    Ok(Http1 {
        allow_absolute_url: bool_or(allow_absolute_url, true),
        accept_http_10,
        default_host_for_http_10: optional_str(default_host_for_http_10),
        enable_trailers,
        preserve_case,
    })
}

fn key_format(cx: &mut Cx, value: core::http1_protocol_options::HeaderKeyFormat) -> Result<bool> {
    use core::http1_protocol_options::header_key_format::HeaderFormat as H;
    use pb::envoy::extensions::http::header_formatters::preserve_case::v3 as pc;
    let core::http1_protocol_options::HeaderKeyFormat { header_format } = value;
    match header_format {
        Some(H::StatefulFormatter(core::TypedExtensionConfig { name, typed_config })) => cx
            .field("stateful_formatter", |cx| {
                let ext = extension(cx, &name, typed_config)?;
                let expected =
                    "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig";
                if ext.type_name != expected {
                    return Err(unregistered(cx, &name, &ext.type_name));
                }
                let pc::PreserveCaseFormatterConfig {
                    forward_reason_phrase,
                    formatter_type_on_envoy_headers,
                } = ext.decode(cx)?;
                refuse_set!(cx; forward_reason_phrase, formatter_type_on_envoy_headers);
                Ok(true)
            }),
        Some(H::ProperCaseWords(_)) => Err(cx.err_at("proper_case_words", UNSUPPORTED)),
        None => Err(cx.err("header_format: is required")),
    }
}

/// `Http2ProtocolOptions` with defaults applied.
pub(super) fn http2(
    cx: &mut Cx,
    value: Option<core::Http2ProtocolOptions>,
) -> Result<Http2Options> {
    let core::Http2ProtocolOptions {
        hpack_table_size,
        max_concurrent_streams,
        initial_stream_window_size,
        initial_connection_window_size,
        allow_connect,
        allow_metadata,
        max_outbound_frames,
        max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging,
        override_stream_error_on_invalid_http_message,
        custom_settings_parameters,
        connection_keepalive,
        use_oghttp2_codec,
        max_metadata_size,
        enable_huffman_encoding,
        max_header_field_size_kb,
        disallow_obs_text,
        stream_reset_burst,
        stream_reset_rate,
    } = value.unwrap_or_default();
    let override_stream_error_on_invalid_http_message =
        truthy(override_stream_error_on_invalid_http_message);
    let disallow_obs_text = truthy(disallow_obs_text);
    refuse_set!(cx; allow_metadata, max_outbound_frames, max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload, max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging, override_stream_error_on_invalid_http_message,
        custom_settings_parameters, max_metadata_size, max_header_field_size_kb, disallow_obs_text,
        stream_reset_burst, stream_reset_rate);
    ignore_set!(cx, "there is one HTTP/2 codec"; use_oghttp2_codec, enable_huffman_encoding);
    let d = Http2Options::default();
    let (keepalive_interval, keepalive_timeout) = cx
        .opt("connection_keepalive", connection_keepalive, keepalive)?
        .unwrap_or_default();
    cx.refuse_if(
        keepalive_interval.is_some(),
        "connection_keepalive.interval",
    )?;
    cx.refuse_if(allow_connect, "allow_connect")?;
    const WINDOW: std::ops::RangeInclusive<u32> = 65_535..=2_147_483_647;
    Ok(Http2Options {
        max_concurrent_streams: u32_in(
            cx,
            "max_concurrent_streams",
            max_concurrent_streams,
            1..=2_147_483_647,
            d.max_concurrent_streams,
        )?,
        initial_stream_window_size: u32_in(
            cx,
            "initial_stream_window_size",
            initial_stream_window_size,
            WINDOW,
            d.initial_stream_window_size,
        )?,
        initial_connection_window_size: u32_in(
            cx,
            "initial_connection_window_size",
            initial_connection_window_size,
            WINDOW,
            d.initial_connection_window_size,
        )?,
        hpack_table_size: u32_of(hpack_table_size).unwrap_or(d.hpack_table_size),
        allow_connect,
        keepalive_interval,
        keepalive_timeout,
    })
}

fn keepalive(
    cx: &mut Cx,
    value: core::KeepaliveSettings,
) -> Result<(Option<Duration>, Option<Duration>)> {
    let core::KeepaliveSettings {
        interval,
        timeout,
        interval_jitter,
        connection_idle_interval,
    } = value;
    refuse_set!(cx; connection_idle_interval);
    ignore_set!(cx, "only spreads pings"; interval_jitter);
    let timeout = positive_duration(cx, "timeout", timeout)?
        .ok_or_else(|| cx.err_at("timeout", "value is required"))?;
    Ok((positive_duration(cx, "interval", interval)?, Some(timeout)))
}
