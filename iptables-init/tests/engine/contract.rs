//! What callers see: exit codes, messages of refused values, precedence of variables and flags,
//! log lines in their order.

use std::fs;

use crate::lab::{INJECTED, Lab, missing};

const PROGRAM: &str = env!("CARGO_BIN_EXE_istio-iptables");

struct Run {
    code: i32,
    out: String,
    errors: String,
}

fn run(lab: &Lab, variables: &[&str], args: &[&str]) -> Run {
    let output = lab.exec(&[&["env"], variables, &[PROGRAM], args].concat());
    Run {
        code: output.status.code().expect("an exit code"),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn refused_values_end_with_1_a_message_that_names_them_and_no_change() {
    if missing(&["ip", "nft"]) {
        return;
    }
    let lab = Lab::new();
    let fresh = lab.everything();
    let groups = (1..=65)
        .map(|n| n.to_string())
        .collect::<Vec<_>>()
        .join(",");
    let groups = format!("ISTIO_OUTBOUND_OWNER_GROUPS={groups}");
    let cases: &[(&[&str], &[&str], &str)] = &[
        (&[], &["-p", "0"], "PROXY_PORT"),
        (&[], &["-p", "70000"], "PROXY_PORT"),
        (&[], &["-z", "x"], "PROXY_INBOUND_CAPTURE_PORT"),
        (&[], &["-e", ""], "PROXY_TUNNEL_PORT"),
        (&[], &["-b", "80,x"], "INBOUND_PORTS_INCLUDE"),
        (&[], &["-d", "9-8"], "INBOUND_PORTS_EXCLUDE"),
        (
            &[],
            &["-q", "80\n-A OUTPUT -j DROP"],
            "OUTBOUND_PORTS_INCLUDE",
        ),
        (&[], &["-o", "-1"], "OUTBOUND_PORTS_EXCLUDE"),
        (&[], &["-i", "10.0.0.1"], "OUTBOUND_IP_RANGES_INCLUDE"),
        (
            &[],
            &["-x", "*"],
            "invalid value for OUTBOUND_IP_RANGES_EXCLUDE",
        ),
        (&[], &["-c", "1eth"], "EXCLUDE_INTERFACES"),
        (&[], &["-k", "a-name-of-sixteen"], "KUBE_VIRT_INTERFACES"),
        (&[], &["-t", "0x539"], "INBOUND_TPROXY_MARK"),
        (&[], &["-r", "main"], "INBOUND_TPROXY_ROUTE_TABLE"),
        (&[], &["-u", "a b"], "PROXY_UID"),
        (&[], &["-g", "2-1"], "PROXY_GID"),
        (
            &[],
            &["--native-nftables", "-u", "nosuchuser"],
            "User does not exist",
        ),
        (
            &[],
            &["--native-nftables", "-g", "nosuchgroup"],
            "Group does not exist",
        ),
        (
            &[],
            &["--force-iptables-binary", "both"],
            "invalid FORCE_IPTABLES_BINARY value \"both\"",
        ),
        (
            &[&groups],
            &[],
            "number of owner groups whose outgoing traffic should be redirected to Envoy cannot exceed 64, got 65",
        ),
        (
            &["ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=10.0.0.0/8"],
            &[],
            "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
        ),
        (
            &["ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=127.0.0.0/7"],
            &[],
            "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
        ),
    ];
    for (variables, args, message) in cases {
        let got = run(&lab, variables, args);
        assert_eq!(got.code, 1, "{args:?}: {}", got.errors);
        assert!(got.errors.starts_with("Error: "), "{}", got.errors);
        assert!(got.errors.contains(message), "{args:?}: {}", got.errors);
        assert!(got.out.contains("\terror\t"), "{args:?}: {}", got.out);
    }
    crate::lab::assert_same(&lab.everything(), &fresh, "after refused values");
}

#[test]
fn flag_errors_end_with_255_and_help_with_0() {
    if missing(&["ip"]) {
        return;
    }
    let lab = Lab::new();
    for args in [
        &["--nope"][..],
        &["--dry-run=maybe"],
        &["--iptables-probe-port", "70000"],
        &["--probe-timeout", "5"],
        &["-u"],
    ] {
        let got = run(&lab, &[], args);
        assert_eq!(got.code, 255, "{args:?}");
        assert!(got.errors.starts_with("Error: "), "{}", got.errors);
        assert!(!got.errors.contains("Usage"), "{}", got.errors);
        assert!(got.out.contains("\terror\t"), "{}", got.out);
    }
    let help = run(&lab, &[], &["--help"]);
    assert_eq!((help.code, help.errors.as_str()), (0, ""));
    assert!(help.out.contains("--istio-inbound-ports"));
}

#[test]
fn a_pod_without_an_address_is_an_error() {
    if missing(&["ip"]) {
        return;
    }
    let lab = Lab::new();
    lab.script("ip link set eth0 down; ip addr flush dev eth0");
    let got = run(&lab, &[], &["--native-nftables"]);
    assert_eq!(got.code, 1);
    assert!(
        got.errors.contains("no valid local IP address found"),
        "{}",
        got.errors
    );
}

#[test]
fn values_come_from_default_variable_second_variable_and_flag_in_this_order() {
    if missing(&["ip"]) {
        return;
    }
    let lab = Lab::new();
    // (variables, flags, line of the dump)
    let cases: &[(&[&str], &[&str], &str)] = &[
        (&[], &[], "PROXY_PORT=15001"),
        (&["ENVOY_PORT=1"], &[], "PROXY_PORT=15001"),
        (
            &["INBOUND_CAPTURE_PORT=7"],
            &[],
            "PROXY_INBOUND_CAPTURE_PORT=7",
        ),
        (
            &["INBOUND_CAPTURE_PORT=7"],
            &["-z", "8"],
            "PROXY_INBOUND_CAPTURE_PORT=8",
        ),
        (&["DROP_INVALID=true"], &[], "DROP_INVALID=true"),
        (
            &["DROP_INVALID=true", "INVALID_DROP=garbage"],
            &[],
            "DROP_INVALID=false",
        ),
        (
            &["INVALID_DROP=garbage"],
            &["--drop-invalid"],
            "DROP_INVALID=true",
        ),
        (&["ISTIO_DUAL_STACK=T"], &[], "DUAL_STACK=true"),
        (
            &["ISTIO_DUAL_STACK=T"],
            &["--dual-stack=false"],
            "DUAL_STACK=false",
        ),
        (&["ISTIO_INBOUND_PORTS="], &[], "INBOUND_PORTS_INCLUDE="),
        (&["PROXY_UID=5"], &[], "PROXY_GID=5"),
        (&["ENVOY_USER=root"], &[], "PROXY_UID=0"),
        (&["ENVOY_USER=nobody-knows"], &[], "PROXY_UID=1337"),
        (
            &["ISTIO_OUTBOUND_OWNER_GROUPS="],
            &[],
            "OUTBOUND_OWNER_GROUPS_INCLUDE=",
        ),
        (
            &["ISTIO_META_DNS_CAPTURE=1", "CAPTURE_ALL_DNS=1"],
            &[],
            "DNS_CAPTURE=true",
        ),
        (
            &["PROXY_OWNERS_FIRST=true", "NATIVE_NFTABLES=true"],
            &[],
            "NATIVE_NFTABLES=true",
        ),
    ];
    for (variables, args, line) in cases {
        let got = run(&lab, variables, &[&["--dry-run"], *args].concat());
        assert_eq!(got.code, 0, "{}", got.errors);
        let found = got.out.lines().any(|l| l == *line);
        assert!(found, "{variables:?} {args:?}: no {line:?} in\n{}", got.out);
    }
    // A bad duration is none at all: the validation fails at once.
    let got = run(
        &lab,
        &["PROBE_TIMEOUT=abc"],
        &["--skip-rule-apply", "--run-validation"],
    );
    assert_eq!(got.code, 126, "{}", got.out);
}

/// Asserts that the parts are there, in this order.
fn in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let at = rest.find(part);
        let at = at.unwrap_or_else(|| panic!("no {part:?} at its place in\n{text}"));
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn log_lines_of_iptables_are_those_that_bug_reports_collect() {
    if missing(&["ip", "iptables-nft", "ip6tables-nft"]) {
        return;
    }
    let lab = Lab::new();
    let nft = ["--force-iptables-binary", "nft", "--dual-stack"];
    let log = lab.apply(&nft);
    in_order(
        &log,
        &[
            "\tinfo\tIstio iptables environment:\nENVOY_PORT=\nINBOUND_CAPTURE_PORT=\n",
            "\tinfo\tIstio config:\nPROXY_PORT=15001\n",
            "\nFORCE_IPTABLES_BINARY=nft\n",
            "\tinfo\tAdded ::6 address on the loopback iface",
            "\tinfo\tClean-state detected, new iptables are needed",
            "\tinfo\tRunning iptables restore with: iptables-nft-restore and the following input:\n* nat\n",
            "\tinfo\tRunning iptables restore with: ip6tables-nft-restore and the following input:\n* nat\n",
            "\tinfo\tFinal iptables state (IPv4):\n",
            "-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n",
            "\tinfo\tFinal iptables state (IPv6):\n",
        ],
    );
    let log = lab.apply(&nft);
    let compatible =
        "Found compatible residues of old iptables rules/chains, reconciliation not needed";
    in_order(&log, &[compatible, "Final iptables state (IPv4):"]);
    // Also after an error, and then it is what was there before.
    lab.script("ip link set lo down");
    let failed = run(&lab, &[], &[INJECTED, &nft, &["-m", "TPROXY"]].concat());
    assert_eq!(failed.code, 1);
    in_order(
        &failed.out,
        &[
            "Final iptables state (IPv4):\n",
            "-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n",
            "\terror\tfailed to configure routes",
        ],
    );
}

#[test]
fn log_lines_of_native_nftables_begin_and_end_as_the_reference() {
    if missing(&["ip", "nft"]) {
        return;
    }
    let lab = Lab::new();
    let log = lab.apply(&["--native-nftables"]);
    let first = "\tinfo\tnative nftables enabled, using nft rules for traffic redirection.";
    assert!(
        log.lines().next().is_some_and(|l| l.ends_with(first)),
        "{log}"
    );
    in_order(
        &log,
        &[
            first,
            "\tinfo\tIstio nftables environment:\n",
            "\tinfo\tIstio config:\n",
            "\tinfo\tnftables rules programmed:\nadd table inet istio-proxy-nat\n",
        ],
    );
    let json = run(
        &lab,
        &[],
        &[INJECTED, &["--native-nftables", "--log_as_json"]].concat(),
    );
    for line in json.out.lines() {
        assert!(
            line.starts_with("{\"level\":\"info\",\"time\":\"20"),
            "{line}"
        );
        assert!(line.contains("Z\",\"msg\":\""), "{line}");
    }
    let quiet = ["--log_output_level", "default:error,dns:debug"];
    let quiet = run(
        &lab,
        &[],
        &[INJECTED, &["--native-nftables"], &quiet].concat(),
    );
    assert_eq!((quiet.code, quiet.out.as_str()), (0, ""));
    let debug = lab.apply(&[
        "--native-nftables",
        "--force-apply",
        "--log_output_level=debug",
    ]);
    in_order(
        &debug,
        &[
            "\tdebug\tstep done: NftWritten",
            "\tdebug\tstep done: NftVerified",
        ],
    );
}

#[test]
fn a_dry_run_writes_its_file_and_nothing_else() {
    if missing(&["ip", "nft"]) {
        return;
    }
    let lab = Lab::new();
    let fresh = lab.everything();
    let file = std::env::temp_dir().join(format!("{}.rules", lab.pod));
    let variable = format!("DRY_RUN_FILE_PATH={}", file.display());
    for (args, expect) in [
        (
            &["--dry-run", "-m", "TPROXY"][..],
            "* mangle\n-N ISTIO_DIVERT\n",
        ),
        (
            &["--dry-run", "--native-nftables"],
            "add table inet istio-proxy-nat\n",
        ),
    ] {
        // An old, longer content must not stay behind the new one.
        fs::write(&file, "x".repeat(100_000)).expect("file");
        let got = run(&lab, &[&variable], &[INJECTED, args].concat());
        assert_eq!(got.code, 0, "{}", got.errors);
        assert!(
            got.out
                .contains("skipping configuring routes due to dry run mode")
        );
        let text = fs::read_to_string(&file).expect("file");
        assert!(text.contains(expect) && !text.contains("xx"), "{text}");
        let clean = run(&lab, &[], &[args, &["--cleanup-only"]].concat());
        assert!(clean.out.contains("dry run, would remove"), "{}", clean.out);
    }
    // A leftover in the temporary folder harms nobody.
    let _ = fs::remove_file(&file);
    let unwritable = "DRY_RUN_FILE_PATH=/proc/none";
    let got = run(&lab, &[unwritable], &["--dry-run"]);
    assert_eq!(got.code, 1);
    assert!(
        got.errors.contains("DRY_RUN_FILE_PATH /proc/none"),
        "{}",
        got.errors
    );
    crate::lab::assert_same(&lab.everything(), &fresh, "after dry runs");
}
