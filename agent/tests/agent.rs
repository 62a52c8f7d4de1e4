//! The agent as a process: exit codes, supervision of a proxy, and the status server.

#[path = "support/agent.rs"]
mod support;

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use support::{SLEEPER, Server, Setup, admin, eventually, free_port, ready_admin, started};

#[test]
fn commands_end_with_the_documented_codes() {
    for (args, code, stderr) in [
        (&["version"][..], 0, ""),
        (&["version", "-s"], 0, ""),
        (&["help"], 0, ""),
        (&["--unknown", "help"], 0, ""),
        (
            &["nope"],
            255,
            "Error: unknown command \"nope\" for \"pilot-agent\"\n",
        ),
        (&["wait", "--bogus"], 255, "Error: unknown flag: --bogus\n"),
        (
            &["proxy", "sidekick"],
            255,
            "Error: invalid proxy Type: sidekick\n",
        ),
        (
            &["proxy", "--log_output_level=loud"],
            255,
            "Error: unknown log level: loud\n",
        ),
        (
            &["request", "--debug-port", "80", "GET", "x"],
            255,
            "Error: debug port 80 is not in allowed list [15000 15004 15020 15021]\n",
        ),
        (
            &["wait", "--url=ftp://x/"],
            255,
            "Error: invalid --url \"ftp://x/\": only http://host[:port]/path is supported\n",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_pilot-agent"))
            .args(args)
            .output()
            .expect("agent runs");
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), stderr, "{args:?}");
    }
}

#[test]
fn wait_follows_redirects_and_gives_up_in_time() {
    let server = Server::start(|path| match path {
        "/ok" => (200, "text/plain", String::new()),
        _ => (503, "text/plain", "no".to_owned()),
    });
    let wait = |path: &str, extra: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_pilot-agent"))
            .arg("wait")
            .arg(format!("--url=http://127.0.0.1:{}{path}", server.port))
            .args(extra)
            .output()
            .expect("agent runs")
    };
    let output = wait("/ok", &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("Envoy is ready!"));
    let output = wait("/no", &["--timeoutSeconds=1", "--periodMillis=100"]);
    assert_eq!(output.status.code(), Some(255));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let want = "Error: timeout waiting for Envoy proxy to become ready. Last error: HTTP status \
                code 503: no\n";
    assert_eq!(text, want);
}

#[test]
fn wait_names_the_last_answer_rather_than_an_attempt_that_the_end_cut_short() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let server = Server::start(move |_| {
        while !first.swap(false, std::sync::atomic::Ordering::Relaxed) {
            std::thread::park();
        }
        (503, "text/plain", "no".to_owned())
    });
    let output = Command::new(env!("CARGO_BIN_EXE_pilot-agent"))
        .arg("wait")
        .arg(format!("--url=http://127.0.0.1:{}/no", server.port))
        .args([
            "--timeoutSeconds=2",
            "--periodMillis=1",
            "--requestTimeoutMillis=60000",
        ])
        .output()
        .expect("agent runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.ends_with("Last error: HTTP status code 503: no\n"),
        "{text}"
    );
}

#[test]
fn sigterm_drains_then_kills_and_cleans_up() {
    let admin = admin();
    let mut agent = started(Setup::new(SLEEPER, admin.port));
    assert!(agent.path("etc/istio/proxy/envoy-rev.json").exists());
    assert!(agent.path("etc/istio/proxy/grpc-bootstrap.json").exists());
    assert!(agent.path("etc/istio/proxy/XDS").exists());
    assert!(
        agent
            .path("var/run/secrets/workload-spiffe-uds/socket")
            .exists()
    );
    let command = agent.wait_for_line("Envoy command");
    assert!(command.contains("--drain-time-s"), "{command}");
    agent.signal("-TERM");
    assert_eq!(agent.wait(), Some(0));
    assert!(admin.saw("POST /drain_listeners?inboundonly&graceful HTTP"));
    assert!(!agent.path("etc/istio/proxy/envoy-rev.json").exists());
    assert!(!agent.path("etc/istio/proxy/XDS").exists());
    assert!(agent.path("etc/istio/proxy/grpc-bootstrap.json").exists());
}

#[test]
fn status_serves_during_the_drain_and_a_second_signal_ends_it() {
    let admin = ready_admin();
    let setup = Setup::new(SLEEPER, admin.port).config("terminationDrainDuration", json!("60s"));
    let mut agent = started(setup);
    assert_eq!(agent.http("GET", "/healthz/ready").0, 200);
    agent.signal("-TERM");
    agent.wait_for_line("Agent draining Proxy");
    let (status, text) = agent.http("GET", "/healthz/ready");
    assert_eq!(status, 503);
    assert!(text.contains("DRAINING"), "{text}");
    agent.signal("-TERM");
    assert_eq!(agent.wait(), Some(0));
}

#[test]
fn exit_code_tells_how_the_proxy_ended() {
    for (script, code) in [("exit 0", 0), ("exit 3", 1), ("kill -9 $$", 1)] {
        let mut agent = Setup::new(script, free_port()).start();
        assert_eq!(agent.wait(), Some(code), "{script}");
        assert!(!agent.path("etc/istio/proxy/envoy-rev.json").exists());
    }
    let setup = Setup::new("", free_port()).config("binaryPath", json!("/not/there"));
    assert_eq!(setup.start().wait(), Some(1));
}

#[test]
fn the_proxy_does_not_outlive_a_killed_agent() {
    let mut agent = started(Setup::new(SLEEPER, free_port()));
    let line = agent.wait_for_line("proxy runs");
    let pid = line.rsplit(' ').next().expect("pid").to_owned();
    let alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains("(sleep)") && !stat.contains(") Z ")
    };
    eventually("the proxy runs", || alive().then_some(()));
    agent.child.kill().expect("killed");
    eventually("the proxy ends with the agent", || (!alive()).then_some(()));
    // What a killed agent leaves behind must not keep the next one from starting.
    assert!(agent.path("etc/istio/proxy/XDS").exists());
}

#[test]
fn quit_ends_at_once_without_a_drain() {
    let admin = admin();
    let setup = Setup::new(SLEEPER, admin.port).config("terminationDrainDuration", json!("60s"));
    let mut agent = started(setup);
    assert_eq!(agent.http("GET", "/quitquitquit").0, 405);
    let asked = Instant::now();
    assert_eq!(agent.http("POST", "/quitquitquit").0, 200);
    assert_eq!(agent.wait(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert!(!admin.saw("drain_listeners"));
}

#[test]
fn drain_keeps_the_agent_and_replaces_the_later_drain() {
    let admin = admin();
    let mut agent = started(Setup::new(SLEEPER, admin.port));
    assert_eq!(agent.http("POST", "/drain").0, 200);
    assert!(admin.saw("POST /drain_listeners?inboundonly&graceful&skip_exit HTTP"));
    assert!(agent.child.try_wait().expect("wait").is_none());
    agent.signal("-TERM");
    assert_eq!(agent.wait(), Some(0));
    let drains = admin
        .seen
        .lock()
        .expect("lock")
        .iter()
        .filter(|l| l.contains("drain"))
        .count();
    assert_eq!(drains, 1);
}

#[test]
fn a_proxy_that_refuses_to_drain_is_asked_again_at_the_signal() {
    let refuses = Server::start(|_| (503, "text/plain", "no\n".to_owned()));
    let mut agent = started(Setup::new(SLEEPER, refuses.port));
    let (status, text) = agent.http("POST", "/drain");
    assert_eq!(status, 200, "a preStop hook must not fail");
    assert!(text.contains("drain failed: admin answered 503"), "{text}");
    agent.signal("-TERM");
    assert_eq!(agent.wait(), Some(0));
    assert!(refuses.saw("POST /drain_listeners?inboundonly&graceful HTTP"));
}

#[test]
fn zero_connections_end_the_wait() {
    let asked = std::sync::atomic::AtomicU32::new(0);
    let admin = Server::start(move |path| {
        let mut active = 0;
        if path.contains("downstream_cx_active") {
            active = 1 - asked
                .fetch_add(1, std::sync::atomic::Ordering::SeqCst)
                .min(1);
        }
        let body = format!("listener.0.0.0.0_8080.downstream_cx_active: {active}\n");
        (200, "text/plain", body)
    });
    let setup = Setup::new(SLEEPER, admin.port)
        .env("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true")
        .env("MINIMUM_DRAIN_DURATION", "10ms")
        .config("terminationDrainDuration", json!("60s"));
    let mut agent = started(setup);
    agent.wait_for_line("until no connection is left, in all at most 60s");
    agent.signal("-INT");
    agent.wait_for_line("There are still 1 active connections");
    agent.wait_for_line("There are still 0 active connections");
    assert_eq!(agent.wait(), Some(0));
}

#[test]
fn connections_that_stay_do_not_keep_the_agent_for_ever() {
    let admin = Server::start(|_| {
        let body = "listener.0.0.0.0_8080.downstream_cx_active: 1\n".to_owned();
        (200, "text/plain", body)
    });
    let setup = Setup::new(SLEEPER, admin.port)
        .env("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true")
        .env("MINIMUM_DRAIN_DURATION", "10ms")
        .config("terminationDrainDuration", json!("1.5s"));
    let mut agent = started(setup);
    agent.signal("-TERM");
    agent.wait_for_line("There are still 1 active connections");
    agent.wait_for_line("Connections are left after 1.5s, ending all the same");
    assert_eq!(agent.wait(), Some(0));
}

#[test]
fn the_old_variable_of_the_drain_time_counts() {
    let admin = admin();
    let setup = Setup::new(SLEEPER, admin.port)
        .config("terminationDrainDuration", json!("60s"))
        .env("TERMINATION_DRAIN_DURATION_SECONDS", "0");
    let mut agent = started(setup);
    agent.wait_for_line("at termination: drain, wait 0ns");
    agent.signal("-TERM");
    assert_eq!(agent.wait(), Some(0));
    assert!(admin.saw("POST /drain_listeners"));
}

/// The words after `Envoy command:`, without quotes and commas.
fn command_line(setup: Setup) -> String {
    let line = setup.start().wait_for_line("Envoy command: ");
    let words = line.split_once(": [").map_or("", |(_, words)| words);
    words.replace(['"', ',', ']'], "")
}

#[test]
fn the_proxy_gets_the_command_line_of_the_reference() {
    let port = admin().port;
    let folder = tempfile::tempdir().expect("folder");
    let overlay = folder.path().join("custom_bootstrap.json");
    std::fs::write(&overlay, "a: $(HOST_IP)\n").expect("overlay");
    let overlay = overlay.display().to_string();
    let words = command_line(Setup::new(SLEEPER, port));
    let want = "-c ./etc/istio/proxy/envoy-rev.json --drain-time-s 45 --drain-strategy immediate \
                --local-address-ip-version v4 --file-flush-interval-msec 1000 \
                --disable-hot-restart --allow-unknown-static-fields -l warning \
                --skip-deprecated-logs";
    assert!(words.starts_with(want), "{words}");
    for (name, value, flag, there) in [
        (
            "ENVOY_SKIP_DEPRECATED_LOGS",
            "false",
            "--skip-deprecated-logs",
            false,
        ),
        (
            "ISTIO_ENVOY_ENABLE_CORE_DUMP",
            "true",
            "--enable-core-dump",
            true,
        ),
        (
            "ISTIO_BOOTSTRAP_OVERRIDE",
            &overlay,
            r"--config-yaml {\a\:\10.0.0.9\}",
            true,
        ),
        (
            "ISTIO_BOOTSTRAP_OVERRIDE",
            "/not/there",
            "--config-yaml",
            false,
        ),
        ("ISTIO_CPU_LIMIT", "3", "--concurrency 3", true),
    ] {
        let setup = Setup::new(SLEEPER, port).env("HOST_IP", "10.0.0.9");
        let words = command_line(setup.env(name, value));
        assert_eq!(words.contains(flag), there, "{name}={value}: {words}");
    }
    let setup = Setup::new(SLEEPER, port)
        .config("drainDuration", json!("7s"))
        .config("concurrency", json!(0));
    let words = command_line(setup);
    assert!(words.contains("--drain-time-s 7 "), "{words}");
    assert!(!words.contains("--concurrency"), "{words}");
}

#[test]
fn an_empty_grpc_bootstrap_is_neither_written_nor_checked() {
    let setup = Setup::new("", free_port())
        .env("DISABLE_ENVOY", "true")
        .env("GRPC_XDS_BOOTSTRAP", "");
    let agent = setup.start();
    eventually("ready without the file", || {
        (agent.http("GET", "/healthz/ready").0 == 200).then_some(())
    });
    assert!(!agent.path("etc/istio/proxy/grpc-bootstrap.json").exists());
}

#[test]
fn a_root_agent_on_the_dns_port_starts_the_proxy_as_its_usual_user() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: not root");
    }
    let script = "echo proxy runs as $(id -u):$(id -g); exec sleep 60";
    let folder_for_all = |setup: Setup| {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(setup.folder.path(), mode).expect("mode");
        setup
    };
    for (address, want) in [
        ("localhost:53", "proxy runs as 1337:1337"),
        ("localhost:15053", "proxy runs as 0:0"),
    ] {
        let setup = Setup::new(script, admin().port).env("DNS_PROXY_ADDR", address);
        let mut agent = folder_for_all(setup).start();
        agent.wait_for_line(want);
    }
}

#[test]
fn a_machine_without_kubernetes_is_enough() {
    let mut setup = Setup::new(SLEEPER, ready_admin().port);
    for name in [
        "POD_NAME",
        "POD_NAMESPACE",
        "SERVICE_ACCOUNT",
        "INSTANCE_IP",
    ] {
        setup.env.remove(name);
    }
    let certificates = setup.folder.path().join("etc/certs");
    let provisioned = certificates.display().to_string();
    std::fs::create_dir_all(&certificates).expect("folder");
    std::fs::write(certificates.join("root-cert.pem"), "").expect("root");
    let setup = setup
        .env("PROV_CERT", provisioned.clone())
        .env("OUTPUT_CERTS", provisioned);
    let mut agent = started(setup);
    assert_eq!(agent.http("GET", "/healthz/ready").0, 200);
    agent.signal("-TERM");
    assert_eq!(agent.wait(), Some(0));
}

#[test]
fn without_a_proxy_quit_and_drain_work() {
    let setup = Setup::new("", free_port()).env("DISABLE_ENVOY", "true");
    let mut agent = setup.start();
    assert_eq!(agent.http("POST", "/drain").0, 200);
    eventually("ready by the gRPC bootstrap", || {
        (agent.http("GET", "/healthz/ready").0 == 200).then_some(())
    });
    assert_eq!(agent.http("POST", "/quitquitquit").0, 200);
    assert_eq!(agent.wait(), Some(0));
}

#[test]
fn readiness_names_what_is_missing() {
    let stage = std::sync::Arc::new(std::sync::Mutex::new(0));
    let current = stage.clone();
    let admin = Server::start(move |path| {
        let stage = *current.lock().expect("lock");
        let body = match (stage, path.contains("update_success")) {
            (0, true) => "",
            (1, true) => "cluster_manager.cds.update_success: 2\n",
            (2, true) => {
                "cluster_manager.cds.update_success: 2\nlistener_manager.lds.update_rejected: 1\n"
            }
            (_, true) => {
                "cluster_manager.cds.update_success: 2\nlistener_manager.lds.update_success: 1\n"
            }
            (3, false) => "server.state: 2\nlistener_manager.workers_started: 0\n",
            (4, false) => "server.state: 0\nlistener_manager.workers_started: 0\n",
            _ => "server.state: 0\nlistener_manager.workers_started: 1\n",
        };
        (200, "text/plain", body.to_owned())
    });
    let agent = started(Setup::new(SLEEPER, admin.port));
    for (number, want) in [
        (
            0,
            "config not received from XDS server (is Istiod running?): cds updates: 0 successful",
        ),
        (
            1,
            "config not fully received from XDS server: cds updates: 2 successful, 0 rejected",
        ),
        (2, "config received from XDS server, but was rejected"),
        (3, "server is not live, current state is: PRE_INITIALIZING"),
        (4, "workers have not yet started"),
    ] {
        *stage.lock().expect("lock") = number;
        let (status, text) = agent.http("GET", "/healthz/ready");
        assert_eq!(status, 503);
        assert!(text.contains(want), "{text}");
    }
    *stage.lock().expect("lock") = 5;
    assert_eq!(agent.http("GET", "/healthz/ready").0, 200);
    // Believed for life: a worse answer changes nothing.
    *stage.lock().expect("lock") = 0;
    assert_eq!(agent.http("GET", "/healthz/ready").0, 200);
    let (_, page) = agent.http("GET", "/metrics");
    assert!(
        page.contains("istio_agent_startup_duration_seconds "),
        "{page}"
    );
}

#[test]
fn metrics_of_agent_proxy_and_application_are_one_page() {
    let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let proxy = Server::start(|_| (200, "text/plain", "envoy_x 1".to_owned()));
    let app = Server::start(move |_| (200, open_metrics, "app_x 2\n# EOF\n".to_owned()));
    let annotations = json!({ "scrape": "true", "port": app.port.to_string(), "path": "/m" });
    let setup = Setup::new(SLEEPER, free_port())
        .env("ENVOY_PROMETHEUS_PORT", proxy.port.to_string())
        .env("ISTIO_PROMETHEUS_ANNOTATIONS", annotations.to_string());
    let agent = started(setup);
    let (status, page) = agent.http("GET", "/stats/prometheus?usedonly");
    assert_eq!(status, 200);
    assert!(
        page.contains(&format!("content-type: {open_metrics}")),
        "{page}"
    );
    let at = |text: &str| {
        page.find(text)
            .unwrap_or_else(|| panic!("no {text} in {page}"))
    };
    assert!(at("istio_agent_scrapes_total 1") < at("envoy_x 1\n"));
    assert!(at("envoy_x 1\n") < at("app_x 2\n"));
    assert!(proxy.saw("GET /stats/prometheus?usedonly HTTP"));
    assert!(app.saw("GET /m HTTP"));
}

#[test]
fn a_failing_application_is_counted_and_left_out() {
    let proxy = Server::start(|_| (200, "text/plain", "envoy_x 1\n".to_owned()));
    let app = Server::start(|_| (500, "text/plain", "secret\n".to_owned()));
    let good = Server::start(|_| {
        (
            200,
            "application/openmetrics-text",
            "ok_x 1\n# EOF".to_owned(),
        )
    });
    let targets = json!({ "targets": [
        { "port": app.port.to_string() }, { "port": good.port.to_string() },
    ]});
    let setup = Setup::new(SLEEPER, free_port())
        .env("ENVOY_PROMETHEUS_PORT", proxy.port.to_string())
        .env("ISTIO_PROMETHEUS_ANNOTATIONS", targets.to_string());
    let agent = started(setup);
    let (status, page) = agent.http("GET", "/stats/prometheus");
    assert_eq!(status, 200);
    assert!(
        page.contains("ok_x 1\n") && !page.contains("secret"),
        "{page}"
    );
    assert_eq!(page.matches("# EOF").count(), 1, "{page}");
    let counted = "istio_agent_scrape_failures_total{type=\"application\"} 1";
    assert!(page.contains(counted), "{page}");
}

#[test]
fn probes_answer_for_the_application() {
    let app = Server::start(|path| match path {
        "/teapot" => (418, "text/plain", "short and stout".to_owned()),
        "/large" => (200, "text/plain", "x".repeat(20_000)),
        _ => (200, "text/plain", "fine".to_owned()),
    });
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let silent_port = silent.local_addr().expect("address").port();
    let get = |path: &str| json!({ "httpGet": { "path": path, "port": app.port } });
    let probers = json!({
        "/app-health/ok/livez": get("/ok"),
        "/app-health/teapot/livez": get("teapot"),
        "/app-health/large/livez": get("/large"),
        "/app-health/tcp/readyz": { "tcpSocket": { "port": app.port } },
        "/app-health/closed/readyz": { "tcpSocket": { "port": free_port() } },
        "/app-health/grpc/readyz": { "grpc": { "port": app.port }, "timeoutSeconds": 1 },
        "/app-health/slow/readyz": {
            "httpGet": { "path": "/", "port": silent_port }, "timeoutSeconds": 1,
        },
    });
    let setup = Setup::new(SLEEPER, free_port()).env("ISTIO_KUBE_APP_PROBERS", probers.to_string());
    let agent = started(setup);
    for (path, want) in [
        ("/app-health/ok/livez", 200),
        ("/app-health/teapot/livez", 418),
        ("/app-health/tcp/readyz", 200),
        ("/app-health/closed/readyz", 500),
        ("/app-health/grpc/readyz", 500),
        ("/app-health/slow/readyz", 500),
        ("/app-health/unknown/livez", 400),
        ("/nothing", 404),
    ] {
        assert_eq!(agent.http("GET", path).0, want, "{path}");
    }
    let (_, text) = agent.http("GET", "/app-health/large/livez");
    assert_eq!(text.matches('x').count(), 10_240);
    let host = format!("Host: localhost:{}", app.port);
    assert!(
        app.saw(&host),
        "the agent's port in Host becomes the application's"
    );
}

#[test]
fn settings_that_cannot_be_honoured_end_the_start() {
    for (name, value) in [
        ("ISTIO_BOOTSTRAP", "/my/template.json"),
        ("CA_PROVIDER", "GoogleCA"),
        (
            "ISTIO_KUBE_APP_PROBERS",
            r#"{"/x":{"tcpSocket":{"port":1}}}"#,
        ),
        ("ISTIO_PROMETHEUS_ANNOTATIONS", r#"{"port":"15090"}"#),
        ("PROXY_CONFIG_UNUSED", ""),
    ] {
        if name == "PROXY_CONFIG_UNUSED" {
            let setup = Setup::new(SLEEPER, free_port()).config("statusPort", json!(0));
            assert_eq!(setup.start().wait(), Some(255));
            continue;
        }
        let mut agent = Setup::new(SLEEPER, free_port()).env(name, value).start();
        assert_eq!(agent.wait(), Some(255), "{name}");
    }
    let taken = TcpListener::bind("0.0.0.0:0").expect("bind");
    let port = taken.local_addr().expect("address").port();
    let setup = Setup::new(SLEEPER, free_port()).config("statusPort", json!(port));
    assert_eq!(setup.start().wait(), Some(255), "a taken status port");
}

#[test]
fn missing_roots_end_the_start_and_stale_sockets_do_not() {
    let setup = Setup::new(SLEEPER, free_port());
    let root = setup
        .folder
        .path()
        .join("var/run/secrets/istio/root-cert.pem");
    std::fs::remove_file(&root).expect("removed");
    assert_eq!(setup.start().wait(), Some(255));

    let setup = Setup::new(SLEEPER, admin().port);
    for socket in [
        "etc/istio/proxy/XDS",
        "var/run/secrets/workload-spiffe-uds/socket",
    ] {
        let path = setup.folder.path().join(socket);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("folder");
        drop(std::os::unix::net::UnixListener::bind(path).expect("stale socket"));
    }
    let mut agent = started(setup);
    agent.signal("-TERM");
    assert_eq!(agent.wait(), Some(0));
}
