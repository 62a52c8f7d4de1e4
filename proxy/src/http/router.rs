//! The router: prepares the request for its cluster, runs attempts with retries and timeouts, relays the answer.

mod attempt;
mod body;
mod reply;
mod response;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use outrigger_config::route::{
    ClusterSpecifier, Forward, HostRewrite, RetryPolicy, WeightedCluster,
};
use tokio::time::Sleep;

use crate::error::Flag;
use crate::http::downstream::Downstream;
use crate::http::headers::Headers;
use crate::http::local_reply::LocalReply;
use crate::http::retry::{self, AttemptFailure};
use crate::http::route::Selected;
use crate::http::stream::{Failure, RequestStream};
use crate::http::timeouts::Timeouts;
use crate::http::upstream::Reset;
use crate::http::{hash, mirror, mutate, redirect};
use crate::text::Decimal;
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::ConnectError;
use crate::upstream::host::Host;
use crate::upstream::outlier::Outcome;
use attempt::attempt;
use body::Body;
use reply::{failure_reply, timeout_reply};

/// How an attempt ended, unless it answered the client.
enum AttemptError {
    Connect(ConnectError),
    Reset {
        reset: Reset,
        /// Some of the request had been sent.
        sent: bool,
        /// A pooled connection that died before one byte of an answer: the request was not processed.
        died_in_pool: bool,
    },
    PerTryTimeout,
    /// The answer is one the policy retries.
    Response,
    /// Nothing to retry.
    Failed(Failure),
}

/// What stays the same over the attempts of a request.
struct Plan<'a> {
    cluster: &'a Arc<Cluster>,
    policy: Option<&'a RetryPolicy>,
    timeouts: Timeouts,
    hash: Option<u64>,
    set_cookie: Option<String>,
    selected: &'a Selected,
    auto_host: bool,
    suppress: bool,
}

/// Timers of a request, created only for timeouts that are on.
struct Timers {
    global: Option<Pin<Box<Sleep>>>,
    max_duration: Option<Pin<Box<Sleep>>>,
}

async fn fire(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(t) => t.await,
        None => std::future::pending().await,
    }
}

/// Forwards a request to its cluster and relays the answer.
///
/// # Errors
/// What the client gets instead.
pub async fn forward<D: Downstream>(
    s: &mut RequestStream<'_, D>,
    selected: &Selected,
    forward: &Forward,
) -> Result<(), Failure> {
    s.hcm.stats.router_rq_total.inc();
    let worker = s.worker;
    let cluster = s.cluster.clone().ok_or_else(|| {
        s.hcm.stats.no_cluster.inc();
        LocalReply::new(forward.cluster_not_found_response_code, "cluster_not_found")
            .flag(Flag::NoClusterFound)
    })?;
    let weighted = match (&forward.cluster, s.weighted) {
        (ClusterSpecifier::Weighted(list), Some(i)) => list.get(i),
        _ => None,
    };
    let policy = forward
        .retry_policy
        .as_deref()
        .or(selected.virtual_host().retry_policy.as_deref());
    let timeouts = Timeouts::new(&mut s.request, forward, policy, &s.hcm.config, s.facts);
    let internal = internal_policy(s, policy);
    let policy = internal.as_ref().or(policy);
    rewrite(s, selected, forward, weighted);
    let hashed = hash::evaluate(&forward.hash_policy, &s.request, &s.info, || {
        worker.random()
    });
    let plan = Plan {
        cluster: &cluster,
        policy,
        timeouts,
        hash: hashed.hash,
        set_cookie: hashed.set_cookie,
        selected,
        auto_host: matches!(forward.host_rewrite, Some(HostRewrite::Auto)),
        suppress: s.hcm.config.suppress_envoy_headers,
    };
    let mirrored = mirror::wanted(forward, worker);
    let body = Body::new(
        s.down,
        s.request_done,
        policy.is_some() || !mirrored.is_empty(),
        s.info.start,
    );
    mirror::send(s, selected, forward, &mirrored);
    run(s, &plan, &body).await
}

/// Overrides of the retry policy that internal requests may send.
fn internal_policy<D: Downstream>(
    s: &mut RequestStream<'_, D>,
    policy: Option<&RetryPolicy>,
) -> Option<RetryPolicy> {
    if !s.facts.internal {
        return None;
    }
    let retries = s
        .request
        .get(b"x-envoy-max-retries")
        .and_then(|v| std::str::from_utf8(v).ok().and_then(|v| v.parse().ok()));
    s.request.remove(b"x-envoy-max-retries");
    let mut policy = policy?.clone();
    policy.num_retries = retries?;
    Some(policy)
}

/// Header changes, then host and path, in Envoy's order.
fn rewrite<D: Downstream>(
    s: &mut RequestStream<'_, D>,
    selected: &Selected,
    forward: &Forward,
    weighted: Option<&WeightedCluster>,
) {
    let levels = selected.header_levels(weighted.map(|w| &w.headers));
    mutate::request(&mut s.request, &levels, &s.info);
    let literal = weighted.and_then(|w| w.host_rewrite_literal.clone());
    let host = match (&literal, &forward.host_rewrite) {
        (Some(host), _) | (None, Some(HostRewrite::Literal(host))) => {
            Some(host.as_bytes().to_vec())
        }
        (None, Some(HostRewrite::Header(name))) => {
            s.request.get(name.as_bytes()).map(<[u8]>::to_vec)
        }
        _ => None,
    };
    if let Some(host) = host.filter(|h| !h.is_empty()) {
        set_host(&mut s.request, &host, forward.append_x_forwarded_host);
    }
    let path = if let Some(with) = &forward.prefix_rewrite {
        Some(redirect::replace_prefix(
            selected.route(),
            s.request.path(),
            with,
        ))
    } else {
        forward
            .regex_rewrite
            .as_ref()
            .map(|r| redirect::replace_regex(r, s.request.path()))
    };
    if let Some(path) = path.filter(|p| p != s.request.path()) {
        let original = s.request.path().to_vec();
        s.request.set(b"x-envoy-original-path", &original);
        s.request.set_path(&path);
    }
}

fn set_host(request: &mut Headers, host: &[u8], append: bool) {
    let old = request.authority().to_vec();
    request.set(b"x-envoy-original-host", &old);
    if append {
        let forwarded = match request.get(b"x-forwarded-host") {
            Some(v) => [v, &b","[..], &old].concat(),
            None => old.clone(),
        };
        request.set(b"x-forwarded-host", &forwarded);
    }
    request.set_authority(host);
}

/// Attempts until one answers or nothing more may be tried.
async fn run<D: Downstream>(
    s: &mut RequestStream<'_, D>,
    plan: &Plan<'_>,
    body: &Body<'_, D>,
) -> Result<(), Failure> {
    let mut timers = Timers {
        global: None,
        max_duration: plan
            .timeouts
            .max_duration
            .map(|t| Box::pin(tokio::time::sleep(t))),
    };
    let mut tried: Vec<Arc<Host>> = Vec::new();
    let mut retries = 0_u32;
    loop {
        s.info.upstream.attempts = retries + 1;
        if plan.selected.virtual_host().include_request_attempt_count {
            let count = Decimal::new(u64::from(retries + 1));
            s.request.set(b"x-envoy-attempt-count", count.as_bytes());
        }
        let result = attempt(s, plan, body, &mut timers, &mut tried, retries).await;
        s.info.bytes_received = body.received.get();
        s.request_done = body.done.get();
        let error = match result {
            Ok(()) => {
                if retries > 0 {
                    plan.cluster.stats().rq_retry_success.inc();
                }
                return Ok(());
            }
            Err(AttemptError::Failed(failure)) => return Err(failure),
            Err(error) => error,
        };
        note_failure(plan.cluster, s, &error);
        let verdict = may_retry(plan, body, &error, retries);
        if verdict == Verdict::Retry {
            retries += 1;
            plan.cluster.stats().rq_retry.inc();
            // The record keeps the last host: if the retry finds none, the log names this one.
            if let Some(host) = &s.info.upstream.host {
                tried.push(Arc::clone(host));
            }
            wait(s, plan, &mut timers, retries).await?;
            continue;
        }
        if verdict == Verdict::LimitExceeded {
            plan.cluster.stats().rq_retry_limit_exceeded.inc();
            s.info.flags.set(Flag::UpstreamRetryLimitExceeded);
        }
        return Err(Failure::Reply(failure_reply(s, &error, retries > 0)));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Retry,
    LimitExceeded,
    No,
}

fn may_retry<D: Downstream>(
    plan: &Plan<'_>,
    body: &Body<'_, D>,
    error: &AttemptError,
    retries: u32,
) -> Verdict {
    let Some(policy) = plan.policy else {
        return Verdict::No;
    };
    let failure = match error {
        AttemptError::Connect(ConnectError::Overflow | ConnectError::NoHealthyUpstream)
        | AttemptError::Failed(_) => return Verdict::No,
        AttemptError::Connect(_) => Some(AttemptFailure::Connect),
        AttemptError::Reset {
            reset,
            sent,
            died_in_pool,
        } => Some(AttemptFailure::Reset(*reset, *sent && !died_in_pool)),
        AttemptError::PerTryTimeout => Some(AttemptFailure::PerTryTimeout),
        AttemptError::Response => None,
    };
    if !failure.is_none_or(|f| retry::on_failure(policy, f)) {
        return Verdict::No;
    }
    if !body.replayable() {
        plan.cluster.stats().retry_or_shadow_abandoned.inc();
        return Verdict::No;
    }
    if retries >= policy.num_retries {
        return Verdict::LimitExceeded;
    }
    if !plan.cluster.retries_available() {
        plan.cluster.stats().rq_retry_overflow.inc();
        return Verdict::No;
    }
    Verdict::Retry
}

/// Waits for the back-off, unless the client leaves or the request times out.
async fn wait<D: Downstream>(
    s: &mut RequestStream<'_, D>,
    plan: &Plan<'_>,
    timers: &mut Timers,
    retries: u32,
) -> Result<(), Failure> {
    let Some(policy) = plan.policy else {
        return Ok(());
    };
    plan.cluster.usage.retries.fetch_add(1, Ordering::Relaxed);
    plan.cluster.stats().rq_retry_backoff_exponential.inc();
    let delay = retry::back_off(policy, retries, s.worker.random());
    let result = tokio::select! {
        () = tokio::time::sleep(delay) => Ok(()),
        gone = s.down.gone(), if s.request_done => Err(Failure::Downstream(gone)),
        () = fire(&mut timers.global) => Err(Failure::Reply(timeout_reply(plan))),
    };
    plan.cluster.usage.retries.fetch_sub(1, Ordering::Relaxed);
    result
}

fn note_failure<D: Downstream>(cluster: &Cluster, s: &RequestStream<'_, D>, error: &AttemptError) {
    let Some(host) = &s.info.upstream.host else {
        return;
    };
    match error {
        AttemptError::Response | AttemptError::Failed(_) => return,
        AttemptError::PerTryTimeout => {
            cluster.stats().rq_per_try_timeout.inc();
            host.stats.rq_timeout.fetch_add(1, Ordering::Relaxed);
        }
        AttemptError::Reset { .. } => {
            cluster.stats().rq_rx_reset.inc();
            host.stats.rq_error.fetch_add(1, Ordering::Relaxed);
        }
        AttemptError::Connect(ConnectError::Overflow | ConnectError::NoHealthyUpstream) => return,
        AttemptError::Connect(_) => {
            cluster.stats().rq_pending_failure_eject.inc();
            host.stats.rq_error.fetch_add(1, Ordering::Relaxed);
        }
    }
    record_outcome(cluster, host, Outcome::LocalFailure, s.worker.random());
}

fn record_outcome(cluster: &Cluster, host: &Host, outcome: Outcome, random: u64) {
    if let Some(outlier) = &cluster.outlier {
        outlier.record(&cluster.hosts.load(), host, outcome, random);
    }
}
