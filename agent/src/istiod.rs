//! Connections to istiod and to the CA: address, server name, TLS. One new connection per attempt;
//! root and client certificate files are read each time, so that their rotation needs no restart.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use outrigger_xds::Connector;
use outrigger_xds::grpc::ClientOptions;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::resolver::{ResolveError, Resolver};

mod http_proxy;
mod tls;

pub use http_proxy::{HttpsProxy, HttpsProxyError};
pub(crate) use tls::http_client_config;
pub use tls::{Compliance, SYSTEM_ROOTS, TlsError};

/// Server name for addresses that contain `localhost`.
const LOCAL_SERVER_NAME: &str = "istiod.istio-system.svc";
/// Suffix of CA addresses that are reached in plaintext.
const PLAINTEXT_SUFFIX: &str = ":15010";
/// How long one address is waited for before the next is tried as well (RFC 8305 recommends 250 ms).
const SILENCE: Duration = Duration::from_millis(250);

/// Where the trusted roots are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A PEM file.
    File(PathBuf),
    /// `SYSTEM`: the operating system's bundle.
    System,
}

/// Client certificate files (`PROV_CERT` and relatives).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM chain, leaf first.
    pub chain: PathBuf,
    /// PEM key.
    pub key: PathBuf,
}

/// TLS of a connection.
#[derive(Debug, Clone)]
pub struct TlsSettings {
    /// Trusted roots.
    pub roots: RootSource,
    /// Client certificate; one that is expired or unreadable is left out with a warning.
    pub client: Option<ClientCertificate>,
    /// `COMPLIANCE_POLICY`.
    pub compliance: Compliance,
}

/// A peer of the control plane.
#[derive(Debug, Clone)]
pub struct IstiodConfig {
    /// `host:port` (`discoveryAddress` or `CA_ADDR`).
    pub address: String,
    /// `ISTIOD_SAN`, where it applies: always for xDS, for the CA only without `CA_ADDR`.
    pub san: Option<String>,
    /// `None` is plaintext: `controlPlaneAuthPolicy: NONE`, or see [`ca_is_plaintext`].
    pub tls: Option<TlsSettings>,
    /// `GRPC_KEEPALIVE_INTERVAL` and `GRPC_KEEPALIVE_TIMEOUT`; default 30 s and 10 s.
    pub keepalive: (Duration, Duration),
    /// Bound on name lookup, TCP and TLS handshake together; default 10 s.
    pub connect_timeout: Duration,
    /// The way through an HTTP proxy, see [`HttpsProxy::for_host`].
    pub https_proxy: Option<HttpsProxy>,
    /// Name lookup.
    pub resolver: Resolver,
}

impl IstiodConfig {
    /// The documented defaults for everything but address and TLS.
    #[must_use]
    pub fn new(address: impl Into<String>, tls: Option<TlsSettings>) -> Self {
        Self {
            address: address.into(),
            san: None,
            tls,
            keepalive: (Duration::from_secs(30), Duration::from_secs(10)),
            connect_timeout: Duration::from_secs(10),
            https_proxy: None,
            resolver: Resolver::default(),
        }
    }
}

/// True if a CA address is reached without TLS.
#[must_use]
pub fn ca_is_plaintext(address: &str) -> bool {
    address.ends_with(PLAINTEXT_SUFFIX)
}

/// Host (without brackets) and port of an address.
///
/// # Errors
/// If it is not `host:port`.
pub fn host_port(address: &str) -> Result<(String, u16), IstiodConfigError> {
    let bad = || IstiodConfigError::Address(address.to_owned());
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let port = port.parse().map_err(|_| bad())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(bad());
    }
    Ok((host.to_owned(), port))
}

/// The configuration of a peer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IstiodConfigError {
    /// Not `host:port`.
    #[error("address {0:?} is not host:port")]
    Address(String),
    /// The TLS server name is no DNS name and no address.
    #[error("{0:?} cannot be a TLS server name")]
    ServerName(String),
}

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Name lookup.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// TCP, for the last address tried.
    #[error("connect to {address}: {source}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Roots or client certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The HTTP proxy does not give a tunnel.
    #[error("HTTPS_PROXY {proxy}: {source}")]
    Proxy {
        /// Host and port of the proxy.
        proxy: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The handshake.
    #[error("TLS handshake with {server_name}: {source}")]
    Handshake {
        /// Name the peer had to prove.
        server_name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// All of it took too long.
    #[error("no connection after {0:?}")]
    Timeout(Duration),
}

/// Opens connections to one peer.
#[derive(Debug, Clone)]
pub struct IstiodConnector {
    host: String,
    port: u16,
    server_name: String,
    config: Arc<IstiodConfig>,
}

impl IstiodConnector {
    /// Checks the address and derives the server name: `san`, else the host, where a host
    /// containing `localhost` becomes `istiod.istio-system.svc`.
    ///
    /// # Errors
    /// If the address is not `host:port` or the server name cannot be one.
    pub fn new(config: IstiodConfig) -> Result<Self, IstiodConfigError> {
        let (host, port) = host_port(&config.address)?;
        let server_name = match config.san.as_deref().filter(|san| !san.is_empty()) {
            Some(san) => san.to_owned(),
            None if host.contains("localhost") => LOCAL_SERVER_NAME.to_owned(),
            None => host.clone(),
        };
        if ServerName::try_from(server_name.as_str()).is_err() {
            return Err(IstiodConfigError::ServerName(server_name));
        }
        Ok(Self {
            host,
            port,
            server_name,
            config: Arc::new(config),
        })
    }

    /// Name the peer must prove, also the `:authority` of every call.
    #[must_use]
    pub fn server_name(&self) -> &str {
        &self.server_name
    }

    /// HTTP/2 settings: windows of 1 MiB, keepalive, messages up to 2^31-1 bytes.
    #[must_use]
    pub fn options(&self) -> ClientOptions {
        let authority = if self.server_name.contains(':') {
            format!("[{}]", self.server_name)
        } else {
            self.server_name.clone()
        };
        ClientOptions {
            authority,
            tls: self.config.tls.is_some(),
            keepalive: Some(self.config.keepalive),
            user_agent: concat!("pilot-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
            ..ClientOptions::default()
        }
    }

    /// Opens one connection.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn open(&self) -> Result<IstiodStream, ConnectError> {
        let limit = self.config.connect_timeout;
        tokio::time::timeout(limit, self.open_unbounded())
            .await
            .map_err(|_| ConnectError::Timeout(limit))?
    }

    async fn open_unbounded(&self) -> Result<IstiodStream, ConnectError> {
        // Before the network: a missing root is the clearer error.
        let tls = self
            .config
            .tls
            .as_ref()
            .map(tls::client_config)
            .transpose()?;
        let tcp = self.dial().await?;
        let Some(tls) = tls else {
            return Ok(IstiodStream::Plain(tcp));
        };
        let handshake = |source| ConnectError::Handshake {
            server_name: self.server_name.clone(),
            source,
        };
        let name = ServerName::try_from(self.server_name.clone())
            .map_err(|error| handshake(io::Error::other(error)))?;
        let stream = TlsConnector::from(Arc::new(tls))
            .connect(name, tcp)
            .await
            .map_err(handshake)?;
        Ok(IstiodStream::Tls(Box::new(stream)))
    }

    /// TCP to the peer, directly or through the proxy (which then resolves the name).
    async fn dial(&self) -> Result<TcpStream, ConnectError> {
        let Some(proxy) = &self.config.https_proxy else {
            return self.dial_host(&self.host, self.port).await;
        };
        let mut stream = self.dial_host(&proxy.host, proxy.port).await?;
        let target = if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        };
        proxy
            .tunnel(&mut stream, &target)
            .await
            .map_err(|source| ConnectError::Proxy {
                proxy: format!("{}:{}", proxy.host, proxy.port),
                source,
            })?;
        Ok(stream)
    }

    /// Tries the addresses of `host` in order, the next one when the one before fails or is
    /// silent for a while; the first that connects wins.
    async fn dial_host(&self, host: &str, port: u16) -> Result<TcpStream, ConnectError> {
        let mut rest = self.config.resolver.lookup(host).await?.into_iter();
        let mut failure = ConnectError::Resolve(ResolveError::NotFound(host.to_owned()));
        let mut attempts = FuturesUnordered::new();
        loop {
            match rest.next() {
                Some(ip) => attempts.push(connect(SocketAddr::new(ip, port))),
                None if attempts.is_empty() => return Err(failure),
                None => {}
            }
            tokio::select! {
                Some(result) = attempts.next() => match result {
                    Ok(stream) => return Ok(stream),
                    Err(error) => failure = error,
                },
                () = tokio::time::sleep(SILENCE), if rest.len() > 0 => {}
            }
        }
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, ConnectError> {
    let connected = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    connected
        .await
        .map_err(|source| ConnectError::Tcp { address, source })
}

impl Connector for IstiodConnector {
    type Io = IstiodStream;

    async fn connect(&self) -> io::Result<IstiodStream> {
        self.open().await.map_err(io::Error::other)
    }
}

/// A connection in plaintext or TLS.
#[derive(Debug)]
pub enum IstiodStream {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for IstiodStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for IstiodStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_name_follows_san_then_host_then_the_localhost_rule() {
        for (address, san, expected) in [
            (
                "istiod.istio-system.svc:15012",
                None,
                Ok("istiod.istio-system.svc"),
            ),
            (
                "istiod.istio-system.svc:15012",
                Some("istiod.test"),
                Ok("istiod.test"),
            ),
            (
                "istiod.istio-system.svc:15012",
                Some(""),
                Ok("istiod.istio-system.svc"),
            ),
            ("localhost:15012", None, Ok("istiod.istio-system.svc")),
            ("my-localhost-1:15012", None, Ok("istiod.istio-system.svc")),
            ("10.0.0.1:15012", None, Ok("10.0.0.1")),
            ("[fd00::1]:15012", None, Ok("fd00::1")),
            (
                "istiod",
                None,
                Err(IstiodConfigError::Address("istiod".to_owned())),
            ),
            (
                "istiod:x",
                None,
                Err(IstiodConfigError::Address("istiod:x".to_owned())),
            ),
            (
                "a:1",
                Some("no name"),
                Err(IstiodConfigError::ServerName("no name".to_owned())),
            ),
        ] {
            let config = IstiodConfig {
                san: san.map(str::to_owned),
                ..IstiodConfig::new(address, None)
            };
            let got = IstiodConnector::new(config).map(|c| c.server_name().to_owned());
            assert_eq!(got, expected.map(str::to_owned), "{address} {san:?}");
        }
    }

    #[test]
    fn only_port_15010_of_a_ca_address_is_plaintext() {
        assert!(ca_is_plaintext("istiod.istio-system.svc:15010"));
        assert!(!ca_is_plaintext("istiod.istio-system.svc:15012"));
        assert!(!ca_is_plaintext("istiod:115010"));
    }
}
