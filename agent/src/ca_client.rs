//! `IstioCertificateService/CreateCertificate`: one certificate per call, with bounded retries.
//! Returns only what passed the checks of `check_chain`; never keeps a connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use outrigger_xds::grpc::{ClientOptions, Connection, GrpcError, code_name};
use prost::Message;
use rand::RngExt;
use tonic::Code;

use crate::credential::{CredentialError, RequestMetadata};
use crate::istiod::{ConnectError, IstiodConnector};
use crate::secret_manager::Clock;

mod check;

pub use check::{ChainError, CheckedChain, check_chain};

const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Tries of one call.
const ATTEMPTS: u32 = 5;
/// Wait before the second try; doubles, ±10 %.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest answer, bytes: the limit of gRPC's own clients. A chain takes a few kilobytes.
const MAX_ANSWER: usize = 4 << 20;

/// `IstioCertificateRequest`.
#[derive(Clone, PartialEq, Message)]
struct CertificateRequest {
    #[prost(string, tag = "1")]
    csr: String,
    #[prost(int64, tag = "3")]
    validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    metadata: Option<MetadataStruct>,
}

/// `google.protobuf.Struct`, with string values only.
#[derive(Clone, PartialEq, Message)]
struct MetadataStruct {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, MetadataValue>,
}

/// `google.protobuf.Value` with `string_value`; presence matters even if it is empty.
#[derive(Clone, PartialEq, Message)]
struct MetadataValue {
    #[prost(string, optional, tag = "3")]
    string_value: Option<String>,
}

/// `IstioCertificateResponse`.
#[derive(Clone, PartialEq, Message)]
struct CertificateResponse {
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}

/// Settings of a [`CaClient`].
#[derive(Debug, Clone)]
pub struct CaConfig {
    /// The CA (`CA_ADDR`, default: the discovery address).
    pub endpoint: IstiodConnector,
    /// Token, cluster id, `CA_HEADER_*`.
    pub metadata: RequestMetadata,
    /// `ISTIO_META_CERT_SIGNER`; sent even if empty.
    pub cert_signer: String,
    /// `SECRET_TTL`, default 24 h.
    pub ttl: Duration,
    /// Deadline of one try, connecting included; default 10 s.
    pub try_timeout: Duration,
    /// Time for validity and waits.
    pub clock: Arc<dyn Clock>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// No token, where one is a must.
    #[error("create certificate: {0}")]
    Credential(#[from] CredentialError),
    /// The CA cannot be reached.
    #[error("CA {0}")]
    Connect(#[from] ConnectError),
    /// The CA refused, or the call broke.
    #[error("create certificate: {0}")]
    Call(#[from] GrpcError),
    /// No answer within the deadline of a try.
    #[error("create certificate: no answer within {0:?}")]
    Timeout(Duration),
    /// The answer is no `IstioCertificateResponse`.
    #[error("create certificate: undecodable response: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The answer holds certificates that must not be used.
    #[error("create certificate: {0}")]
    Chain(#[from] ChainError),
}

impl CaError {
    /// True if another try may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Timeout(_) | Self::Credential(_) => true,
            Self::Call(error) => matches!(
                error.status().code(),
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::ResourceExhausted
                    | Code::Aborted
                    | Code::Internal
                    | Code::Unavailable
            ),
            Self::Decode(_) | Self::Chain(_) => false,
        }
    }

    /// gRPC code name for logs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Call(error) => code_name(error.status().code()),
            Self::Connect(_) => "UNAVAILABLE",
            Self::Credential(_) => "UNAUTHENTICATED",
            Self::Timeout(_) => "DEADLINE_EXCEEDED",
            Self::Decode(_) | Self::Chain(_) => "INTERNAL",
        }
    }
}

/// Counters with the label `request_type=csr`.
#[derive(Debug, Default)]
pub struct CaMetrics {
    /// `outgoing_latency`: sum of milliseconds.
    pub latency_ms: AtomicU64,
    /// `num_outgoing_requests`: calls (not tries).
    pub requests: AtomicU64,
    /// `num_failed_outgoing_requests`.
    pub failed: AtomicU64,
    /// `num_outgoing_retries`.
    pub retries: AtomicU64,
}

/// Client of the CA.
#[derive(Debug)]
pub struct CaClient {
    config: CaConfig,
    metrics: CaMetrics,
}

impl CaClient {
    /// A client; connects with each call.
    #[must_use]
    pub fn new(config: CaConfig) -> Self {
        Self {
            config,
            metrics: CaMetrics::default(),
        }
    }

    /// Counters.
    #[must_use]
    pub const fn metrics(&self) -> &CaMetrics {
        &self.metrics
    }

    /// The validity that is asked for.
    #[must_use]
    pub const fn ttl(&self) -> Duration {
        self.config.ttl
    }

    /// Has `csr_pem` signed. `public_key` are the bits of the key in the CSR: the leaf must carry
    /// them. Up to five tries with waits of at most `longest_wait`, each on a new connection with
    /// the token and roots read anew.
    ///
    /// # Errors
    /// The error of the last try.
    pub async fn create_certificate(
        &self,
        csr_pem: &str,
        public_key: &[u8],
        longest_wait: Duration,
    ) -> Result<CheckedChain, CaError> {
        let started = Instant::now();
        self.metrics.requests.fetch_add(1, Ordering::Relaxed);
        let result = self.retry(csr_pem, public_key, longest_wait).await;
        let elapsed = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.metrics
            .latency_ms
            .fetch_add(elapsed, Ordering::Relaxed);
        if result.is_err() {
            self.metrics.failed.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    async fn retry(
        &self,
        csr_pem: &str,
        public_key: &[u8],
        longest_wait: Duration,
    ) -> Result<CheckedChain, CaError> {
        let mut attempt = 1;
        loop {
            let (sent, result) = match self.config.metadata.headers().await {
                Ok(headers) => {
                    let token = headers.get(AUTHORIZATION).cloned();
                    (token, self.try_once(csr_pem, headers).await)
                }
                Err(error) => (None, Err(error.into())),
            };
            let now = self.config.clock.now();
            let error = match result
                .and_then(|chain| check_chain(chain, public_key, now).map_err(CaError::from))
            {
                Ok(chain) => return Ok(chain),
                Err(error) => error,
            };
            // The kubelet may have replaced an expired token while it was under way; the same one
            // is not shown twice.
            let again = match &error {
                CaError::Call(call) if call.status().code() == Code::Unauthenticated => {
                    self.token().await != sent
                }
                other => other.is_transient(),
            };
            if attempt >= ATTEMPTS || !again {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "certificate request failed, trying again");
            self.metrics.retries.fetch_add(1, Ordering::Relaxed);
            let jitter = rand::rng().random_range(0.9..1.1);
            let wait = (FIRST_WAIT * (1 << (attempt - 1))).mul_f64(jitter);
            self.config.clock.sleep(wait.min(longest_wait)).await;
            attempt += 1;
        }
    }

    /// The `authorization` header as it would be sent now.
    async fn token(&self) -> Option<HeaderValue> {
        let headers = self.config.metadata.headers().await.ok()?;
        headers.get(AUTHORIZATION).cloned()
    }

    async fn try_once(&self, csr_pem: &str, headers: HeaderMap) -> Result<Vec<String>, CaError> {
        let limit = self.config.try_timeout;
        tokio::time::timeout(limit, self.exchange(csr_pem, headers))
            .await
            .map_err(|_| CaError::Timeout(limit))?
    }

    async fn exchange(&self, csr_pem: &str, headers: HeaderMap) -> Result<Vec<String>, CaError> {
        let endpoint = &self.config.endpoint;
        let stream = endpoint.open().await?;
        let options = ClientOptions {
            max_message: MAX_ANSWER,
            ..endpoint.options()
        };
        let mut connection = Connection::handshake(stream, options).await?;
        let signer = MetadataValue {
            string_value: Some(self.config.cert_signer.clone()),
        };
        let request = CertificateRequest {
            csr: csr_pem.to_owned(),
            validity_duration: i64::try_from(self.config.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(MetadataStruct {
                fields: BTreeMap::from([("CertSigner".to_owned(), signer)]),
            }),
        };
        let message = Bytes::from(request.encode_to_vec());
        let answer = connection.unary(METHOD, &headers, message).await?;
        Ok(CertificateResponse::decode(answer)?.cert_chain)
    }
}
