//! Delta variant: building requests, reading responses.

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};

use super::subscription::{Pending, TypeState};
use super::{Resource, Update, UpdateId, error_detail};

/// First request of the type on a stream. No names means wildcard, so a wildcard with further
/// names must be spelled `*`.
pub(super) fn first(state: &TypeState) -> DeltaDiscoveryRequest {
    let mut subscribe = Vec::with_capacity(state.names().len() + 1);
    if state.wildcard && !state.names().is_empty() {
        subscribe.push("*".to_owned());
    }
    subscribe.extend_from_slice(state.names());
    DeltaDiscoveryRequest {
        type_url: state.type_url.clone(),
        resource_names_subscribe: subscribe,
        initial_resource_versions: state.held_versions().into_iter().collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// Later change of the subscription.
pub(super) fn change(
    state: &TypeState,
    subscribe: Vec<String>,
    unsubscribe: Vec<String>,
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: state.type_url.clone(),
        resource_names_subscribe: subscribe,
        resource_names_unsubscribe: unsubscribe,
        ..DeltaDiscoveryRequest::default()
    }
}

/// ACK or NACK.
pub(super) fn verdict(id: &UpdateId, error: Option<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: id.type_url.clone(),
        response_nonce: id.nonce.clone(),
        error_detail: error_detail(error),
        ..DeltaDiscoveryRequest::default()
    }
}

pub(super) fn on_response(
    state: &mut TypeState,
    stream: u64,
    response: DeltaDiscoveryResponse,
) -> Update {
    // An entry without a body only prolongs a TTL; there is nothing to apply.
    let added: Vec<Resource> = response
        .resources
        .into_iter()
        .filter_map(|entry| {
            let any = entry.resource?;
            Some(Resource {
                name: entry.name,
                version: entry.version,
                type_url: any.type_url,
                body: Bytes::from(any.value),
            })
        })
        .collect();
    state.pending.push_back(Pending {
        stream,
        nonce: response.nonce.clone(),
        version: response.system_version_info.clone(),
        versions: added
            .iter()
            .map(|r| (r.name.clone(), r.version.clone()))
            .collect(),
        removed: response.removed_resources.clone(),
    });
    Update {
        type_url: response.type_url,
        version: response.system_version_info,
        added,
        removed: response.removed_resources,
        nonce: response.nonce,
        stream,
    }
}
