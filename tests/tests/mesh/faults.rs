//! What an application sees, and what is logged, when something behind it is gone.
//!
//! Wanted texts are those of the reference recording.

use outrigger_tests::istiod::builder::replace_endpoints;
use outrigger_tests::pod::Pod;

use crate::bench::{
    Bench, HELLO, SLEEP, V1, V2, admin, answer, at, curl, fields, hello, logged, marked, recorded,
    until,
};

#[tokio::test]
async fn a_dead_application_gives_the_flags_and_bodies_of_the_reference() {
    let Some(bench) = Bench::new() else { return };
    let mut only = recorded("02-helloworld", "sleep");
    replace_endpoints(
        &mut only,
        "helloworld.sample",
        &[([10, 244, 1, 11], 5000).into()],
    );
    bench.configure(SLEEP, only);
    let [client, mut server] = bench.ready([SLEEP, V1]).await;
    hello(&client).await;
    // Through the mesh the answer is the ejection's: ask the server's sidecar itself first, as a
    // client outside the service does.
    server.app = None;
    let path = marked("/direct");
    let text = curl(&client, &["-i", &format!("http://{V1}:5000{path}")]).await;
    let reply = answer(&text.expect("an answer"));
    let body = "upstream connect error or disconnect/reset before headers. retried and the latest \
                reset reason: remote connection failure";
    assert_eq!((reply.status, reply.text().as_str()), (503, body));
    let line = fields(&logged(&server, &[&path]).await);
    let refused = "delayed_connect_error:_Connection_refused";
    let details =
        format!("upstream_reset_before_response_started{{remote_connection_failure|{refused}}}");
    assert_eq!(line[at::CODE], "503");
    assert_eq!(line[at::FLAGS], "URX,UF");
    assert_eq!(line[at::DETAILS], details);
    assert_eq!(line[at::TRANSPORT_FAILURE], refused);
    assert_eq!(line[at::SENT], body.len().to_string());
    assert_eq!(line[at::CLUSTER], "inbound|5000||");
    assert_eq!(line[at::UPSTREAM], "10.244.1.11:5000");

    // One 503 ejects the only host, and the retry finds none.
    for _ in 0..2 {
        let path = marked("/hello");
        no_host(&client, &path).await;
    }
}

/// Asks for what ends without any healthy host; gives the client's log line.
async fn no_host(client: &Pod, path: &str) -> Vec<String> {
    let text = curl(client, &["-i", &format!("{HELLO}{path}")]).await;
    let reply = answer(&text.expect("an answer"));
    assert_eq!(reply.status, 503);
    assert_eq!(reply.text(), "no healthy upstream");
    assert_eq!(reply.header("server"), Some("envoy"));
    let line = fields(&logged(client, &[path]).await);
    assert_eq!(line[at::FLAGS], "UH");
    assert_eq!(line[at::DETAILS], "no_healthy_upstream");
    assert_eq!(line[at::SENT], "19");
    line
}

#[tokio::test]
async fn a_retry_without_a_host_is_logged_with_the_host_of_the_attempt_before() {
    let Some(bench) = Bench::new() else { return };
    let mut only = recorded("02-helloworld", "sleep");
    replace_endpoints(
        &mut only,
        "helloworld.sample",
        &[([10, 244, 1, 11], 5000).into()],
    );
    bench.configure(SLEEP, only);
    let [client, server] = bench.ready([SLEEP, V1]).await;
    let path = marked("/status/503");
    let line = no_host(&client, &path).await;
    logged(&server, &[&path, "HTTP/1.1\" 503 "]).await;
    assert!(
        line[at::UPSTREAM_LOCAL].starts_with("10.244.1.10:"),
        "{line:?}"
    );
    assert_eq!(line[at::UPSTREAM], "10.244.1.11:5000", "{line:?}");
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_answered_as_by_the_reference() {
    let Some(bench) = Bench::new() else { return };
    let [client, server] = bench.ready([SLEEP, V1]).await;
    let text = curl(&client, &["-i", &format!("http://{V1}:5999/")]).await;
    let reply = answer(&text.expect("an answer"));
    assert_eq!(reply.status, 503);
    let value = |name| reply.header(name);
    assert_eq!(value("content-length"), Some("121"));
    assert_eq!(value("content-type"), Some("text/plain"));
    assert_eq!(value("server"), Some("istio-envoy"));
    assert_eq!(value("x-envoy-decorator-operation"), Some(":0/*"));
    let line = fields(&logged(&server, &["InboundPassthroughCluster"]).await);
    let refused = "delayed_connect_error:_Connection_refused";
    assert_eq!(line[at::FLAGS], "URX,UF");
    assert_eq!(line[at::TRANSPORT_FAILURE], refused);
    assert_eq!(line[at::UPSTREAM], "10.244.1.11:5999");

    // Nobody has this address: the connection fails, and there is nothing to answer with.
    let failed = curl(&client, &["http://10.244.9.9:8088/"]).await;
    let failed = failed.expect_err("nobody answers");
    assert!(failed.contains("curl: ("), "{failed}");
    let line = fields(&logged(&client, &["10.244.9.9:8088"]).await);
    assert_eq!((line[1].as_str(), line[at::CODE].as_str()), ("- - -", "0"));
    assert_eq!(line[at::FLAGS], "UF,URX");
    assert_eq!(
        line[at::TRANSPORT_FAILURE],
        "delayed_connect_error:_No_route_to_host"
    );
    assert_eq!(line[at::CLUSTER], "PassthroughCluster");
}

#[tokio::test]
async fn traffic_outlives_the_control_plane_and_follows_it_when_it_is_back() {
    let Some(bench) = Bench::new() else { return };
    let mut only = recorded("02-helloworld", "sleep");
    let everything_to = |snapshot: &mut _, ip: [u8; 4]| {
        replace_endpoints(snapshot, "helloworld.sample", &[(ip, 5000).into()]);
    };
    everything_to(&mut only, [10, 244, 1, 11]);
    bench.configure(SLEEP, only.clone());
    let [mut client, one, two] = bench.ready([SLEEP, V1, V2]).await;
    let istiod = &bench.lab.istiod;
    let before = istiod.ads.events().len();
    istiod.refuse(true);
    istiod.kill_connections();
    let gone = |events: &[outrigger_tests::istiod::AdsEvent]| {
        let ended = outrigger_tests::istiod::EventKind::Disconnected;
        events[before..].iter().filter(|e| e.kind == ended).count() >= 3
    };
    assert!(
        istiod.ads.wait_for(crate::bench::SOON, gone).await,
        "streams end"
    );
    everything_to(&mut only, [10, 244, 2, 11]);
    bench.configure(SLEEP, only);
    for _ in 0..20 {
        assert!(hello(&client).await.starts_with("Hello version: v1"));
    }
    for pod in [&client, &one, &two] {
        assert_eq!(admin(pod, "/ready").await.status, 200);
        let probe = pod
            .fetch(&format!("{}:15021", pod.spec.ip), "GET", "/healthz/ready")
            .await;
        assert_eq!(probe.expect("answered").status, 200);
    }
    istiod.refuse(false);
    let url = format!("{HELLO}/hello");
    let ask = async || curl(&client, &[&url]).await;
    let moved =
        |t: &Result<String, String>| t.as_ref().is_ok_and(|t| t.starts_with("Hello version: v2"));
    let text = until("the change takes effect", ask, moved).await;
    text.expect("an answer");
    let proxy = client.proxy.as_mut().expect("a sidecar");
    assert_eq!(proxy.exited().expect("asked"), None);
}

#[tokio::test]
async fn traffic_goes_on_while_the_control_plane_flaps_and_one_stream_is_left() {
    const FLAPS: usize = 30;
    let Some(bench) = Bench::new() else { return };
    let [mut client, _one, _two] = bench.ready([SLEEP, V1, V2]).await;
    let istiod = &bench.lab.istiod;
    for _ in 0..FLAPS {
        istiod.refuse(true);
        istiod.kill_connections();
        hello(&client).await;
        istiod.refuse(false);
        hello(&client).await;
    }
    let own = |e: &&outrigger_tests::istiod::AdsEvent| e.node.split('~').nth(1) == Some(SLEEP);
    let streams = |events: &[outrigger_tests::istiod::AdsEvent]| {
        use outrigger_tests::istiod::EventKind::{Connected, Disconnected};
        let is_open = |e: &&outrigger_tests::istiod::AdsEvent| matches!(e.kind, Connected { .. });
        let open = events.iter().filter(own).filter(is_open).count();
        let ended = events.iter().filter(own).filter(|e| e.kind == Disconnected);
        (open, open - ended.count())
    };
    let one = |events: &[outrigger_tests::istiod::AdsEvent]| streams(events).1 == 1;
    let back = istiod.ads.wait_for(crate::bench::SOON, one).await;
    let (opened, open) = streams(&istiod.ads.events());
    assert!(back, "{open} of {opened} streams are open");
    // Each cut costs at most the stream that it ends and the next one.
    assert!(opened <= 2 * FLAPS, "{opened} streams");
    assert_eq!(bench.refusals(), [] as [String; 0]);
    let proxy = client.proxy.as_mut().expect("a sidecar");
    assert_eq!(proxy.exited().expect("asked"), None);
}
