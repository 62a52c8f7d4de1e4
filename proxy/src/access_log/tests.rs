use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use outrigger_config::access_log::{AccessLog, LogFormat, Sink as Target};
use outrigger_config::cluster::{Endpoint, HealthStatus, Locality};
use outrigger_config::format::{Format, JsonFormat};

use super::{AccessLogs, LogContext, LogSinks, Missing, SinkOptions, json, render, time};
use crate::error::Flag;
use crate::http::headers::Headers;
use crate::stats::Stats;
use crate::stream_info::{ConnectionInfo, Protocol, StreamInfo};
use crate::upstream::host::{Host, HostAddress};

const ISTIO: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Lines the reference proxy wrote with Istio's format: HTTP, local reply, connect failures, reset, TCP.
const LINES: [&str; 8] = [
    r#"[2026-11-21T04:22:15.890Z] "GET /hello HTTP/1.1" 200 - via_upstream - "-" 0 43 0 0 "-" "curl/7.88.1" "91d50f9d-1fe4-9443-8f99-b3e2d2fd2552" "helloworld.sample:5000" "10.244.1.11:5000" inbound|5000|| 127.0.0.6:45968 10.244.1.11:5000 10.244.1.10:42342 outbound_.5000_.v1_.helloworld.sample.svc.cluster.local default"#,
    r#"[2026-11-21T04:26:25.416Z] "GET / HTTP/1.1" 503 URX,UF upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused} - "delayed_connect_error:_Connection_refused" 0 121 62 - "-" "curl/7.88.1" "467eeb33-d32e-9bce-a4f9-1c3acc6aa680" "10.244.1.11:5999" "10.244.1.11:5999" InboundPassthroughCluster - 10.244.1.11:5999 10.244.1.10:38746 - default"#,
    r#"[2026-11-21T04:26:19.645Z] "GET /status/503 HTTP/1.1" 503 UH no_healthy_upstream - "-" 0 19 8 - "-" "curl/7.88.1" "96adc1dd-3d4c-9e77-8ac1-2a5e2fe9657d" "helloworld.sample:5000" "10.244.1.11:5000" outbound|5000|v1|helloworld.sample.svc.cluster.local 10.244.1.10:47116 10.96.0.11:5000 10.244.1.10:47994 - -"#,
    r#"[2026-11-21T04:26:20.739Z] "GET /slow?s=12 HTTP/1.1" 503 UH no_healthy_upstream - "-" 0 19 0 - "-" "curl/7.88.1" "c7fc8de9-0ca6-9445-9b8b-4f22d92d22fb" "helloworld.sample:5000" "-" outbound|5000|v1|helloworld.sample.svc.cluster.local - 10.96.0.11:5000 10.244.1.10:50380 - -"#,
    r#"[2026-11-21T04:26:21.278Z] "- - -" 0 UF,URX - - "delayed_connect_error:_No_route_to_host" 0 0 3057 - "-" "-" "-" "-" "10.244.9.9:8088" PassthroughCluster - 10.244.9.9:8088 10.244.1.10:33824 - -"#,
    r#"[2026-11-21T04:26:25.407Z] "- - -" 0 - - - "-" 80 297 72 - "-" "-" "-" "-" "10.244.1.11:5999" PassthroughCluster 10.244.1.10:38746 10.244.1.11:5999 10.244.1.10:38742 - -"#,
    r#"[2026-11-21T04:26:25.708Z] "GET / HTTP/1.1" 0 DC downstream_remote_disconnect - "-" 0 0 4998 - "-" "curl/7.88.1" "4ebe5834-3a35-99ea-a87b-9513fbd9960c" "echo.sample" "10.244.1.12:18080" outbound|80||echo.sample.svc.cluster.local - 10.96.0.12:80 10.244.1.10:50728 - default"#,
    r#"[2026-11-21T04:26:32.109Z] "GET /hello HTTP/2" 200 - via_upstream - "-" 0 43 1 1 "-" "curl/7.88.1" "d55cad06-1dd0-90f9-be8a-840880943099" "helloworld.sample:5000" "10.244.2.11:5000" outbound|5000|v2|helloworld.sample.svc.cluster.local 10.244.1.10:41862 10.96.0.11:5000 10.244.1.10:33848 - -"#,
];

/// Fields of a line: words, with quoted parts as one.
fn fields(line: &str) -> Vec<String> {
    let (mut out, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => out.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    out.push(word);
    out
}

fn host(address: &str) -> Arc<Host> {
    let address: SocketAddr = address.parse().expect("literal");
    let endpoint = Endpoint {
        address: outrigger_config::address::Address::Ip(address),
        additional_addresses: Vec::new(),
        hostname: "".into(),
        weight: 1,
        health: HealthStatus::Healthy,
        transport_socket_match: Vec::new(),
        istio_workload: None,
    };
    Arc::new(Host::new(
        HostAddress::Tcp(address),
        &endpoint,
        &Locality::default(),
        0,
        0,
    ))
}

struct Stream {
    info: StreamInfo,
    request: Headers,
    response: Headers,
    trailers: Headers,
}

impl Stream {
    fn context(&self) -> LogContext<'_> {
        LogContext {
            info: &self.info,
            request: &self.request,
            response: &self.response,
            trailers: &self.trailers,
        }
    }
}

fn start_time(text: &str) -> std::time::SystemTime {
    let number = |r: std::ops::Range<usize>| text[r].parse::<u64>().expect("digits");
    // All lines are of 2026-11-21, day 20778 since the epoch.
    let seconds = 20_778 * 86_400 + number(12..14) * 3600 + number(15..17) * 60 + number(18..20);
    UNIX_EPOCH + Duration::from_millis(seconds * 1000 + number(21..24))
}

/// The record a line was written from.
fn stream(line: &str) -> Stream {
    let f = fields(line);
    let value = |i: usize| (f[i] != "-").then(|| f[i].clone());
    let address = |i: usize| value(i).map(|v| v.parse::<SocketAddr>().expect("address"));
    let (local, remote) = (address(18).expect("local"), address(19).expect("remote"));
    let start = Instant::now();
    let connection = Rc::new(ConnectionInfo {
        id: 7,
        start,
        start_time: start_time(&f[0]),
        local,
        direct_local: local,
        local_restored: true,
        remote,
        server_name: value(20).map(Into::into),
        tls: None,
        application_protocols: Vec::new(),
        filter_chain: "".into(),
        original_src_mark: None,
    });
    let mut info = StreamInfo::new(connection, start, start_time(&f[0]));
    let (mut request, mut response) = (Headers::new(), Headers::new());
    let mut head = f[1].split(' ');
    let (method, path, protocol) = (
        head.next().expect("method"),
        head.next().expect("path"),
        head.next().expect("protocol"),
    );
    if method != "-" {
        request.set_method(method.as_bytes());
        request.set_path(path.as_bytes());
        info.protocol = Some(if protocol == "HTTP/2" {
            Protocol::Http2
        } else {
            Protocol::Http11
        });
    }
    info.response_code = f[2].parse().expect("code");
    for flag in [
        Flag::NoHealthyUpstream,
        Flag::DownstreamConnectionTermination,
    ] {
        if f[3] == flag.short() {
            info.flags.set(flag);
        }
    }
    for name in f[3].split(',').filter(|n| ["UF", "URX"].contains(n)) {
        info.flags.set(match name {
            "UF" => Flag::UpstreamConnectionFailure,
            _ => Flag::UpstreamRetryLimitExceeded,
        });
    }
    // The producer's text has spaces where the line has underscores.
    let spaced = |text: String| {
        text.replace("error:_", "error: ")
            .replace("n_r", "n r")
            .replace("o_r", "o r")
            .replace("e_to_h", "e to h")
    };
    info.details = value(4).map(spaced).unwrap_or_default().into();
    info.upstream.transport_failure = value(6).map(spaced);
    info.bytes_received = f[7].parse().expect("number");
    info.bytes_sent = f[8].parse().expect("number");
    info.end = Some(start + Duration::from_millis(f[9].parse().expect("number")));
    if f[10] != "-" {
        response.append(b"x-envoy-upstream-service-time", f[10].as_bytes());
    }
    for (i, name) in [
        (11, &b"x-forwarded-for"[..]),
        (12, b"user-agent"),
        (13, b"x-request-id"),
    ] {
        if f[i] != "-" {
            request.append(name, f[i].as_bytes());
        }
    }
    if f[14] != "-" {
        request.set_authority(f[14].as_bytes());
    }
    info.upstream.host = value(15).map(|v| host(&v));
    info.upstream.cluster = value(16).map(Into::into);
    info.upstream.local = address(17);
    info.route_name = value(21).map(Into::into);
    Stream {
        info,
        request,
        response,
        trailers: Headers::new(),
    }
}

fn rendered(format: &str, omit: bool, stream: &Stream) -> String {
    let format = Format::parse(format, omit).expect("known operators");
    let mut out = Vec::new();
    render(&format, &stream.context(), &mut out, Missing::of(&format));
    String::from_utf8(out).expect("text")
}

#[test]
fn lines_of_the_reference_proxy_come_out_byte_for_byte() {
    for line in LINES {
        assert_eq!(rendered(ISTIO, false, &stream(line)), format!("{line}\n"));
    }
}

#[test]
fn operators_render_as_the_specification_says() {
    let mut s = stream(LINES[0]);
    s.request.append(b"x-many", b"one");
    s.request.append(b"x-many", b"two");
    s.request.set_path(b"/hello?x=1");
    s.info.grpc_status = Some(13);
    s.info.upstream.observability_name = Some("inbound|5000||;".into());
    for (format, expected) in [
        ("%REQ(X-MANY)%", "one"),
        ("%REQ(X-MANY):2%", "on"),
        ("%REQ(NO?X-Many):1%", "o"),
        ("%REQ(NO)%", "-"),
        ("%REQ_WITHOUT_QUERY(:PATH)%", "/hello"),
        ("%START_TIME(%s.%3f)%", "1795234935.890"),
        ("%START_TIME(%Y/%m/%d %H:%M:%S)%", "2026/11/21 04:22:15"),
        ("%GRPC_STATUS% %GRPC_STATUS_NUMBER%", "Internal 13"),
        ("%UPSTREAM_CLUSTER%", "inbound|5000||;"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.244.1.10"),
        ("%DOWNSTREAM_LOCAL_PORT%", "5000"),
        (
            "%UPSTREAM_REMOTE_ADDRESS% %UPSTREAM_REMOTE_PORT%",
            "10.244.1.11:5000 5000",
        ),
        (
            "%CONNECTION_ID% %STREAM_ID%",
            "7 91d50f9d-1fe4-9443-8f99-b3e2d2fd2552",
        ),
        ("%DOWNSTREAM_TLS_VERSION%|%DOWNSTREAM_PEER_URI_SAN%", "-|-"),
        ("%RESPONSE_TX_DURATION%", "-"),
        ("100%%", "100%"),
    ] {
        assert_eq!(rendered(format, false, &s), expected, "{format}");
    }
    assert_eq!(rendered("[%REQ(NO)%]", true, &s), "[]");
    let mut failed = stream(LINES[1]);
    failed.info.flags.set(Flag::NoRouteFound);
    assert_eq!(
        rendered("%RESPONSE_FLAGS_LONG%", false, &failed),
        "UpstreamRetryLimitExceeded,UpstreamConnectionFailure,NoRouteFound"
    );
}

#[test]
fn json_lines_keep_types_and_escape() {
    let mut s = stream(LINES[0]);
    s.request.append(b"x-odd", b"a\"\\\n\x01\xff");
    let fields = serde_json::json!({
        "code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "missing": "%REQ(NO)%",
        "mixed": "%REQ(NO)% %RESPONSE_CODE%", "nested": {"ok": true, "n": 1, "list": ["%PROTOCOL%"]},
        "odd": "%REQ(X-ODD)%",
    });
    let serde_json::Value::Object(fields) = fields else {
        panic!("an object")
    };
    let line = |omit: bool| {
        let format = JsonFormat::parse(&fields, omit).expect("known operators");
        let mut out = Vec::new();
        json::render(&format, &s.context(), &mut out);
        String::from_utf8(out).expect("valid UTF-8")
    };
    assert_eq!(
        line(false),
        "{\"code\":200,\"flags\":null,\"missing\":null,\"mixed\":\"- 200\",\"nested\":{\"list\":[\"HTTP/1.1\"],\"n\":1,\"ok\":true},\"odd\":\"a\\\"\\\\\\n\\u0001\u{fffd}\"}\n"
    );
    assert_eq!(
        line(true),
        "{\"code\":200,\"mixed\":\" 200\",\"nested\":{\"list\":[\"HTTP/1.1\"],\"n\":1,\"ok\":true},\"odd\":\"a\\\"\\\\\\n\\u0001\u{fffd}\"}\n"
    );
}

#[test]
fn calendar_is_right_around_leap_days() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400, "2000-02-29T00:00:00.000Z"),
        (1_709_251_199, "2024-02-29T23:59:59.000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000Z"),
    ] {
        assert_eq!(
            time::rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)),
            text
        );
    }
    let date = time::http_date(UNIX_EPOCH + Duration::from_secs(1_795_235_176));
    assert_eq!(date, "Sat, 21 Nov 2026 04:26:16 GMT");
}

fn logs(path: &std::path::Path, sinks: &Arc<LogSinks>) -> AccessLogs {
    let config = AccessLog {
        sink: Target::File(path.to_str().expect("UTF-8").into()),
        format: LogFormat::Text(Arc::new(Format::parse(ISTIO, false).expect("known"))),
        filter: None,
    };
    AccessLogs::build(&[config], sinks).expect("opens")
}

fn sinks() -> Arc<LogSinks> {
    let options = SinkOptions {
        flush_interval: Duration::from_secs(3600),
        min_size: 1024,
    };
    Arc::new(LogSinks::new(options, &Stats::default()))
}

#[test]
fn lines_of_several_threads_arrive_whole_and_complete() {
    let path = std::env::temp_dir().join(format!("outrigger-lines-{}", std::process::id()));
    let sinks = sinks();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let logs = logs(&path, &sinks);
            scope.spawn(move || {
                let s = stream(LINES[0]);
                for _ in 0..500 {
                    logs.log(&s.context());
                }
            });
        }
    });
    sinks.flush(Duration::from_secs(10));
    let text = std::fs::read_to_string(&path).expect("written");
    std::fs::remove_file(&path).expect("removable");
    assert_eq!(text.lines().count(), 2000);
    assert!(text.lines().all(|l| l == LINES[0]));
}

#[test]
fn reopen_writes_to_the_new_file_and_loses_no_line() {
    let path = std::env::temp_dir().join(format!("outrigger-reopen-{}", std::process::id()));
    let rotated = path.with_extension("1");
    let sinks = sinks();
    let logs = logs(&path, &sinks);
    let s = stream(LINES[4]);
    logs.log(&s.context());
    sinks.flush(Duration::from_secs(10));
    std::fs::rename(&path, &rotated).expect("rotates");
    sinks.reopen();
    logs.log(&s.context());
    sinks.flush(Duration::from_secs(10));
    for file in [&path, &rotated] {
        let text = std::fs::read_to_string(file).expect("written");
        assert_eq!(text, format!("{}\n", LINES[4]));
        std::fs::remove_file(file).expect("removable");
    }
}

#[test]
fn a_reader_that_stops_costs_lines_not_workers() {
    let path = std::env::temp_dir().join(format!("outrigger-fifo-{}", std::process::id()));
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    // Open for reading and writing: it never blocks, and nobody ever reads.
    let reader = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .expect("opens");
    let sinks = sinks();
    let sink = sinks
        .open(&Target::File(path.to_str().expect("UTF-8").into()))
        .expect("opens: there is a reader");
    let line = vec![b'x'; 1024 * 1024];
    for _ in 0..16 {
        sink.write(&line);
    }
    assert!(sink.dropped() > 0);
    std::fs::remove_file(&path).expect("removable");
    drop(reader);
}
