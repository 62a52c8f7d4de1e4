//! Modules on disk: looked up by URL or checksum, fetched once, removed when nobody asks for them.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, Uri};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::client::{Client, FetchError};
use super::metrics::{Fetch, WasmMetrics};
use super::module::{Entry, hex, unpack};
use super::oci::Repository;
use super::reference::{Reference, credentials, is_sha256};
use super::{Shared, WasmConfig};

/// `ISTIO_META_WASM_IMAGE_PULL_POLICY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// [`Self::IfNotPresent`], but [`Self::Always`] for `oci://…:latest`.
    #[default]
    Unspecified,
    /// A module of this URL is used again.
    IfNotPresent,
    /// A module of this URL is used again while the resource has the same version.
    Always,
}

/// What is asked for. Not to be printed: it holds a secret.
#[derive(Clone, Default)]
pub struct ModuleRequest {
    /// `http://`, `https://` or `oci://`.
    pub url: String,
    /// SHA-256 that is wanted, hex; of the module, or of the image's manifest. Empty is any.
    pub checksum: String,
    /// Name of the extension config.
    pub resource_name: String,
    /// `ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION`.
    pub resource_version: String,
    /// Pull policy.
    pub policy: PullPolicy,
    /// Docker configuration with credentials, for `oci`.
    pub pull_secret: Option<Zeroizing<String>>,
    /// Of everything, retries included.
    pub timeout: Duration,
}

/// A module is known by its URL without version, and its checksum.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    name: String,
    checksum: String,
}

#[derive(Debug)]
struct Module {
    path: PathBuf,
    used: Instant,
}

/// What a URL meant when it was last fetched.
#[derive(Debug, Default)]
struct Known {
    checksum: String,
    /// Resource name to resource version.
    versions: HashMap<String, String>,
}

#[derive(Debug, Default)]
struct State {
    modules: HashMap<Key, Module>,
    urls: HashMap<String, Known>,
    /// One fetch per URL at a time.
    locks: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
}

/// The modules of this machine.
#[derive(Debug)]
pub struct WasmCache {
    config: Shared,
    client: Client,
    metrics: WasmMetrics,
    state: Mutex<State>,
    downloads: AtomicU64,
}

/// Where a URL leads.
enum Source {
    Http(Uri),
    Oci(Reference),
}

impl Source {
    fn parse(url: &str) -> Result<Self, FetchError> {
        if let Some(reference) = url.strip_prefix("oci://") {
            return Ok(Self::Oci(Reference::parse(reference)?));
        }
        let uri: Option<Uri> = url.parse().ok();
        uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")))
            .map(Self::Http)
            .ok_or_else(|| FetchError::Url(url.to_owned()))
    }

    /// The URL without its version.
    fn name(&self) -> String {
        match self {
            Self::Http(uri) => uri.to_string(),
            Self::Oci(reference) => reference.name(),
        }
    }

    /// The digest in the URL, hex.
    fn digest(&self) -> Option<&str> {
        match self {
            Self::Http(_) => None,
            Self::Oci(reference) => reference.digest.as_deref()?.strip_prefix("sha256:"),
        }
    }
}

/// A download, removed when it is dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may have been renamed already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl WasmCache {
    /// An empty cache; what an earlier run left in the folder is removed, since nothing is known
    /// of it.
    #[must_use]
    pub fn new(config: WasmConfig) -> Self {
        sweep(&config.directory);
        let config = Arc::new(config);
        Self {
            client: Client(Arc::clone(&config)),
            config,
            metrics: WasmMetrics::default(),
            state: Mutex::default(),
            downloads: AtomicU64::new(0),
        }
    }

    /// Counters.
    #[must_use]
    pub fn metrics(&self) -> &WasmMetrics {
        &self.metrics
    }

    /// Path of the module, which is fetched if it is not there.
    ///
    /// If a module without wanted checksum cannot be pulled again, the one of the last time is
    /// given out: a registry that is down takes no working filter away.
    ///
    /// # Errors
    /// If it cannot be fetched in time, or is not what is wanted.
    pub async fn get(&self, request: &ModuleRequest) -> Result<PathBuf, FetchError> {
        let fetch = self.get_unbounded(request);
        let result = tokio::time::timeout(request.timeout, fetch).await;
        let error = match result.unwrap_or(Err(FetchError::Timeout(request.timeout))) {
            Ok(path) => return Ok(path),
            Err(error) => error,
        };
        if !request.checksum.is_empty() {
            return Err(error);
        }
        let name = Source::parse(&request.url)?.name();
        let checksum = self
            .state
            .lock()
            .urls
            .get(&request.url)
            .map(|k| k.checksum.clone());
        let Some(path) = checksum.and_then(|checksum| self.lookup(Key { name, checksum })) else {
            return Err(error);
        };
        tracing::warn!(url = request.url, %error, "using the Wasm module of the last time");
        Ok(path)
    }

    async fn get_unbounded(&self, request: &ModuleRequest) -> Result<PathBuf, FetchError> {
        let source = Source::parse(&request.url)?;
        let wanted = if request.checksum.is_empty() {
            source.digest().unwrap_or_default().to_owned()
        } else {
            request.checksum.to_ascii_lowercase()
        };
        let lock = {
            let mut state = self.state.lock();
            Arc::clone(state.locks.entry(request.url.clone()).or_default())
        };
        let _fetching = lock.lock().await;
        let found = self.remembered(request, &source, &wanted);
        self.metrics.looked_up(found.is_some());
        if let Some(path) = found {
            return Ok(path);
        }
        let (result, outcome) = match self.fetch(request, &source, &wanted).await {
            Ok(path) => (Ok(path), Fetch::Success),
            Err((error, outcome)) => (Err(error), outcome),
        };
        self.metrics.fetched(outcome);
        result
    }

    /// A module that needs no fetch.
    fn remembered(
        &self,
        request: &ModuleRequest,
        source: &Source,
        wanted: &str,
    ) -> Option<PathBuf> {
        let checksum = if wanted.is_empty() {
            let latest = match source {
                Source::Oci(reference) => reference.tag == "latest",
                Source::Http(_) => false,
            };
            let any_version = match request.policy {
                PullPolicy::Unspecified => !latest,
                PullPolicy::IfNotPresent => true,
                PullPolicy::Always => false,
            };
            let state = self.state.lock();
            let known = state.urls.get(&request.url)?;
            let version = known.versions.get(&request.resource_name);
            if !any_version && version != Some(&request.resource_version) {
                return None;
            }
            known.checksum.clone()
        } else {
            wanted.to_owned()
        };
        let name = source.name();
        let path = self.lookup(Key {
            name,
            checksum: checksum.clone(),
        })?;
        self.remember(request, checksum);
        Some(path)
    }

    /// The file of a module, if it is still there.
    fn lookup(&self, key: Key) -> Option<PathBuf> {
        let mut state = self.state.lock();
        let module = state.modules.get_mut(&key)?;
        if !module.path.exists() {
            state.modules.remove(&key);
            return None;
        }
        module.used = Instant::now();
        Some(module.path.clone())
    }

    fn remember(&self, request: &ModuleRequest, checksum: String) {
        let mut state = self.state.lock();
        let known = state.urls.entry(request.url.clone()).or_default();
        known.checksum = checksum;
        let version = request.resource_version.clone();
        known
            .versions
            .insert(request.resource_name.clone(), version);
    }

    async fn fetch(
        &self,
        request: &ModuleRequest,
        source: &Source,
        wanted: &str,
    ) -> Result<PathBuf, (FetchError, Fetch)> {
        let folder = self.config.directory.join(folder_name(&source.name()));
        create_folder(&folder).map_err(|e| (e, Fetch::Invalid))?;
        let scratch = self.scratch(&folder);
        let module = self.scratch(&folder);
        let checksum = match source {
            Source::Http(uri) => {
                let (client, none, target) = (&self.client, &HeaderMap::new(), &scratch.0);
                client
                    .retried(move || Box::pin(client.download(uri, none, target)))
                    .await
                    .map_err(|e| (e, Fetch::Download))?;
                let sha = self.unpack(&scratch, &module, Entry::First).await?;
                matches(request, &sha, wanted)?;
                sha
            }
            Source::Oci(reference) => {
                let secret = request.pull_secret.as_deref();
                let user = secret
                    .map(|secret| credentials(secret, &reference.registry))
                    .transpose()
                    .map_err(|e| (e.into(), Fetch::Manifest))?;
                let mut repository = Repository::new(&self.client, reference, user.flatten());
                let image = repository.image().await.map_err(|e| (e, Fetch::Manifest))?;
                matches(request, &image.digest, wanted)?;
                let key = Key {
                    name: source.name(),
                    checksum: image.digest.clone(),
                };
                if let Some(path) = self.lookup(key) {
                    self.remember(request, image.digest);
                    return Ok(path);
                }
                let layer = repository.layer(&image.layer, &scratch.0).await;
                layer.map_err(|e| (e, Fetch::Invalid))?;
                self.unpack(&scratch, &module, image.entry).await?;
                image.digest
            }
        };
        let path = folder.join(format!("{checksum}.wasm"));
        std::fs::rename(&module.0, &path)
            .map_err(|source| (file_error(&path, source), Fetch::Invalid))?;
        self.remember(request, checksum.clone());
        let mut state = self.state.lock();
        let key = Key {
            name: source.name(),
            checksum,
        };
        let entry = Module {
            path: path.clone(),
            used: Instant::now(),
        };
        state.modules.insert(key, entry);
        let entries = state.modules.len() as u64;
        self.metrics.entries.store(entries, Ordering::Relaxed);
        Ok(path)
    }

    fn scratch(&self, folder: &Path) -> Scratch {
        let number = self.downloads.fetch_add(1, Ordering::Relaxed);
        Scratch(folder.join(format!(".download-{number}")))
    }

    async fn unpack(
        &self,
        body: &Scratch,
        module: &Scratch,
        entry: Entry,
    ) -> Result<String, (FetchError, Fetch)> {
        let (from, to, limit) = (body.0.clone(), module.0.clone(), self.config.max_bytes);
        let result = tokio::task::spawn_blocking(move || unpack(&from, &to, entry, limit)).await;
        let result = result.map_err(|_| (FetchError::Cancelled, Fetch::Invalid))?;
        result.map_err(|error| (error.into(), Fetch::Invalid))
    }

    /// Removes what nobody asked for during the expiry.
    pub fn purge(&self) {
        let mut state = self.state.lock();
        let expiry = self.config.module_expiry;
        let state = &mut *state;
        state.modules.retain(|_, module| {
            let keep = module.used.elapsed() < expiry;
            if !keep {
                // Either may be gone or in use; the next start sweeps.
                let _ = std::fs::remove_file(&module.path);
                let _ = module.path.parent().map(std::fs::remove_dir);
            }
            keep
        });
        let modules = &state.modules;
        let alive = |known: &Known| modules.keys().any(|key| key.checksum == known.checksum);
        state.urls.retain(|_, known| alive(known));
        state.locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        let entries = state.modules.len() as u64;
        self.metrics.entries.store(entries, Ordering::Relaxed);
    }

    /// Purges for ever.
    pub async fn purge_for_ever(&self) {
        loop {
            tokio::time::sleep(self.config.purge_interval).await;
            self.purge();
        }
    }
}

fn matches(request: &ModuleRequest, actual: &str, wanted: &str) -> Result<(), (FetchError, Fetch)> {
    if wanted.is_empty() || wanted == actual {
        return Ok(());
    }
    let error = FetchError::Checksum {
        url: request.url.clone(),
        actual: actual.to_owned(),
        wanted: wanted.to_owned(),
    };
    Err((error, Fetch::Checksum))
}

fn folder_name(name: &str) -> String {
    hex(digest(&SHA256, name.as_bytes()).as_ref())
}

fn file_error(path: &Path, source: io::Error) -> FetchError {
    FetchError::File {
        path: path.display().to_string(),
        source,
    }
}

fn create_folder(path: &Path) -> Result<(), FetchError> {
    use std::os::unix::fs::DirBuilderExt;
    let created = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path);
    created.map_err(|source| file_error(path, source))
}

/// Removes the module folders of an earlier run; other files of the folder are not ours.
fn sweep(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(is_sha256) {
            // What cannot be removed costs space only.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
