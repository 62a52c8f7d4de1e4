//! Drain state of a filter chain generation or of the whole process, seen by each connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// How far draining is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Serving.
    Active,
    /// Ask clients to leave (`connection: close`, GOAWAY), keep serving.
    Draining,
    /// Close now.
    Close,
}

/// The writing side.
#[derive(Debug)]
pub struct DrainHandle {
    flag: Arc<AtomicBool>,
    sender: watch::Sender<Phase>,
}

/// The reading side, one per connection (cheap to clone).
#[derive(Debug, Clone)]
pub struct Drain {
    flag: Arc<AtomicBool>,
    receiver: watch::Receiver<Phase>,
}

impl Default for DrainHandle {
    fn default() -> Self {
        Self {
            flag: Arc::default(),
            sender: watch::channel(Phase::Active).0,
        }
    }
}

impl DrainHandle {
    /// A reader.
    #[must_use]
    pub fn subscribe(&self) -> Drain {
        Drain {
            flag: Arc::clone(&self.flag),
            receiver: self.sender.subscribe(),
        }
    }

    /// Starts draining.
    pub fn drain(&self) {
        self.flag.store(true, Ordering::Release);
        self.sender.send_if_modified(|p| {
            *p == Phase::Active && {
                *p = Phase::Draining;
                true
            }
        });
    }

    /// Ends the drain window: connections close now.
    pub fn close(&self) {
        self.flag.store(true, Ordering::Release);
        self.sender.send_replace(Phase::Close);
    }
}

impl Drain {
    /// Whether answers must tell the client to leave: one atomic load.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    /// Completes when draining starts. If the handle is gone it never completes: the owner kept serving.
    pub async fn draining(&mut self) {
        if self
            .receiver
            .wait_for(|p| *p != Phase::Active)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }

    /// Completes when the connection must close.
    pub async fn closing(&mut self) {
        if self
            .receiver
            .wait_for(|p| *p == Phase::Close)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }
}
