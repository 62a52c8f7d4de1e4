//! Readiness: the proxy has configuration and runs its workers. What was seen once is believed for
//! life, so that a busy admin port cannot take a working pod out of service. The answer names what
//! is missing, and for how long.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outrigger_base::memory::release_start_up_pages;
use tokio::sync::watch;

use super::waits::{self, Waits};
use crate::metrics::Metrics;
use crate::secret_manager::SecretStatus;
use crate::supervisor::{AdminClient, DrainError, Lifecycle};
use crate::xds_proxy::XdsProxyHandle;

const UPDATES_FILTER: &str = "^(cluster_manager\\.cds|listener_manager\\.lds)\\.\
                              (update_success|update_rejected)$";
const UPDATES_TIMEOUT: Duration = Duration::from_secs(1);
const STATE_FILTER: &str = "^(server\\.state|listener_manager\\.workers_started)";
const STATE_TIMEOUT: Duration = Duration::from_secs(3);
/// The names of what is missing are an extra; they must not make a probe late.
const UNREADY_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the pod is not ready; the text is the body of the 503. `detail` names what is missing.
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
        /// What is missing, last errors.
        detail: String,
    },
    /// Everything rejected.
    #[error("config received from XDS server, but was rejected: {updates}{detail}")]
    Rejected {
        /// Counters.
        updates: Updates,
        /// What is missing.
        detail: String,
    },
    /// One of the two is missing.
    #[error("config not fully received from XDS server: {updates}{detail}")]
    Partial {
        /// Counters.
        updates: Updates,
        /// What is missing, last errors.
        detail: String,
    },
    /// On the way out.
    #[error("server is not live, current state is: DRAINING")]
    Terminating,
    /// Not live yet.
    #[error("server is not live, current state is: {state}{detail}")]
    NotLive {
        /// Envoy's name of the state.
        state: &'static str,
        /// What is missing.
        detail: String,
    },
    /// Workers not started.
    #[error("workers have not yet started{detail}")]
    Workers {
        /// What is missing.
        detail: String,
    },
    /// A proxyless client could not start.
    #[error("grpc bootstrap {path}: {reason}")]
    GrpcBootstrap {
        /// File.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The DNS server has nothing to answer from.
    #[error("DNS lookup table is not ready yet{detail}")]
    NameTable {
        /// How long, last errors.
        detail: String,
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

/// The agent's own way to istiod, known once it has been set up.
#[derive(Debug)]
pub struct ControlPlane {
    /// Configuration.
    pub xds: XdsProxyHandle,
    /// Certificates.
    pub secrets: watch::Receiver<SecretStatus>,
}

impl ControlPlane {
    /// The last errors of both, as they stand now.
    fn errors(&self) -> Vec<String> {
        let xds = self.xds.status().borrow().last_error.clone();
        let certificate = self.secrets.borrow().last_error.clone();
        [("istiod", xds), ("certificate", certificate)]
            .into_iter()
            .filter_map(|(what, error)| Some(format!("last error of {what}: {}", error?)))
            .collect()
    }
}

/// What readiness is judged by.
#[derive(Clone)]
pub struct ReadinessParts {
    /// `None` without a proxy.
    pub admin: Option<AdminClient>,
    /// Checked only when the pod is proxyless.
    pub grpc_bootstrap: Option<PathBuf>,
    /// The DNS server runs: it needs a name table.
    pub name_table: bool,
    /// Where the start-up time is kept.
    pub metrics: Arc<Metrics>,
    /// Set during the start.
    pub control_plane: Arc<OnceLock<ControlPlane>>,
}

/// State of the checks.
pub struct Readiness {
    parts: ReadinessParts,
    waits: Waits,
    configured: AtomicBool,
    live: AtomicBool,
}

impl Readiness {
    /// Nothing is asked before the first check.
    pub fn new(parts: ReadinessParts) -> Self {
        Self {
            parts,
            waits: Waits::default(),
            configured: AtomicBool::new(false),
            live: AtomicBool::new(false),
        }
    }

    /// Runs the checks in order; the first failure counts.
    ///
    /// # Errors
    /// What is missing.
    pub async fn check(&self, lifecycle: &Lifecycle) -> Result<(), NotReady> {
        let admin = self.parts.admin.as_ref();
        if let Some(admin) = admin {
            self.check_configured(admin).await?;
        }
        if lifecycle.is_terminating() {
            return Err(NotReady::Terminating);
        }
        if let Some(admin) = admin {
            self.check_live(admin).await?;
        }
        self.check_grpc_bootstrap()?;
        self.check_name_table()?;
        if self.parts.metrics.ready()
            && let Err(error) = release_start_up_pages()
        {
            tracing::debug!("pages of the start stay mapped: {error}");
        }
        Ok(())
    }

    /// What is missing by name and time, then the last errors towards istiod and its CA.
    fn detail(&self, missing: Vec<String>) -> String {
        let mut parts: Vec<String> = self
            .waits
            .describe(missing, Instant::now())
            .into_iter()
            .collect();
        if let Some(control_plane) = self.parts.control_plane.get() {
            parts.extend(control_plane.errors());
        }
        parts.iter().map(|part| format!("; {part}")).collect()
    }

    fn has_certificate(&self) -> bool {
        let control_plane = self.parts.control_plane.get();
        control_plane.is_none_or(|c| c.secrets.borrow().not_after.is_some())
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
        let mut missing = Vec::new();
        if updates.cds_success == 0 {
            missing.push("CDS".to_owned());
        }
        if updates.lds_success == 0 {
            missing.push("LDS".to_owned());
        }
        if !self.has_certificate() {
            missing.push("certificate default".to_owned());
        }
        let detail = self.detail(missing);
        let rejected = updates.cds_rejected + updates.lds_rejected > 0;
        let received = updates.cds_success + updates.lds_success > 0;
        Err(match (rejected, received) {
            (true, _) => NotReady::Rejected { updates, detail },
            (false, true) => NotReady::Partial { updates, detail },
            (false, false) => NotReady::NoConfig { updates, detail },
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
        let state = match value("server.state") {
            Some(0) => None,
            Some(1) => Some("DRAINING"),
            Some(2) => Some("PRE_INITIALIZING"),
            Some(3) => Some("INITIALIZING"),
            _ => Some("unknown"),
        };
        if state.is_none() && value("listener_manager.workers_started") == Some(1) {
            self.live.store(true, Ordering::Relaxed);
            return Ok(());
        }
        // A proxy without that page gives no names, only the state.
        let page = admin.init_dump(UNREADY_TIMEOUT).await.unwrap_or_default();
        let detail = self.detail(waits::unready(&page));
        Err(match state {
            Some(state) => NotReady::NotLive { state, detail },
            None => NotReady::Workers { detail },
        })
    }

    fn check_name_table(&self) -> Result<(), NotReady> {
        let control_plane = self.parts.control_plane.get();
        let known = control_plane.is_some_and(|c| c.xds.name_table().borrow().is_some());
        if !self.parts.name_table || known {
            return Ok(());
        }
        let detail = self.detail(vec!["NDS".to_owned()]);
        Err(NotReady::NameTable { detail })
    }

    /// The file parses, and the certificate files it names exist.
    fn check_grpc_bootstrap(&self) -> Result<(), NotReady> {
        let Some(path) = &self.parts.grpc_bootstrap else {
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
