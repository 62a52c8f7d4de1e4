//! Extension configs that need a remote Wasm module. Fetching modules is not implemented, so such
//! a response is refused as a whole, loudly; everything else passes unchanged.

use bytes::Bytes;
use outrigger_xds::Protocol;
use outrigger_xds::wire::{WireError, string_field};

use super::head::{bytes_field, resource_anys};

const HTTP_WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const NETWORK_WASM: &str = "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm";
/// `TypedStruct` under its two names.
const TYPED_STRUCTS: [&str; 2] = [
    "type.googleapis.com/udpa.type.v1.TypedStruct",
    "type.googleapis.com/xds.type.v3.TypedStruct",
];
/// From the Wasm filter down to its code: `config`, `vm_config`, `code`.
const PATH_TO_CODE: [u32; 3] = [1, 3, 3];
/// `AsyncDataSource.local`.
const LOCAL: u32 = 1;

/// Why a response is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ExtensionError {
    #[error("extension config is malformed: {0}")]
    Malformed(#[from] WireError),
    #[error(
        "extension config {0:?}: typed_config.config.vm_config.code is not local; fetching Wasm \
         modules is not supported by this agent"
    )]
    RemoteWasm(String),
    #[error(
        "extension config {0:?}: a Wasm filter in a TypedStruct is not supported by this agent"
    )]
    TypedStructWasm(String),
}

/// Checks every resource of an ECDS response.
pub(super) fn check(protocol: Protocol, response: &Bytes) -> Result<(), ExtensionError> {
    for any in resource_anys(protocol, response)? {
        // Any.value is a TypedExtensionConfig {name = 1, typed_config = 2}.
        let Some(config) = bytes_field(&any, 2)? else {
            continue;
        };
        let Some(typed) = bytes_field(&config, 2)? else {
            continue;
        };
        let type_url = string_field(&typed, 1)?;
        let body = bytes_field(&typed, 2)?.unwrap_or_default();
        if type_url == HTTP_WASM || type_url == NETWORK_WASM {
            if !has_local_code(body)? {
                return Err(ExtensionError::RemoteWasm(string_field(&config, 1)?));
            }
        } else if TYPED_STRUCTS.contains(&type_url.as_str()) {
            let inner = string_field(&body, 1)?;
            if inner == HTTP_WASM || inner == NETWORK_WASM {
                return Err(ExtensionError::TypedStructWasm(string_field(&config, 1)?));
            }
        }
    }
    Ok(())
}

fn has_local_code(filter: Bytes) -> Result<bool, WireError> {
    let mut message = filter;
    for number in PATH_TO_CODE {
        match bytes_field(&message, number)? {
            Some(inner) => message = inner,
            None => return Ok(false),
        }
    }
    Ok(bytes_field(&message, LOCAL)?.is_some())
}
