//! One attempt: a host, a connection, the request up, the head of the answer back.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use outrigger_config::cluster::UpstreamProtocol;
use tokio::time::Sleep;

use super::body::{Body, PumpError, idle};
use super::reply::{duration_reply, idle_reply, timeout_reply};
use super::response::relay;
use super::{AttemptError, Plan, Timers, Verdict, fire, may_retry, record_outcome, set_host};
use crate::error::Flag;
use crate::http::downstream::Downstream;
use crate::http::h1::client::H1Exchange;
use crate::http::h2::client::H2Exchange;
use crate::http::headers::Headers;
use crate::http::local_reply::LocalReply;
use crate::http::request::split_port;
use crate::http::retry;
use crate::http::stream::{Failure, RequestStream};
use crate::http::upstream::{Exchange, Reset};
use crate::stream_info::Protocol;
use crate::tls::context::HandshakeOptions;
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::{ConnectError, ConnectOptions, choose_host};
use crate::upstream::host::Host;
use crate::upstream::load_balancer::Choice;
use crate::upstream::outlier::Outcome;
use crate::upstream::pool::{self, Acquired, Wanted};

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
pub(super) async fn attempt<D: Downstream>(
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
    exchange
        .send_head(&s.request, no_body, upgrade)
        .await
        .map_err(|r| broken(&exchange, r))?;
    if upgrade {
        exchange.flush().await.map_err(|r| broken(&exchange, r))?;
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

fn broken(exchange: &Exchange, reset: Reset) -> AttemptError {
    AttemptError::Reset {
        reset,
        sent: exchange.request_sent(),
        died_in_pool: exchange.died_in_pool(),
    }
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

/// Waits for the final response head while the request body goes up; relays 1xx heads.
#[allow(
    clippy::too_many_arguments,
    reason = "the pieces of one attempt, borrowed apart from each other"
)]
pub(super) async fn response_head<D: Downstream>(
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
                let head = head.map_err(|r| broken(exchange, r))?;
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
