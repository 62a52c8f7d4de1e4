//! Published configuration: slots for clusters and routes that workers read without locks, and the shared
//! services (stats, log sinks, secrets) runtime objects are built with. The control thread is the only writer.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;

use crate::access_log::LogSinks;
use crate::http::route::RouteRuntime;
use crate::stats::Stats;
use crate::tls::secret::SecretStore;
use crate::upstream::cluster::Cluster;

/// One named resource, swapped alone. Empty = not (yet, or no longer) there.
#[derive(Debug)]
pub struct Slot<T> {
    /// Resource name.
    pub name: Arc<str>,
    value: ArcSwapOption<T>,
}

impl<T> Slot<T> {
    /// An empty slot.
    #[must_use]
    pub fn new(name: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            name,
            value: ArcSwapOption::empty(),
        })
    }

    /// The current value.
    #[must_use]
    pub fn load(&self) -> Option<Arc<T>> {
        self.value.load_full()
    }

    /// Publishes a value, or takes it away.
    pub fn store(&self, value: Option<Arc<T>>) {
        self.value.store(value);
    }
}

/// A table of slots by name. Slots are created on first mention, so that a route may name a cluster that
/// comes later.
#[derive(Debug)]
pub struct Table<T> {
    slots: ArcSwap<HashMap<Arc<str>, Arc<Slot<T>>>>,
    write: Mutex<()>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            slots: ArcSwap::from_pointee(HashMap::new()),
            write: Mutex::new(()),
        }
    }
}

impl<T> Table<T> {
    /// The slot of `name`, created empty if it is new. Not for the request path unless the name is dynamic.
    pub fn slot(&self, name: &str) -> Arc<Slot<T>> {
        if let Some(slot) = self.slots.load().get(name) {
            return Arc::clone(slot);
        }
        let _guard = self.write.lock();
        if let Some(slot) = self.slots.load().get(name) {
            return Arc::clone(slot);
        }
        let name: Arc<str> = name.into();
        let slot = Slot::new(Arc::clone(&name));
        let mut slots = HashMap::clone(&self.slots.load());
        slots.insert(name, Arc::clone(&slot));
        self.slots.store(Arc::new(slots));
        slot
    }

    /// Creates the slots of many names at once: one by one, each would copy the table.
    pub fn reserve<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let _guard = self.write.lock();
        let current = self.slots.load();
        let mut grown = None;
        for name in names {
            if current.contains_key(name) {
                continue;
            }
            let grown = grown.get_or_insert_with(|| HashMap::clone(&current));
            let name: Arc<str> = name.into();
            grown
                .entry(Arc::clone(&name))
                .or_insert_with(|| Slot::new(name));
        }
        if let Some(grown) = grown {
            self.slots.store(Arc::new(grown));
        }
    }

    /// The slot of `name` if something mentioned it. Never creates one: for names that come from requests.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<Arc<Slot<T>>> {
        self.slots.load().get(name).cloned()
    }

    /// Every slot that holds a value, sorted by name.
    #[must_use]
    pub fn values(&self) -> Vec<Arc<T>> {
        let slots = self.slots.load();
        let mut named: Vec<_> = slots
            .iter()
            .filter_map(|(n, s)| s.load().map(|v| (n, v)))
            .collect();
        named.sort_by(|a, b| a.0.cmp(b.0));
        named.into_iter().map(|(_, v)| v).collect()
    }
}

/// Everything runtime objects are built with and workers read.
#[derive(Debug)]
pub struct Store {
    /// Clusters by name.
    pub clusters: Table<Cluster>,
    /// RDS route tables by name.
    pub routes: Table<RouteRuntime>,
    /// Secrets by name and source.
    pub secrets: SecretStore,
    /// Stats registry.
    pub stats: Arc<Stats>,
    /// Access log files.
    pub logs: Arc<LogSinks>,
    /// Process options that change answers.
    pub options: Options,
}

/// Process options that change answers.
#[derive(Debug, Clone)]
pub struct Options {
    /// `node.cluster`, `node.id`.
    pub node_id: Arc<str>,
    /// `envoy.reloadable_features.http_reject_path_with_fragment`, default true; Istio sets false.
    pub reject_path_with_fragment: bool,
    /// Zipkin is the bootstrap's tracer: connection managers with `tracing` propagate B3 headers.
    pub zipkin: Option<outrigger_config::bootstrap::Zipkin>,
    /// Address written into XFF instead of a loopback peer when `use_remote_address` is on.
    pub local_address: Option<std::net::IpAddr>,
    /// `--drain-time-s`, seconds.
    pub drain_time: std::time::Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_slots_are_those_that_are_mentioned_before_and_after() {
        let table = Table::<u32>::default();
        let before = table.slot("a");
        before.store(Some(Arc::new(1)));
        table.reserve(["a", "b", "b"]);
        assert!(Arc::ptr_eq(&before, &table.slot("a")));
        let reserved = table.lookup("b").expect("reserved");
        assert!(reserved.load().is_none());
        assert!(Arc::ptr_eq(&reserved, &table.slot("b")));
        assert_eq!(table.values(), [Arc::new(1)]);
    }
}
