//! Effective timeouts of one request: route, gRPC deadline, and the overrides internal requests may send.

use std::time::Duration;

use outrigger_config::http::HttpConnectionManager as Config;
use outrigger_config::route::{Forward, RetryPolicy};

use crate::http::headers::Headers;
use crate::http::request::Facts;

/// Timeouts of one request; `None` = off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the end of the request to the end of the response, over all attempts.
    pub global: Option<Duration>,
    /// One attempt up to its response head.
    pub per_try: Option<Duration>,
    /// No byte either way.
    pub idle: Option<Duration>,
    /// Whole stream.
    pub max_duration: Option<Duration>,
}

fn millis(headers: &Headers, name: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(headers.get(name)?).ok()?;
    text.parse().ok().map(Duration::from_millis)
}

/// `grpc-timeout` of a request.
#[must_use]
pub fn grpc_timeout(headers: &Headers) -> Option<Duration> {
    let value = headers.get(b"grpc-timeout")?;
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

impl Timeouts {
    /// Decides the timeouts and takes the override headers off the request.
    #[must_use]
    pub fn new(
        headers: &mut Headers,
        forward: &Forward,
        retry: Option<&RetryPolicy>,
        config: &Config,
        facts: Facts,
    ) -> Self {
        let mut global = forward.timeout;
        let mut per_try = retry.and_then(|r| r.per_try_timeout);
        if facts.grpc
            && let Some(cap) = forward.max_stream_duration.grpc_timeout_header_max
            && let Some(asked) = grpc_timeout(headers)
        {
            global = Some(cap.map_or(asked, |cap| asked.min(cap)));
        }
        if facts.internal {
            let nonzero = |d: Duration| Some(d).filter(|d| !d.is_zero());
            if let Some(t) = millis(headers, b"x-envoy-upstream-rq-timeout-ms") {
                global = nonzero(t);
            }
            if let Some(t) = millis(headers, b"x-envoy-upstream-rq-per-try-timeout-ms") {
                per_try = nonzero(t);
            }
        }
        // A try never outlives the whole.
        let per_try = per_try.filter(|t| global.is_none_or(|g| *t < g));
        for name in [
            &b"x-envoy-upstream-rq-timeout-ms"[..],
            b"x-envoy-upstream-rq-per-try-timeout-ms",
            b"x-envoy-upstream-rq-timeout-alt-response",
            b"x-envoy-upstream-alt-stat-name",
            b"x-envoy-hedge-on-per-try-timeout",
        ] {
            headers.remove(name);
        }
        if let Some(expected) = per_try.or(global).filter(|t| !t.is_zero())
            && !config.suppress_envoy_headers
        {
            let text = expected.as_millis().to_string();
            headers.set(b"x-envoy-expected-rq-timeout-ms", text.as_bytes());
        }
        let route_max = forward.max_stream_duration.max_stream_duration;
        Self {
            global,
            per_try,
            idle: forward.idle_timeout.unwrap_or(config.stream_idle_timeout),
            max_duration: route_max.unwrap_or(config.max_stream_duration),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_follow_the_protocol() {
        let table = [
            ("300m", Some(Duration::from_millis(300))),
            ("1H", Some(Duration::from_secs(3600))),
            ("5S", Some(Duration::from_secs(5))),
            ("123456789S", None),
            ("S", None),
            ("1x", None),
        ];
        for (text, want) in table {
            let mut h = Headers::new();
            h.append(b"grpc-timeout", text.as_bytes());
            assert_eq!(grpc_timeout(&h), want, "{text}");
        }
    }
}
