//! What a resource waits for before it may serve: route tables and secrets it names, with their deadlines.

use std::sync::Arc;
use std::time::Duration;

use outrigger_config::cluster::{Cluster, TransportSocket};
use outrigger_config::http::RouteSource;
use outrigger_config::listener::{Listener, TerminalFilter};
use outrigger_config::tls::{CommonTls, SdsSource, SecretRef};

/// A resource that is delivered by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A route table over RDS: `route_config_name`.
    Route(Arc<str>),
    /// A secret.
    Secret {
        /// Where it is asked for.
        source: SdsSource,
        /// Its name.
        name: Arc<str>,
    },
    /// Endpoints over EDS: `service_name`.
    Endpoints(Arc<str>),
}

/// One thing to wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// What.
    pub target: Target,
    /// How long, at most; `None` = for ever.
    pub timeout: Option<Duration>,
}

impl Target {
    /// As `/init_dump` names it.
    #[must_use]
    pub fn dump_name(&self) -> String {
        match self {
            Self::Route(name) => {
                format!("shared target RdsRouteConfigSubscription RDS init {name}")
            }
            Self::Secret { name, .. } => format!("shared target SdsApi {name}"),
            Self::Endpoints(name) => format!("target EDS {name}"),
        }
    }
}

fn push(list: &mut Vec<Dependency>, target: Target, timeout: Option<Duration>) {
    let dependency = Dependency { target, timeout };
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
            let target = Target::Secret {
                source: config.source.clone(),
                name: Arc::clone(&config.name),
            };
            push(list, target, config.initial_fetch_timeout);
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
            let target = Target::Route(Arc::clone(name));
            push(&mut list, target, *initial_fetch_timeout);
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
        let target = Target::Endpoints(Arc::clone(service_name));
        push(&mut list, target, *initial_fetch_timeout);
    }
    let sockets = cluster.transport_socket_matches.iter().map(|m| &m.socket);
    for socket in sockets.chain([&cluster.transport_socket]) {
        if let TransportSocket::Tls(context) = socket {
            tls(&mut list, &context.common);
        }
    }
    list
}
