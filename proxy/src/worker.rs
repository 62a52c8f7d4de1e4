//! A worker: one thread with its own current-thread runtime. Connections, pools and streams live and die on
//! it, so nothing here is shared or locked.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::{io, process, thread};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;

use crate::control::store::Store;
use crate::listener::acceptor::{self, Handed};
use crate::listener::runtime::Binding;
use crate::upstream::pool::Pools;

/// What the control thread and other workers ask of a worker. Everything else is seen at the next load of a
/// table.
#[derive(Debug)]
pub enum Command {
    /// Accept from this socket until the binding is stopped.
    Listen {
        /// What the socket belongs to.
        binding: Arc<Binding>,
        /// This worker's socket.
        socket: std::net::TcpListener,
    },
    /// Serve a connection that another worker accepted.
    Serve(Handed),
    /// End at once; open connections are dropped.
    Stop,
}

/// Where commands for a worker go.
pub type CommandSender = UnboundedSender<Command>;

/// A running worker.
#[derive(Debug)]
pub struct WorkerHandle {
    /// Its commands.
    pub commands: CommandSender,
    thread: JoinHandle<()>,
}

impl WorkerHandle {
    /// Stops the worker and waits for its thread.
    pub fn stop(self) {
        // A worker that has ended has dropped its receiver; there is nothing left to stop then.
        let _ = self.commands.send(Command::Stop);
        if self.thread.join().is_err() {
            tracing::error!("a worker thread panicked while stopping");
        }
    }
}

/// State of one worker, reachable from each of its tasks.
#[derive(Debug)]
pub struct Worker {
    /// 0-based index, as in `worker_N` stats.
    pub index: u32,
    /// Number of workers.
    pub count: u32,
    /// Published configuration and shared services.
    pub store: Arc<Store>,
    /// Upstream connections of this worker.
    pub pools: RefCell<Pools>,
    /// Random state for balancing (xorshift; not for secrets).
    rng: Cell<u64>,
}

impl Worker {
    /// A worker's state. `seed` must differ between workers.
    #[must_use]
    pub fn new(index: u32, count: u32, store: Arc<Store>, seed: u64) -> Rc<Self> {
        Rc::new(Self {
            index,
            count,
            store,
            pools: RefCell::new(Pools::default()),
            rng: Cell::new(seed | 1),
        })
    }

    /// A pseudo-random number (xorshift64*): load balancing, jitter, sampling.
    pub fn random(&self) -> u64 {
        let mut x = self.rng.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.rng.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Runs a task on this worker's thread. Must be called from the worker's runtime.
    pub fn spawn<F: Future<Output = ()> + 'static>(future: F) -> tokio::task::JoinHandle<()> {
        tokio::task::spawn_local(future)
    }

    /// Starts a worker on a thread of its own. A panic in the worker's root (not in a connection) ends the
    /// process: half the connections would hang otherwise.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub fn start(index: u32, count: u32, store: Arc<Store>, seed: u64) -> io::Result<WorkerHandle> {
        let (commands, receiver) = unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = thread::Builder::new()
            .name(format!("wrk:worker_{index}"))
            .spawn(move || {
                let root = AssertUnwindSafe(|| {
                    let worker = Self::new(index, count, store, seed);
                    let local = LocalSet::new();
                    local.block_on(&runtime, worker.run(receiver));
                    // Connections go before the runtime they are registered with.
                    drop(local);
                });
                if catch_unwind(root).is_err() {
                    tracing::error!(worker = index, "worker panicked, ending the process");
                    process::exit(1);
                }
            })?;
        Ok(WorkerHandle { commands, thread })
    }

    /// Obeys commands until told to stop or the control thread is gone.
    pub async fn run(self: Rc<Self>, mut commands: UnboundedReceiver<Command>) {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Listen { binding, socket } => {
                    Self::spawn(acceptor::run(Rc::clone(&self), binding, socket));
                }
                Command::Serve(handed) => acceptor::serve_handed(&self, handed),
                Command::Stop => return,
            }
        }
    }
}
