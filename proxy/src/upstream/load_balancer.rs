//! Choosing a host: priorities with spill-over and panic, locality weights, then the policy. The healthy view
//! of a host set is computed once per health change, so a choice is a few array reads.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use outrigger_config::cluster::{Cluster as Config, LbPolicy, Locality};
use xxhash_rust::xxh64::xxh64;

use crate::upstream::cluster::Cluster;
use crate::upstream::host::Host;

/// Endpoints of a cluster at one time.
#[derive(Debug, Default)]
pub struct HostSet {
    /// Every host, in the order of the assignment.
    pub all: Vec<Arc<Host>>,
    localities: Vec<(Locality, u32, u32)>,
    overprovisioning_factor: u32,
    view: ArcSwapOption<View>,
}

/// Hosts by priority with the shares they get.
#[derive(Debug)]
struct View {
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    /// Share of traffic in percent.
    load: u32,
    /// Too few healthy hosts: any host is taken.
    panic: bool,
    /// Choices with their weight: one group, or one per locality.
    groups: Vec<(u64, Group)>,
    groups_total: u64,
}

#[derive(Debug)]
struct Group {
    hosts: Vec<Arc<Host>>,
    /// Prefix sums of the weights, empty when all are equal.
    cumulative: Vec<u64>,
    table: OnceLock<HashTable>,
}

#[derive(Debug)]
enum HashTable {
    Ring(Vec<(u64, u32)>),
    Maglev(Vec<u32>),
}

/// What a choice may depend on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Choice<'a> {
    /// Request hash of the hash policies.
    pub hash: Option<u64>,
    /// Hosts to avoid (previous_hosts), by address of the object.
    pub avoid: &'a [Arc<Host>],
    /// How often another host is picked when one must be avoided.
    pub max_attempts: u32,
    /// Priorities that failed already (previous_priorities); others are preferred.
    pub failed_priorities: &'a [u32],
}

impl HostSet {
    /// `localities`: locality, priority, weight.
    #[must_use]
    pub fn new(
        all: Vec<Arc<Host>>,
        localities: Vec<(Locality, u32, u32)>,
        overprovisioning_factor: u32,
    ) -> Self {
        Self {
            all,
            localities,
            overprovisioning_factor,
            view: ArcSwapOption::empty(),
        }
    }

    /// A host's health changed: the view is computed anew on the next choice.
    pub fn health_changed(&self) {
        self.view.store(None);
    }

    fn view(&self, config: &Config) -> Arc<View> {
        if let Some(view) = self.view.load_full() {
            return view;
        }
        let view = Arc::new(View::new(self, config));
        self.view.store(Some(Arc::clone(&view)));
        view
    }
}

impl View {
    fn new(set: &HostSet, config: &Config) -> Self {
        let priorities = set.all.iter().map(|h| h.priority + 1).max().unwrap_or(0);
        let factor = u64::from(set.overprovisioning_factor.max(100));
        let members: Vec<Vec<&Arc<Host>>> = (0..priorities)
            .map(|p| set.all.iter().filter(|h| h.priority == p).collect())
            .collect();
        let healthy_percent = |hosts: &Vec<&Arc<Host>>| -> u64 {
            let healthy = hosts.iter().filter(|h| h.is_healthy()).count() as u64;
            if hosts.is_empty() {
                0
            } else {
                healthy * 100 / hosts.len() as u64
            }
        };
        let availability: Vec<u64> = members
            .iter()
            .map(|m| (healthy_percent(m) * factor / 100).min(100))
            .collect();
        let total: u64 = availability.iter().sum::<u64>().min(100);
        let mut left = 100;
        let mut levels = Vec::with_capacity(members.len());
        for (priority, hosts) in members.iter().enumerate() {
            // Panic only when all priorities together cannot carry the load.
            let panic = total < 100
                && !hosts.is_empty()
                && (healthy_percent(hosts) as f64) < config.healthy_panic_threshold;
            let share = (availability[priority] * 100).checked_div(total);
            let load = share.unwrap_or(0).min(left);
            left -= load;
            levels.push(Level::new(
                set,
                config,
                priority as u32,
                hosts,
                load as u32,
                panic,
            ));
        }
        if total == 0 {
            // Nobody is healthy: the first priority in panic gets everything, else nobody does.
            if let Some(level) = levels.iter_mut().find(|l| l.panic) {
                level.load = 100;
            }
        } else if left > 0
            && let Some(level) = levels.iter_mut().find(|l| l.load > 0)
        {
            level.load += left as u32;
        }
        Self { levels }
    }

    fn choose_level(&self, random: u64, failed: &[u32]) -> Option<&Level> {
        if !failed.is_empty() {
            // The first priority that has hosts and was not tried; if all were, the usual choice.
            let fresh = self
                .levels
                .iter()
                .enumerate()
                .find(|(p, level)| !failed.contains(&(*p as u32)) && level.groups_total > 0);
            if let Some((_, level)) = fresh {
                return Some(level);
            }
        }
        let mut at = (random % 100) as u32;
        for level in &self.levels {
            if at < level.load {
                return Some(level);
            }
            at -= level.load;
        }
        None
    }
}

impl Level {
    fn new(
        set: &HostSet,
        config: &Config,
        priority: u32,
        hosts: &[&Arc<Host>],
        load: u32,
        panic: bool,
    ) -> Self {
        let usable = |h: &Arc<Host>| panic || h.is_healthy();
        let groups: Vec<(u64, Group)> = if config.locality_weighted && !panic {
            set.localities
                .iter()
                .filter(|(_, p, weight)| *p == priority && *weight > 0)
                .map(|(locality, _, weight)| {
                    let here: Vec<_> = hosts.iter().filter(|h| h.locality == *locality).collect();
                    let good: Vec<_> = here
                        .iter()
                        .filter(|h| h.is_healthy())
                        .map(|h| Arc::clone(h))
                        .collect();
                    let fraction = if here.is_empty() {
                        0
                    } else {
                        good.len() as u64 * u64::from(set.overprovisioning_factor)
                            / here.len() as u64
                    };
                    (u64::from(*weight) * fraction.min(100), Group::new(good))
                })
                .filter(|(weight, g)| *weight > 0 && !g.hosts.is_empty())
                .collect()
        } else {
            let usable: Vec<_> = hosts
                .iter()
                .filter(|h| usable(h))
                .map(|h| Arc::clone(h))
                .collect();
            if usable.is_empty() {
                Vec::new()
            } else {
                vec![(1, Group::new(usable))]
            }
        };
        let groups_total = groups.iter().map(|g| g.0).sum();
        Self {
            load,
            panic,
            groups,
            groups_total,
        }
    }

    fn choose_group(&self, random: u64) -> Option<&Group> {
        if let [(_, only)] = self.groups.as_slice() {
            return Some(only);
        }
        let mut at = random.checked_rem(self.groups_total)?;
        for (weight, group) in &self.groups {
            if at < *weight {
                return Some(group);
            }
            at -= weight;
        }
        None
    }
}

impl Group {
    fn new(hosts: Vec<Arc<Host>>) -> Self {
        let first = hosts.first().map_or(1, |h| h.weight());
        let cumulative = if hosts.iter().all(|h| h.weight() == first) {
            Vec::new()
        } else {
            hosts
                .iter()
                .scan(0, |sum, h| {
                    *sum += u64::from(h.weight());
                    Some(*sum)
                })
                .collect()
        };
        Self {
            hosts,
            cumulative,
            table: OnceLock::new(),
        }
    }

    fn weighted(&self, random: u64) -> usize {
        match self.cumulative.last() {
            Some(total) => self.cumulative.partition_point(|c| *c <= random % total),
            None => (random % self.hosts.len() as u64) as usize,
        }
    }

    fn round_robin(&self, cluster: &Cluster) -> usize {
        let position = cluster.rotation.fetch_add(1, Ordering::Relaxed) as u64;
        match self.cumulative.last() {
            // A stride by the golden ratio visits every unit of weight once per round and spreads each
            // host's units evenly over it.
            Some(total) => {
                let unit = (u128::from(position.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                    * u128::from(*total))
                    >> 64;
                self.cumulative.partition_point(|c| u128::from(*c) <= unit)
            }
            None => (position % self.hosts.len() as u64) as usize,
        }
    }

    fn least_request(&self, choice_count: u32, mut random: impl FnMut() -> u64) -> usize {
        let active = |i: usize| self.hosts[i].stats.rq_active.load(Ordering::Relaxed);
        if self.cumulative.is_empty() {
            let mut best = self.weighted(random());
            for _ in 1..choice_count {
                let other = self.weighted(random());
                if active(other) < active(best) {
                    best = other;
                }
            }
            return best;
        }
        // Unequal weights: weight / (active + 1), as Envoy's active_request_bias of 1.0 has it.
        let share = |i: usize| {
            (f64::from(self.hosts[i].weight()) * 1_000_000.0 / (active(i) + 1) as f64) as u64
        };
        let total: u64 = (0..self.hosts.len()).map(share).sum();
        let mut at = random() % total.max(1);
        for i in 0..self.hosts.len() {
            let s = share(i);
            if at < s {
                return i;
            }
            at -= s;
        }
        0
    }

    fn hashed(&self, policy: &LbPolicy, hash: u64) -> usize {
        match self
            .table
            .get_or_init(|| HashTable::new(policy, &self.hosts))
        {
            HashTable::Ring(ring) => {
                let at = ring.partition_point(|(h, _)| *h < hash);
                ring.get(at)
                    .or_else(|| ring.first())
                    .map_or(0, |(_, i)| *i as usize)
            }
            HashTable::Maglev(table) => table
                .get((hash % table.len().max(1) as u64) as usize)
                .map_or(0, |i| *i as usize),
        }
    }
}

impl HashTable {
    fn new(policy: &LbPolicy, hosts: &[Arc<Host>]) -> Self {
        match policy {
            LbPolicy::Maglev { table_size } => Self::Maglev(maglev(hosts, *table_size)),
            LbPolicy::RingHash {
                minimum_ring_size,
                maximum_ring_size,
            } => Self::Ring(ring(hosts, *minimum_ring_size, *maximum_ring_size)),
            _ => Self::Ring(Vec::new()),
        }
    }
}

/// Envoy's ring: every host gets entries in proportion to its weight, at least `minimum` in all; entry `i` of a
/// host is XXH64 of `address_i`.
fn ring(hosts: &[Arc<Host>], minimum: u64, maximum: u64) -> Vec<(u64, u32)> {
    let total: f64 = hosts.iter().map(|h| f64::from(h.weight())).sum();
    let smallest = hosts
        .iter()
        .map(|h| f64::from(h.weight()) / total)
        .fold(f64::INFINITY, f64::min);
    let scale = ((smallest * minimum as f64).ceil() / smallest).min(maximum as f64);
    let mut ring = Vec::with_capacity(scale.ceil() as usize);
    let (mut current, mut target) = (0.0, 0.0);
    for (index, host) in hosts.iter().enumerate() {
        target += scale * f64::from(host.weight()) / total;
        let mut i = 0;
        while current < target {
            let key = format!("{}_{i}", host.address_text);
            ring.push((xxh64(key.as_bytes(), 0), index as u32));
            i += 1;
            current += 1.0;
        }
    }
    ring.sort_unstable();
    ring
}

/// Maglev table as Envoy fills it: offset and skip by XXH64 with seeds 0 and 1, hosts take turns by weight.
fn maglev(hosts: &[Arc<Host>], size: u64) -> Vec<u32> {
    if hosts.is_empty() || size < 2 {
        return Vec::new();
    }
    const EMPTY: u32 = u32::MAX;
    let max_weight = hosts.iter().map(|h| h.weight()).max().unwrap_or(1).max(1);
    let mut table = vec![EMPTY; size as usize];
    let mut state: Vec<(u64, u64, u64, f64)> = hosts
        .iter()
        .map(|h| {
            let key = h.address_text.as_bytes();
            (xxh64(key, 0) % size, xxh64(key, 1) % (size - 1) + 1, 0, 0.0)
        })
        .collect();
    let mut filled = 0;
    let mut iteration = 1.0;
    while filled < size {
        for (index, host) in hosts.iter().enumerate() {
            let (offset, skip, next, target) = &mut state[index];
            if iteration * f64::from(host.weight()) < *target {
                continue;
            }
            *target += f64::from(max_weight);
            let slot = loop {
                let c = (*offset + *skip * *next) % size;
                *next += 1;
                if table[c as usize] == EMPTY {
                    break c;
                }
            };
            table[slot as usize] = index as u32;
            filled += 1;
            if filled == size {
                break;
            }
        }
        iteration += 1.0;
    }
    table
}

/// Chooses a host of a cluster with endpoints (not ORIGINAL_DST). `None` = no healthy upstream.
pub fn choose(
    cluster: &Cluster,
    choice: &Choice<'_>,
    mut random: impl FnMut() -> u64,
) -> Option<Arc<Host>> {
    let hosts = cluster.hosts.load();
    if let Some(outlier) = &cluster.outlier {
        outlier.tick(&hosts);
    }
    let view = hosts.view(&cluster.config);
    let mut chosen = None;
    for _ in 0..=choice.max_attempts.max(1) {
        let host = choose_once(cluster, &view, choice, &mut random)?;
        let avoid = choice.avoid.iter().any(|h| Arc::ptr_eq(h, &host));
        chosen = Some(host);
        if !avoid {
            break;
        }
    }
    chosen
}

fn choose_once(
    cluster: &Cluster,
    view: &View,
    choice: &Choice<'_>,
    random: &mut impl FnMut() -> u64,
) -> Option<Arc<Host>> {
    let policy = &cluster.config.lb_policy;
    let hashes = matches!(policy, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. });
    let hash = match choice.hash {
        Some(hash) if hashes => Some(hash),
        _ if hashes => Some(random()),
        _ => None,
    };
    let random_level = hash.unwrap_or_else(&mut *random);
    let level = view.choose_level(random_level, choice.failed_priorities)?;
    if level.panic {
        cluster.stats().lb_healthy_panic.inc();
    }
    let group = level.choose_group(random())?;
    let index = match (policy, hash) {
        (_, Some(hash)) => group.hashed(policy, hash),
        (LbPolicy::LeastRequest { choice_count }, _) => group.least_request(*choice_count, random),
        (LbPolicy::Random, _) => group.weighted(random()),
        _ => group.round_robin(cluster),
    };
    group.hosts.get(index).cloned()
}
