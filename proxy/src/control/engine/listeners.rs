//! LDS.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant as Clock;

use outrigger_config::listener::Listener as ListenerConfig;
use outrigger_config::parse_listener;
use outrigger_xds::{Resource, Update};

use super::{Engine, Warming};
use crate::control::depends;

impl Engine {
    /// Static listeners serve at once, whatever else is missing: they carry health and metrics.
    pub(super) fn add_static_listener(
        &mut self,
        listener: &Arc<ListenerConfig>,
    ) -> Result<(), String> {
        let needs = depends::of_listener(listener);
        self.listener_needs
            .insert(Arc::clone(&listener.name), needs);
        self.listeners
            .apply(listener, None)
            .map_err(|e| refusal(&listener.name, Some(listener), &e))
    }

    /// Applies an LDS response; the error is the NACK's text. Good listeners are applied either way.
    pub(super) fn apply_listeners(&mut self, update: Update) -> Result<(), String> {
        let start = Clock::now();
        let mut errors = String::new();
        let mut seen = HashSet::new();
        // Removals first: a new listener may want the address of one that goes.
        for name in &update.removed {
            self.remove_listener(name);
        }
        let mut accepted = Vec::new();
        for resource in update.added {
            let name: Arc<str> = resource.name.as_str().into();
            if !seen.insert(Arc::clone(&name)) {
                errors.push_str(&format!("{name}: duplicate listener {name} found\n"));
                continue;
            }
            match self.check_listener(&name, resource) {
                Ok(listener) => accepted.extend(listener),
                Err(reason) => errors.push_str(&format!("{name}: {reason}\n")),
            }
        }
        self.sync_subscriptions();
        for (name, listener, version) in accepted {
            let waits_for = self.missing(&depends::of_listener(&listener));
            let now = waits_for.is_empty();
            let warming = Warming {
                value: listener,
                waits_for,
                version,
            };
            self.warming_listeners.insert(Arc::clone(&name), warming);
            if now && let Some(reason) = self.listener_is_warm(&name) {
                errors.push_str(&format!("{name}: {reason}\n"));
            }
        }
        self.sync_subscriptions();
        self.lds_done = true;
        let elapsed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.lds
            .updated(errors.is_empty(), &update.version, elapsed);
        if errors.is_empty() {
            self.registry.listeners.version = update.version;
            return Ok(());
        }
        Err(format!("Error adding/updating listener(s) {errors}"))
    }

    /// Parses a listener and records what it needs; `None` when it is unchanged.
    #[allow(clippy::type_complexity, reason = "one private caller")]
    fn check_listener(
        &mut self,
        name: &Arc<str>,
        resource: Resource,
    ) -> Result<Option<(Arc<str>, Arc<ListenerConfig>, String)>, String> {
        let section = &mut self.registry.listeners;
        if section.is_unchanged(name, &resource.body) {
            section.errors.remove(name);
            return Ok(None);
        }
        let parsed = match parse_listener(&resource.body) {
            Ok(parsed) => parsed,
            Err(error) => {
                let details = refusal(name, None, &error.to_string());
                section.fail(name, &resource.version, resource.body, details.clone());
                return Err(details);
            }
        };
        section
            .warming
            .insert(name, &resource.version, resource.body);
        self.registry.ignore("listener", name, parsed.ignored);
        let listener = Arc::new(parsed.value);
        let needs = self.listener_needs.entry(Arc::clone(name)).or_default();
        // The old one keeps its subscriptions until the new one serves.
        for need in depends::of_listener(&listener) {
            if !needs.contains(&need) {
                needs.push(need);
            }
        }
        Ok(Some((Arc::clone(name), listener, resource.version)))
    }

    /// Puts a warm listener into service; the reason when it is refused.
    pub(super) fn listener_is_warm(&mut self, name: &Arc<str>) -> Option<String> {
        let warming = self.warming_listeners.remove(name)?;
        let listener = warming.value;
        let section = &mut self.registry.listeners;
        let raw = section.warming.get(name).map(|r| r.body.clone());
        match self.listeners.apply(&listener, raw.as_deref()) {
            Ok(()) => {
                section.errors.remove(name);
                section.active.take_from(&mut section.warming, name);
                self.listener_needs
                    .insert(Arc::clone(name), depends::of_listener(&listener));
                None
            }
            Err(reason) => {
                let details = refusal(name, Some(&listener), &reason);
                tracing::warn!(target: "config", "{details}");
                if let Some(raw) = section.warming.remove(name) {
                    section.fail(name, &warming.version, raw.body, details.clone());
                }
                Some(details)
            }
        }
    }

    fn remove_listener(&mut self, name: &str) {
        let known = self.registry.listeners.active.get(name).is_some();
        self.warming_listeners.remove(name);
        self.listener_needs.remove(name);
        self.registry.listeners.remove(name);
        self.registry.ignore("listener", name, Vec::new());
        if known {
            self.listeners.remove(name);
        }
    }
}

/// Envoy's words, with the address when it is known.
fn refusal(name: &str, listener: Option<&ListenerConfig>, reason: &str) -> String {
    match listener.and_then(|l| l.addresses.first()) {
        Some(address) => format!("error adding listener '{address}': {reason}"),
        None => format!("error adding listener '{name}': {reason}"),
    }
}
