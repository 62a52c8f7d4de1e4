//! The router: prepares the request for its cluster, runs attempts with retries and timeouts, relays the answer.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrigger_config::cluster::UpstreamProtocol;
use outrigger_config::route::{
    ClusterSpecifier, Forward, HostRewrite, RetryPolicy, WeightedCluster,
};
use tokio::time::Sleep;

use crate::error::Flag;
use crate::http::downstream::{BodyFrame, Downstream, DownstreamError};
use crate::http::h1::client::H1Exchange;
use crate::http::h2::client::H2Exchange;
use crate::http::headers::Headers;
use crate::http::local_reply::LocalReply;
use crate::http::request::split_port;
use crate::http::retry::{self, AttemptFailure};
use crate::http::route::Selected;
use crate::http::stream::{Failure, RequestStream, remove_peer_metadata};
use crate::http::timeouts::Timeouts;
use crate::http::upstream::{Exchange, Reset};
use crate::http::{hash, mirror, mutate, redirect};
use crate::stream_info::Protocol;
use crate::text::Decimal;
use crate::tls::context::HandshakeOptions;
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::{ConnectError, ConnectOptions, choose_host};
use crate::upstream::host::Host;
use crate::upstream::load_balancer::Choice;
use crate::upstream::outlier::Outcome;
use crate::upstream::pool::{self, Acquired, Wanted};

/// Bytes of a request body kept for retries and mirrors (Envoy's per-stream buffer default, 1 MiB).
const MAX_REPLAY: usize = 1024 * 1024;

/// The request body, read once and replayed to later attempts.
struct Body<'a, D> {
    down: &'a D,
    done: Cell<bool>,
    trailers: RefCell<Option<Headers>>,
    kept: RefCell<Vec<Bytes>>,
    kept_size: Cell<usize>,
    keep: Cell<bool>,
    received: Cell<u64>,
    finished: Cell<Option<Instant>>,
    activity: Cell<Instant>,
}

/// Why the request could not be passed on.
enum PumpError {
    Downstream(DownstreamError),
    /// The upstream takes no more; what it answered decides.
    Upstream,
}

impl<'a, D: Downstream> Body<'a, D> {
    fn new(down: &'a D, done: bool, keep: bool, start: Instant) -> Self {
        Self {
            down,
            done: Cell::new(done),
            trailers: RefCell::new(None),
            kept: RefCell::default(),
            kept_size: Cell::new(0),
            keep: Cell::new(keep && !done),
            received: Cell::new(0),
            finished: Cell::new(None),
            activity: Cell::new(start),
        }
    }

    /// Whether another attempt could send everything again.
    fn replayable(&self) -> bool {
        self.keep.get() || self.received.get() == 0
    }

    fn note(&self, data: &Bytes) {
        self.received.set(self.received.get() + data.len() as u64);
        self.activity.set(Instant::now());
        if !self.keep.get() {
            return;
        }
        let size = self.kept_size.get() + data.len();
        if size > MAX_REPLAY {
            self.keep.set(false);
            self.kept.borrow_mut().clear();
            return;
        }
        self.kept_size.set(size);
        self.kept.borrow_mut().push(data.clone());
    }

    /// Sends the body to an exchange: what earlier attempts read, then what still comes.
    async fn pump(&self, exchange: &Exchange, tunnel: bool) -> Result<(), PumpError> {
        let kept = self.kept.borrow().clone();
        for data in &kept {
            exchange
                .send_data(data)
                .await
                .map_err(|_| PumpError::Upstream)?;
        }
        while !self.done.get() {
            let mut read = pin!(self.down.read_body());
            // Only when nothing is there yet are the bytes so far worth a write of their own.
            let ready = std::future::poll_fn(|cx| match read.as_mut().poll(cx) {
                Poll::Ready(frame) => Poll::Ready(Some(frame)),
                Poll::Pending => Poll::Ready(None),
            })
            .await;
            let frame = match ready {
                Some(frame) => frame,
                None => {
                    exchange.flush().await.map_err(|_| PumpError::Upstream)?;
                    read.await
                }
            };
            match frame.map_err(PumpError::Downstream)? {
                BodyFrame::Data(data) => {
                    self.note(&data);
                    exchange
                        .send_data(&data)
                        .await
                        .map_err(|_| PumpError::Upstream)?;
                }
                BodyFrame::End(trailers) => {
                    *self.trailers.borrow_mut() = trailers;
                    self.done.set(true);
                    self.finished.set(Some(Instant::now()));
                }
            }
        }
        if tunnel {
            return exchange.shutdown().await.map_err(|_| PumpError::Upstream);
        }
        let trailers = self.trailers.borrow().clone();
        exchange
            .finish(trailers.as_ref())
            .await
            .map_err(|_| PumpError::Upstream)
    }
}

/// Counts a request on its cluster and host while it lives.
struct RequestGuard<'a> {
    cluster: &'a Cluster,
    host: Arc<Host>,
}

impl<'a> RequestGuard<'a> {
    fn new(cluster: &'a Cluster, host: &Arc<Host>) -> Self {
        cluster.usage.requests.fetch_add(1, Ordering::Relaxed);
        host.stats.rq_active.fetch_add(1, Ordering::Relaxed);
        host.stats.rq_total.fetch_add(1, Ordering::Relaxed);
        cluster.stats().rq_total.inc();
        cluster.stats().rq_active.add(1);
        Self {
            cluster,
            host: Arc::clone(host),
        }
    }
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        self.cluster.usage.requests.fetch_sub(1, Ordering::Relaxed);
        self.host.stats.rq_active.fetch_sub(1, Ordering::Relaxed);
        self.cluster.stats().rq_active.add(-1);
    }
}

/// How an attempt ended, unless it answered the client.
enum AttemptError {
    Connect(ConnectError),
    Reset(Reset, bool, bool),
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
        // A pooled connection that died before one byte of an answer: the request was not processed.
        AttemptError::Reset(reset, sent, died_in_pool) => {
            Some(AttemptFailure::Reset(*reset, *sent && !died_in_pool))
        }
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
        AttemptError::Reset(..) => {
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

fn timeout_reply(plan: &Plan<'_>) -> LocalReply {
    plan.cluster.stats().rq_timeout.inc();
    plan.cluster.stats().response(504);
    LocalReply::new(504, "response_timeout")
        .body("upstream request timeout")
        .flag(Flag::UpstreamRequestTimeout)
}

/// The answer when the last attempt failed.
fn failure_reply<D: Downstream>(
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
        AttemptError::Reset(r, ..) => reset(r.status(), r.reason(), r.flag(), before(r.reason())),
        AttemptError::PerTryTimeout => LocalReply::new(504, "upstream_per_try_timeout")
            .body("upstream request timeout")
            .flag(Flag::UpstreamRequestTimeout),
        AttemptError::Response | AttemptError::Failed(_) => LocalReply::new(503, "via_upstream"),
    }
}

/// A connection for the attempt and what is known of it.
async fn connect<D: Downstream>(
    s: &mut RequestStream<'_, D>,
    plan: &Plan<'_>,
    tried: &[Arc<Host>],
) -> Result<(Arc<Host>, Acquired), ConnectError> {
    let cluster = plan.cluster;
    let policy = plan.policy.filter(|p| p.avoid_previous_hosts);
    // Envoy's update_frequency as istiod sends it: priorities are given up from the third attempt on.
    let give_up = plan.policy.is_some_and(|p| p.previous_priorities) && tried.len() >= 2;
    let failed: Vec<u32> = tried
        .iter()
        .filter(|_| give_up)
        .map(|h| h.priority)
        .collect();
    let choice = Choice {
        failed_priorities: &failed,
        hash: plan.hash,
        avoid: if policy.is_some() { tried } else { &[] },
        max_attempts: policy.map_or(0, |p| p.host_selection_retry_max_attempts),
    };
    let worker = s.worker;
    let host = choose_host(worker, cluster, &s.info.connection, &choice)?;
    s.info.upstream.host = Some(Arc::clone(&host));
    if plan.auto_host && !host.hostname.is_empty() {
        set_host(&mut s.request, host.hostname.as_bytes(), false);
    }
    if cluster.requests_overflow() {
        cluster.stats().rq_pending_overflow.inc();
        return Err(ConnectError::Overflow);
    }
    let downstream_h2 = s.info.protocol == Some(Protocol::Http2);
    let wanted = match cluster.config.protocol {
        UpstreamProtocol::Http1 => Wanted::Http1,
        UpstreamProtocol::Http2 => Wanted::Http2,
        UpstreamProtocol::Downstream if downstream_h2 => Wanted::Http2,
        UpstreamProtocol::Downstream => Wanted::Http1,
        UpstreamProtocol::Auto => Wanted::Auto,
    };
    let alpn = s
        .hcm
        .alpn
        .clone()
        .filter(|_| !cluster.config.istio.alpn_override_disabled);
    let alpn = alpn.as_deref().map(|a| match wanted {
        Wanted::Http2 => &a.http2,
        _ if s.info.protocol == Some(Protocol::Http10)
            && cluster.config.protocol == UpstreamProtocol::Downstream =>
        {
            &a.http10
        }
        _ => &a.http11,
    });
    let sni_wanted = cluster.config.auto_sni
        && cluster
            .sockets
            .get(host.transport_socket)
            .is_some_and(|t| t.wants_sni());
    let authority = (sni_wanted || cluster.config.auto_san_validation)
        .then(|| String::from_utf8_lossy(split_port(s.request.authority()).0).into_owned());
    let options = ConnectOptions {
        tls: HandshakeOptions {
            server_name: authority.as_deref().filter(|_| sni_wanted),
            alpn: alpn.map(Vec::as_slice).filter(|a| !a.is_empty()),
            verify_dns_name: authority
                .as_deref()
                .filter(|_| cluster.config.auto_san_validation),
        },
        original_src: s
            .info
            .connection
            .original_src_mark
            .map(|m| (s.info.connection.remote, m)),
    };
    let acquired = pool::acquire(worker, cluster, &host, options, wanted).await?;
    s.info.upstream.local = acquired.local();
    s.info.upstream.tls = acquired.tls();
    s.info.upstream.protocol = Some(acquired.protocol());
    Ok((host, acquired))
}

/// One attempt: connect, send, wait for the answer, relay it.
async fn attempt<D: Downstream>(
    s: &mut RequestStream<'_, D>,
    plan: &Plan<'_>,
    body: &Body<'_, D>,
    timers: &mut Timers,
    tried: &mut [Arc<Host>],
    retries: u32,
) -> Result<(), AttemptError> {
    if body.done.get() && timers.global.is_none() {
        timers.global = plan
            .timeouts
            .global
            .map(|t| Box::pin(tokio::time::sleep(t)));
    }
    let down = s.down;
    let mut per_try = plan
        .timeouts
        .per_try
        .map(|t| Box::pin(tokio::time::sleep(t)));
    let (host, acquired) = {
        let connecting = connect(s, plan, tried);
        tokio::select! {
            biased;
            result = connecting => result.map_err(AttemptError::Connect)?,
            gone = down.gone(), if body.done.get() => {
                return Err(AttemptError::Failed(Failure::Downstream(gone)));
            }
            () = fire(&mut timers.global) => {
                return Err(AttemptError::Failed(timeout_reply(plan).into()));
            }
            () = fire(&mut timers.max_duration) => {
                return Err(AttemptError::Failed(duration_reply().into()));
            }
            () = fire(&mut per_try) => return Err(AttemptError::PerTryTimeout),
        }
    };
    let _counted = RequestGuard::new(plan.cluster, &host);
    let exchange = match acquired {
        Acquired::H1(connection) => Exchange::H1(H1Exchange::new(connection)),
        Acquired::H2(lease) => Exchange::H2(H2Exchange::new(lease)),
    };
    let upgrade = s.upgrade.is_some();
    let no_body = body.done.get() && body.kept.borrow().is_empty() && !upgrade;
    let reset = |exchange: &Exchange, r: Reset| {
        AttemptError::Reset(r, exchange.request_sent(), exchange.died_in_pool())
    };
    exchange
        .send_head(&s.request, no_body, upgrade)
        .await
        .map_err(|r| reset(&exchange, r))?;
    if upgrade {
        exchange.flush().await.map_err(|r| reset(&exchange, r))?;
    }
    let result = {
        // An upgrade's bytes wait for the 101.
        let mut pump = pin!(async {
            if no_body || upgrade {
                Ok(())
            } else {
                body.pump(&exchange, false).await
            }
        });
        let mut pumping = !no_body && !upgrade;
        let head = response_head(
            s,
            plan,
            body,
            timers,
            &mut per_try,
            &exchange,
            pump.as_mut(),
            &mut pumping,
        )
        .await?;
        let status = head.status();
        let retriable = plan.policy.is_some_and(|p| retry::on_response(p, &head));
        if retriable {
            match may_retry(plan, body, &AttemptError::Response, retries) {
                Verdict::Retry => {
                    finish_attempt(plan, &host, status, s.worker.random());
                    return Err(AttemptError::Response);
                }
                Verdict::LimitExceeded => {
                    plan.cluster.stats().rq_retry_limit_exceeded.inc();
                    s.info.flags.set(Flag::UpstreamRetryLimitExceeded);
                }
                Verdict::No => {}
            }
        }
        finish_attempt(plan, &host, status, s.worker.random());
        relay(
            s,
            plan,
            body,
            timers,
            &exchange,
            head,
            pump.as_mut(),
            pumping,
        )
        .await
    };
    s.info.request_tx_end = body.finished.get().or(s.info.request_end);
    if result.is_ok()
        && let Exchange::H1(exchange) = exchange
    {
        match exchange.into_reusable() {
            Some(connection) => pool::release(s.worker, plan.cluster, connection),
            None => s.worker.pools.borrow().notify_returned(),
        }
    }
    result
}

/// Counts the answer of an attempt.
fn finish_attempt(plan: &Plan<'_>, host: &Host, status: u16, random: u64) {
    let counter = if status >= 500 {
        &host.stats.rq_error
    } else {
        &host.stats.rq_success
    };
    counter.fetch_add(1, Ordering::Relaxed);
    plan.cluster.stats().response(status);
    record_outcome(plan.cluster, host, Outcome::Response(status), random);
}

fn duration_reply() -> LocalReply {
    LocalReply::new(504, "max_duration_timeout").body("downstream duration timeout")
}

fn idle_reply(complete: bool) -> LocalReply {
    let status = if complete { 504 } else { 408 };
    LocalReply::new(status, "stream_idle_timeout")
        .body("stream timeout")
        .flag(Flag::StreamIdleTimeout)
}

/// Waits until nothing has moved for `timeout`.
async fn idle<D>(timeout: Option<Duration>, body: &Body<'_, D>) {
    let Some(timeout) = timeout else {
        return std::future::pending().await;
    };
    loop {
        let due = body.activity.get() + timeout;
        if Instant::now() >= due {
            return;
        }
        tokio::time::sleep_until(due.into()).await;
    }
}

/// Waits for the final response head while the request body goes up; relays 1xx heads.
#[allow(
    clippy::too_many_arguments,
    reason = "the pieces of one attempt, borrowed apart from each other"
)]
async fn response_head<D: Downstream>(
    s: &mut RequestStream<'_, D>,
    plan: &Plan<'_>,
    body: &Body<'_, D>,
    timers: &mut Timers,
    per_try: &mut Option<Pin<Box<Sleep>>>,
    exchange: &Exchange,
    mut pump: Pin<&mut impl Future<Output = Result<(), PumpError>>>,
    pumping: &mut bool,
) -> Result<Headers, AttemptError> {
    let request_timeout = s.hcm.config.request_timeout;
    let mut request_deadline = request_timeout
        .filter(|_| !body.done.get())
        .map(|t| Box::pin(tokio::time::sleep_until((s.info.start + t).into())));
    body.activity.set(Instant::now());
    loop {
        if body.done.get() && timers.global.is_none() {
            timers.global = plan
                .timeouts
                .global
                .map(|t| Box::pin(tokio::time::sleep(t)));
        }
        tokio::select! {
            biased;
            head = exchange.recv_head() => {
                let head = head.map_err(|r| {
                    AttemptError::Reset(r, exchange.request_sent(), exchange.died_in_pool())
                })?;
                body.activity.set(Instant::now());
                if head.status() >= 200 || head.status() == 101 {
                    return Ok(head);
                }
                if head.status() == 100 && !s.hcm.config.proxy_100_continue {
                    continue;
                }
                s.info.response_code = head.status();
                s.down.send_informational(&head).await
                    .map_err(|e| AttemptError::Failed(e.into()))?;
            }
            sent = &mut pump, if *pumping => {
                *pumping = false;
                match sent {
                    Ok(()) => {}
                    Err(PumpError::Downstream(e)) => {
                        return Err(AttemptError::Failed(Failure::Downstream(e)));
                    }
                    // The answer may be there already: reading decides.
                    Err(PumpError::Upstream) => {}
                }
            }
            gone = s.down.gone(), if body.done.get() && s.upgrade.is_none() => {
                plan.cluster.stats().rq_cancelled.inc();
                return Err(AttemptError::Failed(Failure::Downstream(gone)));
            }
            () = fire(per_try) => return Err(AttemptError::PerTryTimeout),
            () = fire(&mut timers.global) => {
                if let Some(host) = &s.info.upstream.host {
                    host.stats.rq_timeout.fetch_add(1, Ordering::Relaxed);
                    record_outcome(plan.cluster, host, Outcome::LocalFailure, s.worker.random());
                }
                return Err(AttemptError::Failed(timeout_reply(plan).into()));
            }
            () = fire(&mut request_deadline), if !body.done.get() => {
                s.hcm.stats.rq_timeout.inc();
                let reply = LocalReply::new(408, "request_overall_timeout");
                return Err(AttemptError::Failed(reply.body("request timeout").close().into()));
            }
            () = fire(&mut timers.max_duration) => {
                s.hcm.stats.rq_max_duration_reached.inc();
                return Err(AttemptError::Failed(duration_reply().into()));
            }
            () = idle(plan.timeouts.idle, body) => {
                s.hcm.stats.rq_idle_timeout.inc();
                return Err(AttemptError::Failed(idle_reply(body.done.get()).into()));
            }
        }
    }
}

/// Makes the upstream's head ours.
fn prepare_response<D: Downstream>(
    s: &mut RequestStream<'_, D>,
    plan: &Plan<'_>,
    mut head: Headers,
    request_end: Instant,
    response_start: Instant,
) {
    let upgraded = head.status() == 101;
    head.retain(|name, _| match name {
        b"connection" | b"upgrade" => upgraded,
        b"keep-alive" | b"proxy-connection" => false,
        _ => true,
    });
    if s.hide_peer_metadata {
        remove_peer_metadata(&mut head);
    }
    s.info.response_start = Some(response_start);
    s.info.details = Cow::Borrowed("via_upstream");
    if !plan.suppress && s.upgrade.is_none() {
        let millis = response_start.duration_since(request_end).as_millis() as u64;
        let millis = Decimal::new(millis);
        head.set(b"x-envoy-upstream-service-time", millis.as_bytes());
    }
    if plan
        .selected
        .virtual_host()
        .include_attempt_count_in_response
    {
        let count = Decimal::new(u64::from(s.info.upstream.attempts));
        head.set(b"x-envoy-attempt-count", count.as_bytes());
    }
    if let Some(cookie) = &plan.set_cookie {
        head.append(b"set-cookie", cookie.as_bytes());
    }
    s.info.grpc_status = grpc_status(&head);
    s.response = head;
    s.change_response(plan.selected);
    s.cors.encode(&mut s.response);
    s.finish_head();
}

fn grpc_status(headers: &Headers) -> Option<u32> {
    std::str::from_utf8(headers.get(b"grpc-status")?)
        .ok()?
        .parse()
        .ok()
}

/// Relays the answer while the rest of the request goes up.
#[allow(
    clippy::too_many_arguments,
    reason = "the pieces of one attempt, borrowed apart from each other"
)]
async fn relay<D: Downstream>(
    s: &mut RequestStream<'_, D>,
    plan: &Plan<'_>,
    body: &Body<'_, D>,
    timers: &mut Timers,
    exchange: &Exchange,
    head: Headers,
    mut pump: Pin<&mut impl Future<Output = Result<(), PumpError>>>,
    mut pumping: bool,
) -> Result<(), AttemptError> {
    let failed = |f: Failure| AttemptError::Failed(f);
    let request_end = body
        .finished
        .get()
        .or(s.info.request_end)
        .unwrap_or(s.info.start);
    // Noted when the head was complete.
    let response_start = body.activity.get();
    let status = head.status();
    if status == 101 {
        if s.upgrade.is_none() {
            return Err(AttemptError::Reset(Reset::ProtocolError, true, false));
        }
        prepare_response(s, plan, head, request_end, response_start);
        return tunnel(s, body, exchange).await.map_err(failed);
    }
    prepare_response(s, plan, head, request_end, response_start);
    if s.upgrade.is_some() {
        // The upstream refused the upgrade: the answer goes out without its body and the connection ends.
        s.info.details = Cow::Borrowed("websocket_handshake_unsuccessful");
        s.down.close_after(true);
        s.response
            .retain(|n, _| !matches!(n, b"content-length" | b"content-type"));
        s.send_head(true).await.map_err(|e| failed(e.into()))?;
        s.info.end = Some(Instant::now());
        return Ok(());
    }
    let end = exchange.body_done();
    s.send_head(end).await.map_err(|e| failed(e.into()))?;
    if !end {
        loop {
            let frame = match exchange.buffered_body() {
                Ok(Some(frame)) => Ok(frame),
                Err(reset) => Err(reset),
                Ok(None) => {
                    s.down.flush().await.map_err(|e| failed(e.into()))?;
                    tokio::select! {
                        biased;
                        frame = exchange.recv_body() => frame,
                        sent = &mut pump, if pumping => {
                            pumping = false;
                            if let Err(PumpError::Downstream(e)) = sent {
                                return Err(failed(Failure::Downstream(e)));
                            }
                            continue;
                        }
                        gone = s.down.gone(), if body.done.get() => {
                            plan.cluster.stats().rq_cancelled.inc();
                            return Err(failed(Failure::Downstream(gone)));
                        }
                        () = fire(&mut timers.global) => {
                            plan.cluster.stats().rq_timeout.inc();
                            s.info.flags.set(Flag::UpstreamRequestTimeout);
                            s.info.details = Cow::Borrowed("response_timeout");
                            return Err(failed(Failure::Cut));
                        }
                        () = fire(&mut timers.max_duration) => {
                            s.info.details = Cow::Borrowed("max_duration_timeout");
                            return Err(failed(Failure::Cut));
                        }
                        () = idle(plan.timeouts.idle, body) => {
                            s.info.flags.set(Flag::StreamIdleTimeout);
                            s.info.details = Cow::Borrowed("stream_idle_timeout");
                            return Err(failed(Failure::Cut));
                        }
                    }
                }
            };
            match frame {
                Ok(BodyFrame::Data(data)) => {
                    s.info.bytes_sent += data.len() as u64;
                    body.activity.set(Instant::now());
                    s.down.send_data(data).await.map_err(|e| failed(e.into()))?;
                }
                Ok(BodyFrame::End(trailers)) => {
                    if let Some(trailers) = trailers {
                        s.info.grpc_status = grpc_status(&trailers).or(s.info.grpc_status);
                        s.trailers = trailers;
                        let t = std::mem::take(&mut s.trailers);
                        let sent = s.down.finish(Some(&t)).await;
                        s.trailers = t;
                        sent.map_err(|e| failed(e.into()))?;
                    } else {
                        s.down.finish(None).await.map_err(|e| failed(e.into()))?;
                    }
                    break;
                }
                Err(reset) => {
                    // What arrived before the cut belongs to the client.
                    s.down.flush().await.map_err(|e| failed(e.into()))?;
                    s.info.flags.set(reset.flag());
                    s.info.details = Cow::Owned(format!(
                        "upstream_reset_after_response_started{{{}}}",
                        reset.reason()
                    ));
                    return Err(failed(Failure::Cut));
                }
            }
        }
    }
    let finished = Instant::now();
    s.info.end = Some(finished);
    if !body.done.get() {
        // The answer came before the request was complete: its rest would be read as the next request.
        s.down.close_after(true);
    }
    plan.cluster
        .stats()
        .rq_time
        .record(finished.duration_since(s.info.start).as_millis() as u64);
    Ok(())
}

/// Relays opaque bytes both ways after a 101.
async fn tunnel<D: Downstream>(
    s: &mut RequestStream<'_, D>,
    body: &Body<'_, D>,
    exchange: &Exchange,
) -> Result<(), Failure> {
    s.send_head(false).await?;
    s.down.start_tunnel();
    s.down.flush().await?;
    body.done.set(false);
    body.keep.set(false);
    let sent = Cell::new(0_u64);
    let down = s.down;
    let respond = async {
        loop {
            match exchange.recv_body().await {
                Ok(BodyFrame::Data(data)) => {
                    sent.set(sent.get() + data.len() as u64);
                    down.send_data(data).await?;
                    down.flush().await?;
                }
                _ => return down.shutdown().await,
            }
        }
    };
    let mut respond = pin!(respond);
    let mut pump = pin!(body.pump(exchange, true));
    // Either side's end is the end of the tunnel: HTTP/1 upgrades know no half-close (Envoy).
    let result = tokio::select! {
        biased;
        back = &mut respond => back.map_err(Failure::from),
        up = &mut pump => match up {
            Ok(()) | Err(PumpError::Downstream(_)) => {
                Err(Failure::Downstream(DownstreamError::Disconnected))
            }
            Err(PumpError::Upstream) => respond.await.map_err(Failure::from),
        },
    };
    s.info.bytes_sent = sent.get();
    s.info.end = Some(Instant::now());
    result
}
