//! Rules are replaced while connections are made all the time: none is lost, none passes the
//! proxy by. And a run that finds everything in place writes nothing at all.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use socket2::{Domain, Socket, Type};

use crate::lab::{Lab, OUTSIDE, POD, engine_here, inside, missing, no_legacy, start_inside};

/// A connection that is not made in this time is lost. Long enough for a machine so busy that it
/// drops a packet: TCP sends it again.
const LIMIT: Duration = Duration::from_secs(30);

/// Accepts until told to stop; counts.
struct Listener {
    accepted: Arc<AtomicU32>,
    thread: JoinHandle<()>,
}

impl Listener {
    fn start(namespace: &str, port: u16, transparent: bool, stop: &Arc<AtomicBool>) -> Self {
        let listener = inside(namespace, (0, 1337), move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
            socket
                .set_ip_transparent_v4(transparent)
                .expect("transparent");
            let any = SocketAddr::from(([0, 0, 0, 0], port));
            socket.bind(&any.into()).expect("bind");
            socket.listen(1024).expect("listen");
            socket.set_nonblocking(true).expect("nonblocking");
            TcpListener::from(socket)
        });
        let (accepted, stop) = (Arc::new(AtomicU32::new(0)), Arc::clone(stop));
        let counter = Arc::clone(&accepted);
        let thread = std::thread::spawn(move || {
            loop {
                let last = stop.load(Ordering::Relaxed);
                let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(20_u16)).expect("poll");
                while listener.accept().is_ok() {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                if last {
                    return;
                }
            }
        });
        Self { accepted, thread }
    }

    fn end(self) -> u32 {
        self.thread.join().expect("listener thread");
        self.accepted.load(Ordering::Relaxed)
    }
}

/// Connection attempts that the pod dropped because an accept queue was full.
fn listen_drops(lab: &Lab) -> u32 {
    let text = lab.text(&["cat", "/proc/net/netstat"]);
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let names = lines.next().unwrap_or_default().split(' ');
    let values = lines.next().unwrap_or_default().split(' ');
    let drops = names.zip(values).find(|(name, _)| *name == "ListenDrops");
    drops.and_then(|(_, n)| n.parse().ok()).expect("a counter")
}

/// Connects about every millisecond until told to stop; returns how many and the failures.
fn dial(
    namespace: &str,
    to: SocketAddr,
    stop: &Arc<AtomicBool>,
    run: &Arc<AtomicU32>,
) -> JoinHandle<(u32, Vec<String>)> {
    let (stop, run) = (Arc::clone(stop), Arc::clone(run));
    start_inside(namespace, (1000, 1000), move || {
        let (mut made, mut failures) = (0, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
            let from = run.load(Ordering::Relaxed);
            match socket.connect_timeout(&to.into(), LIMIT) {
                Ok(()) => made += 1,
                Err(error) => {
                    let until = run.load(Ordering::Relaxed);
                    failures.push(format!("during runs {from} to {until}: {error}"));
                }
            }
            // The rate of the load, not a wait for anything.
            std::thread::sleep(Duration::from_millis(1));
        }
        (made, failures)
    })
}

/// Applies the flag sets in turn, `times` in all, under load in both directions.
fn replace_under_load(lab: &Lab, sets: &[Vec<&str>], times: usize) {
    let mut sets: Vec<Vec<String>> = sets
        .iter()
        .map(|set| set.iter().map(ToString::to_string).collect())
        .collect();
    lab.engine(&["--cleanup-only"], |_| Ok(())).expect("clean");
    let first = sets[0].clone();
    inside(&lab.pod, (0, 0), move || engine_here(&first, |_| Ok(()))).expect("first run");
    let stop = Arc::new(AtomicBool::new(false));
    let stop_listening = Arc::new(AtomicBool::new(false));
    let run = Arc::new(AtomicU32::new(0));
    let outbound = Listener::start(&lab.pod, 15001, false, &stop_listening);
    let inbound = Listener::start(&lab.pod, 15006, true, &stop_listening);
    let application = Listener::start(&lab.pod, 8080, false, &stop_listening);
    let server = Listener::start(&lab.outside, 80, false, &stop_listening);
    let from_pod = dial(&lab.pod, (IpAddr::from(OUTSIDE), 80).into(), &stop, &run);
    let from_outside = dial(&lab.outside, (IpAddr::from(POD), 8080).into(), &stop, &run);
    sets.rotate_left(1);
    let current = Arc::clone(&run);
    let writes = inside(&lab.pod, (0, 0), move || {
        let mut writes = 0;
        for index in 0..times {
            current.fetch_add(1, Ordering::Relaxed);
            let mut step = |_| {
                writes += 1;
                Ok(())
            };
            let done = engine_here(&sets[index % sets.len()], &mut step);
            done.unwrap_or_else(|e| panic!("run {index}: {e}"));
        }
        writes
    });
    stop.store(true, Ordering::Relaxed);
    let (out, mut lost) = from_pod.join().expect("client thread");
    let (into, lost_inbound) = from_outside.join().expect("client thread");
    // Every connection that was made is in an accept queue by now.
    stop_listening.store(true, Ordering::Relaxed);
    let seen = [outbound, inbound, application, server].map(Listener::end);
    let drops = listen_drops(lab);
    println!(
        "{times} runs, {writes} steps, connections: {out} out, {into} in, {seen:?} seen, {drops} drops"
    );
    assert!(writes >= times * 2, "every run writes and verifies");
    // The proxy got all of them, the application and the server none.
    assert_eq!(seen, [out, into, 0, 0]);
    assert!(out >= 100 && into >= 100, "no load");
    lost.extend(lost_inbound);
    assert!(lost.is_empty(), "lost: {lost:?}");
}

#[test]
fn native_rules_are_replaced_a_thousand_times_without_a_lost_or_bypassed_connection() {
    if missing(&["ip", "nft"]) {
        return;
    }
    let lab = Lab::new();
    let sets = [
        vec!["--native-nftables"],
        vec!["--native-nftables", "-o", "7000", "--drop-invalid"],
        vec!["--native-nftables", "--redirect-dns", "--dual-stack"],
        vec!["--native-nftables", "-m", "TPROXY", "-x", "10.9.0.0/16"],
    ];
    replace_under_load(&lab, &sets, 1000);
}

fn iptables_sets(variant: &'static str) -> [Vec<&'static str>; 3] {
    let with = |more: &[&'static str]| [&["--force-iptables-binary", variant], more].concat();
    [
        with(&[]),
        with(&["-o", "7000", "--drop-invalid"]),
        with(&["--redirect-dns", "--capture-all-dns"]),
    ]
}

#[test]
fn iptables_nft_rules_are_replaced_without_a_lost_or_bypassed_connection() {
    if missing(&["ip", "nft", "iptables-nft"]) {
        return;
    }
    let lab = Lab::new();
    replace_under_load(&lab, &iptables_sets("nft"), 40);
}

#[test]
fn iptables_legacy_rules_are_replaced_without_a_lost_or_bypassed_connection() {
    if missing(&["ip", "nft", "iptables-legacy"]) {
        return;
    }
    let lab = Lab::new();
    if no_legacy(&lab) {
        return;
    }
    replace_under_load(&lab, &iptables_sets("legacy"), 40);
}

/// Between REDIRECT and TPROXY two tables change, one commit each.
#[test]
fn the_mode_is_switched_through_iptables_without_a_lost_or_bypassed_connection() {
    if missing(&["ip", "nft", "iptables-nft"]) {
        return;
    }
    let lab = Lab::new();
    let nft = ["--force-iptables-binary", "nft"];
    let sets = [nft.to_vec(), [&nft[..], &["-m", "TPROXY"]].concat()];
    replace_under_load(&lab, &sets, 40);
}

#[test]
fn backends_are_switched_without_a_lost_or_bypassed_connection() {
    if missing(&["ip", "nft", "iptables-nft", "iptables-legacy"]) {
        return;
    }
    let lab = Lab::new();
    if no_legacy(&lab) {
        return;
    }
    let sets = [
        vec!["--native-nftables"],
        vec!["--force-iptables-binary", "nft"],
        vec!["--force-iptables-binary", "legacy"],
    ];
    replace_under_load(&lab, &sets, 30);
}

/// A netlink socket that hears of every change of rules, routes, policy rules and addresses.
fn monitor(protocol: SockProtocol, groups: &[u32]) -> OwnedFd {
    let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).expect("socket");
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, mask)).expect("bind");
    fd
}

/// How many messages are waiting; reads them.
fn heard(fd: &OwnedFd) -> usize {
    let mut buffer = vec![0; 1 << 16];
    let mut count = 0;
    loop {
        match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(_) => count += 1,
            Err(Errno::EAGAIN) => return count,
            // More changes than the socket holds.
            Err(Errno::ENOBUFS) => count += 1000,
            Err(errno) => panic!("recv: {errno}"),
        }
    }
}

/// NFNLGRP_NFTABLES.
const NFTABLES: u32 = 7;
/// RTNLGRP of IPv4 and IPv6: addresses, routes, rules.
const ROUTES: [u32; 6] = [5, 7, 8, 9, 11, 19];

#[test]
fn a_second_equal_run_is_not_heard_of_by_any_netlink_monitor() {
    if missing(&["ip", "nft", "iptables-nft"]) {
        return;
    }
    for backend in [
        &["--native-nftables"][..],
        &["--force-iptables-binary", "nft"],
    ] {
        let lab = Lab::new();
        let more = ["-m", "TPROXY", "--dual-stack", "--redirect-dns"];
        let flags = [backend, &more].concat();
        let (nft, routes) = inside(&lab.pod, (0, 0), || {
            let nft = monitor(SockProtocol::NetlinkNetFilter, &[NFTABLES]);
            (nft, monitor(SockProtocol::NetlinkRoute, &ROUTES))
        });
        heard(&nft);
        heard(&routes);
        lab.apply(&flags);
        assert!(
            heard(&nft) > 0 && heard(&routes) > 0,
            "the first run writes"
        );
        // The kernel tells of the address once more when it has checked it, at some later moment;
        // a run that writes would be heard of every time.
        let silent = (0..10).any(|_| {
            lab.apply(&flags);
            (heard(&nft), heard(&routes)) == (0, 0)
        });
        assert!(silent, "{flags:?}");
    }
}
