//! Secrets in mounted files: which files, what must be in them, reading them with bounds.

use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use bytes::Bytes;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::SecretValue;
use super::value::{leaf_not_after, usable_roots};
use crate::istiod::SYSTEM_ROOTS;

/// Longest file read, bytes. A system bundle takes a quarter of a megabyte.
const MAX_FILE: u64 = 4 << 20;

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
        self.certificate_present() && self.root_present()
    }

    /// True if chain and key exist and are not empty.
    #[must_use]
    pub fn certificate_present(&self) -> bool {
        not_empty(&self.chain) && not_empty(&self.key)
    }

    /// True if the root file exists and is not empty.
    #[must_use]
    pub fn root_present(&self) -> bool {
        not_empty(&self.root)
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

fn not_empty(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 0)
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

    /// The files to watch.
    pub(super) fn paths(&self) -> Vec<&Path> {
        match self {
            Self::Certificate { chain, key } => vec![chain, key],
            Self::Root(path) => vec![path],
            Self::SystemRoot => vec![system_root()],
        }
    }

    pub(super) fn read(&self) -> Result<Content, FileError> {
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
            Self::SystemRoot => Ok(Content {
                first: read(system_root())?,
                second: Zeroizing::default(),
            }),
        }
    }

    pub(super) fn check(&self, content: Content) -> Result<SecretValue, FileError> {
        match self {
            Self::Certificate { chain, key } => {
                check_pair(chain, key, &content)?;
                Ok(SecretValue::Certificate {
                    not_after: leaf_not_after(&content.first),
                    chain: Bytes::copy_from_slice(&content.first),
                    key: content.second,
                })
            }
            Self::Root(path) => check_roots(path, &content.first),
            Self::SystemRoot => check_roots(system_root(), &content.first),
        }
    }
}

/// The OS bundle in use; the usual one if there is none yet.
fn system_root() -> &'static Path {
    let mut paths = SYSTEM_ROOTS.iter().map(Path::new);
    let found = paths.find(|path| path.exists());
    found.unwrap_or(Path::new(SYSTEM_ROOTS[0]))
}

pub(super) struct Content {
    first: Zeroizing<Vec<u8>>,
    second: Zeroizing<Vec<u8>>,
}

impl Content {
    pub(super) fn hash(&self) -> Vec<u8> {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&(self.first.len() as u64).to_be_bytes());
        context.update(&self.first);
        context.update(&self.second);
        context.finish().as_ref().to_vec()
    }
}

/// A regular file of bounded length. Names come from clients: a device would never end, a pipe
/// never begin.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let attempt = || {
        let mut options = std::fs::OpenOptions::new();
        let flags = libc::O_NONBLOCK;
        let file = options.read(true).custom_flags(flags).open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        // All at once: a growing buffer would leave copies of a key behind.
        let size = usize::try_from(meta.len().min(MAX_FILE) + 1).unwrap_or(0);
        let mut content = Zeroizing::new(Vec::with_capacity(size));
        file.take(MAX_FILE + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_FILE {
            return Err(io::Error::other("longer than 4 MiB"));
        }
        Ok(content)
    };
    attempt().map_err(|source| FileError::Read {
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
    for block in usable_roots(&text, &path.display()) {
        kept.push_str(block);
        kept.push('\n');
    }
    if kept.is_empty() {
        return Err(FileError::NoCertificate(path.to_owned()));
    }
    Ok(SecretValue::Roots(Bytes::from(kept)))
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

    #[test]
    fn only_regular_files_of_bounded_length_are_read() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("pipe");
        let long = dir.path().join("long");
        let file = std::fs::File::create(&long).expect("file");
        file.set_len(MAX_FILE + 1).expect("length");
        for (path, expected) in [
            (Path::new("/dev/zero"), "not a regular file"),
            (&pipe, "not a regular file"),
            (dir.path(), "not a regular file"),
            (&long, "longer than 4 MiB"),
            (&dir.path().join("none"), "No such file"),
        ] {
            let error = read(path).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
        file.set_len(MAX_FILE).expect("length");
        assert_eq!(read(&long).map(|c| c.len() as u64).ok(), Some(MAX_FILE));
    }

    #[test]
    fn roots_that_do_not_parse_are_left_out() {
        let authority = rcgen_root();
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let mixed = format!("{bad}{authority}{bad}");
        let path = Path::new("roots.pem");
        let roots = check_roots(path, mixed.as_bytes()).expect("one is good");
        assert_eq!(roots, SecretValue::Roots(Bytes::from(authority)));
        assert!(matches!(
            check_roots(path, bad.as_bytes()),
            Err(FileError::NoCertificate(_))
        ));
    }

    fn rcgen_root() -> String {
        let key = rcgen::KeyPair::generate().expect("key");
        let params = rcgen::CertificateParams::new(vec!["root".to_owned()]).expect("parameters");
        let pem = params.self_signed(&key).expect("certificate").pem();
        format!("{}\n", pem.replace("\r\n", "\n").trim_end())
    }
}
