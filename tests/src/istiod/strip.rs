//! Takes Istio's own extensions out of a snapshot, so that a stock Envoy accepts it.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::listener::v3::listener_filter::ConfigType as ListenerConfig;
use envoy_types::pb::envoy::config::listener::v3::{Filter, Listener, filter};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_filter,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::snapshot::{CLUSTER, LISTENER, Snapshot};

const HCM: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

fn is_istio(name: &str, any: Option<&Any>) -> bool {
    name.starts_with("istio.") || any.is_some_and(|a| a.type_url.contains("/istio."))
}

/// Removes network, HTTP and upstream filters that only Istio's build of Envoy has.
pub fn strip(snapshot: &mut Snapshot) -> Result<(), prost::DecodeError> {
    let mut failed = None;
    snapshot.edit::<Listener>(LISTENER, |listener| {
        listener.listener_filters.retain(|f| match &f.config_type {
            Some(ListenerConfig::TypedConfig(any)) => !is_istio(&f.name, Some(any)),
            _ => !is_istio(&f.name, None),
        });
        let chains = listener
            .filter_chains
            .iter_mut()
            .chain(&mut listener.default_filter_chain);
        for chain in chains {
            chain
                .filters
                .retain(|f| !is_istio(&f.name, network_config(f)));
            for filter in &mut chain.filters {
                if let Err(e) = strip_http(filter) {
                    failed = Some(e);
                }
            }
        }
    })?;
    snapshot.edit::<Cluster>(CLUSTER, |cluster| {
        cluster
            .filters
            .retain(|f| !is_istio(&f.name, f.typed_config.as_ref()));
    })?;
    failed.map_or(Ok(()), Err)
}

fn network_config(filter: &Filter) -> Option<&Any> {
    match &filter.config_type {
        Some(filter::ConfigType::TypedConfig(any)) => Some(any),
        _ => None,
    }
}

fn strip_http(filter: &mut Filter) -> Result<(), prost::DecodeError> {
    let Some(filter::ConfigType::TypedConfig(any)) = &mut filter.config_type else {
        return Ok(());
    };
    if any.type_url != HCM {
        return Ok(());
    }
    let mut manager = HttpConnectionManager::decode(any.value.as_slice())?;
    manager.http_filters.retain(|f| match &f.config_type {
        Some(http_filter::ConfigType::TypedConfig(any)) => !is_istio(&f.name, Some(any)),
        _ => !is_istio(&f.name, None),
    });
    any.value = manager.encode_to_vec();
    Ok(())
}
