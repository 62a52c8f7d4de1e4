//! Ends and new beginnings of the sidecar's processes, and a CA that is late.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outrigger_tests::ca::CaFault;
use outrigger_tests::istiod::builder::replace_endpoints;
use outrigger_tests::pod::Pod;
use outrigger_tests::probe::{self, read_raw};
use tokio::io::AsyncWriteExt;

use crate::bench::{
    Bench, HELLO, SLEEP, SOON, V1, admin, answer, curl, hello, listening, logged, marked, recorded,
    until,
};

/// A client that knows version 1 only, and that.
async fn pair(bench: &Bench) -> [Pod; 2] {
    let mut only = recorded("02-helloworld", "sleep");
    replace_endpoints(
        &mut only,
        "helloworld.sample",
        &[([10, 244, 1, 11], 5000).into()],
    );
    bench.configure(SLEEP, only);
    let pods = bench.ready([SLEEP, V1]).await;
    hello(&pods[0]).await;
    pods
}

/// Waits for the end of a pod's sidecar.
async fn ended(pod: &mut Pod) -> std::process::ExitStatus {
    let proxy = pod.proxy.as_mut().expect("a sidecar");
    let ask = async || proxy.exited().expect("asked");
    until("the sidecar ends", ask, Option::is_some)
        .await
        .expect("ended")
}

/// Asks until the service is back, whatever was ejected meanwhile.
async fn serves(client: &Pod) {
    let url = format!("http://{V1}:5000/hello");
    let ask = async || curl(client, &["-f", &url]).await;
    let fine = |t: &Result<String, String>| t.as_ref().is_ok_and(|t| t.contains("v1"));
    until("the pod serves again", ask, fine)
        .await
        .expect("an answer");
}

#[tokio::test]
async fn a_killed_agent_takes_its_container_along_and_comes_back() {
    let Some(bench) = Bench::new() else { return };
    let [mut client, mut server] = pair(&bench).await;
    for of_server in [true, false] {
        let pod = if of_server { &mut server } else { &mut client };
        let proxy = pod.proxy.as_ref().expect("a sidecar");
        proxy.signal(Signal::SIGKILL).expect("killed");
        assert!(!ended(pod).await.success());
        pod.start_proxy().expect("started again");
        pod.ready(SOON).await.expect("ready again");
    }
    // The client's sidecar is new and remembers no ejection.
    hello(&client).await;
    let line = marked("/hello");
    let text = curl(&client, &["-f", &format!("{HELLO}{line}")]).await;
    text.expect("an answer");
    logged(&server, &[&line, "inbound|5000||", "outbound_.5000_.v"]).await;
}

#[tokio::test]
async fn a_killed_proxy_ends_the_agent_with_a_reason_and_traffic_returns() {
    let Some(bench) = Bench::new() else { return };
    let [client, mut server] = pair(&bench).await;
    let container = server.proxy.as_ref().expect("a sidecar");
    let processes = container.memory();
    let envoy = processes.iter().find(|p| p.name == "envoy");
    let envoy = envoy.unwrap_or_else(|| panic!("no proxy in {processes:?}"));
    let before = container.log().len();
    let pid = i32::try_from(envoy.pid).expect("a process id");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killed");
    let status = ended(&mut server).await;
    assert!(status.code().is_some_and(|c| c != 0), "{status}");
    let log = server.proxy.as_ref().expect("a sidecar").log();
    let said = log[before..].to_ascii_lowercase();
    let tells = said.lines().any(|l| {
        (l.contains("envoy") || l.contains("proxy")) && (l.contains("signal") || l.contains("kill"))
    });
    assert!(tells, "no clear message in: {said}");
    server.start_proxy().expect("started again");
    server.ready(SOON).await.expect("ready again");
    serves(&client).await;
}

/// Whether the server's proxy has a request at its application.
async fn busy(server: &Pod) -> bool {
    let page = admin(server, "/clusters").await.text();
    let active = |l: &str| {
        let count = l.split_once("::rq_active::").map(|(_, n)| n);
        l.starts_with("inbound|5000||::") && count.is_some_and(|n| n != "0")
    };
    page.lines().any(active)
}

#[tokio::test]
async fn a_terminated_agent_drains_and_exits_with_success() {
    let Some(bench) = Bench::new() else { return };
    let [client, mut server] = pair(&bench).await;
    let outsider = bench.outsider().await;
    let ask = async |stream: &mut tokio::net::TcpStream| {
        let request = b"GET /hello HTTP/1.1\r\nhost: helloworld.sample\r\n\r\n";
        stream.write_all(request).await.expect("sent");
        let raw = read_raw(stream, SOON, probe::complete).await;
        let parsed = probe::parse(&raw.bytes).unwrap_or_else(|| panic!("no answer: {raw:?}"));
        parsed.0
    };
    let mut kept = outsider.connect(&format!("{V1}:5000")).expect("connected");
    let reply = ask(&mut kept).await;
    assert_eq!((reply.status, reply.header("connection")), (200, None));

    let url = format!("{HELLO}/slow?s=1");
    let words = ["-i", url.as_str()];
    let slow = curl(&client, &words);
    let drain = async {
        until(
            "the slow request is at the application",
            async || busy(&server).await,
            |b| *b,
        )
        .await;
        let proxy = server.proxy.as_ref().expect("a sidecar");
        proxy.signal(Signal::SIGTERM).expect("asked to end");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(4);
        loop {
            let reply = ask(&mut kept).await;
            assert_eq!(reply.status, 200);
            match reply.header("connection") {
                Some("close") => break,
                other => assert_eq!(other, None),
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "never told to close"
            );
        }
    };
    let (slow, ()) = tokio::join!(slow, drain);
    let reply = answer(&slow.expect("the request in flight is served to its end"));
    assert_eq!(reply.status, 200);
    let status = ended(&mut server).await;
    assert_eq!(status.code(), Some(0), "{status}");
}

#[tokio::test]
async fn a_late_ca_delays_readiness_and_nothing_is_served_in_plain_text() {
    let Some(bench) = Bench::new() else { return };
    let [server] = bench.ready([V1]).await;
    let ca = &bench.lab.istiod.ca;
    let before = ca.calls().len();
    let fail = || CaFault::Fail(tonic::Code::Unavailable);
    // The third answer is late too: until it comes, nobody can have a certificate.
    let late = CaFault::Delay(Duration::from_secs(3));
    ca.script([fail(), fail(), late]);
    let outsider = bench.outsider().await;
    let mut client = bench.start(SLEEP);
    listening(&client).await;
    let count = async || ca.calls().len() - before;
    until("the CA is asked again after failures", count, |n| *n >= 3).await;
    let delayed = tokio::time::Instant::now();

    let probe = client
        .fetch(&format!("{SLEEP}:15021"), "GET", "/healthz/ready")
        .await;
    assert!(
        probe.as_ref().map_or(true, |r| r.status != 200),
        "{probe:?}"
    );
    let path = marked("/hello");
    let url = format!("http://{SLEEP}:8080{path}");
    let inbound = curl(&outsider, &["-m", "1", "-f", &url]).await;
    let inbound = inbound.expect_err("the pod serves without a certificate");
    assert!(inbound.contains("curl: ("), "{inbound}");
    let url = format!("{HELLO}{path}");
    let outbound = curl(&client, &["-m", "1", "-f", &url]).await;
    let outbound = outbound.expect_err("the pod sends without a certificate");
    assert!(outbound.contains("curl: ("), "{outbound}");
    assert!(
        delayed.elapsed() < Duration::from_millis(2900),
        "the certificate may have come"
    );

    client.ready(SOON).await.expect("ready in the end");
    serves(&client).await;
    let log = server.proxy.as_ref().map(|p| p.log()).unwrap_or_default();
    assert!(!log.contains(&path), "sent in plain text");
    let text = curl(&outsider, &["-f", &format!("http://{SLEEP}:8080/hello")]).await;
    text.expect("served now");
}
