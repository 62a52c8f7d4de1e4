//! Secret values as they are served. Keys are wiped when the last holder drops them.

use std::fmt::Display;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

/// One secret.
#[derive(PartialEq, Eq)]
pub enum SecretValue {
    /// Certificate chain and key.
    Certificate {
        /// PEM chain, leaf first.
        chain: Bytes,
        /// PEM key.
        key: Zeroizing<Vec<u8>>,
        /// `NotAfter` of the leaf, if it can be read.
        not_after: Option<SystemTime>,
    },
    /// Trusted roots, PEM.
    Roots(Bytes),
}

impl std::fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Certificate { chain, .. } => f
                .debug_struct("Certificate")
                .field("chain_bytes", &chain.len())
                .field("key", &"[redacted]")
                .finish(),
            Self::Roots(pem) => f.debug_struct("Roots").field("bytes", &pem.len()).finish(),
        }
    }
}

/// Splits PEM text into its certificate blocks (trimmed, in order).
pub(super) fn certificate_blocks(pem: &str) -> impl Iterator<Item = &str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    pem.split(BEGIN)
        .skip(1)
        .filter_map(|rest| rest.find(END).map(|at| &rest[..at + END.len()]))
        .map(|tail| {
            // The split removed BEGIN, which directly precedes `tail` in `pem`.
            let start = tail.as_ptr() as usize - pem.as_ptr() as usize - BEGIN.len();
            &pem[start..start + BEGIN.len() + tail.len()]
        })
}

/// The blocks that parse as X.509; one that does not would have the whole bundle refused, so it is
/// left out with an error in the log.
pub(super) fn usable_roots<'a>(
    pem: &'a str,
    origin: &dyn Display,
) -> impl Iterator<Item = &'a str> {
    let origin = origin.to_string();
    certificate_blocks(pem).filter(move |block| {
        let valid = CertificateDer::from_pem_slice(block.as_bytes())
            .is_ok_and(|der| x509_parser::parse_x509_certificate(&der).is_ok());
        if !valid {
            tracing::error!(origin, "skipped a root that does not parse");
        }
        valid
    })
}

/// `NotAfter` of the first certificate.
pub(super) fn leaf_not_after(pem: &[u8]) -> Option<SystemTime> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, leaf) = x509_parser::parse_x509_certificate(&der).ok()?;
    let seconds = u64::try_from(leaf.validity().not_after.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// `ROOTCA`: all blocks of all bundles, sorted as strings, each once, joined by newlines.
pub(super) fn merge_roots<'a>(bundles: impl IntoIterator<Item = &'a str>) -> Bytes {
    let mut blocks: Vec<&str> = bundles.into_iter().flat_map(certificate_blocks).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let mut out = blocks.join("\n");
    out.push('\n');
    Bytes::from(out)
}

/// `default`: every element on its own line, the root element included.
pub(super) fn concatenate_chain(elements: &[String]) -> Bytes {
    let mut out = String::new();
    for element in elements {
        out.push_str(element.trim());
        out.push('\n');
    }
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(body: &str) -> String {
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----")
    }

    #[test]
    fn roots_are_split_sorted_and_deduplicated() {
        let (a, b, c) = (block("AA"), block("BB"), block("CC"));
        let first = format!("# comment\n{c}\n{a}\n");
        let second = format!("{b}{a}junk");
        let merged = merge_roots([first.as_str(), second.as_str()]);
        assert_eq!(merged, format!("{a}\n{b}\n{c}\n"));
    }

    #[test]
    fn debug_never_prints_the_key() {
        let value = SecretValue::Certificate {
            chain: Bytes::from_static(b"chain"),
            key: Zeroizing::new(b"very secret".to_vec()),
            not_after: None,
        };
        let text = format!("{value:?}");
        assert!(!text.contains("very") && !text.contains("118"), "{text}");
    }
}
