//! A pod, somebody outside and a virtual machine behind the pod, each in a network namespace of its
//! own, and sockets in them that belong to a given user and group.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use socket2::{Domain, SockRef, Socket, Type};

/// How long anything may take; nothing waits that long unless it fails.
const LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn sh(command: &str) -> Output {
    Command::new("sh")
        .args(["-ec", command])
        .output()
        .expect("sh runs")
}

/// Why the test cannot run here.
pub(crate) fn obstacle(programs: &[&str]) -> Option<String> {
    if !Uid::effective().is_root() {
        return Some("needs root".to_owned());
    }
    let missing = |p: &&&str| !sh(&format!("command -v {p}")).status.success();
    programs
        .iter()
        .find(missing)
        .map(|program| format!("needs {program}"))
}

/// Groups whose traffic is not captured.
pub(crate) const GROUPS_EXCLUDED: (&str, &str) = ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "2000");

/// Addresses of the lab by family: pod, outside, a second outside address, the virtual machine, the
/// pod towards the virtual machine, outside and pod on the pod's second interface.
pub(crate) const ADDRESSES: [[&str; 7]; 2] = [
    [
        "10.81.0.2",
        "10.81.0.1",
        "10.82.0.1",
        "10.83.0.2",
        "10.83.0.1",
        "10.84.0.1",
        "10.84.0.2",
    ],
    [
        "fd81::2", "fd81::1", "fd82::1", "fd83::2", "fd83::1", "fd84::1", "fd84::2",
    ],
];

/// Namespaces and their links; removed on drop.
pub(crate) struct Lab {
    pub(crate) pod: String,
    pub(crate) outside: String,
    pub(crate) vm: String,
    resolv: PathBuf,
}

impl Lab {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{serial}", std::process::id());
        let lab = Self {
            pod: format!("orpkt-{id}"),
            outside: format!("orpkto-{id}"),
            vm: format!("orpktv-{id}"),
            resolv: std::env::temp_dir().join(format!("orpkt-{id}.resolv")),
        };
        fs::write(&lab.resolv, "nameserver 10.81.0.1\nnameserver fd81::1\n").expect("resolv.conf");
        let (pod, out, vm) = (&lab.pod, &lab.outside, &lab.vm);
        let made = sh(&format!(
            "for n in {pod} {out} {vm}; do ip netns add $n; ip -n $n link set lo up; done
             ip -n {pod} link add eth0 type veth peer name eth0 netns {out}
             ip -n {pod} link add eth1 type veth peer name eth1 netns {out}
             ip -n {pod} link add tap0 type veth peer name eth0 netns {vm}
             a() {{ ip -n $1 link set $2 up; ip -n $1 addr add $3/24 dev $2; ip -n $1 addr add $4/64 dev $2 nodad; }}
             a {pod} eth0 10.81.0.2 fd81::2; a {out} eth0 10.81.0.1 fd81::1
             a {pod} eth1 10.84.0.2 fd84::2; a {out} eth1 10.84.0.1 fd84::1
             a {out} lo 10.82.0.1 fd82::1
             a {pod} tap0 10.83.0.1 fd83::1; a {vm} eth0 10.83.0.2 fd83::2
             ip -n {pod} route add default via 10.81.0.1; ip -n {pod} -6 route add default via fd81::1
             ip -n {vm} route add default via 10.83.0.1; ip -n {vm} -6 route add default via fd83::1"
        ));
        let errors = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(made.status.success(), "{errors}");
        lab
    }

    /// Runs a program in the pod, with the lab's nameservers in its resolv.conf.
    pub(crate) fn run(&self, words: &[&str]) -> Output {
        // `ip netns exec` gives the program a mount namespace of its own.
        let script = format!(
            "mount --bind {} /etc/resolv.conf; exec \"$@\"",
            self.resolv.display()
        );
        Command::new("ip")
            .args(["netns", "exec", &self.pod, "sh", "-ec", &script, "sh"])
            .env(GROUPS_EXCLUDED.0, GROUPS_EXCLUDED.1)
            .args(words)
            .output()
            .expect("ip runs")
    }

    /// Everything that netlink shows of the pod's rules.
    pub(crate) fn ruleset(&self) -> String {
        let mut out = String::new();
        for words in [
            &["nft", "-s", "list", "ruleset"][..],
            &["iptables-legacy-save"],
            &["ip", "rule"],
            &["ip", "-6", "rule"],
        ] {
            out += &String::from_utf8_lossy(&self.run(words).stdout);
        }
        out
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let (pod, out, vm) = (&self.pod, &self.outside, &self.vm);
        sh(&format!(
            "for n in {pod} {out} {vm}; do ip netns del $n || true; done; rm -f {}",
            self.resolv.display()
        ));
    }
}

/// Runs `work` on a thread inside a namespace; its sockets belong to `owner` (user, group).
pub(crate) fn inside<T: Send + 'static>(
    namespace: &str,
    owner: (u32, u32),
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).expect("namespace file");
    let thread = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
        // These two calls are per thread, and the owner match reads exactly these ids.
        setfsgid(Gid::from_raw(owner.1));
        setfsuid(Uid::from_raw(owner.0));
        work()
    });
    thread.join().expect("namespace thread")
}

fn transparent(socket: &Socket, v6: bool) {
    let done = if v6 {
        socket.set_ip_transparent_v6(true)
    } else {
        socket.set_ip_transparent_v4(true)
    };
    done.expect("transparent");
}

/// A listening or receiving socket.
pub(crate) struct Server<T> {
    pub(crate) socket: T,
    pub(crate) in_pod: bool,
    pub(crate) port: u16,
}

fn bind(address: SocketAddr, kind: Type) -> Socket {
    let socket = Socket::new(Domain::for_address(address), kind, None).expect("socket");
    if address.is_ipv6() {
        socket.set_only_v6(true).expect("v6 only");
    }
    if address.port() == 15006 {
        transparent(&socket, address.is_ipv6());
    }
    let bound = socket.bind(&address.into());
    bound.unwrap_or_else(|e| panic!("{address}: {e}"));
    socket
}

/// All sockets that can get a probe of one family.
pub(crate) struct Servers {
    pub(crate) tcp: Vec<Server<TcpListener>>,
    pub(crate) udp: Vec<Server<UdpSocket>>,
}

impl Servers {
    /// The proxy's and the agent's as user 0, group 1337, the application's, and those outside.
    pub(crate) fn start(lab: &Lab, v6: bool) -> Self {
        let (any, lo): (IpAddr, IpAddr) = if v6 {
            ([0; 16].into(), std::net::Ipv6Addr::LOCALHOST.into())
        } else {
            ([0; 4].into(), std::net::Ipv4Addr::LOCALHOST.into())
        };
        let proxy: &[(IpAddr, u16)] = &[
            (any, 15001),
            (any, 15006),
            (any, 15008),
            (any, 15020),
            (any, 15021),
            (any, 15090),
            (lo, 15053),
        ];
        let mut servers = Self {
            tcp: Vec::new(),
            udp: Vec::new(),
        };
        servers.listen(&lab.pod, (0, 1337), proxy);
        servers.listen(&lab.pod, (1000, 1000), &[(any, 8080)]);
        let outside = [80, 15008, 53, 9000, 9001].map(|port| (any, port));
        servers.listen(&lab.outside, (0, 0), &outside);
        // The agent's socket must be owned by the proxy and bound to loopback: zones need both.
        servers.receive(&lab.pod, (0, 1337), (lo, 15053));
        servers.receive(&lab.pod, (1000, 1000), (any, 8080));
        for port in [53, 5353, 9000] {
            servers.receive(&lab.outside, (0, 0), (any, port));
        }
        servers
    }

    fn listen(&mut self, namespace: &str, owner: (u32, u32), addresses: &[(IpAddr, u16)]) {
        for address in addresses {
            let address = SocketAddr::from(*address);
            let socket = inside(namespace, owner, move || {
                let socket = bind(address, Type::STREAM);
                socket.listen(16).expect("listen");
                TcpListener::from(socket)
            });
            self.tcp.push(Server {
                socket,
                in_pod: namespace.starts_with("orpkt-"),
                port: address.port(),
            });
        }
    }

    fn receive(&mut self, namespace: &str, owner: (u32, u32), address: (IpAddr, u16)) {
        let address = SocketAddr::from(address);
        let socket = inside(namespace, owner, move || {
            UdpSocket::from(bind(address, Type::DGRAM))
        });
        self.udp.push(Server {
            socket,
            in_pod: namespace.starts_with("orpkt-"),
            port: address.port(),
        });
    }
}

/// Index of the first descriptor that can be read.
fn ready<'a>(fds: impl Iterator<Item = std::os::fd::BorrowedFd<'a>>) -> Option<usize> {
    let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let limit = PollTimeout::try_from(LIMIT).expect("a limit");
    poll(&mut fds, limit).expect("poll");
    fds.iter().position(|fd| fd.any() == Some(true))
}

/// Who sends a probe, and how.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) namespace: String,
    pub(crate) owner: (u32, u32),
    /// Source to bind; the kernel's choice otherwise.
    pub(crate) from: Option<IpAddr>,
    pub(crate) mark: u32,
}

impl Client {
    fn socket(&self, to: SocketAddr, kind: Type) -> Socket {
        let socket = Socket::new(Domain::for_address(to), kind, None).expect("socket");
        if self.mark != 0 {
            // Only the proxy marks its sockets, and then it borrows somebody's address.
            socket.set_mark(self.mark).expect("mark");
            transparent(&socket, to.is_ipv6());
        }
        if let Some(from) = self.from {
            let bound = socket.bind(&SocketAddr::new(from, 0).into());
            bound.unwrap_or_else(|e| panic!("source {from}: {e}"));
        }
        socket
    }
}

/// What a server saw of a TCP connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) in_pod: bool,
    pub(crate) listener: u16,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) original: Option<SocketAddr>,
}

/// Connects and tells who got the connection, and the client's own address.
pub(crate) fn tcp(
    client: &Client,
    to: SocketAddr,
    servers: &Servers,
) -> Result<(Seen, SocketAddr), String> {
    let own = client.clone();
    let connected = inside(&client.namespace, client.owner, move || {
        let socket = own.socket(to, Type::STREAM);
        socket.connect_timeout(&to.into(), LIMIT)?;
        io::Result::Ok(TcpStream::from(socket))
    });
    let stream = connected.map_err(|e| format!("connect: {e}"))?;
    let index = ready(servers.tcp.iter().map(|s| s.socket.as_fd())).ok_or("nobody accepted")?;
    let server = &servers.tcp[index];
    let (accepted, peer) = server.socket.accept().map_err(|e| e.to_string())?;
    let sock = SockRef::from(&accepted);
    let original = if to.is_ipv4() {
        sock.original_dst_v4()
    } else {
        sock.original_dst_v6()
    };
    let seen = Seen {
        in_pod: server.in_pod,
        listener: server.port,
        local: accepted.local_addr().map_err(|e| e.to_string())?,
        peer,
        original: original.ok().and_then(|a| a.as_socket()),
    };
    Ok((seen, stream.local_addr().map_err(|e| e.to_string())?))
}

/// Sends a datagram, has it answered, and tells who got it, and the client's port. The answer must
/// come from the address that was asked, or the client's resolver would not take it.
pub(crate) fn udp(
    client: &Client,
    to: SocketAddr,
    servers: &Servers,
) -> Result<(bool, u16, u16), String> {
    let own = client.clone();
    let socket = inside(&client.namespace, client.owner, move || {
        let socket = UdpSocket::from(own.socket(to, Type::DGRAM));
        socket.set_read_timeout(Some(LIMIT))?;
        socket.send_to(b"probe", to)?;
        io::Result::Ok(socket)
    });
    let socket = socket.map_err(|e| format!("send: {e}"))?;
    let index = ready(servers.udp.iter().map(|s| s.socket.as_fd())).ok_or("nobody received")?;
    let server = &servers.udp[index];
    let mut buffer = [0; 16];
    let (_, peer) = server
        .socket
        .recv_from(&mut buffer)
        .map_err(|e| e.to_string())?;
    server
        .socket
        .send_to(b"answer", peer)
        .map_err(|e| format!("answer: {e}"))?;
    let (_, answered) = socket
        .recv_from(&mut buffer)
        .map_err(|e| format!("no answer: {e}"))?;
    if answered != to {
        return Err(format!("answer from {answered}"));
    }
    let own = socket.local_addr().map_err(|e| e.to_string())?;
    Ok((server.in_pod, server.port, own.port()))
}

/// Conntrack zone of the pod's flow from this port to port 53; `Err` when the kernel does not show
/// its table.
pub(crate) fn zone(lab: &Lab, port: u16, to_port: u16) -> io::Result<Option<u16>> {
    let text = inside(&lab.pod, (0, 0), || {
        // Not /proc/net: that is the namespace of the main thread.
        fs::read_to_string("/proc/thread-self/net/nf_conntrack")
    })?;
    let flow = format!("sport={port} dport={to_port} ");
    let line = text
        .lines()
        .find(|line| line.contains(" udp ") && line.contains(&flow))
        .unwrap_or_else(|| panic!("no flow {flow} in\n{text}"));
    let zone = line.split("zone=").nth(1);
    let number = zone.and_then(|z| z.split_ascii_whitespace().next());
    let number = number.and_then(|n| n.parse().ok());
    // The default zone is 0, shown or not.
    Ok(number.filter(|n| *n != 0))
}
