//! What the client is told when no upstream answers.

use std::borrow::Cow;

use super::{AttemptError, Plan};
use crate::error::Flag;
use crate::http::downstream::Downstream;
use crate::http::local_reply::LocalReply;
use crate::http::stream::RequestStream;
use crate::upstream::connect::ConnectError;

pub(super) fn timeout_reply(plan: &Plan<'_>) -> LocalReply {
    plan.cluster.stats().rq_timeout.inc();
    plan.cluster.stats().response(504);
    LocalReply::new(504, "response_timeout")
        .body("upstream request timeout")
        .flag(Flag::UpstreamRequestTimeout)
}

/// The answer when the last attempt failed.
pub(super) fn failure_reply<D: Downstream>(
    s: &mut RequestStream<'_, D>,
    error: &AttemptError,
    retried: bool,
) -> LocalReply {
    let reset = |status: u16, reason: &str, flag: Flag, details: String| {
        let words = reason.replace('_', " ");
        let how = if retried {
            "retried and the latest reset reason"
        } else {
            "reset reason"
        };
        let mut reply = LocalReply::new(status, "")
            .body(format!(
                "upstream connect error or disconnect/reset before headers. {how}: {words}"
            ))
            .flag(flag);
        reply.details = Cow::Owned(details);
        reply
    };
    let before = |reason: &str| format!("upstream_reset_before_response_started{{{reason}}}");
    match error {
        AttemptError::Connect(ConnectError::NoHealthyUpstream) => {
            LocalReply::new(503, "no_healthy_upstream")
                .body("no healthy upstream")
                .flag(Flag::NoHealthyUpstream)
        }
        AttemptError::Connect(ConnectError::Overflow) => {
            reset(503, "overflow", Flag::UpstreamOverflow, before("overflow"))
                .header("x-envoy-overloaded", "true")
        }
        AttemptError::Connect(ConnectError::Timeout) => reset(
            503,
            "connection_timeout",
            Flag::UpstreamConnectionFailure,
            before("connection_timeout"),
        ),
        AttemptError::Connect(ConnectError::Failed(reason)) => {
            s.info.upstream.transport_failure = Some(reason.clone());
            reset(
                503,
                "remote_connection_failure",
                Flag::UpstreamConnectionFailure,
                before(&format!("remote_connection_failure|{reason}")),
            )
        }
        AttemptError::Reset { reset: r, .. } => {
            reset(r.status(), r.reason(), r.flag(), before(r.reason()))
        }
        AttemptError::PerTryTimeout => LocalReply::new(504, "upstream_per_try_timeout")
            .body("upstream request timeout")
            .flag(Flag::UpstreamRequestTimeout),
        AttemptError::Response | AttemptError::Failed(_) => LocalReply::new(503, "via_upstream"),
    }
}

pub(super) fn duration_reply() -> LocalReply {
    LocalReply::new(504, "max_duration_timeout").body("downstream duration timeout")
}

pub(super) fn idle_reply(complete: bool) -> LocalReply {
    let status = if complete { 504 } else { 408 };
    LocalReply::new(status, "stream_idle_timeout")
        .body("stream timeout")
        .flag(Flag::StreamIdleTimeout)
}
