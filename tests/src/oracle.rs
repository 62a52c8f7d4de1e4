//! A proxy process with a given bootstrap: a real Envoy as the oracle, or the product, started alike.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use crate::fixtures::Product;
use crate::probe;

/// Why a proxy could not be started.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// Spawning or writing its files failed.
    #[error("starting {binary}: {source}")]
    Start {
        /// The binary.
        binary: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It ended before it was ready.
    #[error("{binary} ended with {status} before it was ready; it said:\n{log}")]
    Ended {
        /// The binary.
        binary: PathBuf,
        /// Exit status.
        status: std::process::ExitStatus,
        /// Its standard error.
        log: String,
    },
    /// It did not become ready in time.
    #[error("{binary} not ready after {seconds} s; it said:\n{log}")]
    NotReady {
        /// The binary.
        binary: PathBuf,
        /// The deadline that passed.
        seconds: u64,
        /// Its standard error.
        log: String,
    },
}

/// A real Envoy: `$ENVOY_BIN`, the `envoy` Python package of the interpreter in
/// `$OUTRIGGER_VENV` or the user's cache, or `envoy` on the path.
pub fn find_envoy() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY_BIN") {
        return Some(PathBuf::from(path));
    }
    let cache = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache/outrigger/venv"));
    let venvs = [std::env::var_os("OUTRIGGER_VENV").map(PathBuf::from), cache];
    for venv in venvs.into_iter().flatten() {
        let Ok(entries) = std::fs::read_dir(venv.join("lib")) else {
            continue;
        };
        for entry in entries.flatten() {
            let binary = entry.path().join("site-packages/envoy/_bin/envoy");
            if binary.is_file() {
                return Some(binary);
            }
        }
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|p| p.join("envoy"))
        .find(|p| p.is_file())
}

/// The product's data plane, when it has been built or `$OUTRIGGER_BIN` names it.
pub fn find_outrigger() -> Option<PathBuf> {
    Product::Outrigger.path().ok()
}

/// The flags that pilot-agent gives its proxy, without the bootstrap.
pub const FLAGS: &[&str] = &[
    "--drain-time-s",
    "45",
    "--drain-strategy",
    "immediate",
    "--local-address-ip-version",
    "v4",
    "--file-flush-interval-msec",
    "1000",
    "--disable-hot-restart",
    "--allow-unknown-static-fields",
    "-l",
    "warning",
    "--component-log-level",
    "misc:error",
];

/// Ports that were free a moment ago, below those that the kernel gives to clients, so that no
/// connection of this test takes one. Both proxies must share one call: Envoy's listeners allow
/// reuse, so that a port given twice would be answered by either.
pub fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let start: u16 = rand::random_range(10_000..28_000);
    let mut sockets = Vec::new();
    for port in start..32_000 {
        if sockets.len() == count {
            break;
        }
        sockets.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    if sockets.len() < count {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    sockets.iter().map(|s| Ok(s.local_addr()?.port())).collect()
}

/// A running proxy. Dropping it kills the process.
#[derive(Debug)]
pub struct Proxy {
    /// The process.
    pub child: Child,
    /// Where its bootstrap and logs are.
    pub folder: PathBuf,
    /// Port of the admin page on loopback.
    pub admin: u16,
}

impl Proxy {
    /// Starts `binary` on loopback with `bootstrap` (JSON text) in `folder`, and waits for
    /// `/ready` on the admin port.
    pub async fn start(
        binary: &Path,
        bootstrap: &str,
        folder: &Path,
        admin: u16,
        extra: &[&str],
    ) -> Result<Self, OracleError> {
        let wrap = |source| OracleError::Start {
            binary: binary.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(wrap)?;
        let config = folder.join("bootstrap.json");
        std::fs::write(&config, bootstrap).map_err(wrap)?;
        let log = File::create(folder.join("stderr.log")).map_err(wrap)?;
        let out = File::create(folder.join("stdout.log")).map_err(wrap)?;
        let mut child = Command::new(binary)
            .arg("-c")
            .arg(&config)
            .args(FLAGS)
            .args(extra)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(wrap)?;
        let seconds = 30;
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let said = || std::fs::read_to_string(folder.join("stderr.log")).unwrap_or_default();
        loop {
            if let Some(status) = child.try_wait().map_err(wrap)? {
                let (binary, log) = (binary.to_owned(), said());
                return Err(OracleError::Ended {
                    binary,
                    status,
                    log,
                });
            }
            let ready = probe::fetch(([127, 0, 0, 1], admin).into(), "GET", "/ready").await;
            if ready.is_ok_and(|r| r.status == 200) {
                return Ok(Self {
                    child,
                    folder: folder.to_owned(),
                    admin,
                });
            }
            if Instant::now() > deadline {
                let (binary, log) = (binary.to_owned(), said());
                return Err(OracleError::NotReady {
                    binary,
                    seconds,
                    log,
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Fetches an admin page.
    pub async fn admin(&self, method: &str, path: &str) -> io::Result<probe::Reply> {
        probe::fetch(([127, 0, 0, 1], self.admin).into(), method, path).await
    }

    /// Ends the process with SIGTERM and waits for it; access logs are flushed by then.
    pub async fn terminate(mut self) -> io::Result<std::process::ExitStatus> {
        if let Some(pid) = self.child.id().and_then(|p| i32::try_from(p).ok()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        }
        self.child.wait().await
    }
}
