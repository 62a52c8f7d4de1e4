//! Every golden rule set of the capture, derived and CNI plugin folders must come out text-equal.
//! A small copy of the default cases lives in `tests/fixtures` and always runs; the whole index
//! runs when the shared fixtures are present (`OUTRIGGER_SHARED`, else `../shared`).

#[path = "golden/load.rs"]
mod load;
#[path = "golden/rows.rs"]
mod rows;

use std::fs;
use std::path::Path;

use iptables_init::cni::{self, CniPod};
use iptables_init::config::Config;
use iptables_init::iptables::text::{render_restore, render_tables};
use iptables_init::nft::plan::build_plan;
use iptables_init::nft::text::render_transaction;
use iptables_init::rules::{Family, Flavor, build_rules};

use rows::{CAPTURE, Row, Stand, config, rows, shared};

fn iptables_run(config: &Config) -> String {
    let rules = build_rules(&config.rules, Flavor::Iptables);
    let mut out = String::from("iptables-save\nip6tables-save\n");
    out += &render_restore(&render_tables(&rules, &config.rules, Family::V4));
    if config.rules.ipv6 {
        out += &render_restore(&render_tables(&rules, &config.rules, Family::V6));
    }
    out += "iptables-save\n";
    if config.rules.ipv6 {
        out += "ip6tables-save\n";
    }
    out
}

fn rendered(row: &Row) -> String {
    let config = config(row);
    if row.file.contains("nftables") {
        render_transaction(&build_plan(&config.rules))
    } else {
        iptables_run(&config)
    }
}

fn check(root: &Path, row: &Row) -> Result<(), String> {
    let path = root.join(&row.file);
    let golden = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut got = rendered(row);
    if row.file.ends_with("dns-uid-gid.golden") {
        // The upstream test sets the text form directly; a resolv.conf value is normalised.
        got = got.replace("::7f00:35", "::127.0.0.53");
    }
    // Save lines are calls of the reference, not rules; the set differs with the family.
    let body = |text: &str| {
        text.lines()
            .filter(|line| !line.ends_with("tables-save"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    if body(&got) == body(&golden) {
        return Ok(());
    }
    Err(format!("{}\n--- want\n{golden}\n--- got\n{got}", row.file))
}

fn check_index(root: &Path, folders: &[&str]) -> usize {
    let rows = rows(root, folders);
    let failures: Vec<String> = rows
        .iter()
        .filter_map(|row| check(root, row).err())
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        rows.len(),
        failures.join("\n")
    );
    rows.len()
}

#[test]
fn default_rule_sets_equal_the_copied_goldens() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    assert!(check_index(&root, &CAPTURE) >= 8);
}

#[test]
fn every_capture_and_derived_golden_is_text_equal() {
    let Some(root) = shared() else {
        println!("skipped: shared interception fixtures not found");
        return;
    };
    let checked = check_index(&root, &CAPTURE);
    println!("{checked} golden rule sets are equal");
    assert_eq!(checked, 126);
}

/// Pods whose rules the CNI plugin's tests of the reference show.
fn cni_pods() -> Vec<(&'static str, CniPod<'static>)> {
    let annotated = |list: &[(&'static str, &'static str)]| CniPod {
        annotations: list.iter().copied().collect(),
        ..CniPod::default()
    };
    let proxy_env = |name, value| CniPod {
        proxy_env: [(name, value)].into(),
        ..CniPod::default()
    };
    let owned = |pod: CniPod<'static>| CniPod {
        run_as_user: Some(1_000_670_000),
        run_as_group: Some(1_000_670_001),
        ..pod
    };
    let tproxy = || annotated(&[("sidecar.istio.io/interceptionMode", "TPROXY")]);
    vec![
        ("basic", CniPod::default()),
        (
            "include-exclude-ip",
            annotated(&[
                (
                    "traffic.sidecar.istio.io/includeOutboundIPRanges",
                    "127.0.0.0/8",
                ),
                (
                    "traffic.sidecar.istio.io/excludeOutboundIPRanges",
                    "10.0.0.0/8",
                ),
            ]),
        ),
        (
            "include-exclude-ports",
            annotated(&[
                ("traffic.sidecar.istio.io/includeInboundPorts", "1111,2222"),
                ("traffic.sidecar.istio.io/excludeInboundPorts", "3333,4444"),
                ("traffic.sidecar.istio.io/excludeOutboundPorts", "5555,6666"),
            ]),
        ),
        ("tproxy", tproxy()),
        ("dns", proxy_env("ISTIO_META_DNS_CAPTURE", "true")),
        ("invalid-drop", proxy_env("INVALID_DROP", "true")),
        ("custom-uid", owned(CniPod::default())),
        ("custom-uid-tproxy", owned(tproxy())),
    ]
}

fn by_table(text: &str) -> Vec<String> {
    let mut tables: Vec<String> = Vec::new();
    for line in text
        .lines()
        .filter(|l| !l.ends_with("-save") && !l.trim().is_empty())
    {
        if line.starts_with('*') {
            tables.push(String::new());
        }
        if let Some(table) = tables.last_mut() {
            *table += line.trim();
            table.push('\n');
        }
    }
    tables.sort();
    tables
}

#[test]
fn cni_plugin_rule_sets_are_equal_per_table() {
    let Some(root) = shared() else {
        println!("skipped: shared interception fixtures not found");
        return;
    };
    let host = Stand {
        ipv6: false,
        resolv_conf: String::new(),
    };
    for (name, pod) in cni_pods() {
        let settings = cni::settings(&pod).expect("the mode is known");
        let config = Config::build(settings, &host).expect("configuration");
        let path = root.join(format!("cni-plugin-sidecar/{name}.txt.golden"));
        let golden = fs::read_to_string(path).expect("golden file");
        let got = iptables_run(&config);
        assert_eq!(by_table(&got), by_table(&golden), "{name}");
    }
}

#[test]
fn cni_defaults_and_refusals_are_those_of_the_plugin() {
    let pod = |mode| CniPod {
        annotations: [("sidecar.istio.io/interceptionMode", mode)].into(),
        run_as_user: Some(0),
        proxy_env: [("ISTIO_META_DNS_CAPTURE", "true"), ("DUAL_STACK", "true")].into(),
        ..CniPod::default()
    };
    let settings = cni::settings(&pod("TPROXY")).expect("the mode is known");
    assert_eq!(settings.proxy_uid, "1337");
    assert_eq!(settings.inbound_exclude_ports, "15020,15021,15090");
    assert_eq!(settings.outbound_ports_exclude, "15020");
    assert!(settings.redirect_dns && settings.capture_all_dns);
    assert!(!settings.dual_stack && !settings.dry_run && settings.cni_mode);
    let error = cni::settings(&pod("NONE")).expect_err("no rules are wanted");
    assert!(error.to_string().contains("REDIRECT or TPROXY"), "{error}");
}
