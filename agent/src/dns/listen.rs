//! Where the DNS server listens: loopback addresses by default, because the redirect rules and
//! their conntrack zones count on them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

use crate::resolver::{ResolveError, Resolver};

/// `DNS_PROXY_ADDR` if nothing is said.
pub const DEFAULT_ADDRESS: &str = "localhost:15053";
const BACKLOG: i32 = 1024;

/// Why there is no DNS server. All end the agent with code 255.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Not `host:port`.
    #[error("DNS_PROXY_ADDR={0}: not host:port")]
    Address(String),
    /// A host name without an address.
    #[error("DNS_PROXY_ADDR={address}: {source}")]
    Host {
        /// The setting.
        address: String,
        /// Why.
        source: ResolveError,
    },
    /// A socket cannot be bound.
    #[error("DNS server cannot listen on {transport} {address}: {source}")]
    Bind {
        /// `udp` or `tcp`.
        transport: &'static str,
        /// Where.
        address: SocketAddr,
        /// System error.
        source: std::io::Error,
    },
    /// No thread or no runtime for it.
    #[error("DNS server cannot start: {0}")]
    Thread(std::io::Error),
}

/// The addresses of `DNS_PROXY_ADDR`. `localhost` is one loopback address per family of the name
/// servers of resolv.conf (IPv4 if it names none), because those are what is redirected; another
/// host is taken as it is, no host means every address.
///
/// # Errors
/// A setting that is no address.
pub async fn addresses(
    setting: &str,
    servers: &[SocketAddr],
) -> Result<Vec<SocketAddr>, ListenError> {
    let malformed = || ListenError::Address(setting.to_owned());
    let (host, port) = setting.rsplit_once(':').ok_or_else(malformed)?;
    let port: u16 = port.parse().map_err(|_| malformed())?;
    let hosts: Vec<IpAddr> = match host {
        "" => vec![Ipv6Addr::UNSPECIFIED.into()],
        "localhost" => loopbacks(servers),
        host if host.contains(':') => {
            let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
            vec![inner.and_then(|h| h.parse().ok()).ok_or_else(malformed)?]
        }
        host => {
            let found = Resolver::default().lookup(host).await;
            let found = found.map_err(|source| ListenError::Host {
                address: setting.to_owned(),
                source,
            })?;
            found.into_iter().take(1).collect()
        }
    };
    Ok(hosts
        .into_iter()
        .map(|ip| SocketAddr::new(ip, port))
        .collect())
}

fn loopbacks(servers: &[SocketAddr]) -> Vec<IpAddr> {
    let v4 = servers.iter().any(SocketAddr::is_ipv4) || servers.is_empty();
    let v6 = servers.iter().any(SocketAddr::is_ipv6);
    let v4 = v4.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    v4.into_iter()
        .chain(v6.then_some(IpAddr::V6(Ipv6Addr::LOCALHOST)))
        .collect()
}

/// Both sockets of one address, not yet of a runtime.
#[derive(Debug)]
pub(super) struct Bound {
    /// Where; the port is the real one.
    pub(super) address: SocketAddr,
    /// Datagrams.
    udp: std::net::UdpSocket,
    /// Streams.
    tcp: std::net::TcpListener,
}

impl Bound {
    /// The sockets as the current runtime's.
    pub(super) fn watched(self) -> std::io::Result<(Arc<UdpSocket>, Arc<TcpListener>)> {
        let udp = UdpSocket::from_std(self.udp)?;
        Ok((Arc::new(udp), Arc::new(TcpListener::from_std(self.tcp)?)))
    }
}

/// Binds UDP and TCP on every address. An address of a family that this machine does not have is
/// left out if another one remains.
///
/// # Errors
/// A taken or foreign address.
pub(super) fn bind(addresses: &[SocketAddr]) -> Result<Vec<Bound>, ListenError> {
    let mut bound = Vec::new();
    let mut missing = None;
    for &address in addresses {
        match bind_one(address) {
            Ok(sockets) => bound.push(sockets),
            Err(error) if has_no_family(&error) => {
                tracing::warn!(target: "dns", "{error}");
                missing = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if bound.is_empty() => Err(error),
        _ => Ok(bound),
    }
}

/// Whether the kernel has no such family, or no loopback address of it (IPv6 disabled).
fn has_no_family(error: &ListenError) -> bool {
    let ListenError::Bind {
        address, source, ..
    } = error
    else {
        return false;
    };
    match source.raw_os_error() {
        Some(libc::EAFNOSUPPORT) => true,
        Some(libc::EADDRNOTAVAIL) => address.ip().is_loopback(),
        _ => false,
    }
}

fn bind_one(address: SocketAddr) -> Result<Bound, ListenError> {
    let failed = |transport, address| {
        move |source| ListenError::Bind {
            transport,
            address,
            source,
        }
    };
    let udp = socket(address, Type::DGRAM).map_err(failed("udp", address))?;
    let udp = std::net::UdpSocket::from(udp);
    // Both have one port, also where the kernel chose it.
    let address = udp.local_addr().map_err(failed("udp", address))?;
    let tcp = socket(address, Type::STREAM)
        .and_then(|socket| socket.listen(BACKLOG).map(|()| socket))
        .map_err(failed("tcp", address))?;
    Ok(Bound {
        address,
        udp,
        tcp: tcp.into(),
    })
}

fn socket(address: SocketAddr, kind: Type) -> std::io::Result<Socket> {
    let domain = Domain::for_address(address);
    let protocol = match kind {
        Type::STREAM => Protocol::TCP,
        _ => Protocol::UDP,
    };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    if domain == Domain::IPV6 {
        // `:port` is every address of both families, another IPv6 address is only itself.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn localhost_is_a_loopback_address_per_family_of_the_servers() {
        const V4: &str = "10.96.0.10:53";
        const V6: &str = "[fd00::a]:53";
        for (setting, servers, want) in [
            ("localhost:15053", &[V4][..], &["127.0.0.1:15053"][..]),
            ("localhost:15053", &[V6], &["[::1]:15053"]),
            (
                "localhost:15053",
                &[V6, V4],
                &["127.0.0.1:15053", "[::1]:15053"],
            ),
            ("localhost:15053", &[], &["127.0.0.1:15053"]),
            ("10.0.0.1:5353", &[V6], &["10.0.0.1:5353"]),
            ("[::1]:53", &[V4], &["[::1]:53"]),
            (":15053", &[V4], &["[::]:15053"]),
        ] {
            let servers: Vec<SocketAddr> = servers.iter().flat_map(|s| s.parse()).collect();
            let found = addresses(setting, &servers).await.expect("valid");
            let want: Vec<SocketAddr> = want.iter().flat_map(|s| s.parse()).collect();
            assert_eq!(found, want, "{setting} {servers:?}");
        }
        for setting in [
            "15053",
            "localhost",
            "localhost:",
            "localhost:dns",
            "::1:53",
            "[::1:53",
        ] {
            let error = addresses(setting, &[]).await.expect_err(setting);
            assert_eq!(
                error.to_string(),
                format!("DNS_PROXY_ADDR={setting}: not host:port")
            );
        }
    }
}
