//! The downstream role of HTTP/2: one stream.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::task::Poll;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};

use crate::http::downstream::{BodyFrame, Downstream, DownstreamError};
use crate::http::h1::parse::HeadError;
use crate::http::h2::convert;
use crate::http::headers::Headers;

/// One request stream.
#[derive(Debug)]
pub struct H2Stream {
    body: RefCell<RecvStream>,
    respond: RefCell<SendResponse<Bytes>>,
    send: RefCell<Option<SendStream<Bytes>>>,
    done: Cell<bool>,
}

impl H2Stream {
    /// Wraps what `h2` accepted.
    #[must_use]
    pub const fn new(body: RecvStream, respond: SendResponse<Bytes>) -> Self {
        Self {
            body: RefCell::new(body),
            respond: RefCell::new(respond),
            send: RefCell::new(None),
            done: Cell::new(false),
        }
    }

    /// The request has no body.
    #[must_use]
    pub fn body_ended(&self) -> bool {
        self.body.borrow().is_end_stream()
    }
}

fn downstream_error(e: &h2::Error) -> DownstreamError {
    if e.is_reset() && e.is_remote() {
        DownstreamError::Reset
    } else if e.is_io() || e.is_go_away() {
        DownstreamError::Disconnected
    } else {
        DownstreamError::Protocol(HeadError::Codec)
    }
}

fn io_error(e: h2::Error) -> io::Error {
    if e.is_io() {
        io::ErrorKind::ConnectionReset.into()
    } else {
        io::Error::other(e)
    }
}

impl Downstream for H2Stream {
    async fn read_body(&self) -> Result<BodyFrame, DownstreamError> {
        let data = poll_fn(|cx| self.body.borrow_mut().poll_data(cx)).await;
        match data {
            Some(Ok(data)) => {
                // The bytes go straight on: the window opens again at once.
                let _ = self
                    .body
                    .borrow_mut()
                    .flow_control()
                    .release_capacity(data.len());
                Ok(BodyFrame::Data(data))
            }
            Some(Err(e)) => Err(downstream_error(&e)),
            None => {
                let trailers = poll_fn(|cx| self.body.borrow_mut().poll_trailers(cx)).await;
                let trailers = trailers.map_err(|e| downstream_error(&e))?;
                Ok(BodyFrame::End(trailers.map(|t| convert::from_map(&t))))
            }
        }
    }

    async fn gone(&self) -> DownstreamError {
        let result = poll_fn(|cx| {
            if let Some(send) = self.send.borrow_mut().as_mut() {
                return send.poll_reset(cx);
            }
            self.respond.borrow_mut().poll_reset(cx)
        })
        .await;
        match result {
            Ok(_) => DownstreamError::Reset,
            Err(e) => downstream_error(&e),
        }
    }

    async fn send_informational(&self, headers: &Headers) -> io::Result<()> {
        // `h2` sends 100 by itself when the body is first asked for and has no call for other 1xx heads.
        let _ = headers;
        Ok(())
    }

    async fn send_head(&self, headers: &mut Headers, end: bool) -> io::Result<()> {
        let response = convert::to_response(headers).map_err(io::Error::other)?;
        let send = self
            .respond
            .borrow_mut()
            .send_response(response, end)
            .map_err(io_error)?;
        self.done.set(end);
        if !end {
            *self.send.borrow_mut() = Some(send);
        }
        Ok(())
    }

    async fn send_data(&self, mut data: Bytes) -> io::Result<()> {
        while !data.is_empty() {
            let room = poll_fn(|cx| {
                let mut send = self.send.borrow_mut();
                let Some(send) = send.as_mut() else {
                    return Poll::Ready(None);
                };
                send.reserve_capacity(data.len());
                send.poll_capacity(cx)
            })
            .await;
            match room {
                Some(Ok(n)) => {
                    let chunk = data.split_to(n.min(data.len()));
                    if let Some(send) = self.send.borrow_mut().as_mut() {
                        send.send_data(chunk, false).map_err(io_error)?;
                    }
                }
                Some(Err(e)) => return Err(io_error(e)),
                None => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        Ok(())
    }

    async fn finish(&self, trailers: Option<&Headers>) -> io::Result<()> {
        self.done.set(true);
        let mut send = self.send.borrow_mut();
        let Some(send) = send.as_mut() else {
            return Ok(());
        };
        match trailers {
            Some(trailers) => send.send_trailers(convert::to_map(trailers)),
            None => send.send_data(Bytes::new(), true),
        }
        .map_err(io_error)
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn abort(&self) {
        if self.done.replace(true) {
            return;
        }
        match self.send.borrow_mut().as_mut() {
            Some(send) => send.send_reset(Reason::INTERNAL_ERROR),
            None => self.respond.borrow_mut().send_reset(Reason::INTERNAL_ERROR),
        }
    }

    fn close_after(&self, _: bool) {}

    fn start_tunnel(&self) {}

    async fn shutdown(&self) -> io::Result<()> {
        self.finish(None).await
    }
}
