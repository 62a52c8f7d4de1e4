//! Why TLS failed: the transport failure texts that Envoy logs, and what the failure counters count.

use std::io;

use rustls::{AlertDescription, Error as Rustls, InvalidMessage, PeerIncompatible};

/// What a failed handshake counts as under `ssl.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailureKind {
    /// Anything that is not below: `connection_error`.
    #[default]
    Connection,
    /// A secret has not arrived; no handshake was tried.
    SecretMissing,
    /// The peer sent no certificate although one is required: `fail_verify_no_cert`.
    NoCertificate,
    /// The chain does not verify: `fail_verify_error`.
    Chain,
    /// No SAN matches: `fail_verify_san`.
    San,
    /// No pin matches: `fail_verify_cert_hash`.
    Pin,
}

/// Why a handshake failed. The text is what Envoy logs as transport failure reason (spaces not yet replaced),
/// e.g. `TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify cert failed: SAN matcher, ...:TLS_error_end`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct TlsFailure {
    /// The text.
    pub reason: String,
    /// No handshake was tried: a secret has not arrived.
    pub secret_missing: bool,
    /// What it counts as.
    pub kind: FailureKind,
}

/// Why a context cannot be compiled.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ContextError {
    /// `tls_params.cipher_suites` names a suite nobody knows.
    #[error("Failed to initialize cipher suites {0}: unknown cipher suite")]
    UnknownCipher(Box<str>),
    /// `tls_params.cipher_suites` leaves nothing for TLS 1.2, the only version allowed.
    #[error("tls_params.cipher_suites: none of the listed suites is supported")]
    NoUsableCipher,
    /// `tls_params.ecdh_curves` names an unsupported curve.
    #[error("Failed to initialize ECDH curves {0}")]
    UnknownCurve(Box<str>),
    /// Lowest version above the highest.
    #[error("tls_params: tls_minimum_protocol_version is above tls_maximum_protocol_version")]
    NoVersion,
    /// A server context without a certificate.
    #[error("No TLS certificates found for server context")]
    NoCertificate,
    /// SAN matchers without a trusted CA in a context that takes no secret.
    #[error(
        "SAN-based verification of peer certificates without trusted CA is insecure and not allowed"
    )]
    SanWithoutCa,
    /// An inline certificate, key or validation context does not load.
    #[error(transparent)]
    Secret(#[from] super::secret::SecretError),
    /// rustls refused the combination.
    #[error("TLS configuration refused: {0}")]
    Refused(Rustls),
}

/// The pieces of a verification failure, made by the verifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyFailure {
    /// What it counts as.
    pub kind: FailureKind,
    /// Text after `CERTIFICATE_VERIFY_FAILED:`.
    pub text: String,
}

const CERTIFICATE_VERIFY_FAILED: u32 = 125;

impl From<ContextError> for TlsFailure {
    fn from(e: ContextError) -> Self {
        Self {
            reason: e.to_string(),
            secret_missing: false,
            kind: FailureKind::Connection,
        }
    }
}

impl From<VerifyFailure> for TlsFailure {
    fn from(e: VerifyFailure) -> Self {
        Self::openssl(
            CERTIFICATE_VERIFY_FAILED,
            "CERTIFICATE_VERIFY_FAILED",
            &e.text,
            e.kind,
        )
    }
}

impl TlsFailure {
    /// A secret has not arrived (Envoy's words).
    #[must_use]
    pub fn secret_missing() -> Self {
        Self {
            reason: "TLS error: Secret is not supplied by SDS".into(),
            secret_missing: true,
            kind: FailureKind::SecretMissing,
        }
    }

    /// The text of an OpenSSL error of library 16 (SSL).
    fn openssl(code: u32, name: &str, detail: &str, kind: FailureKind) -> Self {
        let code = (16 << 24) + code;
        let detail = if detail.is_empty() {
            String::new()
        } else {
            format!(":{detail}")
        };
        Self {
            reason: format!(
                "TLS_error:|{code}:SSL routines:OPENSSL_internal:{name}{detail}:TLS_error_end"
            ),
            secret_missing: false,
            kind,
        }
    }

    fn plain(code: u32, name: &str) -> Self {
        Self::openssl(code, name, "", FailureKind::Connection)
    }

    /// The peer sent no certificate.
    #[must_use]
    pub fn no_certificate() -> Self {
        Self::openssl(
            192,
            "PEER_DID_NOT_RETURN_A_CERTIFICATE",
            "peer did not provide required client certificate",
            FailureKind::NoCertificate,
        )
    }

    /// The first bytes of a connection are no TLS record. BoringSSL tells plain HTTP from the rest.
    #[must_use]
    pub fn not_tls(first: &[u8]) -> Self {
        if [&b"GET "[..], b"POST ", b"HEAD ", b"PUT "]
            .iter()
            .any(|m| first.starts_with(m))
        {
            Self::plain(156, "HTTP_REQUEST")
        } else if first.starts_with(b"CONNE") {
            Self::plain(155, "HTTPS_PROXY_REQUEST")
        } else {
            Self::plain(247, "WRONG_VERSION_NUMBER")
        }
    }

    /// The connection ended or broke during the handshake, or rustls refused what came.
    #[must_use]
    pub fn from_io(error: &io::Error) -> Self {
        match error.get_ref().and_then(|e| e.downcast_ref::<Rustls>()) {
            Some(e) => Self::from_rustls(e),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self {
                reason: "TLS_error:|remote closed during handshake:TLS_error_end".into(),
                secret_missing: false,
                kind: FailureKind::Connection,
            },
            None => Self {
                reason: format!("TLS_error:|{}:TLS_error_end", io_text(error)),
                secret_missing: false,
                kind: FailureKind::Connection,
            },
        }
    }

    /// OpenSSL's words for an error of rustls. Verification failures carry their text beside it.
    #[must_use]
    pub fn from_rustls(error: &Rustls) -> Self {
        match error {
            Rustls::NoCertificatesPresented => Self::no_certificate(),
            Rustls::InvalidCertificate(e) => VerifyFailure {
                kind: FailureKind::Chain,
                text: format!("verify cert failed: {e}"),
            }
            .into(),
            Rustls::AlertReceived(alert) => Self::alert(*alert),
            Rustls::NoApplicationProtocol => Self::plain(307, "NO_APPLICATION_PROTOCOL"),
            Rustls::DecryptError => Self::plain(139, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
            Rustls::PeerIncompatible(e) => Self::incompatible(e),
            Rustls::InvalidMessage(InvalidMessage::UnknownProtocolVersion) => {
                Self::plain(247, "WRONG_VERSION_NUMBER")
            }
            Rustls::InvalidMessage(InvalidMessage::InvalidContentType) => {
                Self::plain(247, "WRONG_VERSION_NUMBER")
            }
            Rustls::InvalidMessage(_) => Self::plain(137, "DECODE_ERROR"),
            Rustls::InappropriateMessage { .. } | Rustls::InappropriateHandshakeMessage { .. } => {
                Self::plain(223, "UNEXPECTED_MESSAGE")
            }
            other => Self {
                reason: format!("TLS_error:|{other}:TLS_error_end"),
                secret_missing: false,
                kind: FailureKind::Connection,
            },
        }
    }

    fn incompatible(error: &PeerIncompatible) -> Self {
        match error {
            PeerIncompatible::NoCipherSuitesInCommon => Self::plain(184, "NO_SHARED_CIPHER"),
            PeerIncompatible::NoKxGroupsInCommon => Self::plain(266, "NO_SHARED_GROUP"),
            PeerIncompatible::NoSignatureSchemesInCommon => {
                Self::plain(253, "NO_COMMON_SIGNATURE_ALGORITHMS")
            }
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled => {
                Self::plain(240, "UNSUPPORTED_PROTOCOL")
            }
            _ => Self::plain(137, "DECODE_ERROR"),
        }
    }

    /// An alert of the peer, e.g. `SSLV3_ALERT_CERTIFICATE_UNKNOWN`.
    fn alert(alert: AlertDescription) -> Self {
        let name = match alert {
            AlertDescription::UnexpectedMessage => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
            AlertDescription::BadRecordMac => "SSLV3_ALERT_BAD_RECORD_MAC",
            AlertDescription::HandshakeFailure => "SSLV3_ALERT_HANDSHAKE_FAILURE",
            AlertDescription::BadCertificate => "SSLV3_ALERT_BAD_CERTIFICATE",
            AlertDescription::UnsupportedCertificate => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
            AlertDescription::CertificateRevoked => "SSLV3_ALERT_CERTIFICATE_REVOKED",
            AlertDescription::CertificateExpired => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
            AlertDescription::CertificateUnknown => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
            AlertDescription::IllegalParameter => "SSLV3_ALERT_ILLEGAL_PARAMETER",
            AlertDescription::UnknownCA => "TLSV1_ALERT_UNKNOWN_CA",
            AlertDescription::AccessDenied => "TLSV1_ALERT_ACCESS_DENIED",
            AlertDescription::DecodeError => "TLSV1_ALERT_DECODE_ERROR",
            AlertDescription::DecryptError => "TLSV1_ALERT_DECRYPT_ERROR",
            AlertDescription::ProtocolVersion => "TLSV1_ALERT_PROTOCOL_VERSION",
            AlertDescription::InsufficientSecurity => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
            AlertDescription::InternalError => "TLSV1_ALERT_INTERNAL_ERROR",
            AlertDescription::UserCanceled => "TLSV1_ALERT_USER_CANCELLED",
            AlertDescription::UnrecognisedName => "TLSV1_ALERT_UNRECOGNIZED_NAME",
            AlertDescription::CertificateRequired => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
            AlertDescription::NoApplicationProtocol => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
            _ => "TLSV1_ALERT",
        };
        Self::plain(1000 + u32::from(u8::from(alert)), name)
    }
}

fn io_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionReset => "connection reset".into(),
        io::ErrorKind::BrokenPipe => "broken pipe".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_the_reference() {
        assert_eq!(
            TlsFailure::not_tls(b"GET / HT").reason,
            "TLS_error:|268435612:SSL routines:OPENSSL_internal:HTTP_REQUEST:TLS_error_end"
        );
        assert_eq!(
            TlsFailure::no_certificate().reason,
            "TLS_error:|268435648:SSL routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE:\
             peer did not provide required client certificate:TLS_error_end"
        );
        let verify = VerifyFailure {
            kind: FailureKind::San,
            text: "x".into(),
        };
        assert_eq!(
            TlsFailure::from(verify).reason,
            "TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:x:TLS_error_end"
        );
        assert_eq!(
            TlsFailure::alert(AlertDescription::UnknownCA).reason,
            "TLS_error:|268436504:SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA:TLS_error_end"
        );
    }
}
