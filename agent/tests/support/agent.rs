//! Runs the real `pilot-agent` binary in a folder of its own, with a shell script as the proxy
//! and small HTTP servers as its admin port and application.

#![allow(dead_code, reason = "shared by test targets that use different parts")]

#[path = "ports.rs"]
mod ports;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

pub(crate) use ports::free_port;

/// Longest any step of a test may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A proxy that says it runs and then sleeps without taking part in signals.
pub(crate) const SLEEPER: &str = "echo proxy runs $$; exec sleep 60";

/// An admin port that takes every order.
pub(crate) fn admin() -> Server {
    Server::start(|_| (200, "text/plain", "OK\n".to_owned()))
}

/// An admin port of a proxy that is ready.
pub(crate) fn ready_admin() -> Server {
    Server::start(|path| {
        let body = if path.contains("update_success") {
            "cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 1\n"
        } else if path.contains("server") {
            "listener_manager.workers_started: 1\nserver.state: 0\n"
        } else {
            "OK\n"
        };
        (200, "text/plain", body.to_owned())
    })
}

/// An agent whose proxy runs.
pub(crate) fn started(setup: Setup) -> Running {
    let mut running = setup.start();
    running.wait_for_line("proxy runs");
    running
}

/// Retries `check` until it gives a value; panics at the deadline.
pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// An HTTP server that answers by path and remembers the request lines.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
}

type Answer = (u16, &'static str, String);

impl Server {
    pub(crate) fn start(answer: impl Fn(&str) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let lines = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = serve(stream, &answer, &lines);
            }
        });
        Self { port, seen }
    }

    pub(crate) fn saw(&self, text: &str) -> bool {
        self.seen
            .lock()
            .expect("lock")
            .iter()
            .any(|line| line.contains(text))
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &impl Fn(&str) -> Answer,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let first = head.lines().next().unwrap_or_default().to_owned();
    seen.lock().expect("lock").push(head);
    let path = first.split(' ').nth(1).unwrap_or_default();
    let (status, content_type, body) = answer(path);
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
}

/// One request; the whole answer as text. HTTP/1.0, so that no chunk headers stand in it.
pub(crate) fn http(port: u16, method: &str, path: &str) -> Option<(u16, String)> {
    let bytes = http_raw(port, method, path, "")?;
    let text = String::from_utf8(bytes).ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text))
}

/// The same as bytes, with header lines that end in `\r\n`.
pub(crate) fn http_raw(port: u16, method: &str, path: &str, headers: &str) -> Option<Vec<u8>> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nhost: localhost:{port}\r\nconnection: close\r\n\
         content-length: 0\r\n{headers}\r\n"
    )
    .ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Settings of a run; starts as a sidecar whose istiod is not there.
pub(crate) struct Setup {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) proxy_config: serde_json::Map<String, serde_json::Value>,
    pub(crate) status_port: u16,
    pub(crate) args: Vec<String>,
    user: Option<u32>,
}

impl Setup {
    /// `script` is the body of the proxy's shell script.
    pub(crate) fn new(script: &str, admin_port: u16) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let binary = folder.path().join("proxy.sh");
        std::fs::write(&binary, format!("#!/bin/sh\n{script}\n")).expect("script");
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).expect("mode");
        let secrets = folder.path().join("var/run/secrets/istio");
        std::fs::create_dir_all(&secrets).expect("secrets");
        std::fs::write(secrets.join("root-cert.pem"), "").expect("root");
        let status_port = free_port();
        let config = serde_json::json!({
            "binaryPath": binary.display().to_string(),
            "proxyAdminPort": admin_port,
            "statusPort": status_port,
            "discoveryAddress": "127.0.0.1:1",
            "terminationDrainDuration": "0.1s",
        });
        let serde_json::Value::Object(proxy_config) = config else {
            panic!("object")
        };
        let env = [
            ("POD_NAME", "pod"),
            ("POD_NAMESPACE", "ns"),
            ("SERVICE_ACCOUNT", "sa"),
            ("INSTANCE_IP", "127.0.0.1"),
            // No test asks the machine's own cloud.
            ("CLOUD_PLATFORM", "none"),
            ("PATH", "/usr/bin:/bin"),
        ];
        let env = env.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let args = vec!["proxy".to_owned(), "sidecar".to_owned()];
        Self {
            folder,
            env,
            proxy_config,
            status_port,
            args,
            user: None,
        }
    }

    /// Runs as `user`, who gets the folder; needs root.
    pub(crate) fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// The program: for another user a copy, since that one may not see the build folder.
    fn program(&self) -> PathBuf {
        let built = PathBuf::from(env!("CARGO_BIN_EXE_pilot-agent"));
        let Some(user) = self.user else {
            return built;
        };
        let copy = self.folder.path().join("pilot-agent");
        std::fs::copy(built, &copy).expect("copy");
        give(self.folder.path(), user);
        copy
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn config(mut self, name: &str, value: serde_json::Value) -> Self {
        self.proxy_config.insert(name.to_owned(), value);
        self
    }

    pub(crate) fn start(self) -> Running {
        let config = serde_json::Value::Object(self.proxy_config.clone()).to_string();
        let mut command = Command::new(self.program());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let mut child = command
            .args(&self.args)
            .current_dir(self.folder.path())
            .env_clear()
            .envs(&self.env)
            .env("PROXY_CONFIG", config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("agent starts");
        let out = child.stdout.take().expect("stdout");
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Running {
            child,
            setup: self,
            log,
            lines: Vec::new(),
        }
    }
}

/// Makes `user` the owner of everything in `folder`.
fn give(folder: &Path, user: u32) {
    std::os::unix::fs::chown(folder, Some(user), Some(user)).expect("root");
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        if entry.file_type().expect("type").is_dir() {
            give(&entry.path(), user);
        } else {
            std::os::unix::fs::chown(entry.path(), Some(user), Some(user)).expect("root");
        }
    }
}

/// A running agent; killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) setup: Setup,
    log: mpsc::Receiver<String>,
    lines: Vec<String>,
}

impl Running {
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.setup.folder.path().join(relative)
    }

    /// Waits until the log or the proxy's output holds `text`.
    pub(crate) fn wait_for_line(&mut self, text: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(line) = self.lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) => self.lines.push(line),
                Err(_) => panic!("no line with {text:?} in:\n{}", self.lines.join("\n")),
            }
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args([name, &pid])
            .status()
            .expect("kill");
        assert!(sent.success());
    }

    /// The exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let child = &mut self.child;
        let status: ExitStatus = eventually("the agent ends", || child.try_wait().expect("wait"));
        status.code()
    }

    /// Head and body of an answer to a request with `headers`.
    pub(crate) fn raw(&self, path: &str, headers: &str) -> (String, Vec<u8>) {
        let port = self.setup.status_port;
        let bytes = eventually(path, || http_raw(port, "GET", path, headers));
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        let end = end.expect("a head") + 4;
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        (head, bytes[end..].to_vec())
    }

    pub(crate) fn http(&self, method: &str, path: &str) -> (u16, String) {
        let port = self.setup.status_port;
        eventually(path, || http(port, method, path))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
