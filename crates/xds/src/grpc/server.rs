//! gRPC server on a listening unix socket; every call goes to one async handler that sees bytes.
//! Knows no service: paths it does not handle are the handler's to refuse.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Status;

use super::authority::LocalAuthority;
use super::client::split;
use super::frame::prefix;
use super::{BodyFrame, GrpcError, MessageStream};

/// Pause after a failed `accept`, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Settings of a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Concurrent streams per connection. Default 100000.
    pub max_streams: u32,
    /// Longest request message, bytes. Default 4 MiB.
    pub max_message: usize,
    /// Ping interval and the wait for its answer. Default 30 s, 10 s.
    pub keepalive: Option<(Duration, Duration)>,
    /// Initial stream and connection window, bytes. Default 1 MiB.
    pub window: u32,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_streams: 100_000,
            max_message: 4 << 20,
            keepalive: Some((Duration::from_secs(30), Duration::from_secs(10))),
            window: 1 << 20,
        }
    }
}

/// One call as it arrived.
#[derive(Debug)]
pub struct ServerCall {
    /// `/package.Service/Method`.
    pub path: String,
    /// Request metadata.
    pub headers: HeaderMap,
    /// Request messages.
    pub requests: MessageStream,
}

enum Out {
    Message(Bytes),
    Start(usize, Bytes),
    More(Bytes),
    End(Box<Status>),
}

/// The sending half of a call, with room for one message.
#[derive(Debug, Clone)]
pub struct Responder {
    queue: mpsc::Sender<Out>,
}

impl Responder {
    /// Sends one message, waiting while the client does not read.
    ///
    /// # Errors
    /// If the client is gone.
    pub async fn send(&self, message: Bytes) -> Result<(), super::client::CallOver> {
        self.out(Out::Message(message)).await
    }

    /// Sends the beginning of a message of `length` bytes; the caller owes the rest.
    ///
    /// # Errors
    /// If the client is gone.
    pub async fn start(&self, length: usize, first: Bytes) -> Result<(), super::client::CallOver> {
        self.out(Out::Start(length, first)).await
    }

    /// Sends what follows [`Self::start`].
    ///
    /// # Errors
    /// If the client is gone.
    pub async fn more(&self, piece: Bytes) -> Result<(), super::client::CallOver> {
        self.out(Out::More(piece)).await
    }

    async fn out(&self, out: Out) -> Result<(), super::client::CallOver> {
        let sent = self.queue.send(out).await;
        sent.map_err(|_| super::client::CallOver)
    }

    /// Resolves when the client is gone.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }
}

/// Serves connections of `listener` until the future is dropped, which closes all of them.
pub async fn serve_unix<H, F>(listener: UnixListener, options: ServerOptions, handler: H)
where
    H: Fn(ServerCall, Responder) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let stream = LocalAuthority::new(stream);
                    connections.spawn(serve_connection(stream, options.clone(), handler.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept on unix socket failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one connection over any byte stream to its end.
pub async fn serve_connection<T, H, F>(stream: T, options: ServerOptions, handler: H)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(ServerCall, Responder) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.max_streams)
        .initial_stream_window_size(options.window)
        .initial_connection_window_size(options.window);
    if let Some((interval, timeout)) = options.keepalive {
        builder
            .keep_alive_interval(interval)
            .keep_alive_timeout(timeout);
    }
    let limit = options.max_message;
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request, limit, &handler);
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    if let Err(error) = builder
        .serve_connection(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(error = %super::chain(&error), "gRPC connection ended");
    }
}

fn answer<H, F>(request: Request<Incoming>, limit: usize, handler: &H) -> Response<AnswerBody>
where
    H: Fn(ServerCall, Responder) -> F,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (parts, body) = request.into_parts();
    let (queue, receiver) = mpsc::channel(1);
    let responder = Responder { queue };
    let call = ServerCall {
        path: parts.uri.path().to_owned(),
        headers: parts.headers,
        requests: MessageStream::request(body, limit),
    };
    let work = handler(call, responder.clone());
    let task = tokio::spawn(async move {
        tokio::select! {
            result = work => {
                let status = result.err().unwrap_or_else(|| Status::ok(""));
                // A closed queue: the client is gone and wants no status.
                let _ = responder.queue.send(Out::End(Box::new(status))).await;
            }
            () = responder.queue.closed() => {}
        }
    });
    let mut response = Response::new(AnswerBody {
        queue: receiver,
        rest: None,
        ended: false,
        task,
    });
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}

/// Response body: messages, then trailers.
struct AnswerBody {
    queue: mpsc::Receiver<Out>,
    rest: Option<Bytes>,
    ended: bool,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame, Self::Error>>> {
        if let Some(rest) = self.rest.take() {
            return Poll::Ready(Some(Ok(BodyFrame::data(rest))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        self.queue.poll_recv(cx).map(|out| {
            Some(Ok(match out {
                Some(Out::Message(message)) => {
                    let (first, rest) = split(message);
                    self.rest = rest;
                    BodyFrame::data(first)
                }
                Some(Out::Start(length, first)) => {
                    self.rest = Some(first);
                    BodyFrame::data(Bytes::copy_from_slice(&prefix(length)))
                }
                Some(Out::More(piece)) => BodyFrame::data(piece),
                Some(Out::End(status)) => self.trailers(&status),
                // The handler's task panicked.
                None => self.trailers(&Status::internal("handler ended without a status")),
            }))
        })
    }
}

impl AnswerBody {
    fn trailers(&mut self, status: &Status) -> BodyFrame {
        self.ended = true;
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            // The message cannot be put into a header: the code still can.
            trailers.clear();
            trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
        }
        BodyFrame::trailers(trailers)
    }
}

/// Status for a path nobody serves.
#[must_use]
pub fn unimplemented(path: &str) -> Status {
    Status::unimplemented(format!("unknown method {path}"))
}

/// Status with which a handler ends when its client's request stream failed.
#[must_use]
pub fn request_failed(error: &GrpcError) -> Status {
    error.status()
}
