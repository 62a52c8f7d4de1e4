//! Where the proxy's bootstrap comes from, seen from the proxy: a script that prints its arguments
//! and the file it was given.

#[path = "support/agent.rs"]
mod support;

use std::path::PathBuf;

use serde_json::{Value, json};

use support::{Running, Setup, free_port};

/// Prints every argument on a line of its own, and the bootstrap on one line.
const PROXY: &str = r#"for a in "$@"; do printf 'argument <%s>\n' "$a"; done
printf 'document <%s>\n' "$(tr '\n' ' ' < "$2")"
echo proxy runs; exec sleep 60"#;

fn setup() -> Setup {
    Setup::new(PROXY, free_port())
}

fn put(setup: &Setup, name: &str, text: &str) -> PathBuf {
    let path = setup.folder.path().join(name);
    std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
    std::fs::write(&path, text).expect("written");
    path
}

fn inside<'a>(line: &'a str, start: &str) -> &'a str {
    let at = line.find(start).expect("line") + start.len();
    line[at..].trim_end_matches('>')
}

fn document(agent: &mut Running) -> String {
    let line = agent.wait_for_line("document <");
    inside(&line, "document <").trim().to_owned()
}

#[test]
fn a_template_of_the_user_is_rendered_wherever_it_is_named() {
    let template = "{{- /* mine */ -}}\n{\"id\": \"{{ .nodeID }}\",\n \"port\": \
                    {{ .config.ProxyAdminPort }}, \"mine\": \"{{ env \"MINE\" }}\"}\n";
    let by_variable = {
        let setup = setup();
        let path = put(&setup, "mine.json", template);
        setup.env("ISTIO_BOOTSTRAP", path.display().to_string())
    };
    let by_flag = {
        let mut setup = setup();
        let path = put(&setup, "mine.json", template);
        setup
            .args
            .push(format!("--templateFile={}", path.display()));
        setup
    };
    let by_config = {
        let setup = setup();
        let path = put(&setup, "mine.json", template);
        setup.config(
            "proxyBootstrapTemplatePath",
            json!(path.display().to_string()),
        )
    };
    let in_the_image = {
        let setup = setup();
        put(
            &setup,
            "var/lib/istio/envoy/envoy_bootstrap_tmpl.json",
            template,
        );
        setup
    };
    for setup in [by_variable, by_flag, by_config, in_the_image] {
        let admin = setup.proxy_config["proxyAdminPort"].clone();
        let mut agent = setup.env("MINE", "yes").start();
        let found: Value = serde_json::from_str(&document(&mut agent)).expect("JSON");
        let id = "sidecar~127.0.0.1~pod.ns~ns.svc.cluster.local";
        assert_eq!(found, json!({ "id": id, "port": admin, "mine": "yes" }));
    }
}

#[test]
fn a_yaml_template_makes_a_yaml_file_and_a_stray_comma_is_repaired() {
    let setup = setup();
    let path = put(&setup, "mine.yaml.tmpl", "id: {{ .nodeID }} # kept\n");
    let mut agent = setup
        .env("ISTIO_BOOTSTRAP", path.display().to_string())
        .start();
    agent.wait_for_line("argument <./etc/istio/proxy/envoy-rev.yaml>");
    assert!(document(&mut agent).ends_with("# kept"));

    let setup = self::setup();
    let path = put(
        &setup,
        "mine.json",
        "{\n\t\"a\": [{{ range .inclusionSuffix }}\"{{ . }}\",{{ end }}],\n}",
    );
    let mut agent = setup
        .env("ISTIO_BOOTSTRAP", path.display().to_string())
        .start();
    let found: Value = serde_json::from_str(&document(&mut agent)).expect("JSON");
    assert_eq!(found["a"][0], "rbac.allowed");
}

#[test]
fn a_template_that_is_wrong_ends_the_start_with_its_line() {
    for (text, want) in [
        (
            "{\n{{ .config.Nope }}}",
            "line 2: can't evaluate field Nope in type ProxyConfig",
        ),
        (
            "{{ genCA }}",
            "line 1: function \"genCA\" is not supported in bootstrap templates",
        ),
        ("no document", "renders neither JSON nor YAML"),
    ] {
        let setup = setup();
        let path = put(&setup, "mine.json", text);
        let mut agent = setup
            .env("ISTIO_BOOTSTRAP", path.display().to_string())
            .start();
        agent.wait_for_line(want);
        assert_eq!(agent.wait(), Some(255), "{text}");
    }
    let mut agent = setup().env("ISTIO_BOOTSTRAP", "/not/there").start();
    agent.wait_for_line("cannot read bootstrap template /not/there");
    assert_eq!(agent.wait(), Some(255));
}

#[test]
fn a_file_of_the_user_is_passed_on_untouched() {
    let setup = setup();
    let path = put(&setup, "own.json", "{ \"own\": {{ not a template }");
    let name = path.display().to_string();
    let mut agent = setup.config("customConfigFile", json!(name)).start();
    agent.wait_for_line(&format!("argument <{name}>"));
    assert_eq!(document(&mut agent), "{ \"own\": {{ not a template }");
    agent.signal("-TERM");
    assert_eq!(agent.wait(), Some(0));
    assert!(agent.path("own.json").exists(), "not the agent's to remove");
}

/// The config map of `sidecar.istio.io/bootstrapOverride` is named by `ISTIO_BOOTSTRAP_OVERRIDE`.
#[test]
fn an_override_is_given_to_the_proxy_as_json() {
    let setup = setup();
    let text = "tracing: # YAML\n  address: $(HOST_IP)\nadmin: {profile_path: /x}\n";
    let path = put(&setup, "custom_bootstrap.json", text);
    let mut agent = setup
        .env("ISTIO_BOOTSTRAP_OVERRIDE", path.display().to_string())
        .env("HOST_IP", "10.0.0.7")
        .start();
    agent.wait_for_line("argument <--config-yaml>");
    let line = agent.wait_for_line("argument <{");
    let given: Value = serde_json::from_str(inside(&line, "argument <")).expect("JSON");
    let want = json!({ "tracing": { "address": "10.0.0.7" }, "admin": { "profile_path": "/x" } });
    assert_eq!(given, want);
    assert!(
        document(&mut agent).contains("\"node\""),
        "the bootstrap is built as always"
    );
}

#[test]
fn platform_metadata_from_variables_needs_no_server() {
    let mut agent = setup()
        .env("CLOUD_PLATFORM", "")
        .env("GCP_METADATA", "proj|7|cluster|us-east1")
        .env("GCP_ZONE", "us-east1-c")
        .start();
    let found: Value = serde_json::from_str(&document(&mut agent)).expect("JSON");
    let node = &found["node"];
    assert_eq!(node["metadata"]["PLATFORM_METADATA"]["gcp_project"], "proj");
    assert_eq!(
        node["locality"],
        json!({ "region": "us-east1", "zone": "us-east1-c" })
    );
}

#[test]
fn flags_of_the_command_line_reach_the_node_and_the_proxy() {
    let mut setup = setup();
    for flag in [
        "--domain=d.example",
        "--outlierLogPath",
        "/dev/null",
        "--stsPort=7",
        "--concurrency",
        "3",
        "--proxyLogLevel=info,upstream:debug",
        "--serviceCluster=ignored",
        "--vklog=2",
        "--profiling=false",
        "--tokenManagerPlugin=x",
        "--log_caller=default",
        "--unknown",
        "value",
    ] {
        setup.args.push(flag.to_owned());
    }
    let mut agent = setup.start();
    agent.wait_for_line("FLAG: --domain=\"d.example\"");
    let line = agent.wait_for_line("FLAG: --vklog=\"2\"");
    assert!(line.contains("\tinfo\tsrc/main.rs:"), "{line}");
    for argument in [
        "--concurrency",
        "3",
        "-l",
        "info",
        "upstream:debug",
        "--skip-deprecated-logs",
    ] {
        agent.wait_for_line(&format!("argument <{argument}>"));
    }
    let found: Value = serde_json::from_str(&document(&mut agent)).expect("JSON");
    let node = &found["node"];
    assert_eq!(node["id"], "sidecar~127.0.0.1~pod.ns~d.example");
    assert_eq!(node["cluster"], "istio-proxy.ns");
    assert_eq!(node["metadata"]["OUTLIER_LOG_PATH"], "/dev/null");
    assert_eq!(node["metadata"]["STS_PORT"], "7");
    assert_eq!(node["metadata"]["PROXY_CONFIG"]["concurrency"], 3);
}

#[test]
fn a_log_target_may_be_a_file() {
    let mut setup = setup();
    let file = setup.folder.path().join("agent.log");
    setup.args.push(format!("--log_target={}", file.display()));
    setup.args.push("--log_as_json".to_owned());
    let mut agent = setup.start();
    let found: Value = serde_json::from_str(&document(&mut agent)).expect("JSON");
    let format = &found["application_log_config"]["log_format"]["json_format"];
    assert_eq!(format["level"], "%l", "the proxy logs JSON too");
    let text = std::fs::read_to_string(file).expect("log");
    let first: Value = serde_json::from_str(text.lines().next().expect("line")).expect("JSON");
    assert_eq!(first["level"], "info");
}

#[test]
fn files_and_sockets_have_their_modes_and_the_pods_files_are_read() {
    use std::os::unix::fs::PermissionsExt;
    let setup = setup();
    put(
        &setup,
        "etc/istio/pod/labels",
        "app=\"web\"\npod-template-hash=\"1\"\n",
    );
    put(
        &setup,
        "etc/istio/pod/annotations",
        "a.b/c=\"d \\\"e\\\"\"\n",
    );
    let mesh =
        "defaultConfig:\n  tracing:\n    lightstep: {address: \"l:1\", accessToken: secret}\n";
    put(&setup, "etc/istio/config/mesh", mesh);
    let mut agent = setup.start();
    let found: Value = serde_json::from_str(&document(&mut agent)).expect("JSON");
    let metadata = &found["node"]["metadata"];
    assert_eq!(metadata["LABELS"], json!({ "app": "web" }));
    assert_eq!(metadata["ANNOTATIONS"], json!({ "a.b/c": "d \"e\"" }));
    let token = "etc/istio/proxy/lightstep_access_token.txt";
    assert_eq!(
        std::fs::read_to_string(agent.path(token)).expect("token"),
        "secret"
    );
    for (path, mode) in [
        ("etc/istio/proxy/envoy-rev.json", 0o644),
        ("etc/istio/proxy/grpc-bootstrap.json", 0o644),
        ("etc/istio/proxy/XDS", 0o666),
        ("var/run/secrets/workload-spiffe-uds", 0o750),
        ("var/run/secrets/workload-spiffe-uds/socket", 0o666),
        (token, 0o600),
    ] {
        let found = std::fs::metadata(agent.path(path))
            .expect(path)
            .permissions()
            .mode();
        assert_eq!(found & 0o777, mode, "{path}: {found:o}");
    }
    agent.signal("-TERM");
    assert_eq!(agent.wait(), Some(0));
    assert!(!agent.path("etc/istio/proxy/envoy-rev.json").exists());
    assert!(agent.path("etc/istio/proxy/grpc-bootstrap.json").exists());
}

#[test]
fn version_is_printed_in_every_form() {
    let print = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_pilot-agent"))
            .arg("version")
            .args(args)
            .output()
            .expect("agent runs");
        String::from_utf8(output.stdout).expect("text")
    };
    assert_eq!(print(&["--short"]), "client version: 1.31.0\n");
    let text = print(&[]);
    let start = "client version: version.BuildInfo{Version:\"1.31.0\", GitRevision:\"";
    assert!(text.starts_with(start), "{text}");
    let keys = ["version", "revision", "golang_version", "status", "tag"];
    let json: Value = serde_json::from_str(&print(&["-o", "json"])).expect("JSON");
    let found: Vec<&str> = json["clientVersion"]
        .as_object()
        .expect("object")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(found, keys);
    let yaml: Value = serde_saphyr::from_str(&print(&["--output=yaml"])).expect("YAML");
    assert_eq!(yaml, json);
}

#[test]
fn settings_of_the_proxy_become_its_arguments_and_environment() {
    let script = "echo \"arguments $*\"; echo \"ciphers $GRPC_SSL_CIPHER_SUITES\"; exec sleep 60";
    let mut agent = Setup::new(script, free_port())
        .config("drainDuration", json!("60s"))
        .config("fileFlushInterval", json!("2s"))
        .config("fileFlushMinSizeKb", json!(7))
        .env("ISTIO_ENVOY_ENABLE_CORE_DUMP", "true")
        .env("ENVOY_SKIP_DEPRECATED_LOGS", "false")
        .env("ISTIO_CPU_LIMIT", "5")
        .env("COMPLIANCE_POLICY", "fips-140-2")
        .start();
    let line = agent.wait_for_line("arguments ");
    let want = "-c ./etc/istio/proxy/envoy-rev.json --drain-time-s 60 --drain-strategy immediate \
                --local-address-ip-version v4 --file-flush-interval-msec 2000 \
                --disable-hot-restart --allow-unknown-static-fields --file-flush-min-size-kb 7 \
                -l warning --enable-core-dump --concurrency 5";
    assert_eq!(inside(&line, "arguments "), want);
    agent.wait_for_line("ciphers ECDHE-ECDSA-AES128-GCM-SHA256:");
    let bootstrap = std::fs::read_to_string(agent.path("etc/istio/proxy/envoy-rev.json"));
    assert!(
        bootstrap
            .expect("bootstrap")
            .contains("google_grpc_disable_tls_13")
    );
}

/// A server on a unix socket that greets as gRPC servers do, and nothing more.
fn greet(path: PathBuf) {
    use std::io::{Read, Write};
    std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
    let listener = std::os::unix::net::UnixListener::bind(path).expect("bind");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The client may only look; what it makes of the greeting is the test's to see.
            let _ = stream.write_all(b"\0\0\0\x04\0\0\0\0\0");
            let _ = stream.read(&mut [0; 64]);
        }
    });
}

#[test]
fn sockets_of_other_identity_providers_are_found_and_dead_ones_removed() {
    let setup = setup();
    let secrets = setup.folder.path().join("var/run/secrets");
    greet(secrets.join("workload-spiffe-uds/socket"));
    greet(secrets.join("credential-uds/socket"));
    let mut agent = setup.start();
    let found: Value = serde_json::from_str(&document(&mut agent)).expect("JSON");
    let metadata = &found["node"]["metadata"];
    assert_eq!(metadata["credential"], "true");
    assert_eq!(metadata["file-credential"], "true");
    let clusters = found["static_resources"]["clusters"]
        .as_array()
        .expect("clusters");
    assert!(clusters.iter().any(|c| c["name"] == "sds-files-grpc"));
    assert!(
        agent
            .path("var/run/secrets/credential-uds/files-socket")
            .exists()
    );

    let setup = self::setup();
    let dead = setup
        .folder
        .path()
        .join("var/run/secrets/credential-uds/socket");
    std::fs::create_dir_all(dead.parent().expect("parent")).expect("folder");
    drop(std::os::unix::net::UnixListener::bind(&dead).expect("bind"));
    let mut agent = setup.start();
    let found: Value = serde_json::from_str(&document(&mut agent)).expect("JSON");
    assert_eq!(found["node"]["metadata"].get("credential"), None);
    assert!(!dead.exists());
}

#[test]
fn a_silent_metadata_server_does_not_keep_the_proxy_from_starting() {
    // Connections wait in the backlog and are never answered.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = silent.local_addr().expect("address").to_string();
    let mut agent = setup()
        .env("CLOUD_PLATFORM", "gcp")
        .env("GCE_METADATA_HOST", address)
        .start();
    agent.wait_for_line("the named cloud's metadata server did not answer in time");
    let found: Value = serde_json::from_str(&document(&mut agent)).expect("JSON");
    assert_eq!(found["node"]["metadata"].get("PLATFORM_METADATA"), None);
}
