//! The request body: read once, sent to every attempt.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::http::downstream::{BodyFrame, Downstream, DownstreamError};
use crate::http::headers::Headers;
use crate::http::upstream::Exchange;

/// Bytes of a request body kept for retries and mirrors (Envoy's per-stream buffer default, 1 MiB).
const MAX_REPLAY: usize = 1024 * 1024;

/// The request body, read once and replayed to later attempts.
pub(super) struct Body<'a, D> {
    pub(super) down: &'a D,
    pub(super) done: Cell<bool>,
    pub(super) trailers: RefCell<Option<Headers>>,
    pub(super) kept: RefCell<Vec<Bytes>>,
    pub(super) kept_size: Cell<usize>,
    pub(super) keep: Cell<bool>,
    pub(super) received: Cell<u64>,
    pub(super) finished: Cell<Option<Instant>>,
    pub(super) activity: Cell<Instant>,
}

/// Why the request could not be passed on.
pub(super) enum PumpError {
    Downstream(DownstreamError),
    /// The upstream takes no more; what it answered decides.
    Upstream,
}

impl<'a, D: Downstream> Body<'a, D> {
    pub(super) fn new(down: &'a D, done: bool, keep: bool, start: Instant) -> Self {
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
    pub(super) fn replayable(&self) -> bool {
        self.keep.get() || self.received.get() == 0
    }

    pub(super) fn note(&self, data: &Bytes) {
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
    pub(super) async fn pump(&self, exchange: &Exchange, tunnel: bool) -> Result<(), PumpError> {
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

/// Waits until nothing has moved for `timeout`.
pub(super) async fn idle<D>(timeout: Option<Duration>, body: &Body<'_, D>) {
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
