//! What a resource waits for before it may serve: route tables and secrets it names, with their deadlines.

use std::sync::Arc;
use std::time::Duration;

use outrigger_config::cluster::{Cluster, TransportSocket};
use outrigger_config::http::RouteSource;
use outrigger_config::listener::{Listener, TerminalFilter};
use outrigger_config::tls::{CommonTls, SdsConfig, SdsSource, SecretRef};

/// One thing to wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dependency {
    /// A route table over RDS.
    Route {
        /// `route_config_name`.
        name: Arc<str>,
        /// `None` = wait for ever.
        timeout: Option<Duration>,
    },
    /// A secret.
    Secret(SdsConfig),
    /// Endpoints over EDS.
    Endpoints {
        /// `service_name`.
        name: Arc<str>,
        /// `None` = wait for ever.
        timeout: Option<Duration>,
    },
}

impl Dependency {
    /// How long it may be waited for; `None` = for ever.
    #[must_use]
    pub const fn timeout(&self) -> Option<Duration> {
        match self {
            Self::Route { timeout, .. } | Self::Endpoints { timeout, .. } => *timeout,
            Self::Secret(config) => config.initial_fetch_timeout,
        }
    }

    /// As `/init_dump` names it.
    #[must_use]
    pub fn target_name(&self) -> String {
        match self {
            Self::Route { name, .. } => {
                format!("shared target RdsRouteConfigSubscription RDS init {name}")
            }
            Self::Secret(config) => format!("shared target SdsApi {}", config.name),
            Self::Endpoints { name, .. } => format!("target EDS {name}"),
        }
    }
}

fn push(list: &mut Vec<Dependency>, dependency: Dependency) {
    if !list.contains(&dependency) {
        list.push(dependency);
    }
}

fn tls(list: &mut Vec<Dependency>, common: &CommonTls) {
    let certificates = common.certificates.iter().filter_map(|c| match c {
        SecretRef::Sds(config) => Some(config),
        SecretRef::Inline(_) => None,
    });
    let validation = common.validation.as_ref().and_then(|v| v.sds.as_ref());
    for config in certificates.chain(validation) {
        if config.source != SdsSource::Static {
            push(list, Dependency::Secret(config.clone()));
        }
    }
}

/// What a listener waits for.
#[must_use]
pub fn of_listener(listener: &Listener) -> Vec<Dependency> {
    let mut list = Vec::new();
    for chain in listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain)
    {
        if let Some(TerminalFilter::Http(hcm)) = &chain.terminal
            && let RouteSource::Rds {
                name,
                initial_fetch_timeout,
            } = &hcm.route
        {
            let name = Arc::clone(name);
            push(
                &mut list,
                Dependency::Route {
                    name,
                    timeout: *initial_fetch_timeout,
                },
            );
        }
        if let Some(context) = &chain.transport_socket {
            tls(&mut list, &context.common);
        }
    }
    list
}

/// What a cluster waits for.
#[must_use]
pub fn of_cluster(cluster: &Cluster) -> Vec<Dependency> {
    let mut list = Vec::new();
    if let outrigger_config::cluster::Discovery::Eds {
        service_name,
        initial_fetch_timeout,
    } = &cluster.discovery
    {
        let name = Arc::clone(service_name);
        list.push(Dependency::Endpoints {
            name,
            timeout: *initial_fetch_timeout,
        });
    }
    let sockets = cluster.transport_socket_matches.iter().map(|m| &m.socket);
    for socket in sockets.chain([&cluster.transport_socket]) {
        if let TransportSocket::Tls(context) = socket {
            tls(&mut list, &context.common);
        }
    }
    list
}
