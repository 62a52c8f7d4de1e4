//! Route tables with their cluster names resolved to slots: what one request looks up.

use std::sync::Arc;

use outrigger_config::matcher::{HeaderMatchKind, HeaderMatcher, QueryParameterMatcher};
use outrigger_config::route::{
    ClusterSpecifier, Forward, HeaderMutations, PathMatch, Percent, Route, RouteAction,
    RouteConfiguration, RouteMatch, RouteTable, VirtualHost, WeightedCluster,
};
use smallvec::SmallVec;

use crate::control::store::{Slot, Store};
use crate::http::headers::Headers;
use crate::http::local_reply::is_grpc;
use crate::upstream::cluster::Cluster;

/// Runtime form of a RouteConfiguration.
#[derive(Debug)]
pub struct RouteRuntime {
    /// The validated configuration.
    pub config: Arc<RouteConfiguration>,
    table: RouteTable,
    /// Cluster slots by virtual host and route.
    targets: Vec<Vec<Targets>>,
}

/// Slots of one route's clusters.
#[derive(Debug, Default)]
struct Targets {
    clusters: Vec<Arc<Slot<Cluster>>>,
    total_weight: u64,
    mirrors: Vec<Arc<Slot<Cluster>>>,
}

impl Targets {
    fn new(route: &Route, store: &Store) -> Self {
        let RouteAction::Forward(forward) = &route.action else {
            return Self::default();
        };
        let slot = |name: &Arc<str>| store.clusters.slot(name);
        let (clusters, total_weight) = match &forward.cluster {
            ClusterSpecifier::Cluster(name) => (vec![slot(name)], 1),
            ClusterSpecifier::Weighted(list) => (
                list.iter().map(|w| slot(&w.name)).collect(),
                list.iter().map(|w| u64::from(w.weight)).sum(),
            ),
            ClusterSpecifier::Header(_) => (Vec::new(), 0),
        };
        let mirrors = forward.mirrors.iter().map(|m| slot(&m.cluster)).collect();
        Self {
            clusters,
            total_weight,
            mirrors,
        }
    }
}

/// Every cluster that routes name.
fn cluster_names(config: &RouteConfiguration) -> impl Iterator<Item = &str> {
    let routes = config.virtual_hosts.iter().flat_map(|v| &v.routes);
    let forwards = routes.filter_map(|r| match &r.action {
        RouteAction::Forward(forward) => Some(forward),
        _ => None,
    });
    forwards.flat_map(|forward| {
        let (one, many) = match &forward.cluster {
            ClusterSpecifier::Cluster(name) => (Some(&**name), &[][..]),
            ClusterSpecifier::Weighted(list) => (None, list.as_slice()),
            ClusterSpecifier::Header(_) => (None, &[][..]),
        };
        let many = many.iter().map(|w| &*w.name);
        let mirrors = forward.mirrors.iter().map(|m| &*m.cluster);
        one.into_iter().chain(many).chain(mirrors)
    })
}

/// The route of one request.
#[derive(Debug, Clone)]
pub struct Selected {
    table: Arc<RouteRuntime>,
    virtual_host: usize,
    route: usize,
}

/// The cluster of one request.
#[derive(Debug)]
pub struct Target<'a> {
    /// Where the cluster is, or will be. `None` = the header named nothing that is known.
    pub slot: Option<Arc<Slot<Cluster>>>,
    /// The entry chosen from `weighted_clusters`.
    pub weighted: Option<&'a WeightedCluster>,
    /// Index of that entry.
    pub weighted_index: Option<usize>,
}

impl RouteRuntime {
    /// Compiles a configuration; unknown clusters get empty slots.
    #[must_use]
    pub fn build(config: Arc<RouteConfiguration>, store: &Store) -> Arc<Self> {
        store.clusters.reserve(cluster_names(&config));
        let targets = config
            .virtual_hosts
            .iter()
            .map(|v| v.routes.iter().map(|r| Targets::new(r, store)).collect())
            .collect();
        Arc::new(Self {
            table: RouteTable::build(Arc::clone(&config)),
            targets,
            config,
        })
    }

    /// Index of the virtual host of an authority.
    #[must_use]
    pub fn virtual_host(&self, authority: &[u8]) -> Option<usize> {
        self.table.virtual_host(authority)
    }

    /// The first route of the virtual host that matches.
    #[must_use]
    pub fn select(
        self: &Arc<Self>,
        virtual_host: usize,
        headers: &Headers,
        random: impl Fn() -> u64,
    ) -> Option<Selected> {
        let vhost = self.config.virtual_hosts.get(virtual_host)?;
        let route = vhost
            .routes
            .iter()
            .position(|r| matches(&r.matcher, headers, &random))?;
        Some(Selected {
            table: Arc::clone(self),
            virtual_host,
            route,
        })
    }
}

impl Selected {
    /// The route configuration.
    #[must_use]
    pub fn configuration(&self) -> &RouteConfiguration {
        &self.table.config
    }

    /// The virtual host.
    #[must_use]
    pub fn virtual_host(&self) -> &VirtualHost {
        &self.table.config.virtual_hosts[self.virtual_host]
    }

    /// The route.
    #[must_use]
    pub fn route(&self) -> &Route {
        &self.virtual_host().routes[self.route]
    }

    /// Header changes of every level, the most specific first.
    #[must_use]
    pub fn header_levels<'a>(
        &'a self,
        weighted: Option<&'a HeaderMutations>,
    ) -> SmallVec<[&'a HeaderMutations; 4]> {
        let others = [
            &self.route().headers,
            &self.virtual_host().headers,
            &self.configuration().headers,
        ];
        weighted.into_iter().chain(others).collect()
    }

    fn targets(&self) -> &Targets {
        &self.table.targets[self.virtual_host][self.route]
    }

    /// Chooses the cluster of a forwarding route.
    #[must_use]
    pub fn target<'a>(
        &'a self,
        forward: &'a Forward,
        headers: &Headers,
        store: &Store,
        random: u64,
    ) -> Target<'a> {
        let targets = self.targets();
        match &forward.cluster {
            ClusterSpecifier::Cluster(_) => Target {
                slot: targets.clusters.first().cloned(),
                weighted: None,
                weighted_index: None,
            },
            ClusterSpecifier::Weighted(list) => {
                let mut at = random % targets.total_weight.max(1);
                for (i, (entry, slot)) in list.iter().zip(&targets.clusters).enumerate() {
                    if at < u64::from(entry.weight) {
                        return Target {
                            slot: Some(Arc::clone(slot)),
                            weighted: Some(entry),
                            weighted_index: Some(i),
                        };
                    }
                    at -= u64::from(entry.weight);
                }
                Target {
                    slot: None,
                    weighted: None,
                    weighted_index: None,
                }
            }
            ClusterSpecifier::Header(name) => Target {
                slot: headers
                    .get(name.as_bytes())
                    .and_then(|v| std::str::from_utf8(v).ok())
                    .and_then(|v| store.clusters.lookup(v)),
                weighted: None,
                weighted_index: None,
            },
        }
    }

    /// Slot of the `i`th mirror policy.
    #[must_use]
    pub fn mirror(&self, i: usize) -> Option<&Arc<Slot<Cluster>>> {
        self.targets().mirrors.get(i)
    }
}

/// Whether a share is hit.
#[must_use]
pub fn hit(percent: Percent, random: u64) -> bool {
    random % u64::from(percent.denominator.max(1)) < u64::from(percent.numerator)
}

fn matches(m: &RouteMatch, headers: &Headers, random: &impl Fn() -> u64) -> bool {
    path_matches(m, headers)
        && m.headers.iter().all(|h| header_matches(h, headers))
        && m.query_parameters
            .iter()
            .all(|q| query_matches(q, headers.path()))
        && (!m.grpc || is_grpc(headers))
        && m.runtime_fraction.is_none_or(|p| hit(p, random()))
}

fn path_matches(m: &RouteMatch, headers: &Headers) -> bool {
    if headers.method() == b"CONNECT" && !headers.has_path() {
        return matches!(m.path, PathMatch::Connect);
    }
    let path = headers.path_without_query();
    let same = |a: &[u8], b: &[u8]| {
        if m.case_sensitive {
            a == b
        } else {
            a.eq_ignore_ascii_case(b)
        }
    };
    match &m.path {
        PathMatch::Prefix(p) => path
            .get(..p.len())
            .is_some_and(|start| same(start, p.as_bytes())),
        PathMatch::Exact(p) => same(path, p.as_bytes()),
        PathMatch::Regex(r) => std::str::from_utf8(path).is_ok_and(|p| r.full.is_match(p)),
        PathMatch::PathSeparatedPrefix(p) => {
            path.get(..p.len())
                .is_some_and(|start| same(start, p.as_bytes()))
                && matches!(path.get(p.len()), None | Some(b'/'))
        }
        PathMatch::Connect => headers.method() == b"CONNECT",
    }
}

/// Whether a header matcher holds. Repeated lines are tested one by one.
#[must_use]
pub fn header_matches(m: &HeaderMatcher, headers: &Headers) -> bool {
    let name = m.name.as_bytes();
    let present = headers.get(name).is_some();
    if let HeaderMatchKind::Present(want) = &m.kind {
        let present = present || m.treat_missing_as_empty;
        return (present == *want) != m.invert;
    }
    let test = |value: &[u8]| match &m.kind {
        HeaderMatchKind::Present(_) => true,
        HeaderMatchKind::String(s) => s.matches(value),
        HeaderMatchKind::Range { start, end } => std::str::from_utf8(value)
            .ok()
            .and_then(|v| v.parse::<i64>().ok())
            .is_some_and(|v| (*start..*end).contains(&v)),
    };
    if !present {
        // A missing header matches nothing, not even inverted (proxy.md 4.2).
        return m.treat_missing_as_empty && test(b"") != m.invert;
    }
    let any = if name.first() == Some(&b':') || name == b"host" {
        headers.get(name).is_some_and(test)
    } else {
        headers.get_all(name).any(test)
    };
    any != m.invert
}

fn query_matches(m: &QueryParameterMatcher, path: &[u8]) -> bool {
    let value = query_parameter(path, m.name.as_bytes());
    match (&m.value, value) {
        (Some(s), Some(v)) => s.matches(v),
        (Some(_), None) => false,
        (None, v) => v.is_some() == m.present,
    }
}

/// First value of a query parameter, as sent.
#[must_use]
pub fn query_parameter<'a>(path: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let at = memchr::memchr(b'?', path)?;
    path[at + 1..].split(|c| *c == b'&').find_map(|pair| {
        let end = memchr::memchr(b'=', pair).unwrap_or(pair.len());
        (&pair[..end] == name).then(|| pair.get(end + 1..).unwrap_or_default())
    })
}
