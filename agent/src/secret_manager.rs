//! Workload certificate and trusted roots: made, renewed, watched, handed to subscribers.
//! A working secret is never replaced by a bad one and never taken away; keys stay in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::ca_client::{CaClient, CaError};

mod der;
mod files;
mod key;
mod output;
mod rotation;
mod value;

pub use files::{FileError, MountedFiles};
pub use key::{KeyAlgorithm, KeyAndCsr, KeyConfig, KeyError, generate};
pub use output::OutputCerts;
pub use rotation::RotationConfig;
pub use value::SecretValue;

use files::{FileSecret, FileWatches};
use value::{concatenate_chain, merge_roots};

/// Name of the workload certificate.
pub const WORKLOAD_CERTIFICATE: &str = "default";
/// Name of the trusted roots.
pub const ROOT_CA: &str = "ROOTCA";
/// Longest single sleep: the wall clock is looked at again, since it may jump.
const CLOCK_CHECK: Duration = Duration::from_secs(600);

/// A subscription: `None` until the secret exists, then always a value.
pub type SecretReceiver = watch::Receiver<Option<Arc<SecretValue>>>;
type SecretSender = watch::Sender<Option<Arc<SecretValue>>>;

/// The SPIFFE identity in the request's SAN.
#[must_use]
pub fn spiffe_id(trust_domain: &str, namespace: &str, service_account: &str) -> String {
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
}

/// Where `default` and `ROOTCA` come from.
#[derive(Debug, Clone)]
pub enum WorkloadSource {
    /// Certificates by request to a CA.
    Ca(Arc<CaClient>),
    /// Mounted files, watched.
    Files(MountedFiles),
    /// Somebody else serves identities: only `file-cert:` and `file-root:` names exist.
    FileNamesOnly,
}

/// Settings of a [`SecretManager`].
#[derive(Debug, Clone)]
pub struct SecretManagerConfig {
    /// SAN of requests, see [`spiffe_id`].
    pub identity: String,
    /// Kind of keys.
    pub key: KeyConfig,
    /// When to renew.
    pub rotation: RotationConfig,
    /// Where identities come from.
    pub source: WorkloadSource,
    /// How often watched files are looked at; default 2 s.
    pub file_poll: Duration,
    /// `FILE_DEBOUNCE_DURATION`: first retry when mounted files do not parse; default 100 ms.
    pub file_retry: Duration,
    /// `OUTPUT_CERTS`.
    pub output: Option<OutputCerts>,
}

impl SecretManagerConfig {
    /// Documented defaults for `identity` from `source`.
    #[must_use]
    pub fn new(identity: String, source: WorkloadSource) -> Self {
        Self {
            identity,
            key: KeyConfig::default(),
            rotation: RotationConfig::default(),
            source,
            file_poll: Duration::from_secs(2),
            file_retry: Duration::from_millis(100),
            output: None,
        }
    }
}

/// What the manager tells the status server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretStatus {
    /// Why the last attempt failed; `None` after a success.
    pub last_error: Option<String>,
    /// `NotAfter` of the certificate that is served.
    pub not_after: Option<SystemTime>,
    /// Certificates received so far.
    pub issued: u64,
    /// Attempts that failed so far.
    pub failures: u64,
}

/// A name that is no secret of this agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown secret {0:?}")]
pub struct UnknownSecret(pub String);

#[derive(Debug, thiserror::Error)]
enum IssueError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("key generation task failed")]
    Task,
}

#[derive(Debug, Default)]
struct Roots {
    /// Root bundle of the last certificate.
    ca: Option<String>,
    /// Anchors from the mesh configuration (PCDS).
    extra: Vec<String>,
}

#[derive(Debug)]
struct Inner {
    config: SecretManagerConfig,
    workload: SecretSender,
    roots: SecretSender,
    root_parts: Mutex<Roots>,
    status: watch::Sender<SecretStatus>,
    renew: Notify,
    files: FileWatches,
}

#[derive(Debug)]
struct AbortOnDrop(Vec<JoinHandle<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Handle to the secrets; the tasks end with the last clone.
#[derive(Debug, Clone)]
pub struct SecretManager {
    inner: Arc<Inner>,
    _tasks: Arc<AbortOnDrop>,
}

impl SecretManager {
    /// Starts on the current runtime. With a CA, the first request is sent at once, and renewal
    /// happens whether or not anybody subscribes.
    #[must_use]
    pub fn spawn(config: SecretManagerConfig) -> Self {
        let files = FileWatches::new(config.file_poll, config.file_retry);
        let inner = Arc::new(Inner {
            workload: watch::channel(None).0,
            roots: watch::channel(None).0,
            root_parts: Mutex::default(),
            status: watch::channel(SecretStatus::default()).0,
            renew: Notify::new(),
            files,
            config,
        });
        let mut tasks = Vec::new();
        match &inner.config.source {
            WorkloadSource::Ca(ca) => {
                tasks.push(tokio::spawn(issue_loop(Arc::clone(&inner), Arc::clone(ca))));
            }
            WorkloadSource::Files(mounted) => {
                for (secret, sender) in [
                    (mounted.certificate(), &inner.workload),
                    (mounted.root(), &inner.roots),
                ] {
                    let task = inner.files.follow(secret, sender.clone());
                    tasks.push(tokio::spawn(task));
                }
            }
            WorkloadSource::FileNamesOnly => {}
        }
        Self {
            inner,
            _tasks: Arc::new(AbortOnDrop(tasks)),
        }
    }

    /// Subscribes to `default`, `ROOTCA`, `file-cert:<cert>~<key>`, `file-root:<path>` or
    /// `file-root:system`.
    ///
    /// # Errors
    /// For any other name, and for `default` and `ROOTCA` when somebody else serves them.
    pub fn subscribe(&self, name: &str) -> Result<SecretReceiver, UnknownSecret> {
        let identities = !matches!(self.inner.config.source, WorkloadSource::FileNamesOnly);
        match name {
            WORKLOAD_CERTIFICATE if identities => Ok(self.inner.workload.subscribe()),
            ROOT_CA if identities => Ok(self.inner.roots.subscribe()),
            _ => FileSecret::parse(name)
                .map(|secret| self.inner.files.subscribe(name, secret))
                .ok_or_else(|| UnknownSecret(name.to_owned())),
        }
    }

    /// State of issuing, for readiness and `cert_expiry_seconds`.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<SecretStatus> {
        self.inner.status.subscribe()
    }

    /// `num_file_secret_failures_total`.
    #[must_use]
    pub fn file_failures(&self) -> u64 {
        self.inner.files.failures()
    }

    /// Further trust anchors from the mesh configuration (PCDS). A change pushes `ROOTCA` and
    /// requests a new certificate; the same list does nothing.
    pub fn set_extra_roots(&self, anchors: Vec<String>) {
        {
            let mut parts = self.inner.root_parts.lock();
            if parts.extra == anchors {
                return;
            }
            parts.extra = anchors;
        }
        self.inner.publish_roots();
        self.inner.renew.notify_one();
    }
}

impl Inner {
    async fn issue(&self, ca: &CaClient) -> Result<SystemTime, IssueError> {
        let (key_config, identity) = (self.config.key, self.config.identity.clone());
        let key = tokio::task::spawn_blocking(move || generate(key_config, &identity))
            .await
            .map_err(|_| IssueError::Task)??;
        let chain = ca.create_certificate(&key.csr_pem, &key.public_key).await?;
        self.root_parts.lock().ca = Some(chain.root().to_owned());
        // Roots first: peers with a certificate of the new root must be trusted from now on.
        self.publish_roots();
        let value = Arc::new(SecretValue::Certificate {
            chain: concatenate_chain(&chain.elements),
            key: key.key_pem,
        });
        self.write_output(&value);
        self.workload.send_replace(Some(value));
        Ok(chain.not_after)
    }

    fn publish_roots(&self) {
        let merged = {
            let parts = self.root_parts.lock();
            let Some(ca) = &parts.ca else {
                return;
            };
            let extra = parts.extra.iter().map(String::as_str);
            merge_roots(std::iter::once(ca.as_str()).chain(extra))
        };
        let value = Arc::new(SecretValue::Roots(merged));
        let changed = self.roots.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&value);
            if changed {
                *current = Some(Arc::clone(&value));
            }
            changed
        });
        if changed {
            self.write_output(&value);
        }
    }

    fn write_output(&self, value: &SecretValue) {
        if let Some(output) = &self.config.output
            && let Err(error) = output.write(value)
        {
            tracing::error!(dir = %output.dir.display(), %error, "failed to output certificates");
        }
    }
}

/// Requests certificates for ever: renewal before expiry, back-off after failures.
async fn issue_loop(inner: Arc<Inner>, ca: Arc<CaClient>) {
    let mut failures = 0u32;
    loop {
        let random = rand::rng().random_range(-1.0..1.0);
        let rotation = inner.config.rotation;
        let wait = match inner.issue(&ca).await {
            Ok(not_after) => {
                failures = 0;
                inner.status.send_modify(|status| {
                    status.last_error = None;
                    status.not_after = Some(not_after);
                    status.issued += 1;
                });
                let lifetime = not_after
                    .duration_since(SystemTime::now())
                    .unwrap_or_default();
                let delay = rotation.delay(lifetime, random);
                tracing::info!(
                    lifetime_secs = lifetime.as_secs(),
                    renewal_secs = delay.as_secs(),
                    "generated new workload certificate"
                );
                delay
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                let wait = rotation.retry_wait(failures, random);
                tracing::warn!(%error, retry_ms = wait.as_millis(), "failed to get a certificate");
                inner.status.send_modify(|status| {
                    status.last_error = Some(error.to_string());
                    status.failures += 1;
                });
                wait
            }
        };
        tokio::select! {
            () = sleep_wall_clock(wait) => {}
            () = inner.renew.notified() => {}
        }
    }
}

/// Sleeps by the wall clock, which certificates follow, not by the monotonic one alone.
async fn sleep_wall_clock(wait: Duration) {
    let deadline = SystemTime::now() + wait;
    while let Ok(left) = deadline.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CLOCK_CHECK)).await;
    }
}

/// The directories in which mounted workload certificates are looked for, relative to the working
/// directory, in order.
#[must_use]
pub fn mounted_directories() -> [PathBuf; 2] {
    [
        "./var/run/secrets/workload-spiffe-credentials".into(),
        "./etc/certs".into(),
    ]
}
