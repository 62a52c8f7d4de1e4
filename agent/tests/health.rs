//! Probes of the workload against small applications on loopback.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use outrigger_xds::grpc::ServerOptions;
use outrigger_xds::grpc::server::serve_connection;
use pilot_agent::health::HealthConfig;
use pilot_agent::xds_proxy::Health;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

async fn probe(value: serde_json::Value) -> Result<(), String> {
    probe_at(value, LOCAL).await
}

async fn probe_at(value: serde_json::Value, local: IpAddr) -> Result<(), String> {
    let config = HealthConfig::parse(&value, Some(local)).expect("valid");
    let probe = config.probe.expect("a probe");
    tokio::time::timeout(Duration::from_secs(20), probe.run(config.timeout))
        .await
        .expect("in time")
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((LOCAL, 0)).await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    (listener, port)
}

/// Answers each connection with the next of `answers`; gives the peers and what they sent.
fn answering(
    listener: TcpListener,
    answers: Vec<&'static str>,
) -> mpsc::UnboundedReceiver<(SocketAddr, String)> {
    let (sender, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, peer) = listener.accept().await.expect("accept");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a request"));
            }
            stream.write_all(answer.as_bytes()).await.expect("written");
            let head = String::from_utf8(head).expect("text");
            sender.send((peer, head)).expect("test runs");
        }
    });
    seen
}

#[tokio::test]
async fn http_status_decides_and_the_request_is_as_documented() {
    let (listener, port) = listen().await;
    let mut seen = answering(
        listener,
        vec![
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",
            "garbage\r\n\r\n",
        ],
    );
    let get = json!({"httpGet": {"port": port, "path": "/ok?x", "httpHeaders": [{"name": "A", "value": "b"}]}});
    assert_eq!(probe(get.clone()).await, Ok(()));
    let (peer, head) = seen.recv().await.expect("a request");
    assert_eq!(peer.ip(), IpAddr::from([127, 0, 0, 6]));
    assert!(head.starts_with("GET /ok?x HTTP/1.1\r\n"), "{head}");
    for line in [
        "A: b\r\n".to_owned(),
        format!("Host: 127.0.0.1:{port}\r\n"),
        "User-Agent: istio-probe/1.0\r\n".to_owned(),
        "Connection: close\r\n".to_owned(),
    ] {
        assert!(head.contains(&line), "{line} in {head}");
    }
    assert_eq!(probe(get.clone()).await, Ok(()));
    assert_eq!(probe(get.clone()).await, Err("HTTP status 404".to_owned()));
    assert_eq!(probe(get.clone()).await, Err("HTTP status 503".to_owned()));
    assert!(probe(get).await.is_err());
}

#[tokio::test]
async fn an_application_that_is_silent_or_gone_is_not_healthy() {
    let (listener, port) = listen().await;
    let get = json!({"httpGet": {"port": port}});
    let silent = probe(get.clone()).await;
    assert_eq!(silent, Err("no answer within 1s".to_owned()));
    assert_eq!(probe(json!({"tcpSocket": {"port": port}})).await, Ok(()));
    drop(listener);
    for value in [
        get,
        json!({"tcpSocket": {"port": port}}),
        json!({"tcpSocket": {"port": port, "host": "127.0.0.1"}}),
        json!({"grpc": {"port": port}}),
    ] {
        let error = probe(value).await.expect_err("refused");
        assert!(error.contains("connect to "), "{error}");
    }
}

#[tokio::test]
async fn without_a_host_the_address_of_the_pod_is_probed() {
    let pod = IpAddr::from([127, 0, 0, 2]);
    let listener = TcpListener::bind((pod, 0)).await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    let probed = probe_at(json!({"tcpSocket": {"port": port}}), pod).await;
    assert_eq!(probed, Ok(()));
    let (_, peer) = listener.accept().await.expect("accept");
    assert_eq!(peer.ip(), IpAddr::from([127, 0, 0, 6]));
}

#[tokio::test]
async fn https_is_probed_whatever_the_certificate() {
    let key = rcgen::generate_simple_self_signed(vec!["other.test".to_owned()]).expect("key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![key.cert.der().clone()],
            rustls_pki_types::PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into()),
        )
        .expect("certificate");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (listener, port) = listen().await;
    let server = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("accept");
        let mut stream = acceptor.accept(tcp).await.expect("handshake");
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await.expect("request");
        let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
        stream.write_all(answer).await.expect("written");
        stream.flush().await.expect("flushed");
        // Until the client closes.
        let _ = stream.read(&mut head).await;
    });
    let value = json!({"httpGet": {"port": port, "scheme": "HTTPS"}});
    assert_eq!(probe(value).await, Ok(()));
    server.await.expect("served");
}

#[tokio::test]
async fn commands_are_judged_by_their_exit_code_and_killed_in_time() {
    let run = |words: &[&str]| probe(json!({"exec": {"command": words}}));
    assert_eq!(run(&["/bin/sh", "-c", "exit 0"]).await, Ok(()));
    let error = run(&["/bin/sh", "-c", "exit 3"]).await.expect_err("failed");
    assert_eq!(error, "/bin/sh: exit status: 3");
    let error = run(&["/not/there"]).await.expect_err("missing");
    assert!(error.starts_with("/not/there: No such file"), "{error}");

    let dir = tempfile::tempdir().expect("folder");
    let pid = dir.path().join("pid");
    let line = format!("echo $$ > {}; exec sleep 1000", pid.display());
    let error = run(&["/bin/sh", "-c", &line]).await.expect_err("slow");
    assert_eq!(error, "no answer within 1s");
    let pid = std::fs::read_to_string(pid).expect("it ran");
    let proc = std::path::PathBuf::from(format!("/proc/{}", pid.trim()));
    let gone = async {
        while proc.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .expect("the command is gone");
}

#[tokio::test]
async fn grpc_health_is_healthy_only_when_serving() {
    let (listener, port) = listen().await;
    let mut connections = JoinSet::new();
    connections.spawn(async move {
        let mut round = 0;
        loop {
            let (stream, peer) = listener.accept().await.expect("accept");
            assert_eq!(peer.ip(), IpAddr::from([127, 0, 0, 6]));
            round += 1;
            serve_connection(
                stream,
                ServerOptions::default(),
                move |mut call, responder| async move {
                    assert_eq!(call.path, "/grpc.health.v1.Health/Check");
                    assert_eq!(call.headers["user-agent"], "istio-probe/1.0");
                    let request = call.requests.message().await.expect("no error");
                    assert_eq!(request.as_deref(), Some(&b"\x0a\x03app"[..]));
                    let status: &[u8] = match round {
                        1 => b"\x08\x01",
                        2 => b"\x08\x02",
                        3 => b"",
                        4 => b"\xff",
                        _ => return Err(tonic::Status::unimplemented("no health here")),
                    };
                    let sent = responder.send(status.to_vec().into()).await;
                    sent.map_err(|_| tonic::Status::cancelled("client is gone"))
                },
            )
            .await;
        }
    });
    let ask = || probe(json!({"grpc": {"port": port, "service": "app"}}));
    assert_eq!(ask().await, Ok(()));
    let not_serving = |status| Err(format!("health status {status}, not SERVING"));
    assert_eq!(ask().await, not_serving(2));
    assert_eq!(ask().await, not_serving(0));
    assert!(ask().await.is_err());
    let error = ask().await.expect_err("unimplemented");
    assert!(error.contains("UNIMPLEMENTED: no health here"), "{error}");
}

#[tokio::test]
async fn the_proxy_comes_first_and_only_changes_are_reported() {
    let value = json!({"exec": {"command": ["/bin/sh", "-c", "exit 1"]}, "periodSeconds": 1});
    let config = HealthConfig::parse(&value, None).expect("valid");
    let config = HealthConfig {
        period: Duration::from_millis(5),
        ..config
    };
    let (sender, mut news) = mpsc::unbounded_channel();
    let round = std::cell::Cell::new(0);
    let proxy = || {
        round.set(round.get() + 1);
        std::future::ready(match round.get() {
            1 | 2 => Err("proxy is not ready".to_owned()),
            _ => Ok(()),
        })
    };
    let healthy = HealthConfig {
        probe: None,
        ..config.clone()
    };
    let report = |health| sender.send(health).expect("test runs");
    tokio::select! {
        () = healthy.run(proxy, report) => panic!("runs for ever"),
        () = async {
            let first = news.recv().await;
            assert_eq!(first, Some(Health::Unhealthy("proxy is not ready".to_owned())));
            assert_eq!(news.recv().await, Some(Health::Healthy));
        } => {}
    }
    // The proxy is ready, the application is not.
    tokio::select! {
        () = config.run(|| std::future::ready(Ok(())), report) => panic!("runs for ever"),
        first = news.recv() => {
            let want = Health::Unhealthy("/bin/sh: exit status: 1".to_owned());
            assert_eq!(first, Some(want));
        }
    }
}
