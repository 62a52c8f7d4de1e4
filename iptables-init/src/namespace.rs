//! Enters a pod's network namespace from the node, on a thread of its own, so that the rest of
//! the process stays where it is. In CNI mode that thread also hides two files of the node from
//! the iptables programs it starts.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::log::Log;

/// Lock of legacy iptables programs before 1.8.6; the node's kube-proxy uses it too.
const XTABLES_LOCK: &str = "/run/xtables.lock";
/// The owner match of the iptables programs asks name services that this file lists.
const NSSWITCH: &str = "/etc/nsswitch.conf";

/// Why the namespace could not be entered.
#[derive(Debug, thiserror::Error)]
#[error("failed to enter the network namespace {}: {source}", path.display())]
pub struct NamespaceError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Runs `work` in the network namespace that `path` refers to. With `sandbox` in a mount
/// namespace too, where the programs find a lock file and no name service of their own; if that
/// cannot be had, a warning says so and `work` runs without.
///
/// # Errors
/// The namespace cannot be opened or entered; `work` did not run then.
pub fn inside<T: Send>(
    path: &Path,
    sandbox: bool,
    log: &Log,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NamespaceError> {
    let failed = |source| NamespaceError {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            if sandbox && let Err(error) = hide_node_files(path) {
                log.warn(&format!(
                    "running without a sandbox for the iptables programs: {error}"
                ));
            }
            Ok(work())
        });
        let result = thread.map_err(failed)?.join();
        // A panic of `work` goes on in the thread that asked for it.
        let result: Result<T, Errno> = result.unwrap_or_else(|p| std::panic::resume_unwind(p));
        result.map_err(|errno| failed(errno.into()))
    })
}

fn hide_node_files(namespace: &Path) -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing = None::<&str>;
    let private = |flag| mount(nothing, "/", nothing, flag | MsFlags::MS_REC, nothing);
    private(MsFlags::MS_PRIVATE).or_else(|_| private(MsFlags::MS_SLAVE))?;
    let bind = |from: &Path, to: &str| {
        if !Path::new(to).exists() {
            return Ok(());
        }
        mount(Some(from), to, nothing, MsFlags::MS_BIND, nothing)
    };
    bind(namespace, XTABLES_LOCK)?;
    bind(Path::new("/dev/null"), NSSWITCH)
}
