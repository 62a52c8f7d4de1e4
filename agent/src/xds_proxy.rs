//! ADS between the proxy's unix socket and istiod: every downstream stream has its own upstream
//! connection; messages pass as bytes. Keeps nothing between streams but name table and health.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_xds::grpc::server::{serve_unix, unimplemented};
use outrigger_xds::grpc::{Responder, ServerCall, ServerOptions};
use outrigger_xds::{Protocol, Service};
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tonic::Status;

use crate::credential::RequestMetadata;
use crate::istiod::IstiodConnector;
use crate::uds::{self, SocketFile, UdsError};
use crate::wasm::WasmCache;

mod end;
mod head;
mod istio_types;
mod stream;

pub use end::EndClass;
pub use istio_types::{NameInfo, NameTable};

/// Settings of an [`XdsProxy`].
#[derive(Debug, Clone)]
pub struct XdsProxyConfig {
    /// `./etc/istio/proxy/XDS`.
    pub socket: PathBuf,
    /// istiod.
    pub upstream: IstiodConnector,
    /// Token, cluster id, `XDS_HEADER_*`.
    pub metadata: RequestMetadata,
    /// gRPC settings of the socket (`ISTIO_GPRC_MAXSTREAMS`, `ISTIO_GPRC_MAXRECVMSGSIZE`).
    pub server: ServerOptions,
    /// Ask for the name table (the agent's DNS server runs).
    pub name_table: bool,
    /// `PROXY_CONFIG_XDS_AGENT`: ask for trust bundles (PCDS).
    pub proxy_config: bool,
    /// Fetches the Wasm modules of extension configs; `None` passes the configs unchanged.
    pub wasm: Option<Arc<WasmCache>>,
}

/// Counters under the names the reference exports.
#[derive(Debug, Default)]
pub struct XdsProxyMetrics {
    /// `istiod_connection_failures`: connections that could not be made.
    pub connection_failures: AtomicU64,
    /// `istiod_connection_terminations{type="cancelled"}`.
    pub istiod_cancelled: AtomicU64,
    /// `istiod_connection_terminations{type="error"}`.
    pub istiod_error: AtomicU64,
    /// `envoy_connection_terminations{type="cancelled"}`.
    pub envoy_cancelled: AtomicU64,
    /// `envoy_connection_terminations{type="error"}`.
    pub envoy_error: AtomicU64,
    /// `xds_proxy_requests`: messages to istiod, injected ones included.
    pub requests: AtomicU64,
    /// `xds_proxy_responses`: messages from istiod.
    pub responses: AtomicU64,
    /// `pilot_xds_recv_max`: longest request from the proxy, bytes.
    pub recv_max: AtomicU64,
}

/// State of the connection to istiod, for readiness and debug pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XdsProxyStatus {
    /// Streams connected to istiod now.
    pub connected: usize,
    /// Last connect, TLS or stream error; `None` once istiod has sent something since.
    pub last_error: Option<String>,
}

/// Health of the workload, reported to istiod (VM auto-registration).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// All probes pass.
    Healthy,
    /// The probe's message.
    Unhealthy(String),
}

/// What the streams share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: XdsProxyConfig,
    pub(crate) metrics: XdsProxyMetrics,
    status: watch::Sender<XdsProxyStatus>,
    names: watch::Sender<Option<Arc<NameTable>>>,
    anchors: watch::Sender<Option<Vec<String>>>,
    pub(crate) health: watch::Sender<Option<Health>>,
    /// Types that were dropped, to log each once.
    dropped_types: Mutex<Vec<String>>,
}

/// Handle to a running or bound xDS proxy.
#[derive(Debug, Clone)]
pub struct XdsProxyHandle(Arc<Shared>);

impl XdsProxyHandle {
    /// Counters.
    #[must_use]
    pub fn metrics(&self) -> &XdsProxyMetrics {
        &self.0.metrics
    }

    /// Connection state.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<XdsProxyStatus> {
        self.0.status.subscribe()
    }

    /// The name table: `None` until the first arrives, then each full replacement.
    #[must_use]
    pub fn name_table(&self) -> watch::Receiver<Option<Arc<NameTable>>> {
        self.0.names.subscribe()
    }

    /// Trust anchors (`caCertificatesPem`) of the last PCDS response.
    #[must_use]
    pub fn trust_anchors(&self) -> watch::Receiver<Option<Vec<String>>> {
        self.0.anchors.subscribe()
    }

    /// Reports the workload's health: sent on the streams that are past their first Listener
    /// request, and again on each new one. The same state twice is sent once.
    pub fn set_health(&self, health: Health) {
        self.0.health.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&health);
            if changed {
                *current = Some(health);
            }
            changed
        });
    }
}

/// A bound xDS proxy.
#[derive(Debug)]
pub struct XdsProxy {
    listener: UnixListener,
    _file: SocketFile,
    shared: Arc<Shared>,
}

impl XdsProxy {
    /// Binds the socket (mode 0666, stale file removed). Nothing is sent to istiod before the
    /// proxy opens a stream.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn bind(config: XdsProxyConfig) -> Result<Self, UdsError> {
        let listener = uds::bind(&config.socket)?;
        Ok(Self {
            listener,
            _file: SocketFile(config.socket.clone()),
            shared: Arc::new(Shared {
                config,
                metrics: XdsProxyMetrics::default(),
                status: watch::channel(XdsProxyStatus::default()).0,
                names: watch::channel(None).0,
                anchors: watch::channel(None).0,
                health: watch::channel(None).0,
                dropped_types: Mutex::default(),
            }),
        })
    }

    /// State, counters and health of this proxy.
    #[must_use]
    pub fn handle(&self) -> XdsProxyHandle {
        XdsProxyHandle(Arc::clone(&self.shared))
    }

    /// Serves any number of streams at once until dropped; the socket file goes with it.
    pub async fn run(self) {
        let shared = self.shared;
        let options = shared.config.server.clone();
        serve_unix(self.listener, options, move |call, responder| {
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
    let protocol = [Protocol::Delta, Protocol::Sotw]
        .into_iter()
        .find(|&protocol| call.path == Service::Ads.path(protocol))
        .ok_or_else(|| unimplemented(&call.path))?;
    stream::serve(shared, protocol, call.requests, responder).await
}

impl Shared {
    pub(crate) fn failed(&self, error: String) {
        self.status
            .send_modify(|status| status.last_error = Some(error));
    }

    /// istiod has sent something: what failed before is over.
    pub(crate) fn answered(&self) {
        self.status
            .send_if_modified(|status| status.last_error.take().is_some());
    }

    /// Logs a dropped type once. The list is bounded: the peer chooses the names.
    pub(crate) fn report_dropped(&self, type_url: &str) {
        let mut seen = self.dropped_types.lock();
        if seen.len() < 64 && !seen.iter().any(|t| t == type_url) {
            tracing::error!(type_url, "dropping responses of unknown type");
            seen.push(type_url.to_owned());
        }
    }
}

/// Counts one stream to istiod as connected while it exists.
pub(crate) struct Connected(Arc<Shared>);

impl Connected {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        shared.status.send_modify(|status| status.connected += 1);
        Self(shared)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.status.send_modify(|status| status.connected -= 1);
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
