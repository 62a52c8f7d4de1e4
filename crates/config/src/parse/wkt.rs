//! Well-known and shared messages: durations, wrappers, percentages, `Any`, data sources, addresses, config
//! sources, structs. The rules are those of Envoy's API annotations.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb;
use ipnet::IpNet;
use pb::envoy::config::core::v3 as core;
use pb::google::protobuf as gp;
use prost::Message;

use super::{Cx, Result, UNSUPPORTED, ignore_set, refuse_set};
use crate::address::Address;
use crate::route::Percent;
use crate::tls::DataSource;

/// Protobuf's own range of a Duration, in seconds.
const MAX_DURATION_SECONDS: i64 = 315_576_000_000;

/// An optional non-negative duration.
pub(super) fn duration(
    cx: &Cx,
    field: &str,
    value: Option<gp::Duration>,
) -> Result<Option<Duration>> {
    let Some(gp::Duration { seconds, nanos }) = value else {
        return Ok(None);
    };
    if seconds < 0 || nanos < 0 {
        return Err(cx.err_at(field, "value must be greater than or equal to 0s"));
    }
    let (Ok(secs), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else {
        return Err(cx.err_at(field, "Duration out-of-range"));
    };
    if seconds > MAX_DURATION_SECONDS || nanos > 999_999_999 {
        return Err(cx.err_at(field, "Duration out-of-range"));
    }
    Ok(Some(Duration::new(secs, nanos)))
}

/// A duration that must be positive when set.
pub(super) fn positive_duration(
    cx: &Cx,
    field: &str,
    value: Option<gp::Duration>,
) -> Result<Option<Duration>> {
    let value = duration(cx, field, value)?;
    if value == Some(Duration::ZERO) {
        return Err(cx.err_at(field, "value must be greater than 0s"));
    }
    Ok(value)
}

/// A timer: unset takes the default, zero switches it off.
pub(super) fn timer(
    cx: &Cx,
    field: &str,
    value: Option<gp::Duration>,
    default: Option<Duration>,
) -> Result<Option<Duration>> {
    Ok(match duration(cx, field, value)? {
        None => default,
        Some(d) if d.is_zero() => None,
        some => some,
    })
}

/// A wrapped boolean that is false when unset.
pub(super) fn truthy(value: Option<gp::BoolValue>) -> bool {
    value.is_some_and(|v| v.value)
}

/// A wrapped boolean with a default.
pub(super) fn bool_or(value: Option<gp::BoolValue>, default: bool) -> bool {
    value.map_or(default, |v| v.value)
}

/// A wrapped integer.
pub(super) fn u32_of(value: Option<gp::UInt32Value>) -> Option<u32> {
    value.map(|v| v.value)
}

/// A wrapped integer in a closed range, or the default when unset.
pub(super) fn u32_in(
    cx: &Cx,
    field: &str,
    value: Option<gp::UInt32Value>,
    range: std::ops::RangeInclusive<u32>,
    default: u32,
) -> Result<u32> {
    match value {
        None => Ok(default),
        Some(v) if range.contains(&v.value) => Ok(v.value),
        Some(_) => Err(cx.err_at(
            field,
            format!(
                "value must be inside range [{}, {}]",
                range.start(),
                range.end()
            ),
        )),
    }
}

/// A port.
pub(super) fn port(cx: &Cx, field: &str, value: u32) -> Result<u16> {
    u16::try_from(value).map_err(|_| cx.err_at(field, "value must be less than or equal to 65535"))
}

/// A string that must not be empty.
pub(super) fn non_empty(cx: &Cx, field: &str, value: String) -> Result<Arc<str>> {
    if value.is_empty() {
        return Err(cx.err_at(field, "value length must be at least 1 characters"));
    }
    Ok(value.into())
}

/// A string of which empty means unset.
pub(super) fn optional_str(value: String) -> Option<Arc<str>> {
    (!value.is_empty()).then(|| value.into())
}

/// An enum value that the API knows.
pub(super) fn enum_of<E: TryFrom<i32>>(cx: &Cx, field: &str, value: i32) -> Result<E> {
    E::try_from(value).map_err(|_| cx.err_at(field, "value must be one of the defined enum values"))
}

/// `FractionalPercent`.
pub(super) fn fractional_percent(
    cx: &Cx,
    value: pb::envoy::r#type::v3::FractionalPercent,
) -> Result<Percent> {
    use pb::envoy::r#type::v3::fractional_percent::DenominatorType as D;
    let pb::envoy::r#type::v3::FractionalPercent {
        numerator,
        denominator,
    } = value;
    let denominator = match enum_of::<D>(cx, "denominator", denominator)? {
        D::Hundred => 100,
        D::TenThousand => 10_000,
        D::Million => 1_000_000,
    };
    Ok(Percent {
        numerator,
        denominator,
    })
}

/// `RuntimeFractionalPercent`: its default value; runtime keys cannot be changed here.
pub(super) fn runtime_percent(
    cx: &mut Cx,
    value: core::RuntimeFractionalPercent,
) -> Result<Option<Percent>> {
    let core::RuntimeFractionalPercent {
        default_value,
        runtime_key,
    } = value;
    ignore_runtime_key(cx, &runtime_key);
    cx.opt("default_value", default_value, |cx, v| {
        fractional_percent(cx, v)
    })
}

/// Runtime keys are not consulted: `default_value` holds.
pub(super) fn ignore_runtime_key(cx: &mut Cx, key: &str) {
    if !key.is_empty() {
        cx.ignore(
            "runtime_key",
            "runtime_key",
            "runtime overrides of single fields are not offered: the default value holds",
        );
    }
}

/// `envoy.type.v3.Percent` in 0..=100.
pub(super) fn percent(
    cx: &Cx,
    field: &str,
    value: Option<pb::envoy::r#type::v3::Percent>,
) -> Result<Option<f64>> {
    match value {
        None => Ok(None),
        Some(pb::envoy::r#type::v3::Percent { value }) if (0.0..=100.0).contains(&value) => {
            Ok(Some(value))
        }
        Some(_) => Err(cx.err_at(field, "value must be inside range [0, 100]")),
    }
}

/// What an `Any` holds after unwrapping a `TypedStruct`.
pub(super) struct Extension {
    /// Fully qualified message name, without the `type.googleapis.com/`.
    pub(super) type_name: String,
    payload: Payload,
}

enum Payload {
    Bytes(Vec<u8>),
    Struct(gp::Struct),
}

/// `udpa.type.v1.TypedStruct` and `xds.type.v3.TypedStruct`: the same two fields.
#[derive(Clone, PartialEq, Message)]
struct TypedStruct {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(message, optional, tag = "2")]
    value: Option<gp::Struct>,
}

/// The part of a type URL after the last slash.
fn type_name(url: &str) -> &str {
    url.rsplit_once('/').map_or(url, |(_, name)| name)
}

/// Takes an extension config apart.
pub(super) fn extension(cx: &Cx, name: &str, any: Option<gp::Any>) -> Result<Extension> {
    let Some(gp::Any { type_url, value }) = any else {
        return Err(unregistered(cx, name, ""));
    };
    let outer = type_name(&type_url);
    if outer != "udpa.type.v1.TypedStruct" && outer != "xds.type.v3.TypedStruct" {
        return Ok(Extension {
            type_name: outer.to_owned(),
            payload: Payload::Bytes(value),
        });
    }
    let TypedStruct { type_url, value } = TypedStruct::decode(value.as_slice())
        .map_err(|e| cx.err(format!("Unable to unpack as {outer}: {e}")))?;
    Ok(Extension {
        type_name: type_name(&type_url).to_owned(),
        payload: Payload::Struct(value.unwrap_or_default()),
    })
}

impl Extension {
    /// The message inside.
    pub(super) fn decode<M: Message + Default>(self, cx: &Cx) -> Result<M> {
        match self.payload {
            Payload::Bytes(b) => M::decode(b.as_slice())
                .map_err(|e| cx.err(format!("Unable to unpack as {}: {e}", self.type_name))),
            Payload::Struct(s) if s.fields.is_empty() => Ok(M::default()),
            Payload::Struct(_) => Err(cx.err(format!(
                "a TypedStruct of {} is {UNSUPPORTED}: send the message itself",
                self.type_name
            ))),
        }
    }
}

/// Envoy's words for an extension that is not there.
pub(super) fn unregistered(cx: &Cx, name: &str, type_name: &str) -> crate::ConfigError {
    cx.err(format!(
        "Didn't find a registered implementation for '{name}' with type URL: '{type_name}'"
    ))
}

/// `DataSource`.
pub(super) fn data_source(cx: &Cx, value: core::DataSource) -> Result<DataSource> {
    use core::data_source::Specifier as S;
    let core::DataSource {
        watched_directory,
        specifier,
    } = value;
    refuse_set!(cx; watched_directory);
    Ok(match specifier {
        Some(S::InlineBytes(b)) => DataSource::Inline(Bytes::from(b)),
        Some(S::InlineString(s)) => DataSource::Inline(Bytes::from(s)),
        Some(S::Filename(f)) => DataSource::File(non_empty(cx, "filename", f)?),
        Some(S::EnvironmentVariable(v)) => {
            DataSource::Env(non_empty(cx, "environment_variable", v)?)
        }
        None => return Err(cx.err("specifier: is required")),
    })
}

/// A data source that must be given in place.
pub(super) fn inline_data(cx: &Cx, value: core::DataSource) -> Result<Bytes> {
    match data_source(cx, value)? {
        DataSource::Inline(b) => Ok(b),
        DataSource::File(_) => Err(cx.err_at("filename", UNSUPPORTED)),
        DataSource::Env(_) => Err(cx.err_at("environment_variable", UNSUPPORTED)),
    }
}

/// Envoy's words for a host that is not an IP where only an IP will do.
pub(super) fn malformed_ip(host: &str) -> String {
    format!(
        "malformed IP address: {host}. Consider setting resolver_name or setting cluster type to \
         'STRICT_DNS' or 'LOGICAL_DNS'"
    )
}

/// `Address` of an endpoint: IP, DNS name or pipe.
pub(super) fn address(cx: &mut Cx, value: core::Address) -> Result<Address> {
    use core::address::Address as A;
    let core::Address { address } = value;
    match address {
        Some(A::SocketAddress(s)) => cx.field("socket_address", |cx| socket_address(cx, s)),
        Some(A::Pipe(p)) => cx.field("pipe", |cx| {
            let core::Pipe { path, mode } = p;
            refuse_set!(cx; mode);
            Ok(Address::Pipe(non_empty(cx, "path", path)?))
        }),
        Some(A::EnvoyInternalAddress(_)) => Err(cx.err_at("envoy_internal_address", UNSUPPORTED)),
        None => Err(cx.err("address: is required")),
    }
}

/// `SocketAddress`.
pub(super) fn socket_address(cx: &Cx, value: core::SocketAddress) -> Result<Address> {
    use core::socket_address::{PortSpecifier, Protocol};
    let core::SocketAddress {
        protocol,
        address,
        resolver_name,
        ipv4_compat,
        network_namespace_filepath,
        port_specifier,
    } = value;
    if enum_of::<Protocol>(cx, "protocol", protocol)? == Protocol::Udp {
        return Err(cx.err_at("protocol", format!("UDP is {UNSUPPORTED}")));
    }
    refuse_set!(cx; resolver_name, ipv4_compat, network_namespace_filepath);
    let port = match port_specifier {
        Some(PortSpecifier::PortValue(p)) => port(cx, "port_value", p)?,
        Some(PortSpecifier::NamedPort(_)) => return Err(cx.err_at("named_port", UNSUPPORTED)),
        None => return Err(cx.err("port_specifier: is required")),
    };
    Ok(match address.parse::<IpAddr>() {
        Ok(ip) => Address::Ip(SocketAddr::new(ip, port)),
        Err(_) => Address::Dns {
            host: non_empty(cx, "address", address)?,
            port,
        },
    })
}

/// A socket address that must be a literal IP.
pub(super) fn ip_socket_address(cx: &Cx, value: core::SocketAddress) -> Result<SocketAddr> {
    match socket_address(cx, value)? {
        Address::Ip(a) => Ok(a),
        Address::Dns { host, .. } => {
            Err(cx.err_at("address", format!("malformed IP address: {host}")))
        }
        Address::Pipe(_) => Err(cx.err(UNSUPPORTED)),
    }
}

/// An address that a socket can be bound to.
pub(super) fn bind_address(cx: &mut Cx, value: core::Address) -> Result<SocketAddr> {
    match address(cx, value)? {
        Address::Ip(a) => Ok(a),
        Address::Dns { host, .. } => Err(cx.err_at(
            "socket_address.address",
            format!("malformed IP address: {host}"),
        )),
        Address::Pipe(_) => Err(cx.err_at("pipe", UNSUPPORTED)),
    }
}

/// `CidrRange`, host bits cleared.
pub(super) fn cidr(cx: &Cx, value: core::CidrRange) -> Result<IpNet> {
    let core::CidrRange {
        address_prefix,
        prefix_len,
    } = value;
    let ip: IpAddr = address_prefix.parse().map_err(|_| {
        cx.err_at(
            "address_prefix",
            format!("malformed IP address: {address_prefix}"),
        )
    })?;
    let len = u32_of(prefix_len).unwrap_or(0);
    u8::try_from(len)
        .ok()
        .and_then(|len| IpNet::new(ip, len).ok())
        .map(|net| net.trunc())
        .ok_or_else(|| {
            cx.err_at(
                "prefix_len",
                format!("prefix length {len} is too long for {address_prefix}"),
            )
        })
}

/// Where a resource comes from.
pub(super) enum Source {
    /// The ADS stream.
    Ads,
    /// A gRPC stream to a cluster.
    Grpc {
        /// Delta instead of state of the world.
        delta: bool,
        /// Cluster name.
        cluster: Arc<str>,
    },
}

/// Default of `initial_fetch_timeout`.
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// `ConfigSource`: where to ask, and how long to wait for the first answer.
pub(super) fn config_source(
    cx: &mut Cx,
    value: core::ConfigSource,
) -> Result<(Source, Option<Duration>)> {
    use core::config_source::ConfigSourceSpecifier as S;
    let core::ConfigSource {
        authorities,
        initial_fetch_timeout,
        resource_api_version,
        config_source_specifier,
    } = value;
    refuse_set!(cx; authorities);
    api_version(cx, "resource_api_version", resource_api_version)?;
    let timeout = timer(
        cx,
        "initial_fetch_timeout",
        initial_fetch_timeout,
        Some(INITIAL_FETCH_TIMEOUT),
    )?;
    let source = match config_source_specifier {
        Some(S::Ads(core::AggregatedConfigSource {})) => Source::Ads,
        Some(S::ApiConfigSource(api)) => {
            let (delta, cluster) =
                cx.field("api_config_source", |cx| api_config_source(cx, api))?;
            Source::Grpc { delta, cluster }
        }
        Some(S::Path(_)) => return Err(cx.err_at("path", UNSUPPORTED)),
        Some(S::PathConfigSource(_)) => return Err(cx.err_at("path_config_source", UNSUPPORTED)),
        Some(S::Self_(_)) => return Err(cx.err_at("self", UNSUPPORTED)),
        None => return Err(cx.err("config_source_specifier: is required")),
    };
    Ok((source, timeout))
}

/// A config source that must be the ADS stream.
pub(super) fn ads_source(cx: &mut Cx, value: core::ConfigSource) -> Result<Option<Duration>> {
    match config_source(cx, value)? {
        (Source::Ads, timeout) => Ok(timeout),
        (Source::Grpc { .. }, _) => Err(cx.err_at("api_config_source", UNSUPPORTED)),
    }
}

fn api_version(cx: &Cx, field: &str, value: i32) -> Result<()> {
    match enum_of::<core::ApiVersion>(cx, field, value)? {
        core::ApiVersion::V3 | core::ApiVersion::Auto => Ok(()),
        core::ApiVersion::V2 => Err(cx.err_at(
            field,
            "V2 (and AUTO) xDS transport protocol versions are deprecated",
        )),
    }
}

/// `ApiConfigSource` with one `envoy_grpc` service: whether it is delta, and the cluster.
pub(super) fn api_config_source(
    cx: &mut Cx,
    value: core::ApiConfigSource,
) -> Result<(bool, Arc<str>)> {
    use core::api_config_source::ApiType;
    let core::ApiConfigSource {
        api_type,
        transport_api_version,
        cluster_names,
        grpc_services,
        refresh_delay,
        request_timeout,
        rate_limit_settings,
        set_node_on_first_message_only,
        config_validators,
    } = value;
    refuse_set!(cx; cluster_names, config_validators);
    ignore_set!(cx, "applies to REST only"; refresh_delay, request_timeout);
    ignore_set!(cx, "paces requests of this client only"; rate_limit_settings);
    // The node is always sent in the first message only; a server must accept that anyway.
    let _ = set_node_on_first_message_only;
    api_version(cx, "transport_api_version", transport_api_version)?;
    let delta = match enum_of::<ApiType>(cx, "api_type", api_type)? {
        ApiType::Grpc => false,
        ApiType::DeltaGrpc => true,
        _ => return Err(cx.err_at("api_type", UNSUPPORTED)),
    };
    let mut services = grpc_services.into_iter();
    match (services.next(), services.next()) {
        (Some(service), None) => {
            let cluster = cx.item("grpc_services", 0, |cx| grpc_service(cx, service))?;
            Ok((delta, cluster))
        }
        _ => Err(cx.err_at("grpc_services", "exactly one gRPC service must be given")),
    }
}

/// `GrpcService` by `envoy_grpc`: the cluster.
fn grpc_service(cx: &mut Cx, value: core::GrpcService) -> Result<Arc<str>> {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    let core::GrpcService {
        timeout,
        initial_metadata,
        retry_policy,
        target_specifier,
    } = value;
    refuse_set!(cx; initial_metadata, retry_policy);
    ignore_set!(cx, "does not apply to streams that live for ever"; timeout);
    match target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(grpc)) => cx.field("envoy_grpc", |cx| {
            let EnvoyGrpc {
                cluster_name,
                authority,
                retry_policy,
                max_receive_message_length,
                skip_envoy_headers,
            } = grpc;
            refuse_set!(cx; authority, retry_policy, max_receive_message_length);
            // Such headers are never sent on these streams.
            let _ = skip_envoy_headers;
            non_empty(cx, "cluster_name", cluster_name)
        }),
        Some(TargetSpecifier::GoogleGrpc(_)) => Err(cx.err_at("google_grpc", UNSUPPORTED)),
        None => Err(cx.err("target_specifier: is required")),
    }
}

/// A protobuf Value as JSON; maps are sorted.
pub(super) fn json(value: gp::Value) -> serde_json::Value {
    use gp::value::Kind;
    use serde_json::Value as J;
    match value.kind {
        None | Some(Kind::NullValue(_)) => J::Null,
        Some(Kind::BoolValue(b)) => J::Bool(b),
        Some(Kind::NumberValue(n)) => number(n),
        Some(Kind::StringValue(s)) => J::String(s),
        Some(Kind::ListValue(gp::ListValue { values })) => {
            J::Array(values.into_iter().map(json).collect())
        }
        Some(Kind::StructValue(s)) => J::Object(json_object(s)),
    }
}

/// A protobuf Struct as a JSON object with sorted keys.
pub(super) fn json_object(value: gp::Struct) -> serde_json::Map<String, serde_json::Value> {
    sorted(value.fields)
        .into_iter()
        .map(|(k, v)| (k, json(v)))
        .collect()
}

/// Whole numbers print without a fraction, as protobuf's JSON does.
fn number(n: f64) -> serde_json::Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if n.fract() == 0.0 && n.abs() <= EXACT {
        #[allow(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
        let whole = n as i64;
        return whole.into();
    }
    serde_json::Number::from_f64(n).map_or(serde_json::Value::Null, serde_json::Value::Number)
}

/// Entries of a map in key order, so that errors and models do not depend on hashing.
pub(super) fn sorted<V>(map: std::collections::HashMap<String, V>) -> Vec<(String, V)> {
    let mut entries: Vec<_> = map.into_iter().collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries
}

/// The string fields of a Struct, in key order.
pub(super) fn string_fields(value: gp::Struct) -> Vec<(Arc<str>, Arc<str>)> {
    let mut strings: Vec<_> = sorted(value.fields)
        .into_iter()
        .filter_map(|(k, v)| match v.kind {
            Some(gp::value::Kind::StringValue(s)) => Some((k.into(), s.into())),
            _ => None,
        })
        .collect();
    // `collect` reuses the larger allocation of the protobuf values.
    strings.shrink_to_fit();
    strings
}

/// A string inside a Struct.
pub(super) fn struct_str<'a>(value: &'a gp::Struct, key: &str) -> Option<&'a str> {
    match value.fields.get(key)?.kind.as_ref()? {
        gp::value::Kind::StringValue(s) => Some(s),
        _ => None,
    }
}
