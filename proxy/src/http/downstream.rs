//! What the connection manager needs of a downstream stream, whichever codec carries it.

use std::io;

use bytes::Bytes;

use crate::http::h1::parse::HeadError;
use crate::http::headers::Headers;

/// A piece of a message body.
#[derive(Debug)]
pub enum BodyFrame {
    /// Bytes.
    Data(Bytes),
    /// The end, with trailers if there were any.
    End(Option<Headers>),
}

/// Why the rest of a request body cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DownstreamError {
    /// The client closed the connection.
    #[error("downstream closed the connection")]
    Disconnected,
    /// The client reset the stream (HTTP/2).
    #[error("downstream reset the stream")]
    Reset,
    /// The body is malformed.
    #[error("{0}")]
    Protocol(HeadError),
}

/// One request on a downstream connection. Everything takes `&self`: reading the request and writing the
/// response go on at the same time in one task.
#[allow(async_fn_in_trait, reason = "used only by this crate, on one thread")]
pub trait Downstream {
    /// The next piece of the request body; not called again after `End`.
    async fn read_body(&self) -> Result<BodyFrame, DownstreamError>;
    /// Completes when the client goes away. Called only once the request body has ended.
    async fn gone(&self) -> DownstreamError;
    /// Sends a 1xx head at once.
    async fn send_informational(&self, headers: &Headers) -> io::Result<()>;
    /// Sends the response head; `end` = no body follows. May be buffered until [`Self::flush`].
    async fn send_head(&self, headers: &mut Headers, end: bool) -> io::Result<()>;
    /// Sends body bytes; may be buffered until [`Self::flush`].
    async fn send_data(&self, data: Bytes) -> io::Result<()>;
    /// Ends the response.
    async fn finish(&self, trailers: Option<&Headers>) -> io::Result<()>;
    /// Writes what is buffered.
    async fn flush(&self) -> io::Result<()>;
    /// Ends the response in error: the client must see that it is incomplete.
    fn abort(&self);
    /// The connection ends after this response. `delayed`: the client may still be sending, so it gets time to
    /// read the answer before the socket goes.
    fn close_after(&self, delayed: bool);
    /// Both directions become opaque bytes after the head (101).
    fn start_tunnel(&self);
    /// Ends the response direction of a tunnel.
    async fn shutdown(&self) -> io::Result<()>;
}
