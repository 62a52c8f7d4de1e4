//! Relays bytes both ways between two streams. One buffer per direction, borrowed from the worker only while
//! bytes are under way, so that an idle connection holds none; half-close is passed on. Bulk between two plain
//! sockets stays in the kernel.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::io::splice::Splice;

/// First buffer of a direction.
const SMALL: usize = 16 * 1024;
/// Buffer of a direction whose reads fill the small one.
const LARGE: usize = 128 * 1024;
/// Buffers of each size a worker keeps for the next reader.
const KEPT: usize = 16;
/// A read of this size, after one that filled the small buffer, makes a direction bulk. Below it the copy is
/// cheaper than one more system call.
const BULK: usize = 32 * 1024;
/// Where a read begins in its buffer: half a page. Both ends of a long copy out of a TLS record would otherwise lie at
/// the same place of a page, and the copy that the C library chooses on AMD's Zen 3 and 4 is then several times slower
/// (glibc bug 30994): a fifth of the whole cost of a bulk transfer with mTLS.
const OFFSET: usize = 2048;
/// Reads of one direction before the other one has its turn.
const TURN: usize = 8;

thread_local! {
    static POOL: RefCell<[Vec<Box<[u8]>>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

fn borrow(size: usize) -> Box<[u8]> {
    POOL.with_borrow_mut(|pool| pool[usize::from(size == LARGE)].pop())
        .unwrap_or_else(|| vec![0; OFFSET + size].into())
}

fn give_back(buffer: Box<[u8]>) {
    POOL.with_borrow_mut(|pool| {
        let shelf = &mut pool[usize::from(buffer.len() == OFFSET + LARGE)];
        if shelf.len() < KEPT {
            shelf.push(buffer);
        }
    });
}

/// What a relay reports while it runs.
pub trait Meter {
    /// Bytes were read from the downstream side.
    fn upstream_bound(&mut self, bytes: usize);
    /// Bytes were read from the upstream side.
    fn downstream_bound(&mut self, bytes: usize);
}

/// One end of a relay.
pub trait Endpoint: AsyncRead + AsyncWrite + Unpin {
    /// The socket that the next read would read, if nothing lies between.
    fn source(&self) -> Option<&TcpStream> {
        None
    }

    /// The socket that a write goes to unchanged, if nothing lies between.
    fn sink(&self) -> Option<&TcpStream> {
        None
    }
}

/// Which side broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The downstream connection.
    Downstream,
    /// The upstream connection.
    Upstream,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Copying,
    /// The reader is at its end; the writer is to be shut down.
    Closing,
    Closed,
}

/// How a direction reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bulk {
    /// Into a buffer.
    No,
    /// Into a pipe, where both ends are plain sockets.
    Yes,
    /// Into a buffer, always: the sockets or the process's limits do not allow it otherwise.
    Never,
}

/// One direction.
#[derive(Debug)]
struct Direction {
    state: State,
    /// Bytes read and not yet written, with the range that is left.
    held: Option<(Box<[u8]>, usize, usize)>,
    /// Size of the next buffer.
    size: usize,
    /// Whether bytes arrive faster than a copy is worth.
    bulk: Bulk,
    /// The pipe of bulk that is under way.
    splice: Option<Splice>,
    /// Bytes were written since the last flush.
    dirty: bool,
}

impl Drop for Direction {
    fn drop(&mut self) {
        if let Some((buffer, ..)) = self.held.take() {
            give_back(buffer);
        }
    }
}

/// Which half of a direction broke.
enum Broken {
    Reader,
    Writer,
}

impl Direction {
    const fn new() -> Self {
        Self {
            state: State::Copying,
            held: None,
            size: SMALL,
            bulk: Bulk::No,
            splice: None,
            dirty: false,
        }
    }

    /// Moves bytes until nothing can be done. Ready when the direction is closed.
    fn poll<R: Endpoint, W: Endpoint>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        mut count: impl FnMut(usize),
    ) -> Poll<Result<(), Broken>> {
        let mut turns = 0;
        while self.state == State::Copying {
            ready!(self.poll_write(cx, writer)).map_err(|_| Broken::Writer)?;
            turns += 1;
            if turns > TURN {
                // Bulk in one direction must not starve the other or the rest of the worker.
                cx.waker().wake_by_ref();
                return self.pause(cx, writer);
            }
            match self.poll_read(cx, reader, writer) {
                Poll::Ready(Ok(0)) => self.state = State::Closing,
                Poll::Ready(Ok(n)) => count(n),
                Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    // TLS without close_notify: an end like any other, as the reference takes it.
                    self.state = State::Closing;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Reader)),
                Poll::Pending => return self.pause(cx, writer),
            }
        }
        if self.state == State::Closing {
            // A peer that is gone already cannot be told; its own direction reports that.
            let _ = ready!(Pin::new(writer).poll_shutdown(cx));
            self.state = State::Closed;
        }
        Poll::Ready(Ok(()))
    }

    fn pause<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<Result<(), Broken>> {
        if self.dirty {
            match Pin::new(writer).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.dirty = false,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Writer)),
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }

    fn poll_read<R: Endpoint, W: Endpoint>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &W,
    ) -> Poll<io::Result<usize>> {
        if self.bulk == Bulk::Yes
            && let (Some(source), Some(_)) = (reader.source(), writer.sink())
        {
            match self.poll_splice(cx, source) {
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.bulk = Bulk::Never;
                }
                other => return other,
            }
        }
        let mut buffer = borrow(self.size);
        let mut read = ReadBuf::new(&mut buffer[OFFSET..]);
        let result = Pin::new(reader).poll_read(cx, &mut read);
        let n = read.filled().len();
        match result {
            Poll::Ready(Ok(())) if n > 0 => {
                if self.bulk == Bulk::No && n >= BULK {
                    self.bulk = Bulk::Yes;
                }
                self.size = if n == self.size {
                    LARGE
                } else if n < SMALL {
                    SMALL
                } else {
                    self.size
                };
                self.held = Some((buffer, OFFSET, OFFSET + n));
                Poll::Ready(Ok(n))
            }
            other => {
                give_back(buffer);
                other.map_ok(|()| 0)
            }
        }
    }

    /// Reads into a pipe. It is held only while bytes are in it.
    fn poll_splice(&mut self, cx: &mut Context<'_>, source: &TcpStream) -> Poll<io::Result<usize>> {
        // Out of file descriptors: a buffer needs none.
        let Ok(mut splice) = Splice::new() else {
            return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
        };
        let read = splice.poll_fill(cx, source);
        match read {
            Poll::Ready(Ok(n)) if n > 0 => {
                self.splice = Some(splice);
                if n < SMALL {
                    (self.bulk, self.size) = (Bulk::No, SMALL);
                }
            }
            _ => splice.give_back(),
        }
        read
    }

    fn poll_write<W: Endpoint>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<io::Result<()>> {
        if let Some(splice) = &mut self.splice {
            let Some(sink) = writer.sink() else {
                return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
            };
            ready!(splice.poll_drain(cx, sink))?;
            if let Some(splice) = self.splice.take() {
                splice.give_back();
            }
        }
        while let Some((buffer, start, end)) = &mut self.held {
            let n = ready!(Pin::new(&mut *writer).poll_write(cx, &buffer[*start..*end]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.dirty = true;
            *start += n;
            if *start == *end
                && let Some((buffer, ..)) = self.held.take()
            {
                give_back(buffer);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A relay between a downstream and an upstream stream.
#[derive(Debug)]
pub struct Relay {
    up: Direction,
    down: Direction,
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            up: Direction::new(),
            down: Direction::new(),
        }
    }
}

impl Relay {
    /// Moves bytes until nothing can be done. Ready when both directions are closed, or one side broke.
    pub fn poll<D, U>(
        &mut self,
        cx: &mut Context<'_>,
        downstream: &mut D,
        upstream: &mut U,
        meter: &mut impl Meter,
    ) -> Poll<Result<(), Side>>
    where
        D: Endpoint,
        U: Endpoint,
    {
        let up = self
            .up
            .poll(cx, downstream, upstream, |n| meter.upstream_bound(n))
            .map_err(|broken| match broken {
                Broken::Reader => Side::Downstream,
                Broken::Writer => Side::Upstream,
            })?;
        let down = self
            .down
            .poll(cx, upstream, downstream, |n| meter.downstream_bound(n))
            .map_err(|broken| match broken {
                Broken::Reader => Side::Upstream,
                Broken::Writer => Side::Downstream,
            })?;
        if up.is_ready() && down.is_ready() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use crate::io::stream::{Rewound, Stream};

    #[derive(Default)]
    struct Count(usize, usize);
    impl Meter for Count {
        fn upstream_bound(&mut self, bytes: usize) {
            self.0 += bytes;
        }
        fn downstream_bound(&mut self, bytes: usize) {
            self.1 += bytes;
        }
    }

    impl Endpoint for DuplexStream {}

    async fn relay(mut a: DuplexStream, mut b: DuplexStream) -> (Result<(), Side>, Count) {
        let (mut relay, mut bytes) = (Relay::default(), Count::default());
        let result = poll_fn(|cx| relay.poll(cx, &mut a, &mut b, &mut bytes)).await;
        (result, bytes)
    }

    #[tokio::test]
    async fn half_close_is_relayed_and_the_other_direction_goes_on() {
        let (mut client, a) = duplex(1000);
        let (b, mut server) = duplex(1000);
        let relayed = tokio::spawn(relay(a, b));
        let talk = async {
            client.write_all(b"request").await.expect("write");
            client.shutdown().await.expect("shutdown");
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.expect("end is relayed");
            assert_eq!(got, b"request");
            let answer = async {
                server.write_all(&[7; 5000]).await.expect("still open");
                server.shutdown().await.expect("shutdown");
            };
            let mut got = Vec::new();
            let ((), read) = tokio::join!(answer, client.read_to_end(&mut got));
            read.expect("read")
        };
        let n = tokio::time::timeout(Duration::from_secs(10), talk)
            .await
            .expect("in time");
        assert_eq!(n, 5000);
        let (result, bytes) = relayed.await.expect("no panic");
        assert_eq!(result, Ok(()));
        assert_eq!((bytes.0, bytes.1), (7, 5000));
    }

    #[tokio::test]
    async fn bulk_arrives_whole_and_no_buffer_is_held_afterwards() {
        let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let (mut client, a) = duplex(300_000);
        let (b, mut server) = duplex(300_000);
        let expected = data.clone();
        let relayed = tokio::spawn(relay(a, b));
        let write = tokio::spawn(async move {
            client.write_all(&data).await.expect("write");
            client.shutdown().await.expect("shutdown");
            client
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.expect("read");
        assert!(got == expected);
        drop(server);
        drop(write.await.expect("no panic"));
        let (_, bytes) = relayed.await.expect("no panic");
        assert_eq!(bytes.0, 3_000_000);
    }

    /// A connected pair on loopback; the first end is a relay's.
    async fn pair() -> (Stream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("bind");
        let address = listener.local_addr().expect("address");
        let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (socket, _) = accepted.expect("accept");
        let end = Stream::Plain(Rewound::new(Bytes::new(), socket));
        (end, peer.expect("connect"))
    }

    #[tokio::test]
    async fn bulk_between_sockets_goes_through_a_pipe_whole_and_in_order() {
        const LENGTH: usize = 20_000_000;
        let ((mut a, mut client), (mut b, mut server)) = (pair().await, pair().await);
        let data: Vec<u8> = (0..LENGTH as u32).map(|i| (i % 251) as u8).collect();
        let expected = data.clone();
        let write = tokio::spawn(async move {
            client.write_all(&data).await.expect("write");
            let mut answer = Vec::new();
            client.shutdown().await.expect("shutdown");
            client.read_to_end(&mut answer).await.expect("read");
            answer
        });
        let read = tokio::spawn(async move {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.expect("read");
            server.write_all(b"got it").await.expect("write");
            drop(server);
            got
        });
        let (mut relay, mut bytes, mut spliced) = (Relay::default(), Count::default(), false);
        let result = poll_fn(|cx| {
            let result = relay.poll(cx, &mut a, &mut b, &mut bytes);
            spliced |= relay.up.bulk == Bulk::Yes;
            result
        })
        .await;
        assert_eq!(result, Ok(()));
        assert!(read.await.expect("no panic") == expected);
        drop((a, b));
        assert_eq!(write.await.expect("no panic"), b"got it");
        assert_eq!((bytes.0, bytes.1), (LENGTH, 6));
        assert!(spliced, "20 MB are bulk");
    }
}
