//! HTTP filters before the router. One enum of the configuration, one function per filter: a filter either lets
//! the request on or answers it.

pub mod cors;
pub mod fault;

use std::sync::Arc;

use outrigger_config::http::{HttpFilterKind, IstioAlpn, PerFilter, PerFilterConfig};

use crate::http::route::Selected;

/// The per-route setting of a filter by its configured name: weighted cluster (not known yet when filters run),
/// route, virtual host, route configuration.
#[must_use]
pub fn per_route<'a>(selected: &'a Selected, name: &str) -> Option<&'a PerFilter> {
    let find =
        |c: &'a PerFilterConfig| c.entries.iter().find(|(n, _)| **n == *name).map(|(_, f)| f);
    find(&selected.route().per_filter)
        .or_else(|| find(&selected.virtual_host().per_filter))
        .or_else(|| find(&selected.configuration().per_filter))
}

/// ALPN lists of the chain's `istio.alpn` filter.
#[must_use]
pub fn alpn(filters: &[outrigger_config::http::HttpFilter]) -> Option<Arc<IstioAlpn>> {
    filters.iter().find_map(|f| match &f.kind {
        HttpFilterKind::IstioAlpn(alpn) if !f.disabled => Some(Arc::clone(alpn)),
        _ => None,
    })
}
