//! The proxy as a child process: start, watch, drain, end. Owns the exit code of a running agent.
//! The child never outlives the agent, and nothing here can keep the agent from ending.

mod command;
mod drain;

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::process::Child;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

pub use command::{ProxyCommand, spawn};
pub use drain::{AdminClient, DrainError};

use crate::options::DrainOptions;

/// Exit code when the proxy died by itself. The reference ends with 0, so that a Job looks
/// complete and `restartPolicy: OnFailure` does nothing; see docs/pilot-agent.md.
pub const EXIT_PROXY_DIED: u8 = 1;

/// What the status server and the supervisor tell each other.
#[derive(Debug, Default)]
pub struct Lifecycle {
    quit: Notify,
    skip_drain: AtomicBool,
    terminating: AtomicBool,
}

impl Lifecycle {
    /// `/quitquitquit`: end at once.
    pub fn quit(&self) {
        self.skip_drain.store(true, Ordering::SeqCst);
        self.quit.notify_one();
    }

    /// `/drain` has been done; a later signal must not drain again.
    pub fn drained(&self) {
        self.skip_drain.store(true, Ordering::SeqCst);
    }

    /// Whether the agent is on its way out.
    pub fn is_terminating(&self) -> bool {
        self.terminating.load(Ordering::SeqCst)
    }

    fn terminate(&self) {
        self.terminating.store(true, Ordering::SeqCst);
    }
}

/// The signal handlers cannot be installed.
#[derive(Debug, thiserror::Error)]
#[error("cannot handle signals: {0}")]
pub struct SignalError(#[from] std::io::Error);

/// SIGTERM and SIGINT. Made before the proxy starts, so that none is lost.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// System errors.
    pub fn install() -> Result<Self, SignalError> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self {
            terminate,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next of either.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Runs one proxy to its end.
pub struct Supervisor {
    /// Shared with the status server.
    pub lifecycle: Arc<Lifecycle>,
    /// How to end.
    pub drain: DrainOptions,
    /// The proxy's admin port.
    pub admin: AdminClient,
    /// Removed at the end; `None` if the file is the user's.
    pub bootstrap: Option<PathBuf>,
}

impl Supervisor {
    /// Starts the proxy and waits until it or the agent is to end. Returns the exit code: 0 after
    /// a signal, a quit or a proxy that ended with 0, else [`EXIT_PROXY_DIED`].
    pub async fn run(&self, command: &ProxyCommand, signals: &mut Signals) -> u8 {
        tracing::info!("{}", self.plan());
        tracing::info!("Envoy command: {:?}", command.arguments);
        let before = oom_kills();
        let code = match spawn(command) {
            Ok(mut child) => self.watch(&mut child, before, signals).await,
            Err(e) => {
                tracing::error!("cannot start {}: {e}", command.binary.display());
                EXIT_PROXY_DIED
            }
        };
        self.lifecycle.terminate();
        self.remove_bootstrap();
        code
    }

    /// Without a proxy there is only the end to wait for.
    pub async fn run_without_proxy(&self, signals: &mut Signals) -> u8 {
        tokio::select! {
            name = signals.next() => tracing::info!("{name} received, ending"),
            () = self.lifecycle.quit.notified() => tracing::info!("quit requested, ending"),
        }
        self.lifecycle.terminate();
        0
    }

    fn plan(&self) -> String {
        let DrainOptions {
            termination,
            minimum,
            exit_on_zero,
            ..
        } = &self.drain;
        if *exit_on_zero {
            let limit = self.drain.limit();
            format!(
                "at termination: drain, wait {minimum:?}, then until no connection is left, in \
                 all at most {limit:?}"
            )
        } else {
            format!("at termination: drain, wait {termination:?}")
        }
    }

    async fn watch(&self, child: &mut Child, before: Option<u64>, signals: &mut Signals) -> u8 {
        let reason = tokio::select! {
            status = child.wait() => return exited(status, before),
            name = signals.next() => name,
            () = self.lifecycle.quit.notified() => "quit request",
        };
        tracing::info!("{reason} received, ending");
        self.lifecycle.terminate();
        if !self.lifecycle.skip_drain.load(Ordering::SeqCst) {
            tokio::select! {
                status = child.wait() => {
                    exited(status, before);
                    return 0;
                }
                () = self.drain() => {}
                name = signals.next() => tracing::warn!("{name} received again, ending at once"),
                () = self.lifecycle.quit.notified() => {}
            }
        }
        kill(child).await;
        0
    }

    async fn drain(&self) {
        tracing::info!("Agent draining Proxy for termination");
        if let Err(e) = self.admin.drain(self.drain.inbound_only, false).await {
            tracing::warn!("failed draining listeners: {e}");
        }
        if !self.drain.exit_on_zero {
            tracing::info!(
                "Graceful termination period is {:?}, starting...",
                self.drain.termination
            );
            tokio::time::sleep(self.drain.termination).await;
            tracing::info!("Graceful termination period complete, terminating remaining proxies.");
            return;
        }
        let limit = self.drain.limit();
        let wait = async {
            tokio::time::sleep(self.drain.minimum).await;
            self.admin
                .wait_for_zero_connections(&self.drain.own_ports)
                .await;
        };
        if tokio::time::timeout(limit, wait).await.is_err() {
            tracing::warn!("Connections are left after {limit:?}, ending all the same");
        }
    }

    fn remove_bootstrap(&self) {
        let Some(path) = &self.bootstrap else { return };
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("Failed to delete config file {}: {e}", path.display());
            }
            _ => {}
        }
    }
}

/// The proxy ended although nobody asked it to. `before`: kills for memory when it started.
fn exited(status: std::io::Result<ExitStatus>, before: Option<u64>) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let status = match status {
        Ok(status) => status,
        Err(e) => {
            tracing::error!("cannot wait for Envoy: {e}");
            return EXIT_PROXY_DIED;
        }
    };
    if status.success() {
        tracing::info!("Envoy exited normally");
        return 0;
    }
    tracing::error!("Envoy exited with error: {status}");
    if status.signal() == Some(libc::SIGKILL) {
        tracing::warn!("{}", kill_reason(before, oom_kills()));
    }
    EXIT_PROXY_DIED
}

/// What is known of a SIGKILL that the agent did not send.
fn kill_reason(before: Option<u64>, now: Option<u64>) -> &'static str {
    match (before, now) {
        (Some(before), Some(now)) if now > before => {
            "Envoy was killed for memory: the cgroup counted the kill (oom_kill in memory.events). \
             Raise the memory limit of the container, or give the proxy less configuration."
        }
        (Some(_), Some(_)) => {
            "Envoy was killed, and not for the memory limit of the container: its cgroup counts no \
             such kill. The node may have run out of memory, or somebody sent SIGKILL."
        }
        _ => "Envoy may have been out of memory killed. Check memory usage and limits.",
    }
}

/// The cgroup's own count of processes killed for memory.
fn oom_kills() -> Option<u64> {
    let text = std::fs::read_to_string("/sys/fs/cgroup/memory.events").ok()?;
    text.lines()
        .find_map(|l| l.strip_prefix("oom_kill "))
        .and_then(|n| n.parse().ok())
}

/// SIGKILL, and wait: outside of a container a proxy left behind would keep its ports.
async fn kill(child: &mut Child) {
    tracing::warn!("Aborting proxy");
    if let Err(e) = child.start_kill() {
        tracing::warn!("killing proxy caused an error {e}");
    }
    match tokio::time::timeout(KILL_LIMIT, child.wait()).await {
        Ok(_) => {}
        Err(_) => tracing::error!("the proxy did not end within {KILL_LIMIT:?} of SIGKILL"),
    }
}

/// Only a process stuck in the kernel takes longer.
const KILL_LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_explained_by_the_counter_of_the_cgroup() {
        for (before, now, want) in [
            (Some(1), Some(2), "was killed for memory"),
            (Some(2), Some(2), "not for the memory limit"),
            (None, Some(2), "may have been"),
            (None, None, "may have been"),
        ] {
            let text = kill_reason(before, now);
            assert!(text.contains(want), "{before:?} {now:?}: {text}");
        }
    }
}
