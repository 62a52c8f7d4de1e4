//! The recorded injected specifications, unmodified: every kind gets ready, and the kubelet's side of
//! a pod's life (probes, hooks, signals, restarts) goes as for the reference agent.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outrigger_tests::pod::{Pod, PodSpec};
use outrigger_tests::probe::Reply;

use crate::bench::{Bench, CREDENTIALS, ECHO, INGRESS, SLEEP, SOON, listening, recorded, until};

const AGENT: &str = "/usr/local/bin/pilot-agent";
const TPROXY: &str = "10.244.1.13";
const EASTWEST: &str = "10.244.1.31";

/// The pod of one of the five kinds, with its recorded configuration.
fn spec(bench: &Bench, ip: &str) -> PodSpec {
    let echo = [
        "/usr/local/bin/outrigger-lab",
        "app",
        "--version",
        "v1",
        "http:8080",
    ];
    let echo = echo.map(ToOwned::to_owned).to_vec();
    let (kind, scenario, node, app) = match ip {
        SLEEP => ("sleep", "02-helloworld", "sleep", echo),
        ECHO => ("echo", "02-helloworld", "echo", echo),
        TPROXY => ("echotproxy", "04-traffic", "echo-tproxy", echo),
        INGRESS => ("ingressgateway", "06-gateway", "ingressgateway", Vec::new()),
        _ => ("eastwest", "07-multinetwork", "eastwest", Vec::new()),
    };
    let mut snapshot = recorded(scenario, node);
    if ip == INGRESS {
        for (name, host) in CREDENTIALS {
            bench.add_credential(&mut snapshot, name, host);
        }
    }
    bench.configure(ip, snapshot);
    PodSpec {
        name: kind.to_owned(),
        kind: kind.to_owned(),
        ip: ip.to_owned(),
        labels: Vec::new(),
        app,
        ..bench.spec(SLEEP)
    }
}

/// Starts one and waits until the kubelet would call it ready.
async fn ready(bench: &Bench, ip: &str) -> Pod {
    let mut pod = bench.lab.start(spec(bench, ip)).expect("a pod");
    let ready = pod.ready(SOON).await;
    assert!(
        ready.is_ok(),
        "{}: {ready:?} {:#?}",
        pod.spec.kind,
        bench.refusals()
    );
    listening(&pod).await;
    pod
}

/// A request to the status port as another pod or the kubelet sends it.
async fn status(from: &Pod, pod: &Pod, method: &str, path: &str) -> Reply {
    let address = format!("{}:15020", pod.spec.ip);
    let reply = from.fetch(&address, method, path).await;
    reply.unwrap_or_else(|e| panic!("{} {path}: {e}", pod.spec.kind))
}

async fn exit_code(pod: &mut Pod) -> Option<i32> {
    let proxy = pod.proxy.as_mut().expect("a sidecar");
    let ask = async || proxy.exited().expect("asked");
    let ended = until("the sidecar ends", ask, Option::is_some).await;
    ended.expect("ended").code()
}

fn log_of(pod: &Pod) -> String {
    pod.proxy.as_ref().map(|p| p.log()).unwrap_or_default()
}

fn terminate(pod: &Pod) {
    let proxy = pod.proxy.as_ref().expect("a sidecar");
    proxy.signal(Signal::SIGTERM).expect("asked to end");
}

#[tokio::test]
async fn every_injected_kind_gets_ready_and_answers_the_kubelet() {
    let Some(bench) = Bench::new() else { return };
    let outsider = bench.outsider().await;
    for ip in [SLEEP, ECHO, TPROXY, INGRESS, EASTWEST] {
        let pod = ready(&bench, ip).await;
        let kind = pod.spec.kind.clone();
        // The hook that holds the application until the proxy is ready.
        pod.exec_proxy(&[AGENT, "wait"]).await.expect("ready");
        let page = status(&outsider, &pod, "GET", "/stats/prometheus")
            .await
            .text();
        for series in [
            "istio_agent_startup_duration_seconds ",
            "istio_agent_cert_expiry_seconds{resource_name=\"default\"} ",
            "istio_agent_num_outgoing_requests{request_type=\"csr\"} ",
            "istio_agent_outgoing_latency{request_type=\"csr\"} ",
            "istio_agent_xds_proxy_requests ",
            "istio_agent_xds_proxy_responses ",
            "istio_agent_pilot_xds_recv_max ",
            "istio_agent_process_cpu_seconds_total ",
            "# TYPE envoy_",
        ] {
            assert!(page.contains(series), "{kind}: no {series}");
        }
        if !pod.spec.app.is_empty() {
            let path = format!("/app-health/{kind}/readyz");
            assert_eq!(
                status(&outsider, &pod, "GET", &path).await.status,
                200,
                "{kind}"
            );
        }
        for (method, path) in [
            ("POST", "/quitquitquit"),
            ("POST", "/drain"),
            ("GET", "/debug/ndsz"),
            ("GET", "/debug/statusz"),
            ("GET", "/debug/pprof/heap"),
        ] {
            let reply = status(&outsider, &pod, method, path).await;
            assert_eq!(reply.status, 403, "{kind} {path}");
        }
    }
}

#[tokio::test]
async fn the_hook_of_native_sidecars_drains_and_the_signal_then_ends_at_once() {
    let Some(bench) = Bench::new() else { return };
    let mut pod = ready(&bench, ECHO).await;
    let drain = [AGENT, "request", "--debug-port=15020", "POST", "drain"];
    assert_eq!(pod.exec_proxy(&drain).await.expect("drained"), "OK\n");
    let address = format!("{ECHO}:15021");
    let reply = pod.fetch(&address, "GET", "/healthz/ready").await;
    assert_eq!(reply.expect("an answer").status, 200, "the pod stays ready");
    terminate(&pod);
    assert_eq!(exit_code(&mut pod).await, Some(0));
    let log = log_of(&pod);
    assert!(!log.contains("Agent draining Proxy"), "{log}");
    // The next container of the pod finds a usable place.
    pod.start_proxy().expect("started again");
    pod.ready(SOON).await.expect("ready again");
}

#[tokio::test]
async fn request_prints_bodies_and_fails_with_the_status() {
    let Some(bench) = Bench::new() else { return };
    let pod = ready(&bench, SLEEP).await;
    let request = async |words: &[&str]| {
        let words = [&[AGENT, "request"], words].concat();
        pod.exec_proxy(&words).await.map_err(|e| e.to_string())
    };
    let info = request(&["GET", "server_info"]).await.expect("an answer");
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON and nothing else");
    assert_eq!(info["state"], "LIVE");
    let level = request(&["POST", "logging?level=info"]).await;
    assert!(level.is_ok(), "{level:?}");
    let nothing = request(&["--debug-port", "15020", "GET", "nothing"]).await;
    assert_eq!(nothing.as_deref(), Ok("404 page not found\n\n"));
    let refused = request(&["--debug-port=15020", "GET", "quitquitquit"]).await;
    let refused = refused.expect_err("405");
    let want = "received unsuccessful status code 405: Method Not Allowed";
    assert!(refused.contains(want), "{refused}");
    // A former debug port: accepted, and nobody is there.
    let closed = request(&["--debug-port", "15004", "GET", "debug"]).await;
    assert!(closed.expect_err("closed").contains("refused"));
}

#[tokio::test]
async fn probes_and_scrapes_are_answered_while_the_proxy_drains() {
    let Some(bench) = Bench::new() else { return };
    let outsider = bench.outsider().await;
    for ip in [ECHO, INGRESS] {
        let mut pod = ready(&bench, ip).await;
        terminate(&pod);
        let draining = async || status(&outsider, &pod, "GET", "/healthz/ready").await;
        let reply = until("readiness fails", draining, |r| r.status == 503).await;
        assert!(reply.text().contains("DRAINING"), "{}", reply.text());
        let page = status(&outsider, &pod, "GET", "/stats/prometheus")
            .await
            .text();
        assert!(page.contains("# TYPE envoy_"), "no metrics of the proxy");
        if ip == ECHO {
            let probe = status(&outsider, &pod, "GET", "/app-health/echo/readyz").await;
            assert_eq!(probe.status, 200);
        }
        assert_eq!(exit_code(&mut pod).await, Some(0));
        let log = log_of(&pod);
        assert!(log.contains("Graceful termination period is 5s"), "{log}");
    }
}

#[tokio::test]
async fn a_job_ends_its_sidecar_from_the_application() {
    let Some(bench) = Bench::new() else { return };
    let mut pod = ready(&bench, SLEEP).await;
    let url = "http://127.0.0.1:15020/quitquitquit";
    let words = ["/usr/bin/curl", "-sS", "-m", "10", "-X", "POST", url];
    assert_eq!(pod.exec(&words).await.expect("an answer"), "OK");
    assert_eq!(exit_code(&mut pod).await, Some(0));
}

#[tokio::test]
async fn gateways_and_tproxy_pods_come_back_after_their_proxy_was_killed() {
    let Some(bench) = Bench::new() else { return };
    for ip in [TPROXY, INGRESS, EASTWEST] {
        let mut pod = ready(&bench, ip).await;
        let processes = pod.proxy.as_ref().expect("a sidecar").memory();
        let envoy = processes.iter().find(|p| p.name == "envoy");
        let envoy = envoy.unwrap_or_else(|| panic!("no proxy in {processes:?}"));
        let id = i32::try_from(envoy.pid).expect("a process id");
        kill(Pid::from_raw(id), Signal::SIGKILL).expect("killed");
        assert_eq!(exit_code(&mut pod).await, Some(1));
        let log = log_of(&pod);
        assert!(log.contains("Envoy exited with error: signal: 9"), "{log}");
        pod.start_proxy().expect("started again");
        pod.ready(SOON).await.expect("ready again");
    }
}

/// The checks that `doctor` reports as failed.
async fn failures(pod: &Pod) -> Vec<String> {
    let report = pod.exec_proxy(&[AGENT, "doctor", "-o", "json"]).await;
    // A failure is in the text of the error: its code is 1.
    let text = match report {
        Ok(_) => return Vec::new(),
        Err(e) => e.to_string(),
    };
    assert!(text.contains("exit status: 1"), "{text}");
    let text = pod
        .exec_proxy(&["/bin/sh", "-c", &format!("{AGENT} doctor; true")])
        .await
        .expect("a report");
    let failed = text.lines().filter_map(|l| l.strip_prefix("FAIL  "));
    failed.map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn the_doctor_finds_nothing_in_a_good_pod_and_the_flushed_rules_in_a_bad_one() {
    let Some(bench) = Bench::new() else { return };
    let pod = ready(&bench, ECHO).await;
    assert_eq!(failures(&pod).await, Vec::<String>::new());
    let netns = pod.netns.as_str();
    let flush = ["netns", "exec", netns, "nft", "flush", "ruleset"];
    let flushed = std::process::Command::new("ip").args(flush).status();
    assert!(flushed.expect("ip runs").success());
    let failures = failures(&pod).await;
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].starts_with("capture   "), "{failures:?}");
}

#[tokio::test]
async fn metrics_can_be_closed_to_other_pods() {
    let Some(bench) = Bench::new() else { return };
    let outsider = bench.outsider().await;
    let mut spec = spec(&bench, SLEEP);
    spec.env
        .push(("METRICS_LOCALHOST_ACCESS_ONLY".into(), "true".into()));
    let mut pod = bench.lab.start(spec).expect("a pod");
    pod.ready(SOON).await.expect("ready");
    for path in ["/metrics", "/stats/prometheus"] {
        assert_eq!(
            status(&outsider, &pod, "GET", path).await.status,
            403,
            "{path}"
        );
        let own = pod.fetch("127.0.0.1:15020", "GET", path).await;
        assert_eq!(own.expect("an answer").status, 200, "{path}");
    }
}
