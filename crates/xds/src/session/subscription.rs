//! What a session remembers of one type: interest, accepted versions, undecided updates.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use super::UpdateId;

/// An update handed out and not yet decided.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) stream: u64,
    pub(super) nonce: String,
    /// SotW version of the response.
    pub(super) version: String,
    /// Delta: name and version of what the message added.
    pub(super) versions: Vec<(String, String)>,
    /// Delta: what the message removed.
    pub(super) removed: Vec<String>,
}

/// State of one type URL.
#[derive(Debug)]
pub(super) struct TypeState {
    pub(super) type_url: String,
    pub(super) wildcard: bool,
    names: Vec<String>,
    name_set: HashSet<String>,
    /// Delta: accepted version of each resource held.
    pub(super) versions: BTreeMap<String, String>,
    /// SotW: last accepted `version_info`.
    pub(super) version: String,
    /// SotW: nonce of the last decided response of this stream.
    pub(super) nonce: String,
    /// SotW full-set types: names the owner has been told of.
    pub(super) delivered: BTreeSet<String>,
    /// A request of this type has been sent on the current stream.
    pub(super) requested: bool,
    pub(super) pending: VecDeque<Pending>,
}

impl TypeState {
    pub(super) fn new(type_url: &str) -> Self {
        Self {
            type_url: type_url.to_owned(),
            wildcard: false,
            names: Vec::new(),
            name_set: HashSet::new(),
            versions: BTreeMap::new(),
            version: String::new(),
            nonce: String::new(),
            delivered: BTreeSet::new(),
            requested: false,
            pending: VecDeque::new(),
        }
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn has_interest(&self) -> bool {
        self.wildcard || !self.names.is_empty()
    }

    pub(super) fn on_stream_open(&mut self) {
        self.requested = false;
        self.nonce.clear();
    }

    /// True if it was not a wildcard before.
    pub(super) fn set_wildcard(&mut self) -> bool {
        !std::mem::replace(&mut self.wildcard, true)
    }

    /// Returns those that are new.
    pub(super) fn add_names<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> Vec<String> {
        let mut added = Vec::new();
        for name in names {
            if self.name_set.insert(name.to_owned()) {
                self.names.push(name.to_owned());
                added.push(name.to_owned());
            }
        }
        added
    }

    /// Returns those that were subscribed to; forgets their versions, since the server will not
    /// speak of them any more.
    pub(super) fn remove_names<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> Vec<String> {
        let removed: Vec<String> = names
            .filter(|name| self.name_set.remove(*name))
            .map(str::to_owned)
            .collect();
        if !removed.is_empty() {
            self.names.retain(|name| self.name_set.contains(name));
        }
        if !self.wildcard {
            for name in &removed {
                self.versions.remove(name);
            }
        }
        removed
    }

    /// Delta: what the server must know at the start of a stream. Undecided updates count as held:
    /// their owner may be applying them now, and the server could not tell it of a removal else.
    pub(super) fn held_versions(&self) -> BTreeMap<String, String> {
        let mut held = self.versions.clone();
        for pending in &self.pending {
            for name in &pending.removed {
                held.remove(name);
            }
            let known = pending
                .versions
                .iter()
                .filter(|(name, _)| self.tracks(name));
            held.extend(known.cloned());
        }
        held
    }

    fn tracks(&self, name: &str) -> bool {
        self.wildcard || self.name_set.contains(name)
    }

    /// Takes the undecided update `id` out.
    pub(super) fn take_pending(&mut self, id: &UpdateId) -> Option<Pending> {
        let at = self
            .pending
            .iter()
            .position(|p| p.stream == id.stream && p.nonce == id.nonce)?;
        self.pending.remove(at)
    }

    /// Records an accepted update. A name unsubscribed meanwhile is not recorded.
    pub(super) fn record(&mut self, pending: Pending) {
        self.version = pending.version;
        for name in &pending.removed {
            self.versions.remove(name);
        }
        for (name, version) in pending.versions {
            if self.tracks(&name) {
                self.versions.insert(name, version);
            }
        }
    }
}
