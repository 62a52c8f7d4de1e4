//! CDS and EDS.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant as Clock;

use outrigger_config::cluster::{Cluster as ClusterConfig, Discovery};
use outrigger_config::{parse_cluster, parse_load_assignment};
use outrigger_xds::{Resource, Update};

use super::{ClusterState, Engine, Warming};
use crate::control::depends::{self, Target};
use crate::upstream::cluster::Cluster;

impl Engine {
    pub(super) fn add_static_cluster(&mut self, config: &Arc<ClusterConfig>) {
        let cluster = Cluster::build(Arc::clone(config), false, &self.store, None);
        let waits_for = self.missing(&depends::of_cluster(config));
        let name = Arc::clone(&config.name);
        if waits_for.is_empty() {
            self.publish_cluster(&name, cluster);
        } else {
            let warming = Warming {
                value: cluster,
                waits_for,
                version: String::new(),
            };
            self.warming_clusters.insert(name, warming);
        }
    }

    /// Applies a CDS response; the error is the NACK's text. Good clusters are applied either way.
    pub(super) fn apply_clusters(&mut self, update: Update) -> Result<(), String> {
        let start = Clock::now();
        let names = update.added.iter().map(|r| r.name.as_str());
        self.store.clusters.reserve(names);
        let mut errors = Vec::new();
        let mut seen = HashSet::new();
        let mut changed = 0;
        for resource in update.added {
            let name = resource.name.clone();
            if !seen.insert(name.clone()) {
                errors.push(format!("{name}: duplicate cluster {name} found"));
                continue;
            }
            match self.apply_cluster(resource) {
                Ok(applied) => changed += u64::from(applied),
                Err(reason) => errors.push(format!("{name}: {reason}")),
            }
        }
        for name in &update.removed {
            changed += u64::from(self.remove_cluster(name));
        }
        self.cds_done = true;
        if changed > 0 {
            self.gauges.config_reload.inc();
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default();
            self.gauges
                .config_reload_time
                .set(i64::try_from(now.as_millis()).unwrap_or(0));
        }
        self.sync_subscriptions();
        let accepted = errors.is_empty();
        let elapsed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.cds.updated(accepted, &update.version, elapsed);
        if accepted {
            self.registry.clusters.version = update.version;
            return Ok(());
        }
        Err(format!(
            "Error adding/updating cluster(s) {}",
            errors.join(", ")
        ))
    }

    /// Whether something changed.
    fn apply_cluster(&mut self, resource: Resource) -> Result<bool, String> {
        let name: Arc<str> = resource.name.as_str().into();
        let section = &mut self.registry.clusters;
        if section.is_unchanged(&name, &resource.body) {
            section.errors.remove(&name);
            return Ok(false);
        }
        // The bootstrap's clusters cannot be replaced by dynamic ones.
        if self
            .clusters
            .get(&name)
            .is_some_and(|c| !c.cluster.added_via_api)
        {
            return Ok(false);
        }
        let parsed = match parse_cluster(&resource.body) {
            Ok(parsed) if parsed.value.name == name => parsed,
            Ok(parsed) => return Err(format!("resource is named {}", parsed.value.name)),
            Err(error) => {
                let details = error.to_string();
                section.fail(&name, &resource.version, resource.body, details.clone());
                return Err(details);
            }
        };
        self.registry.ignore("cluster", &name, parsed.ignored);
        let section = &mut self.registry.clusters;
        section.errors.remove(&name);
        section
            .warming
            .insert(&name, &resource.version, resource.body);
        let config = Arc::new(parsed.value);
        let previous = self.clusters.get(&name).map(|c| Arc::clone(&c.cluster));
        match previous {
            Some(_) => self.gauges.cluster_modified.inc(),
            None => self.gauges.cluster_added.inc(),
        }
        let cluster = Cluster::build(Arc::clone(&config), true, &self.store, previous.as_deref());
        // Endpoints that are known already (the subscription is kept) spare the wait.
        if let Discovery::Eds { service_name, .. } = &config.discovery
            && let Some(known) = self.registry.endpoints.active.get(service_name)
            && let Ok(assignment) = parse_load_assignment(&known.body)
        {
            cluster.update_hosts(&assignment.value);
        }
        let waits_for = self.missing(&depends::of_cluster(&config));
        let warming = Warming {
            value: cluster,
            waits_for,
            version: resource.version,
        };
        self.warming_clusters.insert(Arc::clone(&name), warming);
        if self
            .warming_clusters
            .get(&name)
            .is_some_and(|w| w.waits_for.is_empty())
        {
            self.cluster_is_warm(&name);
        }
        Ok(true)
    }

    /// Puts a warm cluster into service.
    pub(super) fn cluster_is_warm(&mut self, name: &Arc<str>) {
        let Some(warming) = self.warming_clusters.remove(name) else {
            return;
        };
        let clusters = &mut self.registry.clusters;
        clusters.active.take_from(&mut clusters.warming, name);
        self.publish_cluster(name, warming.value);
    }

    fn publish_cluster(&mut self, name: &Arc<str>, cluster: Arc<Cluster>) {
        let resolved = matches!(
            cluster.config.discovery,
            Discovery::StrictDns(..) | Discovery::LogicalDns(..)
        );
        if resolved {
            self.resolver.watch(&cluster);
        } else {
            self.resolver.forget(name);
        }
        self.store
            .clusters
            .slot(name)
            .store(Some(Arc::clone(&cluster)));
        let config = Arc::clone(&cluster.config);
        self.clusters
            .insert(Arc::clone(name), ClusterState { config, cluster });
        self.gauges.cluster_updated.inc();
    }

    fn remove_cluster(&mut self, name: &str) -> bool {
        if self
            .clusters
            .get(name)
            .is_some_and(|c| !c.cluster.added_via_api)
        {
            return false;
        }
        let was_warming = self.warming_clusters.remove(name).is_some();
        let Some(state) = self.clusters.remove(name) else {
            self.registry.clusters.remove(name);
            return was_warming;
        };
        self.resolver.forget(name);
        if let Some(slot) = self.store.clusters.lookup(name) {
            slot.store(None);
        }
        self.registry.clusters.remove(name);
        self.registry.ignore("cluster", name, Vec::new());
        self.gauges.cluster_removed.inc();
        let prefix = format!("cluster.{}.", state.config.observability_name);
        drop(state);
        self.store.stats.forget_unused(&prefix);
        true
    }

    /// Applies an EDS response. Each assignment stands alone; what is bad keeps its old value.
    pub(super) fn apply_endpoints(&mut self, update: &Update) -> Result<(), String> {
        let mut errors = Vec::new();
        let clusters = self.clusters_of(update);
        for resource in &update.added {
            let name: Arc<str> = resource.name.as_str().into();
            if !self.eds_names.contains(&name) {
                continue;
            }
            let section = &mut self.registry.endpoints;
            if section.is_unchanged(&name, &resource.body) {
                continue;
            }
            match parse_load_assignment(&resource.body) {
                Ok(parsed) => {
                    section
                        .active
                        .insert(&name, &resource.version, resource.body.clone());
                    section.errors.remove(&name);
                    self.registry.ignore("endpoints", &name, parsed.ignored);
                    for cluster in clusters.get(&*name).into_iter().flatten() {
                        cluster.update_hosts(&parsed.value);
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    section.fail(
                        &name,
                        &resource.version,
                        resource.body.clone(),
                        text.clone(),
                    );
                    errors.push(format!("{name}: {text}"));
                    self.give_up(Target::Endpoints(name));
                }
            }
        }
        for name in &update.removed {
            self.give_up(Target::Endpoints(name.as_str().into()));
        }
        if errors.is_empty() {
            self.registry.endpoints.version.clone_from(&update.version);
            return Ok(());
        }
        Err(errors.join(", "))
    }

    /// EDS clusters in service or warming whose endpoints are in the response, by service name.
    fn clusters_of<'a>(&self, update: &'a Update) -> HashMap<&'a str, Vec<Arc<Cluster>>> {
        let serving = self.clusters.values().map(|c| &c.cluster);
        let warming = self.warming_clusters.values().map(|w| &w.value);
        let names = update.added.iter().map(|r| (r.name.as_str(), Vec::new()));
        let mut by_service: HashMap<_, _> = names.collect();
        for cluster in serving.chain(warming) {
            if let Discovery::Eds { service_name, .. } = &cluster.config.discovery
                && let Some(clusters) = by_service.get_mut(&**service_name)
            {
                clusters.push(Arc::clone(cluster));
            }
        }
        by_service
    }
}
