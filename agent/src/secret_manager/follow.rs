//! Follows file secrets: events say when to look, content says whether anything is new, slow
//! polling covers what the kernel cannot watch. What is broken is never handed on.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::events::FileEvents;
use super::files::FileSecret;
use super::{SecretReceiver, SecretSender, SecretValue};

/// All files that are followed.
#[derive(Debug)]
pub(super) struct FileWatches {
    poll: Duration,
    retry: Duration,
    failures: Arc<AtomicU64>,
    events: Arc<FileEvents>,
    named: Arc<Mutex<HashMap<String, SecretSender>>>,
}

impl FileWatches {
    pub(super) fn new(poll: Duration, retry: Duration) -> Self {
        Self {
            poll,
            retry,
            failures: Arc::default(),
            events: FileEvents::new(),
            named: Arc::default(),
        }
    }

    /// `num_file_secret_failures_total`.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// `num_file_watcher_failures_total`.
    pub(super) fn watcher_failures(&self) -> u64 {
        self.events.failures()
    }

    /// Follows `secret` as long as somebody is subscribed to `name`.
    pub(super) fn subscribe(&self, name: &str, secret: FileSecret) -> SecretReceiver {
        let mut named = self.named.lock();
        if let Some(sender) = named.get(name) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(None);
        named.insert(name.to_owned(), sender.clone());
        let sink = sender.clone();
        let follow = self.follow(secret, move |value| {
            sink.send_replace(Some(value));
        });
        let (registry, name) = (Arc::clone(&self.named), name.to_owned());
        tokio::spawn(async move {
            tokio::pin!(follow);
            loop {
                tokio::select! {
                    () = &mut follow => {}
                    () = sender.closed() => {
                        let mut named = registry.lock();
                        // Under the lock nobody can subscribe in between.
                        if sender.receiver_count() == 0 {
                            named.remove(&name);
                            return;
                        }
                    }
                }
            }
        });
        receiver
    }

    /// Reads the files for ever and hands what is new and good to `sink`.
    pub(super) fn follow(
        &self,
        secret: FileSecret,
        sink: impl Fn(Arc<SecretValue>) + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (poll, retry) = (self.poll, self.retry);
        let (events, failures) = (Arc::clone(&self.events), Arc::clone(&self.failures));
        async move {
            let mut changes = events.subscribe();
            let mut served = Vec::new();
            let mut wait_after_error = retry;
            let mut reported = String::new();
            let mut _watched = events.watch(&secret.paths());
            loop {
                let result = secret.read().and_then(|content| {
                    let hash = content.hash();
                    if hash == served {
                        return Ok(None);
                    }
                    secret.check(content).map(|value| Some((hash, value)))
                });
                let wait = match result {
                    Ok(update) => {
                        wait_after_error = retry;
                        reported.clear();
                        if let Some((hash, value)) = update {
                            served = hash;
                            sink(Arc::new(value));
                        }
                        poll
                    }
                    Err(error) => {
                        let text = error.to_string();
                        if text != reported {
                            failures.fetch_add(1, Ordering::Relaxed);
                            tracing::warn!(error = text, "mounted secret is not usable");
                            reported = text;
                        }
                        let wait = wait_after_error;
                        wait_after_error = (wait_after_error * 2).min(poll);
                        wait
                    }
                };
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    // Never an error: this task holds the sender.
                    _ = changes.changed() => {}
                }
                // The new watches are there before the old ones go and before the files are read.
                _watched = events.watch(&secret.paths());
            }
        }
    }
}
