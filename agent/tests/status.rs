//! The status port of a running agent: what readiness names, merged pages, probes, debug pages.

#[path = "support/exposition.rs"]
mod exposition;
#[path = "support/health.rs"]
mod health;
#[path = "support/agent.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;

use serde_json::json;

use support::{Running, SLEEPER, Server, Setup, eventually, free_port, ready_admin, started};

/// Serves every connection with the same bytes, and says what was asked.
fn raw_server(answer: impl Into<Vec<u8>>) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    let (sender, heads) = mpsc::channel();
    let answer = answer.into();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let Some(head) = read_head(&mut stream) else {
                continue;
            };
            let _ = stream.write_all(&answer);
            if sender.send(head).is_err() {
                return;
            }
        }
    });
    (port, heads)
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// An agent that merges the pages of a proxy and of applications on `ports`.
fn scraping(ports: &[u16]) -> Running {
    let proxy = Server::start(|_| (200, "text/plain", "# TYPE envoy_x gauge\nenvoy_x 1".into()));
    let targets: Vec<_> = ports
        .iter()
        .map(|port| json!({ "port": port.to_string() }))
        .collect();
    let setup = Setup::new(SLEEPER, free_port())
        .env("ENVOY_PROMETHEUS_PORT", proxy.port.to_string())
        .env(
            "ISTIO_PROMETHEUS_ANNOTATIONS",
            json!({ "targets": targets }).to_string(),
        );
    started(setup)
}

#[test]
fn readiness_and_wait_name_the_route_that_is_missing() {
    let admin = Server::start(|path| {
        let body = if path.contains("update_success") {
            "cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 1\n"
        } else if path == "/init_dump" {
            r#"{"unready_targets_dumps":[{"name":"init manager Listener-local-init-manager l 1",
                "target_names":["shared target RdsRouteConfigSubscription RDS init http.80"]}]}"#
        } else {
            "server.state: 2\nlistener_manager.workers_started: 0\n"
        };
        (200, "text/plain", body.to_owned())
    });
    let agent = started(Setup::new(SLEEPER, admin.port));
    let (status, text) = agent.http("GET", "/healthz/ready");
    assert_eq!(status, 503);
    let want = "current state is: PRE_INITIALIZING; waiting for RDS http.80, ";
    assert!(text.contains(want), "{text}");
    let url = format!("http://127.0.0.1:{}/healthz/ready", agent.setup.status_port);
    let output = Command::new(env!("CARGO_BIN_EXE_pilot-agent"))
        .args([
            "wait",
            "--timeoutSeconds=1",
            "--periodMillis=100",
            "--url",
            &url,
        ])
        .output()
        .expect("agent runs");
    assert_eq!(output.status.code(), Some(255));
    let log = String::from_utf8_lossy(&output.stdout);
    assert_eq!(log.matches("Not ready yet: ").count(), 1, "{log}");
    assert!(log.contains("waiting for RDS http.80, "), "{log}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("waiting for RDS http.80, "), "{error}");
}

#[test]
fn readiness_says_why_there_is_no_configuration_and_no_certificate() {
    let admin = Server::start(|_| (200, "text/plain", String::new()));
    let agent = started(Setup::new(SLEEPER, admin.port));
    let text = eventually("the error of the CA", || {
        let (status, text) = agent.http("GET", "/healthz/ready");
        assert_eq!(status, 503);
        text.contains("last error of certificate: ").then_some(text)
    });
    for want in ["CDS, ", "LDS, ", "certificate default, "] {
        assert!(text.contains(want), "{want} in {text}");
    }
}

#[test]
fn merged_pages_are_valid_and_compressed_on_demand() {
    let app = Server::start(|_| {
        (
            200,
            "text/plain",
            "# TYPE app_x gauge\napp_x{a=\"b\"} 2".into(),
        )
    });
    let agent = scraping(&[app.port]);
    // A first scrape, so that everything that counts scrapes is there.
    agent.raw("/stats/prometheus", "");
    let (head, body) = agent.raw("/stats/prometheus", "");
    assert!(head.contains("vary: accept-encoding"), "{head}");
    assert!(!head.contains("content-encoding"), "{head}");
    let plain = String::from_utf8(body).expect("text");
    let samples = exposition::parse(&plain).unwrap_or_else(|e| panic!("{e}\n{plain}"));
    for series in [
        "envoy_x",
        "app_x{a=\"b\"}",
        "istio_agent_scrapes_total",
        "istio_agent_scrape_up{type=\"envoy\"}",
        "istio_agent_scrape_up{type=\"application\"}",
        "istio_agent_process_resident_memory_bytes",
        "istio_agent_process_open_fds",
        "istio_agent_process_start_time_seconds",
        "istio_agent_go_goroutines",
        "istio_agent_go_memstats_heap_inuse_bytes",
    ] {
        assert!(samples.contains_key(series), "{series} in\n{plain}");
    }
    let (head, body) = agent.raw("/stats/prometheus", "accept-encoding: gzip, deflate\r\n");
    assert!(head.contains("content-encoding: gzip"), "{head}");
    let mut text = String::new();
    let read = flate2::read::GzDecoder::new(&*body).read_to_string(&mut text);
    read.expect("gzip");
    exposition::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert!(body.len() < text.len());
}

#[test]
fn an_application_that_breaks_off_costs_only_its_last_line() {
    let (port, _heads) = raw_server(
        "HTTP/1.1 200 OK\r\ncontent-type: application/openmetrics-text; version=1.0.0\r\n\
         content-length: 100000\r\nconnection: close\r\n\r\n# TYPE app_x gauge\napp_x 1\napp_y",
    );
    let agent = scraping(&[port]);
    let (head, body) = agent.raw("/metrics", "");
    assert!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    let text = String::from_utf8(body).expect("text");
    assert!(
        text.ends_with("envoy_x 1\n# TYPE app_x gauge\napp_x 1\n# EOF\n"),
        "{text}"
    );
}

#[test]
fn answers_that_cannot_be_joined_with_text_are_left_out() {
    let protobuf = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; \
                    encoding=delimited";
    let head =
        |extra: &str| format!("HTTP/1.1 200 OK\r\n{extra}\r\ncontent-length: 6\r\n\r\nsecret");
    let (binary, asked) = raw_server(head(&format!("content-type: {protobuf}")));
    let (packed, _packed) = raw_server(head("content-encoding: gzip"));
    let agent = scraping(&[binary, packed]);
    let accept =
        format!("accept: {protobuf};q=0.6,text/plain;q=0.5\r\nuser-agent: Prometheus/3\r\n");
    let (head, body) = agent.raw("/stats/prometheus", &accept);
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let text = String::from_utf8(body).expect("text");
    let samples = exposition::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(
        samples["istio_agent_scrape_failures_total{type=\"application\"}"],
        2.0
    );
    assert_eq!(samples["istio_agent_scrape_up{type=\"application\"}"], 0.0);
    assert_eq!(samples["envoy_x"], 1.0);
    let asked = asked.recv().expect("asked").to_ascii_lowercase();
    assert!(asked.contains("accept: text/plain;q=0.1\r\n"), "{asked}");
    assert!(asked.contains("user-agent: prometheus/3\r\n"), "{asked}");
}

#[test]
fn pages_of_two_formats_are_text_and_bounded() {
    let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let line = "# a comment of an endless page of metrics\n";
    let endless = line.repeat((11 << 20) / line.len());
    let large = Server::start(move |_| (200, "text/plain", endless.clone()));
    let small = Server::start(move |_| (200, open_metrics, "# TYPE b gauge\nb 1\n# EOF\n".into()));
    let agent = scraping(&[large.port, small.port]);
    let (head, body) = agent.raw("/stats/prometheus", "");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let text = String::from_utf8(body).expect("text");
    assert!(
        text.ends_with(&format!("{line}# TYPE b gauge\nb 1\n")),
        "not on a whole line"
    );
    assert!(!text.contains("# EOF"), "an end marker in text");
    assert!((9 << 20..11 << 20).contains(&text.len()), "{}", text.len());
    let (_, body) = agent.raw("/stats/prometheus", "");
    let text = String::from_utf8(body).expect("text");
    let counted = "istio_agent_scrape_failures_total{type=\"application\"} 1\n";
    assert!(text.contains(counted), "the cut page is counted");
}

#[test]
fn scrapes_follow_redirects_on_the_application_s_own_port() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let head = read_head(&mut stream).expect("request");
            let answer = if head.starts_with("GET /metrics/ ") {
                "200 OK\r\ncontent-type: text/plain\r\ncontent-length: 8\r\n\r\nmoved 1\n".into()
            } else {
                let to = format!("http://localhost:{port}/metrics/");
                format!("307 X\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
            };
            let answer = format!("HTTP/1.1 {answer}");
            stream.write_all(answer.as_bytes()).expect("answer");
        }
    });
    let away = format!(
        "HTTP/1.1 302 X\r\nlocation: http://localhost:{port}/metrics/\r\ncontent-length: 0\r\n\r\n"
    );
    let (away, _heads) = raw_server(away);
    let (circle, circled) =
        raw_server("HTTP/1.1 302 X\r\nlocation: /metrics\r\ncontent-length: 0\r\n\r\n");
    let agent = scraping(&[port, away, circle]);
    let (_, body) = agent.raw("/stats/prometheus", "");
    let text = String::from_utf8(body).expect("text");
    assert_eq!(text.matches("moved 1\n").count(), 1, "{text}");
    let failed = "scrape_failures_total{type=\"application\"} 2\n";
    assert!(text.contains(failed), "{text}");
    assert_eq!(circled.try_iter().count(), 11, "a loop ends");
}

#[test]
fn a_silent_application_does_not_cost_the_page() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let agent = scraping(&[silent.local_addr().expect("address").port()]);
    let timeout = "x-prometheus-scrape-timeout-seconds: 0.5\r\n";
    let (_, body) = agent.raw("/stats/prometheus", timeout);
    let text = String::from_utf8(body).expect("text");
    assert!(text.contains("\nenvoy_x 1\n"), "{text}");
}

#[test]
fn the_page_of_the_proxy_can_be_left_out() {
    let proxy = Server::start(|_| (200, "text/plain", "envoy_x 1\n".into()));
    let setup = Setup::new(SLEEPER, free_port())
        .env("ENVOY_PROMETHEUS_PORT", proxy.port.to_string())
        .env("PILOT_AGENT_MERGE_ENVOY_STATS", "false");
    let agent = started(setup);
    let (_, body) = agent.raw("/stats/prometheus", "");
    let text = String::from_utf8(body).expect("text");
    assert!(text.contains("istio_agent_scrapes_total 1"), "{text}");
    assert!(!text.contains("envoy_x"), "{text}");
    assert!(proxy.seen.lock().expect("lock").is_empty());
}

/// An agent with these probes.
fn probing(probers: &serde_json::Value) -> Setup {
    Setup::new(SLEEPER, free_port()).env("ISTIO_KUBE_APP_PROBERS", probers.to_string())
}

#[test]
fn http_probes_forward_headers_and_follow_redirects() {
    let app = Server::start(|path| match path {
        "/moved/here?now=1" => (302, "text/plain", String::new()),
        _ => (200, "text/plain", "fine".to_owned()),
    });
    let (redirecting, _heads) = raw_server(
        "HTTP/1.1 302 Found\r\nlocation: ok\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    );
    let (leaving, _leaving) = raw_server(
        "HTTP/1.1 302 Found\r\nlocation: http://example.com/\r\ncontent-length: 0\r\n\
         connection: close\r\n\r\n",
    );
    let get = |port: u16, path: &str| {
        json!({ "httpGet": {
            "port": port, "path": path, "host": "ignored", "httpHeaders": [{"name": "x", "value": "y"}],
        }})
    };
    let probers = json!({
        "/app-health/c/livez": get(app.port, "healthz?full=1"),
        "/app-health/c/readyz": get(redirecting, "/loop"),
        "/app-lifecycle/c/prestopz": get(leaving, "/"),
    });
    let agent = started(probing(&probers));
    let headers = "x-kubelet: 1\r\nauthorization: Basic abc\r\n";
    let (head, body) = agent.raw("/app-health/c/livez", headers);
    assert!(head.starts_with("http/1.0 200"), "{head}");
    assert_eq!(body, b"fine");
    for want in [
        "GET /healthz?full=1 HTTP",
        "X-Kubelet: 1",
        "Authorization: Basic abc",
    ] {
        assert!(app.saw(want), "{want}");
    }
    assert!(!app.saw("X: y"), "the kubelet sends them to the agent");
    // An endless loop fails; another host only means that the application answers.
    assert_eq!(agent.http("GET", "/app-health/c/readyz").0, 500);
    assert_eq!(agent.http("GET", "/app-lifecycle/c/prestopz").0, 200);
}

#[test]
fn a_probe_is_answered_by_the_status_though_the_body_never_ends() {
    // The server keeps its side open until the client's end: an event stream, as far as a probe sees.
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let streaming = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let head = read_head(&mut stream).expect("request");
            let kept = head.contains("X-Kubelet: 1") && head.contains("Host: ");
            let status = if kept { "200 OK" } else { "400 Lower Case" };
            let answer = format!("HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\n\r\n");
            stream.write_all(answer.as_bytes()).expect("head");
            stream.write_all(b"5\r\nevent\r\n").expect("chunk");
            std::thread::spawn(move || stream.read(&mut [0]).ok());
        }
    });
    let (cut, _heads) = raw_server("HTTP/1.1 503 X\r\ncontent-length: 100\r\n\r\nbroken");
    let get = |port: u16| json!({ "httpGet": { "port": port }, "timeoutSeconds": 1 });
    let agent = started(probing(&json!({
        "/app-health/stream/livez": get(streaming),
        "/app-health/cut/livez": get(cut),
    })));
    let (head, body) = agent.raw("/app-health/stream/livez", "x-kubelet: 1\r\n");
    assert!(head.starts_with("http/1.0 200"), "{head}");
    assert_eq!(body, b"event");
    let (head, body) = agent.raw("/app-health/cut/livez", "");
    assert!(head.starts_with("http/1.0 503"), "{head}");
    assert_eq!(body, b"broken");
}

#[test]
fn grpc_probes_ask_the_health_service() {
    let (port, seen) = health::grpc();
    let probe = |service: &str| {
        json!({
            "grpc": { "port": port, "service": service }, "timeoutSeconds": 5,
        })
    };
    let agent = started(probing(&json!({
        "/app-health/up/readyz": probe("up"),
        "/app-health/down/readyz": probe("down"),
        "/app-health/unknown/readyz": probe("other"),
        "/app-health/never/readyz": { "grpc": { "port": port, "service": "up" } },
    })));
    let (head, _) = agent.raw("/app-health/up/readyz", "user-agent: kube-probe/1.31\r\n");
    assert!(head.starts_with("http/1.0 200"), "{head}");
    let asked = seen.recv().expect("asked");
    assert!(
        asked.contains("/grpc.health.v1.Health/Check kube-probe/1.31 HTTP/2"),
        "{asked}"
    );
    // The last one has no time at all: that is what a timeout of 0 means for gRPC.
    for container in ["down", "unknown", "never"] {
        let path = format!("/app-health/{container}/readyz");
        assert_eq!(agent.http("GET", &path).0, 500, "{container}");
    }
}

#[test]
fn https_probes_trust_any_certificate_and_take_http2() {
    let (port, seen) = health::https();
    let probers = json!({ "/app-health/c/livez": {
        "httpGet": { "port": port, "path": "/live", "scheme": "HTTPS" },
    }});
    for (http2, want) in [("true", "HTTP/2.0"), ("false", "HTTP/1.1")] {
        let agent = started(probing(&probers).env("ISTIO_ENABLE_HTTP2_PROBING", http2));
        assert_eq!(agent.http("GET", "/app-health/c/livez").0, 200);
        let asked = seen.recv().expect("asked");
        assert!(
            asked.starts_with("GET ") && asked.contains("/live "),
            "{asked}"
        );
        assert!(asked.ends_with(want), "{asked}");
    }
}

#[test]
fn a_tcp_probe_ends_without_a_reset_and_leaves_its_port_free() {
    let app = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = app.local_addr().expect("address").port();
    let agent = started(probing(&json!({
        "/app-health/c/readyz": { "tcpSocket": { "port": port } },
    })));
    let seen = std::thread::spawn(move || {
        let (mut stream, peer) = app.accept().expect("a probe");
        let read = stream.read(&mut [0]).map_err(|e| e.kind());
        (peer, read)
    });
    assert_eq!(agent.http("GET", "/app-health/c/readyz").0, 200);
    let (peer, read) = seen.join().expect("thread");
    assert_eq!((peer.ip().to_string().as_str(), read), ("127.0.0.6", Ok(0)));
    // The connection that the probe closed keeps its port from nobody.
    TcpListener::bind(("0.0.0.0", peer.port())).expect("the port is free");
}

#[test]
fn probes_reach_an_application_on_ipv6() {
    let app = TcpListener::bind("[::1]:0").expect("bind");
    let port = app.local_addr().expect("address").port();
    let probers = json!({ "/app-health/c/readyz": { "tcpSocket": { "port": port } } });
    let agent = started(probing(&probers).env("INSTANCE_IP", "::1"));
    assert_eq!(agent.http("GET", "/app-health/c/readyz").0, 200);
}

#[test]
fn old_meshes_probe_localhost() {
    let app = Server::start(|_| (200, "text/plain", "fine".to_owned()));
    let probers = json!({ "/app-health/c/livez": { "httpGet": { "port": app.port } } });
    let setup = probing(&probers)
        .env("INSTANCE_IP", "127.0.0.99")
        .env("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", "true");
    let agent = started(setup);
    // The application listens on 127.0.0.1 only.
    assert_eq!(agent.http("GET", "/app-health/c/livez").0, 200);
    let agent = started(probing(&probers).env("INSTANCE_IP", "127.0.0.99"));
    assert_eq!(agent.http("GET", "/app-health/c/livez").0, 500);
}

#[test]
fn probe_connections_are_kept_only_if_asked() {
    for (keep, want) in [("true", 1), ("false", 2)] {
        let app = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = app.local_addr().expect("address").port();
        let (sender, connections) = mpsc::channel();
        std::thread::spawn(move || {
            for mut stream in app.incoming().flatten() {
                let _ = sender.send(());
                std::thread::spawn(move || {
                    while read_head(&mut stream).is_some() {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        if stream.write_all(answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let probers = json!({ "/app-health/c/livez": { "httpGet": { "port": port } } });
        let setup = probing(&probers).env("ENABLE_PROBE_KEEPALIVE_CONNECTIONS", keep);
        let agent = started(setup);
        for _ in 0..2 {
            assert_eq!(agent.http("GET", "/app-health/c/livez").0, 200);
        }
        assert_eq!(connections.try_iter().count(), want, "keep-alive {keep}");
    }
}

#[test]
fn debug_pages_tell_the_state_and_hide_profiles_on_demand() {
    let mut setup = Setup::new(SLEEPER, ready_admin().port);
    setup.args.push("--profiling=false".to_owned());
    let agent = started(setup);
    assert_eq!(agent.http("GET", "/debug/pprof/").0, 404);
    assert_eq!(agent.http("GET", "/debug/pprof/heap").0, 404);

    let agent = started(Setup::new(SLEEPER, ready_admin().port));
    let (status, text) = agent.http("GET", "/debug/ndsz");
    assert_eq!(status, 404, "no table yet");
    assert!(text.ends_with("\r\n\r\n{}\n"), "{text}");
    let state = eventually("a failed certificate", || {
        let (_, body) = agent.raw("/debug/statusz", "");
        let state: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        state["certificate"]["last_error"]
            .is_string()
            .then_some(state)
    });
    assert_eq!(state["ready"], true, "{state}");
    assert_eq!(state["istiod"]["connected_streams"], 0, "{state}");
    for (path, want) in [
        ("/debug/pprof/", "profile"),
        ("/debug/pprof/heap", "RssAnon:"),
        ("/debug/pprof/threads", "pilot-agent"),
        ("/debug/pprof/cmdline", "proxy\0sidecar"),
    ] {
        let (status, text) = agent.http("GET", path);
        assert_eq!(status, 200, "{path}");
        assert!(text.contains(want), "{path}: {text}");
    }
    assert_eq!(agent.http("GET", "/debug/pprof/profile?seconds=0").0, 400);
    assert_eq!(agent.http("GET", "/debug/pprof/other").0, 404);
    let (head, body) = agent.raw("/debug/pprof/profile?seconds=1", "");
    assert!(head.starts_with("http/1.0 200"), "{head}");
    assert_eq!(body[..2], [0x1f, 0x8b], "gzip");
}
