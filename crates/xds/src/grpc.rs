//! gRPC over HTTP/2 with messages as bytes: framing, client calls, a server for unix sockets.
//! Keeps no buffer between messages, so that a large push leaves no memory behind.

use bytes::Bytes;
use http::HeaderMap;
use tonic::{Code, Status};

mod authority;
pub mod client;
pub mod frame;
pub mod server;
mod stream;

pub use client::{ClientOptions, Connection, MessageSender};
pub use frame::{FrameError, Part};
/// HTTP/2 error code, see [`GrpcError::h2_reason`].
pub use h2::Reason as H2Reason;
pub use server::{Responder, ServerCall, ServerOptions};
pub use stream::MessageStream;

/// How a call or a stream ended, other than well.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    /// The peer sent a status other than OK.
    #[error("{}: {}", code_name(.0.code()), .0.message())]
    Status(Box<Status>),
    /// The connection or the HTTP/2 stream broke.
    #[error("transport: {}", chain(.0))]
    Transport(#[source] hyper::Error),
    /// The peer's bytes are no gRPC messages.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// An HTTP status other than 200 and no gRPC status.
    #[error("HTTP status {0} instead of a gRPC answer")]
    Http(http::StatusCode),
    /// The body ended inside a message.
    #[error("stream ended inside a message")]
    Truncated,
    /// The request could not be built from the given options.
    #[error("request: {0}")]
    Request(#[from] http::Error),
}

impl GrpcError {
    /// The HTTP/2 error code, when the peer reset the stream or closed the connection with one.
    #[must_use]
    pub fn h2_reason(&self) -> Option<h2::Reason> {
        let Self::Transport(error) = self else {
            return None;
        };
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            if let Some(h2) = inner.downcast_ref::<h2::Error>() {
                return h2.reason();
            }
            source = inner.source();
        }
        None
    }

    /// True if the transport went away without an HTTP/2 error: the peer closed or died.
    #[must_use]
    pub fn is_connection_closed(&self) -> bool {
        let Self::Transport(error) = self else {
            return false;
        };
        if error.is_closed() || error.is_canceled() || error.is_incomplete_message() {
            return true;
        }
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            let io = inner.downcast_ref::<std::io::Error>().or_else(|| {
                inner
                    .downcast_ref::<h2::Error>()
                    .and_then(h2::Error::get_io)
            });
            if let Some(io) = io {
                use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
                return matches!(io.kind(), UnexpectedEof | BrokenPipe | ConnectionReset);
            }
            source = inner.source();
        }
        false
    }

    /// The status to hand on. Broken transports become UNAVAILABLE, bad bytes INTERNAL.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Status(status) => Status::new(status.code(), status.message()),
            Self::Transport(_) if self.is_connection_closed() => {
                Status::unavailable("error reading from server: EOF")
            }
            Self::Transport(_) => match self.h2_reason() {
                Some(h2::Reason::CANCEL) => Status::cancelled(self.to_string()),
                Some(h2::Reason::ENHANCE_YOUR_CALM) => Status::resource_exhausted(self.to_string()),
                Some(h2::Reason::PROTOCOL_ERROR | h2::Reason::INTERNAL_ERROR) => {
                    Status::internal(self.to_string())
                }
                _ => Status::unavailable(self.to_string()),
            },
            Self::Frame(FrameError::TooLarge { .. }) => {
                Status::resource_exhausted(self.to_string())
            }
            Self::Frame(FrameError::Compressed) => Status::unimplemented(self.to_string()),
            Self::Truncated | Self::Request(_) => Status::internal(self.to_string()),
            Self::Http(code) => Status::new(http_code(*code), self.to_string()),
        }
    }
}

/// Text of an error and of its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

/// gRPC's mapping of HTTP statuses for answers without `grpc-status`.
fn http_code(status: http::StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// The upper-case name of a code, as gRPC documents write it.
#[must_use]
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Reads `grpc-status` out of headers or trailers; `Ok(false)` if there is none.
fn check_status(headers: &HeaderMap) -> Result<bool, GrpcError> {
    match Status::from_header_map(headers) {
        None => Ok(false),
        Some(status) if status.code() == Code::Ok => Ok(true),
        Some(status) => Err(GrpcError::Status(Box::new(status))),
    }
}

/// Part of an outgoing body.
type BodyFrame = http_body::Frame<Bytes>;
