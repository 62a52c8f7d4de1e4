//! Applies xDS updates: keeps what is good, refuses what is bad, warms what has to wait, and decides when the
//! process is live. No socket and no task here: streams are behind [`Xds`], listeners behind [`Listeners`].

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::bootstrap::Bootstrap;
use outrigger_config::cluster::Cluster as ClusterConfig;
use outrigger_config::listener::Listener as ListenerConfig;
use outrigger_config::tls::SdsSource;
use outrigger_xds::{Update, type_url};
use tokio::time::Instant;

use crate::control::depends::{self, Dependency, Target};
use crate::control::lifecycle::State;
use crate::control::registry::Registry;
use crate::control::store::Store;
use crate::control::subscription::{SubscriptionStats, Xds};
use crate::listener::manager::ListenerManager;
use crate::stats::{Counter, Gauge};
use crate::upstream::cluster::Cluster;

mod clusters;
mod listeners;
mod resources;

/// Where listeners are put into service.
pub trait Listeners {
    /// Serves `listener`, replacing the one of its name; the replaced one drains. `raw` are the resource's
    /// bytes, by which equal filter chains are recognised.
    ///
    /// # Errors
    /// The reason for the NACK; the replaced listener stays.
    fn apply(&mut self, listener: &Arc<ListenerConfig>, raw: Option<&[u8]>) -> Result<(), String>;

    /// Stops accepting and drains.
    fn remove(&mut self, name: &str);
}

impl Listeners for Rc<RefCell<ListenerManager>> {
    fn apply(&mut self, listener: &Arc<ListenerConfig>, raw: Option<&[u8]>) -> Result<(), String> {
        let applied = self.borrow_mut().apply(Arc::clone(listener), raw);
        applied.map(|_| ()).map_err(|e| e.to_string())
    }

    fn remove(&mut self, name: &str) {
        self.borrow_mut().remove(name);
    }
}

/// Opens the SDS stream of a cluster.
pub type OpenSds = Box<dyn FnMut(&Arc<str>) -> Option<Box<dyn Xds>>>;

/// Tells the DNS part which clusters to resolve.
pub trait Resolve {
    /// Resolves the cluster's endpoints until the cluster is dropped; a later call replaces an earlier one.
    fn watch(&mut self, cluster: &Arc<Cluster>);
    /// Stops.
    fn forget(&mut self, name: &str);
}

/// Something that waits for its dependencies.
#[derive(Debug)]
struct Warming<T> {
    value: Arc<T>,
    waits_for: Vec<(Target, Option<Instant>)>,
    /// Version of the update, for a late refusal.
    version: String,
}

/// A cluster in service or warming.
#[derive(Debug)]
struct ClusterState {
    config: Arc<ClusterConfig>,
    cluster: Arc<Cluster>,
}

#[derive(Debug, Default)]
struct Gauges {
    state: Gauge,
    live: Gauge,
    active_clusters: Gauge,
    warming_clusters: Gauge,
    cluster_added: Counter,
    cluster_modified: Counter,
    cluster_removed: Counter,
    cluster_updated: Counter,
    config_reload: Counter,
    config_reload_time: Gauge,
    listeners_warming: Gauge,
    workers_started: Gauge,
    initialization_time: crate::stats::Histogram,
}

/// The engine. Owned by the control thread.
pub struct Engine {
    store: Arc<Store>,
    /// What arrived, for `/config_dump`.
    pub registry: Registry,
    ads: Option<Box<dyn Xds>>,
    open_sds: OpenSds,
    sds: HashMap<Arc<str>, Box<dyn Xds>>,
    listeners: Box<dyn Listeners>,
    resolver: Box<dyn Resolve>,
    state: State,
    draining: bool,
    cds: SubscriptionStats,
    lds: SubscriptionStats,
    gauges: Gauges,
    clusters: HashMap<Arc<str>, ClusterState>,
    warming_clusters: HashMap<Arc<str>, Warming<Cluster>>,
    warming_listeners: HashMap<Arc<str>, Warming<ListenerConfig>>,
    /// Routes and secrets each listener in service or warming needs.
    listener_needs: HashMap<Arc<str>, Vec<Dependency>>,
    eds_names: BTreeSet<Arc<str>>,
    rds_names: BTreeSet<Arc<str>>,
    secret_names: BTreeSet<(SdsSource, Arc<str>)>,
    /// What is named and not there, and is not waited for (any more): refused, denied or overdue.
    given_up: HashSet<Target>,
    cds_done: bool,
    lds_done: bool,
    wants_cds: bool,
    wants_lds: bool,
    lds_subscribed: bool,
    started: Instant,
    /// Called once, when the process becomes live.
    on_live: Option<fn()>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine that has applied nothing yet. `ads` is `None` when the bootstrap has no ADS.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        bootstrap: &Bootstrap,
        listeners: Box<dyn Listeners>,
        resolver: Box<dyn Resolve>,
        open_sds: OpenSds,
    ) -> Self {
        let stats = Arc::clone(&store.stats);
        let counter = |n: &str| stats.counter(n);
        let gauge = |n: &str| stats.gauge(n);
        let gauges = Gauges {
            state: gauge("server.state"),
            live: gauge("server.live"),
            active_clusters: gauge("cluster_manager.active_clusters"),
            warming_clusters: gauge("cluster_manager.warming_clusters"),
            cluster_added: counter("cluster_manager.cluster_added"),
            cluster_modified: counter("cluster_manager.cluster_modified"),
            cluster_removed: counter("cluster_manager.cluster_removed"),
            cluster_updated: counter("cluster_manager.cluster_updated"),
            config_reload: counter("cluster_manager.cds.config_reload"),
            config_reload_time: gauge("cluster_manager.cds.config_reload_time_ms"),
            listeners_warming: gauge("listener_manager.total_listeners_warming"),
            workers_started: gauge("listener_manager.workers_started"),
            initialization_time: stats.histogram("server.initialization_time_ms"),
        };
        gauges.live.set(1);
        gauges.workers_started.set(0);
        let engine = Self {
            registry: Registry::new(bootstrap.raw.clone()),
            ads: None,
            open_sds,
            sds: HashMap::new(),
            listeners,
            resolver,
            state: State::PreInitializing,
            draining: false,
            cds: SubscriptionStats::new(&stats, "cluster_manager.cds"),
            lds: SubscriptionStats::new(&stats, "listener_manager.lds"),
            gauges,
            clusters: HashMap::new(),
            warming_clusters: HashMap::new(),
            warming_listeners: HashMap::new(),
            listener_needs: HashMap::new(),
            eds_names: BTreeSet::new(),
            rds_names: BTreeSet::new(),
            secret_names: BTreeSet::new(),
            given_up: HashSet::new(),
            cds_done: false,
            lds_done: false,
            wants_cds: bootstrap.cds_ads,
            wants_lds: bootstrap.lds_ads,
            lds_subscribed: false,
            started: Instant::now(),
            on_live: None,
            store,
        };
        engine.publish_state();
        engine
    }

    /// Calls `f` once when the process becomes live.
    pub fn on_live(&mut self, f: fn()) {
        self.on_live = Some(f);
    }

    /// Applies static secrets, clusters and listeners of the bootstrap.
    ///
    /// # Errors
    /// The first object that cannot be built; the process does not start then.
    pub fn start_static(&mut self, bootstrap: &Bootstrap) -> Result<(), String> {
        for secret in &bootstrap.secrets {
            self.store
                .secrets
                .update(&SdsSource::Static, secret)
                .map_err(|e| format!("static secret {}: {e}", secret.name))?;
        }
        let names = bootstrap.clusters.iter().map(|c| &*c.name);
        self.store.clusters.reserve(names);
        for config in &bootstrap.clusters {
            self.add_static_cluster(config);
        }
        for listener in &bootstrap.listeners {
            self.add_static_listener(listener)?;
        }
        self.sync_subscriptions();
        self.progress();
        Ok(())
    }

    /// Starts ADS.
    pub fn start_ads(&mut self, mut ads: Box<dyn Xds>) {
        if self.wants_cds {
            self.cds.attempt.inc();
            ads.subscribe_wildcard(type_url::CLUSTER);
        }
        self.ads = Some(ads);
        // Names that static resources asked for before the stream existed.
        self.eds_names.clear();
        self.rds_names.clear();
        self.secret_names
            .retain(|(source, _)| *source != SdsSource::Ads);
        self.sync_subscriptions();
        self.progress();
    }

    /// An ADS stream failed or could not be opened.
    pub fn ads_disconnected(&mut self) {
        self.cds.failure.inc();
        if self.lds_subscribed {
            self.lds.failure.inc();
        }
    }

    /// Applies one ADS response and answers it.
    pub fn ads_update(&mut self, update: Update) {
        let id = update.id();
        let result = match update.type_url.as_str() {
            type_url::CLUSTER => self.apply_clusters(update),
            type_url::ENDPOINT => self.apply_endpoints(&update),
            type_url::LISTENER => self.apply_listeners(update),
            type_url::ROUTE => self.apply_routes(&update),
            type_url::SECRET => self.apply_secrets(&SdsSource::Ads, &update),
            other => Err(format!("unexpected type {other}")),
        };
        self.progress();
        if let Some(ads) = &mut self.ads {
            match result {
                Ok(()) => ads.ack(id),
                Err(message) => ads.nack(id, message),
            }
        }
        self.subscribe_listeners_when_warm();
    }

    /// Applies one response of the SDS stream of `cluster` and answers it.
    pub fn sds_update(&mut self, cluster: &Arc<str>, update: &Update) {
        let source = SdsSource::Grpc {
            cluster: Arc::clone(cluster),
        };
        let id = update.id();
        let result = self.apply_secrets(&source, update);
        if let Some(stream) = self.sds.get_mut(cluster) {
            match result {
                Ok(()) => stream.ack(id),
                Err(message) => stream.nack(id, message),
            }
        }
        self.progress();
        self.subscribe_listeners_when_warm();
    }

    /// The next moment at which [`Self::on_time`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.open_waits().filter_map(|(_, at)| *at).min()
    }

    /// What clusters and listeners wait for, each with its deadline.
    fn open_waits(&self) -> impl Iterator<Item = &(Target, Option<Instant>)> {
        let clusters = self.warming_clusters.values().flat_map(|w| &w.waits_for);
        let listeners = self.warming_listeners.values().flat_map(|w| &w.waits_for);
        let all = clusters.chain(listeners);
        all.filter(|(target, _)| !self.is_settled(target))
    }

    /// Releases what waited longer than its `initial_fetch_timeout`.
    pub fn on_time(&mut self, now: Instant) {
        self.progress_at(now);
        self.subscribe_listeners_when_warm();
    }

    /// How far the process is.
    #[must_use]
    pub const fn state(&self) -> State {
        if self.draining {
            State::Draining
        } else {
            self.state
        }
    }

    /// `/healthcheck/fail`, `/healthcheck/ok` and `/drain_listeners`.
    pub fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
        self.publish_state();
    }

    /// What is waited for, by owner: `/init_dump`.
    #[must_use]
    pub fn unready(&self) -> Vec<(String, Vec<String>)> {
        let list = |waits: &[(Target, Option<Instant>)]| -> Vec<String> {
            waits.iter().map(|(t, _)| t.dump_name()).collect()
        };
        let mut all: Vec<_> = self
            .warming_listeners
            .iter()
            .map(|(name, w)| {
                let owner = format!("init manager Listener-local-init-manager {name}");
                (owner, list(&w.waits_for))
            })
            .collect();
        all.extend(
            self.warming_clusters
                .iter()
                .map(|(name, w)| (format!("init manager Cluster {name}"), list(&w.waits_for))),
        );
        all.sort();
        all
    }

    fn publish_state(&self) {
        self.gauges.state.set(self.state().number());
    }

    /// Whether there is no reason to wait for it (any more).
    fn is_settled(&self, target: &Target) -> bool {
        let there = match target {
            Target::Route(name) => self
                .store
                .routes
                .lookup(name)
                .is_some_and(|s| s.load().is_some()),
            Target::Secret { source, name } => self.store.secrets.has(source, name),
            Target::Endpoints(name) => self.registry.endpoints.active.get(name).is_some(),
        };
        there || self.given_up.contains(target)
    }

    /// Ends the wait for something that was refused or that the server does not have (Envoy does likewise): one
    /// bad or missing resource must not keep everything else from serving.
    fn give_up(&mut self, target: Target) {
        let named = match &target {
            Target::Route(name) => self.rds_names.contains(name),
            Target::Endpoints(name) => self.eds_names.contains(name),
            Target::Secret { source, name } => {
                let key = (source.clone(), Arc::clone(name));
                self.secret_names.contains(&key)
            }
        };
        if named {
            self.given_up.insert(target);
        }
    }

    /// What of `needs` has to be waited for, each with its deadline.
    fn missing(&self, needs: &[Dependency]) -> Vec<(Target, Option<Instant>)> {
        let now = Instant::now();
        needs
            .iter()
            .filter(|d| !self.is_settled(&d.target))
            .map(|d| (d.target.clone(), d.timeout.map(|t| now + t)))
            .collect()
    }

    /// Finishes warming what is ready or out of time, then moves the state on.
    fn progress(&mut self) {
        self.progress_at(Instant::now());
    }

    fn progress_at(&mut self, now: Instant) {
        let overdue: Vec<_> = self
            .open_waits()
            .filter(|(_, at)| at.is_some_and(|at| at <= now))
            .map(|(target, _)| target.clone())
            .collect();
        self.given_up.extend(overdue);
        let ready = |engine: &Self, waits: &[(Target, Option<Instant>)]| {
            waits.iter().all(|(t, _)| engine.is_settled(t))
        };
        let clusters: Vec<_> = self
            .warming_clusters
            .iter()
            .filter(|(_, w)| ready(self, &w.waits_for))
            .map(|(n, _)| Arc::clone(n))
            .collect();
        for name in clusters {
            self.cluster_is_warm(&name);
        }
        let listeners: Vec<_> = self
            .warming_listeners
            .iter()
            .filter(|(_, w)| ready(self, &w.waits_for))
            .map(|(n, _)| Arc::clone(n))
            .collect();
        for name in listeners {
            self.listener_is_warm(&name);
        }
        self.gauges.active_clusters.set(self.clusters.len() as i64);
        self.gauges
            .warming_clusters
            .set(self.warming_clusters.len() as i64);
        self.gauges
            .listeners_warming
            .set(self.warming_listeners.len() as i64);
        self.advance();
    }

    fn advance(&mut self) {
        if self.state == State::PreInitializing
            && (self.cds_done || !self.wants_cds)
            && self.warming_clusters.is_empty()
        {
            self.state = State::Initializing;
            self.publish_state();
        }
        if self.state == State::Initializing
            && (self.lds_done || !self.wants_lds)
            && self.warming_listeners.is_empty()
        {
            self.state = State::Live;
            self.publish_state();
            self.gauges.workers_started.set(1);
            let elapsed = self.started.elapsed().as_millis();
            self.gauges
                .initialization_time
                .record(u64::try_from(elapsed).unwrap_or(u64::MAX));
            if let Some(f) = self.on_live.take() {
                f();
            }
        }
    }

    /// Listeners are asked for only once the first set of clusters is warm (proxy.md 11.2).
    fn subscribe_listeners_when_warm(&mut self) {
        if self.state == State::PreInitializing || !self.wants_lds || self.lds_subscribed {
            return;
        }
        if let Some(ads) = &mut self.ads {
            self.lds_subscribed = true;
            self.lds.attempt.inc();
            ads.subscribe_wildcard(type_url::LISTENER);
        }
    }

    /// Brings subscriptions in line with what clusters and listeners name.
    fn sync_subscriptions(&mut self) {
        let mut eds = BTreeSet::new();
        let mut rds = BTreeSet::new();
        let mut secrets = BTreeSet::new();
        let mut named = HashSet::new();
        let warming = self.warming_clusters.values().map(|w| &w.value.config);
        let of_clusters = self
            .clusters
            .values()
            .map(|c| &c.config)
            .chain(warming)
            .flat_map(|c| depends::of_cluster(c));
        let of_listeners = self.listener_needs.values().flatten().cloned();
        for dependency in of_clusters.chain(of_listeners) {
            named.insert(dependency.target.clone());
            match dependency.target {
                Target::Endpoints(name) => {
                    eds.insert(name);
                }
                Target::Route(name) => {
                    rds.insert(name);
                }
                Target::Secret { source, name } => {
                    secrets.insert((source, name));
                }
            }
        }
        self.given_up.retain(|t| named.contains(t));
        let old = std::mem::replace(&mut self.eds_names, eds);
        self.change(type_url::ENDPOINT, &old, &self.eds_names.clone());
        let old = std::mem::replace(&mut self.rds_names, rds);
        self.change(type_url::ROUTE, &old, &self.rds_names.clone());
        self.sync_secrets(secrets);
        self.forget_unnamed();
    }

    fn change(&mut self, kind: &str, old: &BTreeSet<Arc<str>>, new: &BTreeSet<Arc<str>>) {
        if let Some(ads) = &mut self.ads {
            resubscribe(&mut **ads, kind, old, new);
        }
    }

    fn sync_secrets(&mut self, wanted: BTreeSet<(SdsSource, Arc<str>)>) {
        let old = std::mem::replace(&mut self.secret_names, wanted);
        let both = old.iter().chain(&self.secret_names);
        let sources: BTreeSet<SdsSource> = both.map(|(source, _)| source.clone()).collect();
        for source in sources {
            let of = |set: &BTreeSet<(SdsSource, Arc<str>)>| -> BTreeSet<Arc<str>> {
                let here = set.iter().filter(|(s, _)| *s == source);
                here.map(|(_, name)| Arc::clone(name)).collect()
            };
            let (old, new) = (of(&old), of(&self.secret_names));
            for name in old.difference(&new) {
                self.store.secrets.forget(&source, name);
                self.registry.secrets.remove(name);
            }
            let SdsSource::Grpc { cluster } = source else {
                self.change(type_url::SECRET, &old, &new);
                continue;
            };
            if !self.sds.contains_key(&cluster) {
                let Some(stream) = (self.open_sds)(&cluster) else {
                    tracing::warn!(target: "secret", "SDS cluster {cluster} is not a static cluster");
                    continue;
                };
                self.sds.insert(Arc::clone(&cluster), stream);
            }
            if let Some(stream) = self.sds.get_mut(&cluster) {
                resubscribe(&mut **stream, type_url::SECRET, &old, &new);
            }
        }
    }

    /// Endpoints and routes that nothing names any more are given back.
    fn forget_unnamed(&mut self) {
        let gone = |active: &crate::control::registry::Resources, names: &BTreeSet<Arc<str>>| {
            active
                .names()
                .filter(|n| !names.contains(*n))
                .cloned()
                .collect::<Vec<_>>()
        };
        for name in gone(&self.registry.endpoints.active, &self.eds_names) {
            self.registry.endpoints.remove(&name);
        }
        for name in gone(&self.registry.routes.active, &self.rds_names) {
            self.registry.routes.remove(&name);
            if let Some(slot) = self.store.routes.lookup(&name) {
                slot.store(None);
            }
        }
    }
}

/// Brings one stream's subscription from the old names to the new ones.
fn resubscribe(
    stream: &mut dyn Xds,
    kind: &str,
    old: &BTreeSet<Arc<str>>,
    new: &BTreeSet<Arc<str>>,
) {
    let texts = |set: &BTreeSet<Arc<str>>, other: &BTreeSet<Arc<str>>| -> Vec<String> {
        set.difference(other).map(ToString::to_string).collect()
    };
    let (added, removed) = (texts(new, old), texts(old, new));
    if !removed.is_empty() {
        stream.unsubscribe(kind, removed);
    }
    if !added.is_empty() {
        stream.subscribe(kind, added);
    }
}

#[cfg(test)]
mod tests;
