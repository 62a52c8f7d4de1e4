//! rustls client configuration from files, built anew for every connection.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::crypto::aws_lc_rs::{cipher_suite as suite, kx_group};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{ClientCertificate, RootSource, TlsSettings};

/// OS root bundles; the first that exists is used.
pub const SYSTEM_ROOTS: [&str; 8] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/etc/ssl/cert.pem",
    "/etc/ssl/certs/ca-certificates",
];

/// `COMPLIANCE_POLICY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compliance {
    /// Empty: TLS 1.2 and 1.3 with the library's defaults.
    #[default]
    None,
    /// `fips-140-2`: TLS 1.2 only, four ECDHE-GCM suites, P-256.
    Fips140V2,
    /// `fips-140-3`: TLS 1.2 and 1.3, P-256 and P-384.
    Fips140V3,
    /// `pqc`: TLS 1.3, X25519MLKEM768.
    Pqc,
}

/// A policy that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown COMPLIANCE_POLICY {0:?}")]
pub struct UnknownCompliance(pub String);

impl std::str::FromStr for Compliance {
    type Err = UnknownCompliance;

    fn from_str(text: &str) -> Result<Self, UnknownCompliance> {
        Ok(match text {
            "" => Self::None,
            "fips-140-2" => Self::Fips140V2,
            "fips-140-3" => Self::Fips140V3,
            "pqc" => Self::Pqc,
            other => return Err(UnknownCompliance(other.to_owned())),
        })
    }
}

/// Roots or client certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The root file cannot be read.
    #[error("root certificate file {}: {source}", path.display())]
    RootFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The root file holds no certificate.
    #[error("no usable certificate in root file {}", .0.display())]
    NoRoot(PathBuf),
    /// None of the OS bundles exists.
    #[error("no system root bundle found")]
    NoSystemRoots,
    /// rustls refused the settings.
    #[error("TLS settings: {0}")]
    Config(#[from] rustls::Error),
}

/// Configuration for one connection.
pub(super) fn client_config(settings: &TlsSettings) -> Result<ClientConfig, TlsError> {
    let (provider, versions) = provider(settings.compliance);
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&versions)?
        .with_root_certificates(roots(&settings.roots)?);
    let identity = settings.client.as_ref().and_then(client_identity);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(identity)),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// As [`client_config`], for HTTP/1.1 servers.
pub(crate) fn http_client_config(settings: &TlsSettings) -> Result<ClientConfig, TlsError> {
    let mut config = client_config(settings)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn provider(compliance: Compliance) -> (CryptoProvider, Vec<&'static SupportedProtocolVersion>) {
    let mut provider = aws_lc_rs::default_provider();
    let gcm_12 = [
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ];
    let gcm_13 = [
        suite::TLS13_AES_128_GCM_SHA256,
        suite::TLS13_AES_256_GCM_SHA384,
    ];
    let versions = match compliance {
        Compliance::None => vec![&TLS13, &TLS12],
        Compliance::Fips140V2 => {
            provider.cipher_suites = gcm_12.to_vec();
            provider.kx_groups = vec![kx_group::SECP256R1];
            vec![&TLS12]
        }
        Compliance::Fips140V3 => {
            provider.cipher_suites = gcm_13.into_iter().chain(gcm_12).collect();
            provider.kx_groups = vec![kx_group::SECP256R1, kx_group::SECP384R1];
            vec![&TLS13, &TLS12]
        }
        Compliance::Pqc => {
            provider.kx_groups = vec![kx_group::X25519MLKEM768];
            vec![&TLS13]
        }
    };
    (provider, versions)
}

/// The OS bundle in use.
pub(crate) fn system_roots() -> Option<&'static Path> {
    SYSTEM_ROOTS
        .iter()
        .map(Path::new)
        .find(|path| path.exists())
}

fn roots(source: &RootSource) -> Result<RootCertStore, TlsError> {
    let path = match source {
        RootSource::File(path) => path.as_path(),
        RootSource::System => system_roots().ok_or(TlsError::NoSystemRoots)?,
    };
    let pem = std::fs::read(path).map_err(|source| TlsError::RootFile {
        path: path.to_owned(),
        source,
    })?;
    let mut store = RootCertStore::empty();
    let (added, _) =
        store.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    if added == 0 {
        return Err(TlsError::NoRoot(path.to_owned()));
    }
    Ok(store)
}

/// Chain and key, or nothing with a warning: the token authenticates then.
fn client_identity(files: &ClientCertificate) -> Option<SingleCertAndKey> {
    let unusable = |path: &Path, why: &str| {
        let path = path.display();
        tracing::warn!(%path, "no usable client certificate, using token instead: {why}");
        None
    };
    let chain: Vec<_> = CertificateDer::pem_file_iter(&files.chain)
        .ok()
        .and_then(|certs| certs.collect::<Result<_, _>>().ok())
        .unwrap_or_default();
    let Some(leaf) = chain.first() else {
        return unusable(&files.chain, "no certificate in it");
    };
    let valid =
        x509_parser::parse_x509_certificate(leaf).is_ok_and(|(_, cert)| cert.validity().is_valid());
    if !valid {
        return unusable(&files.chain, "cert expired");
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).ok();
    let Some(key) = key.and_then(|der| any_supported_type(&der).ok()) else {
        return unusable(&files.key, "no private key in it");
    };
    let certified = CertifiedKey::new(chain, key);
    // Half-way through a rotation, the two are of different ages.
    if certified.keys_match().is_err() {
        return unusable(&files.key, "not the key of the certificate");
    }
    Some(SingleCertAndKey::from(certified))
}
