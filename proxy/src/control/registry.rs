//! Raw resources as they arrived, for `/config_dump`: what serves, what warms, what was refused.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use xxhash_rust::xxh64::xxh64;

/// A resource as it arrived.
#[derive(Debug, Clone)]
pub struct Raw {
    /// Resource version (may be empty).
    pub version: String,
    /// `Any.value`.
    pub body: Bytes,
    /// xxHash64 of `body`: equal means unchanged.
    pub hash: u64,
    /// When it was accepted.
    pub last_updated: SystemTime,
    order: u64,
}

/// A refused update.
#[derive(Debug, Clone)]
pub struct Failed {
    /// Version that was refused.
    pub version: String,
    /// What was refused.
    pub body: Bytes,
    /// When.
    pub last_update_attempt: SystemTime,
    /// Why.
    pub details: String,
}

/// Resources of one state by name, listed in the order in which they first came.
#[derive(Debug, Default)]
pub struct Resources {
    by_name: HashMap<Arc<str>, Raw>,
    next: u64,
}

impl Resources {
    /// Adds or replaces; a replaced resource keeps its place.
    pub fn insert(&mut self, name: &Arc<str>, version: &str, body: Bytes) {
        self.next += 1;
        let order = self.by_name.get(name).map_or(self.next, |r| r.order);
        let hash = hash(&body);
        let raw = Raw {
            version: version.to_owned(),
            body,
            hash,
            last_updated: SystemTime::now(),
            order,
        };
        self.by_name.insert(Arc::clone(name), raw);
    }

    /// Takes one away.
    pub fn remove(&mut self, name: &str) -> Option<Raw> {
        self.by_name.remove(name)
    }

    /// Moves one from another state into this one.
    pub fn take_from(&mut self, other: &mut Self, name: &Arc<str>) {
        if let Some(mut raw) = other.by_name.remove(name) {
            self.next += 1;
            raw.order = self.by_name.get(name).map_or(self.next, |r| r.order);
            self.by_name.insert(Arc::clone(name), raw);
        }
    }

    /// One by name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Raw> {
        self.by_name.get(name)
    }

    /// Number of resources.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// In the order in which they first came.
    #[must_use]
    pub fn ordered(&self) -> Vec<(&Arc<str>, &Raw)> {
        let mut all: Vec<_> = self.by_name.iter().collect();
        all.sort_by_key(|(_, r)| r.order);
        all
    }

    /// Every name.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_name.keys()
    }
}

/// One resource type.
#[derive(Debug, Default)]
pub struct Section {
    /// Version of the last accepted response.
    pub version: String,
    /// From the bootstrap.
    pub statics: Resources,
    /// In service.
    pub active: Resources,
    /// Waiting for what they need.
    pub warming: Resources,
    /// Last refusal by name.
    pub errors: BTreeMap<Arc<str>, Failed>,
}

impl Section {
    /// Whether the newest known state of `name` has this body.
    #[must_use]
    pub fn is_unchanged(&self, name: &str, body: &Bytes) -> bool {
        self.warming
            .get(name)
            .or_else(|| self.active.get(name))
            .is_some_and(|r| r.hash == hash(body) && r.body.len() == body.len())
    }

    /// Records a refusal.
    pub fn fail(&mut self, name: &Arc<str>, version: &str, body: Bytes, details: String) {
        let failed = Failed {
            version: version.to_owned(),
            body,
            last_update_attempt: SystemTime::now(),
            details,
        };
        self.errors.insert(Arc::clone(name), failed);
    }

    /// Forgets every state of `name`.
    pub fn remove(&mut self, name: &str) {
        self.active.remove(name);
        self.warming.remove(name);
        self.errors.remove(name);
    }
}

/// Everything `/config_dump` shows.
#[derive(Debug)]
pub struct Registry {
    /// Bootstrap as wire bytes.
    pub bootstrap: Bytes,
    /// When the bootstrap was loaded.
    pub bootstrap_updated: SystemTime,
    /// Clusters.
    pub clusters: Section,
    /// Endpoints.
    pub endpoints: Section,
    /// Listeners.
    pub listeners: Section,
    /// Routes.
    pub routes: Section,
    /// Secrets. Bodies hold keys: only redacted copies leave the process, so the key is cut out on insertion.
    pub secrets: Section,
    /// Accepted but not acted upon, by resource.
    pub ignored: BTreeMap<String, Vec<outrigger_config::Ignored>>,
}

impl Registry {
    /// A registry with only the bootstrap.
    #[must_use]
    pub fn new(bootstrap: Bytes) -> Self {
        Self {
            bootstrap,
            bootstrap_updated: SystemTime::now(),
            clusters: Section::default(),
            endpoints: Section::default(),
            listeners: Section::default(),
            routes: Section::default(),
            secrets: Section::default(),
            ignored: BTreeMap::new(),
        }
    }

    /// Keeps the list of ignored fields of one resource; an empty list forgets it.
    pub fn ignore(&mut self, kind: &str, name: &str, ignored: Vec<outrigger_config::Ignored>) {
        let key = format!("{kind}/{name}");
        if ignored.is_empty() {
            self.ignored.remove(&key);
        } else {
            self.ignored.insert(key, ignored);
        }
    }
}

fn hash(body: &Bytes) -> u64 {
    xxh64(body, 0)
}
