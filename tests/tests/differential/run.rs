//! Runs every case through one proxy and makes the outcome comparable.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use outrigger_tests::mask::Mask;
use outrigger_tests::oracle::{OracleError, Proxy};
use outrigger_tests::probe::{self, End, Reply};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::bootstrap::{self, Upstreams};
use super::cases::{Case, Send};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(8);

/// What a case gave, masked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Outcome {
    status: String,
    headers: Vec<String>,
    body: String,
    end: String,
    log: String,
}

impl Outcome {
    /// The parts that differ, with both values.
    pub(super) fn parts(a: &Self, b: &Self) -> Vec<(&'static str, String, String)> {
        let headers = |o: &Self| o.headers.join(" | ");
        [
            ("status", a.status.clone(), b.status.clone()),
            ("headers", headers(a), headers(b)),
            ("body", a.body.clone(), b.body.clone()),
            ("end", a.end.clone(), b.end.clone()),
            ("log", a.log.clone(), b.log.clone()),
        ]
        .into_iter()
        .filter(|(_, a, b)| a != b)
        .collect()
    }
}

/// One proxy under the whole table.
pub(super) struct Side;

impl Side {
    pub(super) async fn run(
        binary: &Path,
        cases: &[Case],
        folder: &Path,
        up: Upstreams,
        free: &[u16],
    ) -> Result<BTreeMap<String, Outcome>, OracleError> {
        let wrap = |source| OracleError::Start {
            binary: binary.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(wrap)?;
        let (admin, free) = (free[0], &free[1..]);
        let ports: BTreeMap<String, u16> = cases
            .iter()
            .map(Case::id)
            .zip(free.iter().copied())
            .collect();
        let text = bootstrap::build(cases, &ports, admin, folder, up);
        let extra = ["--concurrency", "1"];
        let proxy = Proxy::start(binary, &text, folder, admin, &extra).await?;
        let mut outcomes = BTreeMap::new();
        for case in cases {
            let port = ports[&case.id()];
            let mask = masks(port, up);
            let to = SocketAddr::from(([127, 0, 0, 1], port));
            outcomes.insert(case.id(), exchange(case, to, &mask).await);
        }
        // The logs are whole once the process has ended.
        proxy.terminate().await.map_err(wrap)?;
        for case in cases {
            let log = std::fs::read_to_string(folder.join(format!("{}.log", case.id())));
            let masked = masks(ports[&case.id()], up).apply(&log.unwrap_or_default());
            if let Some(outcome) = outcomes.get_mut(&case.id()) {
                outcome.log = masked;
            }
        }
        Ok(outcomes)
    }
}

fn masks(port: u16, up: Upstreams) -> Mask {
    let ports = [
        (port, "listener"),
        (up.http.port(), "http"),
        (up.tcp.port(), "tcp"),
        (up.reset.port(), "reset"),
        (up.dead.port(), "dead"),
    ];
    Mask::new(&ports).expect("constant patterns")
}

fn describe(reply: &Reply, case: &Case, mask: &Mask) -> Outcome {
    // Durations in headers: presence and name count, not the value.
    let timed = [
        "x-envoy-upstream-service-time",
        "x-envoy-expected-rq-timeout-ms",
    ];
    let line = |(name, value): &(String, String)| {
        let value = if timed.contains(&name.to_ascii_lowercase().as_str()) {
            "<ms>"
        } else {
            value
        };
        mask.apply(&format!("{name}: {value}"))
    };
    let mut headers: Vec<String> = reply.headers.iter().map(line).collect();
    if !case.ordered {
        headers.sort();
    }
    headers.extend(
        reply
            .trailers
            .iter()
            .map(|t| format!("trailer {}", line(t))),
    );
    Outcome {
        status: reply.status.to_string(),
        headers,
        body: mask.apply(&reply.text()),
        ..Outcome::default()
    }
}

async fn exchange(case: &Case, to: SocketAddr, mask: &Mask) -> Outcome {
    let failed = |e: io::Error| Outcome {
        status: format!("{:?}", e.kind()),
        ..Outcome::default()
    };
    let mut stream = match TcpStream::connect(to).await {
        Ok(stream) => stream,
        Err(e) => return failed(e),
    };
    match &case.send {
        Send::H2(method, path, headers, body) => {
            let mut request = http::Request::builder()
                .method(*method)
                .uri(format!("http://a.example{path}"));
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request.body(()).expect("a constant request");
            match probe::h2_on(stream, request, Bytes::from_static(body.as_bytes())).await {
                Ok(reply) => describe(&reply, case, mask),
                Err(e) => failed(e),
            }
        }
        Send::Raw(bytes) => {
            let _ = stream.write_all(bytes).await;
            answer(stream, case, mask).await
        }
        Send::Paused(first, pause, second) => {
            let _ = stream.write_all(first).await;
            // The pause is part of the case: the proxy must see two reads.
            tokio::time::sleep(*pause).await;
            let _ = stream.write_all(second).await;
            answer(stream, case, mask).await
        }
        Send::HalfClose(bytes) => {
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            answer(stream, case, mask).await
        }
    }
}

/// Reads one answer (or, on a TCP listener, everything), then sees how the connection ends.
async fn answer(mut stream: TcpStream, case: &Case, mask: &Mask) -> Outcome {
    let endless = case.tcp.is_some();
    let whole = |bytes: &[u8]| !endless && probe::complete(bytes);
    let wait = if case.linger > Duration::from_secs(1) {
        case.linger
    } else {
        PATIENCE
    };
    let mut raw = probe::read_raw(&mut stream, wait, whole).await;
    if raw.end == End::Open {
        let rest = probe::read_raw(&mut stream, case.linger, |_| false).await;
        raw.bytes.extend(rest.bytes);
        raw.end = rest.end;
    }
    let mut outcome = match probe::parse_to_end(&raw.bytes) {
        Some(reply) if !endless => {
            // 1xx answers before the final one are part of the status.
            let mut status = String::new();
            let mut rest: &[u8] = &raw.bytes;
            while let Some((reply, more)) = probe::parse(rest) {
                if !(100..200).contains(&reply.status) || reply.status == 101 {
                    break;
                }
                status.push_str(&format!("{} ", reply.status));
                rest = more;
            }
            let last = probe::parse_to_end(rest).unwrap_or(reply);
            let mut outcome = describe(&last, case, mask);
            outcome.status = format!("{status}{}", status_line(rest));
            if last.status == 101 {
                let text = String::from_utf8_lossy(rest).into_owned();
                outcome.body = text
                    .split_once("\r\n\r\n")
                    .map(|p| p.1.to_owned())
                    .unwrap_or_default();
            }
            outcome
        }
        _ => Outcome {
            body: mask.apply(&String::from_utf8_lossy(&raw.bytes)),
            ..Outcome::default()
        },
    };
    outcome.end = match raw.end {
        End::Fin | End::Reset if case.either_end => "Closed".to_owned(),
        end => format!("{end:?}"),
    };
    outcome
}

fn status_line(bytes: &[u8]) -> String {
    let end = bytes
        .windows(2)
        .position(|w| w == b"\r\n")
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
