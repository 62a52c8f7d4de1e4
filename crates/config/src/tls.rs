//! TLS contexts and secrets.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::matcher::StringMatcher;

/// `DownstreamTlsContext`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownstreamTls {
    /// What both sides share.
    pub common: CommonTls,
    /// `require_client_certificate`.
    pub require_client_certificate: bool,
}

/// `UpstreamTlsContext`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// What both sides share.
    pub common: CommonTls,
    /// `sni`; empty = none.
    pub sni: Option<Arc<str>>,
    /// SNI from the request authority when `sni` is unset (cluster's `upstream_http_protocol_options.auto_sni`
    /// is on the cluster, not here).
    pub allow_renegotiation: bool,
}

/// `CommonTlsContext` with defaults applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommonTls {
    /// Lowest version.
    pub min_version: TlsVersion,
    /// Highest version. Unset means 1.3 downstream and 1.2 upstream, as Envoy has it.
    pub max_version: TlsVersion,
    /// OpenSSL names from `tls_params.cipher_suites` (TLS 1.2 only); empty = default.
    pub cipher_suites: Vec<Arc<str>>,
    /// `tls_params.ecdh_curves`; empty = default.
    pub ecdh_curves: Vec<Arc<str>>,
    /// `alpn_protocols`, own preference order.
    pub alpn_protocols: Vec<Arc<str>>,
    /// Own certificates.
    pub certificates: Vec<SecretRef<TlsCertificate>>,
    /// How the peer is checked; `None` = no validation context at all.
    pub validation: Option<Validation>,
}

/// TLS protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.2 (lower ones are clamped to it by the parser with an `Ignored` entry).
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// A secret, given in place or by SDS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef<T> {
    /// In the resource itself.
    Inline(Arc<T>),
    /// By name through SDS (or a static secret of the bootstrap).
    Sds(SdsConfig),
}

/// `SdsSecretConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SdsConfig {
    /// Secret name.
    pub name: Arc<str>,
    /// Where to ask.
    pub source: SdsSource,
    /// `initial_fetch_timeout`; unset = 15 s, `None` = wait for ever (0 s).
    pub initial_fetch_timeout: Option<Duration>,
}

/// Source of a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SdsSource {
    /// The ADS stream.
    Ads,
    /// A gRPC stream of its own to this cluster (`api_config_source` with one `envoy_grpc` service).
    Grpc {
        /// Cluster name, e.g. `sds-grpc`.
        cluster: Arc<str>,
    },
    /// No config source: a static secret of the bootstrap.
    Static,
}

/// Combined view of `validation_context`, `validation_context_sds_secret_config` and
/// `combined_validation_context`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validation {
    /// The context in the resource (the default one of a combined context, empty for pure SDS).
    pub default: ValidationContext,
    /// SDS part; its fields are merged over `default` as protobuf's MergeFrom does.
    pub sds: Option<SdsConfig>,
}

/// `CertificateValidationContext`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ValidationContext {
    /// `trusted_ca` PEM bundle; `None` = unset.
    pub trusted_ca: Option<DataSource>,
    /// `match_typed_subject_alt_names`, or `match_subject_alt_names` expanded to every SAN type.
    pub subject_alt_names: Vec<SanMatcher>,
    /// `verify_certificate_spki`: base64 SHA-256.
    pub verify_certificate_spki: Vec<Arc<str>>,
    /// `verify_certificate_hash`: hex SHA-256.
    pub verify_certificate_hash: Vec<Arc<str>>,
    /// `crl`.
    pub crl: Option<DataSource>,
    /// `only_verify_leaf_cert_crl`.
    pub only_verify_leaf_cert_crl: bool,
    /// `allow_expired_certificate`.
    pub allow_expired_certificate: bool,
    /// `trust_chain_verification: ACCEPT_UNTRUSTED`.
    pub accept_untrusted: bool,
}

/// `SubjectAltNameMatcher`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SanMatcher {
    /// Type of SAN; `None` = any type (the untyped list).
    pub san_type: Option<SanType>,
    /// How it must look.
    pub matcher: StringMatcher,
}

/// `SanType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SanType {
    /// rfc822Name.
    Email,
    /// dNSName.
    Dns,
    /// uniformResourceIdentifier.
    Uri,
    /// iPAddress.
    IpAddress,
}

/// `DataSource`.
#[derive(Clone, PartialEq, Eq)]
pub enum DataSource {
    /// `inline_bytes` or `inline_string`.
    Inline(Bytes),
    /// `filename`.
    File(Arc<str>),
    /// `environment_variable`.
    Env(Arc<str>),
}

impl std::fmt::Debug for DataSource {
    /// Never prints inline bytes: they may hold a private key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(b) => write!(f, "Inline({} bytes)", b.len()),
            Self::File(p) => write!(f, "File({p})"),
            Self::Env(v) => write!(f, "Env({v})"),
        }
    }
}

/// `TlsCertificate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsCertificate {
    /// `certificate_chain` PEM, leaf first.
    pub certificate_chain: DataSource,
    /// `private_key` PEM.
    pub private_key: DataSource,
}

/// `envoy.extensions.transport_sockets.tls.v3.Secret`.
#[derive(Debug, Clone)]
pub struct Secret {
    /// Resource name.
    pub name: Arc<str>,
    /// Contents.
    pub kind: SecretKind,
}

/// Contents of a secret.
#[derive(Debug, Clone)]
pub enum SecretKind {
    /// `tls_certificate`.
    TlsCertificate(Arc<TlsCertificate>),
    /// `validation_context`.
    ValidationContext(Arc<ValidationContext>),
}
