use clap::Parser as _;

use super::packet::PacketError;
use super::walk::{Delivery, Explanation};
use super::*;
use crate::cli::{Cli, Environment, INJECTED_ARGS, Settings};
use crate::config::{Config, Host};

struct NoEnv;

impl Environment for NoEnv {
    fn var(&self, _: &str) -> Option<String> {
        None
    }
}

/// A pod with both families.
struct Both;

const POD: [(&str, &str); 3] = [
    ("eth0", "10.0.0.5"),
    ("eth1", "10.1.0.5"),
    ("eth0", "fd00::5"),
];

fn addresses() -> Vec<(String, IpAddr)> {
    let address = |(dev, ip): &(&str, &str)| ((*dev).to_owned(), ip.parse().expect("address"));
    POD.iter().map(address).collect()
}

impl Host for Both {
    fn addresses(&self) -> Result<Vec<IpAddr>, std::io::Error> {
        Ok(addresses().into_iter().map(|(_, ip)| ip).collect())
    }

    fn resolv_conf(&self) -> Result<String, std::io::Error> {
        Ok("nameserver 10.96.0.10\nnameserver fd00::a\n".to_owned())
    }

    fn user_id(&self, _: &str) -> Option<u32> {
        None
    }
}

fn ask(more: &[&str], flavor: Flavor, question: &str) -> Explanation {
    try_ask(more, flavor, question).unwrap_or_else(|e| panic!("{question}: {e}"))
}

fn try_ask(more: &[&str], flavor: Flavor, question: &str) -> Result<Explanation, PacketError> {
    let cli =
        Cli::try_parse_from([&["istio-iptables", "--dual-stack"], INJECTED_ARGS, more].concat())
            .expect("arguments");
    let config = Config::build(Settings::resolve(cli, &NoEnv), &Both).expect("configuration");
    let pod = Pod {
        addresses: addresses(),
        ..Pod::default()
    };
    let names = OwnerNames::from_text("istio-proxy:x:1337:1337::/:\n".into(), String::new());
    let facts = PodFacts {
        config: &config.rules,
        route_table: config.route_table,
        pod: &pod,
        names: &names,
    };
    let packet = packet::parse(question, &pod, &names)?;
    let rules = Ruleset::load(&facts, flavor, packet.family()).expect("rules");
    Ok(walk::walk(&packet, &rules, &facts))
}

const FLAVORS: [Flavor; 2] = [Flavor::Iptables, Flavor::Nft];
const TPROXY: &[&str] = &["-m", "TPROXY"];

/// Short names in questions: the pod, loopback, the passthrough source, somebody outside.
const SHORT: [(&str, &str, &str); 4] = [
    ("P", "10.0.0.5", "[fd00::5]"),
    ("L", "127.0.0.1", "[::1]"),
    ("S", "127.0.0.6", "[::6]"),
    ("O", "203.0.113.9", "[2001:db8::9]"),
];

fn spell(question: &str, family: Family) -> String {
    SHORT
        .iter()
        .fold(question.to_owned(), |text, (short, v4, v6)| {
            text.replace(short, if family == Family::V4 { v4 } else { v6 })
        })
}

#[test]
fn decisions_are_those_of_the_packet_table() {
    use Delivery::{Leaves, Local};
    let to = |text| Err(text);
    let tproxy = Err("tproxy");
    // Question; what happens with REDIRECT; with TPROXY. `Err` is the address of a redirection.
    let rows = [
        ("out tcp O:80", to("L:15001"), to("L:15001")),
        ("out tcp O:15008", to("L:15001"), to("L:15001")),
        ("out tcp O:53", to("L:15001"), to("L:15001")),
        ("out tcp O:80 uid=1337 gid=0", Ok(Leaves), Ok(Leaves)),
        ("out tcp O:80 uid=0 gid=1337", Ok(Leaves), Ok(Leaves)),
        ("in tcp from O to P:8080", to("P:15006"), tproxy),
        ("in tcp from O to P:15021", Ok(Local), Ok(Local)),
        ("in tcp from O P:15008", Ok(Local), tproxy),
        ("in tcp from O P:15006", to("P:15006"), tproxy),
        ("in tcp from O P:15001", to("P:15006"), tproxy),
        ("out tcp L:8080", Ok(Local), Ok(Local)),
        ("out tcp P:8080", Ok(Local), Ok(Local)),
        ("out tcp P:8080 uid=1337", to("L:15006"), to("L:15006")),
        ("out tcp P:8080 uid=0 gid=1337", Ok(Local), tproxy),
        ("out tcp P:15008 uid=1337", Ok(Local), tproxy),
        ("out tcp from S to P:8080 uid=1337", Ok(Local), Ok(Local)),
        ("out udp O:443", Ok(Leaves), Ok(Leaves)),
        ("out udp O:53", Ok(Leaves), Ok(Leaves)),
        // What the proxy does with a borrowed source, and the application's answer to it.
        (
            "out tcp from O to P:8080 uid=0 gid=1337 mark=1337",
            Ok(Local),
            Ok(Local),
        ),
        (
            "out tcp from P:8080 to O:40000 state=established connmark=1337",
            Ok(Leaves),
            Ok(Local),
        ),
    ];
    for flavor in FLAVORS {
        for family in [Family::V4, Family::V6] {
            for (question, redirect, tproxy) in &rows {
                let question = spell(question, family);
                for (mode, want) in [(&[][..], redirect), (TPROXY, tproxy)] {
                    let got = ask(mode, flavor, &question);
                    let want = match want {
                        Ok(delivery) => *delivery,
                        Err("tproxy") => Delivery::Transparent {
                            port: 15006,
                            local: got.packet.to,
                        },
                        Err(text) => {
                            Delivery::Redirected(spell(text, family).parse().expect("address"))
                        }
                    };
                    assert_eq!(
                        got.delivery, want,
                        "{flavor:?} {mode:?} {question}: {got:#?}"
                    );
                }
            }
        }
    }
}

#[test]
fn marks_zones_and_routes_are_told() {
    for flavor in FLAVORS {
        let answer =
            "out tcp from 10.0.0.5:8080 to 203.0.113.9:40000 state=established connmark=1337";
        let got = ask(TPROXY, flavor, answer);
        assert_eq!((got.mark, got.route_table), (1337, Some(133)));
        assert_eq!(got.passes.len(), 2, "output, then prerouting over lo");
        let first = ask(TPROXY, flavor, "in tcp :8080");
        assert_eq!((first.mark, first.route_table), (1337, Some(133)));
        let dns = &["--redirect-dns"][..];
        for server in ["10.96.0.10", "[fd00::a]"] {
            let app = ask(dns, flavor, &format!("out udp {server}:53"));
            assert_eq!(app.zone, Some(2), "{flavor:?}");
            assert!(matches!(app.delivery, Delivery::Redirected(to) if to.port() == 15053));
            let agent = ask(dns, flavor, &format!("out udp {server}:53 uid=1337"));
            assert_eq!((agent.zone, agent.delivery), (Some(1), Delivery::Leaves));
        }
        let other = ask(dns, flavor, "out udp 8.8.8.8:53");
        assert_eq!((other.zone, other.delivery), (None, Delivery::Leaves));
    }
}

#[test]
fn the_backends_differ_where_they_do() {
    let invalid = "in udp :9 state=invalid";
    let drop = &["--drop-invalid"][..];
    let dropped = ask(drop, Flavor::Iptables, invalid);
    assert_eq!(dropped.delivery, Delivery::Dropped);
    assert_eq!(dropped.deciders().len(), 1);
    assert_eq!(ask(drop, Flavor::Nft, invalid).delivery, Delivery::Local);
    // With IPv6 off there are no ip6 rules, but `inet` rules without an address still apply.
    let off = &["--dual-stack=false"][..];
    let v6 = "out tcp [2001:db8::9]:80";
    assert_eq!(ask(off, Flavor::Iptables, v6).delivery, Delivery::Leaves);
    let native = ask(off, Flavor::Nft, v6).delivery;
    assert_eq!(
        native,
        Delivery::Redirected("[::1]:15001".parse().expect("address"))
    );
}

#[test]
fn the_deciding_rule_is_named_with_its_place() {
    let got = ask(&[], Flavor::Iptables, "in tcp :15021");
    let deciders = got.deciders();
    assert_eq!(deciders.len(), 1);
    assert_eq!(
        deciders[0].text,
        "-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN"
    );
    assert_eq!(deciders[0].number, 3);
    // A second interception that spares the packet does not hide the rule that took it.
    let got = ask(TPROXY, Flavor::Iptables, "out tcp 203.0.113.9:80");
    let texts: Vec<&str> = got.deciders().iter().map(|s| s.text.as_str()).collect();
    assert_eq!(
        texts,
        ["-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001"]
    );
    let prefix = &["-c", "tap+,eth1"][..];
    for (dev, direct) in [("tap7", true), ("eth1", true), ("eth10", false)] {
        for flavor in FLAVORS {
            let got = ask(prefix, flavor, &format!("out tcp 203.0.113.9:80 dev={dev}"));
            assert_eq!(got.delivery == Delivery::Leaves, direct, "{dev} {flavor:?}");
        }
    }
}

#[test]
fn malformed_packets_are_refused_with_a_reason() {
    for (question, part) in [
        ("", "direction"),
        ("through tcp 10.0.0.1:80", "direction"),
        ("out icmp 10.0.0.1:80", "protocol"),
        ("out tcp", "destination is missing"),
        ("out tcp 10.0.0.1", "address with a port"),
        ("out tcp 10.0.0.1:70000", "address with a port"),
        ("out tcp to", "address with a port"),
        ("out tcp 10.0.0.1:80 10.0.0.2:80", "twice"),
        (
            "out tcp from 10.0.0.1 to [fd00::1]:80",
            "different families",
        ),
        ("out tcp 10.0.0.1:80 uid=nobody-here", "uid"),
        ("out tcp 10.0.0.1:80 uid=1-5", "uid"),
        ("out tcp 10.0.0.1:80 colour=red", "colour=red"),
        ("out tcp 10.0.0.1:80 please", "please"),
        ("out tcp 10.0.0.1:80 state=old", "state"),
        ("out tcp 10.0.0.1:80 dev=a/b", "dev"),
        ("in tcp :80 uid=5", "arriving"),
        ("in tcp :80 dev=lo", "lo"),
    ] {
        let error = try_ask(&[], Flavor::Nft, question).expect_err(question);
        assert!(error.to_string().contains(part), "{question}: {error}");
    }
    let second = ask(&[], Flavor::Nft, "in tcp :8080 dev=eth1");
    assert_eq!(second.packet.to, "10.1.0.5:8080".parse().expect("address"));
    let named = ask(
        &[],
        Flavor::Nft,
        "out tcp 203.0.113.9:80 uid=istio-proxy gid=5",
    );
    assert_eq!(named.packet.owner, Some((1337, 5)));
}

#[test]
fn the_table_has_a_row_for_everything_the_flags_name() {
    let cli = [
        &["istio-iptables", "--dual-stack"],
        INJECTED_ARGS,
        TPROXY,
        &[
            "--redirect-dns",
            "-x",
            "10.96.0.0/12,fd99::/16",
            "-o",
            "9000",
            "-k",
            "tap+",
            "-c",
            "eth7",
        ],
    ]
    .concat();
    let cli = Cli::try_parse_from(cli).expect("arguments");
    let config = Config::build(Settings::resolve(cli, &NoEnv), &Both).expect("configuration");
    let pod = Pod {
        addresses: addresses(),
        ..Pod::default()
    };
    let facts = PodFacts {
        config: &config.rules,
        route_table: config.route_table,
        pod: &pod,
        names: &OwnerNames::default(),
    };
    for flavor in FLAVORS {
        let table = explain("table", &facts, flavor).expect("a table");
        for part in [
            "IPv4, pod 10.0.0.5",
            "IPv6, pod fd00::5",
            "excluded range 10.96.0.0/12",
            "excluded range fd99::/16",
            "excluded port 9000",
            "virtual machine behind tap0",
            "elsewhere -> pod over eth7",
            "nameserver 10.96.0.10, UDP\n      redirected to 127.0.0.1:15053",
            "TPROXY to the listener on 15006",
        ] {
            assert!(table.contains(part), "{flavor:?}: no {part:?} in\n{table}");
        }
    }
}
