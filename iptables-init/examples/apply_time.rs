//! How long a whole run of `istio-iptables` takes: process start to exit, in a fresh network
//! namespace each time. Needs root, `ip` and the iptables programs. Not a test: figures go to
//! BENCHMARKS.md.
//!
//! `cargo run --release -p iptables-init --example apply_time -- bin/istio-iptables [runs]`

use std::error::Error;
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iptables_init::cli::INJECTED_ARGS;
use nix::sched::{CloneFlags, setns};

/// Name, flags of the first run, flags of the measured run if that is another one.
type Case = (
    &'static str,
    &'static [&'static str],
    Option<&'static [&'static str]>,
);

const CASES: &[Case] = &[
    ("start-up only (--help)", &["--help"], None),
    ("native nft, v4", &["--native-nftables"], None),
    (
        "native nft, dual stack",
        &["--native-nftables", "--dual-stack"],
        None,
    ),
    (
        "native nft, TPROXY + DNS, dual stack",
        &[
            "--native-nftables",
            "--dual-stack",
            "-m",
            "TPROXY",
            "--redirect-dns",
            "--capture-all-dns",
        ],
        None,
    ),
    (
        "native nft, second equal run",
        &["--native-nftables"],
        Some(&["--native-nftables"]),
    ),
    (
        "native nft, replacing other flags",
        &["--native-nftables", "-o", "7000"],
        Some(&["--native-nftables"]),
    ),
    ("iptables, choosing the variant, v4", &[], None),
    (
        "iptables-nft forced, v4",
        &["--force-iptables-binary", "nft"],
        None,
    ),
    (
        "iptables-nft forced, dual stack",
        &["--force-iptables-binary", "nft", "--dual-stack"],
        None,
    ),
    (
        "iptables-nft forced, second equal run",
        &["--force-iptables-binary", "nft"],
        Some(&["--force-iptables-binary", "nft"]),
    ),
    (
        "iptables-nft forced, replacing other flags",
        &["--force-iptables-binary", "nft", "-o", "7000"],
        Some(&["--force-iptables-binary", "nft"]),
    ),
    (
        "iptables-legacy forced, v4",
        &["--force-iptables-binary", "legacy"],
        None,
    ),
];

/// Runs the program in the namespace of this thread; its wall time.
fn run(program: &str, flags: &[&str]) -> Result<Duration, Box<dyn Error>> {
    let mut command = Command::new(program);
    command
        .args(INJECTED_ARGS)
        .arg("--log_output_level=default:info")
        .args(flags)
        .stdout(Stdio::null());
    let begin = Instant::now();
    let status = command.status()?;
    let time = begin.elapsed();
    if !status.success() {
        return Err(format!("{flags:?}: {status}").into());
    }
    Ok(time)
}

fn ip(words: &[&str]) -> Result<(), Box<dyn Error>> {
    let status = Command::new("ip").args(words).status()?;
    if !status.success() {
        return Err(format!("ip {words:?}: {status}").into());
    }
    Ok(())
}

/// One measurement in a pod of its own.
fn measure(program: &str, case: &Case, pod: &str) -> Result<Duration, Box<dyn Error>> {
    let (_, first, second) = case;
    ip(&["netns", "add", pod])?;
    let made = [
        "link add eth0 type veth peer name eth1",
        "link set lo up",
        "link set eth0 up",
        "addr add 10.81.0.2/24 dev eth0",
        "addr add fd81::2/64 dev eth0 nodad",
    ];
    let result = made
        .iter()
        .try_for_each(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            ip(&[&["-n", pod], &words[..]].concat())
        })
        .and_then(|()| {
            setns(
                File::open(format!("/run/netns/{pod}"))?,
                CloneFlags::CLONE_NEWNET,
            )?;
            let time = run(program, first)?;
            second.map_or(Ok(time), |flags| run(program, flags))
        });
    ip(&["netns", "del", pod])?;
    result
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let program = args.next().ok_or("usage: apply_time PROGRAM [RUNS]")?;
    let runs: usize = args.next().map_or(Ok(50), |text| text.parse())?;
    let home = File::open("/proc/self/ns/net")?;
    let pod = format!("orbench-{}", std::process::id());
    println!("| run | median ms | min–max ms |\n|---|---|---|");
    for case in CASES {
        let mut times = Vec::new();
        for _ in 0..runs {
            times.push(measure(&program, case, &pod)?.as_secs_f64() * 1000.0);
            setns(&home, CloneFlags::CLONE_NEWNET)?;
        }
        times.sort_by(f64::total_cmp);
        let (min, max) = (times[0], times[runs - 1]);
        let median = times[runs / 2];
        println!("| {} | {median:.1} | {min:.1}–{max:.1} |", case.0);
    }
    Ok(())
}
