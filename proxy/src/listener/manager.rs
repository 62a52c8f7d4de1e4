//! Listeners of the process, owned by the control thread: bind, update in place, replace, drain, remove.
//! Never touches a connection itself: chains are told to drain and their connections obey.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use outrigger_config::http::RouteSource;
use outrigger_config::listener::{FilterChain, Listener, TerminalFilter, TrafficDirection};
use outrigger_config::tls::{SdsConfig, SecretRef};

use super::runtime::{
    Binding, ChainRuntime, ConnectionLimit, ListenerError, ListenerRuntime, ListenerTable, Shared,
};
use crate::control::store::Store;
use crate::io::socket::{self, ListenOptions};
use crate::stats::{Counter, Gauge};
use crate::tls::x509::sha256;
use crate::worker::{Command, CommandSender};

/// What a listener waits for before it may be applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// RDS route tables.
    pub routes: Vec<Arc<str>>,
    /// Secrets.
    pub secrets: Vec<SdsConfig>,
}

/// What an update came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// A new listener.
    Added,
    /// Nothing differs.
    Unchanged,
    /// Only filter chains differ: sockets and unchanged chains live on.
    InPlace,
    /// Everything was rebuilt; all old chains drain.
    Replaced,
}

/// A listener as `/listeners` and config_dump print it.
#[derive(Debug, Clone)]
pub struct ListenerSummary {
    /// Resource name.
    pub name: Arc<str>,
    /// Main address first; bound ones with their actual port.
    pub addresses: Vec<SocketAddr>,
    /// Bound to sockets.
    pub bound: bool,
}

/// A resource's bytes cut up: one digest per filter chain, one for the rest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Fingerprint {
    chains: Vec<[u8; 32]>,
    default_chain: Option<[u8; 32]>,
    rest: [u8; 32],
}

#[derive(Debug)]
struct Managed {
    fingerprint: Option<Fingerprint>,
    runtime: Arc<ListenerRuntime>,
    bindings: Vec<Arc<Binding>>,
}

/// Counters under `listener_manager.`.
#[derive(Debug)]
struct ManagerStats {
    added: Counter,
    modified: Counter,
    removed: Counter,
    in_place: Counter,
    stopped: Counter,
    created: Counter,
    create_failure: Counter,
    active: Gauge,
    draining: Gauge,
    chains_draining: Gauge,
}

impl ManagerStats {
    fn new(store: &Store) -> Self {
        let counter = |name: &str| store.stats.counter(&format!("listener_manager.{name}"));
        let gauge = |name: &str| store.stats.gauge(&format!("listener_manager.{name}"));
        Self {
            added: counter("listener_added"),
            modified: counter("listener_modified"),
            removed: counter("listener_removed"),
            in_place: counter("listener_in_place_updated"),
            stopped: counter("listener_stopped"),
            created: counter("listener_create_success"),
            create_failure: counter("listener_create_failure"),
            active: gauge("total_listeners_active"),
            draining: gauge("total_listeners_draining"),
            chains_draining: gauge("total_filter_chains_draining"),
        }
    }
}

/// The listeners of the process. Methods that drain need a tokio runtime (of the control thread).
#[derive(Debug)]
pub struct ListenerManager {
    shared: Shared,
    listeners: BTreeMap<Arc<str>, Managed>,
    stats: ManagerStats,
    /// `/drain_listeners?graceful` was asked for: new chains drain from the start.
    draining: Option<DrainScope>,
    /// Stopped bindings. One that is still alive has sockets that workers have not closed yet.
    closing: Vec<Weak<Binding>>,
}

#[derive(Debug, Clone, Copy)]
struct DrainScope {
    inbound_only: bool,
}

impl DrainScope {
    fn covers(self, listener: &Listener) -> bool {
        !self.inbound_only || listener.traffic_direction == TrafficDirection::Inbound
    }
}

impl ListenerManager {
    /// No listeners yet. `workers` are the command channels by worker index; `max_connections` is
    /// `global_downstream_max_connections`.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        workers: Vec<CommandSender>,
        max_connections: Option<u64>,
    ) -> Self {
        let stats = ManagerStats::new(&store);
        let shared = Shared {
            store,
            table: Arc::new(ListenerTable::default()),
            limit: ConnectionLimit::new(max_connections),
            workers: workers.into(),
        };
        Self {
            shared,
            listeners: BTreeMap::new(),
            stats,
            draining: None,
            closing: Vec::new(),
        }
    }

    /// What must be there before `listener` is applied.
    #[must_use]
    pub fn needs(listener: &Listener) -> Needs {
        let mut needs = Needs::default();
        for chain in listener
            .filter_chains
            .iter()
            .chain(&listener.default_filter_chain)
        {
            if let Some(TerminalFilter::Http(http)) = &chain.terminal
                && let RouteSource::Rds { name, .. } = &http.route
                && !needs.routes.contains(name)
            {
                needs.routes.push(Arc::clone(name));
            }
            secrets_of(chain, &mut needs.secrets);
        }
        needs
    }

    /// Adds or updates a listener. `raw` is the Listener resource's bytes: equal chains are recognised by
    /// them; without it every chain counts as changed.
    ///
    /// # Errors
    /// See [`ListenerError`]; the listener before stays as it was.
    pub fn apply(
        &mut self,
        config: Arc<Listener>,
        raw: Option<&[u8]>,
    ) -> Result<Applied, ListenerError> {
        let fingerprint = raw.and_then(|raw| fingerprint(raw, &config));
        let result = match self.listeners.contains_key(&config.name) {
            false => self.add(config, fingerprint),
            true => self.update(config, fingerprint),
        };
        match &result {
            Ok(Applied::Unchanged) => {}
            Ok(_) => self.stats.created.inc(),
            Err(_) => self.stats.create_failure.inc(),
        }
        self.stats.active.set(self.listeners.len() as i64);
        result
    }

    fn add(
        &mut self,
        config: Arc<Listener>,
        fingerprint: Option<Fingerprint>,
    ) -> Result<Applied, ListenerError> {
        let name = Arc::clone(&config.name);
        let runtime = ListenerRuntime::build(config, &self.shared, &HashMap::new(), None)?;
        let bindings = self.bind_all(&runtime, &[])?;
        self.start(&runtime);
        self.listeners.insert(
            name,
            Managed {
                fingerprint,
                runtime,
                bindings,
            },
        );
        self.stats.added.inc();
        Ok(Applied::Added)
    }

    fn update(
        &mut self,
        config: Arc<Listener>,
        fingerprint: Option<Fingerprint>,
    ) -> Result<Applied, ListenerError> {
        let Some(old) = self.listeners.get(&config.name) else {
            return self.add(config, fingerprint);
        };
        if fingerprint.is_some() && fingerprint == old.fingerprint {
            return Ok(Applied::Unchanged);
        }
        let prints = fingerprint.as_ref().zip(old.fingerprint.as_ref());
        let in_place = prints.is_some_and(|(new, old)| new.rest == old.rest);
        let keep = match prints {
            Some((new, before)) if in_place => kept_chains(&config, new, &old.runtime, before),
            _ => HashMap::new(),
        };
        let (old_runtime, old_bindings) = (Arc::clone(&old.runtime), old.bindings.clone());
        let runtime =
            ListenerRuntime::build(Arc::clone(&config), &self.shared, &keep, Some(&old_runtime))?;
        let bindings = self.bind_all(&runtime, &old_bindings)?;
        for binding in &bindings {
            binding.runtime.store(Arc::clone(&runtime));
        }
        for gone in &old_bindings {
            if !bindings.iter().any(|b| Arc::ptr_eq(b, gone)) {
                self.close(gone);
            }
        }
        self.start(&runtime);
        let addresses: Vec<_> = old_runtime.config.addresses.clone();
        let gone: Vec<_> = addresses
            .into_iter()
            .filter(|a| !config.addresses.contains(a))
            .collect();
        self.shared.table.withdraw(&gone, &config.name);
        let name = Arc::clone(&config.name);
        self.retire(&old_runtime, Some(&runtime), !in_place);
        self.listeners.insert(
            name,
            Managed {
                fingerprint,
                runtime,
                bindings,
            },
        );
        self.stats.modified.inc();
        if in_place {
            self.stats.in_place.inc();
        }
        Ok(if in_place {
            Applied::InPlace
        } else {
            Applied::Replaced
        })
    }

    /// Publishes a runtime under its addresses.
    fn start(&self, runtime: &Arc<ListenerRuntime>) {
        if self
            .draining
            .is_some_and(|scope| scope.covers(&runtime.config))
        {
            for chain in runtime.chain_runtimes() {
                chain.drain.drain();
            }
        }
        self.shared.table.publish(runtime);
    }

    /// Sockets for every address; those of `old` with the same address and options are kept.
    fn bind_all(
        &self,
        runtime: &Arc<ListenerRuntime>,
        old: &[Arc<Binding>],
    ) -> Result<Vec<Arc<Binding>>, ListenerError> {
        if !runtime.config.bind_to_port {
            return Ok(Vec::new());
        }
        let options = listen_options(&runtime.config);
        let mut bindings: Vec<Arc<Binding>> = Vec::new();
        for address in &runtime.config.addresses {
            let same = |b: &&Arc<Binding>| {
                let before = b.runtime.load();
                before.config.addresses.contains(address)
                    && (b.address == *address || address.port() == 0)
                    && b.address.ip() == address.ip()
                    && listen_options(&before.config) == options
                    && !b.is_stopped()
            };
            let made = match old.iter().find(same) {
                Some(kept) => Ok(Arc::clone(kept)),
                None => self.bind(*address, runtime, options, old),
            };
            match made {
                Ok(binding) => bindings.push(binding),
                Err(error) => {
                    for made in bindings
                        .iter()
                        .filter(|b| !old.iter().any(|o| Arc::ptr_eq(o, b)))
                    {
                        made.stop();
                    }
                    return Err(error);
                }
            }
        }
        Ok(bindings)
    }

    fn bind(
        &self,
        address: SocketAddr,
        runtime: &Arc<ListenerRuntime>,
        options: ListenOptions,
        old: &[Arc<Binding>],
    ) -> Result<Arc<Binding>, ListenerError> {
        let failed = |cause| ListenerError::Bind { address, cause };
        // Our own sockets would make the probe fail: those of the listener before, and those of a removed one
        // that comes back before every worker has closed them.
        let closing = self.closing.iter().filter_map(Weak::upgrade);
        let mut ours = old.iter().map(Arc::clone).chain(closing);
        if address.port() != 0 && !ours.any(|b| overlap(b.address, address)) {
            socket::probe(address, options).map_err(failed)?;
        }
        let mut sockets = Vec::with_capacity(self.shared.workers.len());
        let mut bound = address;
        for _ in 0..self.shared.workers.len() {
            let listening = socket::listen(bound, options).map_err(failed)?;
            bound = listening.local_addr().map_err(failed)?;
            sockets.push(listening);
        }
        let binding = Binding::new(bound, Arc::clone(runtime));
        for (socket, commands) in sockets.into_iter().zip(self.shared.workers.iter()) {
            let command = Command::Listen {
                binding: Arc::clone(&binding),
                socket,
            };
            commands
                .send(command)
                .map_err(|_| ListenerError::WorkerGone)?;
        }
        Ok(binding)
    }

    /// Drains the chains of `old` that `new` does not go on with, then closes what is left of them.
    fn retire(&self, old: &ListenerRuntime, new: Option<&ListenerRuntime>, whole: bool) {
        let goes_on = |chain: &&Arc<ChainRuntime>| {
            new.is_some_and(|n| n.chain_runtimes().any(|c| Arc::ptr_eq(c, chain)))
        };
        let gone: Vec<_> = old
            .chain_runtimes()
            .filter(|c| !goes_on(c))
            .map(Arc::clone)
            .collect();
        if gone.is_empty() {
            return;
        }
        let gauge = if whole {
            &self.stats.draining
        } else {
            &self.stats.chains_draining
        };
        let weight = if whole { 1 } else { gone.len() as i64 };
        gauge.add(weight);
        for chain in &gone {
            chain.drain.drain();
        }
        let (gauge, window) = (gauge.clone(), self.shared.store.options.drain_time);
        after(window, move || {
            for chain in &gone {
                chain.drain.close();
            }
            gauge.add(-weight);
        });
    }

    /// Stops a binding. Its sockets close when the workers see it.
    fn close(&mut self, binding: &Arc<Binding>) {
        binding.stop();
        self.closing.retain(|b| b.strong_count() > 0);
        self.closing.push(Arc::downgrade(binding));
    }

    /// Removes a listener: stops accepting at once, drains its connections. False when there is none.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(managed) = self.listeners.remove(name) else {
            return false;
        };
        for binding in &managed.bindings {
            self.close(binding);
        }
        self.shared
            .table
            .withdraw(&managed.runtime.config.addresses, name);
        self.retire(&managed.runtime, None, true);
        self.stats.removed.inc();
        self.stats.active.set(self.listeners.len() as i64);
        true
    }

    /// `/drain_listeners`: asks clients to leave; accepting stops at once, or with `graceful` after the drain
    /// time, or with `skip_exit` never. Open connections are not closed.
    pub fn drain_all(&mut self, inbound_only: bool, graceful: bool, skip_exit: bool) {
        let scope = DrainScope { inbound_only };
        let covered = || {
            self.listeners
                .values()
                .filter(|m| scope.covers(&m.runtime.config))
        };
        let bindings: Vec<_> = covered()
            .flat_map(|m| m.bindings.iter().map(Arc::clone))
            .collect();
        let stopped = self.stats.stopped.clone();
        let stop = move || {
            for binding in &bindings {
                if binding.stop() {
                    stopped.inc();
                }
            }
        };
        if !graceful {
            stop();
            return;
        }
        for chain in covered().flat_map(|m| m.runtime.chain_runtimes()) {
            chain.drain.drain();
        }
        self.draining = Some(scope);
        if !skip_exit {
            after(self.shared.store.options.drain_time, stop);
        }
    }

    /// Ends every connection that still drains or serves (process shutdown).
    pub fn close_all(&self) {
        for managed in self.listeners.values() {
            for binding in &managed.bindings {
                binding.stop();
            }
            for chain in managed.runtime.chain_runtimes() {
                chain.drain.close();
            }
        }
    }

    /// Every listener by name.
    #[must_use]
    pub fn list(&self) -> Vec<ListenerSummary> {
        let summary = |m: &Managed| ListenerSummary {
            name: Arc::clone(&m.runtime.config.name),
            addresses: if m.bindings.is_empty() {
                m.runtime.config.addresses.clone()
            } else {
                m.bindings.iter().map(|b| b.address).collect()
            },
            bound: !m.bindings.is_empty(),
        };
        self.listeners.values().map(summary).collect()
    }

    /// The current configuration of a listener.
    #[must_use]
    pub fn config(&self, name: &str) -> Option<Arc<Listener>> {
        self.listeners
            .get(name)
            .map(|m| Arc::clone(&m.runtime.config))
    }
}

/// Runs `action` on the control runtime after `delay`.
fn after(delay: Duration, action: impl FnOnce() + Send + 'static) {
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        action();
    });
}

/// Whether two addresses cannot be bound side by side.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let wild = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && (wild || a.ip() == b.ip())
}

const fn listen_options(config: &Listener) -> ListenOptions {
    ListenOptions {
        transparent: config.transparent,
        freebind: config.freebind,
        backlog: config.tcp_backlog_size,
    }
}

fn secrets_of(chain: &FilterChain, secrets: &mut Vec<SdsConfig>) {
    let Some(tls) = &chain.transport_socket else {
        return;
    };
    let certificates = tls.common.certificates.iter().filter_map(|c| match c {
        SecretRef::Sds(config) => Some(config),
        SecretRef::Inline(_) => None,
    });
    let validation = tls.common.validation.iter().filter_map(|v| v.sds.as_ref());
    for config in certificates.chain(validation) {
        if !secrets.contains(config) {
            secrets.push(config.clone());
        }
    }
}

/// Chains of `new` that are byte-equal to one of `old`, by the address of their configuration.
fn kept_chains(
    new: &Listener,
    new_print: &Fingerprint,
    old: &ListenerRuntime,
    old_print: &Fingerprint,
) -> HashMap<usize, Arc<ChainRuntime>> {
    let before: HashMap<_, _> = old_print
        .chains
        .iter()
        .zip(&old.config.filter_chains)
        .collect();
    let mut keep = HashMap::new();
    for (print, chain) in new_print.chains.iter().zip(&new.filter_chains) {
        if let Some(kept) = before.get(print).and_then(|c| old.chain(c)) {
            keep.insert(Arc::as_ptr(chain) as usize, Arc::clone(kept));
        }
    }
    if new_print.default_chain == old_print.default_chain
        && let (Some(chain), Some(before)) =
            (&new.default_filter_chain, &old.config.default_filter_chain)
        && let Some(kept) = old.chain(before)
    {
        keep.insert(Arc::as_ptr(chain) as usize, Arc::clone(kept));
    }
    keep
}

/// Field numbers of `envoy.config.listener.v3.Listener`.
const FILTER_CHAINS: u64 = 3;
const DEFAULT_FILTER_CHAIN: u64 = 25;

/// Cuts a Listener's wire bytes into chains and rest. `None` when they do not fit the parsed listener.
fn fingerprint(raw: &[u8], config: &Listener) -> Option<Fingerprint> {
    let mut print = Fingerprint::default();
    let (mut at, mut rest) = (0, Vec::new());
    while at < raw.len() {
        let start = at;
        let tag = varint(raw, &mut at)?;
        let body = match tag & 7 {
            0 => {
                varint(raw, &mut at)?;
                &[]
            }
            1 => take(raw, &mut at, 8)?,
            2 => {
                let length = usize::try_from(varint(raw, &mut at)?).ok()?;
                take(raw, &mut at, length)?
            }
            5 => take(raw, &mut at, 4)?,
            _ => return None,
        };
        match (tag >> 3, tag & 7) {
            (FILTER_CHAINS, 2) => print.chains.push(sha256(body)),
            (DEFAULT_FILTER_CHAIN, 2) => print.default_chain = Some(sha256(body)),
            _ => rest.extend_from_slice(raw.get(start..at)?),
        }
    }
    print.rest = sha256(&rest);
    let fits = print.chains.len() == config.filter_chains.len()
        && print.default_chain.is_some() == config.default_filter_chain.is_some();
    fits.then_some(print)
}

fn take<'a>(raw: &'a [u8], at: &mut usize, length: usize) -> Option<&'a [u8]> {
    let end = at.checked_add(length)?;
    let bytes = raw.get(*at..end)?;
    *at = end;
    Some(bytes)
}

fn varint(raw: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *raw.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
