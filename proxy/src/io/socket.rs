//! Socket options and binding. Everything here is a plain system call; nothing waits.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// How a listening socket is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListenOptions {
    /// `IP_TRANSPARENT`.
    pub transparent: bool,
    /// `IP_FREEBIND`.
    pub freebind: bool,
    /// Backlog; `None` = the system's maximum.
    pub backlog: Option<u32>,
}

fn stream_socket(address: SocketAddr, options: ListenOptions) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // An IPv6 wildcard must leave the IPv4 port to the listener's other address.
        socket.set_only_v6(true)?;
    }
    if options.freebind {
        if address.is_ipv6() {
            socket.set_freebind_v6(true)?;
        } else {
            socket.set_freebind_v4(true)?;
        }
    }
    if options.transparent {
        set_transparent(&socket, address)?;
    }
    Ok(socket)
}

/// Sets `IP_TRANSPARENT` or `IPV6_TRANSPARENT` (needs `CAP_NET_ADMIN`).
///
/// # Errors
/// When the system refuses.
pub fn set_transparent(socket: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    let socket = SockRef::from(socket);
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true)
    } else {
        socket.set_ip_transparent_v6(true)
    }
}

/// Tries to bind without `SO_REUSEPORT`: a port that somebody else serves must be an error, not shared. Does
/// not listen, so that no client reaches the probe.
///
/// # Errors
/// When the address cannot be had.
pub fn probe(address: SocketAddr, options: ListenOptions) -> io::Result<()> {
    let socket = stream_socket(address, options)?;
    socket.bind(&address.into())
}

/// Binds and listens; with `SO_REUSEPORT`, so that each worker has a socket of its own.
///
/// # Errors
/// When the system refuses an option, the address or to listen.
pub fn listen(address: SocketAddr, options: ListenOptions) -> io::Result<TcpListener> {
    let socket = stream_socket(address, options)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit it: no system call per connection.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    let backlog = options
        .backlog
        .map_or(i32::MAX, |b| i32::try_from(b).unwrap_or(i32::MAX));
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// The destination before REDIRECT, or `None` when the connection was not redirected.
#[must_use]
pub fn original_dst(socket: &impl AsFd, local: SocketAddr) -> Option<SocketAddr> {
    let socket = SockRef::from(socket);
    let address = if local.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    address.ok()?.as_socket().filter(|a| a.port() != 0)
}

/// Makes closing the socket send RST and drop what is queued.
pub fn reset_on_close(socket: &impl AsFd) {
    if let Err(error) = SockRef::from(socket).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "cannot set SO_LINGER, the peer sees FIN in place of RST");
    }
}

/// An IPv4 address mapped into IPv6, as dual-stack sockets report it, becomes IPv4 again.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_served_by_a_socket_without_reuse_port_is_a_conflict() {
        let other = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = other.local_addr().expect("bound");
        assert!(probe(address, ListenOptions::default()).is_err());
    }

    #[test]
    fn several_sockets_of_ours_share_a_port() {
        let options = ListenOptions::default();
        let address = "127.0.0.1:0".parse().expect("address");
        let first = listen(address, options).expect("first");
        let address = first.local_addr().expect("bound");
        listen(address, options).expect("second");
        assert!(probe(address, options).is_err());
    }

    #[test]
    fn a_connection_that_was_not_redirected_has_no_original_destination() {
        let server = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = server.local_addr().expect("bound");
        let client = std::net::TcpStream::connect(address).expect("connects");
        assert_eq!(original_dst(&client, address), None);
    }
}
