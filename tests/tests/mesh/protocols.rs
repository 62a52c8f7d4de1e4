//! Every kind of traffic that an application may send, through both sidecars.

use bytes::Bytes;
use outrigger_tests::pod::Pod;
use outrigger_tests::probe::{self, Reply, read_raw};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::bench::{
    Bench, ECHO, HELLO, SLEEP, SOON, V1, answer, at, curl, fields, logged, marked, until,
};

/// Both sidecars' log lines of one exchange, by the ports of the service and of the pod.
async fn both(client: &Pod, server: &Pod, ports: (u16, u16), mark: &[&str]) -> [Vec<String>; 2] {
    let service = format!("outbound|{}||echo.sample.svc.cluster.local", ports.0);
    let local = format!("inbound|{}||", ports.1);
    let outbound = logged(client, &[mark, &[service.as_str()]].concat()).await;
    let inbound = logged(server, &[mark, &[local.as_str()]].concat()).await;
    let lines = [fields(&outbound), fields(&inbound)];
    assert_eq!(lines[0][at::CLUSTER], service);
    assert_eq!(lines[1][at::CLUSTER], local);
    assert!(lines[1][at::UPSTREAM_LOCAL].starts_with("127.0.0.6:"));
    let sni = format!("outbound_.{}_._.echo.sample.svc.cluster.local", ports.0);
    assert_eq!(lines[1][at::SNI], sni, "not mTLS");
    lines
}

/// Sends bytes and reads until as many more as sent, beyond `greeting`, are back.
async fn echoed(client: &Pod, port: u16, greeting: &str, size: usize) -> TcpStream {
    let mut stream = client.connect(&format!("10.96.0.12:{port}")).expect("open");
    let hello = read_raw(&mut stream, SOON, |b| b.len() >= greeting.len()).await;
    assert_eq!(String::from_utf8_lossy(&hello.bytes), greeting);
    // Not a token: of one, a first line of HTTP could still become.
    let sent: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
    stream.write_all(&sent).await.expect("sent");
    let back = read_raw(&mut stream, SOON, |b| b.len() >= size).await;
    assert!(
        back.bytes == sent,
        "port {port}: {} of {size} bytes came back, {:?}",
        back.bytes.len(),
        back.end
    );
    stream
}

#[tokio::test]
async fn tcp_passes_whoever_speaks_first() {
    let Some(bench) = Bench::new() else { return };
    let [client, server] = bench.ready([SLEEP, ECHO]).await;
    // A port named TCP, one whose protocol is found out, one on which the server speaks first.
    for (service, port, greeting) in [
        (9090, 19090, ""),
        (90, 19091, ""),
        (9091, 16060, "220 welcome\r\n"),
    ] {
        let size = 4321;
        drop(echoed(&client, service, greeting, size).await);
        let lines = both(&client, &server, (service, port), &["\"- - -\" 0 "]).await;
        for line in lines {
            assert_eq!(line[at::FLAGS], "-", "{line:?}");
            assert_eq!(line[at::RECEIVED], size.to_string(), "{line:?}");
            let sent = size + greeting.len();
            assert_eq!(line[at::SENT], sent.to_string(), "{line:?}");
        }
    }
}

async fn http2(client: &Pod, port: u16, path: &str, grpc: bool, body: &'static [u8]) -> Reply {
    let stream = client.connect(&format!("10.96.0.12:{port}")).expect("open");
    let mut request = http::Request::builder()
        .method(if body.is_empty() { "GET" } else { "POST" })
        .uri(format!("http://echo.sample:{port}{path}"));
    if grpc {
        request = request
            .header("content-type", "application/grpc")
            .header("te", "trailers");
    }
    let request = request.body(()).expect("a request");
    let reply = probe::h2_on(stream, request, Bytes::from_static(body)).await;
    reply.unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[tokio::test]
async fn grpc_passes_with_trailers_and_errors() {
    let Some(bench) = Bench::new() else { return };
    let [client, server] = bench.ready([SLEEP, ECHO]).await;
    let message = b"\0\0\0\0\x05hello";
    let cases: [(&str, &[u8], &str, &[u8]); 4] = [
        (
            "/grpc.health.v1.Health/Check",
            b"\0\0\0\0\0",
            "0",
            &[0, 0, 0, 0, 2, 8, 1],
        ),
        ("/lab.Echo/Unary", message, "0", message),
        ("/lab.Echo/Fail", message, "7", b""),
        ("/lab.Echo/Nothing", message, "12", b""),
    ];
    for (path, sent, status, back) in cases {
        let reply = http2(&client, 7070, path, true, sent).await;
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(reply.body, back, "{path}");
        let grpc = reply.trailers.iter().chain(&reply.headers);
        let grpc = grpc.clone().find(|(n, _)| n == "grpc-status");
        assert_eq!(
            grpc.map(|(_, v)| v.as_str()),
            Some(status),
            "{path}: {reply:?}"
        );
        let mark = format!("\"POST {path} HTTP/2\" 200 ");
        let lines = both(&client, &server, (7070, 17070), &[&mark]).await;
        assert_eq!(lines[0][at::REQUEST_ID], lines[1][at::REQUEST_ID]);
    }
}

#[tokio::test]
async fn http2_with_prior_knowledge_passes_on_http2_and_http1_ports() {
    let Some(bench) = Bench::new() else { return };
    let [client, server, hello] = bench.ready([SLEEP, ECHO, V1]).await;
    // A port named HTTP gets HTTP/1.1, whatever the client speaks.
    for (service, port, version) in [
        (85, 18085, "HTTP/2"),
        (80, 18080, "HTTP/1.1"),
        (81, 18081, "HTTP/2"),
    ] {
        let path = marked("/headers");
        let reply = http2(&client, service, &path, false, b"").await;
        assert_eq!(reply.status, 200, "port {service}: {reply:?}");
        assert!(reply.text().contains(&path), "{}", reply.text());
        both(&client, &server, (service, port), &[&path, " 200 "]).await;
        logged(&client, &[&path, "HTTP/2\" 200 "]).await;
        logged(&server, &[&path, &format!("{version}\" 200 ")]).await;
    }
    let path = marked("/hello");
    let url = format!("{HELLO}{path}");
    // Version 2 is not there: ask until version 1 is drawn.
    let ask = async || curl(&client, &["-i", "--http2-prior-knowledge", &url]).await;
    let fine =
        |text: &Result<String, String>| text.as_ref().is_ok_and(|t| t.starts_with("HTTP/2 200"));
    let text = until("an HTTP/2 answer", ask, fine)
        .await
        .expect("an answer");
    assert_eq!(
        answer(&text).text(),
        "Hello version: v1, instance: helloworld-v1\n"
    );
    logged(&hello, &[&path, "inbound|5000||"]).await;
}

#[tokio::test]
async fn http1_passes_with_bodies_of_every_framing() {
    let Some(bench) = Bench::new() else { return };
    let [client, server] = bench.ready([SLEEP, ECHO]).await;
    let large = "x".repeat(100_000);
    for (body, framing) in [
        ("abc", "x-none: 1"),
        (large.as_str(), "x-none: 1"),
        (large.as_str(), "transfer-encoding: chunked"),
        ("abc", "expect: 100-continue"),
    ] {
        for (service, port) in [(80, 18080), (81, 18081)] {
            let path = marked("/len");
            let url = format!("http://echo.sample:{service}{path}");
            let arguments = ["-i", "-H", framing, "--data-binary", body, &url];
            let text = curl(&client, &arguments).await.expect("an answer");
            let text = text
                .strip_prefix("HTTP/1.1 100 Continue\r\n\r\n")
                .unwrap_or(&text);
            let reply = answer(text);
            assert_eq!(reply.status, 200, "{framing}: {text}");
            assert_eq!(reply.text().trim(), body.len().to_string(), "{framing}");
            let mark = format!("\"POST {path} HTTP/1.1\" 200 ");
            let lines = both(&client, &server, (service, port), &[&mark]).await;
            for line in &lines {
                assert_eq!(line[at::RECEIVED], body.len().to_string(), "{line:?}");
            }
            assert_eq!(lines[0][at::REQUEST_ID], lines[1][at::REQUEST_ID]);
        }
    }
}

#[tokio::test]
async fn a_websocket_upgrade_passes_and_carries_bytes_both_ways() {
    let Some(bench) = Bench::new() else { return };
    let [client, server] = bench.ready([SLEEP, ECHO]).await;
    let path = marked("/misbehave/switch");
    let mut stream = client.connect("10.96.0.12:80").expect("open");
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: echo.sample\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let end = |b: &[u8]| b.windows(4).any(|w| w == b"\r\n\r\n");
    let raw = read_raw(&mut stream, SOON, end).await;
    let text = String::from_utf8_lossy(&raw.bytes).to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 101 "), "{text}");
    assert!(text.contains("upgrade: websocket"), "{text}");
    for word in ["ping", "a longer frame"] {
        stream.write_all(word.as_bytes()).await.expect("sent");
        let back = read_raw(&mut stream, SOON, |b| b.len() >= word.len()).await;
        assert_eq!(String::from_utf8_lossy(&back.bytes), word);
    }
    drop(stream);
    both(&client, &server, (80, 18080), &[&path, " 101 "]).await;
}
