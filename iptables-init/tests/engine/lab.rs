//! A pod and somebody outside, each in a network namespace of its own, and all that the pod's
//! kernel holds as text.

use std::fs::File;
use std::net::IpAddr;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use clap::Parser as _;
pub(crate) use iptables_init::cli::INJECTED_ARGS as INJECTED;
use iptables_init::cli::{Cli, Environment, Settings};
use iptables_init::config::{Config, Host};
use iptables_init::engine::{self, EngineError, Step};
use iptables_init::log::Log;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

pub(crate) const POD: [u8; 4] = [10, 81, 0, 2];
pub(crate) const OUTSIDE: [u8; 4] = [10, 81, 0, 1];

pub(crate) fn sh(command: &str) -> Output {
    Command::new("sh")
        .args(["-c", command])
        .output()
        .expect("sh runs")
}

/// Reason to skip, printed.
pub(crate) fn missing(programs: &[&str]) -> bool {
    if !Uid::effective().is_root() {
        println!("skipped: needs root");
        return true;
    }
    let has = |p: &str| sh(&format!("command -v {p}")).status.success();
    match programs.iter().find(|program| !has(program)) {
        Some(program) => {
            println!("skipped: needs {program}");
            true
        }
        None => false,
    }
}

/// Whether this kernel lacks the legacy tables; printed.
pub(crate) fn no_legacy(lab: &Lab) -> bool {
    let there = lab.exec(&["ip6tables-legacy", "-t", "nat", "-S"]);
    if !there.status.success() {
        println!("skipped: this kernel has no legacy iptables");
    }
    !there.status.success()
}

/// Two namespaces joined by a veth pair, removed on drop.
pub(crate) struct Lab {
    pub(crate) pod: String,
    pub(crate) outside: String,
}

impl Lab {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{serial}", std::process::id());
        let lab = Self {
            pod: format!("orpod-{id}"),
            outside: format!("orout-{id}"),
        };
        let (pod, outside) = (&lab.pod, &lab.outside);
        let script = format!(
            "set -e; ip netns add {pod}; ip netns add {outside}
             ip -n {pod} link add eth0 type veth peer name eth0 netns {outside}
             for n in {pod} {outside}; do
               ip -n $n link set lo up
               # No link-local address that appears at some later moment.
               ip -n $n link set eth0 addrgenmode none up
             done
             ip -n {pod} addr add 10.81.0.2/24 dev eth0; ip -n {outside} addr add 10.81.0.1/24 dev eth0
             ip -n {pod} addr add fd81::2/64 dev eth0 nodad; ip -n {outside} addr add fd81::1/64 dev eth0 nodad"
        );
        let made = sh(&script);
        let errors = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(made.status.success(), "{errors}");
        lab
    }

    pub(crate) fn exec(&self, words: &[&str]) -> Output {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.pod])
            .args(words)
            .output();
        output.expect("ip runs")
    }

    pub(crate) fn text(&self, words: &[&str]) -> String {
        String::from_utf8_lossy(&self.exec(words).stdout).into_owned()
    }

    /// Runs a script in the pod; asserts success.
    pub(crate) fn script(&self, script: &str) -> String {
        let output = self.exec(&["sh", "-ec", script]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{script}\n{errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs the program with the injected arguments and more; asserts success.
    pub(crate) fn apply(&self, more: &[&str]) -> String {
        let words = [&[env!("CARGO_BIN_EXE_istio-iptables")], INJECTED, more].concat();
        let output = self.exec(&words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{more:?}\n{text}\n{errors}");
        text
    }

    /// Everything the program may touch: rules of all three kinds, policy rules, routes of all
    /// tables, loopback addresses. Counters, dates and the order of chains mean nothing.
    pub(crate) fn everything(&self) -> String {
        let text = self.script(
            "nft -s list ruleset
             for p in iptables ip6tables; do
               echo '== legacy'; $p-legacy-save | grep -e '^-A' -e '^:ISTIO' -e '^[*]' || true
               echo '== xtables'; $p-nft-save 2>/dev/null | grep -e '^-A' -e '^:' -e '^[*]' || true
             done
             echo '== routes'; ip rule; ip -6 rule
             # A dump in the middle of a kernel update repeats routes.
             (ip route show table all; ip -6 route show table all) | sort -u
             ip -6 -o addr show dev lo",
        );
        canonical(&text)
    }

    /// One run of the engine in the pod, with the injected arguments and more.
    pub(crate) fn engine(
        &self,
        more: &[&str],
        observer: impl FnMut(Step) -> Result<(), String> + Send + 'static,
    ) -> Result<(), EngineError> {
        let more: Vec<String> = more.iter().map(ToString::to_string).collect();
        inside(&self.pod, (0, 0), move || engine_here(&more, observer))
    }
}

/// One run of the engine in the namespace of this thread.
pub(crate) fn engine_here(
    more: &[String],
    mut observer: impl FnMut(Step) -> Result<(), String>,
) -> Result<(), EngineError> {
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let argv = [&["istio-iptables"], INJECTED, &more].concat();
    let cli = Cli::try_parse_from(argv).expect("arguments");
    let config = Config::build(Settings::resolve(cli, &NoEnv), &PodHost).expect("config");
    let log = Log::new("none", false, Vec::new());
    if config.settings.cleanup_only {
        engine::cleanup(&config, &log, &mut observer)
    } else {
        engine::apply(&config, &log, &mut observer)
    }
}

struct NoEnv;

impl Environment for NoEnv {
    fn var(&self, _: &str) -> Option<String> {
        None
    }
}

/// The pod of the lab; `/etc` of the test machine plays no part.
struct PodHost;

impl Host for PodHost {
    fn addresses(&self) -> Result<Vec<IpAddr>, std::io::Error> {
        let v6 = [0xfd81, 0, 0, 0, 0, 0, 0, 2];
        Ok(vec![IpAddr::from(POD), IpAddr::from(v6)])
    }

    fn resolv_conf(&self) -> Result<String, std::io::Error> {
        Ok("nameserver 10.81.0.1\nnameserver fd81::1\n".to_owned())
    }

    fn user_id(&self, _: &str) -> Option<u32> {
        None
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        sh(&format!(
            "ip netns del {}; ip netns del {}",
            self.pod, self.outside
        ));
    }
}

/// Asserts that two states are equal; shows only the lines that differ.
#[track_caller]
pub(crate) fn assert_same(got: &str, want: &str, context: &str) {
    if got == want {
        return;
    }
    let lines = |a: &str, b: &str| -> Vec<String> {
        let other: Vec<&str> = b.lines().collect();
        let only = a.lines().filter(|line| !other.contains(line));
        only.map(ToOwned::to_owned).collect()
    };
    let (more, less) = (lines(got, want), lines(want, got));
    assert!(
        more.is_empty() && less.is_empty(),
        "{context}\n+ {more:#?}\n- {less:#?}"
    );
    assert_eq!(got, want, "{context}");
}

/// Without counters and empty legacy tables, chains sorted inside their table.
fn canonical(text: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut chains: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let line = line.split(" [").next().unwrap_or_default();
        if line.starts_with("\tchain ") {
            chains.push(String::new());
        }
        if line.starts_with('\t') {
            if let Some(chain) = chains.last_mut() {
                *chain += &format!("{line}\n");
            }
            continue;
        }
        chains.sort();
        out.append(&mut chains);
        out.push(format!("{line}\n"));
    }
    let mut text = out.concat();
    // A legacy table cannot be removed again; empty it means nothing.
    for table in ["filter", "mangle", "nat", "raw"] {
        while let Some(at) = text.find(&format!("*{table}\n*")) {
            text.replace_range(at..at + table.len() + 2, "");
        }
        text = text.replace(&format!("*{table}\n=="), "==");
    }
    text
}

/// Runs `work` on a thread inside a namespace, with sockets owned by `owner` (user, group).
pub(crate) fn inside<T: Send + 'static>(
    namespace: &str,
    owner: (u32, u32),
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    start_inside(namespace, owner, work)
        .join()
        .expect("namespace thread")
}

/// The same without waiting for its end.
pub(crate) fn start_inside<T: Send + 'static>(
    namespace: &str,
    owner: (u32, u32),
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let file = File::open(format!("/run/netns/{namespace}")).expect("namespace file");
    std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
        // These two calls are per thread, and the owner match reads exactly these ids.
        setfsgid(Gid::from_raw(owner.1));
        setfsuid(Uid::from_raw(owner.0));
        work()
    })
}
