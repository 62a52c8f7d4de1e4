//! One exchange with an upstream, whichever protocol carries it.

use bytes::Bytes;

use crate::error::Flag;
use crate::http::downstream::BodyFrame;
use crate::http::h1::client::H1Exchange;
use crate::http::h2::client::H2Exchange;
use crate::http::headers::Headers;

/// Why an upstream stream ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// The connection closed.
    ConnectionTermination,
    /// RST_STREAM.
    RemoteReset,
    /// RST_STREAM with REFUSED_STREAM: not processed.
    RemoteRefused,
    /// What came is malformed.
    ProtocolError,
}

impl Reset {
    /// Envoy's reason, with underscores as in details.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::ConnectionTermination => "connection_termination",
            Self::RemoteReset => "remote_reset",
            Self::RemoteRefused => "remote_refused_stream_reset",
            Self::ProtocolError => "protocol_error",
        }
    }

    /// Response flag.
    #[must_use]
    pub const fn flag(self) -> Flag {
        match self {
            Self::ConnectionTermination => Flag::UpstreamConnectionTermination,
            Self::RemoteReset | Self::RemoteRefused => Flag::UpstreamRemoteReset,
            Self::ProtocolError => Flag::UpstreamProtocolError,
        }
    }

    /// Status of the local reply.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::ProtocolError => 502,
            _ => 503,
        }
    }
}

/// An exchange.
#[derive(Debug)]
pub enum Exchange {
    /// HTTP/1.
    H1(H1Exchange),
    /// HTTP/2.
    H2(H2Exchange),
}

impl Exchange {
    /// Sends the request head.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn send_head(
        &self,
        headers: &Headers,
        end: bool,
        upgrade: bool,
    ) -> Result<(), Reset> {
        match self {
            Self::H1(x) => x.send_head(headers, end, upgrade).await,
            Self::H2(x) => x.send_head(headers, end).await,
        }
    }

    /// Sends body bytes; may be buffered until [`Self::flush`].
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn send_data(&self, data: &Bytes) -> Result<(), Reset> {
        match self {
            Self::H1(x) => x.send_data(data).await,
            Self::H2(x) => x.send_data(data.clone(), false).await,
        }
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn flush(&self) -> Result<(), Reset> {
        match self {
            Self::H1(x) => x.flush().await,
            Self::H2(_) => Ok(()),
        }
    }

    /// Ends the request.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn finish(&self, trailers: Option<&Headers>) -> Result<(), Reset> {
        match self {
            Self::H1(x) => x.finish(trailers).await,
            Self::H2(x) => x.finish(trailers).await,
        }
    }

    /// Ends the request direction of a tunnel.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn shutdown(&self) -> Result<(), Reset> {
        match self {
            Self::H1(x) => {
                x.flush().await?;
                x.shutdown().await;
                Ok(())
            }
            Self::H2(x) => x.finish(None).await,
        }
    }

    /// Reads a response head, 1xx included.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn recv_head(&self) -> Result<Headers, Reset> {
        match self {
            Self::H1(x) => x.recv_head().await,
            Self::H2(x) => x.recv_head().await,
        }
    }

    /// Whether no body follows the head.
    #[must_use]
    pub fn body_done(&self) -> bool {
        match self {
            Self::H1(x) => x.body_done(),
            Self::H2(x) => x.body_done(),
        }
    }

    /// The next piece of the body if it needs no waiting.
    ///
    /// # Errors
    /// The stream was reset.
    pub fn buffered_body(&self) -> Result<Option<BodyFrame>, Reset> {
        match self {
            Self::H1(x) => x.buffered_body(),
            Self::H2(x) => x.buffered_body(),
        }
    }

    /// The next piece of the body.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn recv_body(&self) -> Result<BodyFrame, Reset> {
        match self {
            Self::H1(x) => x.recv_body().await,
            Self::H2(x) => x.recv_body().await,
        }
    }

    /// Whether any byte of the request was handed to the kernel.
    #[must_use]
    pub fn request_sent(&self) -> bool {
        match self {
            Self::H1(x) => x.request_sent.get(),
            Self::H2(x) => x.request_sent(),
        }
    }

    /// A pooled connection died under the request before any byte of an answer: the peer closed it while the
    /// request was on its way.
    #[must_use]
    pub fn died_in_pool(&self) -> bool {
        match self {
            Self::H1(x) => x.reused() && !x.response_begun.get(),
            Self::H2(_) => false,
        }
    }
}
