//! SDS server for the proxy on a unix socket: `StreamSecrets` with the rules of the reference.
//! Secrets come from the secret manager; a stream never ends because a renewal failed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use outrigger_base::time::rfc3339;
use outrigger_xds::grpc::server::{serve_unix, unimplemented};
use outrigger_xds::grpc::{Responder, ServerCall, ServerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tonic::Status;

use crate::metrics::{Histogram, Page};
use crate::secret_manager::SecretManager;
use crate::uds::{self, SocketFile, UdsError};

mod encode;
mod key_provider;
mod stream;

pub use key_provider::{KeyProvider, KeyProviderError};

use encode::Encoding;
use stream::Stream;

const STREAM_SECRETS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
/// How long an existing socket has to accept a gRPC connection.
const EXTERNAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Client preface and an empty SETTINGS frame.
const HTTP2_HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Frame type of SETTINGS.
const HTTP2_SETTINGS: u8 = 4;

/// Settings of an [`SdsServer`].
#[derive(Debug, Clone)]
pub struct SdsConfig {
    /// The socket: `./var/run/secrets/workload-spiffe-uds/socket`, or
    /// `./var/run/secrets/credential-uds/files-socket` beside an external SDS.
    pub socket: PathBuf,
    /// The CRL referred to in validation contexts if it exists when they are made;
    /// `/var/run/secrets/istio/crl/ca-crl.pem`, or `None` without `PILOT_ENABLE_CA_CRL`.
    pub crl: Option<PathBuf>,
    /// ProxyConfig `privateKeyProvider`.
    pub key_provider: Option<KeyProvider>,
    /// gRPC settings.
    pub server: ServerOptions,
}

/// Upper bounds of `pilot_xds_send_time`, in seconds.
const SEND_BOUNDS: [f64; 8] = [0.01, 0.1, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];

/// Counters of the SDS server, under the names the reference exports.
#[derive(Debug)]
pub struct SdsMetrics {
    /// `pilot_xds_expired_nonce{type}`.
    pub expired_nonce: AtomicU64,
    /// `pilot_total_xds_rejects{type}`.
    pub rejects: AtomicU64,
    /// `pilot_xds_send_time`: seconds until the connection took a response.
    pub send_time: Histogram,
    /// Responses sent.
    pub pushes: AtomicU64,
    /// Streams open now.
    pub streams: AtomicU64,
}

impl Default for SdsMetrics {
    fn default() -> Self {
        Self {
            expired_nonce: AtomicU64::default(),
            rejects: AtomicU64::default(),
            send_time: Histogram::new(&SEND_BOUNDS),
            pushes: AtomicU64::default(),
            streams: AtomicU64::default(),
        }
    }
}

impl SdsMetrics {
    /// Adds them to `page`. The label is the one that the reference gives to SDS: `sds`.
    pub fn render(&self, page: &mut Page) {
        let labels = [("type", "sds")];
        page.counter(
            "pilot_xds_expired_nonce",
            "Total number of XDS requests with an expired nonce.",
            &labels,
            self.expired_nonce.load(Ordering::Relaxed),
        );
        page.counter(
            "pilot_total_xds_rejects",
            "Total number of XDS responses rejected by the proxy.",
            &labels,
            self.rejects.load(Ordering::Relaxed),
        );
        self.send_time.render(
            page,
            "pilot_xds_send_time",
            "Total time in seconds the agent takes to send a secret.",
        );
    }
}

/// State shared by the streams.
#[derive(Debug)]
pub(crate) struct Shared {
    secrets: SecretManager,
    encoding: Encoding,
    versions: AtomicU64,
    metrics: Arc<SdsMetrics>,
}

impl Shared {
    /// `<RFC 3339>/<counter>`.
    fn next_version(&self) -> String {
        let number = self.versions.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{}/{number}", rfc3339(SystemTime::now()))
    }
}

/// A bound SDS server.
#[derive(Debug)]
pub struct SdsServer {
    listener: UnixListener,
    _file: SocketFile,
    options: ServerOptions,
    shared: Arc<Shared>,
}

impl SdsServer {
    /// Binds the socket (mode 0666, stale file removed).
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn bind(config: SdsConfig, secrets: SecretManager) -> Result<Self, UdsError> {
        let listener = uds::bind(&config.socket)?;
        Ok(Self {
            listener,
            _file: SocketFile(config.socket),
            options: config.server,
            shared: Arc::new(Shared {
                secrets,
                encoding: Encoding {
                    crl: config.crl,
                    key_provider: config.key_provider,
                },
                versions: AtomicU64::new(0),
                metrics: Arc::default(),
            }),
        })
    }

    /// Counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<SdsMetrics> {
        Arc::clone(&self.shared.metrics)
    }

    /// Serves until dropped; the socket file goes with it.
    pub async fn run(self) {
        let shared = self.shared;
        serve_unix(self.listener, self.options, move |call, responder| {
            serve_call(Arc::clone(&shared), call, responder)
        })
        .await;
    }
}

async fn serve_call(
    shared: Arc<Shared>,
    call: ServerCall,
    responder: Responder,
) -> Result<(), Status> {
    if call.path != STREAM_SECRETS {
        return Err(unimplemented(&call.path));
    }
    let open = OpenStream::new(Arc::clone(&shared.metrics));
    let result = Stream::new(shared, responder).run(call.requests).await;
    drop(open);
    result
}

/// Counts a stream while it exists.
struct OpenStream(Arc<SdsMetrics>);

impl OpenStream {
    fn new(metrics: Arc<SdsMetrics>) -> Self {
        metrics.streams.fetch_add(1, Ordering::Relaxed);
        Self(metrics)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whose SDS serves identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SdsProvider {
    /// Somebody else answers on the socket: serve file certificates only, need no CA.
    External,
    /// Nobody does (a dead socket has been removed): serve identities here.
    Own,
}

/// The provider cannot be settled; fatal at start.
#[derive(Debug, thiserror::Error)]
pub enum SdsProviderError {
    /// `WORKLOAD_IDENTITY_SOCKET_FILE` must be a plain file name.
    #[error("WORKLOAD_IDENTITY_SOCKET_FILE {0:?} is not a file name")]
    BadName(String),
    /// A name other than `socket` was configured and nobody serves it.
    #[error("workload identity socket {} does not exist", .0.display())]
    Missing(PathBuf),
    /// The dead socket cannot be removed.
    #[error("stale socket {}: {source}", path.display())]
    Stale {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Looks for an SDS on `<dir>/<file_name>` once: it must accept a gRPC connection within 1 s.
///
/// # Errors
/// If the name holds a `/`, a dead file cannot be removed, or nobody serves a name other than
/// `socket`.
pub async fn detect_provider(dir: &Path, file_name: &str) -> Result<SdsProvider, SdsProviderError> {
    if file_name.is_empty() || file_name.contains('/') {
        return Err(SdsProviderError::BadName(file_name.to_owned()));
    }
    let path = dir.join(file_name);
    if path.exists() {
        if answers(&path).await {
            return Ok(SdsProvider::External);
        }
        std::fs::remove_file(&path).map_err(|source| SdsProviderError::Stale {
            path: path.clone(),
            source,
        })?;
    }
    if file_name == "socket" {
        Ok(SdsProvider::Own)
    } else {
        Err(SdsProviderError::Missing(path))
    }
}

/// True if an HTTP/2 server answers on `path`: it sends its SETTINGS. A call would not do, since
/// servers may keep back the headers of their answer until they have a message.
pub async fn answers(path: &Path) -> bool {
    let attempt = async {
        let mut stream = tokio::net::UnixStream::connect(path).await?;
        stream.write_all(HTTP2_HELLO).await?;
        let mut header = [0; 9];
        stream.read_exact(&mut header).await?;
        Ok::<_, std::io::Error>(header[3] == HTTP2_SETTINGS)
    };
    matches!(
        tokio::time::timeout(EXTERNAL_TIMEOUT, attempt).await,
        Ok(Ok(true))
    )
}
