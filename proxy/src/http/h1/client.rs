//! The upstream role of HTTP/1: one exchange on a pooled connection.

use std::cell::{Cell, RefCell};

use bytes::Bytes;

use crate::http::downstream::BodyFrame;
use crate::http::h1::body::{Decoder, Framing, Step};
use crate::http::h1::encode;
use crate::http::h1::parse::{self, Limits};
use crate::http::headers::Headers;
use crate::http::upstream::Reset;
use crate::upstream::pool::H1Connection;

/// One exchange. The connection goes back to the pool only if both directions ended properly.
#[derive(Debug)]
pub struct H1Exchange {
    connection: Box<H1Connection>,
    decoder: RefCell<Decoder>,
    chunked: Cell<bool>,
    head_request: Cell<bool>,
    request_done: Cell<bool>,
    reusable: Cell<bool>,
    /// Some byte of the request was handed to the kernel.
    pub request_sent: Cell<bool>,
    /// Some byte of the answer arrived.
    pub response_begun: Cell<bool>,
}

/// Limits of a response head (Envoy's `max_response_headers_kb` default is 60 KiB, 100 lines).
const LIMITS: Limits = Limits {
    max_bytes: 60 * 1024,
    max_headers: 100,
};

impl H1Exchange {
    /// Starts an exchange.
    #[must_use]
    pub fn new(connection: Box<H1Connection>) -> Self {
        Self {
            connection,
            decoder: RefCell::new(Decoder::new(Framing::None)),
            chunked: Cell::new(false),
            head_request: Cell::new(false),
            request_done: Cell::new(false),
            reusable: Cell::new(true),
            request_sent: Cell::new(false),
            response_begun: Cell::new(false),
        }
    }

    /// Sends the head; a body of unknown length goes out chunked.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send_head(
        &self,
        headers: &Headers,
        end: bool,
        upgrade: bool,
    ) -> Result<(), Reset> {
        let chunked = !end && !upgrade && !headers.contains(b"content-length");
        self.chunked.set(chunked);
        self.head_request.set(headers.method() == b"HEAD");
        self.request_done.set(end);
        // As Envoy does: a method that usually has a body says that it has none.
        let bodiless = matches!(headers.method(), b"GET" | b"HEAD" | b"CONNECT");
        let empty = end && !bodiless && !headers.contains(b"content-length");
        self.connection
            .io
            .with_output(|out| encode::request(out, headers, chunked, empty));
        if end { self.flush().await } else { Ok(()) }
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn flush(&self) -> Result<(), Reset> {
        if self.connection.io.pending_output() == 0 {
            return Ok(());
        }
        let result = self
            .connection
            .io
            .flush()
            .await
            .map_err(|_| Reset::ConnectionTermination);
        self.request_sent.set(true);
        result
    }

    /// Sends body bytes; may be buffered.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send_data(&self, data: &Bytes) -> Result<(), Reset> {
        if data.is_empty() {
            return Ok(());
        }
        let pending = self.connection.io.with_output(|out| {
            if self.chunked.get() {
                encode::chunk_size(out, data.len());
            }
            out.extend_from_slice(data);
            if self.chunked.get() {
                out.extend_from_slice(b"\r\n");
            }
            out.len()
        });
        if pending >= 16 * 1024 {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Ends the request body.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn finish(&self, trailers: Option<&Headers>) -> Result<(), Reset> {
        if self.chunked.get() {
            self.connection
                .io
                .with_output(|out| encode::last_chunk(out, trailers));
        }
        self.request_done.set(true);
        self.flush().await
    }

    /// Sends FIN: the tunnel's request direction ended.
    pub async fn shutdown(&self) {
        self.reusable.set(false);
        self.connection.io.shutdown().await;
    }

    /// Reads a response head; 1xx heads are returned like any other.
    ///
    /// # Errors
    /// The connection ended first, or what came is not HTTP.
    pub async fn recv_head(&self) -> Result<Headers, Reset> {
        let io = &self.connection.io;
        let mut searched = 0;
        loop {
            let (end, len) = io.with_input(|i| (parse::find_end(i, &mut searched), i.len()));
            if len > 0 {
                self.response_begun.set(true);
            }
            if let Some(end) = end {
                let response = io
                    .with_input(|i| parse::response(i, end, LIMITS))
                    .map_err(|_| Reset::ProtocolError)?;
                let status = response.headers.status();
                let framing = if self.head_request.get() {
                    Framing::None
                } else {
                    response.framing
                };
                if status == 101 {
                    *self.decoder.borrow_mut() = Decoder::new(Framing::UntilClose);
                    self.reusable.set(false);
                } else if status >= 200 {
                    *self.decoder.borrow_mut() = Decoder::new(framing);
                    if response.close || framing == Framing::UntilClose {
                        self.reusable.set(false);
                    }
                }
                return Ok(response.headers);
            }
            if len > LIMITS.max_bytes || (len >= 5 && !io.with_input(|i| i.starts_with(b"HTTP/"))) {
                return Err(Reset::ProtocolError);
            }
            match io.fill().await {
                Ok(n) if n > 0 => {}
                // A head that was cut is the peer's mistake; nothing at all is a closed connection.
                Ok(_) if len > 0 => return Err(Reset::ProtocolError),
                _ => return Err(Reset::ConnectionTermination),
            }
        }
    }

    /// Whether the response has a body still to come.
    #[must_use]
    pub fn body_done(&self) -> bool {
        self.decoder.borrow().is_done()
    }

    /// The next piece of the body if it is in the buffer already.
    ///
    /// # Errors
    /// The framing is broken.
    pub fn buffered_body(&self) -> Result<Option<BodyFrame>, Reset> {
        let step = self
            .connection
            .io
            .with_input(|i| self.decoder.borrow_mut().decode(i))
            .map_err(|_| Reset::ProtocolError)?;
        Ok(match step {
            Step::Data(data) => Some(BodyFrame::Data(data)),
            Step::End(trailers) => Some(BodyFrame::End(trailers)),
            Step::NeedMore => None,
        })
    }

    /// The next piece of the body.
    ///
    /// # Errors
    /// The connection ended within the body, or the framing is broken.
    pub async fn recv_body(&self) -> Result<BodyFrame, Reset> {
        loop {
            if let Some(frame) = self.buffered_body()? {
                return Ok(frame);
            }
            match self.connection.io.fill().await {
                Ok(n) if n > 0 => {}
                Ok(_) if self.decoder.borrow().ends_at_close() => {
                    self.decoder.borrow_mut().finish();
                    return Ok(BodyFrame::End(None));
                }
                Ok(_) => return Err(Reset::ProtocolError),
                Err(_) => return Err(Reset::ConnectionTermination),
            }
        }
    }

    /// The connection, if another request may use it.
    #[must_use]
    pub fn into_reusable(self) -> Option<Box<H1Connection>> {
        let whole = self.request_done.get() && self.decoder.borrow().is_done();
        (whole && self.reusable.get()).then_some(self.connection)
    }

    /// Whether the connection served a request before this one.
    #[must_use]
    pub fn reused(&self) -> bool {
        self.connection.reused
    }

    /// Bytes received and sent on the connection so far.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.connection.io.rx.get(), self.connection.io.tx.get())
    }
}
