//! Modes beside the plain run: from the node into a pod's namespace, owner ranges, a proxy that
//! runs as root, a loopback without IPv6.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::lab::{INJECTED, Lab, POD, inside, missing};

/// Longest wait for what is expected to come.
const PATIENCE: Duration = Duration::from_secs(20);
const PROGRAM: &str = env!("CARGO_BIN_EXE_istio-iptables");

#[test]
fn the_node_writes_into_the_namespace_it_is_told() {
    if missing(&["ip", "nft", "iptables-nft"]) {
        return;
    }
    for backend in [
        &["--native-nftables"][..],
        &["--force-iptables-binary", "nft", "--cni-mode"],
        &["--force-iptables-binary", "legacy", "--cni-mode"],
    ] {
        let (lab, other) = (Lab::new(), Lab::new());
        let path = format!("/run/netns/{}", lab.pod);
        let args = [&["--network-namespace", &path, "-m", "TPROXY"], backend].concat();
        // From the other pod, so that nothing can reach the test machine's own namespace.
        let output = other.exec(&[&[PROGRAM], INJECTED, &args].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        let log = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!log.contains("without a sandbox"), "{log}");
        let (here, there) = (other.everything(), lab.everything());
        assert!(!here.to_lowercase().contains("istio"), "{here}");
        assert!(there.to_lowercase().contains("istio"), "{there}");
        assert!(there.contains("fwmark 0x539 lookup 133"), "{there}");
    }
}

#[test]
fn a_namespace_that_does_not_exist_is_an_error() {
    let output = Command::new(PROGRAM)
        .args([
            "--network-namespace",
            "/run/netns/no such",
            "--cleanup-only",
        ])
        .output()
        .expect("the program runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        errors.contains("failed to enter the network namespace /run/netns/no such"),
        "{errors}"
    );
}

#[test]
fn owner_ranges_are_the_same_rules_as_nft_makes_of_them() {
    if missing(&["ip", "nft"]) {
        return;
    }
    let lab = Lab::new();
    let args = [
        "--native-nftables",
        "-u",
        "1000-2000",
        "-g",
        "1337,3000-3001",
    ];
    let dry = [
        &args[..],
        &["--dry-run", "--redirect-dns", "--capture-all-dns"],
    ]
    .concat();
    let file = std::env::temp_dir().join(format!("{}.nft", lab.pod));
    let path = file.to_str().expect("temporary path").to_owned();
    let variable = format!("DRY_RUN_FILE_PATH={path}");
    let words = [&["env", &variable, PROGRAM], INJECTED, &dry].concat();
    assert!(lab.exec(&words).status.success());
    lab.script(&format!("nft -f {path}"));
    let want = lab.text(&["nft", "-s", "list", "ruleset"]);
    assert!(want.contains("skuid != 1000-2000"), "{want}");
    lab.script("nft flush ruleset");
    lab.apply(&[&args[..], &["--redirect-dns", "--capture-all-dns"]].concat());
    let got = lab.text(&["nft", "-s", "list", "ruleset"]);
    // A leftover in the temporary folder harms nobody.
    let _ = std::fs::remove_file(&file);
    assert_eq!(got, want);
    // Inside and outside of the range, by real sockets.
    let listener = inside(&lab.pod, (0, 0), || {
        TcpListener::bind(("0.0.0.0", 15001)).expect("bind")
    });
    listener.set_nonblocking(true).expect("nonblocking");
    for (uid, redirected) in [
        (999, true),
        (1000, false),
        (1500, false),
        (2000, false),
        (2001, true),
    ] {
        let connected = inside(&lab.pod, (uid, 1), || {
            // Nobody listens there: only a redirected connection succeeds.
            std::net::TcpStream::connect(("10.81.0.1", 9)).is_ok()
        });
        assert_eq!(connected, redirected, "uid {uid}");
    }
}

/// A proxy as UID 0 with GID 1337 that calls its own pod: with the reference's order the call
/// passes the inbound listener by.
#[test]
fn a_proxy_that_runs_as_root_is_captured_inbound_when_owners_come_first() {
    if missing(&["ip", "nft", "iptables-nft"]) {
        return;
    }
    for backend in [
        &["--native-nftables"][..],
        &["--force-iptables-binary", "nft"],
    ] {
        for (flag, port) in [(&[][..], 8080), (&["--proxy-owners-first"], 15006)] {
            let lab = Lab::new();
            lab.apply(&[backend, flag].concat());
            let listeners = [8080, 15006].map(|port| {
                inside(&lab.pod, (0, 0), move || {
                    TcpListener::bind(("0.0.0.0", port)).expect("bind")
                })
            });
            let to = SocketAddr::from((POD, 8080));
            let client = inside(&lab.pod, (0, 1337), move || {
                std::net::TcpStream::connect(to).expect("somebody listens")
            });
            let expected = listeners
                .iter()
                .find(|l| l.local_addr().is_ok_and(|a| a.port() == port));
            let expected = expected.expect("one of the two");
            // The connection is established, so it is in one of the two queues already.
            expected.set_nonblocking(true).expect("nonblocking");
            let (stream, _) = expected.accept().expect("the expected listener");
            if port == 15006 {
                let original = SockRef::from(&stream).original_dst_v4().expect("original");
                assert_eq!(original.as_socket(), Some(to));
            }
            drop(client);
        }
    }
}

#[test]
fn a_loopback_without_ipv6_is_a_warning_and_the_rules_are_written() {
    if missing(&["ip", "nft", "iptables-nft"]) {
        return;
    }
    for backend in [
        &["--native-nftables"][..],
        &["--force-iptables-binary", "nft"],
    ] {
        let lab = Lab::new();
        lab.script("echo 1 >/proc/sys/net/ipv6/conf/lo/disable_ipv6");
        let fresh = lab.everything();
        let args = [backend, &["-m", "TPROXY", "--dual-stack"]].concat();
        let log = lab.apply(&args);
        assert!(
            log.contains("\twarn\tIPv6 is disabled on the loopback interface"),
            "{log}"
        );
        let state = lab.everything();
        assert!(state.contains("fwmark 0x539 lookup 133"), "{state}");
        assert!(!state.contains("::6/128 scope"), "{state}");
        // Outbound IPv6 is still captured, never let out.
        assert!(
            state.contains("ip6 daddr ::1") || state.contains("-d ::1/128"),
            "{state}"
        );
        let again = lab.apply(&args);
        assert!(
            again.contains("already in place") || again.contains("not needed"),
            "{again}"
        );
        lab.apply(&["--cleanup-only"]);
        crate::lab::assert_same(&lab.everything(), &fresh, "cleaned");
    }
}

/// What `--explain` says of IPv6 over such a loopback, and what the kernel does.
#[test]
fn an_explanation_knows_of_a_loopback_without_ipv6() {
    if missing(&["ip", "nft"]) {
        return;
    }
    const FLAGS: [&str; 4] = ["--native-nftables", "-m", "TPROXY", "--dual-stack"];
    let lab = Lab::new();
    let result = |question: &str| {
        let text = lab.apply(&[&FLAGS[..], &["--explain", question]].concat());
        let result = text.lines().find_map(|l| l.strip_prefix("result   "));
        result.expect("a result").to_owned()
    };
    let (inbound, outbound) = ("in tcp to [fd81::2]:8080", "out tcp to [fd81::1]:9");
    assert!(result(inbound).contains("routed by table 133"));
    assert!(result(outbound).starts_with("redirected to [::1]:15001"));
    lab.script("echo 1 >/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    lab.apply(&FLAGS);
    let told = result(inbound);
    assert!(
        told.starts_with("TPROXY to the listener on 15006"),
        "{told}"
    );
    assert!(!told.contains("table"), "{told}");
    assert_eq!(result(outbound), "dropped");
    assert_eq!(result("out tcp to [fd81::2]:8080"), "dropped");
    assert!(result("in tcp to 10.81.0.2:8080").contains("routed by table 133"));

    let listener = inside(&lab.pod, (0, 0), || {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).expect("socket");
        socket.set_ip_transparent_v6(true).expect("transparent");
        let any = SocketAddr::from(([0_u16; 8], 15006));
        socket.bind(&any.into()).expect("bind");
        socket.listen(8).expect("listen");
        TcpListener::from(socket)
    });
    let outside = inside(&lab.outside, (0, 0), || {
        TcpListener::bind(("fd81::1", 9)).expect("bind")
    });
    let to = "[fd81::2]:8080".parse::<SocketAddr>().expect("an address");
    let _client = inside(&lab.outside, (0, 0), move || {
        std::net::TcpStream::connect_timeout(&to, PATIENCE).expect("the listener answers")
    });
    let (stream, _) = listener.accept().expect("the listener");
    assert_eq!(stream.local_addr().expect("connected"), to);
    // Nothing out: had it left, the listener outside would have answered at once.
    let to = "[fd81::1]:9".parse().expect("an address");
    let refused = inside(&lab.pod, (0, 0), move || {
        std::net::TcpStream::connect_timeout(&to, Duration::from_millis(500))
    });
    assert!(refused.is_err(), "{refused:?}");
    outside.set_nonblocking(true).expect("nonblocking");
    assert!(outside.accept().is_err(), "nothing arrived");
}
