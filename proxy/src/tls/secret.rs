//! Secrets by source and name, swapped by pointer. The control thread writes and reads files; workers only
//! load pointers. A bad secret is refused and the one before stays.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use base64::Engine as _;
use bytes::Bytes;
use outrigger_config::tls::{
    DataSource, SdsConfig, SdsSource, Secret, SecretKind, TlsCertificate, ValidationContext,
};
use parking_lot::RwLock;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio::sync::watch;
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::verify::Roots;
use super::x509::CertificateFacts;

/// Why a secret is refused. The text is the NACK detail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// A file or environment variable cannot be read.
    #[error("Failed to read {origin}: {cause}")]
    Unreadable {
        /// Path or variable name.
        origin: Box<str>,
        /// The system's words.
        cause: Box<str>,
    },
    /// No certificate in the chain, or broken PEM.
    #[error("Failed to load certificate chain from {0}")]
    Chain(Box<str>),
    /// The key is missing, broken or of an unsupported kind.
    #[error("Failed to load private key from {0}")]
    Key(Box<str>),
    /// Key and leaf do not belong together.
    #[error("Failed to load certificate from {0}: private key does not match the certificate")]
    KeyMismatch(Box<str>),
    /// Broken or empty CA bundle.
    #[error("Failed to load trusted CA certificates from {0}")]
    TrustedCa(Box<str>),
    /// Broken CRL, or one with features that are not supported.
    #[error("Failed to load CRL from {0}: {1}")]
    Crl(Box<str>, Box<str>),
    /// A CRL without CAs can check nothing.
    #[error("Failed to load CRL from {0} without trusted CA")]
    CrlWithoutCa(Box<str>),
    /// A pin is no base64 or hex SHA-256.
    #[error("Invalid {field}: {value}")]
    Pin {
        /// `verify_certificate_spki` or `verify_certificate_hash`.
        field: &'static str,
        /// As configured.
        value: Box<str>,
    },
}

/// A certificate chain with its key, ready for handshakes.
#[derive(Debug)]
pub struct LoadedCertificate {
    /// Chain and key.
    pub key: Arc<CertifiedKey>,
    /// Facts of the leaf.
    pub leaf: CertificateFacts,
}

/// A validation context with its bundle parsed.
#[derive(Debug, Default)]
pub struct LoadedValidation {
    /// The configuration without the bundle bytes.
    pub context: ValidationContext,
    /// Trusted CAs; `None` when `trusted_ca` is unset.
    pub roots: Option<Arc<Roots>>,
    /// Revocation lists.
    pub crls: Vec<Arc<CertRevocationList<'static>>>,
    /// Facts of the CAs, for `/certs`.
    pub authorities: Vec<CertificateFacts>,
    /// Decoded `verify_certificate_spki`.
    pub spki_pins: Vec<[u8; 32]>,
    /// Decoded `verify_certificate_hash`.
    pub hash_pins: Vec<[u8; 32]>,
}

fn origin(source: &DataSource) -> Box<str> {
    match source {
        DataSource::Inline(_) => "<inline>".into(),
        DataSource::File(path) => (&**path).into(),
        DataSource::Env(name) => (&**name).into(),
    }
}

/// Reads a data source. Blocks on files: for the control thread.
///
/// # Errors
/// When the file or variable cannot be read.
pub fn read_data_source(source: &DataSource) -> Result<Bytes, SecretError> {
    let failed = |cause: String| SecretError::Unreadable {
        origin: origin(source),
        cause: cause.into(),
    };
    match source {
        DataSource::Inline(bytes) => Ok(bytes.clone()),
        DataSource::File(path) => std::fs::read(&**path)
            .map(Bytes::from)
            .map_err(|e| failed(e.to_string())),
        DataSource::Env(name) => std::env::var(&**name)
            .map(|v| Bytes::from(v.into_bytes()))
            .map_err(|e| failed(e.to_string())),
    }
}

fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    certificates.ok().filter(|c| !c.is_empty())
}

impl LoadedCertificate {
    /// Loads chain and key.
    ///
    /// # Errors
    /// When something does not parse or the two do not match.
    pub fn load(config: &TlsCertificate) -> Result<Self, SecretError> {
        let chain_origin = || origin(&config.certificate_chain);
        let chain = certificates(&read_data_source(&config.certificate_chain)?)
            .ok_or_else(|| SecretError::Chain(chain_origin()))?;
        let leaf = chain
            .first()
            .and_then(|c| CertificateFacts::parse(c))
            .ok_or_else(|| SecretError::Chain(chain_origin()))?;
        let key_origin = || origin(&config.private_key);
        let key = PrivateKeyDer::from_pem_slice(&read_data_source(&config.private_key)?)
            .map_err(|_| SecretError::Key(key_origin()))?;
        let provider = super::crypto::default_crypto();
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|_| SecretError::Key(key_origin()))?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => return Err(SecretError::KeyMismatch(chain_origin())),
        }
        Ok(Self {
            key: Arc::new(key),
            leaf,
        })
    }
}

impl LoadedValidation {
    /// Parses bundle, CRLs and pins.
    ///
    /// # Errors
    /// When something does not parse, or a bundle is given and empty.
    pub fn load(config: &ValidationContext) -> Result<Self, SecretError> {
        let mut loaded = Self {
            context: ValidationContext {
                trusted_ca: config.trusted_ca.as_ref().map(strip),
                crl: config.crl.as_ref().map(strip),
                ..config.clone()
            },
            spki_pins: pins(
                &config.verify_certificate_spki,
                "verify_certificate_spki",
                |v| base64::engine::general_purpose::STANDARD.decode(v).ok(),
            )?,
            hash_pins: pins(
                &config.verify_certificate_hash,
                "verify_certificate_hash",
                unhex,
            )?,
            ..Self::default()
        };
        if let Some(source) = &config.trusted_ca {
            let failed = || SecretError::TrustedCa(origin(source));
            let bundle = certificates(&read_data_source(source)?).ok_or_else(failed)?;
            loaded.roots = Some(Arc::new(Roots::build(&bundle).ok_or_else(failed)?));
            loaded.authorities = bundle
                .iter()
                .filter_map(|c| CertificateFacts::parse(c))
                .collect();
        }
        if let Some(source) = &config.crl {
            loaded.crls = crls(source)?;
        }
        Ok(loaded)
    }
}

/// Inline bytes are dropped once parsed; the origin stays.
fn strip(source: &DataSource) -> DataSource {
    match source {
        DataSource::Inline(_) => DataSource::Inline(Bytes::new()),
        other => other.clone(),
    }
}

fn crls(source: &DataSource) -> Result<Vec<Arc<CertRevocationList<'static>>>, SecretError> {
    let failed = |cause: String| SecretError::Crl(origin(source), cause.into());
    let pem = read_data_source(source)?;
    let mut lists = Vec::new();
    for der in CertificateRevocationListDer::pem_slice_iter(&pem) {
        let der = der.map_err(|e| failed(e.to_string()))?;
        let list = OwnedCertRevocationList::from_der(&der).map_err(|e| failed(e.to_string()))?;
        lists.push(Arc::new(CertRevocationList::from(list)));
    }
    if lists.is_empty() {
        return Err(failed("no CRL in it".into()));
    }
    Ok(lists)
}

fn pins(
    values: &[Arc<str>],
    field: &'static str,
    decode: impl Fn(&str) -> Option<Vec<u8>>,
) -> Result<Vec<[u8; 32]>, SecretError> {
    let decoded = values.iter().map(|v| {
        decode(v)
            .and_then(|b| <[u8; 32]>::try_from(b).ok())
            .ok_or_else(|| SecretError::Pin {
                field,
                value: (&**v).into(),
            })
    });
    decoded.collect()
}

/// Hex with or without colons.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |b: u8| (b as char).to_digit(16);
    let pair = |p: &[u8]| Some((digit(p[0])? * 16 + digit(p[1])?) as u8);
    digits.chunks_exact(2).map(pair).collect()
}

/// One secret that changes.
#[derive(Debug)]
pub struct SecretSlot<T> {
    value: ArcSwapOption<T>,
}

impl<T> Default for SecretSlot<T> {
    fn default() -> Self {
        Self {
            value: ArcSwapOption::empty(),
        }
    }
}

impl<T> SecretSlot<T> {
    /// The current value; `None` = has not arrived.
    #[must_use]
    pub fn load(&self) -> Option<Arc<T>> {
        self.value.load_full()
    }
}

#[derive(Debug, Default)]
struct Entry {
    certificate: Arc<SecretSlot<LoadedCertificate>>,
    validation: Arc<SecretSlot<LoadedValidation>>,
    /// What came last, kept for files that change. Inline keys of certificates are not kept.
    config: Option<SecretKind>,
    updated: Option<SystemTime>,
}

#[derive(Debug)]
struct Inner {
    entries: RwLock<HashMap<(SdsSource, Arc<str>), Entry>>,
    /// Grows with each change: contexts compare it before each handshake, one load.
    generation: AtomicU64,
    changed: watch::Sender<u64>,
    clients: super::context::ClientCores,
}

/// All secrets. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct SecretStore {
    inner: Arc<Inner>,
}

impl Default for SecretStore {
    fn default() -> Self {
        Self {
            inner: Arc::new(Inner {
                entries: RwLock::default(),
                generation: AtomicU64::new(1),
                changed: watch::channel(1).0,
                clients: super::context::ClientCores::default(),
            }),
        }
    }
}

/// What `/certs` and config_dump show of a secret. Never holds a key.
#[derive(Debug, Clone)]
pub struct SecretSummary {
    /// Name.
    pub name: Arc<str>,
    /// Source.
    pub source: SdsSource,
    /// Last accepted update; `None` = waiting for it.
    pub updated: Option<SystemTime>,
    /// Certificates of the chain, leaf first, DER.
    pub chain: Vec<Vec<u8>>,
    /// Facts of the leaf.
    pub leaf: Option<CertificateFacts>,
    /// Facts of the CAs of a validation context.
    pub authorities: Vec<CertificateFacts>,
}

impl SecretStore {
    /// Applies a secret.
    ///
    /// # Errors
    /// When it does not load; the one before stays. The text is for the NACK.
    pub fn update(&self, source: &SdsSource, secret: &Secret) -> Result<(), SecretError> {
        match &secret.kind {
            SecretKind::TlsCertificate(config) => {
                let loaded = Arc::new(LoadedCertificate::load(config)?);
                self.publish(source, secret, |e| e.certificate.value.store(Some(loaded)));
            }
            SecretKind::ValidationContext(config) => {
                let loaded = Arc::new(LoadedValidation::load(config)?);
                self.publish(source, secret, |e| e.validation.value.store(Some(loaded)));
            }
        }
        Ok(())
    }

    fn publish(&self, source: &SdsSource, secret: &Secret, store: impl FnOnce(&Entry)) {
        let mut entries = self.inner.entries.write();
        let entry = entries
            .entry((source.clone(), Arc::clone(&secret.name)))
            .or_default();
        store(entry);
        entry.config = has_files(&secret.kind).then(|| secret.kind.clone());
        entry.updated = Some(SystemTime::now());
        drop(entries);
        self.bump();
    }

    fn bump(&self) {
        let generation = self.inner.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.inner.changed.send_replace(generation);
    }

    /// Drops a secret that nothing names any more. Contexts that still drain keep what they have.
    pub fn forget(&self, source: &SdsSource, name: &str) {
        let key = (source.clone(), name.into());
        if self.inner.entries.write().remove(&key).is_some() {
            self.bump();
        }
    }

    /// Reads the files of file secrets again (control thread, when a watch fires). Returns what failed; those
    /// keep their old contents.
    pub fn reload_files(&self) -> Vec<(Arc<str>, SecretError)> {
        let held: Vec<_> = self
            .inner
            .entries
            .read()
            .iter()
            .filter_map(|((s, n), e)| Some((s.clone(), Arc::clone(n), e.config.clone()?)))
            .collect();
        let mut failed = Vec::new();
        for (source, name, kind) in held {
            let secret = Secret {
                name: Arc::clone(&name),
                kind,
            };
            if let Err(e) = self.update(&source, &secret) {
                failed.push((name, e));
            }
        }
        failed
    }

    /// Files that secrets were read from.
    #[must_use]
    pub fn files(&self) -> Vec<Arc<str>> {
        let entries = self.inner.entries.read();
        let mut files: Vec<Arc<str>> = Vec::new();
        for kind in entries.values().filter_map(|e| e.config.as_ref()) {
            for source in sources(kind) {
                if let DataSource::File(path) = source {
                    files.push(Arc::clone(path));
                }
            }
        }
        files.sort();
        files.dedup();
        files
    }

    /// The certificate slot of an SDS reference, created empty on first mention.
    #[must_use]
    pub fn certificate(&self, config: &SdsConfig) -> Arc<SecretSlot<LoadedCertificate>> {
        let key = (config.source.clone(), Arc::clone(&config.name));
        Arc::clone(
            &self
                .inner
                .entries
                .write()
                .entry(key)
                .or_default()
                .certificate,
        )
    }

    /// The validation slot of an SDS reference, created empty on first mention.
    #[must_use]
    pub fn validation(&self, config: &SdsConfig) -> Arc<SecretSlot<LoadedValidation>> {
        let key = (config.source.clone(), Arc::clone(&config.name));
        Arc::clone(
            &self
                .inner
                .entries
                .write()
                .entry(key)
                .or_default()
                .validation,
        )
    }

    /// Whether that secret has arrived.
    #[must_use]
    pub fn has(&self, source: &SdsSource, name: &Arc<str>) -> bool {
        let key = (source.clone(), Arc::clone(name));
        let entries = self.inner.entries.read();
        entries.get(&key).is_some_and(|e| e.updated.is_some())
    }

    /// What upstream contexts with equal settings share.
    pub(super) fn client_cores(&self) -> &super::context::ClientCores {
        &self.inner.clients
    }

    /// Number of the last change.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner.generation.load(Ordering::Acquire)
    }

    /// Wakes on each change (for warming).
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// What is there, sorted by name, without keys.
    #[must_use]
    pub fn list(&self) -> Vec<SecretSummary> {
        let entries = self.inner.entries.read();
        let mut list: Vec<_> = entries
            .iter()
            .map(|((source, name), e)| {
                let certificate = e.certificate.load();
                let validation = e.validation.load();
                SecretSummary {
                    name: Arc::clone(name),
                    source: source.clone(),
                    updated: e.updated,
                    chain: certificate.as_ref().map_or_else(Vec::new, |c| {
                        c.key.cert.iter().map(|d| d.to_vec()).collect()
                    }),
                    leaf: certificate.map(|c| c.leaf.clone()),
                    authorities: validation.map_or_else(Vec::new, |v| v.authorities.clone()),
                }
            })
            .collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }
}

fn sources(kind: &SecretKind) -> impl Iterator<Item = &DataSource> {
    let (a, b) = match kind {
        SecretKind::TlsCertificate(c) => (Some(&c.certificate_chain), Some(&c.private_key)),
        SecretKind::ValidationContext(v) => (v.trusted_ca.as_ref(), v.crl.as_ref()),
    };
    a.into_iter().chain(b)
}

fn has_files(kind: &SecretKind) -> bool {
    sources(kind).any(|s| matches!(s, DataSource::File(_)))
}
