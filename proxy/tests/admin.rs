//! The binary with a static bootstrap: admin pages against the shapes the reference proxy printed, the static
//! metrics listener, signals and start-up errors. Only loopback and ephemeral ports.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(20);

struct Proxy {
    child: Child,
    admin: SocketAddr,
    folder: PathBuf,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Already gone when the test ended it itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn folder(name: &str) -> PathBuf {
    let folder =
        std::env::temp_dir().join(format!("outrigger-admin-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_outrigger"))
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    listener.local_addr().expect("bound").port()
}

fn bootstrap(log: &str, port: u16) -> Value {
    json!({
        "node": {"id": "sidecar~1.1.1.1~a.b~b.svc", "cluster": "a.b", "metadata": {"NAMESPACE": "b"},
            "locality": {"region": "r"}},
        "layered_runtime": {"layers": [
            {"name": "global config", "static_layer": {
                "envoy.reloadable_features.http_reject_path_with_fragment": "false"}},
            {"name": "admin", "admin_layer": {}}]},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {
            "clusters": [{"name": "c", "alt_stat_name": "c;", "type": "STATIC",
                "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": [
                    {"endpoint": {"address": {"socket_address":
                        {"address": "127.0.0.1", "port_value": 9}}}}]}]}}],
            "listeners": [{"name": "l", "address": {"socket_address":
                    {"address": "127.0.0.1", "port_value": port}},
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                        "stat_prefix": "x",
                        "access_log": [{"name": "f", "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                            "path": log,
                            "log_format": {"text_format_source": {"inline_string":
                                "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS%\n"}}}}],
                        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
                            {"match": {"prefix": "/"}, "direct_response": {"status": 204}}]}]},
                        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}]},
    })
}

fn start(name: &str, port: u16) -> Proxy {
    let folder = folder(name);
    let config = folder.join("bootstrap.json");
    let log = folder.join("access.log");
    let document = bootstrap(log.to_str().expect("UTF-8"), port);
    std::fs::write(&config, document.to_string()).expect("written");
    let address = folder.join("admin.address");
    let child = binary()
        .args(["-c".as_ref(), config.as_os_str()])
        .args(["--admin-address-path".as_ref(), address.as_os_str()])
        .args([
            "--concurrency",
            "2",
            "--file-flush-interval-msec",
            "50",
            "--drain-time-s",
            "45",
        ])
        .args([
            "--disable-hot-restart",
            "--component-log-level",
            "misc:error",
            "-l",
            "warning",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let admin = wait(|| std::fs::read_to_string(&address).ok()?.parse().ok());
    let proxy = Proxy {
        child,
        admin,
        folder,
    };
    wait(|| (proxy.get("/ready").status == 200).then_some(()));
    proxy
}

/// Polls until there is a value.
fn wait<T>(mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "nothing after {DEADLINE:?}");
        std::thread::yield_now();
    }
}

fn ended(child: &mut Child) -> ExitStatus {
    wait(|| child.try_wait().expect("a child of ours"))
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn request(address: SocketAddr, method: &str, path: &str) -> Answer {
    let mut stream = TcpStream::connect(address).expect("listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    // HTTP/1.0 so that the body is not chunked.
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    )
    .expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .expect("a status");
    Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

impl Proxy {
    fn get(&self, path: &str) -> Answer {
        request(self.admin, "GET", path)
    }

    fn post(&self, path: &str) -> Answer {
        request(self.admin, "POST", path)
    }

    fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert!(
            answer.head.contains("content-type: application/json"),
            "{path}"
        );
        serde_json::from_str(&answer.body).expect("JSON")
    }
}

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn pages_have_the_shapes_of_the_reference() {
    let proxy = start("shapes", 0);
    let ready = proxy.get("/ready");
    assert_eq!(ready.body, "LIVE\n");
    for header in [
        "content-type: text/plain; charset=UTF-8",
        "cache-control: no-cache, max-age=0",
        "x-content-type-options: nosniff",
        "server: envoy",
    ] {
        assert!(ready.head.contains(header), "{header}: {}", ready.head);
    }
    assert_eq!(proxy.get("/hot_restart_version").body, "disabled");
    assert_eq!(proxy.get("/init_dump").body, "{}\n");
    assert_eq!(proxy.get("/certs").body, "{}\n");

    let info = proxy.json("/server_info");
    assert_eq!(
        keys(&info),
        [
            "version",
            "state",
            "uptime_current_epoch",
            "uptime_all_epochs",
            "hot_restart_version",
            "command_line_options",
            "node"
        ]
    );
    let options = &info["command_line_options"];
    assert_eq!(options["drain_time"], "45s");
    assert_eq!(options["file_flush_interval"], "0.050s");
    assert_eq!(options["component_log_level"], "misc:error");
    assert_eq!(options["concurrency"], 2);
    assert_eq!(keys(options).len(), 39);
    assert_eq!(
        info["node"]["user_agent_build_version"]["version"]["minor_number"],
        40
    );
    assert_eq!(info["node"]["metadata"]["NAMESPACE"], "b");

    assert_eq!(
        keys(&proxy.json("/memory")),
        [
            "allocated",
            "heap_size",
            "pageheap_unmapped",
            "pageheap_free",
            "total_thread_cache",
            "total_physical_bytes"
        ]
    );
    let runtime = proxy.json("/runtime");
    assert_eq!(runtime["layers"], json!(["global config", "admin"]));
    let key = "envoy.reloadable_features.http_reject_path_with_fragment";
    assert_eq!(
        runtime["entries"][key]["layer_values"],
        json!(["false", ""])
    );
    assert_eq!(proxy.post("/runtime_modify?a.b=7").body, "OK\n");
    assert_eq!(proxy.json("/runtime")["entries"]["a.b"]["final_value"], "7");
}

#[test]
fn clusters_and_listeners_have_the_shapes_of_the_reference() {
    let proxy = start("tables", 0);
    let text = proxy.get("/clusters").body;
    let first: Vec<_> = text.lines().take(11).collect();
    assert_eq!(first[0], "c::observability_name::c;");
    assert_eq!(first[1], "c::default_priority::max_connections::1024");
    assert_eq!(first[8], "c::high_priority::max_retries::3");
    assert_eq!(first[9], "c::added_via_api::false");
    assert_eq!(first[10], "c::127.0.0.1:9::cx_active::0");
    assert!(text.ends_with("c::127.0.0.1:9::local_origin_success_rate::-1\n"));

    let clusters = proxy.json("/clusters?format=json");
    let cluster = &clusters["cluster_statuses"][0];
    assert_eq!(
        keys(cluster),
        [
            "name",
            "host_statuses",
            "circuit_breakers",
            "observability_name"
        ]
    );
    let host = &cluster["host_statuses"][0];
    assert_eq!(
        keys(host),
        ["address", "stats", "health_status", "weight", "locality"]
    );
    assert_eq!(
        host["stats"][6],
        json!({"type": "GAUGE", "name": "cx_active"})
    );
    assert_eq!(
        host["health_status"],
        json!({"eds_health_status": "HEALTHY"})
    );
    assert_eq!(proxy.get("/clusters?filter=nosuch").body, "");

    let listener = &proxy.json("/listeners?format=json")["listener_statuses"][0];
    assert_eq!(keys(listener), ["name", "local_address"]);
    assert!(proxy.get("/listeners").body.starts_with("l::127.0.0.1:"));
}

#[test]
fn config_dump_has_its_sections_resources_and_masks() {
    let proxy = start("dump", 0);
    let dump = proxy.json("/config_dump?include_eds");
    let types: Vec<_> = dump["configs"]
        .as_array()
        .expect("sections")
        .iter()
        .map(|c| {
            c["@type"]
                .as_str()
                .unwrap_or("")
                .rsplit('.')
                .next()
                .unwrap_or("")
        })
        .collect();
    assert_eq!(
        types,
        [
            "BootstrapConfigDump",
            "ClustersConfigDump",
            "EndpointsConfigDump",
            "ListenersConfigDump",
            "ScopedRoutesConfigDump",
            "RoutesConfigDump",
            "SecretsConfigDump"
        ]
    );
    let cluster = &dump["configs"][1]["static_clusters"][0];
    assert_eq!(
        cluster["cluster"]["@type"],
        "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    );
    assert_eq!(cluster["cluster"]["alt_stat_name"], "c;");
    assert!(
        cluster["last_updated"]
            .as_str()
            .expect("a time")
            .ends_with('Z')
    );
    assert_eq!(
        dump["configs"][0]["bootstrap"]["node"]["user_agent_name"],
        "envoy"
    );

    let only = proxy.json("/config_dump?resource=static_listeners");
    assert_eq!(
        only["configs"][0]["@type"],
        "type.googleapis.com/envoy.admin.v3.ListenersConfigDump.StaticListener"
    );
    assert_eq!(only["configs"][0]["listener"]["name"], "l");
    let missing = proxy.get("/config_dump?resource=nope");
    assert_eq!(
        (missing.status, missing.body.as_str()),
        (404, "nope not found in config dump")
    );
    let masked = proxy.json("/config_dump?mask=bootstrap.node.id");
    assert_eq!(
        masked["configs"][0]["bootstrap"],
        json!({"node": {"id": "sidecar~1.1.1.1~a.b~b.svc"}})
    );
    let named = proxy.json("/config_dump?name_regex=nosuch.*");
    assert!(named["configs"][1].get("static_clusters").is_none());
}

#[test]
fn methods_unknown_paths_and_log_levels_answer_like_the_reference() {
    let proxy = start("methods", 0);
    let get = proxy.get("/logging");
    assert_eq!(
        (get.status, get.body.as_str()),
        (405, "Method GET not allowed, POST required.")
    );
    let unknown = proxy.get("/nosuch");
    assert_eq!(unknown.status, 404);
    assert!(
        unknown
            .body
            .starts_with("invalid path. admin commands are:\n  /: Admin home page\n")
    );
    assert!(
        proxy
            .post("/logging")
            .body
            .starts_with("active loggers:\n  admin: warning\n")
    );
    assert!(
        proxy
            .post("/logging?paths=admin:debug,http:trace")
            .body
            .contains("  admin: debug\n")
    );
    assert_eq!(proxy.post("/logging?nosuch=debug").status, 400);
    assert_eq!(proxy.post("/healthcheck/fail").body, "OK\n");
    let ready = proxy.get("/ready");
    assert_eq!((ready.status, ready.body.as_str()), (503, "DRAINING\n"));
    assert_eq!(proxy.post("/healthcheck/ok").body, "OK\n");
    assert_eq!(proxy.get("/ready").status, 200);
    let home = proxy.get("/");
    assert!(home.head.contains("text/html") && home.body.contains("/config_dump"));
}

#[test]
fn a_request_is_logged_and_the_readiness_stats_are_those_pilot_agent_reads() {
    let port = free_port();
    let mut proxy = start("request", port);
    let answer = request(SocketAddr::from(([127, 0, 0, 1], port)), "GET", "/a?b=c");
    // HTTP/1.0 is refused by default (proxy.md 3.3); either way one line is written.
    let log = proxy.folder.join("access.log");
    let line = wait(|| {
        std::fs::read_to_string(&log)
            .ok()
            .filter(|t| t.ends_with('\n'))
    });
    assert!(line.contains(&answer.status.to_string()), "{line}");
    let query = "/stats?usedonly&filter=%5E(server%5C.state%7Clistener_manager%5C.workers_started)";
    assert_eq!(
        proxy.get(query).body,
        "listener_manager.workers_started: 1\nserver.state: 0\n"
    );
    assert_eq!(proxy.post("/quitquitquit").body, "OK\n");
    assert_eq!(ended(&mut proxy.child).code(), Some(0));
}

#[test]
fn sigterm_ends_with_code_zero_and_says_so() {
    let mut proxy = start("term", 0);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(proxy.child.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("our child");
    assert_eq!(ended(&mut proxy.child).code(), Some(0));
    let mut text = String::new();
    proxy
        .child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut text)
        .expect("text");
    assert!(text.contains("caught ENVOY_SIGTERM"), "{text}");
}

#[test]
fn start_errors_name_the_field_and_exit_with_one() {
    let folder = folder("errors");
    let config = folder.join("bootstrap.json");
    for (document, expected) in [
        (
            json!({"admin": {"address": {"socket_address": {"address": "nope", "port_value": 1}}}}),
            "admin.address",
        ),
        (json!({"nosuch": 1}), "nosuch"),
        (
            json!({"static_resources": {"clusters": [{"name": "c", "type": "WRONG"}]}}),
            "clusters[0].type",
        ),
    ] {
        std::fs::write(&config, document.to_string()).expect("written");
        let output = binary().arg("-c").arg(&config).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("error initializing config '"), "{text}");
        assert!(text.contains(expected), "{text}");
    }
    let version = binary().arg("--version").output().expect("runs");
    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    assert!(
        text.starts_with('\n') && text.contains("  version: "),
        "{text}"
    );
    assert_eq!(
        text.trim().rsplit(' ').next().map(|v| v.split('/').count()),
        Some(5)
    );
    std::fs::write(&config, "{}").expect("written");
    let validate = binary()
        .args(["--mode", "validate", "-c"])
        .arg(&config)
        .output()
        .expect("runs");
    assert_eq!(
        String::from_utf8_lossy(&validate.stdout),
        format!("configuration '{}' OK\n", config.display())
    );
    std::fs::remove_dir_all(&folder).expect("removable");
}
