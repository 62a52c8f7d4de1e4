//! Moves bytes between two sockets inside the kernel: splice(2) through a pipe, so that bulk of a plain
//! connection is never copied into this process. A worker lends pipes, so that an idle connection holds none.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Pipe size asked for, in bytes; the kernel may give less (its default is 64 KiB).
const SIZE: i32 = 512 * 1024;
/// Most bytes asked for in one call. What a pipe takes is bounded by its slots.
const MOST: usize = 1024 * 1024;
/// Empty pipes a worker keeps for the next bulk.
const KEPT: usize = 8;

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    fn open() -> io::Result<Self> {
        let (out, into) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        // Beyond the user's pipe budget the default size is kept.
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(SIZE));
        Ok(Self { out, into })
    }
}

/// Bytes of one direction on their way through a pipe.
#[derive(Debug)]
pub(super) struct Splice {
    pipe: Pipe,
    /// Bytes in the pipe.
    held: usize,
}

impl Splice {
    /// Takes a pipe from the worker's pool or opens one.
    ///
    /// # Errors
    /// When no file descriptor is left.
    pub(super) fn new() -> io::Result<Self> {
        let pipe = match POOL.with_borrow_mut(Vec::pop) {
            Some(pipe) => pipe,
            None => Pipe::open()?,
        };
        Ok(Self { pipe, held: 0 })
    }

    /// Lends the pipe to the next bulk. One with bytes of this connection in it is closed instead.
    pub(super) fn give_back(self) {
        if self.is_empty() {
            POOL.with_borrow_mut(|pool| {
                if pool.len() < KEPT {
                    pool.push(self.pipe);
                }
            });
        }
    }

    const fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes bytes of `reader` into the empty pipe. 0 = end of stream.
    ///
    /// # Errors
    /// When the socket breaks; `InvalidInput` when it cannot be spliced.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        reader: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(
            self.is_empty(),
            "a full pipe and a dry socket look the same"
        );
        let n = loop {
            ready!(reader.poll_read_ready(cx))?;
            match reader.try_io(Interest::READABLE, || step(reader, &self.pipe.into, MOST)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => break other?,
            }
        };
        self.held = n;
        Poll::Ready(Ok(n))
    }

    /// Hands what is in the pipe to `writer`.
    ///
    /// # Errors
    /// When the socket breaks.
    pub(super) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        writer: &TcpStream,
    ) -> Poll<io::Result<()>> {
        while self.held > 0 {
            ready!(writer.poll_write_ready(cx))?;
            match writer.try_io(Interest::WRITABLE, || {
                step(&self.pipe.out, writer, self.held)
            }) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                other => self.held -= other?,
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn step(
    from: &impl std::os::fd::AsFd,
    to: &impl std::os::fd::AsFd,
    most: usize,
) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        match splice(from, None, to, None, most, flags) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}
