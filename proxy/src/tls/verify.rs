//! Peer verification as Envoy's default validator does it: chain to the trusted CAs, CRLs, SAN matchers and
//! pins. Fails closed: without a trusted CA nothing passes unless a pin does, and never by accident.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::matcher::{StringMatcher, StringPattern};
use outrigger_config::tls::{SanMatcher, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder,
};

use super::failure::{FailureKind, VerifyFailure};
use super::x509::{CertificateFacts, San, sha256};

/// Trusted CAs. Intermediates in the bundle are anchors too, as with OpenSSL's partial chains.
#[derive(Debug)]
pub struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    validity: Vec<(i64, i64)>,
    fingerprints: Vec<[u8; 32]>,
    subjects: Vec<DistinguishedName>,
}

impl Roots {
    /// Reads CA certificates; `None` when one of them is no certificate or there is none.
    #[must_use]
    pub fn build(certificates: &[CertificateDer<'_>]) -> Option<Self> {
        let mut roots = Self {
            anchors: Vec::with_capacity(certificates.len()),
            validity: Vec::new(),
            fingerprints: Vec::new(),
            subjects: Vec::new(),
        };
        for der in certificates {
            let facts = CertificateFacts::parse(der)?;
            let anchor = webpki::anchor_from_trusted_cert(der).ok()?.to_owned();
            roots
                .subjects
                .push(DistinguishedName::in_sequence(&anchor.subject));
            roots.anchors.push(anchor);
            roots.validity.push((facts.not_before, facts.not_after));
            roots.fingerprints.push(sha256(der));
        }
        (!roots.anchors.is_empty()).then_some(roots)
    }

    /// When the first of them expires, seconds since the epoch.
    #[must_use]
    pub fn not_after(&self) -> Option<i64> {
        self.validity.iter().map(|v| v.1).min()
    }
}

/// What a peer certificate must satisfy: a default context merged with the one from SDS.
#[derive(Debug, Default)]
pub struct Requirements {
    /// Trusted CAs.
    pub roots: Option<Arc<Roots>>,
    /// Revocation lists.
    pub crls: Vec<Arc<CertRevocationList<'static>>>,
    /// Any of them must match; empty = no demand.
    pub sans: Vec<SanMatcher>,
    /// SHA-256 of the SPKI; any pin of the two lists must match, both empty = no demand.
    pub spki_pins: Vec<[u8; 32]>,
    /// SHA-256 of the certificate.
    pub hash_pins: Vec<[u8; 32]>,
    /// Check the leaf alone against the CRLs.
    pub only_leaf_crl: bool,
    /// Do not look at validity periods.
    pub allow_expired: bool,
    /// Serve whoever fails, unvalidated.
    pub accept_untrusted: bool,
    /// Nothing was asked for at all (an empty inline context): everyone passes, unvalidated.
    pub none_asked: bool,
}

/// Verdict about a peer that may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The certificate passed.
    Validated,
    /// It did not, or nothing was asked, and the configuration accepts that.
    NotValidated,
}

thread_local! {
    /// Handshakes run within one poll: the verifier leaves its words here and finds its extra demand here.
    static PENDING: RefCell<Pending> = const { RefCell::new(Pending { failure: None, dns_name: None }) };
}

#[derive(Debug)]
struct Pending {
    failure: Option<VerifyFailure>,
    dns_name: Option<Arc<str>>,
}

/// Runs `poll` (one poll of a handshake) with an extra DNS name demanded of the peer.
pub fn with_handshake<T>(dns_name: Option<&Arc<str>>, poll: impl FnOnce() -> T) -> T {
    PENDING.with_borrow_mut(|p| {
        p.failure = None;
        p.dns_name = dns_name.cloned();
    });
    let result = poll();
    PENDING.with_borrow_mut(|p| p.dns_name = None);
    result
}

/// What the verifier said in the poll that just ended, if it refused.
#[must_use]
pub fn take_failure() -> Option<VerifyFailure> {
    PENDING.with_borrow_mut(|p| p.failure.take())
}

/// A chain failure: OpenSSL's words, depth, and rustls's variant (which decides the alert).
struct ChainFailure {
    depth: usize,
    text: &'static str,
    error: CertificateError,
}

impl Requirements {
    /// Checks a peer certificate.
    ///
    /// # Errors
    /// The failure with its log text, and the rustls error that decides the alert.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
        dns_name: Option<&str>,
    ) -> Result<Verdict, (VerifyFailure, CertificateError)> {
        match self.check(leaf, intermediates, now, usage, dns_name) {
            Ok(()) if self.none_asked && dns_name.is_none() => Ok(Verdict::NotValidated),
            Ok(()) => Ok(Verdict::Validated),
            Err(_) if self.accept_untrusted => Ok(Verdict::NotValidated),
            Err(e) => Err(e),
        }
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
        dns_name: Option<&str>,
    ) -> Result<(), (VerifyFailure, CertificateError)> {
        let Some(facts) = CertificateFacts::parse(leaf) else {
            return Err(chain_error(ChainFailure {
                depth: 0,
                text: "certificate rejected",
                error: CertificateError::BadEncoding,
            }));
        };
        if let Some(roots) = &self.roots {
            self.check_chain(roots, leaf, &facts, intermediates, now, usage)
                .map_err(chain_error)?;
        }
        self.check_names(&facts, dns_name)?;
        let pinned = self.check_pins(leaf, &facts)?;
        if self.roots.is_none() && !pinned && !(self.none_asked && dns_name.is_none()) {
            return Err(chain_error(ChainFailure {
                depth: 0,
                text: "unable to get local issuer certificate",
                error: CertificateError::UnknownIssuer,
            }));
        }
        Ok(())
    }

    /// SAN matchers and the handshake's own DNS name (auto_san_validation).
    ///
    /// # Errors
    /// When none matches.
    pub fn check_names(
        &self,
        facts: &CertificateFacts,
        dns_name: Option<&str>,
    ) -> Result<(), (VerifyFailure, CertificateError)> {
        let matched = self.sans.is_empty()
            || self
                .sans
                .iter()
                .any(|m| facts.sans.iter().any(|san| san_matches(m, san)));
        let named = dns_name.is_none_or(|name| {
            facts
                .sans_of(SanType::Dns)
                .any(|san| dns_name_match(name, san))
        });
        if matched && named {
            return Ok(());
        }
        let sans: Vec<_> = facts.sans.iter().map(|s| s.value.as_str()).collect();
        let text = format!(
            "verify cert failed: SAN matcher, certificate SANs are [{}]",
            sans.join(", ")
        );
        // Envoy answers certificate_unknown here; `Other` maps to that alert.
        let error = CertificateError::Other(rustls::OtherError(Arc::new(SanMismatch)));
        Err((
            VerifyFailure {
                kind: FailureKind::San,
                text,
            },
            error,
        ))
    }

    fn check_pins(
        &self,
        leaf: &CertificateDer<'_>,
        facts: &CertificateFacts,
    ) -> Result<bool, (VerifyFailure, CertificateError)> {
        if self.spki_pins.is_empty() && self.hash_pins.is_empty() {
            return Ok(false);
        }
        if self.spki_pins.contains(&facts.spki_sha256) || self.hash_pins.contains(&sha256(leaf)) {
            return Ok(true);
        }
        let text = "verify cert failed: cert hash and spki".into();
        let error = CertificateError::Other(rustls::OtherError(Arc::new(SanMismatch)));
        Err((
            VerifyFailure {
                kind: FailureKind::Pin,
                text,
            },
            error,
        ))
    }

    fn check_chain(
        &self,
        roots: &Roots,
        leaf: &CertificateDer<'_>,
        facts: &CertificateFacts,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), ChainFailure> {
        let seconds = now.as_secs() as i64;
        let current = |v: &(i64, i64)| v.0 <= seconds && seconds <= v.1;
        let chain = ChainCheck {
            requirements: self,
            leaf,
            intermediates,
            now,
            usage,
        };
        let result = if self.allow_expired || roots.validity.iter().all(current) {
            chain.verify(&roots.anchors)
        } else {
            let keep = roots
                .anchors
                .iter()
                .zip(&roots.validity)
                .filter(|(_, v)| current(v));
            let usable: Vec<_> = keep.map(|(a, _)| a.clone()).collect();
            match chain.verify(&usable) {
                Err(webpki::Error::UnknownIssuer) if chain.verify(&roots.anchors).is_ok() => {
                    return Err(ChainFailure {
                        depth: intermediates.len() + 1,
                        text: "certificate has expired",
                        error: CertificateError::Expired,
                    });
                }
                other => other,
            }
        };
        let Err(error) = result else { return Ok(()) };
        // A leaf that is itself in the bundle is trusted as it stands (partial chain). webpki wants an
        // issuer, so that case is decided here, by identity.
        let listed = matches!(
            error,
            webpki::Error::UnknownIssuer | webpki::Error::CaUsedAsEndEntity
        ) && roots.fingerprints.contains(&sha256(leaf));
        let in_time = (facts.not_before..=facts.not_after).contains(&seconds);
        if listed && self.crls.is_empty() && (in_time || self.allow_expired) {
            return Ok(());
        }
        Err(explain(error, facts, intermediates, seconds))
    }
}

struct ChainCheck<'a> {
    requirements: &'a Requirements,
    leaf: &'a CertificateDer<'a>,
    intermediates: &'a [CertificateDer<'a>],
    now: UnixTime,
    usage: KeyUsage,
}

impl ChainCheck<'_> {
    fn verify(&self, anchors: &[TrustAnchor<'_>]) -> Result<(), webpki::Error> {
        let result = self.verify_at(anchors, self.now);
        if !self.requirements.allow_expired {
            return result;
        }
        match result {
            // The period of the peer's certificates does not count: look again at a moment inside it.
            Err(webpki::Error::CertExpired { not_after, .. }) => self.verify_at(anchors, not_after),
            Err(webpki::Error::CertNotValidYet { not_before, .. }) => {
                self.verify_at(anchors, not_before)
            }
            other => other,
        }
    }

    fn verify_at(&self, anchors: &[TrustAnchor<'_>], time: UnixTime) -> Result<(), webpki::Error> {
        let crls: Vec<&CertRevocationList<'_>> =
            self.requirements.crls.iter().map(|c| &**c).collect();
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|builder| {
            let depth = if self.requirements.only_leaf_crl {
                RevocationCheckDepth::EndEntity
            } else {
                RevocationCheckDepth::Chain
            };
            // Unknown status is denied by default: an issuer without a CRL fails, as with OpenSSL.
            builder
                .with_depth(depth)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        EndEntityCert::try_from(self.leaf)?
            .verify_for_usage(
                algorithms().all,
                anchors,
                self.intermediates,
                time,
                self.usage,
                revocation,
                None,
            )
            .map(|_| ())
    }
}

/// OpenSSL's words for a failure of webpki.
fn explain(
    error: webpki::Error,
    leaf: &CertificateFacts,
    intermediates: &[CertificateDer<'_>],
    now: i64,
) -> ChainFailure {
    let outside = |test: fn(&CertificateFacts, i64) -> bool| {
        if test(leaf, now) {
            return 0;
        }
        let parsed = intermediates.iter().map(|c| CertificateFacts::parse(c));
        parsed
            .enumerate()
            .find(|(_, c)| c.as_ref().is_some_and(|c| test(c, now)))
            .map_or(0, |(i, _)| i + 1)
    };
    let (depth, text, error) = match error {
        webpki::Error::CertExpired { .. } => (
            outside(|c, now| now > c.not_after),
            "certificate has expired",
            CertificateError::Expired,
        ),
        webpki::Error::CertNotValidYet { .. } => (
            outside(|c, now| now < c.not_before),
            "certificate is not yet valid",
            CertificateError::NotValidYet,
        ),
        webpki::Error::CertRevoked => (0, "certificate revoked", CertificateError::Revoked),
        webpki::Error::UnknownRevocationStatus => (
            0,
            "unable to get certificate CRL",
            CertificateError::UnknownRevocationStatus,
        ),
        webpki::Error::CrlExpired { .. } => (
            0,
            "CRL has expired",
            CertificateError::ExpiredRevocationList,
        ),
        webpki::Error::RequiredEkuNotFoundContext(_) => (
            0,
            "unsupported certificate purpose",
            CertificateError::InvalidPurpose,
        ),
        webpki::Error::CaUsedAsEndEntity if leaf.self_issued => (
            0,
            "self signed certificate",
            CertificateError::UnknownIssuer,
        ),
        webpki::Error::CaUsedAsEndEntity => (
            0,
            "invalid CA certificate",
            CertificateError::InvalidPurpose,
        ),
        webpki::Error::InvalidSignatureForPublicKey => (
            0,
            "certificate signature failure",
            CertificateError::BadSignature,
        ),
        webpki::Error::UnknownIssuer => {
            let last = intermediates
                .last()
                .and_then(|c| CertificateFacts::parse(c));
            let depth = intermediates.len();
            let text = match last {
                None if leaf.self_issued => "self signed certificate",
                Some(c) if c.self_issued => "self signed certificate in certificate chain",
                _ => "unable to get local issuer certificate",
            };
            (depth, text, CertificateError::UnknownIssuer)
        }
        _ => (0, "certificate rejected", CertificateError::BadEncoding),
    };
    ChainFailure { depth, text, error }
}

fn chain_error(e: ChainFailure) -> (VerifyFailure, CertificateError) {
    let text = format!(
        "verify cert failed: X509_verify_cert: certificate verification error at depth {}: {}",
        e.depth, e.text
    );
    (
        VerifyFailure {
            kind: FailureKind::Chain,
            text,
        },
        e.error,
    )
}

#[derive(Debug, thiserror::Error)]
#[error("peer certificate does not match the configured names or pins")]
struct SanMismatch;

fn san_matches(matcher: &SanMatcher, san: &San) -> bool {
    if matcher.san_type.is_some_and(|t| t != san.kind) {
        return false;
    }
    if let (
        SanType::Dns,
        StringMatcher {
            pattern: StringPattern::Exact(name),
            ..
        },
    ) = (san.kind, &matcher.matcher)
    {
        return dns_name_match(name, &san.value);
    }
    matcher.matcher.matches(san.value.as_bytes())
}

/// Whether a DNS SAN (possibly `*.suffix`, one label) covers `name`.
fn dns_name_match(name: &str, san: &str) -> bool {
    if name.eq_ignore_ascii_case(san) {
        return true;
    }
    let (Some(suffix), Some((label, rest))) = (san.strip_prefix("*."), name.split_once('.')) else {
        return false;
    };
    !label.is_empty() && !suffix.is_empty() && rest.eq_ignore_ascii_case(suffix)
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    super::crypto::default_crypto().signature_verification_algorithms
}

/// The verifier rustls calls, for either side.
#[derive(Debug)]
pub struct Verifier {
    /// What the peer must satisfy.
    pub requirements: Requirements,
    /// Server side: a client without certificate is refused.
    pub mandatory: bool,
    subjects: Vec<DistinguishedName>,
}

impl Verifier {
    /// A verifier. `mandatory` is for the server side.
    #[must_use]
    pub fn new(requirements: Requirements, mandatory: bool) -> Arc<Self> {
        let subjects = requirements
            .roots
            .as_ref()
            .map_or_else(Vec::new, |r| r.subjects.clone());
        Arc::new(Self {
            requirements,
            mandatory,
            subjects,
        })
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let dns_name = PENDING.with_borrow(|p| p.dns_name.clone());
        match self
            .requirements
            .verify(leaf, intermediates, now, usage, dns_name.as_deref())
        {
            Ok(_) => Ok(()),
            Err((failure, error)) => {
                PENDING.with_borrow_mut(|p| p.failure = Some(failure));
                Err(Error::InvalidCertificate(error))
            }
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity, intermediates, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Now, as webpki wants it.
#[must_use]
pub fn now() -> UnixTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    UnixTime::since_unix_epoch(since.unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_san_covers_one_label() {
        assert!(dns_name_match("a.example.com", "*.example.com"));
        assert!(dns_name_match("A.example.com", "a.EXAMPLE.com"));
        assert!(!dns_name_match("a.b.example.com", "*.example.com"));
        assert!(!dns_name_match("example.com", "*.example.com"));
        assert!(!dns_name_match(".example.com", "*.example.com"));
    }
}
