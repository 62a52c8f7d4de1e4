//! Every golden rule set loads into a fresh network namespace, on every backend that it is for, and
//! the program run with the row's flags leaves the same rules there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use iptables_init::iptables::text::{render_restore, render_tables};
use iptables_init::nft::plan::build_plan;
use iptables_init::nft::text::render_transaction;
use iptables_init::rules::{Family, Flavor, build_rules};

use crate::rows::{CAPTURE, Row, config, rows, shared};

/// A folder of this test; removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("outrigger-load-{}-{serial}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("scratch folder");
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).expect("scratch file");
        path.to_str().expect("temporary path").to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover in the temporary folder harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a script in a network namespace that ends with it.
fn fresh(script: &str, words: &[String]) -> Result<String, String> {
    let output = Command::new("unshare")
        .args(["-n", "-m", "sh", "-ec", script, "sh"])
        .args(words)
        .output()
        .map_err(|e| format!("unshare: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!(
        "{}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    ))
}

/// Counters and dates are no part of a rule set; tables that hold nothing may exist or not.
fn rules_only(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut table = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        }
        if line.starts_with("-A") || line.starts_with(":ISTIO") {
            let line = line.split(" [").next().unwrap_or_default();
            lines.push(format!("{table} {line}"));
        }
    }
    lines
}

/// The pod that the row was made for: addresses, nameservers, groups.
fn pod(scratch: &Scratch, row: &Row) -> String {
    let group = scratch.file("group", "root:x:0:\nftp:x:14:\njava:x:70000:\n");
    let resolv = scratch.file("resolv.conf", &row.host.resolv_conf);
    let v6 = if row.host.ipv6 {
        "ip addr add fd00::5/64 dev eth0 nodad;"
    } else {
        ""
    };
    format!(
        "mount --bind {group} /etc/group; mount --bind {resolv} /etc/resolv.conf
         ip link set lo up; ip link add eth0 type veth peer name eth9; ip link set eth0 up
         ip addr add 10.0.0.5/24 dev eth0; {v6} "
    )
}

/// The program with the row's flags and environment, as words for a shell's `"$@"`.
fn program(row: &Row, backend: &[&str]) -> Vec<String> {
    let mut words = vec!["env".to_owned()];
    words.extend(row.env.iter().map(|(k, v)| format!("{k}={v}")));
    words.push(env!("CARGO_BIN_EXE_istio-iptables").to_owned());
    let args = row.args.iter().filter(|arg| *arg != "--dry-run");
    words.extend(args.cloned());
    words.extend(backend.iter().map(ToString::to_string));
    words
}

fn load_nft(row: &Row) -> Result<(), String> {
    let scratch = Scratch::new();
    let text = render_transaction(&build_plan(&config(row).rules));
    let text = scratch.file("rules.nft", &text);
    let pod = pod(&scratch, row);
    let list = "nft -s list ruleset";
    let theirs = fresh(&format!("{pod} nft -f {text}; {list}"), &[])?;
    let ours = fresh(
        &format!(
            "{pod} \"$@\" >{log} 2>&1 || {{ cat {log}; exit 1; }}; {list}",
            log = scratch.0.join("log").display()
        ),
        &program(row, &[]),
    )?;
    if ours == theirs {
        return Ok(());
    }
    Err(format!("--- nft\n{theirs}\n--- program\n{ours}"))
}

fn load_iptables(row: &Row, variant: &str) -> Result<(), String> {
    let scratch = Scratch::new();
    let config = config(row);
    let rules = build_rules(&config.rules, Flavor::Iptables);
    let text = |family| render_restore(&render_tables(&rules, &config.rules, family));
    let v4 = scratch.file("rules.v4", &text(Family::V4));
    let mut restore = format!("iptables-{variant}-restore --noflush <{v4}; ");
    if config.rules.ipv6 {
        let v6 = scratch.file("rules.v6", &text(Family::V6));
        restore += &format!("ip6tables-{variant}-restore --noflush <{v6}; ");
    }
    let pod = pod(&scratch, row);
    let list = format!("iptables-{variant}-save; echo '*v6'; ip6tables-{variant}-save");
    let theirs = fresh(&format!("{pod} {restore} {list}"), &[])?;
    let log = scratch.0.join("log");
    let log = log.display();
    let ours = fresh(
        &format!("{pod} \"$@\" >{log} 2>&1 || {{ cat {log}; exit 1; }}; {list}"),
        &program(row, &["--force-iptables-binary", variant]),
    )?;
    let (theirs, ours) = (rules_only(&theirs), rules_only(&ours));
    if theirs.is_empty() {
        return Err("no rule was loaded".to_owned());
    }
    if ours == theirs {
        return Ok(());
    }
    Err(format!(
        "--- {variant}\n{theirs:#?}\n--- program\n{ours:#?}"
    ))
}

/// Loads every row of a backend; returns how many.
fn load_all(backend: &str, load: impl Fn(&Row) -> Result<(), String>) -> usize {
    let copied = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let root = shared().unwrap_or_else(copied);
    let rows = rows(&root, &CAPTURE);
    let rows: Vec<&Row> = rows
        .iter()
        .filter(|row| row.file.contains(backend))
        .collect();
    let failures: Vec<String> = rows
        .iter()
        .filter_map(|row| load(row).err().map(|e| format!("{}: {e}", row.file)))
        .collect();
    let list = failures.join("\n");
    assert!(
        failures.is_empty(),
        "{} of {}:\n{list}",
        failures.len(),
        rows.len()
    );
    println!("{} rule sets loaded", rows.len());
    rows.len()
}

/// Why this cannot run here.
fn obstacle(script: &str) -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("needs root".to_owned());
    }
    fresh(script, &[])
        .err()
        .map(|e| format!("needs {script}: {e}"))
}

#[test]
fn every_nftables_rule_set_loads_and_equals_what_the_program_makes() {
    if let Some(reason) = obstacle("nft list ruleset; ip link") {
        return println!("skipped: {reason}");
    }
    assert!(load_all("nftables", load_nft) >= 6);
}

#[test]
fn every_iptables_rule_set_loads_through_nft_and_equals_what_the_program_makes() {
    if let Some(reason) = obstacle("iptables-nft -S; ip6tables-nft -S; ip link") {
        return println!("skipped: {reason}");
    }
    assert!(load_all("iptables", |row| load_iptables(row, "nft")) >= 5);
}

#[test]
fn every_iptables_rule_set_loads_through_legacy_and_equals_what_the_program_makes() {
    if let Some(reason) = obstacle("iptables-legacy -t nat -S; ip6tables-legacy -t nat -S; ip link")
    {
        return println!("skipped: {reason}");
    }
    assert!(load_all("iptables", |row| load_iptables(row, "legacy")) >= 5);
}
