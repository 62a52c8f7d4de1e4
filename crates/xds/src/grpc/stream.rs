//! The receiving half of a call: messages in order, then the status. Cancel-safe.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;

use super::frame::{Deframer, FrameError, Part};
use super::{GrpcError, check_status};

pub(super) type Opening =
    Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

enum State {
    /// Waiting for response headers (servers may send them with their first message only).
    Opening(Opening),
    /// Reading. `trailers_expected` is false on the server side, where a plain end is the end.
    Open {
        body: Incoming,
        trailers_expected: bool,
    },
    Done,
}

/// Messages of one direction of a call.
pub struct MessageStream {
    state: State,
    deframer: Deframer,
}

impl std::fmt::Debug for MessageStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MessageStream").finish_non_exhaustive()
    }
}

impl MessageStream {
    pub(super) fn opening(opening: Opening, limit: usize) -> Self {
        Self {
            state: State::Opening(opening),
            deframer: Deframer::new(limit),
        }
    }

    pub(super) fn request(body: Incoming, limit: usize) -> Self {
        Self {
            state: State::Open {
                body,
                trailers_expected: false,
            },
            deframer: Deframer::new(limit),
        }
    }

    /// The next message; `None` at a good end (status OK, or the client's end of stream).
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// The status of the peer, a broken transport or malformed framing; afterwards `None`.
    pub async fn message(&mut self) -> Result<Option<Bytes>, GrpcError> {
        self.next(Deframer::next_message).await
    }

    /// As [`Self::message`], but a message over `whole` bytes comes in pieces as they arrive, so
    /// that it need not fit into memory. Not to be mixed with [`Self::message`] inside a message.
    ///
    /// # Errors
    /// As [`Self::message`].
    pub async fn part(&mut self, whole: usize) -> Result<Option<Part>, GrpcError> {
        self.next(|deframer| deframer.next_part(whole)).await
    }

    async fn next<T>(
        &mut self,
        mut take: impl FnMut(&mut Deframer) -> Result<Option<T>, FrameError>,
    ) -> Result<Option<T>, GrpcError> {
        let result = std::future::poll_fn(|cx| self.poll_next(cx, &mut take)).await;
        if !matches!(result, Ok(Some(_))) {
            self.state = State::Done;
        }
        result
    }

    fn poll_next<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut impl FnMut(&mut Deframer) -> Result<Option<T>, FrameError>,
    ) -> Poll<Result<Option<T>, GrpcError>> {
        loop {
            match &mut self.state {
                State::Done => return Poll::Ready(Ok(None)),
                State::Opening(future) => {
                    let response =
                        ready!(future.as_mut().poll(cx)).map_err(GrpcError::Transport)?;
                    if check_status(response.headers())? {
                        return Poll::Ready(Ok(None));
                    }
                    if response.status() != StatusCode::OK {
                        return Poll::Ready(Err(GrpcError::Http(response.status())));
                    }
                    self.state = State::Open {
                        body: response.into_body(),
                        trailers_expected: true,
                    };
                }
                State::Open {
                    body,
                    trailers_expected,
                } => {
                    if let Some(taken) = take(&mut self.deframer)? {
                        return Poll::Ready(Ok(Some(taken)));
                    }
                    let Some(frame) = ready!(Pin::new(body).poll_frame(cx)) else {
                        return Poll::Ready(
                            match (self.deframer.at_boundary(), trailers_expected) {
                                (true, false) => Ok(None),
                                // A response without trailers was cut off.
                                _ => Err(GrpcError::Truncated),
                            },
                        );
                    };
                    match frame.map_err(GrpcError::Transport)?.into_data() {
                        Ok(data) => self.deframer.push(data),
                        Err(other) => {
                            let trailers = other.into_trailers().unwrap_or_default();
                            if *trailers_expected && !check_status(&trailers)? {
                                return Poll::Ready(Err(GrpcError::Truncated));
                            }
                            return Poll::Ready(if self.deframer.at_boundary() {
                                Ok(None)
                            } else {
                                Err(GrpcError::Truncated)
                            });
                        }
                    }
                }
            }
        }
    }
}
