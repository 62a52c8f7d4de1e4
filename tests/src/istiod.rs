//! A small control plane: ADS (delta and state-of-the-world) and the CA on one TLS port, as istiod
//! serves them, or on a Unix socket for a proxy without an agent.
//!
//! It knows no Istio configuration: a test gives it the resources of each node.

pub mod ads;
pub mod builder;
pub mod sds;
pub mod snapshot;
pub mod strip;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;

use crate::ca::{Authority, CREATE_CERTIFICATE, CaError, CaService};
use ads::Ads;
use sds::Sds;

pub use ads::{AdsEvent, EventKind};
pub use snapshot::{Resource, Snapshot, SnapshotError};

/// Names in the certificate of the control plane.
pub const NAMES: &[&str] = &[
    "istiod.istio-system.svc",
    "istiod.istio-system.svc.cluster.local",
    "istiod",
    "localhost",
];

/// Why the control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum IstiodError {
    /// Socket trouble.
    #[error("control plane socket: {0}")]
    Io(#[from] io::Error),
    /// Key or certificate trouble.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// TLS set-up.
    #[error("control plane TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A running control plane. Dropping it closes every listener and connection.
pub struct Istiod {
    /// Discovery: resources, pushes, and the record of what clients said.
    pub ads: Ads,
    /// Signing requests: faults and record.
    pub ca: CaService,
    authority: Arc<Authority>,
    tls: TlsAcceptor,
    tasks: Mutex<JoinSet<()>>,
    gate: Arc<Gate>,
}

impl std::fmt::Debug for Istiod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Istiod")
            .field("ca", &self.ca)
            .finish_non_exhaustive()
    }
}

/// Connection faults.
#[derive(Debug, Default)]
struct Gate {
    refuse: std::sync::atomic::AtomicBool,
    kill: tokio::sync::Notify,
}

impl Istiod {
    /// A control plane with a new CA and no listener yet.
    pub fn new() -> Result<Self, IstiodError> {
        Self::with_authority(Arc::new(Authority::new()?))
    }

    /// A control plane that signs with a given CA.
    pub fn with_authority(authority: Arc<Authority>) -> Result<Self, IstiodError> {
        let identity = authority.server(NAMES)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(identity.chain(), identity.key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            ads: Ads::default(),
            ca: CaService::new(authority.clone()),
            authority,
            tls: TlsAcceptor::from(Arc::new(config)),
            tasks: Mutex::new(JoinSet::new()),
            gate: Arc::default(),
        })
    }

    /// The CA behind [`Istiod::ca`].
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Serves ADS and CA over TLS on an already bound, non-blocking socket.
    pub fn serve_tls(&self, socket: std::net::TcpListener) -> Result<SocketAddr, IstiodError> {
        let address = socket.local_addr()?;
        let listener = TcpListener::from_std(socket)?;
        let (tls, routes, gate) = (self.tls.clone(), self.routes(None), self.gate.clone());
        self.tasks.lock().spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                if gate.refuse.load(std::sync::atomic::Ordering::Relaxed) {
                    continue;
                }
                let (tls, routes, gate) = (tls.clone(), routes.clone(), gate.clone());
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let work = async {
                        if let Ok(stream) = tls.accept(stream).await {
                            routes.serve(stream).await;
                        }
                    };
                    tokio::select! { () = work => {}, () = gate.kill.notified() => {} }
                });
            }
        });
        Ok(address)
    }

    /// Passes connections on to a real control plane instead of serving them.
    pub fn relay(&self, socket: std::net::TcpListener, to: SocketAddr) -> Result<(), IstiodError> {
        let listener = TcpListener::from_std(socket)?;
        self.tasks.lock().spawn(async move {
            loop {
                let Ok((mut near, _)) = listener.accept().await else {
                    return;
                };
                tokio::spawn(async move {
                    if let Ok(mut far) = tokio::net::TcpStream::connect(to).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Ok(())
    }

    /// Serves plaintext ADS on a Unix socket: the place of the agent's xDS proxy.
    pub fn serve_ads_unix(&self, path: &Path) -> Result<(), IstiodError> {
        self.serve_unix(path, self.routes(None))
    }

    /// Serves SDS for one workload on a Unix socket: the place of the agent's SDS server.
    pub fn serve_sds_unix(&self, path: &Path, spiffe: &str) -> Result<(), IstiodError> {
        let sds = Sds::new(self.authority.clone(), spiffe)?;
        self.serve_unix(path, self.routes(Some(sds)))
    }

    fn serve_unix(&self, path: &Path, routes: Routes) -> Result<(), IstiodError> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        let gate = self.gate.clone();
        self.tasks.lock().spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (routes, gate) = (routes.clone(), gate.clone());
                tokio::spawn(async move {
                    tokio::select! { () = routes.serve(stream) => {}, () = gate.kill.notified() => {} }
                });
            }
        });
        Ok(())
    }

    /// Cuts every open connection.
    pub fn kill_connections(&self) {
        self.gate.kill.notify_waiters();
    }

    /// While true, new connections are closed as soon as they are accepted.
    pub fn refuse(&self, refuse: bool) {
        self.gate
            .refuse
            .store(refuse, std::sync::atomic::Ordering::Relaxed);
    }

    fn routes(&self, sds: Option<Sds>) -> Routes {
        Routes {
            ads: self.ads.clone(),
            ca: self.ca.clone(),
            sds,
        }
    }
}

impl Drop for Istiod {
    fn drop(&mut self) {
        self.tasks.lock().abort_all();
        self.kill_connections();
    }
}

#[derive(Debug, Clone)]
struct Routes {
    ads: Ads,
    ca: CaService,
    sds: Option<Sds>,
}

impl Routes {
    async fn serve<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(move |request: http::Request<Incoming>| {
            let routes = self.clone();
            async move { Ok::<_, std::convert::Infallible>(routes.answer(request).await) }
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(30))
            .serve_connection(TokioIo::new(stream), service);
        // A client that goes away is what tests do all the time.
        let _ = connection.await;
    }

    async fn answer(&self, request: http::Request<Incoming>) -> http::Response<Body> {
        match request.uri().path() {
            CREATE_CERTIFICATE => self.ca.call(request).await,
            path if path.starts_with("/envoy.service.discovery.v3.AggregatedDiscoveryService/") => {
                self.ads.call(request).await
            }
            path if path.starts_with("/envoy.service.secret.v3.SecretDiscoveryService/") => {
                match &self.sds {
                    Some(sds) => sds.call(request).await,
                    None => tonic::Status::unimplemented("no SDS here").into_http(),
                }
            }
            path => tonic::Status::unimplemented(format!("no {path}")).into_http(),
        }
    }
}
