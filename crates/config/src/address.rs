//! Socket addresses as xDS names them.

use std::net::SocketAddr;
use std::sync::Arc;

/// `envoy.config.core.v3.Address`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// `socket_address` with a literal IP.
    Ip(SocketAddr),
    /// `socket_address` with a DNS name (only in STRICT_DNS and LOGICAL_DNS clusters).
    Dns {
        /// Host name to resolve.
        host: Arc<str>,
        /// TCP port.
        port: u16,
    },
    /// `pipe.path`: a unix socket.
    Pipe(Arc<str>),
}
