//! The DNS server of a whole agent: when it runs, how long it serves.

#[path = "support/agent.rs"]
mod support;

use std::net::UdpSocket;

use serde_json::json;

use support::{DEADLINE, Running, Setup, eventually, free_port};

const SLEEPER: &str = "echo proxy runs; exec sleep 60";
/// A for `a.`; the answer has the same id.
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";

fn with_dns(port: u16) -> Setup {
    Setup::new(SLEEPER, free_port())
        .env("ISTIO_META_DNS_CAPTURE", "true")
        .env("DNS_PROXY_ADDR", format!("127.0.0.1:{port}"))
}

/// Response code of one query, if there is an answer.
fn ask(port: u16) -> Option<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.set_read_timeout(Some(DEADLINE)).expect("timeout");
    socket.connect(("127.0.0.1", port)).expect("connect");
    socket.send(QUERY).ok()?;
    let mut buffer = [0; 512];
    let len = socket.recv(&mut buffer).ok()?;
    assert_eq!(buffer[..2], QUERY[..2]);
    assert!(len >= 12);
    Some(buffer[3] & 0xf)
}

fn started(setup: Setup) -> Running {
    let mut running = setup.start();
    running.wait_for_line("proxy runs");
    running
}

#[test]
fn dns_serves_until_the_agent_ends() {
    const SERVFAIL: u8 = 2;
    let port = free_port();
    let mut agent = started(with_dns(port).config("terminationDrainDuration", json!("60s")));
    // Without istiod there is no table.
    assert_eq!(ask(port), Some(SERVFAIL));
    let (_, page) = agent.http("GET", "/stats/prometheus");
    assert!(
        page.contains("istio_agent_dns_requests_total 1\n"),
        "{page}"
    );
    agent.signal("-TERM");
    agent.wait_for_line("Agent draining Proxy");
    assert_eq!(
        ask(port),
        Some(SERVFAIL),
        "applications still look names up during the drain"
    );
    agent.signal("-TERM");
    assert_eq!(agent.wait(), Some(0));
    assert_eq!(ask(port), None);
}

#[test]
fn dns_runs_where_it_is_asked_for() {
    for (kind, variable, runs) in [
        ("sidecar", "ISTIO_META_DNS_CAPTURE", true),
        ("router", "ISTIO_META_DNS_CAPTURE", false),
        ("router", "ISTIO_META_ENABLE_DNS_SERVER", true),
    ] {
        let port = free_port();
        let mut setup = Setup::new(SLEEPER, free_port())
            .env(variable, "true")
            .env("DNS_PROXY_ADDR", format!("127.0.0.1:{port}"));
        setup.args = vec!["proxy".to_owned(), kind.to_owned()];
        let _agent = started(setup);
        assert_eq!(ask(port).is_some(), runs, "{kind} {variable}");
    }
}

#[test]
fn dns_that_cannot_be_served_ends_the_start() {
    let taken = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("address").port();
    assert_eq!(with_dns(port).start().wait(), Some(255), "a taken port");
    for address in [
        "15053",
        "127.0.0.1:dns",
        "[::1:15053",
        "no.such.host.invalid:15053",
    ] {
        let setup = with_dns(port).env("DNS_PROXY_ADDR", address);
        assert_eq!(setup.start().wait(), Some(255), "{address}");
    }
    drop(taken);
    let agent = started(with_dns(port));
    eventually("the port is free again", || ask(port));
    drop(agent);
}
