//! Workload certificate and trusted roots: made, renewed, watched, handed to subscribers.
//! A working secret is never replaced by a bad one and never taken away; keys stay in memory.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::ca_client::CaClient;

mod clock;
mod der;
mod events;
mod files;
mod follow;
mod issue;
mod key;
mod output;
mod rotation;
mod value;

pub use clock::{Clock, Sleep, SystemClock};
pub use files::{FileError, MountedFiles};
pub use key::{KeyAlgorithm, KeyAndCsr, KeyConfig, KeyError, generate};
pub use output::OutputCerts;
pub use rotation::RotationConfig;
pub use value::SecretValue;

use files::FileSecret;
use follow::FileWatches;
use issue::{Issued, Parts, issue_loop};
use value::{merge_roots, usable_roots};

/// Name of the workload certificate.
pub const WORKLOAD_CERTIFICATE: &str = "default";
/// Name of the trusted roots.
pub const ROOT_CA: &str = "ROOTCA";

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
    /// Mounted files for what they have at the start, the CA for the rest.
    FilesAndCa(MountedFiles, Arc<CaClient>),
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
    /// How often watched files are looked at although nothing happened to them; default 10 s.
    pub file_poll: Duration,
    /// `FILE_DEBOUNCE_DURATION`: first retry when mounted files do not parse; default 100 ms.
    pub file_retry: Duration,
    /// `OUTPUT_CERTS`.
    pub output: Option<OutputCerts>,
    /// Trust anchors beside the CA's, always (ProxyConfig `caCertificatesPem`).
    pub anchors: Vec<String>,
    /// Time for validity and renewal.
    pub clock: Arc<dyn Clock>,
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
            file_poll: Duration::from_secs(10),
            file_retry: Duration::from_millis(100),
            output: None,
            anchors: Vec::new(),
            clock: Arc::new(SystemClock),
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

#[derive(Debug, Default)]
struct Roots {
    /// Root bundle of the last certificate.
    ca: Option<String>,
    /// Anchors from the mesh configuration (PCDS), as received.
    received: Vec<String>,
    /// The usable ones of them.
    extra: Vec<String>,
}

#[derive(Debug)]
struct Inner {
    config: SecretManagerConfig,
    workload: SecretSender,
    roots: SecretSender,
    root_parts: Mutex<Roots>,
    issued: Mutex<Option<Issued>>,
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
    pub fn spawn(mut config: SecretManagerConfig) -> Self {
        config.anchors = usable_anchors(&config.anchors);
        let files = FileWatches::new(config.file_poll, config.file_retry);
        let inner = Arc::new(Inner {
            workload: watch::channel(None).0,
            roots: watch::channel(None).0,
            root_parts: Mutex::default(),
            issued: Mutex::default(),
            status: watch::channel(SecretStatus::default()).0,
            renew: Notify::new(),
            files,
            config,
        });
        let mut tasks = Vec::new();
        let follow = |secret: FileSecret| {
            // The task must not keep the manager alive.
            let weak = Arc::downgrade(&inner);
            tokio::spawn(inner.files.follow(secret, move |value| {
                if let Some(inner) = weak.upgrade() {
                    inner.publish(value);
                }
            }))
        };
        let issue = |ca: &Arc<CaClient>, parts| {
            tokio::spawn(issue_loop(Arc::clone(&inner), Arc::clone(ca), parts))
        };
        match &inner.config.source {
            WorkloadSource::Ca(ca) => tasks.push(issue(ca, Parts::ALL)),
            WorkloadSource::Files(mounted) => {
                tasks.push(follow(mounted.certificate()));
                tasks.push(follow(mounted.root()));
            }
            WorkloadSource::FilesAndCa(mounted, ca) => {
                let wanted = Parts {
                    certificate: !mounted.certificate_present(),
                    roots: !mounted.root_present(),
                };
                if !wanted.certificate {
                    tasks.push(follow(mounted.certificate()));
                }
                if !wanted.roots {
                    tasks.push(follow(mounted.root()));
                }
                if wanted.certificate || wanted.roots {
                    tasks.push(issue(ca, wanted));
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
    /// `file-root:system`. Any other name is the workload certificate under that name, as in
    /// Istio: users' filters ask for SPIFFE ids and for names of their own.
    ///
    /// # Errors
    /// For a `file-` name of another form, and for all but these when somebody else serves
    /// identities.
    pub fn subscribe(&self, name: &str) -> Result<SecretReceiver, UnknownSecret> {
        if let Some(secret) = FileSecret::parse(name) {
            return Ok(self.inner.files.subscribe(name, secret));
        }
        let identities = !matches!(self.inner.config.source, WorkloadSource::FileNamesOnly);
        match name {
            ROOT_CA if identities => Ok(self.inner.roots.subscribe()),
            _ if identities && !name.starts_with("file-") => Ok(self.inner.workload.subscribe()),
            _ => Err(UnknownSecret(name.to_owned())),
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

    /// `num_file_watcher_failures_total`.
    #[must_use]
    pub fn watcher_failures(&self) -> u64 {
        self.inner.files.watcher_failures()
    }

    /// Further trust anchors from the mesh configuration (PCDS). A change pushes `ROOTCA` and
    /// requests a new certificate; the same list does nothing. A list without any usable anchor
    /// does not replace one.
    pub fn set_extra_roots(&self, anchors: Vec<String>) {
        {
            let mut parts = self.inner.root_parts.lock();
            if parts.received == anchors {
                return;
            }
            let usable = usable_anchors(&anchors);
            if usable.is_empty() && !anchors.is_empty() {
                tracing::error!("no usable trust anchor in caCertificatesPem, kept the old ones");
                return;
            }
            parts.received = anchors;
            parts.extra = usable;
        }
        self.inner.publish_roots();
        self.inner.renew.notify_one();
    }
}

impl Inner {
    fn publish_roots(&self) {
        let merged = {
            let parts = self.root_parts.lock();
            let Some(ca) = &parts.ca else {
                return;
            };
            let further = self.config.anchors.iter().chain(&parts.extra);
            merge_roots(std::iter::once(ca).chain(further).map(String::as_str))
        };
        self.publish(Arc::new(SecretValue::Roots(merged)));
    }

    /// Hands `value` to subscribers and files, unless it is the one they have.
    fn publish(&self, value: Arc<SecretValue>) {
        let sender = match &*value {
            SecretValue::Certificate { not_after, .. } => {
                let not_after = *not_after;
                self.status
                    .send_modify(|status| status.not_after = not_after);
                &self.workload
            }
            SecretValue::Roots(_) => &self.roots,
        };
        let mut changed = false;
        let mut first = false;
        sender.send_if_modified(|current| {
            first = current.is_none();
            changed = current.as_ref() != Some(&value);
            if changed {
                *current = Some(Arc::clone(&value));
            }
            changed
        });
        if !changed {
            return;
        }
        if !first && matches!(*value, SecretValue::Roots(_)) {
            tracing::info!("trusted roots changed");
        }
        if let Some(output) = &self.config.output
            && let Err(error) = output.write(&value)
        {
            tracing::error!(dir = %output.dir.display(), %error, "failed to output certificates");
        }
    }
}

fn usable_anchors(anchors: &[String]) -> Vec<String> {
    let blocks = anchors
        .iter()
        .flat_map(|pem| usable_roots(pem, &"caCertificatesPem"));
    blocks.map(str::to_owned).collect()
}
