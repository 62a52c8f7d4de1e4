//! One running container: its own mount and PID namespace inside the pod's network namespace.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::PodError;
use super::rootfs::{self, Container};

/// Memory of one process, in KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// `comm` of the process.
    pub name: String,
    /// Its id outside the container.
    pub pid: u32,
    /// Written pages of its own: what it costs the node beside the binary, of which all pods share one copy.
    pub private: u64,
    /// Resident file-backed pages (its binary), shared between pods on a node.
    pub file: u64,
}

/// A container. Dropping it kills everything in it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    netns: String,
}

fn log_file(path: &Path) -> io::Result<File> {
    // Append and world-writable: the proxy opens /dev/stdout again under its own user.
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o666)
        .open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o666))?;
    Ok(file)
}

impl Process {
    /// Starts a container in `netns`; its output goes to `<folder>/<name>.log`.
    pub fn start(
        netns: &str,
        folder: &Path,
        name: &str,
        container: &Container,
    ) -> Result<Self, PodError> {
        let wrap = |source| PodError::Io {
            what: format!("container {name}"),
            source,
        };
        let log = folder.join(format!("{name}.log"));
        let out = log_file(&log).map_err(wrap)?;
        let script = rootfs::script(folder, container);
        let child = Command::new("setpriv")
            // Dies with us. The container asks for the same again after it has changed user
            // (which clears it), and with process 1 everything in its PID namespace ends.
            .args(["--pdeathsig", "KILL", "ip", "netns", "exec", netns])
            .args([
                "unshare",
                "-m",
                "-p",
                "-f",
                "--kill-child=KILL",
                "sh",
                "-c",
                &script,
            ])
            .stdin(Stdio::null())
            .stdout(out.try_clone().map_err(wrap)?)
            .stderr(out)
            .spawn()
            .map_err(wrap)?;
        Ok(Self {
            child,
            log,
            netns: netns.to_owned(),
        })
    }

    /// Where its output is.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its exit status, once it has ended.
    pub fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus, PodError> {
        let until = Instant::now() + deadline;
        loop {
            let wrap = |source| PodError::Io {
                what: "wait".to_owned(),
                source,
            };
            if let Some(status) = self.child.try_wait().map_err(wrap)? {
                return Ok(status);
            }
            if Instant::now() > until {
                return Err(PodError::Timeout {
                    what: "exit".to_owned(),
                    log: self.log(),
                });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Process 1 of the container, by its id outside.
    pub fn init(&self) -> Option<u32> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Sends a signal to process 1, as a kubelet does.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<(), PodError> {
        let pid = self.init().and_then(|p| i32::try_from(p).ok());
        let pid = pid.ok_or_else(|| PodError::Timeout {
            what: "process 1".into(),
            log: self.log(),
        })?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).map_err(|e| PodError::Io {
            what: "kill".to_owned(),
            source: e.into(),
        })
    }

    /// A command that runs inside the container as `user`.
    pub fn command(&self, user: u32, words: &[&str]) -> Option<Command> {
        let pid = self.init()?.to_string();
        let mut command = Command::new("nsenter");
        let user = user.to_string();
        command
            .args([
                "-t",
                &pid,
                "-m",
                "-p",
                &format!("-n/run/netns/{}", self.netns),
                "-r",
                "-w",
            ])
            .args(["--", "/usr/bin/setpriv", "--reuid", &user, "--regid", &user])
            .args(["--clear-groups", "--pdeathsig", "KILL"])
            .args(words)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null());
        Some(command)
    }

    /// Memory of every process in the container.
    pub fn memory(&self) -> Vec<Memory> {
        let space = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let Some(own) = self.init().and_then(space) else {
            return Vec::new();
        };
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        let pids = entries
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok());
        pids.filter(|pid| space(*pid).as_ref() == Some(&own))
            .filter_map(memory_of)
            .collect()
    }
}

fn memory_of(pid: u32) -> Option<Memory> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let field = |text: &str, key: &str| -> u64 {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    };
    let (rollup, status) = (read("smaps_rollup")?, read("status")?);
    Some(Memory {
        name: read("comm")?.trim().to_owned(),
        pid,
        private: field(&rollup, "Private_Dirty"),
        file: field(&status, "RssFile"),
    })
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.signal(nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
