//! `process_*` from procfs. A file that cannot be read leaves its series out.

use std::fs::read_to_string;

use super::Page;

pub(super) fn render(page: &mut Page) {
    stat(page);
    limits(page);
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        // The folder itself is open while it is listed.
        let open = entries.count().saturating_sub(1);
        page.gauge(
            "process_open_fds",
            "Number of open file descriptors.",
            &[],
            open as f64,
        );
    }
    if let Some((received, sent)) = network() {
        let help = "Number of bytes received by the process over the network.";
        page.counter("process_network_receive_bytes_total", help, &[], received);
        let help = "Number of bytes sent by the process over the network.";
        page.counter("process_network_transmit_bytes_total", help, &[], sent);
    }
}

/// `/proc/self/stat`; numbers follow the last `)` because the name may hold anything.
fn stat(page: &mut Page) -> Option<()> {
    let text = read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok());
    let ticks = ticks_per_second()?;
    let cpu = (number(11)? + number(12)?) / ticks;
    let help = "Total user and system CPU time spent in seconds.";
    page.sample(
        "process_cpu_seconds_total",
        "counter",
        help,
        &[],
        &cpu.to_string(),
    );
    let page_size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()?? as f64;
    let gauges = [
        (
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            number(20)?,
        ),
        (
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            number(21)? * page_size,
        ),
        (
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            boot_time()? + number(19)? / ticks,
        ),
    ];
    for (name, help, value) in gauges {
        page.gauge(name, help, &[], value);
    }
    Some(())
}

fn ticks_per_second() -> Option<f64> {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    (ticks > 0).then_some(ticks as f64)
}

fn boot_time() -> Option<f64> {
    let text = read_to_string("/proc/stat").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("btime "))
        .and_then(|t| t.parse().ok())
}

fn limits(page: &mut Page) -> Option<()> {
    let text = read_to_string("/proc/self/limits").ok()?;
    let soft = |name: &str| {
        let value = text
            .lines()
            .find_map(|l| l.strip_prefix(name))?
            .split_whitespace()
            .next()?;
        if value == "unlimited" {
            Some(u64::MAX as f64)
        } else {
            value.parse().ok()
        }
    };
    if let Some(fds) = soft("Max open files") {
        page.gauge(
            "process_max_fds",
            "Maximum number of open file descriptors.",
            &[],
            fds,
        );
    }
    if let Some(bytes) = soft("Max address space") {
        let help = "Maximum amount of virtual memory available in bytes.";
        page.gauge("process_virtual_memory_max_bytes", help, &[], bytes);
    }
    Some(())
}

/// Octets of the network namespace, as the reference reports them.
fn network() -> Option<(u64, u64)> {
    let text = read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("IpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let find = |wanted: &str| {
        let pair = names
            .split(' ')
            .zip(values.split(' '))
            .find(|(name, _)| *name == wanted)?;
        pair.1.parse().ok()
    };
    Some((find("InOctets")?, find("OutOctets")?))
}
