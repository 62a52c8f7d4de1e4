//! What a CA's answer must satisfy before it may replace a working certificate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{ASN1Time, GeneralName, X509Certificate};

/// A chain that must not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The last element is the root, so one alone is no chain.
    #[error("invalid cert chain: {0} element(s), need the leaf and the root")]
    TooShort(usize),
    /// An element is no PEM certificate.
    #[error("element {0} of the cert chain is no PEM certificate")]
    NotPem(usize),
    /// An element does not parse as X.509.
    #[error("element {0} of the cert chain is no X.509 certificate")]
    NotX509(usize),
    /// The leaf carries another public key than the request.
    #[error("the leaf certificate does not match the private key")]
    KeyMismatch,
    /// The leaf is expired already, or was never valid.
    #[error("the leaf certificate expired at {0} (seconds since the epoch)")]
    Expired(i64),
}

/// A chain that passed the checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedChain {
    /// All elements, the root bundle last.
    pub elements: Vec<String>,
    /// `NotAfter` of the leaf.
    pub not_after: SystemTime,
    /// From `NotBefore` to `NotAfter`: right even if the own clock is wrong.
    pub validity: Duration,
    /// The leaf's first URI name.
    pub identity: Option<String>,
}

impl CheckedChain {
    /// The root bundle (may hold several PEM blocks).
    #[must_use]
    pub fn root(&self) -> &str {
        self.elements.last().map_or("", String::as_str)
    }
}

/// Checks a CA's answer against the bits of the requested public key and the clock.
///
/// # Errors
/// See [`ChainError`].
pub fn check_chain(
    elements: Vec<String>,
    public_key: &[u8],
    now: SystemTime,
) -> Result<CheckedChain, ChainError> {
    if elements.len() < 2 {
        return Err(ChainError::TooShort(elements.len()));
    }
    let mut leaf = None;
    for (index, element) in elements.iter().enumerate() {
        let certs: Vec<_> = CertificateDer::pem_slice_iter(element.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| ChainError::NotPem(index))?;
        if certs.is_empty() {
            return Err(ChainError::NotPem(index));
        }
        for der in certs {
            x509_parser::parse_x509_certificate(&der).map_err(|_| ChainError::NotX509(index))?;
            leaf.get_or_insert(der);
        }
    }
    let leaf = leaf.ok_or(ChainError::TooShort(0))?;
    let (_, leaf) =
        x509_parser::parse_x509_certificate(&leaf).map_err(|_| ChainError::NotX509(0))?;
    if leaf.public_key().subject_public_key.data.as_ref() != public_key {
        return Err(ChainError::KeyMismatch);
    }
    let (not_before, not_after) = (
        moment(leaf.validity().not_before),
        moment(leaf.validity().not_after),
    );
    if not_after <= now || not_after <= not_before {
        return Err(ChainError::Expired(leaf.validity().not_after.timestamp()));
    }
    Ok(CheckedChain {
        not_after,
        validity: not_after.duration_since(not_before).unwrap_or_default(),
        identity: uri_name(&leaf),
        elements,
    })
}

fn moment(time: ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}

fn uri_name(leaf: &X509Certificate<'_>) -> Option<String> {
    let names = leaf.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
}
