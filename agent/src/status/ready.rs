//! Readiness: the proxy has configuration and runs its workers. What was seen once is believed for
//! life, so that a busy admin port cannot take a working pod out of service.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::metrics::Metrics;
use crate::supervisor::{AdminClient, DrainError, Lifecycle};

const UPDATES_FILTER: &str = "^(cluster_manager\\.cds|listener_manager\\.lds)\\.\
                              (update_success|update_rejected)$";
const UPDATES_TIMEOUT: Duration = Duration::from_secs(1);
const STATE_FILTER: &str = "^(server\\.state|listener_manager\\.workers_started)";
const STATE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why the pod is not ready; the text is the body of the 503.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// No admin answer.
    #[error("failed to get {what} of the proxy: {source}")]
    Admin {
        /// Which question.
        what: &'static str,
        /// Why there is no answer.
        source: DrainError,
    },
    /// Nothing received.
    #[error("config not received from XDS server (is Istiod running?): {updates}{detail}")]
    NoConfig {
        /// Counters.
        updates: Updates,
        /// Last error towards istiod.
        detail: String,
    },
    /// Everything rejected.
    #[error("config received from XDS server, but was rejected: {updates}")]
    Rejected {
        /// Counters.
        updates: Updates,
    },
    /// One of the two is missing.
    #[error("config not fully received from XDS server: {updates}{detail}")]
    Partial {
        /// Counters.
        updates: Updates,
        /// Last error towards istiod.
        detail: String,
    },
    /// On the way out.
    #[error("server is not live, current state is: DRAINING")]
    Terminating,
    /// Not live yet.
    #[error("server is not live, current state is: {0}")]
    NotLive(&'static str),
    /// Workers not started.
    #[error("workers have not yet started")]
    Workers,
    /// A proxyless client could not start.
    #[error("grpc bootstrap {path}: {reason}")]
    GrpcBootstrap {
        /// File.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// Configuration updates the proxy has seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Updates {
    cds_success: u64,
    cds_rejected: u64,
    lds_success: u64,
    lds_rejected: u64,
}

impl std::fmt::Display for Updates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cds updates: {} successful, {} rejected; lds updates: {} successful, {} rejected",
            self.cds_success, self.cds_rejected, self.lds_success, self.lds_rejected
        )
    }
}

type Detail = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// State of the checks.
pub struct Readiness {
    /// `None` without a proxy.
    admin: Option<AdminClient>,
    /// Checked only when the pod is proxyless.
    grpc_bootstrap: Option<PathBuf>,
    metrics: Arc<Metrics>,
    /// Last error towards istiod, for the 503 body.
    istiod_error: Detail,
    configured: AtomicBool,
    live: AtomicBool,
}

impl Readiness {
    /// `istiod_error` is asked only while configuration is missing.
    pub fn new(
        admin: Option<AdminClient>,
        grpc_bootstrap: Option<PathBuf>,
        metrics: Arc<Metrics>,
        istiod_error: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            admin,
            grpc_bootstrap,
            metrics,
            istiod_error: Box::new(istiod_error),
            configured: AtomicBool::new(false),
            live: AtomicBool::new(false),
        }
    }

    /// Runs the checks in order; the first failure counts.
    ///
    /// # Errors
    /// What is missing.
    pub async fn check(&self, lifecycle: &Lifecycle) -> Result<(), NotReady> {
        if let Some(admin) = &self.admin {
            self.check_configured(admin).await?;
        }
        if lifecycle.is_terminating() {
            return Err(NotReady::Terminating);
        }
        if let Some(admin) = &self.admin {
            self.check_live(admin).await?;
        }
        self.check_grpc_bootstrap()?;
        self.metrics.ready();
        Ok(())
    }

    async fn check_configured(&self, admin: &AdminClient) -> Result<(), NotReady> {
        if self.configured.load(Ordering::Relaxed) {
            return Ok(());
        }
        let what = "the configuration state";
        let stats = admin.stats(UPDATES_FILTER, UPDATES_TIMEOUT).await;
        let stats = stats.map_err(|source| NotReady::Admin { what, source })?;
        let value = |name: &str| stats.iter().find(|(n, _)| n == name).map_or(0, |(_, v)| *v);
        let updates = Updates {
            cds_success: value("cluster_manager.cds.update_success"),
            cds_rejected: value("cluster_manager.cds.update_rejected"),
            lds_success: value("listener_manager.lds.update_success"),
            lds_rejected: value("listener_manager.lds.update_rejected"),
        };
        if updates.cds_success > 0 && updates.lds_success > 0 {
            self.configured.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let detail = || {
            (self.istiod_error)()
                .map(|e| format!("; last error: {e}"))
                .unwrap_or_default()
        };
        Err(match updates {
            Updates {
                cds_success: 0,
                cds_rejected: 0,
                lds_success: 0,
                lds_rejected: 0,
            } => NotReady::NoConfig {
                updates,
                detail: detail(),
            },
            Updates {
                cds_rejected: 0,
                lds_rejected: 0,
                ..
            } => NotReady::Partial {
                updates,
                detail: detail(),
            },
            _ => NotReady::Rejected { updates },
        })
    }

    async fn check_live(&self, admin: &AdminClient) -> Result<(), NotReady> {
        if self.live.load(Ordering::Relaxed) {
            return Ok(());
        }
        let what = "the server state";
        let stats = admin.stats(STATE_FILTER, STATE_TIMEOUT).await;
        let stats = stats.map_err(|source| NotReady::Admin { what, source })?;
        let value = |name: &str| stats.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        match value("server.state") {
            Some(0) => {}
            Some(1) => return Err(NotReady::NotLive("DRAINING")),
            Some(2) => return Err(NotReady::NotLive("PRE_INITIALIZING")),
            Some(3) => return Err(NotReady::NotLive("INITIALIZING")),
            _ => return Err(NotReady::NotLive("unknown")),
        }
        if value("listener_manager.workers_started") != Some(1) {
            return Err(NotReady::Workers);
        }
        self.live.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The file parses, and the certificate files it names exist.
    fn check_grpc_bootstrap(&self) -> Result<(), NotReady> {
        let Some(path) = &self.grpc_bootstrap else {
            return Ok(());
        };
        let fail = |reason: String| NotReady::GrpcBootstrap {
            path: path.display().to_string(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        let document: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
        let config = &document["certificate_providers"]["default"]["config"];
        for key in [
            "certificate_file",
            "private_key_file",
            "ca_certificate_file",
        ] {
            if let Some(file) = config[key].as_str()
                && !std::path::Path::new(file).exists()
            {
                return Err(fail(format!("{file} does not exist")));
            }
        }
        Ok(())
    }
}
