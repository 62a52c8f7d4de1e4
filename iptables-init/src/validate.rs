//! `--run-validation`: a real connection of this process to the passthrough address must arrive
//! at the inbound listener with its original port. Touches loopback only, bounded by the timeout.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockRef, Socket, Type};

use crate::log::Log;

/// What is checked.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Address that decided the family.
    pub host_ip: IpAddr,
    /// Outbound and inbound listener ports.
    pub listeners: [u16; 2],
    /// Port that is dialled; nobody listens there.
    pub port: u16,
    /// Limit of the whole check.
    pub timeout: Duration,
}

/// Why the check failed. The process exits with 126.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// Both ports are taken.
    #[error("no validation listener could be opened on ports {0} and {1}")]
    NoListener(u16, u16),
    /// No redirected connection arrived in time.
    #[error("validation timeout")]
    Timeout,
    /// Waiting failed.
    #[error("validation failed: {0}")]
    Io(#[from] io::Error),
}

/// Runs the check.
///
/// # Errors
/// See [`ValidationError`].
pub fn run(probe: &Probe, log: &Log) -> Result<(), ValidationError> {
    let v4 = probe.host_ip.is_ipv4();
    let (listen, target) = if v4 {
        (
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::from([127, 0, 0, 6]),
        )
    } else {
        let six = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
        (IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(six))
    };
    log.info("Starting iptables validation. This check verifies that iptables rules are properly established for the network.");
    let deadline = Instant::now() + probe.timeout;
    let mut listeners = Vec::new();
    for port in probe.listeners {
        let address = SocketAddr::new(listen, port);
        match bind(address, true).and_then(|socket| {
            socket.listen(16)?;
            Ok(TcpListener::from(socket))
        }) {
            Ok(listener) => {
                log.info(&format!("Listening on {address}"));
                listeners.push(listener);
            }
            Err(error) => log.error(&format!("failed to listen on {address}: {error}")),
        }
    }
    if listeners.is_empty() {
        let [out, inbound] = probe.listeners;
        return Err(ValidationError::NoListener(out, inbound));
    }
    let target = SocketAddr::new(target, probe.port);
    let mut next_try = Instant::now();
    let mut client = None;
    loop {
        let now = Instant::now();
        if now >= deadline {
            return Err(ValidationError::Timeout);
        }
        if now >= next_try {
            next_try = now + Duration::from_secs(1);
            client = dial(listen, target, deadline - now, log);
        }
        let wait = next_try.min(deadline) - now;
        if wait_and_check(&listeners, wait, probe.port, v4, log)? {
            finish(client.take());
            log.info("Validation passed, iptables rules established");
            return Ok(());
        }
    }
}

fn bind(address: SocketAddr, reuse: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if reuse {
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(reuse)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn dial(source: IpAddr, target: SocketAddr, limit: Duration, log: &Log) -> Option<TcpStream> {
    // The source must be loopback: the passthrough address itself is never captured.
    let connected = bind(SocketAddr::new(source, 0), false).and_then(|socket| {
        socket.connect_timeout(&target.into(), limit.min(Duration::from_secs(1)))?;
        Ok(TcpStream::from(socket))
    });
    match connected {
        Ok(stream) => Some(stream),
        Err(error) => {
            log.error(&format!("Error connecting to {target}: {error}"));
            None
        }
    }
}

fn wait_and_check(
    listeners: &[TcpListener],
    wait: Duration,
    port: u16,
    v4: bool,
    log: &Log,
) -> io::Result<bool> {
    let mut fds: Vec<PollFd<'_>> = listeners
        .iter()
        .map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN))
        .collect();
    let wait = PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, wait) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    for listener in listeners {
        let Ok((mut stream, client)) = listener.accept() else {
            continue;
        };
        let socket = SockRef::from(&stream);
        let original = if v4 {
            socket.original_dst_v4()
        } else {
            socket.original_dst_v6()
        };
        let original = original.ok().and_then(|address| address.as_socket());
        log.info(&format!("Local addr {}", listener.local_addr()?));
        let Some(original) = original else { continue };
        log.info(&format!(
            "Original addr {}: {}",
            client.ip(),
            original.port()
        ));
        // The client may be gone already; the answer is a courtesy.
        let _ = stream.write_all(original.port().to_string().as_bytes());
        if original.port() == port {
            return Ok(true);
        }
    }
    Ok(false)
}

fn finish(client: Option<TcpStream>) {
    if let Some(mut stream) = client {
        let mut answer = [0; 16];
        // Reading the courtesy answer avoids a reset in captures; its loss changes nothing.
        let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
        let _ = stream.read(&mut answer);
    }
}
