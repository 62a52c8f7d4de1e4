//! The upstream role of HTTP/2: one stream on a shared connection.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};

use crate::http::downstream::BodyFrame;
use crate::http::h2::convert;
use crate::http::headers::Headers;
use crate::http::upstream::Reset;
use crate::upstream::pool::H2Lease;

/// One exchange.
#[derive(Debug)]
pub struct H2Exchange {
    lease: H2Lease,
    send: RefCell<Option<SendStream<Bytes>>>,
    response: RefCell<Option<ResponseFuture>>,
    body: RefCell<Option<RecvStream>>,
    done: Cell<bool>,
    sent: Cell<bool>,
}

fn reset(error: &h2::Error) -> Reset {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => Reset::RemoteRefused,
        _ if error.is_reset() && error.is_remote() => Reset::RemoteReset,
        _ if error.is_go_away() || error.is_io() => Reset::ConnectionTermination,
        Some(Reason::PROTOCOL_ERROR | Reason::FRAME_SIZE_ERROR | Reason::COMPRESSION_ERROR) => {
            Reset::ProtocolError
        }
        _ => Reset::ConnectionTermination,
    }
}

impl H2Exchange {
    /// Starts an exchange.
    #[must_use]
    pub const fn new(lease: H2Lease) -> Self {
        Self {
            lease,
            send: RefCell::new(None),
            response: RefCell::new(None),
            body: RefCell::new(None),
            done: Cell::new(false),
            sent: Cell::new(false),
        }
    }

    /// Sends the head.
    ///
    /// # Errors
    /// The connection takes no more streams, or the head is not valid for HTTP/2.
    pub async fn send_head(&self, headers: &Headers, end: bool) -> Result<(), Reset> {
        let request = convert::to_request(headers).map_err(|_| Reset::ProtocolError)?;
        let mut sender = self.lease.connection.sender();
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(|e| {
            self.lease.connection.retire();
            reset(&e)
        })?;
        let (response, send) = sender.send_request(request, end).map_err(|e| {
            self.lease.connection.retire();
            reset(&e)
        })?;
        self.sent.set(true);
        *self.response.borrow_mut() = Some(response);
        if !end {
            *self.send.borrow_mut() = Some(send);
        }
        Ok(())
    }

    /// Sends body bytes as the peer's window allows.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn send_data(&self, mut data: Bytes, end: bool) -> Result<(), Reset> {
        while !data.is_empty() {
            let room = poll_fn(|cx| {
                let mut send = self.send.borrow_mut();
                let Some(send) = send.as_mut() else {
                    return std::task::Poll::Ready(None);
                };
                send.reserve_capacity(data.len());
                send.poll_capacity(cx)
            })
            .await;
            match room {
                Some(Ok(0)) => {}
                Some(Ok(n)) => {
                    let chunk = data.split_to(n.min(data.len()));
                    let last = end && data.is_empty();
                    self.with_send(|send| send.send_data(chunk, last))?;
                }
                Some(Err(e)) => return Err(reset(&e)),
                None => return Err(Reset::ConnectionTermination),
            }
        }
        Ok(())
    }

    fn with_send(
        &self,
        f: impl FnOnce(&mut SendStream<Bytes>) -> Result<(), h2::Error>,
    ) -> Result<(), Reset> {
        match self.send.borrow_mut().as_mut() {
            Some(send) => f(send).map_err(|e| reset(&e)),
            None => Ok(()),
        }
    }

    /// Ends the request body.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn finish(&self, trailers: Option<&Headers>) -> Result<(), Reset> {
        self.with_send(|send| match trailers {
            Some(trailers) => send.send_trailers(convert::to_map(trailers)),
            None => send.send_data(Bytes::new(), true),
        })?;
        *self.send.borrow_mut() = None;
        Ok(())
    }

    /// Reads a response head, 1xx included.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn recv_head(&self) -> Result<Headers, Reset> {
        let result = poll_fn(|cx| {
            let mut response = self.response.borrow_mut();
            match response.as_mut() {
                Some(r) => std::pin::Pin::new(r).poll(cx).map(Some),
                None => std::task::Poll::Ready(None),
            }
        })
        .await;
        match result {
            Some(Ok(response)) => {
                let (parts, body) = response.into_parts();
                let mut headers = convert::from_map(&parts.headers);
                headers.set_status(parts.status.as_u16());
                self.done.set(body.is_end_stream());
                *self.body.borrow_mut() = Some(body);
                Ok(headers)
            }
            Some(Err(e)) => {
                if e.is_go_away() || e.is_io() {
                    self.lease.connection.retire();
                }
                Err(reset(&e))
            }
            None => Err(Reset::ConnectionTermination),
        }
    }

    /// Whether the body has ended.
    #[must_use]
    pub const fn body_done(&self) -> bool {
        self.done.get()
    }

    /// The next piece of the body if it is there already.
    ///
    /// # Errors
    /// The stream was reset.
    pub fn buffered_body(&self) -> Result<Option<BodyFrame>, Reset> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match self.poll_body(&mut cx) {
            std::task::Poll::Ready(frame) => frame.map(Some),
            std::task::Poll::Pending => Ok(None),
        }
    }

    fn poll_body(
        &self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<BodyFrame, Reset>> {
        use std::task::Poll;
        let mut body = self.body.borrow_mut();
        let Some(body) = body.as_mut() else {
            return Poll::Ready(Ok(BodyFrame::End(None)));
        };
        match body.poll_data(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(data))) => {
                // The bytes go straight on: the window opens again at once.
                let _ = body.flow_control().release_capacity(data.len());
                Poll::Ready(Ok(BodyFrame::Data(data)))
            }
            Poll::Ready(Some(Err(e))) => Poll::Ready(Err(reset(&e))),
            Poll::Ready(None) => match body.poll_trailers(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(trailers)) => {
                    self.done.set(true);
                    Poll::Ready(Ok(BodyFrame::End(trailers.map(|t| convert::from_map(&t)))))
                }
                Poll::Ready(Err(e)) => Poll::Ready(Err(reset(&e))),
            },
        }
    }

    /// The next piece of the body.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn recv_body(&self) -> Result<BodyFrame, Reset> {
        poll_fn(|cx| self.poll_body(cx)).await
    }

    /// The head was given to the connection.
    #[must_use]
    pub const fn request_sent(&self) -> bool {
        self.sent.get()
    }
}
