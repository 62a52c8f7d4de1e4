//! The packet decision table with real sockets: what the kernel does to each row, for every
//! backend, both families, REDIRECT and TPROXY, with and without DNS capture, is what the table
//! says and what `--explain` says. Needs root and `ip`; each backend needs its programs.

#[path = "packets/lab.rs"]
mod lab;

use std::net::{IpAddr, SocketAddr};

use clap::Parser as _;
use iptables_init::cli::{Cli, Environment, INJECTED_ARGS, Settings};
use iptables_init::config::{Config, Host};
use iptables_init::explain::packet::{self, Direction, Packet, Protocol};
use iptables_init::explain::ruleset::Ruleset;
use iptables_init::explain::walk::{Delivery, Explanation, walk};
use iptables_init::explain::{Pod, PodFacts};
use iptables_init::host::OwnerNames;
use iptables_init::rules::{Family, Flavor};

use lab::{ADDRESSES, Client, GROUPS_EXCLUDED, Lab, Servers, inside, obstacle, sh, tcp, udp, zone};

/// A row: the packet as `--explain` takes it, the outcome with REDIRECT, with TPROXY, and with DNS
/// capture if that is another one, with the conntrack zone.
///
/// `P` pod, `O` outside, `X` outside but excluded, `V` virtual machine, `T` the pod towards it, `W` and
/// `Y` outside and pod on an excluded interface, `L` loopback, `S` the passthrough source. Outcomes: `leaves`, `local`, `tproxy`, or the address of a
/// redirection (`tproxy ADDRESS` if nat changes the local address besides).
type Row = (
    &'static str,
    &'static str,
    &'static str,
    Option<(&'static str, u16)>,
);

const ROWS: &[Row] = &[
    ("out tcp O:80", "L:15001", "L:15001", None),
    ("out tcp O:15008", "L:15001", "L:15001", None),
    ("out tcp O:53", "L:15001", "L:15001", Some(("L:15053", 0))),
    ("out tcp O:9001", "L:15001", "L:15001", None),
    ("out tcp O:9000", "leaves", "leaves", None),
    ("out tcp X:80", "leaves", "leaves", None),
    ("out tcp O:80 uid=1337 gid=1000", "leaves", "leaves", None),
    ("out tcp O:80 uid=1000 gid=1337", "leaves", "leaves", None),
    ("out tcp O:80 uid=0 gid=1337", "leaves", "leaves", None),
    ("out tcp O:80 uid=0", "L:15001", "L:15001", None),
    ("out tcp O:53 uid=1337", "leaves", "leaves", None),
    ("out tcp O:53 uid=0 gid=1337", "leaves", "leaves", None),
    ("in tcp from O to P:8080", "P:15006", "tproxy", None),
    ("in tcp from O to P:15020", "local", "local", None),
    ("in tcp from O to P:15021", "local", "local", None),
    ("in tcp from O to P:15090", "local", "local", None),
    ("in tcp from O to P:15008", "local", "tproxy", None),
    ("in tcp from O to P:15001", "P:15006", "tproxy", None),
    ("in tcp from O to P:15006", "P:15006", "tproxy", None),
    ("in tcp from O to P:9", "P:15006", "tproxy", None),
    (
        "in tcp from V to O:80 dev=tap0",
        "T:15001",
        "tproxy T:15001",
        None,
    ),
    ("out tcp L:8080", "local", "local", None),
    ("out tcp P:8080", "local", "local", None),
    ("out tcp P:15008", "local", "local", None),
    ("out tcp P:8080 uid=1337", "L:15006", "L:15006", None),
    ("out tcp P:8080 uid=0 gid=1337", "local", "tproxy", None),
    ("out tcp P:15008 uid=1337", "local", "tproxy", None),
    ("out tcp L:8080 uid=1337", "local", "local", None),
    ("out tcp from S to P:8080 uid=1337", "local", "local", None),
    (
        "out tcp from S to P:8080 uid=0 gid=1337",
        "local",
        "local",
        None,
    ),
    ("out udp O:5353", "leaves", "leaves", None),
    ("out udp O:9000", "leaves", "leaves", None),
    ("out udp P:8080", "local", "local", None),
    ("out udp O:53", "leaves", "leaves", Some(("L:15053", 2))),
    (
        "out udp O:53 uid=1337",
        "leaves",
        "leaves",
        Some(("leaves", 1)),
    ),
    (
        "out udp O:53 uid=0 gid=1337",
        "leaves",
        "leaves",
        Some(("leaves", 1)),
    ),
    ("in udp from O to P:8080", "local", "local", None),
    ("out tcp O:80 gid=2000", "leaves", "leaves", None),
    ("out tcp W:80 dev=eth1", "leaves", "leaves", None),
    ("in tcp from W to Y:8080 dev=eth1", "local", "local", None),
];

/// With lists of ranges and ports in place of everything.
const LISTED: &[Row] = &[
    ("out tcp O:80", "leaves", "leaves", None),
    ("out tcp X:80", "L:15001", "L:15001", None),
    ("out tcp O:9001", "L:15001", "L:15001", None),
    ("out tcp X:9000", "leaves", "leaves", None),
    ("out tcp X:80 uid=1337", "leaves", "leaves", None),
    ("out tcp X:80 gid=2000", "leaves", "leaves", None),
    ("in tcp from O to P:8080", "P:15006", "tproxy", None),
    ("in tcp from O to P:15020", "local", "local", None),
    ("in tcp from O to P:15008", "local", "local", None),
    ("in tcp from V to X:80 dev=tap0", "T:15001", "T:15001", None),
    ("out tcp P:8080 uid=1337", "L:15006", "L:15006", None),
    ("out tcp P:8080 uid=0 gid=1337", "local", "tproxy", None),
    ("out tcp from S to P:8080 uid=1337", "local", "local", None),
];

/// Rows that the safe order of owners changes, and their neighbours.
const OWNERS_FIRST: &[Row] = &[
    ("out tcp P:8080 uid=0 gid=1337", "L:15006", "", None),
    ("out tcp P:8080 uid=1337", "L:15006", "", None),
    ("out tcp P:15008 uid=0 gid=1337", "local", "", None),
    ("out tcp P:8080", "local", "", None),
    ("out tcp O:80 uid=0 gid=1337", "leaves", "", None),
    ("out tcp from S to P:8080 uid=0 gid=1337", "local", "", None),
];

/// What the proxy does in TPROXY mode: it connects to the application with the client's address.
/// The answers must come back to it although they are addressed to the outside.
const BORROWED: Row = (
    "out tcp from O to P:8080 uid=0 gid=1337 mark=1337",
    "",
    "local",
    None,
);

const SHORT: [char; 7] = ['P', 'O', 'X', 'V', 'T', 'W', 'Y'];

fn spell(text: &str, family: Family) -> String {
    let v6 = family == Family::V6;
    let wrap = |ip: &str| if v6 { format!("[{ip}]") } else { ip.to_owned() };
    let mut out = String::new();
    for c in text.chars() {
        match SHORT.iter().position(|short| *short == c) {
            Some(index) => out += &wrap(ADDRESSES[usize::from(v6)][index]),
            None if c == 'L' => out += if v6 { "[::1]" } else { "127.0.0.1" },
            None if c == 'S' => out += if v6 { "[::6]" } else { "127.0.0.6" },
            None => out.push(c),
        }
    }
    out
}

/// Besides the injected ones.
const FLAGS: &[&str] = &[
    "-o",
    "9000",
    "-x",
    "10.82.0.0/16,fd82::/32",
    "-k",
    "tap0",
    "-c",
    "eth1",
    "--dual-stack",
];

/// What the flags are besides [`FLAGS`].
struct Mode {
    name: &'static str,
    flags: &'static [&'static str],
    tproxy: bool,
    dns: bool,
    rows: &'static [Row],
}

const MODES: [Mode; 7] = [
    Mode {
        name: "REDIRECT",
        flags: &["-m", "REDIRECT"],
        tproxy: false,
        dns: false,
        rows: ROWS,
    },
    Mode {
        name: "TPROXY",
        flags: &["-m", "TPROXY"],
        tproxy: true,
        dns: false,
        rows: ROWS,
    },
    Mode {
        name: "REDIRECT, DNS of resolv.conf",
        flags: &["-m", "REDIRECT", "--redirect-dns"],
        tproxy: false,
        dns: true,
        rows: ROWS,
    },
    Mode {
        name: "TPROXY, all DNS",
        flags: &["-m", "TPROXY", "--redirect-dns", "--capture-all-dns"],
        tproxy: true,
        dns: true,
        rows: ROWS,
    },
    Mode {
        name: "REDIRECT, proxy owners first",
        flags: &["-m", "REDIRECT", "--proxy-owners-first"],
        tproxy: false,
        dns: false,
        rows: OWNERS_FIRST,
    },
    Mode {
        name: "REDIRECT, lists",
        flags: &[
            "-m",
            "REDIRECT",
            "-i",
            "10.82.0.0/16,fd82::/32",
            "-x",
            "",
            "-q",
            "9001",
            "-b",
            "8080,8090",
        ],
        tproxy: false,
        dns: false,
        rows: LISTED,
    },
    Mode {
        name: "TPROXY, lists",
        flags: &[
            "-m",
            "TPROXY",
            "-i",
            "10.82.0.0/16,fd82::/32",
            "-x",
            "",
            "-q",
            "9001",
            "-b",
            "8080,8090",
        ],
        tproxy: true,
        dns: false,
        rows: LISTED,
    },
];

struct Env;

impl Environment for Env {
    fn var(&self, name: &str) -> Option<String> {
        let (known, value) = GROUPS_EXCLUDED;
        (name == known).then(|| value.to_owned())
    }
}

/// The lab's pod, as the program finds it.
struct LabPod;

fn pod_addresses() -> Vec<(String, IpAddr)> {
    let ip = |text: &str| text.parse().expect("address");
    let [v4, v6] = ADDRESSES;
    [
        ("eth0", v4[0]),
        ("eth1", v4[6]),
        ("tap0", v4[4]),
        ("eth0", v6[0]),
        ("eth1", v6[6]),
        ("tap0", v6[4]),
    ]
    .map(|(dev, address)| (dev.to_owned(), ip(address)))
    .to_vec()
}

impl Host for LabPod {
    fn addresses(&self) -> Result<Vec<IpAddr>, std::io::Error> {
        Ok(pod_addresses().into_iter().map(|(_, ip)| ip).collect())
    }

    fn resolv_conf(&self) -> Result<String, std::io::Error> {
        Ok("nameserver 10.81.0.1\nnameserver fd81::1\n".to_owned())
    }

    fn user_id(&self, _: &str) -> Option<u32> {
        None
    }
}

/// The backend's answer for a question.
fn explained(mode: &Mode, flavor: Flavor, question: &str) -> Explanation {
    let argv = [&["istio-iptables"], INJECTED_ARGS, FLAGS, mode.flags].concat();
    let cli = Cli::try_parse_from(argv).expect("arguments");
    let config = Config::build(Settings::resolve(cli, &Env), &LabPod).expect("configuration");
    let pod = Pod {
        addresses: pod_addresses(),
        ..Pod::default()
    };
    let facts = PodFacts {
        config: &config.rules,
        route_table: config.route_table,
        pod: &pod,
        names: &OwnerNames::default(),
    };
    let packet = packet::parse(question, &pod, facts.names).expect("a packet");
    let rules = Ruleset::load(&facts, flavor, packet.family()).expect("rules");
    walk(&packet, &rules, &facts)
}

fn client(lab: &Lab, packet: &Packet, question: &str) -> Client {
    let namespace = match (packet.direction, packet.dev.as_str()) {
        (Direction::Out, _) => &lab.pod,
        (Direction::In, "tap0") => &lab.vm,
        (Direction::In, _) => &lab.outside,
    };
    Client {
        namespace: namespace.clone(),
        owner: packet.owner.unwrap_or((0, 0)),
        from: question.contains("from").then(|| packet.from.ip()),
        mark: packet.mark,
    }
}

/// Sends the packet for real and compares with the explanation.
fn observe(lab: &Lab, servers: &Servers, question: &str, told: &Explanation) -> Result<(), String> {
    let packet = &told.packet;
    let to = packet.to;
    let client = client(lab, packet, question);
    let (in_pod, listener, local, original) = match told.delivery {
        Delivery::Leaves => (false, to.port(), to, None),
        Delivery::Local => (true, to.port(), to, None),
        Delivery::Redirected(listener) => (true, listener.port(), listener, Some(to)),
        Delivery::Transparent { port, local } => (true, port, local, (local != to).then_some(to)),
        other => return Err(format!("no probe can show {other:?}")),
    };
    if packet.protocol == Protocol::Udp {
        let (got_pod, got_port, own_port) = udp(&client, to, servers)?;
        if (got_pod, got_port) != (in_pod, listener) {
            return Err(format!("port {got_port}, in the pod: {got_pod}"));
        }
        if packet.direction == Direction::In {
            return Ok(());
        }
        let got = zone(lab, own_port, to.port()).map_err(|e| format!("conntrack table: {e}"))?;
        return if got == told.zone {
            Ok(())
        } else {
            Err(format!("conntrack zone {got:?}"))
        };
    }
    let (seen, own) = tcp(&client, to, servers)?;
    let same = (seen.in_pod, seen.listener, seen.local) == (in_pod, listener, local)
        && seen.peer == own
        && own.ip() == packet.from.ip()
        // An untouched connection may report its own address; only redirected ones are told.
        && (original.is_none() || seen.original == original);
    if same {
        return Ok(());
    }
    Err(format!("{seen:?}, client {own}"))
}

/// The row's words as the evaluator's type.
fn delivery(text: &str, packet: &Packet) -> Delivery {
    let address = |text: &str| -> SocketAddr {
        let text = spell(text, packet.family());
        text.parse().expect("an outcome")
    };
    match text.split_once(' ') {
        None if text == "leaves" => Delivery::Leaves,
        None if text == "local" => Delivery::Local,
        None if text == "tproxy" => Delivery::Transparent {
            port: 15006,
            local: packet.to,
        },
        Some((_, local)) => Delivery::Transparent {
            port: 15006,
            local: address(local),
        },
        None => Delivery::Redirected(address(text)),
    }
}

fn check(backend: &[&str], flavor: Flavor) {
    let lab = Lab::new();
    let servers = [Servers::start(&lab, false), Servers::start(&lab, true)];
    let program = env!("CARGO_BIN_EXE_istio-iptables");
    let mut failures = Vec::new();
    let mut probes = 0;
    for mode in &MODES {
        let applied = lab.run(&[&[program], INJECTED_ARGS, FLAGS, mode.flags, backend].concat());
        let log = String::from_utf8_lossy(&applied.stdout).into_owned();
        assert!(applied.status.success(), "{}: {log}", mode.name);
        let extra = mode.tproxy.then_some(&BORROWED);
        for (question, redirect, tproxy, dns) in mode.rows.iter().chain(extra) {
            let plain = if mode.tproxy { tproxy } else { redirect };
            let (want, zone) = match dns {
                Some((want, zone)) if mode.dns => (want, Some(*zone).filter(|z| *z != 0)),
                _ => (plain, None),
            };
            for (family, servers) in [Family::V4, Family::V6].into_iter().zip(&servers) {
                let question = spell(question, family);
                let told = explained(mode, flavor, &question);
                let place = format!("{backend:?}, {}: {question}", mode.name);
                if (told.delivery, told.zone) != (delivery(want, &told.packet), zone) {
                    failures.push(format!("{place}: table {want:?}, explained: {told}"));
                }
                if let Err(seen) = observe(&lab, servers, &question, &told) {
                    failures.push(format!("{place}: explained: {told}; seen: {seen}"));
                }
                probes += 1;
            }
        }
    }
    let list = failures.join("\n");
    assert!(
        failures.is_empty(),
        "{} of {probes}:\n{list}",
        failures.len()
    );
    println!("{probes} probes");
}

#[test]
fn native_nftables_decides_as_the_table_and_the_explanation_say() {
    if let Some(reason) = obstacle(&["ip"]) {
        return println!("skipped: {reason}");
    }
    check(&["--native-nftables"], Flavor::Nft);
}

#[test]
fn iptables_nft_decides_as_the_table_and_the_explanation_say() {
    if let Some(reason) = obstacle(&["ip", "iptables-nft", "ip6tables-nft"]) {
        return println!("skipped: {reason}");
    }
    check(&["--force-iptables-binary", "nft"], Flavor::Iptables);
}

#[test]
fn iptables_legacy_decides_as_the_table_and_the_explanation_say() {
    if let Some(reason) = obstacle(&["ip", "iptables-legacy", "ip6tables-legacy"]) {
        return println!("skipped: {reason}");
    }
    if !sh("unshare -n iptables-legacy -t nat -S").status.success() {
        return println!("skipped: this kernel has no legacy iptables");
    }
    check(&["--force-iptables-binary", "legacy"], Flavor::Iptables);
}

#[test]
fn the_program_explains_without_writing_and_refuses_nonsense() {
    if let Some(reason) = obstacle(&["ip", "nft"]) {
        return println!("skipped: {reason}");
    }
    let lab = Lab::new();
    let before = lab.ruleset();
    let program = env!("CARGO_BIN_EXE_istio-iptables");
    let ask = |more: &[&str]| lab.run(&[&[program], INJECTED_ARGS, FLAGS, more].concat());
    let question = "out tcp 203.0.113.9:80 uid=1000";
    for (backend, rule) in [
        (
            &[][..],
            "decided  nat ISTIO_REDIRECT rule 1: -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001",
        ),
        (
            &["--native-nftables"],
            "decided  istio-proxy-nat istio-redirect rule 1: meta l4proto tcp counter redirect to :15001",
        ),
    ] {
        let output = ask(&[backend, &["--explain", question]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(text.contains(rule), "{text}");
        // The pod's real address and the answer alone: no log line.
        assert!(
            text.starts_with("packet   out tcp from 10.81.0.2:40000 to 203.0.113.9:80 "),
            "{text}"
        );
    }
    let table = ask(&["--explain", "table", "--cleanup-only", "--run-validation"]);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert_eq!(table.status.code(), Some(0), "{text}");
    assert!(text.contains("virtual machine behind tap0"), "{text}");
    // An image without iptables programs, as ours is.
    let bare = lab.run(
        &[
            &["env", "PATH=/nowhere", program],
            INJECTED_ARGS,
            FLAGS,
            &["--explain", question],
        ]
        .concat(),
    );
    let text = String::from_utf8_lossy(&bare.stdout).into_owned();
    assert!(text.contains("rules    native nftables, IPv4"), "{text}");
    for (words, code) in [
        (&["--explain", "out tcp"][..], 1),
        (&["--explain", ""], 1),
        (&["--explain", question, "-x", "nonsense"], 1),
        (&["--explain"], 255),
    ] {
        let output = ask(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}");
        assert!(!output.stderr.is_empty(), "{words:?}");
    }
    assert_eq!(lab.ruleset(), before);
    let state = inside(&lab.pod, (0, 0), || {
        std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default()
    });
    assert_eq!(state, "", "legacy tables were created");
}
