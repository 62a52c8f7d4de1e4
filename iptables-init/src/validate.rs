//! `--run-validation`: a real connection of a proxy user to the passthrough address must arrive
//! at the inbound listener with its original port. Touches this host only, bounded by the timeout.

mod diagnosis;

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};
use socket2::{Domain, SockRef, Socket, Type};

use crate::config::Config;
use crate::host::OwnerNames;
use crate::log::Log;

/// User and group of a connection.
type Owner = (u32, u32);

/// What is checked.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Where the listeners are and the connection comes from.
    source: IpAddr,
    /// What is dialled: an address of this host that is no loopback address to the rules.
    target: SocketAddr,
    /// Outbound and inbound listener ports.
    listeners: [u16; 2],
    /// Limit of the whole check.
    timeout: Duration,
    /// Whether the rules redirect connections of this process.
    exempt: bool,
    /// A proxy user and group to dial as, if this process is neither.
    owner: Option<Owner>,
}

impl Probe {
    /// From the configuration and the identity of this process.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let rules = &config.rules;
        let six = IpAddr::from([127, 0, 0, 6]);
        let (source, target) = match config.host_ip {
            // A connection inside the loopback range of the rules is never redirected.
            host @ IpAddr::V4(_) if rules.loopback_v4.contains(&six) => {
                (IpAddr::V4(Ipv4Addr::LOCALHOST), host)
            }
            IpAddr::V4(_) => (IpAddr::V4(Ipv4Addr::LOCALHOST), six),
            IpAddr::V6(_) => {
                let six = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
                (IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(six))
            }
        };
        let names = OwnerNames::read();
        let users = rules.proxy_uids.iter().filter_map(|id| names.user(id).ok());
        let groups = rules
            .proxy_gids
            .iter()
            .filter_map(|id| names.group(id).ok());
        let within = |id: u32| move |(low, high): (u32, u32)| (low..=high).contains(&id);
        let exempt = users.clone().any(within(geteuid().as_raw()))
            || groups.clone().any(within(getegid().as_raw()));
        let owner = users.clone().next().zip(groups.clone().next());
        let owner = owner.map(|((uid, _), (gid, _))| (uid, gid));
        Self {
            source,
            target: SocketAddr::new(target, config.settings.probe_port),
            listeners: [rules.proxy_port, rules.inbound_capture_port],
            timeout: config.settings.probe_timeout,
            exempt,
            owner: owner.filter(|_| !exempt),
        }
    }
}

/// Why the check failed. The process exits with 126.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// Both ports are taken.
    #[error("no validation listener could be opened on ports {0} and {1}")]
    NoListener(u16, u16),
    /// No redirected connection arrived in time; what was seen meanwhile.
    #[error("validation timeout: {0}")]
    Timeout(String),
    /// Waiting failed.
    #[error("validation failed: {0}")]
    Io(#[from] io::Error),
}

/// What happened until now, for the message of a failure.
#[derive(Debug, Default)]
struct Seen {
    busy_ports: Vec<u16>,
    attempts: u32,
    last_error: Option<String>,
    /// Connected, but not to one of our listeners.
    strangers: u32,
    /// Who the connections belonged to.
    owner: Owner,
}

/// Runs the check.
///
/// # Errors
/// See [`ValidationError`].
pub fn run(probe: &Probe, log: &Log) -> Result<(), ValidationError> {
    log.info("Starting iptables validation. This check verifies that iptables rules are properly established for the network.");
    let deadline = Instant::now() + probe.timeout;
    let mut seen = Seen::default();
    let mut listeners = Vec::new();
    for port in probe.listeners {
        let address = SocketAddr::new(probe.source, port);
        match bind(address, true).and_then(|socket| {
            socket.listen(16)?;
            Ok(TcpListener::from(socket))
        }) {
            Ok(listener) => {
                log.info(&format!("Listening on {address}"));
                listeners.push(listener);
            }
            Err(error) => {
                log.error(&format!("failed to listen on {address}: {error}"));
                seen.busy_ports.push(port);
            }
        }
    }
    if listeners.is_empty() {
        let [out, inbound] = probe.listeners;
        return Err(ValidationError::NoListener(out, inbound));
    }
    let mut next_try = Instant::now();
    let mut client = None;
    loop {
        let now = Instant::now();
        if now >= deadline {
            return Err(ValidationError::Timeout(diagnosis::text(probe, &seen)));
        }
        if now >= next_try {
            next_try = now + Duration::from_secs(1);
            client = dial(probe, deadline - now, &mut seen, log);
        }
        let wait = next_try
            .min(deadline)
            .saturating_duration_since(Instant::now());
        if wait_and_check(&listeners, wait, probe.target, log)? {
            finish(client.take());
            log.info("Validation passed, iptables rules established");
            return Ok(());
        }
        seen.strangers += u32::from(client.take().is_some());
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

fn dial(probe: &Probe, limit: Duration, seen: &mut Seen, log: &Log) -> Option<TcpStream> {
    let limit = limit.min(Duration::from_secs(1));
    // A thread's own file system ids own its sockets, and change nothing else of the process.
    let dialled = std::thread::scope(|scope| {
        let thread = scope.spawn(|| (connect_as(probe, limit), effective_owner()));
        thread.join()
    });
    // The thread calls nothing that panics; if it did, nothing was dialled.
    let (connected, owner) = dialled.ok()?;
    seen.attempts += 1;
    seen.owner = owner;
    match connected {
        Ok(stream) => Some(stream),
        Err(error) => {
            log.error(&format!("Error connecting to {}: {error}", probe.target));
            seen.last_error = Some(error.to_string());
            None
        }
    }
}

fn connect_as(probe: &Probe, limit: Duration) -> io::Result<TcpStream> {
    if let Some((uid, gid)) = probe.owner {
        // Refused without the SETUID and SETGID capabilities; the diagnosis says so then.
        setfsgid(Gid::from_raw(gid));
        setfsuid(Uid::from_raw(uid));
    }
    // The source must be loopback: the passthrough address itself is never captured.
    let socket = bind(SocketAddr::new(probe.source, 0), false)?;
    socket.connect_timeout(&probe.target.into(), limit)?;
    Ok(TcpStream::from(socket))
}

/// Ids that own this thread's sockets. An id that does not exist changes nothing and tells.
fn effective_owner() -> Owner {
    let (uid, gid) = (Uid::from_raw(u32::MAX), Gid::from_raw(u32::MAX));
    (setfsuid(uid).as_raw(), setfsgid(gid).as_raw())
}

fn wait_and_check(
    listeners: &[TcpListener],
    wait: Duration,
    target: SocketAddr,
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
        let original = if target.is_ipv4() {
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
        if original.port() == target.port() {
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
