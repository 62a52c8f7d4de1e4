//! The binary between a client and an application on loopback: what only Istio's filters ask for, and connection
//! reuse. What a stock Envoy can do too is compared with one in the differential suite.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(20);

struct Proxy {
    child: Child,
    folder: PathBuf,
    listener: SocketAddr,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Already gone when it died, which the test has noticed by then.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn typed(kind: &str, mut fields: Value) -> Value {
    fields["@type"] = json!(format!("type.googleapis.com/{kind}"));
    fields
}

fn start(name: &str, upstream: SocketAddr, retry: &Value) -> Proxy {
    let folder = std::env::temp_dir().join(format!("outrigger-http-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("loopback")
        .port();
    let address = |a: SocketAddr| json!({"socket_address": {"address": a.ip().to_string(), "port_value": a.port()}});
    let listener: SocketAddr = ([127, 0, 0, 1], port).into();
    let hcm = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({"stat_prefix": "x", "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c", "retry_policy": retry}}]}]},
            "http_filters": [
                {"name": "istio.metadata_exchange", "typed_config": typed("udpa.type.v1.TypedStruct", json!({
                    "type_url": "type.googleapis.com/io.istio.http.peer_metadata.Config",
                    "value": {"downstream_discovery": [{"istio_headers": {}}]}}))},
                {"name": "envoy.filters.http.router", "typed_config":
                    typed("envoy.extensions.filters.http.router.v3.Router", json!({}))}]}),
    );
    let bootstrap = json!({
        "admin": {"address": address(([127, 0, 0, 1], 0).into())},
        "static_resources": {
            "clusters": [{"name": "c", "type": "STATIC", "load_assignment": {"cluster_name": "c",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]}}],
            "listeners": [{"name": "l", "address": address(listener), "filter_chains": [{"filters": [
                {"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}]}]}]}});
    let config = folder.join("bootstrap.json");
    std::fs::write(&config, bootstrap.to_string()).expect("written");
    let child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(["-c".as_ref(), config.as_os_str()])
        .args(["--concurrency", "1", "-l", "error"])
        .spawn()
        .expect("the binary starts");
    let proxy = Proxy {
        child,
        folder,
        listener,
    };
    let end = Instant::now() + DEADLINE;
    while TcpStream::connect(listener).is_err() {
        assert!(Instant::now() < end, "the proxy does not listen");
        std::thread::yield_now();
    }
    proxy
}

/// Reads one head, and says what it was.
fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            return Some(head.to_ascii_lowercase());
        }
        head.push_str(&line);
    }
}

fn request(proxy: &Proxy, head: &str) -> String {
    let mut stream = TcpStream::connect(proxy.listener).expect("connects");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream.write_all(head.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer.to_ascii_lowercase()
}

/// Answers every request head with `answer(nth connection, nth request on it)`; `None` closes instead.
fn application(
    answer: impl Fn(usize, usize) -> Option<&'static str> + Send + 'static,
) -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    let (sender, heads) = mpsc::channel();
    std::thread::spawn(move || {
        for (connection, stream) in listener.incoming().enumerate() {
            let Ok(stream) = stream else { return };
            let mut stream = BufReader::new(stream);
            let mut nth = 0;
            while let Some(head) = read_head(&mut stream) {
                let Some(text) = answer(connection, nth) else {
                    break;
                };
                nth += 1;
                if sender.send(head).is_err()
                    || stream.get_mut().write_all(text.as_bytes()).is_err()
                {
                    break;
                }
            }
        }
    });
    (address, heads)
}

#[test]
fn metadata_headers_of_peers_reach_neither_side() {
    let (upstream, heads) = application(|_, _| {
        Some(
            "HTTP/1.1 200 OK\r\nx-envoy-peer-metadata: a\r\nx-envoy-peer-metadata-id: b\r\ncontent-length: 0\r\n\r\n",
        )
    });
    let proxy = start("metadata", upstream, &Value::Null);
    let answer = request(
        &proxy,
        "GET / HTTP/1.1\r\nhost: a\r\nx-envoy-peer-metadata: c\r\nx-envoy-peer-metadata-id: d\r\n\
         x-kept: 1\r\nconnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    assert!(!answer.contains("peer-metadata"), "{answer}");
    let seen = heads.recv_timeout(DEADLINE).expect("a request");
    assert!(
        seen.contains("x-kept: 1") && !seen.contains("peer-metadata"),
        "{seen}"
    );
}

#[test]
fn a_request_that_meets_a_closing_pooled_connection_is_sent_again() {
    // The first connection answers once and closes on the second request without a byte: the keep-alive race.
    let (upstream, heads) = application(|connection, nth| {
        (connection > 0 || nth == 0).then_some("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    });
    let retry = json!({"retry_on": "reset-before-request", "num_retries": 2});
    let proxy = start("race", upstream, &retry);
    for _ in 0..2 {
        let answer = request(
            &proxy,
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        );
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        heads.recv_timeout(DEADLINE).expect("a request");
    }
}
