//! Limits of the container, and how near to them it is. Reads version 2, and memory of version 1.

use std::fs::read_to_string;
use std::path::Path;

use super::Check;

const NAME: &str = "cgroup";
/// Agent and proxy with an empty mesh, and room to receive a push.
const MIN_MEMORY: u64 = 48 << 20;
/// Percent of a limit from which somebody should know.
const NEAR: u64 = 90;
/// Version 1 has no word for "no limit", only a number near 2^63.
const UNLIMITED: u64 = 1 << 62;

pub(super) fn check(root: &Path) -> Check {
    let number =
        |file: &str| -> Option<u64> { read_to_string(root.join(file)).ok()?.trim().parse().ok() };
    let v1 = root.join("memory/memory.limit_in_bytes").exists();
    let (limit, used) = if v1 {
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
        )
    } else {
        ("memory.max", "memory.current")
    };
    let limit = number(limit).filter(|n| *n < UNLIMITED);
    let used = number(used);
    let mib = |bytes: u64| bytes >> 20;
    let memory = match (limit, used) {
        (Some(limit), Some(used)) => format!("memory {} of {} MiB", mib(used), mib(limit)),
        (None, Some(used)) => format!("memory {} MiB, no limit", mib(used)),
        (Some(limit), None) => format!("memory limit {} MiB", mib(limit)),
        (None, None) => "no memory limit to be seen".to_owned(),
    };
    let detail = format!("{memory}; cpu {}", cpu(root));
    if let Some(limit) = limit.filter(|limit| *limit < MIN_MEMORY) {
        let fix = format!(
            "raise the limit of {} MiB: the proxy needs {} MiB and more",
            mib(limit),
            mib(MIN_MEMORY)
        );
        return Check::failure(NAME, detail, fix);
    }
    let events = read_to_string(root.join("memory.events")).unwrap_or_default();
    let kills = events.lines().find_map(|l| l.strip_prefix("oom_kill "));
    let kills: u64 = kills.and_then(|n| n.parse().ok()).unwrap_or(0);
    if kills > 0 {
        let fix = "raise the memory limit (sidecar.istio.io/proxyMemoryLimit), or give the proxy \
                   less configuration with a Sidecar resource";
        return Check::warning(
            NAME,
            format!("{detail}; killed for memory {kills} times"),
            fix,
        );
    }
    let near = |used: Option<u64>, limit: Option<u64>| {
        let (Some(used), Some(limit)) = (used, limit) else {
            return false;
        };
        used.saturating_mul(100) >= limit.saturating_mul(NEAR)
    };
    if near(used, limit) {
        let fix = "raise the memory limit (sidecar.istio.io/proxyMemoryLimit) before the kernel \
                   kills the proxy";
        return Check::warning(NAME, detail, fix);
    }
    if near(number("pids.current"), number("pids.max")) {
        let detail = format!("{detail}; processes near their limit (pids.max)");
        return Check::warning(NAME, detail, "raise the pod's limit of processes");
    }
    Check::ok(NAME, detail)
}

/// `cpu.max` of version 2: quota and period.
fn cpu(root: &Path) -> String {
    let text = read_to_string(root.join("cpu.max")).unwrap_or_default();
    let mut words = text.split_whitespace();
    let numbers: Option<(f64, f64)> = (|| {
        let quota = words.next()?.parse().ok()?;
        Some((quota, words.next()?.parse().ok()?))
    })();
    match numbers {
        Some((quota, period)) if period > 0.0 => format!("limit {:.2}", quota / period),
        _ => "without limit".to_owned(),
    }
}
