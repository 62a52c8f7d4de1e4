//! The running pair: the agent's own state, and whether the proxy is ready.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::Value;

use super::{Check, span};
use crate::options::Options;
use crate::request::{self, RequestError};

/// Answers of these pages are short.
const MAX_ANSWER: usize = 1 << 20;

pub(super) async fn checks(options: &Options, limit: Duration) -> Vec<Check> {
    let port = options.status.port;
    let mut checks = vec![match port {
        0 => Check::skipped("agent", "the status port is off (statusPort 0)"),
        port => agent(
            get(port, "debug/statusz", limit).await,
            port,
            SystemTime::now(),
        ),
    }];
    let (port, path) = if options.disable_envoy {
        (port, "healthz/ready")
    } else {
        (options.node.ports.status, "healthz/ready")
    };
    if port != 0 {
        checks.push(ready(get(port, path, limit).await, port));
    }
    checks
}

type Answer = Result<(StatusCode, Bytes), RequestError>;

async fn get(port: u16, path: &str, limit: Duration) -> Answer {
    let authority = format!("localhost:{port}");
    let request = request::build(Method::GET, &authority, path, Bytes::new())?;
    request::exchange(&request::localhost(port), request, MAX_ANSWER, limit).await
}

/// `/debug/statusz`: the connection to istiod and the certificate in use.
fn agent(answer: Answer, port: u16, now: SystemTime) -> Check {
    const NAME: &str = "agent";
    let state = match answer {
        Ok((StatusCode::OK, body)) => serde_json::from_slice::<Value>(&body).ok(),
        Ok((status, _)) => {
            let detail = format!("port {port} answers {status}: another agent than this one");
            return Check::skipped(NAME, detail);
        }
        Err(e) => {
            let fix =
                "start the pod's proxy container (or `pilot-agent proxy` on a VM) and read its log";
            return Check::failure(NAME, e.to_string(), fix);
        }
    };
    let Some(state) = state else {
        return Check::skipped(NAME, format!("port {port} answers without a state"));
    };
    let certificate = &state["certificate"];
    if let Some(error) = certificate["last_error"].as_str() {
        let fix = "see the token, ca and clock checks; the agent retries by itself";
        return Check::failure(NAME, format!("no new certificate: {error}"), fix);
    }
    let end = certificate["not_after_unix_seconds"].as_u64();
    let left = end.map(|end| (UNIX_EPOCH + Duration::from_secs(end)).duration_since(now));
    let certificate = match left {
        None => "no certificate yet".to_owned(),
        Some(Ok(left)) => format!("certificate for {}", span(left)),
        Some(Err(past)) => {
            let detail = format!("the certificate expired {} ago", span(past.duration()));
            return Check::failure(NAME, detail, "see the token, ca and clock checks");
        }
    };
    let istiod = &state["istiod"];
    let streams = istiod["connected_streams"].as_u64().unwrap_or(0);
    if let Some(error) = istiod["last_error"].as_str() {
        let fix = "see the dns, istiod and token checks; the agent retries by itself";
        return Check::failure(NAME, format!("not connected to istiod: {error}"), fix);
    }
    Check::ok(NAME, format!("{certificate}; streams to istiod: {streams}"))
}

/// The readiness that the kubelet asks for.
fn ready(answer: Answer, port: u16) -> Check {
    const NAME: &str = "proxy";
    match answer {
        Ok((StatusCode::OK, _)) => Check::ok(NAME, format!("ready on port {port}")),
        Ok((status, body)) => {
            let text = String::from_utf8_lossy(&body);
            let reason = text.lines().next().unwrap_or_default();
            let fix = "see the other checks first; then `pilot-agent request GET init_dump` and the \
                       log of the proxy";
            Check::failure(
                NAME,
                format!("not ready ({}): {reason}", status.as_u16()),
                fix,
            )
        }
        Err(e) => {
            let fix = "read the log of the proxy container: the proxy does not run, or has no \
                       listener for its readiness yet";
            Check::failure(NAME, e.to_string(), fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn the_state_of_the_agent_decides() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        for (state, want, text) in [
            (
                r#"{"certificate":{"not_after_unix_seconds":1060},"istiod":{"connected_streams":1}}"#,
                Verdict::Ok,
                "certificate for 60 s; streams to istiod: 1",
            ),
            (
                r#"{"certificate":{"last_error":"denied"},"istiod":{}}"#,
                Verdict::Failure,
                "denied",
            ),
            (
                r#"{"certificate":{"not_after_unix_seconds":400},"istiod":{}}"#,
                Verdict::Failure,
                "expired 10 min ago",
            ),
            (
                r#"{"certificate":{},"istiod":{"last_error":"refused"}}"#,
                Verdict::Failure,
                "refused",
            ),
            ("no JSON", Verdict::Skipped, "without a state"),
        ] {
            let check = agent(Ok((StatusCode::OK, Bytes::from(state))), 1, now);
            assert_eq!(check.verdict, want, "{state}");
            assert!(check.detail.contains(text), "{}", check.detail);
        }
        let other = agent(Ok((StatusCode::NOT_FOUND, Bytes::new())), 1, now);
        assert_eq!(other.verdict, Verdict::Skipped);
        let reason = Bytes::from("waiting for LDS, 3 s\n");
        let check = ready(Ok((StatusCode::SERVICE_UNAVAILABLE, reason)), 15021);
        assert_eq!(check.verdict, Verdict::Failure);
        assert_eq!(check.detail, "not ready (503): waiting for LDS, 3 s");
    }
}
