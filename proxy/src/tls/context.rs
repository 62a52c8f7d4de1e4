//! TLS contexts of filter chains and clusters.

use std::sync::Arc;

use outrigger_config::tls::{DownstreamTls, UpstreamTls};
use tokio::net::TcpStream;

use crate::control::store::Store;
use crate::io::stream::Rewound;
use crate::stream_info::TlsInfo;

/// Why a handshake failed. The text is what Envoy logs as transport failure reason (spaces not yet replaced),
/// e.g. `TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify cert failed: SAN matcher, ...:TLS_error_end`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct TlsFailure {
    /// The text.
    pub reason: String,
    /// No handshake was tried: a secret has not arrived.
    pub secret_missing: bool,
}

/// Terminates TLS for a filter chain.
#[derive(Debug)]
pub struct DownstreamContext {}

impl DownstreamContext {
    /// Compiles the context; secrets may arrive later.
    ///
    /// # Errors
    /// When inline certificates or keys do not load.
    pub fn build(_config: &Arc<DownstreamTls>, _store: &Store) -> Result<Arc<Self>, TlsFailure> {
        Ok(Arc::new(Self {}))
    }

    /// Whether every secret it needs is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        false
    }

    /// Runs the server handshake. The caller sets the deadline.
    ///
    /// # Errors
    /// See [`TlsFailure`].
    pub async fn accept(
        &self,
        _io: Rewound,
    ) -> Result<(Box<tokio_rustls::server::TlsStream<Rewound>>, Arc<TlsInfo>), TlsFailure> {
        Err(TlsFailure {
            reason: String::new(),
            secret_missing: true,
        })
    }
}

/// What one upstream handshake needs beyond the context.
#[derive(Debug, Default, Clone, Copy)]
pub struct HandshakeOptions<'a> {
    /// Overrides the context's SNI (`auto_sni`).
    pub server_name: Option<&'a str>,
    /// Overrides the context's ALPN list (istio.alpn).
    pub alpn: Option<&'a [Arc<str>]>,
    /// The peer's DNS SANs must hold this name (`auto_san_validation`).
    pub verify_dns_name: Option<&'a str>,
}

/// Originates TLS for a cluster.
#[derive(Debug)]
pub struct UpstreamContext {}

impl UpstreamContext {
    /// Compiles the context; secrets may arrive later.
    ///
    /// # Errors
    /// When inline certificates or keys do not load.
    pub fn build(_config: &Arc<UpstreamTls>, _store: &Store) -> Result<Arc<Self>, TlsFailure> {
        Ok(Arc::new(Self {}))
    }

    /// Whether every secret it needs is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        false
    }

    /// Runs the client handshake. The caller sets the deadline.
    ///
    /// # Errors
    /// See [`TlsFailure`].
    pub async fn connect(
        &self,
        _socket: TcpStream,
        _options: HandshakeOptions<'_>,
    ) -> Result<
        (
            Box<tokio_rustls::client::TlsStream<TcpStream>>,
            Arc<TlsInfo>,
        ),
        TlsFailure,
    > {
        Err(TlsFailure {
            reason: String::new(),
            secret_missing: true,
        })
    }
}
