//! Client connection: one HTTP/2 connection over any byte stream, calls on it.
//! The connection lives as long as the [`Connection`] value; dropping it closes the transport.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::frame::{PREFIX, prefix};
use super::{BodyFrame, GrpcError, MessageStream};

/// Messages up to this length are copied next to their prefix; longer ones go in a frame of their
/// own and are not copied.
const COPY_LIMIT: usize = 4096;

/// Settings of a connection.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// `:authority` of every call, without port.
    pub authority: String,
    /// `:scheme`: true for https.
    pub tls: bool,
    /// HTTP/2 ping interval and the wait for its answer; `None` = no pings.
    pub keepalive: Option<(Duration, Duration)>,
    /// Initial stream and connection window, bytes.
    pub window: u32,
    /// Longest message accepted, bytes.
    pub max_message: usize,
    /// `user-agent`; empty: none is sent.
    pub user_agent: String,
}

impl Default for ClientOptions {
    /// Plaintext, authority `localhost`, pings 30 s / 10 s, 1 MiB windows, messages to 2^31-1.
    fn default() -> Self {
        Self {
            authority: "localhost".to_owned(),
            tls: false,
            keepalive: Some((Duration::from_secs(30), Duration::from_secs(10))),
            window: 1 << 20,
            max_message: i32::MAX as usize,
            user_agent: concat!("outrigger/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// An open HTTP/2 connection.
#[derive(Debug)]
pub struct Connection {
    send: SendRequest<OutgoingBody>,
    options: ClientOptions,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// HTTP/2 handshake over `io`. Spawns the connection's driver on the current runtime.
    ///
    /// # Errors
    /// If the transport fails during the handshake.
    pub async fn handshake<T>(io: T, options: ClientOptions) -> Result<Self, GrpcError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(options.window)
            .initial_connection_window_size(options.window);
        if let Some((interval, timeout)) = options.keepalive {
            builder
                .keep_alive_interval(interval)
                .keep_alive_timeout(timeout);
        }
        let (send, connection) = builder
            .handshake(TokioIo::new(io))
            .await
            .map_err(GrpcError::Transport)?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                // Every call on it sees the error too; this line is for the debug log only.
                tracing::debug!(%error, "gRPC connection ended");
            }
        });
        Ok(Self {
            send,
            options,
            driver,
        })
    }

    /// Opens a call. Messages may be sent before the peer answers anything.
    ///
    /// # Errors
    /// If `path` or the authority is no valid URI part, or the connection is closed.
    pub async fn call(
        &mut self,
        path: &str,
        metadata: &HeaderMap,
    ) -> Result<(MessageSender, MessageStream), GrpcError> {
        let uri = Uri::builder()
            .scheme(if self.options.tls { "https" } else { "http" })
            .authority(self.options.authority.as_str())
            .path_and_query(path)
            .build()?;
        let (sender, queue) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let mut request = Request::post(uri).body(OutgoingBody {
            queue,
            queued: Arc::clone(&queued),
            rest: None,
        })?;
        let headers = request.headers_mut();
        headers.extend(metadata.iter().map(|(k, v)| (k.clone(), v.clone())));
        headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
        headers.insert(
            http::header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        let agent = &self.options.user_agent;
        if !agent.is_empty()
            && let Ok(agent) = HeaderValue::from_str(agent)
        {
            headers.insert(HeaderName::from_static("user-agent"), agent);
        }
        self.send.ready().await.map_err(GrpcError::Transport)?;
        let opening = Box::pin(self.send.send_request(request));
        Ok((
            MessageSender {
                queue: sender,
                queued,
            },
            MessageStream::opening(opening, self.options.max_message),
        ))
    }

    /// One request, one answer.
    ///
    /// # Errors
    /// As [`Self::call`] and [`MessageStream::message`]; an answer without message is
    /// [`GrpcError::Truncated`].
    pub async fn unary(
        &mut self,
        path: &str,
        metadata: &HeaderMap,
        message: Bytes,
    ) -> Result<Bytes, GrpcError> {
        let (sender, mut stream) = self.call(path, metadata).await?;
        // A closed queue means the call has failed; its status comes from the stream below.
        let _ = sender.send(message);
        drop(sender);
        let answer = stream.message().await?.ok_or(GrpcError::Truncated)?;
        match stream.message().await? {
            None => Ok(answer),
            Some(_) => Err(GrpcError::Truncated),
        }
    }
}

/// The call is over; the message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("call is over")]
pub struct CallOver;

/// The sending half of a call. The queue is unbounded, so that a slow peer cannot make the two
/// directions of a stream wait for each other. Dropping it ends the request stream.
#[derive(Debug, Clone)]
pub struct MessageSender {
    queue: mpsc::UnboundedSender<Bytes>,
    /// Bytes in `queue`.
    queued: Arc<AtomicUsize>,
}

impl MessageSender {
    /// Queues one message.
    ///
    /// # Errors
    /// If the call is over.
    pub fn send(&self, message: Bytes) -> Result<(), CallOver> {
        self.queued.fetch_add(message.len(), Ordering::Relaxed);
        self.queue.send(message).map_err(|_| CallOver)
    }

    /// Bytes that wait because the peer does not read. A sender of messages it does not choose
    /// itself bounds this.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }
}

/// Request body fed from the queue.
#[derive(Debug)]
struct OutgoingBody {
    queue: mpsc::UnboundedReceiver<Bytes>,
    queued: Arc<AtomicUsize>,
    /// A long message whose prefix has been sent.
    rest: Option<Bytes>,
}

impl http_body::Body for OutgoingBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame, Self::Error>>> {
        if let Some(rest) = self.rest.take() {
            return Poll::Ready(Some(Ok(BodyFrame::data(rest))));
        }
        self.queue.poll_recv(cx).map(|message| {
            let message = message?;
            self.queued.fetch_sub(message.len(), Ordering::Relaxed);
            let (first, rest) = split(message);
            self.rest = rest;
            Some(Ok(BodyFrame::data(first)))
        })
    }
}

/// A message as one or two body frames.
pub(super) fn split(message: Bytes) -> (Bytes, Option<Bytes>) {
    let prefix = prefix(message.len());
    if message.len() > COPY_LIMIT {
        return (Bytes::copy_from_slice(&prefix), Some(message));
    }
    let mut buf = BytesMut::with_capacity(PREFIX + message.len());
    buf.put_slice(&prefix);
    buf.put(message);
    (buf.freeze(), None)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Types of the frames that a client sent after its preface, until it closed.
    async fn frames(mut server: tokio::io::DuplexStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = server.read_to_end(&mut bytes);
        let read = tokio::time::timeout(Duration::from_secs(20), read).await;
        read.expect("in time").expect("a pipe");
        let mut rest = bytes.get(24..).unwrap_or_default();
        let mut types = Vec::new();
        while let [a, b, c, kind, ..] = *rest {
            types.push(kind);
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            rest = rest.get(9 + length..).unwrap_or_default();
        }
        types
    }

    #[tokio::test]
    async fn a_dropped_connection_says_goodbye() {
        const GOAWAY: u8 = 7;
        let (client, server) = tokio::io::duplex(1 << 16);
        let connection = Connection::handshake(client, ClientOptions::default()).await;
        drop(connection.expect("a pipe"));
        let frames = frames(server).await;
        assert_eq!(frames.last(), Some(&GOAWAY), "{frames:?}");
    }
}
