//! Extension configs with remote Wasm code become ones with a local file, or, where the module cannot
//! be had, a filter that lets everything or nothing through. Fields nobody knows survive.

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::try_join_all;
use outrigger_api::any;
use outrigger_api::envoy::envoy::config::core::v3::async_data_source::Specifier;
use outrigger_api::envoy::envoy::config::core::v3::{
    AsyncDataSource, DataSource, RemoteDataSource, data_source,
};
use outrigger_api::envoy::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac as Rules, permission, principal, rbac::Action,
};
use outrigger_api::envoy::envoy::extensions::filters::{http, network};
use outrigger_api::envoy::envoy::extensions::wasm::v3::{EnvironmentVariables, FailurePolicy};
use outrigger_api::json::{EncodeOptions, JsonError};
use outrigger_xds::Protocol;
use outrigger_xds::wire::{Fields, Value, WireError, bytes_field, string_field};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use zeroize::Zeroizing;

use super::cache::{ModuleRequest, PullPolicy, WasmCache};
use super::metrics::Conversion;
use super::reference::PullSecretError;

const HTTP_WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const NETWORK_WASM: &str = "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm";
const HTTP_RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const NETWORK_RBAC: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";

/// Settings for the agent among the module's environment; none of them reaches the module.
const META_PREFIX: &str = "ISTIO_META_";
const PULL_SECRET: &str = "ISTIO_META_WASM_IMAGE_PULL_SECRET";
const PULL_POLICY: &str = "ISTIO_META_WASM_IMAGE_PULL_POLICY";
const RESOURCE_VERSION: &str = "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION";
/// A fetch without `http_uri.timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer timeouts are of no use, and `Duration` must not overflow.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Field numbers on the way from a response to the code.
mod field {
    pub(super) const RESOURCES: u32 = 2;
    /// `resource` of `discovery.Resource`.
    pub(super) const BODY: u32 = 2;
    pub(super) const ANY_TYPE: u32 = 1;
    pub(super) const ANY_VALUE: u32 = 2;
    pub(super) const EXTENSION_NAME: u32 = 1;
    pub(super) const EXTENSION_CONFIG: u32 = 2;
    /// `config` of the filter.
    pub(super) const PLUGIN: u32 = 1;
    pub(super) const VM: u32 = 3;
    pub(super) const FAIL_OPEN: u32 = 5;
    pub(super) const FAILURE_POLICY: u32 = 7;
    pub(super) const CODE: u32 = 3;
    pub(super) const ENVIRONMENT: u32 = 7;
}

/// Why a response is refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Not the messages they should be.
    #[error("extension config is malformed: {0}")]
    Wire(#[from] WireError),
    /// Not the messages they should be.
    #[error("extension config {name:?}: {source}")]
    Decode {
        /// Name of the extension config.
        name: String,
        /// Why.
        source: prost::DecodeError,
    },
    /// A `TypedStruct` that does not fit its type.
    #[error("extension config {name:?}: {source}")]
    Json {
        /// Name of the extension config.
        name: String,
        /// Why.
        source: JsonError,
    },
    /// Nothing to run.
    #[error(
        "extension config {0:?}: typed_config.config.vm_config.code is neither local nor remote"
    )]
    NoCode(String),
}

/// Converts every resource of an ECDS response, all at once.
///
/// # Errors
/// If a resource cannot be understood. A module that cannot be fetched is no error.
pub async fn convert(
    cache: &WasmCache,
    protocol: Protocol,
    response: &Bytes,
) -> Result<Bytes, ConvertError> {
    let begin = Instant::now();
    let fields: Vec<(u32, Value)> = Fields::new(response.clone()).collect::<Result<_, _>>()?;
    let resources = fields.iter().map(|(number, value)| match value {
        Value::Bytes(resource) if *number == field::RESOURCES => Some(resource),
        _ => None,
    });
    let converted = resources.map(|resource| convert_resource(cache, protocol, resource));
    let converted = try_join_all(converted).await.inspect_err(|error| {
        cache.metrics().converted(match error {
            ConvertError::NoCode(_) => Conversion::MissingHint,
            _ => Conversion::Unmarshal,
        });
    })?;
    let mut out = BytesMut::with_capacity(response.len());
    for ((number, value), converted) in fields.into_iter().zip(converted) {
        put(&mut out, number, &converted.map_or(value, Value::Bytes));
    }
    cache.metrics().took(begin.elapsed());
    Ok(out.freeze())
}

/// The new resource; `None` keeps what there is.
async fn convert_resource(
    cache: &WasmCache,
    protocol: Protocol,
    resource: Option<&Bytes>,
) -> Result<Option<Bytes>, ConvertError> {
    let Some(resource) = resource else {
        return Ok(None);
    };
    let any = match protocol {
        Protocol::Sotw => Some(resource.clone()),
        Protocol::Delta => bytes_field(resource, field::BODY)?,
    };
    let body = |any: &Bytes| bytes_field(any, field::ANY_VALUE);
    let Some(extension) = any.as_ref().map(body).transpose()?.flatten() else {
        return Ok(None);
    };
    let Some(config) = convert_extension(cache, &extension).await? else {
        return Ok(None);
    };
    let extension = with_field(&extension, field::EXTENSION_CONFIG, Some(config))?;
    let any = with_field(&any.unwrap_or_default(), field::ANY_VALUE, Some(extension))?;
    Ok(Some(match protocol {
        Protocol::Sotw => any,
        Protocol::Delta => with_field(resource, field::BODY, Some(any))?,
    }))
}

/// The new `typed_config`; `None` keeps the old one.
async fn convert_extension(
    cache: &WasmCache,
    extension: &Bytes,
) -> Result<Option<Bytes>, ConvertError> {
    let Some(typed) = bytes_field(extension, field::EXTENSION_CONFIG)? else {
        return Ok(None);
    };
    let name = string_field(extension, field::EXTENSION_NAME)?;
    let mut type_url = string_field(&typed, field::ANY_TYPE)?;
    let mut filter = bytes_field(&typed, field::ANY_VALUE)?.unwrap_or_default();
    let json = |source| ConvertError::Json {
        name: name.clone(),
        source,
    };
    if let Some(inner) = any::unwrap(&type_url, &filter).map_err(json)? {
        if inner.type_url != HTTP_WASM && inner.type_url != NETWORK_WASM {
            return Ok(None);
        }
        let options = EncodeOptions {
            allow_unknown_fields: true,
        };
        let Some(encoded) = inner.resolve(&options).map_err(json)? else {
            return Ok(None);
        };
        (type_url, filter) = (inner.type_url, encoded.bytes.into());
    }
    if type_url != HTTP_WASM && type_url != NETWORK_WASM {
        return Ok(None);
    }
    let plugin = bytes_field(&filter, field::PLUGIN)?.unwrap_or_default();
    let vm = bytes_field(&plugin, field::VM)?.unwrap_or_default();
    let decode = |source| ConvertError::Decode {
        name: name.clone(),
        source,
    };
    let code = bytes_field(&vm, field::CODE)?.unwrap_or_default();
    let remote = match AsyncDataSource::decode(code).map_err(decode)?.specifier {
        None => return Err(ConvertError::NoCode(name)),
        Some(Specifier::Local(_)) => {
            cache.metrics().converted(Conversion::NoRemoteLoad);
            return Ok(None);
        }
        Some(Specifier::Remote(remote)) => remote,
    };
    let environment = bytes_field(&vm, field::ENVIRONMENT)?.unwrap_or_default();
    let environment = EnvironmentVariables::decode(environment).map_err(decode)?;
    let fetched = match request(&name, remote, &environment) {
        Ok(request) => cache.get(&request).await,
        Err(error) => Err(error.into()),
    };
    match fetched {
        Ok(path) => {
            cache.metrics().converted(Conversion::Success);
            let code = AsyncDataSource {
                specifier: Some(Specifier::Local(DataSource {
                    specifier: Some(data_source::Specifier::Filename(path.display().to_string())),
                    ..DataSource::default()
                })),
            };
            let vm = with_field(&vm, field::CODE, Some(code.encode_to_vec().into()))?;
            let vm = with_field(&vm, field::ENVIRONMENT, without_meta(environment))?;
            let plugin = with_field(&plugin, field::VM, Some(vm))?;
            let filter = with_field(&filter, field::PLUGIN, Some(plugin))?;
            Ok(Some(packed(&type_url, filter)))
        }
        Err(error) => {
            cache.metrics().converted(Conversion::Fetch);
            let open = fails_open(&plugin)?;
            tracing::error!(name, open, %error, "cannot fetch Wasm module");
            Ok(Some(stand_in(type_url == HTTP_WASM, open)))
        }
    }
}

fn request(
    name: &str,
    remote: RemoteDataSource,
    environment: &EnvironmentVariables,
) -> Result<ModuleRequest, PullSecretError> {
    let uri = remote.http_uri.unwrap_or_default();
    let timeout = uri.timeout.and_then(|d| {
        let (seconds, nanos) = (d.seconds.try_into().ok()?, d.nanos.try_into().ok()?);
        Some(Duration::new(seconds, nanos).min(MAX_TIMEOUT))
    });
    let value = |key: &str| environment.key_values.get(key).map(String::as_str);
    let secret = value(PULL_SECRET);
    if secret == Some("") {
        return Err(PullSecretError::Empty);
    }
    Ok(ModuleRequest {
        url: uri.uri,
        checksum: if remote.sha256 == "nil" {
            String::new()
        } else {
            remote.sha256
        },
        resource_name: name.to_owned(),
        resource_version: value(RESOURCE_VERSION).unwrap_or_default().to_owned(),
        policy: match value(PULL_POLICY) {
            Some("IfNotPresent") => PullPolicy::IfNotPresent,
            Some("Always") => PullPolicy::Always,
            _ => PullPolicy::Unspecified,
        },
        pull_secret: secret.map(|text| Zeroizing::new(text.to_owned())),
        timeout: timeout
            .filter(|timeout| !timeout.is_zero())
            .unwrap_or(DEFAULT_TIMEOUT),
    })
}

fn without_meta(mut environment: EnvironmentVariables) -> Option<Bytes> {
    environment
        .key_values
        .retain(|key, _| !key.starts_with(META_PREFIX));
    let empty = environment.key_values.is_empty() && environment.host_env_keys.is_empty();
    (!empty).then(|| environment.encode_to_vec().into())
}

fn fails_open(plugin: &Bytes) -> Result<bool, WireError> {
    let mut open = false;
    for field in Fields::new(plugin.clone()) {
        match field? {
            (field::FAIL_OPEN, Value::Varint(value)) => open |= value != 0,
            (field::FAILURE_POLICY, Value::Varint(value)) => {
                open |= value == FailurePolicy::FailOpen as u64;
            }
            _ => {}
        }
    }
    Ok(open)
}

/// What stands in for a filter whose module cannot be had.
fn stand_in(http: bool, open: bool) -> Bytes {
    let any_permission = Permission {
        rule: Some(permission::Rule::Any(true)),
    };
    let any_principal = Principal {
        identifier: Some(principal::Identifier::Any(true)),
    };
    let everybody = Policy {
        permissions: vec![any_permission],
        principals: vec![any_principal],
        ..Policy::default()
    };
    let (prefix, rules) = if open {
        ("wasm-default-allow", None)
    } else {
        let rules = Rules {
            action: Action::Deny as i32,
            policies: [("deny-all".to_owned(), everybody)].into(),
            ..Rules::default()
        };
        ("wasm-default-deny", Some(rules))
    };
    if http {
        let filter = http::rbac::v3::Rbac {
            rules,
            rules_stat_prefix: prefix.to_owned(),
            ..http::rbac::v3::Rbac::default()
        };
        packed(HTTP_RBAC, filter.encode_to_vec().into())
    } else {
        let filter = network::rbac::v3::Rbac {
            rules,
            stat_prefix: prefix.to_owned(),
            ..network::rbac::v3::Rbac::default()
        };
        packed(NETWORK_RBAC, filter.encode_to_vec().into())
    }
}

/// An `Any`.
fn packed(type_url: &str, value: Bytes) -> Bytes {
    let mut out = BytesMut::new();
    let name = Bytes::copy_from_slice(type_url.as_bytes());
    put(&mut out, field::ANY_TYPE, &Value::Bytes(name));
    put(&mut out, field::ANY_VALUE, &Value::Bytes(value));
    out.freeze()
}

/// The message with field `number` replaced (or taken out), everything else as it was.
fn with_field(message: &Bytes, number: u32, new: Option<Bytes>) -> Result<Bytes, WireError> {
    let mut out = BytesMut::with_capacity(message.len());
    for field in Fields::new(message.clone()) {
        let (n, value) = field?;
        if n != number {
            put(&mut out, n, &value);
        }
    }
    if let Some(new) = new {
        put(&mut out, number, &Value::Bytes(new));
    }
    Ok(out.freeze())
}

fn put(out: &mut BytesMut, number: u32, value: &Value) {
    match value {
        Value::Varint(value) => {
            encode_key(number, WireType::Varint, out);
            encode_varint(*value, out);
        }
        Value::Fixed64(value) => {
            encode_key(number, WireType::SixtyFourBit, out);
            out.put_u64_le(*value);
        }
        Value::Bytes(value) => {
            encode_key(number, WireType::LengthDelimited, out);
            encode_varint(value.len() as u64, out);
            out.put_slice(value);
        }
        Value::Fixed32(value) => {
            encode_key(number, WireType::ThirtyTwoBit, out);
            out.put_u32_le(*value);
        }
    }
}
