//! The report, and what needs only files.

use super::*;

#[test]
fn a_report_has_one_line_per_check_and_one_fix_per_failure() {
    let check = Check::failure("token", "expired", "renew it");
    assert_eq!(check.text(), "FAIL  token     expired\n      fix: renew it");
    assert_eq!(Check::ok("dns", "fine").text(), "ok    dns       fine");
    let want = json!({"name": "token", "verdict": "fail", "detail": "expired", "fix": "renew it"});
    assert_eq!(check.json(), want);
}

#[test]
fn spans_are_short() {
    for (seconds, want) in [
        (0, "0 s"),
        (119, "119 s"),
        (7199, "119 min"),
        (7200, "2 h"),
        (200_000, "2 d"),
    ] {
        assert_eq!(span(Duration::from_secs(seconds)), want);
    }
}

#[test]
fn limits_of_the_container_are_judged() {
    for (files, want, text) in [
        (
            &[
                ("memory.max", "1073741824\n"),
                ("memory.current", "104857600\n"),
                ("cpu.max", "200000 100000\n"),
            ][..],
            Verdict::Ok,
            "memory 100 of 1024 MiB; cpu limit 2.00",
        ),
        (
            &[
                ("memory.max", "max\n"),
                ("memory.current", "104857600\n"),
                ("cpu.max", "max 100000\n"),
            ],
            Verdict::Ok,
            "memory 100 MiB, no limit; cpu without limit",
        ),
        (
            &[("memory.max", "20971520")],
            Verdict::Failure,
            "limit 20 MiB",
        ),
        (
            &[("memory.max", "104857600"), ("memory.current", "100000000")],
            Verdict::Warning,
            "memory 95 of 100 MiB",
        ),
        (
            &[
                ("memory.max", "1073741824"),
                ("memory.events", "oom 3\noom_kill 2\n"),
            ],
            Verdict::Warning,
            "killed for memory 2 times",
        ),
        (
            &[
                ("memory.max", "max"),
                ("pids.max", "100"),
                ("pids.current", "95"),
            ],
            Verdict::Warning,
            "pids.max",
        ),
        (
            &[
                ("memory/memory.limit_in_bytes", "9223372036854771712"),
                ("memory/memory.usage_in_bytes", "1048576"),
            ],
            Verdict::Ok,
            "memory 1 MiB, no limit",
        ),
        (
            &[("memory.max", "garbage")],
            Verdict::Ok,
            "no memory limit to be seen",
        ),
    ] {
        let folder = tempfile::tempdir().expect("folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
            std::fs::write(path, text).expect("written");
        }
        let check = cgroup::check(folder.path());
        assert_eq!(check.verdict, want, "{}", check.detail);
        assert!(check.detail.contains(text), "{}", check.detail);
    }
}
