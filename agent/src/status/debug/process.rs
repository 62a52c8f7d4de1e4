//! The process in text: command line, threads, memory. From procfs, without stopping anything.

use std::fmt::Write;
use std::fs::read_to_string;

pub(super) const INDEX: &str = "\
/debug/pprof/

cmdline   command line, one argument per NUL
profile   CPU profile for `go tool pprof` (?seconds=N, default 30)
heap      memory of the process, text
threads   threads with state and CPU time, text

There is no garbage collector and no goroutine here: heap and threads come from the kernel.
";

/// Arguments separated by NUL, as Go prints them.
pub(super) fn command_line() -> String {
    let text = read_to_string("/proc/self/cmdline").unwrap_or_default();
    text.trim_end_matches('\0').to_owned()
}

/// Resident memory by kind, then sizes and limits.
pub(super) fn memory() -> String {
    let mut out = String::from("# memory of the process, from the kernel\n");
    for (file, wanted) in [
        (
            "/proc/self/smaps_rollup",
            &["Rss", "Pss", "Private_Clean", "Private_Dirty", "Swap"][..],
        ),
        (
            "/proc/self/status",
            &["VmHWM", "VmData", "VmStk", "RssAnon", "RssFile", "RssShmem"],
        ),
    ] {
        let text = read_to_string(file).unwrap_or_default();
        let is_wanted = |line: &&str| {
            let name = line.split(':').next().unwrap_or_default();
            wanted.contains(&name)
        };
        for line in text.lines().filter(is_wanted) {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// One line per thread.
pub(super) fn threads() -> String {
    let mut out = String::from("# id name state user+system clock ticks\n");
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return out;
    };
    for task in tasks.flatten() {
        // A thread may end while it is looked at.
        let stat = read_to_string(task.path().join("stat")).unwrap_or_default();
        let Some((head, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let name = head.split_once('(').map_or("", |(_, name)| name);
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|f| f.parse::<u64>().ok());
        let cpu = ticks(11).unwrap_or(0) + ticks(12).unwrap_or(0);
        let state = fields.first().copied().unwrap_or("?");
        let id = task.file_name();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{} {name} {state} {cpu}", id.to_string_lossy());
    }
    out
}
