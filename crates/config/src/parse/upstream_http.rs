//! HTTP options of a cluster: `HttpProtocolOptions` and the deprecated fields that it replaces.

use std::collections::HashMap;

use envoy_types::pb;
use pb::envoy::config::cluster::v3 as api;
use pb::envoy::config::core::v3 as core;
use pb::envoy::extensions::upstreams::http::v3 as up;
use pb::google::protobuf as gp;

use super::wkt::{enum_of, extension, sorted, unregistered};
use super::{Cx, Result, UNSUPPORTED, protocol, refuse_set};
use crate::cluster::UpstreamProtocol;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The fields that `HttpProtocolOptions` replaces.
pub(super) struct Deprecated {
    pub(super) upstream: Option<core::UpstreamHttpProtocolOptions>,
    pub(super) common: Option<core::HttpProtocolOptions>,
    pub(super) http1: Option<core::Http1ProtocolOptions>,
    pub(super) http2: Option<core::Http2ProtocolOptions>,
    pub(super) selection: i32,
}

pub(super) struct Http {
    pub(super) protocol: UpstreamProtocol,
    pub(super) common: protocol::Common,
    pub(super) http2: crate::http::Http2Options,
    pub(super) preserve_case: bool,
    pub(super) auto_sni: bool,
    pub(super) auto_san_validation: bool,
}

pub(super) fn http_options(
    cx: &mut Cx,
    options: HashMap<String, gp::Any>,
    deprecated: Deprecated,
) -> Result<Http> {
    let mut typed = None;
    for (key, any) in sorted(options) {
        typed = Some(cx.entry("typed_extension_protocol_options", &key, |cx| {
            let ext = extension(cx, &key, Some(any))?;
            if key != HTTP_OPTIONS || ext.type_name != HTTP_OPTIONS {
                return Err(unregistered(cx, &key, &ext.type_name));
            }
            let message = ext.decode(cx)?;
            typed_options(cx, message)
        })?);
    }
    match typed {
        Some(http) => Ok(http),
        None => deprecated_options(cx, deprecated),
    }
}

fn deprecated_options(cx: &mut Cx, value: Deprecated) -> Result<Http> {
    use api::cluster::ClusterProtocolSelection as S;
    let selection = enum_of::<S>(cx, "protocol_selection", value.selection)?;
    let protocol = match (selection, value.http2.is_some()) {
        (S::UseDownstreamProtocol, _) => UpstreamProtocol::Downstream,
        (S::UseConfiguredProtocol, true) => UpstreamProtocol::Http2,
        (S::UseConfiguredProtocol, false) => UpstreamProtocol::Http1,
    };
    let (auto_sni, auto_san_validation) = auto(cx, value.upstream)?;
    Ok(Http {
        protocol,
        common: cx.field("common_http_protocol_options", |cx| {
            protocol::common(cx, value.common)
        })?,
        http2: cx.field("http2_protocol_options", |cx| {
            protocol::http2(cx, value.http2)
        })?,
        preserve_case: cx
            .field("http_protocol_options", |cx| {
                protocol::http1(cx, value.http1)
            })?
            .preserve_case,
        auto_sni,
        auto_san_validation,
    })
}

fn auto(cx: &mut Cx, value: Option<core::UpstreamHttpProtocolOptions>) -> Result<(bool, bool)> {
    cx.field("upstream_http_protocol_options", |cx| {
        let core::UpstreamHttpProtocolOptions {
            auto_sni,
            auto_san_validation,
            override_auto_sni_header,
        } = value.unwrap_or_default();
        refuse_set!(cx; override_auto_sni_header);
        Ok((auto_sni, auto_san_validation))
    })
}

fn typed_options(cx: &mut Cx, value: up::HttpProtocolOptions) -> Result<Http> {
    use up::http_protocol_options as o;
    use up::http_protocol_options::UpstreamProtocolOptions as U;
    let up::HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = value;
    refuse_set!(cx; http_filters, header_validation_config, outlier_detection,
        request_mirror_policies, hash_policy, retry_policy);
    let (protocol, http1, http2) = match upstream_protocol_options {
        Some(U::ExplicitHttpConfig(o::ExplicitHttpConfig { protocol_config })) => {
            explicit(cx, protocol_config)?
        }
        Some(U::UseDownstreamProtocolConfig(o::UseDownstreamHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options,
        })) => {
            refuse_set!(cx; http3_protocol_options);
            (
                UpstreamProtocol::Downstream,
                http_protocol_options,
                http2_protocol_options,
            )
        }
        Some(U::AutoConfig(o::AutoHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options,
            alternate_protocols_cache_options,
        })) => {
            refuse_set!(cx; http3_protocol_options, alternate_protocols_cache_options);
            (
                UpstreamProtocol::Auto,
                http_protocol_options,
                http2_protocol_options,
            )
        }
        None => return Err(cx.err("upstream_protocol_options: is required")),
    };
    let (auto_sni, auto_san_validation) = auto(cx, upstream_http_protocol_options)?;
    Ok(Http {
        protocol,
        common: cx.field("common_http_protocol_options", |cx| {
            protocol::common(cx, common_http_protocol_options)
        })?,
        http2: cx.field("http2_protocol_options", |cx| protocol::http2(cx, http2))?,
        preserve_case: cx
            .field("http_protocol_options", |cx| protocol::http1(cx, http1))?
            .preserve_case,
        auto_sni,
        auto_san_validation,
    })
}

type Explicit = (
    UpstreamProtocol,
    Option<core::Http1ProtocolOptions>,
    Option<core::Http2ProtocolOptions>,
);

fn explicit(
    cx: &Cx,
    value: Option<up::http_protocol_options::explicit_http_config::ProtocolConfig>,
) -> Result<Explicit> {
    use up::http_protocol_options::explicit_http_config::ProtocolConfig as P;
    match value {
        Some(P::HttpProtocolOptions(h)) => Ok((UpstreamProtocol::Http1, Some(h), None)),
        Some(P::Http2ProtocolOptions(h)) => Ok((UpstreamProtocol::Http2, None, Some(h))),
        Some(P::Http3ProtocolOptions(_)) => {
            Err(cx.err_at("explicit_http_config.http3_protocol_options", UNSUPPORTED))
        }
        None => Err(cx.err("explicit_http_config.protocol_config: is required")),
    }
}
