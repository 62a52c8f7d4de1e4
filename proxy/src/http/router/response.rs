//! The answer on its way to the client.

use std::borrow::Cow;
use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Instant;

use super::body::{Body, PumpError, idle};
use super::{AttemptError, Plan, Timers, fire};
use crate::error::Flag;
use crate::http::downstream::{BodyFrame, Downstream, DownstreamError};
use crate::http::headers::Headers;
use crate::http::stream::{Failure, RequestStream, remove_peer_metadata};
use crate::http::upstream::{Exchange, Reset};
use crate::text::Decimal;

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
pub(super) async fn relay<D: Downstream>(
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
            return Err(AttemptError::Reset {
                reset: Reset::ProtocolError,
                sent: true,
                died_in_pool: false,
            });
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
