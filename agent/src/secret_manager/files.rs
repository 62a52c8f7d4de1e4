//! Secrets in mounted files. Followed by content, not by events: any number of kubelet rotations
//! through any chain of symlinks is seen within one poll interval.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use parking_lot::Mutex;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::value::certificate_blocks;
use super::{SecretReceiver, SecretSender, SecretValue};
use crate::istiod::SYSTEM_ROOTS;

/// Files of the workload identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedFiles {
    /// PEM chain.
    pub chain: PathBuf,
    /// PEM key.
    pub key: PathBuf,
    /// PEM roots.
    pub root: PathBuf,
}

impl MountedFiles {
    /// `cert-chain.pem`, `key.pem` and `root-cert.pem` in `dir`.
    #[must_use]
    pub fn in_directory(dir: &Path) -> Self {
        Self {
            chain: dir.join("cert-chain.pem"),
            key: dir.join("key.pem"),
            root: dir.join("root-cert.pem"),
        }
    }

    /// `CA_PROVIDER=GkeWorkloadCertificate`: `certificates.pem`, `private_key.pem`,
    /// `ca_certificates.pem`.
    #[must_use]
    pub fn gke(dir: &Path) -> Self {
        Self {
            chain: dir.join("certificates.pem"),
            key: dir.join("private_key.pem"),
            root: dir.join("ca_certificates.pem"),
        }
    }

    /// True if all three exist and are not empty.
    #[must_use]
    pub fn present(&self) -> bool {
        [&self.chain, &self.key, &self.root]
            .into_iter()
            .all(|path| std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 0))
    }

    pub(super) fn certificate(&self) -> FileSecret {
        FileSecret::Certificate {
            chain: self.chain.clone(),
            key: self.key.clone(),
        }
    }

    pub(super) fn root(&self) -> FileSecret {
        FileSecret::Root(self.root.clone())
    }
}

/// Mounted files that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No certificate in it.
    #[error("{}: no usable certificate", .0.display())]
    NoCertificate(PathBuf),
    /// No private key in it that TLS can use.
    #[error("{}: no usable private key", .0.display())]
    NoKey(PathBuf),
    /// The two files do not belong together (perhaps half-way through a rotation).
    #[error("{} does not match {}", key.display(), chain.display())]
    Mismatch {
        /// Certificate file.
        chain: PathBuf,
        /// Key file.
        key: PathBuf,
    },
}

/// What a file-based secret is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FileSecret {
    Certificate { chain: PathBuf, key: PathBuf },
    Root(PathBuf),
    SystemRoot,
}

impl FileSecret {
    /// `file-cert:<cert>~<key>`, `file-root:<path>`, `file-root:system`.
    pub(super) fn parse(name: &str) -> Option<Self> {
        if let Some(pair) = name.strip_prefix("file-cert:") {
            let (chain, key) = pair.split_once('~')?;
            let valid = !chain.is_empty() && !key.is_empty() && !key.contains('~');
            return valid.then(|| Self::Certificate {
                chain: chain.into(),
                key: key.into(),
            });
        }
        match name.strip_prefix("file-root:")? {
            "" => None,
            "system" => Some(Self::SystemRoot),
            path => Some(Self::Root(path.into())),
        }
    }

    fn read(&self) -> Result<Content, FileError> {
        match self {
            Self::Certificate { chain, key } => {
                let chain = read(chain)?;
                Ok(Content {
                    first: chain,
                    second: read(key)?,
                })
            }
            Self::Root(path) => Ok(Content {
                first: read(path)?,
                second: Zeroizing::default(),
            }),
            Self::SystemRoot => {
                let path = SYSTEM_ROOTS
                    .iter()
                    .map(Path::new)
                    .find(|path| path.exists());
                let path = path.unwrap_or(Path::new(SYSTEM_ROOTS[0]));
                Ok(Content {
                    first: read(path)?,
                    second: Zeroizing::default(),
                })
            }
        }
    }

    fn check(&self, content: Content) -> Result<SecretValue, FileError> {
        match self {
            Self::Certificate { chain, key } => {
                check_pair(chain, key, &content)?;
                Ok(SecretValue::Certificate {
                    chain: Bytes::copy_from_slice(&content.first),
                    key: content.second,
                })
            }
            Self::Root(path) => check_roots(path, &content.first),
            Self::SystemRoot => check_roots(Path::new("system roots"), &content.first),
        }
    }
}

struct Content {
    first: Zeroizing<Vec<u8>>,
    second: Zeroizing<Vec<u8>>,
}

impl Content {
    fn hash(&self) -> Vec<u8> {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&(self.first.len() as u64).to_be_bytes());
        context.update(&self.first);
        context.update(&self.second);
        context.finish().as_ref().to_vec()
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    std::fs::read(path)
        .map(Zeroizing::new)
        .map_err(|source| FileError::Read {
            path: path.to_owned(),
            source,
        })
}

fn check_pair(chain: &Path, key: &Path, content: &Content) -> Result<(), FileError> {
    let certs: Vec<_> = CertificateDer::pem_slice_iter(&content.first)
        .collect::<Result<_, _>>()
        .map_err(|_| FileError::NoCertificate(chain.to_owned()))?;
    if certs.is_empty() {
        return Err(FileError::NoCertificate(chain.to_owned()));
    }
    let signing = PrivateKeyDer::from_pem_slice(&content.second)
        .ok()
        .and_then(|der| any_supported_type(&der).ok())
        .ok_or_else(|| FileError::NoKey(key.to_owned()))?;
    CertifiedKey::new(certs, signing)
        .keys_match()
        .map_err(|_| FileError::Mismatch {
            chain: chain.to_owned(),
            key: key.to_owned(),
        })
}

/// Keeps every block that parses; the others are skipped with an error in the log.
fn check_roots(path: &Path, pem: &[u8]) -> Result<SecretValue, FileError> {
    let text = String::from_utf8_lossy(pem);
    let mut kept = String::new();
    for block in certificate_blocks(&text) {
        let valid = CertificateDer::from_pem_slice(block.as_bytes())
            .is_ok_and(|der| x509_parser::parse_x509_certificate(&der).is_ok());
        if valid {
            kept.push_str(block);
            kept.push('\n');
        } else {
            tracing::error!(path = %path.display(), "skipped a root that does not parse");
        }
    }
    if kept.is_empty() {
        return Err(FileError::NoCertificate(path.to_owned()));
    }
    Ok(SecretValue::Roots(Bytes::from(kept)))
}

/// All files that are followed.
#[derive(Debug)]
pub(super) struct FileWatches {
    poll: Duration,
    retry: Duration,
    failures: Arc<AtomicU64>,
    named: Arc<Mutex<HashMap<String, SecretSender>>>,
}

impl FileWatches {
    pub(super) fn new(poll: Duration, retry: Duration) -> Self {
        Self {
            poll,
            retry,
            failures: Arc::default(),
            named: Arc::default(),
        }
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Follows `secret` as long as somebody is subscribed to `name`.
    pub(super) fn subscribe(&self, name: &str, secret: FileSecret) -> SecretReceiver {
        let mut named = self.named.lock();
        if let Some(sender) = named.get(name) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(None);
        named.insert(name.to_owned(), sender.clone());
        let follow = self.follow(secret, sender.clone());
        let (registry, name) = (Arc::clone(&self.named), name.to_owned());
        tokio::spawn(async move {
            tokio::pin!(follow);
            loop {
                tokio::select! {
                    () = &mut follow => {}
                    () = sender.closed() => {
                        let mut named = registry.lock();
                        // Under the lock nobody can subscribe in between.
                        if sender.receiver_count() == 0 {
                            named.remove(&name);
                            return;
                        }
                    }
                }
            }
        });
        receiver
    }

    /// Reads the files for ever and sends what is new and good.
    pub(super) fn follow(
        &self,
        secret: FileSecret,
        sender: SecretSender,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (poll, retry, failures) = (self.poll, self.retry, Arc::clone(&self.failures));
        async move {
            let mut served = Vec::new();
            let mut wait_after_error = retry;
            let mut reported = String::new();
            loop {
                let result = secret.read().and_then(|content| {
                    let hash = content.hash();
                    if hash == served {
                        return Ok(None);
                    }
                    secret.check(content).map(|value| Some((hash, value)))
                });
                let wait = match result {
                    Ok(update) => {
                        wait_after_error = retry;
                        reported.clear();
                        if let Some((hash, value)) = update {
                            served = hash;
                            sender.send_replace(Some(Arc::new(value)));
                        }
                        poll
                    }
                    Err(error) => {
                        let text = error.to_string();
                        if text != reported {
                            failures.fetch_add(1, Ordering::Relaxed);
                            tracing::warn!(error = text, "mounted secret is not usable yet");
                            reported = text;
                        }
                        let wait = wait_after_error;
                        wait_after_error = (wait_after_error * 2).min(poll);
                        wait
                    }
                };
                tokio::time::sleep(wait).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_names_parse_to_files() {
        for (name, expected) in [
            (
                "file-cert:/a/c.pem~/a/k.pem",
                Some(FileSecret::Certificate {
                    chain: "/a/c.pem".into(),
                    key: "/a/k.pem".into(),
                }),
            ),
            (
                "file-root:/a/r.pem",
                Some(FileSecret::Root("/a/r.pem".into())),
            ),
            ("file-root:system", Some(FileSecret::SystemRoot)),
            ("file-cert:/a/c.pem", None),
            ("file-cert:~", None),
            ("file-cert:a~b~c", None),
            ("file-root:", None),
            ("kubernetes://x", None),
        ] {
            assert_eq!(FileSecret::parse(name), expected, "{name}");
        }
    }
}
