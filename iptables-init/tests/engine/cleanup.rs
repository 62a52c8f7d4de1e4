//! `--cleanup-only` with no other flag gives a namespace that equals a fresh one, whatever was
//! there: any golden set, any backend, any mark and table, all of it at once.

use std::path::Path;

use iptables_init::engine;
use iptables_init::log::Log;

use crate::lab::{INJECTED, Lab, assert_same, inside, missing, no_legacy};
use crate::rows::{self, CAPTURE, Row};

const PROGRAMS: &[&str] = &["ip", "nft", "iptables-nft", "ip6tables-nft"];

fn golden_rows(backend: &str) -> Vec<Row> {
    let copied = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let root = rows::shared().unwrap_or_else(copied);
    let rows = rows::rows(&root, &CAPTURE);
    rows.into_iter()
        .filter(|row| row.file.contains(backend))
        .collect()
}

/// Applies a row in the pod through the engine, twice; the second time must change nothing.
fn apply_twice(lab: &Lab, row: &Row, force: &str) {
    let mut config = rows::config(row);
    config.settings.dry_run = false;
    config.forced = match force {
        "legacy" => Some(iptables_init::config::Variant::Legacy),
        "nft" => Some(iptables_init::config::Variant::Nft),
        _ => None,
    };
    let file = row.file.clone();
    inside(&lab.pod, (0, 0), move || {
        let log = Log::new("none", false, Vec::new());
        let mut steps = 0;
        let mut count = |_| {
            steps += 1;
            Ok(())
        };
        let first = engine::apply(&config, &log, &mut count);
        first.unwrap_or_else(|e| panic!("{file}: {e}"));
        let mut none = |step| Err(format!("second run wrote: {step:?}"));
        let second = engine::apply(&config, &log, &mut none);
        second.unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(steps >= 2, "{file}");
    });
}

/// Groups that golden rows name must exist here.
fn known_groups(row: &Row) -> bool {
    let text = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let known = |name: &str| {
        name.parse::<u32>().is_ok() || text.lines().any(|l| l.starts_with(&format!("{name}:")))
    };
    row.env
        .iter()
        .filter(|(name, _)| name.starts_with("ISTIO_OUTBOUND_OWNER_GROUPS"))
        .flat_map(|(_, value)| value.split(','))
        .all(|name| name.is_empty() || name == "*" || known(name))
}

fn clean_after_every_row(backend: &str, force: &str) -> usize {
    let lab = Lab::new();
    if force == "legacy" && no_legacy(&lab) {
        return usize::MAX;
    }
    let fresh = lab.everything();
    let rows = golden_rows(backend);
    let mut done = 0;
    for row in rows.iter().filter(|row| known_groups(row)) {
        apply_twice(&lab, row, force);
        assert_ne!(lab.everything(), fresh, "{}", row.file);
        let cleaned = lab.exec(&[env!("CARGO_BIN_EXE_istio-iptables"), "--cleanup-only"]);
        assert!(cleaned.status.success(), "{}", row.file);
        assert_same(&lab.everything(), &fresh, &row.file);
        done += 1;
    }
    println!("{done} of {} rule sets cleaned", rows.len());
    done
}

#[test]
fn native_sets_apply_once_and_leave_nothing() {
    if missing(PROGRAMS) {
        return;
    }
    assert!(clean_after_every_row("nftables", "") >= 6);
}

#[test]
fn iptables_nft_sets_apply_once_and_leave_nothing() {
    if missing(PROGRAMS) {
        return;
    }
    assert!(clean_after_every_row("iptables", "nft") >= 5);
}

#[test]
fn iptables_legacy_sets_apply_once_and_leave_nothing() {
    if missing(PROGRAMS) || missing(&["iptables-legacy", "ip6tables-legacy"]) {
        return;
    }
    assert!(clean_after_every_row("iptables", "legacy") >= 5);
}

/// What the reference can leave: all three kinds of rules, equal policy rules, a custom mark and
/// table whose rules are gone, a route without its rule.
#[test]
fn everything_at_once_is_cleaned_and_rules_of_others_stay() {
    if missing(PROGRAMS) || missing(&["iptables-legacy", "ip6tables-legacy"]) {
        return;
    }
    let lab = Lab::new();
    if no_legacy(&lab) {
        return;
    }
    lab.script(
        "iptables-nft -t nat -A OUTPUT -p udp --dport 9 -j ACCEPT
         iptables-legacy -t nat -A OUTPUT -p udp --dport 9 -j ACCEPT
         nft add table inet mine; nft add chain inet mine c
         ip rule add fwmark 0x200/0xf00 lookup 77; ip route add local default dev lo table 77
         ip rule add from 10.9.9.9 lookup 78; ip route add local default dev lo table 78
         ip rule add fwmark 5 lookup 79; ip route add 10.9.0.0/16 dev eth0 table 79",
    );
    let fresh = lab.everything();
    let program = env!("CARGO_BIN_EXE_istio-iptables");
    let more = [
        "-m",
        "TPROXY",
        "--dual-stack",
        "-c",
        "eth7",
        "--redirect-dns",
    ];
    lab.apply(&[&["--force-iptables-binary", "legacy"], &more[..]].concat());
    lab.script(
        "nft 'add table inet istio-proxy-nat; add chain inet istio-proxy-nat output { type nat hook output priority -100 ; }
              add rule inet istio-proxy-nat output counter accept; add table inet istio-proxy-raw'
         for p in iptables-nft ip6tables-nft; do
           $p -t nat -N ISTIO_OLD; $p -t nat -I OUTPUT -j ISTIO_OLD; $p -t raw -N ISTIO_OUTPUT_DNS
           $p -t raw -A OUTPUT -j ISTIO_OUTPUT_DNS; $p -t mangle -N ISTIO_INBOUND
           $p -t mangle -A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark
         done
         for i in 1 2 3; do ip rule add fwmark 1337 lookup 133 pref $((32000 + i)); done
         ip rule add fwmark 4711 lookup 4712; ip route add local default dev lo table 4712
         ip -6 rule add fwmark 4711 lookup 4712; ip -6 route add local default dev lo table 4712
         ip -6 rule del fwmark 1337 lookup 133",
    );
    assert_ne!(lab.everything(), fresh);
    let cleaned = lab.exec(&[program, "--cleanup-only"]);
    assert!(cleaned.status.success());
    assert_same(&lab.everything(), &fresh, "cleaned");
}

#[test]
fn iptables_nft_leftovers_go_without_any_iptables_program() {
    if missing(PROGRAMS) {
        return;
    }
    let lab = Lab::new();
    let fresh = lab.everything();
    let program = env!("CARGO_BIN_EXE_istio-iptables");
    let bare = ["env", "PATH=/nonexistent", program];
    for target in [&["--cleanup-only"][..], &["--native-nftables"]] {
        lab.apply(&[
            "--force-iptables-binary",
            "nft",
            "-m",
            "TPROXY",
            "--dual-stack",
        ]);
        let output = lab.exec(&[&bare, INJECTED, target].concat());
        assert!(output.status.success(), "{target:?}");
        let left = lab.text(&["iptables-nft-save"]) + &lab.text(&["ip6tables-nft-save"]);
        assert!(!left.contains("ISTIO"), "{left}");
        lab.exec(&[program, "--cleanup-only"]);
        assert_same(&lab.everything(), &fresh, &format!("{target:?}"));
    }
}

#[test]
fn legacy_leftovers_without_the_legacy_program_are_a_loud_error() {
    if missing(PROGRAMS) || missing(&["iptables-legacy", "ip6tables-legacy"]) {
        return;
    }
    let lab = Lab::new();
    if no_legacy(&lab) {
        return;
    }
    let bare = [
        "env",
        "PATH=/nonexistent",
        env!("CARGO_BIN_EXE_istio-iptables"),
    ];
    // An empty table, made by looking at it, is nobody's rules.
    let output = lab.exec(&[&bare, INJECTED, &["--native-nftables"]].concat());
    assert!(output.status.success());
    lab.apply(&["--force-iptables-binary", "legacy"]);
    let before = lab.everything();
    let output = lab.exec(&[&bare, INJECTED, &["--native-nftables"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        errors.contains("iptables-legacy does not work here"),
        "{errors}"
    );
    assert_same(&lab.everything(), &before, &errors);
}
