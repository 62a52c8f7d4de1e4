//! The `go_*` series that dashboards of the reference draw, filled with the nearest truth: there is
//! no Go runtime here. Tasks stand for goroutines, anonymous memory for the heap.

use std::fs::read_to_string;

use super::Page;

pub(super) fn render(page: &mut Page) {
    let version = concat!("outrigger-", env!("CARGO_PKG_VERSION"));
    let help = "Version of the agent; it is not a Go program.";
    page.gauge("go_info", help, &[("version", version)], 1.0);
    // Pages are also rendered outside of a runtime, by tests.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let tasks = runtime.metrics().num_alive_tasks();
        let help = "Number of asynchronous tasks that currently exist.";
        page.gauge("go_goroutines", help, &[], tasks as f64);
    }
    let status = read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    if let Some(threads) = field("Threads:") {
        let help = "Number of OS threads.";
        page.gauge("go_threads", help, &[], threads);
    }
    for (series, name, help) in [
        (
            "go_memstats_alloc_bytes",
            "RssAnon:",
            "Resident anonymous memory in bytes (allocations and stacks).",
        ),
        (
            "go_memstats_heap_inuse_bytes",
            "RssAnon:",
            "Resident anonymous memory in bytes (allocations and stacks).",
        ),
        (
            "go_memstats_heap_sys_bytes",
            "VmData:",
            "Private writable memory asked from the system, in bytes.",
        ),
        (
            "go_memstats_stack_inuse_bytes",
            "VmStk:",
            "Size of the main thread's stack in bytes.",
        ),
        (
            "go_memstats_sys_bytes",
            "VmRSS:",
            "Resident memory in bytes.",
        ),
    ] {
        if let Some(kib) = field(name) {
            page.gauge(series, help, &[], kib * 1024.0);
        }
    }
}
