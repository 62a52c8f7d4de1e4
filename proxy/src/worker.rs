//! A worker: one thread with its own current-thread runtime. Connections, pools and streams live and die on
//! it, so nothing here is shared or locked.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use crate::control::store::Store;
use crate::upstream::pool::Pools;

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
}
