//! The downstream role of HTTP/1: reads request heads off a connection and carries one exchange at a time.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::http::downstream::{BodyFrame, Downstream, DownstreamError};
use crate::http::h1::body::{Decoder, Framing, Step};
use crate::http::h1::encode;
use crate::http::h1::io::H1Io;
use crate::http::h1::parse::{self, HeadError, Limits, Request};
use crate::http::headers::Headers;
use crate::io::stream::Stream;

/// Bytes of a pipelined request that are read ahead while a response is under way.
const MAX_READ_AHEAD: usize = 64 * 1024;

/// A downstream HTTP/1 connection.
#[derive(Debug)]
pub struct H1Server {
    /// Buffered stream.
    pub io: H1Io,
    decoder: RefCell<Decoder>,
    http10: Cell<bool>,
    head_request: Cell<bool>,
    chunked: Cell<bool>,
    close: Cell<bool>,
    delayed: Cell<bool>,
    response_started: Cell<bool>,
    response_done: Cell<bool>,
    aborted: Cell<bool>,
    tunnel: Cell<bool>,
    enable_trailers: bool,
}

/// What came instead of a request head.
#[derive(Debug)]
pub enum NoRequest {
    /// The client closed (or the stream failed) before a whole head. True if part of a head was there.
    Closed(bool),
    /// The head was refused.
    Refused(HeadError),
}

impl H1Server {
    /// Takes over a stream; `initial` was read off it already.
    #[must_use]
    pub fn new(stream: Stream, initial: BytesMut, enable_trailers: bool) -> Self {
        Self {
            io: H1Io::new(stream, initial),
            decoder: RefCell::new(Decoder::new(Framing::None)),
            http10: Cell::new(false),
            head_request: Cell::new(false),
            chunked: Cell::new(false),
            close: Cell::new(false),
            delayed: Cell::new(false),
            response_started: Cell::new(false),
            response_done: Cell::new(false),
            aborted: Cell::new(false),
            tunnel: Cell::new(false),
            enable_trailers,
        }
    }

    /// Whether input is waiting, so that the next head needs no read.
    #[must_use]
    pub fn has_input(&self) -> bool {
        self.io.with_input(|i| !i.is_empty())
    }

    /// Reads the next request head. `started` is set when its first byte is there.
    ///
    /// # Errors
    /// See [`NoRequest`].
    pub async fn read_head(
        &self,
        limits: Limits,
        started: &Cell<bool>,
    ) -> Result<Request, NoRequest> {
        let mut searched = 0;
        loop {
            let end = self.io.with_input(|input| {
                // Empty lines before a request line are skipped (RFC 9112 2.2).
                while let [b'\r' | b'\n', ..] = input.as_ref() {
                    let _ = input.split_to(1);
                    searched = 0;
                }
                if !input.is_empty() {
                    started.set(true);
                }
                (parse::find_end(input, &mut searched), input.len())
            });
            match end {
                (Some(end), _) if end > limits.max_bytes => {
                    return Err(NoRequest::Refused(HeadError::TooLarge));
                }
                (Some(end), _) => {
                    return self
                        .io
                        .with_input(|input| parse::request(input, end, limits))
                        .map_err(NoRequest::Refused);
                }
                (None, len) if len > limits.max_bytes => {
                    return Err(NoRequest::Refused(HeadError::TooLarge));
                }
                (None, _) => {
                    if let Some(error) = self.io.with_input(|i| bad_start(i)) {
                        return Err(NoRequest::Refused(error));
                    }
                }
            }
            match self.io.fill().await {
                Ok(n) if n > 0 => {}
                _ => return Err(NoRequest::Closed(started.get())),
            }
        }
    }

    /// Prepares for the exchange of a request.
    pub fn begin(&self, request: &Request) {
        *self.decoder.borrow_mut() = Decoder::new(request.framing);
        self.http10.set(request.minor == 0 && !request.other_major);
        self.head_request.set(request.headers.method() == b"HEAD");
        self.close.set(request.close);
        self.chunked.set(false);
        self.response_started.set(false);
        self.response_done.set(false);
        self.aborted.set(false);
    }

    /// Whether another request may follow.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        !self.close.get()
            && !self.aborted.get()
            && self.response_done.get()
            && self.decoder.borrow().is_done()
    }

    /// The response was cut: reset rather than close properly.
    #[must_use]
    pub const fn is_aborted(&self) -> bool {
        self.aborted.get()
    }

    /// Ends the connection. After an answer the client did not ask to be the last one, it is given `delay` to
    /// read it: closing with unread input would reset the connection and lose the answer.
    pub async fn end(&self, delay: Option<Duration>) {
        if let Some(delay) = delay.filter(|_| self.delayed.get()) {
            let drain = async {
                loop {
                    self.io.with_input(BytesMut::clear);
                    if !matches!(self.io.fill().await, Ok(n) if n > 0) {
                        break;
                    }
                }
            };
            // Either the client closed or the time is over; both end the connection.
            let _ = tokio::time::timeout(delay, drain).await;
        }
        self.io.shutdown().await;
    }
}

/// Refuses early what can never become a request, instead of waiting for the end of its head.
fn bad_start(input: &[u8]) -> Option<HeadError> {
    let line_end = memchr::memchr(b'\n', input);
    let method_end = memchr::memchr(b' ', input).unwrap_or(input.len());
    let method = &input[..method_end.min(line_end.unwrap_or(input.len()))];
    let control = method.iter().any(|c| *c < b'!' || *c > b'~');
    (control || method.len() > 64).then_some(HeadError::Codec)
}

impl Downstream for H1Server {
    async fn read_body(&self) -> Result<BodyFrame, DownstreamError> {
        loop {
            let step = self
                .io
                .with_input(|input| self.decoder.borrow_mut().decode(input))
                .map_err(DownstreamError::Protocol)?;
            match step {
                Step::Data(data) => return Ok(BodyFrame::Data(data)),
                Step::End(trailers) => {
                    return Ok(BodyFrame::End(trailers.filter(|_| self.enable_trailers)));
                }
                Step::NeedMore => match self.io.fill().await {
                    Ok(n) if n > 0 => {}
                    Ok(_) if self.tunnel.get() => {
                        self.decoder.borrow_mut().finish();
                        return Ok(BodyFrame::End(None));
                    }
                    _ => return Err(DownstreamError::Disconnected),
                },
            }
        }
    }

    async fn gone(&self) -> DownstreamError {
        loop {
            if self.io.with_input(|i| i.len() >= MAX_READ_AHEAD) {
                std::future::pending::<()>().await;
            }
            if !matches!(self.io.fill().await, Ok(n) if n > 0) {
                return DownstreamError::Disconnected;
            }
        }
    }

    async fn send_informational(&self, headers: &Headers) -> io::Result<()> {
        if self.http10.get() {
            return Ok(());
        }
        self.io
            .with_output(|out| encode::response(out, headers, false, false, false));
        self.io.flush().await
    }

    async fn send_head(&self, headers: &mut Headers, end: bool) -> io::Result<()> {
        let status = headers.status();
        let bodiless = status < 200 || status == 204 || status == 304;
        let http10 = self.http10.get();
        let has_length = headers.contains(b"content-length");
        if end && !has_length && !bodiless && !self.head_request.get() {
            headers.append(b"content-length", b"0");
        }
        let chunked = !end && !has_length && !bodiless && !self.tunnel.get() && !http10;
        if http10 && !end && !has_length {
            self.close.set(true);
        }
        self.chunked.set(chunked && !self.head_request.get());
        self.response_started.set(true);
        let close = self.close.get() && !self.tunnel.get();
        self.io
            .with_output(|out| encode::response(out, headers, http10, close, chunked));
        if end {
            self.response_done.set(true);
            return self.io.flush().await;
        }
        Ok(())
    }

    async fn send_data(&self, data: Bytes) -> io::Result<()> {
        if data.is_empty() || self.head_request.get() {
            return Ok(());
        }
        let pending = self.io.with_output(|out| {
            if self.chunked.get() {
                encode::chunk_size(out, data.len());
            }
            out.extend_from_slice(&data);
            if self.chunked.get() {
                out.extend_from_slice(b"\r\n");
            }
            out.len()
        });
        if pending >= 16 * 1024 {
            self.io.flush().await
        } else {
            Ok(())
        }
    }

    async fn finish(&self, trailers: Option<&Headers>) -> io::Result<()> {
        if self.chunked.get() {
            let trailers = trailers.filter(|_| self.enable_trailers);
            self.io.with_output(|out| encode::last_chunk(out, trailers));
        }
        self.response_done.set(true);
        self.io.flush().await
    }

    async fn flush(&self) -> io::Result<()> {
        if self.io.pending_output() == 0 {
            return Ok(());
        }
        self.io.flush().await
    }

    fn abort(&self) {
        self.aborted.set(true);
        self.close.set(true);
    }

    fn close_after(&self, delayed: bool) {
        self.close.set(true);
        self.delayed.set(self.delayed.get() || delayed);
    }

    fn start_tunnel(&self) {
        self.tunnel.set(true);
        self.close.set(true);
        *self.decoder.borrow_mut() = Decoder::new(Framing::UntilClose);
    }

    async fn shutdown(&self) -> io::Result<()> {
        self.io.flush().await?;
        self.io.shutdown().await;
        Ok(())
    }
}
