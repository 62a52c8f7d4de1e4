//! The lab's certificate authority: a plugged-in root and intermediate, and Istio's signing service.
//!
//! It answers `istio.v1.auth.IstioCertificateService/CreateCertificate` as istiod does. Never used by
//! the product: keys live in memory of the test process only.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::body::Body;
use tonic::{Request, Response, Status};

/// Path of the one method, as in gRPC.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Lifetime given when a request names none, and the longest one given.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);

/// What can go wrong while making keys or certificates.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Key generation, parsing or signing failed.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A subject name has characters that a certificate cannot carry.
    #[error("name {0:?} cannot be a URI or DNS name")]
    Name(String),
}

/// Key algorithm of a workload certificate made by the lab itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA 2048, what the agent makes by default.
    Rsa2048,
    /// ECDSA P-256.
    P256,
}

/// A certificate with its private key, PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Leaf first, then the intermediate.
    pub chain_pem: String,
    /// PKCS#8.
    pub key_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Identity {
    /// The chain in the form rustls takes.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    /// The key in the form rustls takes.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}

/// A root and an intermediate that signs.
pub struct Authority {
    root: Certificate,
    intermediate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

fn ca_params(name: &str, depth: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Istio");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    /// Makes a fresh root and intermediate (ECDSA P-256).
    pub fn new() -> Result<Self, CaError> {
        let root_key = KeyPair::generate()?;
        let root_params = ca_params("Root CA", 1);
        let root = root_params.self_signed(&root_key)?;
        let root_issuer = Issuer::new(root_params, root_key);
        let key = KeyPair::generate()?;
        let params = ca_params("Intermediate CA", 0);
        let intermediate = params.signed_by(&key, &root_issuer)?;
        Ok(Self {
            root,
            intermediate,
            issuer: Issuer::new(params, key),
        })
    }

    /// The root, PEM: what the pods trust.
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// The root, DER.
    pub fn root_der(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    /// Signs a request: subject and extensions come from the CA, only the public key from the CSR,
    /// as istiod does. Returns leaf, intermediate and root, each PEM.
    pub fn sign_csr(&self, csr: &str, spiffe: &str, ttl: Duration) -> Result<Vec<String>, CaError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr)?;
        request.params = leaf_params(vec![uri(spiffe)?], ttl);
        let leaf = request.signed_by(&self.issuer)?;
        Ok(vec![leaf.pem(), self.intermediate.pem(), self.root.pem()])
    }

    /// A workload certificate with a new key.
    pub fn workload(
        &self,
        spiffe: &str,
        kind: KeyKind,
        ttl: Duration,
    ) -> Result<Identity, CaError> {
        self.issue(leaf_params(vec![uri(spiffe)?], ttl), kind)
    }

    /// A server certificate for DNS names (istiod's own).
    pub fn server(&self, names: &[&str]) -> Result<Identity, CaError> {
        let sans = names
            .iter()
            .map(|n| dns(n))
            .collect::<Result<Vec<_>, _>>()?;
        self.issue(leaf_params(sans, DEFAULT_TTL), KeyKind::P256)
    }

    fn issue(&self, params: CertificateParams, kind: KeyKind) -> Result<Identity, CaError> {
        let key = match kind {
            KeyKind::P256 => KeyPair::generate()?,
            KeyKind::Rsa2048 => KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256)?,
        };
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            chain_pem: format!("{}{}", leaf.pem(), self.intermediate.pem()),
            key_pem: key.serialize_pem(),
            chain: vec![leaf.der().clone(), self.intermediate.der().clone()],
            key: key.serialize_der(),
        })
    }
}

fn uri(name: &str) -> Result<SanType, CaError> {
    let value = Ia5String::try_from(name).map_err(|_| CaError::Name(name.to_owned()))?;
    Ok(SanType::URI(value))
}

fn dns(name: &str) -> Result<SanType, CaError> {
    let value = Ia5String::try_from(name).map_err(|_| CaError::Name(name.to_owned()))?;
    Ok(SanType::DnsName(value))
}

fn leaf_params(sans: Vec<SanType>, ttl: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = sans;
    params.is_ca = IsCa::NoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let now = std::time::SystemTime::now();
    // Two minutes back: the allowance for clock skew that istiod gives.
    params.not_before = (now - Duration::from_secs(120)).into();
    params.not_after = (now + ttl).into();
    params
}

/// A service-account token as the lab's CA reads it: three dot-separated parts, no real signature.
pub fn token(namespace: &str, service_account: &str) -> String {
    let claims = serde_json::json!({
        "iss": "https://lab.local",
        "aud": ["istio-ca"],
        "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
        "iat": 1_700_000_000,
        "exp": 4_000_000_000_u64,
        "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": service_account}},
    });
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!(
        "{}.{}.{}",
        part(r#"{"alg":"none","typ":"JWT"}"#),
        part(&claims.to_string()),
        part("lab")
    )
}

/// The SPIFFE identity that a token of [`token`] stands for; `None` when it is not one.
pub fn identity_of(token: &str) -> Option<String> {
    let payload = token.split('.').nth(1)?;
    let bytes = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let mut parts = claims.get("sub")?.as_str()?.split(':');
    match (parts.next()?, parts.next()?, parts.next()?, parts.next()?) {
        ("system", "serviceaccount", ns, sa) => {
            Some(format!("spiffe://cluster.local/ns/{ns}/sa/{sa}"))
        }
        _ => None,
    }
}

/// `istio.v1.auth.IstioCertificateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateRequest {
    /// PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Seconds; 0 means the CA's default.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
}

/// `istio.v1.auth.IstioCertificateResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateResponse {
    /// PEM; leaf first, root last.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// One scripted misbehaviour, used up by one request.
#[derive(Debug, Clone)]
pub enum CaFault {
    /// Answer with this gRPC status.
    Fail(tonic::Code),
    /// Answer OK with text that is not a certificate.
    Garbage,
    /// Answer OK with an empty chain.
    Empty,
    /// Wait, then answer normally.
    Delay(Duration),
}

/// What one signing request was, for assertions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaCall {
    /// Identity of the token; `None` when it was refused.
    pub identity: Option<String>,
    /// Seconds asked for.
    pub validity_seconds: i64,
}

/// The gRPC service. Clones share the script and the record of calls.
#[derive(Debug, Clone)]
pub struct CaService {
    authority: Arc<Authority>,
    faults: Arc<Mutex<VecDeque<CaFault>>>,
    calls: Arc<Mutex<Vec<CaCall>>>,
    max_ttl: Arc<Mutex<Duration>>,
}

impl CaService {
    /// A service that signs with `authority`.
    pub fn new(authority: Arc<Authority>) -> Self {
        Self {
            authority,
            faults: Arc::default(),
            calls: Arc::default(),
            max_ttl: Arc::new(Mutex::new(DEFAULT_TTL)),
        }
    }

    /// Scripts the next requests, in order.
    pub fn script(&self, faults: impl IntoIterator<Item = CaFault>) {
        self.faults.lock().extend(faults);
    }

    /// Caps the lifetime of what is signed from now on (short lives force rotation in tests).
    pub fn limit_ttl(&self, ttl: Duration) {
        *self.max_ttl.lock() = ttl;
    }

    /// Every request so far.
    pub fn calls(&self) -> Vec<CaCall> {
        self.calls.lock().clone()
    }

    async fn create(
        &self,
        request: Request<CertificateRequest>,
    ) -> Result<Response<CertificateResponse>, Status> {
        let identity = request
            .metadata()
            .get("authorization")
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("Bearer "))
            .and_then(|t| identity_of(t.trim()));
        let message = request.into_inner();
        let call = CaCall {
            identity,
            validity_seconds: message.validity_duration,
        };
        self.calls.lock().push(call.clone());
        let fault = self.faults.lock().pop_front();
        match fault {
            Some(CaFault::Fail(code)) => return Err(Status::new(code, "scripted failure")),
            Some(CaFault::Garbage) => {
                let cert_chain = vec!["not a certificate".to_owned()];
                return Ok(Response::new(CertificateResponse { cert_chain }));
            }
            Some(CaFault::Empty) => return Ok(Response::new(CertificateResponse::default())),
            Some(CaFault::Delay(time)) => tokio::time::sleep(time).await,
            None => {}
        }
        let Some(identity) = call.identity else {
            return Err(Status::unauthenticated("request authenticate failure"));
        };
        let asked = u64::try_from(message.validity_duration).unwrap_or(0);
        let ttl = if asked == 0 {
            DEFAULT_TTL
        } else {
            Duration::from_secs(asked)
        };
        let ttl = ttl.min(*self.max_ttl.lock());
        let cert_chain = self
            .authority
            .sign_csr(&message.csr, &identity, ttl)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok(Response::new(CertificateResponse { cert_chain }))
    }

    /// Answers one HTTP/2 request on [`CREATE_CERTIFICATE`].
    pub async fn call<B>(&self, request: http::Request<B>) -> http::Response<Body>
    where
        B: http_body::Body + Send + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send,
    {
        let codec = tonic_prost::ProstCodec::default();
        tonic::server::Grpc::new(codec)
            .unary(Create(self.clone()), request)
            .await
    }
}

struct Create(CaService);

impl tower_service::Service<Request<CertificateRequest>> for Create {
    type Response = Response<CertificateResponse>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { service.create(request).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_the_identity_of_its_service_account() {
        let spiffe = identity_of(&token("sample", "sleep"));
        assert_eq!(
            spiffe.as_deref(),
            Some("spiffe://cluster.local/ns/sample/sa/sleep")
        );
        assert_eq!(identity_of("garbage"), None);
        assert_eq!(identity_of(""), None);
    }

    #[test]
    fn a_signed_request_carries_the_identity_of_the_ca_and_the_key_of_the_request() {
        let ca = Authority::new().expect("a CA");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri("spiffe://evil/ns/x/sa/y").expect("a URI")];
        let csr = params
            .serialize_request(&key)
            .expect("a CSR")
            .pem()
            .expect("PEM");
        let me = "spiffe://cluster.local/ns/sample/sa/sleep";
        let chain = ca.sign_csr(&csr, me, DEFAULT_TTL).expect("signed");
        assert_eq!(chain.len(), 3);
        let (_, pem) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).expect("PEM");
        let leaf = pem.parse_x509().expect("a certificate");
        let san = leaf
            .subject_alternative_name()
            .expect("parsed")
            .expect("present");
        let names: Vec<_> = san
            .value
            .general_names
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, [format!("URI({me})")]);
        assert_eq!(
            leaf.public_key().subject_public_key.data.as_ref(),
            key.public_key_raw()
        );
    }
}
