//! The byte stream under a filter chain or an upstream connection: plain, with replayed bytes, or TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::io::copy::Endpoint;

/// A stream whose first bytes were read (by a listener filter, or to tell the HTTP version) and are replayed.
#[derive(Debug)]
pub struct Rewound<S = TcpStream> {
    prefix: Bytes,
    socket: S,
}

impl<S> Rewound<S> {
    /// `prefix` is read before anything of `socket`.
    #[must_use]
    pub const fn new(prefix: Bytes, socket: S) -> Self {
        Self { prefix, socket }
    }
}

impl Rewound {
    /// Bytes read and not yet replayed.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Reads once from the socket and appends it to what will be replayed. 0 = end of stream.
    ///
    /// # Errors
    /// When the socket breaks.
    pub async fn fill(&mut self) -> io::Result<usize> {
        let mut bytes = Vec::with_capacity(self.prefix.len() + 2048);
        bytes.extend_from_slice(&self.prefix);
        let read = tokio::io::AsyncReadExt::read_buf(&mut self.socket, &mut bytes).await?;
        self.prefix = bytes.into();
        Ok(read)
    }

    /// Takes the socket out; bytes not yet replayed are lost.
    #[must_use]
    pub fn into_socket(self) -> TcpStream {
        self.socket
    }

    /// The socket, for options and addresses.
    #[must_use]
    pub const fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

/// A byte stream of any kind. TLS variants are boxed: they are large and the enum moves a lot.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Plain(Rewound),
    /// TLS terminated here (downstream).
    ServerTls(Box<tokio_rustls::server::TlsStream<Rewound>>),
    /// TLS originated here (upstream).
    ClientTls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// Unix socket (pipe endpoints).
    Unix(UnixStream),
}

impl Stream {
    /// The TCP socket below, if there is one.
    #[must_use]
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(s) => Some(s.socket()),
            Self::ServerTls(s) => Some(s.get_ref().0.socket()),
            Self::ClientTls(s) => Some(s.get_ref().0),
            Self::Unix(_) => None,
        }
    }

    /// Whether bytes are encrypted.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        matches!(self, Self::ServerTls(_) | Self::ClientTls(_))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.has_remaining() {
            let n = self.prefix.remaining().min(buf.remaining());
            buf.put_slice(&self.prefix[..n]);
            self.prefix.advance(n);
            if !self.prefix.has_remaining() {
                self.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

macro_rules! each {
    ($self:ident, $s:ident => $e:expr) => {
        match $self.get_mut() {
            Stream::Plain($s) => $e,
            Stream::ServerTls($s) => $e,
            Stream::ClientTls($s) => $e,
            Stream::Unix($s) => $e,
        }
    };
}

impl Endpoint for Stream {
    fn source(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(s) if s.prefix().is_empty() => Some(s.socket()),
            _ => None,
        }
    }

    fn sink(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(s) => Some(s.socket()),
            _ => None,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, s => Pin::new(s).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, s => Pin::new(s).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(s) => s.is_write_vectored(),
            Self::ServerTls(s) => s.is_write_vectored(),
            Self::ClientTls(s) => s.is_write_vectored(),
            Self::Unix(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}
