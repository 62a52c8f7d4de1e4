//! Request mirroring: fire and forget. Only requests without a body are mirrored so far; the parser refuses
//! nothing here, so a request with a body counts as an abandoned shadow.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::cluster::UpstreamProtocol;
use outrigger_config::route::Forward;

use crate::http::downstream::{BodyFrame, Downstream};
use crate::http::h1::client::H1Exchange;
use crate::http::h2::client::H2Exchange;
use crate::http::headers::Headers;
use crate::http::request::split_port;
use crate::http::route::{Selected, hit};
use crate::http::stream::RequestStream;
use crate::http::upstream::Exchange;
use crate::stream_info::ConnectionInfo;
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::{ConnectOptions, choose_host};
use crate::upstream::load_balancer::Choice;
use crate::upstream::pool::{self, Acquired, Wanted};
use crate::worker::Worker;

/// Indices of the mirror policies that apply to this request.
#[must_use]
pub fn wanted(forward: &Forward, worker: &Worker) -> Vec<usize> {
    let apply = |i: &usize| {
        forward
            .mirrors
            .get(*i)
            .is_some_and(|m| m.fraction.is_none_or(|f| hit(f, worker.random())))
    };
    (0..forward.mirrors.len()).filter(apply).collect()
}

/// Starts the shadows of a request.
pub fn send<D: Downstream>(
    s: &RequestStream<'_, D>,
    selected: &Selected,
    forward: &Forward,
    wanted: &[usize],
) {
    for i in wanted {
        let (Some(policy), Some(cluster)) = (
            forward.mirrors.get(*i),
            selected.mirror(*i).and_then(|slot| slot.load()),
        ) else {
            continue;
        };
        if !s.request_done {
            cluster.stats().retry_or_shadow_abandoned.inc();
            continue;
        }
        let mut request = s.request.clone();
        if !policy.disable_host_suffix {
            let (host, port) = split_port(request.authority());
            let mut shadow = [host, b"-shadow"].concat();
            if let Some(port) = port {
                shadow.push(b':');
                shadow.extend_from_slice(port);
            }
            request.set_authority(&shadow);
        }
        let (worker, connection) = (Rc::clone(s.worker), Rc::clone(&s.info.connection));
        // Envoy gives a shadow the route's timeout; 15 s where that is off.
        let timeout = forward.timeout.unwrap_or(Duration::from_secs(15));
        Worker::spawn(async move {
            // Nobody waits for a shadow: how it ends shows in the cluster's stats only.
            let _ = tokio::time::timeout(timeout, shadow(&worker, &cluster, &connection, &request))
                .await;
        });
    }
}

async fn shadow(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    connection: &ConnectionInfo,
    request: &Headers,
) -> Option<()> {
    let host = choose_host(worker, cluster, connection, &Choice::default()).ok()?;
    let wanted = match cluster.config.protocol {
        UpstreamProtocol::Http2 => Wanted::Http2,
        _ => Wanted::Http1,
    };
    cluster.stats().rq_total.inc();
    let started = Instant::now();
    let acquired = pool::acquire(worker, cluster, &host, ConnectOptions::default(), wanted)
        .await
        .ok()?;
    let exchange = match acquired {
        Acquired::H1(c) => Exchange::H1(H1Exchange::new(c)),
        Acquired::H2(l) => Exchange::H2(H2Exchange::new(l)),
    };
    exchange.send_head(request, true, false).await.ok()?;
    let head = loop {
        let head = exchange.recv_head().await.ok()?;
        if head.status() >= 200 {
            break head;
        }
    };
    cluster.stats().response(head.status());
    while let BodyFrame::Data(_) = exchange.recv_body().await.ok()? {}
    cluster
        .stats()
        .rq_time
        .record(started.elapsed().as_millis() as u64);
    if let Exchange::H1(exchange) = exchange
        && let Some(connection) = exchange.into_reusable()
    {
        pool::release(worker, cluster, connection);
    }
    Some(())
}
