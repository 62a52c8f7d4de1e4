//! State-of-the-world variant: building requests, reading responses.

use std::collections::BTreeSet;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::subscription::{Pending, TypeState};
use super::{Resource, SessionError, Update, error_detail};
use crate::type_url::{RESOURCE_WRAPPER, is_full_set};
use crate::wire::{WireError, string_field};

/// Field that holds the name in every type that SotW servers send.
const NAME_FIELD: u32 = 1;

/// Every SotW request has the same form: accepted version, last nonce, full list of names.
pub(super) fn request(state: &TypeState, error: Option<String>) -> discovery::DiscoveryRequest {
    discovery::DiscoveryRequest {
        version_info: state.version.clone(),
        resource_names: if state.wildcard {
            Vec::new()
        } else {
            state.names().to_vec()
        },
        type_url: state.type_url.clone(),
        response_nonce: state.nonce.clone(),
        error_detail: error_detail(error),
        ..discovery::DiscoveryRequest::default()
    }
}

pub(super) fn on_response(
    state: &mut TypeState,
    stream: u64,
    response: discovery::DiscoveryResponse,
) -> Result<Update, SessionError> {
    let mut added = Vec::with_capacity(response.resources.len());
    for (index, any) in response.resources.into_iter().enumerate() {
        let resource =
            resource(any, &response.version_info).map_err(|source| SessionError::Malformed {
                type_url: response.type_url.clone(),
                index,
                source,
            })?;
        added.extend(resource);
    }
    let removed = if is_full_set(&response.type_url) {
        let present: BTreeSet<String> = added.iter().map(|r: &Resource| r.name.clone()).collect();
        let removed = state.delivered.difference(&present).cloned().collect();
        state.delivered = present;
        removed
    } else {
        Vec::new()
    };
    state.pending.push_back(Pending {
        stream,
        nonce: response.nonce.clone(),
        version: response.version_info.clone(),
        versions: Vec::new(),
        removed: Vec::new(),
    });
    Ok(Update {
        type_url: response.type_url,
        version: response.version_info,
        added,
        removed,
        nonce: response.nonce,
        stream,
    })
}

/// Unwraps `Resource`, finds the name. `None` for a wrapper without a body (TTL only).
fn resource(any: Any, version: &str) -> Result<Option<Resource>, WireError> {
    if any.type_url == RESOURCE_WRAPPER {
        let wrapped =
            discovery::Resource::decode(any.value.as_slice()).map_err(|_| WireError::Truncated)?;
        return Ok(wrapped.resource.map(|inner| Resource {
            name: wrapped.name,
            version: version.to_owned(),
            type_url: inner.type_url,
            body: Bytes::from(inner.value),
        }));
    }
    let body = Bytes::from(any.value);
    let name = string_field(&body, NAME_FIELD)?;
    Ok(Some(Resource {
        name,
        version: version.to_owned(),
        type_url: any.type_url,
        body,
    }))
}
