//! What is known of a downstream connection and of one stream on it: the single record that feeds access
//! logs, header formatters and stats. Owned by one worker; never shared across threads.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::error::Flags;
use crate::upstream::host::Host;

/// Facts of one finished TLS handshake, from either side's view.
#[derive(Debug, Default)]
pub struct TlsInfo {
    /// Peer presented a certificate and it was validated.
    pub peer_validated: bool,
    /// Peer certificate, DER, when one was presented.
    pub peer_certificate: Option<Vec<u8>>,
    /// URI SANs of the peer, in certificate order.
    pub peer_uri_sans: Vec<String>,
    /// DNS SANs of the peer.
    pub peer_dns_sans: Vec<String>,
    /// RFC 2253 subject of the peer.
    pub peer_subject: String,
    /// RFC 2253 issuer of the peer.
    pub peer_issuer: String,
    /// Serial of the peer, lower-case hex.
    pub peer_serial: String,
    /// SHA-256 of the peer certificate, lower-case hex.
    pub peer_fingerprint_256: String,
    /// URI SANs of our own certificate.
    pub local_uri_sans: Vec<String>,
    /// Subject of our own certificate.
    pub local_subject: String,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// OpenSSL name of the cipher, e.g. `TLS_AES_256_GCM_SHA384`.
    pub cipher: &'static str,
    /// Negotiated ALPN.
    pub alpn: Option<Vec<u8>>,
    /// The session was resumed.
    pub resumed: bool,
}

/// A downstream connection.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Process-wide unique id.
    pub id: u64,
    /// Accepted at.
    pub start: Instant,
    /// Accepted at, wall clock.
    pub start_time: SystemTime,
    /// Local address with the original destination restored.
    pub local: SocketAddr,
    /// Local address of the accepted socket, before restoring.
    pub direct_local: SocketAddr,
    /// Whether `local` was restored (ORIGINAL_DST clusters need it).
    pub local_restored: bool,
    /// Peer of the socket (or from the PROXY protocol).
    pub remote: SocketAddr,
    /// SNI of the ClientHello, as sent.
    pub server_name: Option<Arc<str>>,
    /// Terminated TLS.
    pub tls: Option<Arc<TlsInfo>>,
    /// ALPN offered (TLS inspector) or detected (HTTP inspector).
    pub application_protocols: Vec<Arc<str>>,
    /// Name of the chosen filter chain.
    pub filter_chain: Arc<str>,
    /// SO_MARK and source for upstream sockets (original_src filter), TPROXY only.
    pub original_src_mark: Option<u32>,
}

/// HTTP protocol of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

impl Protocol {
    /// As logged.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// The upstream side of a stream; reset by each attempt.
#[derive(Debug, Default)]
pub struct UpstreamInfo {
    /// Cluster name, set as soon as it is known.
    pub cluster: Option<Arc<str>>,
    /// `alt_stat_name` of the cluster.
    pub observability_name: Option<Arc<str>>,
    /// Chosen endpoint.
    pub host: Option<Arc<Host>>,
    /// Local address of the upstream socket.
    pub local: Option<SocketAddr>,
    /// Protocol towards the upstream.
    pub protocol: Option<Protocol>,
    /// TLS facts of the upstream connection.
    pub tls: Option<Arc<TlsInfo>>,
    /// Why the transport failed, with `_` for spaces already applied by the producer or not at all; the log
    /// replaces whitespace.
    pub transport_failure: Option<String>,
    /// Attempts so far, 1 for the first.
    pub attempts: u32,
}

/// One stream (HTTP request) or, for tcp_proxy, one connection.
#[derive(Debug)]
pub struct StreamInfo {
    /// Its connection.
    pub connection: Rc<ConnectionInfo>,
    /// First byte of the request, or accept for TCP.
    pub start: Instant,
    /// Wall clock of `start`.
    pub start_time: SystemTime,
    /// `None` for TCP.
    pub protocol: Option<Protocol>,
    /// Trusted client address: the connection's remote, or from XFF with port 0.
    pub remote: SocketAddr,
    /// 0 = none.
    pub response_code: u16,
    /// Empty = `-`.
    pub details: Cow<'static, str>,
    /// Response flags.
    pub flags: Flags,
    /// Body bytes from downstream (connection bytes for TCP).
    pub bytes_received: u64,
    /// Body bytes to downstream.
    pub bytes_sent: u64,
    /// Last request byte received.
    pub request_end: Option<Instant>,
    /// Last request byte sent upstream.
    pub request_tx_end: Option<Instant>,
    /// First response byte from upstream.
    pub response_start: Option<Instant>,
    /// Last byte sent downstream; the end of `%DURATION%`.
    pub end: Option<Instant>,
    /// Name of the route.
    pub route_name: Option<Arc<str>>,
    /// Upstream side.
    pub upstream: UpstreamInfo,
    /// L4 reasons, e.g. an RBAC verdict.
    pub connection_termination_details: Option<Cow<'static, str>>,
    /// Why the downstream handshake failed.
    pub downstream_transport_failure: Option<String>,
    /// `grpc-status` seen in trailers or headers.
    pub grpc_status: Option<u32>,
}

impl StreamInfo {
    /// A stream that starts now on `connection`.
    #[must_use]
    pub fn new(connection: Rc<ConnectionInfo>, start: Instant, start_time: SystemTime) -> Self {
        let remote = connection.remote;
        Self {
            connection,
            start,
            start_time,
            protocol: None,
            remote,
            response_code: 0,
            details: Cow::Borrowed(""),
            flags: Flags::default(),
            bytes_received: 0,
            bytes_sent: 0,
            request_end: None,
            request_tx_end: None,
            response_start: None,
            end: None,
            route_name: None,
            upstream: UpstreamInfo::default(),
            connection_termination_details: None,
            downstream_transport_failure: None,
            grpc_status: None,
        }
    }
}
