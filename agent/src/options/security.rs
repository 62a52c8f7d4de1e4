//! Variables and ProxyConfig to the settings of the connections to istiod and the CA, and of the
//! workload's keys. Reads no secret; only checks that the files it names exist.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bootstrap_templates::{AuthPolicy, CompliancePolicy, ProxySettings};
use http::{HeaderName, HeaderValue};
use outrigger_xds::grpc::ServerOptions;

use super::Environment;
use crate::ca_client::CaConfig;
use crate::credential::{CredentialSource, GceFetcher, RequestMetadata};
use crate::istiod::{
    ClientCertificate, Compliance, HttpsProxy, HttpsProxyError, IstiodConfig, IstiodConfigError,
    IstiodConnector, RootSource, TlsSettings, ca_is_plaintext, host_port,
};
use crate::secret_manager::{
    KeyAlgorithm, KeyConfig, KeyError, MountedFiles, OutputCerts, RotationConfig, SystemClock,
};

/// Longest request of the proxy by default, bytes. A reconnecting proxy lists all it has in one
/// request, which passes the 4 MiB of the reference in large meshes (istio/istio#55820).
const MAX_REQUEST: usize = 64 << 20;
/// gRPC's own lower bounds of the ping interval.
const SHORTEST_CLIENT_PING: Duration = Duration::from_secs(10);
const SHORTEST_SERVER_PING: Duration = Duration::from_secs(1);
// Relative to `Security::directory`.
const TOKEN_FILE: &str = "var/run/secrets/tokens/istio-token";
const LEGACY_ROOT: &str = "etc/certs/root-cert.pem";
const ISTIOD_ROOT: &str = "var/run/secrets/istio/root-cert.pem";
const LEGACY_FILES: &str = "etc/certs";
const WORKLOAD_FILES: &str = "var/run/secrets/workload-spiffe-credentials";

/// Absolute, since the proxy reads it.
const CRL: &str = "/var/run/secrets/istio/crl/ca-crl.pem";

/// Settings that cannot be used; all end the agent with code 255.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// No credential fetcher of that name.
    #[error("invalid credential fetcher type {0:?} (CREDENTIAL_FETCHER_TYPE)")]
    FetcherType(String),
    /// Address or server name.
    #[error(transparent)]
    Address(#[from] IstiodConfigError),
    /// The proxy that the environment names.
    #[error(transparent)]
    Proxy(#[from] HttpsProxyError),
    /// The trusted roots must be there before anything is trusted.
    #[error("root CA file for {peer} does not exist {path}")]
    MissingRoot {
        /// `XDS` or `CA`.
        peer: &'static str,
        /// File.
        path: String,
    },
    /// `PILOT_CERT_PROVIDER=none` leaves TLS without roots.
    #[error("PILOT_CERT_PROVIDER=none: no root to verify {0} with")]
    NoRoot(&'static str),
    /// `XDS_HEADER_*` or `CA_HEADER_*` that no request can carry.
    #[error("{0} is not a valid request header")]
    Header(String),
    /// A file pair that a variable promises.
    #[error("{variable}: certificate files are not in {path}")]
    MissingFiles {
        /// Variable.
        variable: &'static str,
        /// Folder.
        path: String,
    },
    /// Keys that cannot be made.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Which secrets of the workload are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mounted {
    /// None: a CA is asked.
    Nothing,
    /// All, or a CA must not be asked.
    All(MountedFiles),
    /// What is there wins; a CA is asked for the rest.
    Some(MountedFiles),
}

/// The environment and ProxyConfig, seen as security settings.
pub struct Security<'a> {
    /// Variables.
    pub environment: &'a Environment,
    /// ProxyConfig.
    pub settings: &'a ProxySettings,
    /// `COMPLIANCE_POLICY`.
    pub compliance: Option<CompliancePolicy>,
    /// Where relative paths begin: `.`, but for tests.
    pub directory: &'a Path,
}

impl Security<'_> {
    /// Connection to istiod for xDS.
    ///
    /// # Errors
    /// A bad address, or missing roots.
    pub fn xds(&self) -> Result<IstiodConnector, SecurityError> {
        Ok(IstiodConnector::new(self.xds_endpoint()?)?)
    }

    fn xds_endpoint(&self) -> Result<IstiodConfig, SecurityError> {
        let tls = match self.settings.control_plane_auth_policy {
            AuthPolicy::None => None,
            _ => Some(self.tls("XDS", self.xds_root()?)?),
        };
        let san = Some(self.environment.text("ISTIOD_SAN")).filter(|san| !san.is_empty());
        let address = self.settings.discovery_address.clone();
        Ok(IstiodConfig {
            san,
            keepalive: self.client_keepalive(),
            https_proxy: self.https_proxy(&address)?,
            ..IstiodConfig::new(address, tls)
        })
    }

    /// Requests to the CA.
    ///
    /// # Errors
    /// A bad address, or missing roots.
    pub fn ca(&self) -> Result<CaConfig, SecurityError> {
        Ok(CaConfig {
            endpoint: IstiodConnector::new(self.ca_endpoint()?)?,
            metadata: self.metadata("CA_HEADER_")?,
            cert_signer: self.environment.text("ISTIO_META_CERT_SIGNER"),
            ttl: self
                .environment
                .duration("SECRET_TTL", Duration::from_secs(24 * 3600)),
            try_timeout: Duration::from_secs(10),
            clock: Arc::new(SystemClock),
        })
    }

    fn ca_endpoint(&self) -> Result<IstiodConfig, SecurityError> {
        let explicit = self.environment.text("CA_ADDR");
        let (address, san) = if explicit.is_empty() {
            let san = self.environment.text("ISTIOD_SAN");
            (
                self.settings.discovery_address.clone(),
                Some(san).filter(|san| !san.is_empty()),
            )
        } else {
            (explicit, None)
        };
        let tls = if ca_is_plaintext(&address) {
            None
        } else {
            Some(self.tls("CA", self.ca_root()?)?)
        };
        Ok(IstiodConfig {
            san,
            keepalive: self.client_keepalive(),
            https_proxy: self.https_proxy(&address)?,
            ..IstiodConfig::new(address, tls)
        })
    }

    /// Token, cluster id and the headers of variables that start with `prefix`.
    ///
    /// # Errors
    /// An unknown credential fetcher, or a header that cannot be sent.
    pub fn metadata(&self, prefix: &str) -> Result<RequestMetadata, SecurityError> {
        let mut headers = Vec::new();
        for (name, value) in self.environment.with_prefix(prefix) {
            let bad = || SecurityError::Header(name.clone());
            let key = name
                .strip_prefix(prefix)
                .unwrap_or_default()
                .to_ascii_lowercase();
            let key = HeaderName::from_bytes(key.as_bytes()).map_err(|_| bad())?;
            headers.push((key, HeaderValue::from_str(&value).map_err(|_| bad())?));
        }
        Ok(RequestMetadata {
            credential: self.credential()?,
            cluster_id: self.environment.text("ISTIO_META_CLUSTER_ID"),
            headers,
        })
    }

    /// Source of tokens.
    ///
    /// # Errors
    /// An unknown type.
    pub fn credential(&self) -> Result<CredentialSource, SecurityError> {
        let kind = self.environment.text("CREDENTIAL_FETCHER_TYPE");
        let token_file = self.directory.join(TOKEN_FILE);
        match kind.as_str() {
            "" | "JWT" => Ok(CredentialSource::JwtFile(token_file)),
            "Mock" => Ok(CredentialSource::Mock),
            "GoogleComputeEngine" => Ok(CredentialSource::Gce(GceFetcher {
                host: self.environment.text("GCE_METADATA_HOST"),
                audience: self.trust_domain(),
                token_file,
            })),
            _ => Err(SecurityError::FetcherType(kind)),
        }
    }

    /// `TRUST_DOMAIN`, default `cluster.local`.
    pub fn trust_domain(&self) -> String {
        self.environment.text_or("TRUST_DOMAIN", "cluster.local")
    }

    /// gRPC settings of the unix sockets.
    pub fn server(&self) -> ServerOptions {
        ServerOptions {
            max_streams: self.environment.number("ISTIO_GPRC_MAXSTREAMS", 100_000),
            max_message: self
                .environment
                .number("ISTIO_GPRC_MAXRECVMSGSIZE", MAX_REQUEST),
            keepalive: Some(self.keepalive(SHORTEST_SERVER_PING)),
            ..ServerOptions::default()
        }
    }

    fn client_keepalive(&self) -> (Duration, Duration) {
        self.keepalive(SHORTEST_CLIENT_PING)
    }

    /// Interval (not under `shortest`) and the wait for an answer (a second at least): pings
    /// without pause would be an attack on the peer.
    fn keepalive(&self, shortest: Duration) -> (Duration, Duration) {
        let seconds = |name, default| {
            self.environment
                .duration(name, Duration::from_secs(default))
        };
        (
            seconds("GRPC_KEEPALIVE_INTERVAL", 30).max(shortest),
            seconds("GRPC_KEEPALIVE_TIMEOUT", 10).max(SHORTEST_SERVER_PING),
        )
    }

    /// The way to `address`, by `HTTPS_PROXY` and `NO_PROXY`.
    fn https_proxy(&self, address: &str) -> Result<Option<HttpsProxy>, SecurityError> {
        let (proxy, exceptions) = proxy_variables(self.environment);
        let (host, port) = host_port(address)?;
        let target = (host.as_str(), port);
        Ok(HttpsProxy::for_host(&proxy, &exceptions, target)?)
    }

    /// Certificates that are mounted instead of requested.
    ///
    /// # Errors
    /// Promised files that are not there.
    pub fn mounted(&self) -> Result<Mounted, SecurityError> {
        let mounted = self.directory.join(WORKLOAD_FILES);
        if self.environment.text("CA_PROVIDER") == "GkeWorkloadCertificate" {
            let files = MountedFiles::gke(&mounted);
            let missing = || SecurityError::MissingFiles {
                variable: "CA_PROVIDER=GkeWorkloadCertificate",
                path: mounted.display().to_string(),
            };
            return files
                .present()
                .then_some(Mounted::All(files))
                .ok_or_else(missing);
        }
        let files = MountedFiles::in_directory(&mounted);
        if files.present() {
            return Ok(Mounted::All(files));
        }
        let folder = self.directory.join(LEGACY_FILES);
        let legacy = MountedFiles::in_directory(&folder);
        if self.environment.boolean("FILE_MOUNTED_CERTS", false) {
            // Served when they appear; a CA must not be asked.
            return Ok(Mounted::All(legacy));
        }
        // The agent's own output must not become its source: nothing would renew it.
        let own_output = self
            .output()
            .is_some_and(|output| same_directory(&output.dir, &folder));
        Ok(
            match (legacy.certificate_present(), legacy.root_present()) {
                _ if own_output => Mounted::Nothing,
                (false, false) => Mounted::Nothing,
                (true, true) => Mounted::All(legacy),
                _ => Mounted::Some(legacy),
            },
        )
    }

    /// Kind of workload keys.
    ///
    /// # Errors
    /// RSA keys of a size that cannot be made.
    pub fn keys(&self) -> Result<KeyConfig, SecurityError> {
        let algorithm = if self.environment.text("ECC_SIGNATURE_ALGORITHM") == "ECDSA" {
            match self.environment.text("ECC_CURVE").as_str() {
                "P384" => KeyAlgorithm::EcdsaP384,
                _ => KeyAlgorithm::EcdsaP256,
            }
        } else {
            KeyAlgorithm::Rsa(self.environment.number("WORKLOAD_RSA_KEY_SIZE", 2048))
        };
        algorithm.check()?;
        Ok(KeyConfig {
            algorithm,
            pkcs8: self.environment.boolean("PKCS8_KEY", false),
        })
    }

    /// When to renew.
    pub fn rotation(&self) -> RotationConfig {
        RotationConfig {
            grace_ratio: self.environment.number("SECRET_GRACE_PERIOD_RATIO", 0.5),
            jitter: self
                .environment
                .number("SECRET_GRACE_PERIOD_RATIO_JITTER", 0.01),
            ..RotationConfig::default()
        }
    }

    /// The CRL that validation contexts refer to, unless `PILOT_ENABLE_CA_CRL` is false.
    pub fn crl(&self) -> Option<PathBuf> {
        let wanted = self.environment.boolean("PILOT_ENABLE_CA_CRL", true);
        wanted.then(|| PathBuf::from(CRL))
    }

    /// `FILE_DEBOUNCE_DURATION`: first wait before files that cannot be used are read again.
    pub fn file_retry(&self) -> Duration {
        self.environment
            .duration("FILE_DEBOUNCE_DURATION", Duration::from_millis(100))
    }

    /// `OUTPUT_CERTS`.
    pub fn output(&self) -> Option<OutputCerts> {
        let folder = self.environment.text("OUTPUT_CERTS");
        let mode = if self.environment.is_set("KUBERNETES_SERVICE_HOST") {
            0o644
        } else {
            0o600
        };
        (!folder.is_empty()).then(|| OutputCerts {
            dir: PathBuf::from(folder),
            mode,
        })
    }

    fn tls(&self, peer: &'static str, roots: RootSource) -> Result<TlsSettings, SecurityError> {
        if let RootSource::File(path) = &roots
            && !path.exists()
        {
            let path = path.display().to_string();
            return Err(SecurityError::MissingRoot { peer, path });
        }
        let compliance = match self.compliance {
            None => Compliance::None,
            Some(CompliancePolicy::Fips140v2) => Compliance::Fips140V2,
            Some(CompliancePolicy::Fips140v3) => Compliance::Fips140V3,
            Some(CompliancePolicy::Pqc) => Compliance::Pqc,
        };
        Ok(TlsSettings {
            roots,
            client: self.client_certificate(),
            compliance,
        })
    }

    fn client_certificate(&self) -> Option<ClientCertificate> {
        let folder = self.environment.text("PROV_CERT");
        if !folder.is_empty() {
            let folder = Path::new(&folder);
            return Some(ClientCertificate {
                chain: folder.join("cert-chain.pem"),
                key: folder.join("key.pem"),
            });
        }
        if !self.environment.boolean("FILE_MOUNTED_CERTS", false) {
            return None;
        }
        let chain = self.proxy_metadata("ISTIO_META_TLS_CLIENT_CERT_CHAIN")?;
        let key = self.proxy_metadata("ISTIO_META_TLS_CLIENT_KEY")?;
        Some(ClientCertificate {
            chain: PathBuf::from(chain),
            key: PathBuf::from(key),
        })
    }

    fn proxy_metadata(&self, key: &str) -> Option<&str> {
        let value = self.settings.proxy_metadata.get(key)?;
        (!value.is_empty()).then_some(value.as_str())
    }

    fn xds_root(&self) -> Result<RootSource, SecurityError> {
        if let Some(root) = explicit_root(&self.environment.text("XDS_ROOT_CA")) {
            return Ok(root);
        }
        let legacy = self.directory.join(LEGACY_ROOT);
        if legacy.exists() {
            return Ok(RootSource::File(legacy));
        }
        if let Some(root) = self.provisioned_root() {
            return Ok(root);
        }
        if self.environment.boolean("FILE_MOUNTED_CERTS", false)
            && let Some(file) = self.proxy_metadata("ISTIO_META_TLS_CLIENT_ROOT_CERT")
        {
            return Ok(RootSource::File(PathBuf::from(file)));
        }
        self.istiod_root("XDS")
    }

    fn ca_root(&self) -> Result<RootSource, SecurityError> {
        if let Some(root) = explicit_root(&self.environment.text("CA_ROOT_CA")) {
            return Ok(root);
        }
        if self.environment.text("PILOT_CERT_PROVIDER") == "custom" {
            return Ok(RootSource::File(self.directory.join(LEGACY_ROOT)));
        }
        if let Some(root) = self.provisioned_root() {
            return Ok(root);
        }
        self.istiod_root("CA")
    }

    fn provisioned_root(&self) -> Option<RootSource> {
        let folder = self.environment.text("PROV_CERT");
        let file = || RootSource::File(Path::new(&folder).join("root-cert.pem"));
        (!folder.is_empty()).then(file)
    }

    fn istiod_root(&self, peer: &'static str) -> Result<RootSource, SecurityError> {
        if self.environment.text("PILOT_CERT_PROVIDER") == "none" {
            return Err(SecurityError::NoRoot(peer));
        }
        Ok(RootSource::File(self.directory.join(ISTIOD_ROOT)))
    }
}

/// `HTTPS_PROXY` and `NO_PROXY` in either spelling; upper case wins.
pub(super) fn proxy_variables(environment: &Environment) -> (String, String) {
    let either = |upper: &str, lower: &str| {
        let text = environment.text(upper);
        if text.is_empty() {
            environment.text(lower)
        } else {
            text
        }
    };
    (
        either("HTTPS_PROXY", "https_proxy"),
        either("NO_PROXY", "no_proxy"),
    )
}

fn explicit_root(text: &str) -> Option<RootSource> {
    match text {
        "" => None,
        "SYSTEM" => Some(RootSource::System),
        file => Some(RootSource::File(PathBuf::from(file))),
    }
}

/// True if both names lead to the same directory, whether or not it exists.
fn same_directory(one: &Path, other: &Path) -> bool {
    let resolved = |path: &Path| {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        path.canonicalize().unwrap_or(absolute)
    };
    resolved(one) == resolved(other)
}

#[cfg(test)]
mod identity_tests;
#[cfg(test)]
mod tests;
