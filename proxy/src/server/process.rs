//! The process among others: limits, core dumps, CPUs, own address, memory, `server.*` stats.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Process;
use super::options::CommandLine;

/// Raises NOFILE to the hard limit and forbids core dumps unless they were asked for: memory holds keys.
pub fn prepare(options: &CommandLine) {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(target: "main", "cannot raise the limit of open files to {hard}: {error}");
    }
    if let Err(error) = nix::sys::prctl::set_dumpable(options.enable_core_dump) {
        tracing::warn!(target: "main", "PR_SET_DUMPABLE: {error}");
    }
}

/// CPUs this process may use: affinity and cgroup quota.
#[must_use]
pub fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
}

/// First address of an interface that is up and no loopback.
#[must_use]
pub fn local_address(v6: bool) -> Option<IpAddr> {
    nix::ifaddrs::getifaddrs().ok()?.find_map(|interface| {
        let storage = interface.address?;
        let ip = match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
            (Some(a), _) if !v6 => IpAddr::V4(a.ip()),
            (_, Some(a)) if v6 => IpAddr::V6(a.ip()),
            _ => return None,
        };
        let link_local = matches!(ip, IpAddr::V6(a) if a.is_unicast_link_local());
        (!ip.is_loopback() && !link_local).then_some(ip)
    })
}

/// Memory of the process in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident.
    pub resident: u64,
    /// Private data and stack: what the allocator may have.
    pub data: u64,
}

/// Reads `/proc/self/statm`.
#[must_use]
pub fn memory() -> Memory {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = text
        .split_whitespace()
        .map(|w| w.parse::<u64>().unwrap_or(0));
    let (_, resident) = (pages.next(), pages.next().unwrap_or(0));
    let shared = pages.next().unwrap_or(0);
    Memory {
        resident: resident * 4096,
        data: resident.saturating_sub(shared) * 4096,
    }
}

/// `server.*` gauges.
#[derive(Debug)]
pub struct ServerStats;

impl ServerStats {
    /// Sets the fixed ones now and the others at every flush interval.
    pub fn start(process: &Rc<Process>) {
        let stats = &process.store.stats;
        stats
            .gauge("server.concurrency")
            .set(i64::from(process.concurrency));
        stats.gauge("server.hot_restart_epoch").set(0);
        stats.gauge("server.parent_connections").set(0);
        stats.gauge("server.compilation_settings.fips_mode").set(0);
        stats.gauge("listener_manager.workers_pinned").set(0);
        // Revision of the build in Envoy; here the version number.
        stats.gauge("server.version").set(1_040_000);
        for name in [
            "debug_assertion_failures",
            "dropped_stat_flushes",
            "dynamic_unknown_fields",
            "envoy_bug_failures",
            "envoy_notifications",
            "static_unknown_fields",
            "wip_protos",
            "watchdog_mega_miss",
            "watchdog_miss",
        ] {
            let _ = stats.counter(&format!("server.{name}"));
        }
        Self::refresh(process);
        let weak = Rc::downgrade(process);
        let interval = process
            .bootstrap
            .stats_flush_interval
            .max(Duration::from_millis(1));
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(interval).await;
                let Some(process) = weak.upgrade() else {
                    return;
                };
                Self::refresh(&process);
            }
        });
    }

    /// Sets what changes with time.
    pub fn refresh(process: &Process) {
        let stats = &process.store.stats;
        let set = |name: &str, value: u64| {
            stats
                .gauge(name)
                .set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let memory = memory();
        set("server.uptime", process.started.elapsed().as_secs());
        set("server.memory_allocated", memory.data);
        set("server.memory_heap_size", memory.data);
        set("server.memory_physical_size", memory.resident);
        set(
            "server.days_until_first_cert_expiring",
            crate::admin::certs::days_until_first(process),
        );
    }
}
