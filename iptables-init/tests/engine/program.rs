//! The whole program: what it writes is what the packet table says, runs converge, backends are
//! switched, validation and exit codes.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockRef, Socket, Type};

use crate::lab::{INJECTED, Lab, OUTSIDE, POD, inside, missing};

fn listen(namespace: &str, ports: &'static [u16]) -> Vec<TcpListener> {
    inside(namespace, (0, 0), move || {
        ports
            .iter()
            .map(|port| TcpListener::bind(("0.0.0.0", *port)).expect("bind"))
            .collect()
    })
}

fn connect(namespace: &str, id: u32, from: Option<IpAddr>, to: SocketAddr) -> TcpStream {
    inside(namespace, (id, id), move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        if let Some(from) = from {
            socket
                .bind(&SocketAddr::new(from, 0).into())
                .expect("bind source");
        }
        let limit = Duration::from_secs(3);
        socket
            .connect_timeout(&to.into(), limit)
            .unwrap_or_else(|e| panic!("{to}: {e}"));
        TcpStream::from(socket)
    })
}

/// The port of the listener that got the connection, and its original destination.
fn accepted(listeners: &[&TcpListener]) -> (u16, Option<SocketAddr>) {
    let mut fds: Vec<PollFd<'_>> = listeners
        .iter()
        .map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN))
        .collect();
    poll(&mut fds, PollTimeout::from(3000_u16)).expect("poll");
    let ready = fds
        .iter()
        .position(|fd| fd.any() == Some(true))
        .expect("nobody accepted");
    let (stream, _) = listeners[ready].accept().expect("accept");
    let original = SockRef::from(&stream).original_dst_v4().ok();
    let port = listeners[ready].local_addr().expect("address").port();
    (port, original.and_then(|a| a.as_socket()))
}

fn check_redirect_packet_table(lab: &Lab) {
    let pod = listen(&lab.pod, &[15001, 15006, 15008, 15021, 8080]);
    let out = listen(&lab.outside, &[80, 15008]);
    let all: Vec<&TcpListener> = pod.iter().chain(&out).collect();
    let (app, proxy) = (1000, 1337);
    let to_out = |port| SocketAddr::from((OUTSIDE, port));
    let to_pod = |port| SocketAddr::from((POD, port));
    let six = Some(IpAddr::from([127, 0, 0, 6]));
    let local = SocketAddr::from(([127, 0, 0, 1], 8080));
    let via = |listener: u16, original: SocketAddr| (listener, Some(original));
    // (namespace, user, source, destination, listener, original destination if redirected)
    let rows = [
        (&lab.pod, app, None, to_out(80), via(15001, to_out(80))),
        (
            &lab.pod,
            app,
            None,
            to_out(15008),
            via(15001, to_out(15008)),
        ),
        (&lab.pod, proxy, None, to_out(80), (80, None)),
        (
            &lab.outside,
            app,
            None,
            to_pod(8080),
            via(15006, to_pod(8080)),
        ),
        (&lab.outside, app, None, to_pod(15021), (15021, None)),
        (&lab.outside, app, None, to_pod(15008), (15008, None)),
        (&lab.pod, app, None, local, (8080, None)),
        (&lab.pod, app, None, to_pod(8080), (8080, None)),
        (
            &lab.pod,
            proxy,
            None,
            to_pod(8080),
            via(15006, to_pod(8080)),
        ),
        (&lab.pod, proxy, None, to_pod(15008), (15008, None)),
        (&lab.pod, proxy, six, to_pod(8080), (8080, None)),
    ];
    for (namespace, id, from, to, (port, original)) in rows {
        let client = connect(namespace, id, from, to);
        let (got_port, got_original) = accepted(&all);
        drop(client);
        assert_eq!(got_port, port, "user {id} to {to}");
        // An untouched connection may report its own address; only redirected ones are told.
        if original.is_some() {
            assert_eq!(got_original, original, "user {id} to {to}");
        }
    }
}

#[test]
fn native_nftables_redirects_as_the_packet_table_says() {
    if missing(&["ip"]) {
        return;
    }
    let lab = Lab::new();
    lab.apply(&["--native-nftables"]);
    check_redirect_packet_table(&lab);
}

#[test]
fn iptables_redirects_as_the_packet_table_says() {
    if missing(&["ip", "iptables", "iptables-save"]) {
        return;
    }
    let lab = Lab::new();
    lab.apply(&[]);
    let rules = lab.text(&["iptables", "-t", "nat", "-S"]);
    assert!(
        rules.contains("-A ISTIO_OUTPUT -j ISTIO_REDIRECT"),
        "{rules}"
    );
    check_redirect_packet_table(&lab);
}

#[test]
fn iptables_legacy_redirects_as_the_packet_table_says() {
    if missing(&["ip", "iptables-legacy", "iptables-legacy-save"]) {
        return;
    }
    let lab = Lab::new();
    if !lab
        .exec(&["iptables-legacy", "-t", "nat", "-S"])
        .status
        .success()
    {
        println!("skipped: this kernel has no legacy iptables");
        return;
    }
    lab.apply(&["--force-iptables-binary", "legacy"]);
    check_redirect_packet_table(&lab);
}

const VARIANTS: [&[&str]; 5] = [
    &[],
    &["--dual-stack", "-m", "TPROXY"],
    &["--redirect-dns", "--capture-all-dns", "--dual-stack"],
    &["-m", "TPROXY", "-c", "eth1,net1", "--drop-invalid"],
    &[
        "-i",
        "10.0.0.0/12,fd00::/33",
        "-x",
        "10.1.2.3/8",
        "-k",
        "veth0,tap+",
        "-q",
        "80,8000-8010",
    ],
];

#[test]
fn native_state_equals_what_nft_loads_from_the_transaction_text() {
    if missing(&["ip", "nft"]) {
        return;
    }
    for more in VARIANTS {
        let lab = Lab::new();
        let file = std::env::temp_dir().join(format!("{}.nft", lab.pod));
        let path = file.to_str().expect("temporary path").to_owned();
        let variable = format!("DRY_RUN_FILE_PATH={path}");
        // The dry run's text goes to this file; it must not write any rule.
        let words = [
            &["env", &variable, env!("CARGO_BIN_EXE_istio-iptables")],
            INJECTED,
            more,
            &["--native-nftables", "--dry-run"],
        ]
        .concat();
        assert!(lab.exec(&words).status.success());
        assert_eq!(
            lab.text(&["nft", "list", "ruleset"]),
            "",
            "dry run wrote rules"
        );
        assert!(lab.exec(&["nft", "-f", &path]).status.success(), "{more:?}");
        let want = lab.text(&["nft", "-s", "list", "ruleset"]);
        lab.exec(&["nft", "flush", "ruleset"]);
        lab.apply(&[&["--native-nftables"], more].concat());
        let got = lab.text(&["nft", "-s", "list", "ruleset"]);
        let _ = fs::remove_file(&file);
        assert_eq!(got, want, "{more:?}");
    }
}

#[test]
fn native_runs_converge_repeat_without_a_write_and_clean_up_completely() {
    if missing(&["ip", "nft"]) {
        return;
    }
    let lab = Lab::new();
    let fresh = lab.everything();
    for more in VARIANTS {
        let words = [&["--native-nftables"], more].concat();
        lab.apply(&words);
        let once = lab.everything();
        let log = lab.apply(&words);
        assert!(log.contains("nothing written"), "{more:?}\n{log}");
        assert_eq!(lab.everything(), once, "{more:?}");
    }
    lab.apply(&["--native-nftables", "--cleanup-only"]);
    assert_eq!(lab.everything(), fresh);
}

#[test]
fn iptables_runs_converge_from_any_earlier_flags_and_clean_up() {
    if missing(&["ip", "iptables", "iptables-save", "ip6tables-save", "nft"]) {
        return;
    }
    let lab = Lab::new();
    for more in VARIANTS {
        // One interface spelling only nft and iptables share; ranges are fine in both.
        lab.apply(more);
        let other = Lab::new();
        other.apply(more);
        let rules = |lab: &Lab| {
            let text = lab.text(&["iptables-save"]) + &lab.text(&["ip6tables-save"]);
            let mut lines: Vec<String> = text
                .lines()
                .filter(|l| l.starts_with("-A") || l.contains("ISTIO"))
                .map(ToOwned::to_owned)
                .collect();
            lines.sort();
            lines
        };
        assert_eq!(rules(&lab), rules(&other), "{more:?}");
        let log = lab.apply(more);
        assert!(log.contains("reconciliation not needed"), "{more:?}\n{log}");
    }
    lab.apply(&["--cleanup-only"]);
    let left = lab.text(&["iptables-save"]) + &lab.text(&["ip6tables-save"]);
    assert!(
        !left
            .lines()
            .any(|l| l.starts_with("-A") || l.contains("ISTIO")),
        "{left}"
    );
}

#[test]
fn switching_backends_leaves_only_the_chosen_one() {
    if missing(&["ip", "iptables", "iptables-save", "nft"]) {
        return;
    }
    let lab = Lab::new();
    lab.apply(&[]);
    lab.apply(&["--native-nftables"]);
    assert!(!lab.text(&["iptables-save"]).contains("ISTIO"));
    lab.apply(&[]);
    assert!(lab.text(&["iptables-save"]).contains("ISTIO_OUTPUT"));
    assert!(
        !lab.text(&["nft", "list", "ruleset"])
            .contains("istio-proxy")
    );
}

/// A deleted chain and its copy would be two objects on one hook, and a packet between them would
/// meet the rules of neither.
#[test]
fn native_chains_that_stay_are_the_same_kernel_objects() {
    if missing(&["ip", "nft"]) {
        return;
    }
    let lab = Lab::new();
    let output_chain = || {
        let text = lab.text(&["nft", "-a", "list", "table", "inet", "istio-proxy-nat"]);
        let line = text.lines().find(|line| line.contains("chain output {"));
        line.expect("the chain").to_owned()
    };
    lab.apply(&["--native-nftables"]);
    let before = output_chain();
    assert!(before.contains("# handle "), "{before}");
    for more in VARIANTS {
        lab.apply(&[&["--native-nftables"], more].concat());
        assert_eq!(output_chain(), before, "{more:?}");
    }
}
