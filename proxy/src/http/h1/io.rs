//! Buffered byte IO of one HTTP/1 connection. Reading and writing take `&self`, so that one task can stream
//! both directions at once; borrows never live over an await.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::io::stream::Stream;

/// First read of a connection: enough for most heads, small enough for many idle connections.
const MIN_READ: usize = 4 * 1024;
/// Largest read while a body streams.
const MAX_READ: usize = 64 * 1024;

/// Stream with a read buffer and a write buffer.
#[derive(Debug)]
pub struct H1Io {
    stream: RefCell<Stream>,
    read: RefCell<BytesMut>,
    write: RefCell<Vec<u8>>,
    read_size: Cell<usize>,
    /// Bytes read off the stream.
    pub rx: Cell<u64>,
    /// Bytes written to the stream.
    pub tx: Cell<u64>,
}

impl H1Io {
    /// Wraps a stream; `initial` was read off it already.
    #[must_use]
    pub fn new(stream: Stream, initial: BytesMut) -> Self {
        Self {
            stream: RefCell::new(stream),
            read: RefCell::new(initial),
            write: RefCell::new(Vec::new()),
            read_size: Cell::new(MIN_READ),
            rx: Cell::new(0),
            tx: Cell::new(0),
        }
    }

    /// The stream and what was read of it but not consumed.
    #[must_use]
    pub fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream.into_inner(), self.read.into_inner())
    }

    /// Works on the buffered input.
    pub fn with_input<T>(&self, f: impl FnOnce(&mut BytesMut) -> T) -> T {
        f(&mut self.read.borrow_mut())
    }

    /// Works on the pending output.
    pub fn with_output<T>(&self, f: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        f(&mut self.write.borrow_mut())
    }

    /// Works on the stream.
    pub fn with_stream<T>(&self, f: impl FnOnce(&mut Stream) -> T) -> T {
        f(&mut self.stream.borrow_mut())
    }

    /// Bytes waiting to be written.
    #[must_use]
    pub fn pending_output(&self) -> usize {
        self.write.borrow().len()
    }

    /// Gives an empty read buffer's memory back: for connections that wait.
    pub fn shrink(&self) {
        let mut read = self.read.borrow_mut();
        if read.is_empty() {
            *read = BytesMut::new();
        }
        let mut write = self.write.borrow_mut();
        if write.is_empty() && write.capacity() > MIN_READ {
            *write = Vec::new();
        }
        self.read_size.set(MIN_READ);
    }

    /// Polls for more input; 0 = the peer closed.
    pub fn poll_fill(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut read = self.read.borrow_mut();
        let size = self.read_size.get();
        if read.capacity() - read.len() < size / 2 {
            read.reserve(size);
        }
        let mut stream = self.stream.borrow_mut();
        let poll = pin!(stream.read_buf(&mut *read)).poll(cx);
        if let Poll::Ready(Ok(n)) = poll {
            self.rx.set(self.rx.get() + n as u64);
            // A full buffer means bulk data: read more at once next time.
            if read.len() == read.capacity() && size < MAX_READ {
                self.read_size.set(size * 2);
            }
        }
        poll
    }

    /// Reads more input; 0 = the peer closed.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn fill(&self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Writes the pending output.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn flush(&self) -> io::Result<()> {
        let mut at = 0;
        poll_fn(|cx| {
            let mut write = self.write.borrow_mut();
            let mut stream = self.stream.borrow_mut();
            while at < write.len() {
                match Pin::new(&mut *stream).poll_write(cx, &write[at..]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(n)) => {
                        at += n;
                        self.tx.set(self.tx.get() + n as u64);
                    }
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            write.clear();
            if write.capacity() > MAX_READ {
                *write = Vec::new();
            }
            // TLS may still hold records the socket did not take.
            Pin::new(&mut *stream).poll_flush(cx)
        })
        .await
    }

    /// Sends FIN (and close_notify).
    pub async fn shutdown(&self) {
        // A peer that is gone needs no FIN.
        let _ = poll_fn(|cx| Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx)).await;
    }
}
