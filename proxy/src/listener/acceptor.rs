//! Accept loop of one worker and socket: error classes, connection limit, balance between workers, and the
//! start of each connection's task. A panic in a connection closes that connection, no more.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::io::socket;
use crate::listener::filter_chain;
use crate::listener::runtime::{Binding, ListenerRuntime};
use crate::worker::{Command, Worker};

/// Process-wide connection ids, never 0.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(100);

/// A connection just accepted.
#[derive(Debug)]
pub struct Accepted {
    /// Process-wide id.
    pub id: u64,
    /// When.
    pub start: Instant,
    /// When, wall clock.
    pub start_time: SystemTime,
    /// Local address of the socket.
    pub direct_local: SocketAddr,
    /// Peer.
    pub remote: SocketAddr,
    /// The listener that accepted it.
    pub runtime: Arc<ListenerRuntime>,
}

/// A connection on its way to another worker.
#[derive(Debug)]
pub struct Handed {
    accepted: Accepted,
    socket: std::net::TcpStream,
}

/// What an accept error means for the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AcceptError {
    /// The connection is gone; the next one is fine.
    Connection,
    /// No descriptors or memory: wait.
    Exhausted,
    /// The socket is unusable.
    Permanent,
}

fn classify(error: &io::Error) -> AcceptError {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => AcceptError::Exhausted,
        Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT) => {
            AcceptError::Permanent
        }
        // ECONNABORTED, EPROTO, EPERM of a firewall, network errors of the connection itself.
        _ => AcceptError::Connection,
    }
}

/// Accepts until the binding stops.
pub async fn run(worker: Rc<Worker>, binding: Arc<Binding>, socket: std::net::TcpListener) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, address = %binding.address, "cannot watch a listening socket");
            return;
        }
    };
    let mut stop = binding.stop_signal();
    let mut backoff = BACKOFF_MIN;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => {
                backoff = BACKOFF_MIN;
                admit(&worker, &binding, stream, remote);
            }
            Err(error) => match classify(&error) {
                AcceptError::Connection => tracing::debug!(%error, "accept failed"),
                AcceptError::Exhausted => {
                    tracing::warn!(%error, address = %binding.address, "accept failed, waiting");
                    let half = backoff / 2;
                    let jitter = worker.random() % (half.as_micros() as u64).max(1);
                    tokio::time::sleep(half + Duration::from_micros(jitter)).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
                AcceptError::Permanent => {
                    tracing::error!(%error, address = %binding.address, "listening socket is unusable");
                    return;
                }
            },
        }
    }
}

/// Checks the limit and decides which worker serves.
fn admit(worker: &Rc<Worker>, binding: &Binding, stream: TcpStream, remote: SocketAddr) {
    let runtime = binding.runtime.load_full();
    if !runtime.config.ignore_global_conn_limit && !runtime.shared.limit.acquire() {
        runtime.stats.global_cx_overflow.inc();
        socket::reset_on_close(&stream);
        return;
    }
    let direct_local = if binding.address.ip().is_unspecified() {
        stream.local_addr().unwrap_or(binding.address)
    } else {
        binding.address
    };
    let accepted = Accepted {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        start: Instant::now(),
        start_time: SystemTime::now(),
        direct_local,
        remote,
        runtime,
    };
    let load = &accepted.runtime.load;
    let target = if accepted.runtime.config.exact_balance {
        least_loaded(load)
    } else {
        None
    };
    let target = target.unwrap_or(worker.index as usize);
    if let Some(load) = load.get(target) {
        load.fetch_add(1, Ordering::AcqRel);
    }
    if target == worker.index as usize {
        start(worker, accepted, stream);
    } else {
        hand_over(target, accepted, stream);
    }
}

fn least_loaded(load: &[AtomicU64]) -> Option<usize> {
    let loads = load
        .iter()
        .enumerate()
        .map(|(i, l)| (l.load(Ordering::Acquire), i));
    loads.min().map(|(_, i)| i)
}

fn hand_over(target: usize, accepted: Accepted, stream: TcpStream) {
    let runtime = Arc::clone(&accepted.runtime);
    let sent = stream
        .into_std()
        .ok()
        .zip(runtime.shared.workers.get(target))
        .map(|(socket, commands)| {
            commands
                .send(Command::Serve(Handed { accepted, socket }))
                .is_ok()
        });
    if sent != Some(true) {
        tracing::error!(worker = target, "cannot hand a connection over");
        give_back(&runtime, target);
    }
}

/// Serves a connection accepted by another worker.
pub fn serve_handed(worker: &Rc<Worker>, handed: Handed) {
    match TcpStream::from_std(handed.socket) {
        Ok(stream) => start(worker, handed.accepted, stream),
        Err(error) => {
            tracing::error!(%error, "cannot watch a connection");
            give_back(&handed.accepted.runtime, worker.index as usize);
        }
    }
}

fn give_back(runtime: &ListenerRuntime, worker: usize) {
    if let Some(load) = runtime.load.get(worker) {
        load.fetch_sub(1, Ordering::AcqRel);
    }
    if !runtime.config.ignore_global_conn_limit {
        runtime.shared.limit.release();
    }
}

/// Gives the connection's places back however its task ends.
struct Place {
    runtime: Arc<ListenerRuntime>,
    worker: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        give_back(&self.runtime, self.worker);
    }
}

fn start(worker: &Rc<Worker>, accepted: Accepted, stream: TcpStream) {
    let place = Place {
        runtime: Arc::clone(&accepted.runtime),
        worker: worker.index as usize,
    };
    let id = accepted.id;
    let worker = Rc::clone(worker);
    Worker::spawn(async move {
        let served = filter_chain::serve(Rc::clone(&worker), accepted, stream);
        if AssertUnwindSafe(served).catch_unwind().await.is_err() {
            worker.store.stats.counter("server.connection_panics").inc();
            tracing::error!(
                connection = id,
                "a connection's task panicked; the connection is closed"
            );
        }
        drop(place);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_errors_are_told_apart() {
        let cases = [
            (libc::EMFILE, AcceptError::Exhausted),
            (libc::ENFILE, AcceptError::Exhausted),
            (libc::ENOMEM, AcceptError::Exhausted),
            (libc::ECONNABORTED, AcceptError::Connection),
            (libc::EPERM, AcceptError::Connection),
            (libc::ENETDOWN, AcceptError::Connection),
            (libc::EBADF, AcceptError::Permanent),
            (libc::EINVAL, AcceptError::Permanent),
        ];
        for (code, expected) in cases {
            assert_eq!(
                classify(&io::Error::from_raw_os_error(code)),
                expected,
                "errno {code}"
            );
        }
    }

    #[test]
    fn the_worker_with_fewest_connections_is_chosen() {
        let load: Vec<_> = [3, 1, 1, 2].into_iter().map(AtomicU64::new).collect();
        assert_eq!(least_loaded(&load), Some(1));
        assert_eq!(least_loaded(&[]), None);
    }
}
