//! The CA's side of `CreateCertificate` and the manager under test.

#![allow(dead_code, reason = "shared by test targets that use different parts")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pilot_agent::ca_client::{CaClient, CaConfig};
use pilot_agent::credential::{CredentialSource, RequestMetadata};
use pilot_agent::secret_manager::{Clock, SystemClock};
use prost::Message;
use tonic::Status;

use super::control_plane::{Call, connector};
use super::pki::Authority;

/// `IstioCertificateRequest`, the fields a CA reads.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CertificateRequest {
    #[prost(string, tag = "1")]
    pub(crate) csr: String,
    #[prost(int64, tag = "3")]
    pub(crate) validity_duration: i64,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) metadata: Vec<u8>,
}

/// `IstioCertificateResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CertificateResponse {
    #[prost(string, repeated, tag = "1")]
    pub(crate) cert_chain: Vec<String>,
}

pub(crate) async fn read_request(call: &mut Call) -> CertificateRequest {
    assert_eq!(
        call.path,
        "/istio.v1.auth.IstioCertificateService/CreateCertificate"
    );
    let message = call.request().await.expect("a request");
    CertificateRequest::decode(message).expect("IstioCertificateRequest")
}

pub(crate) async fn answer(call: Call, chain: Vec<String>) {
    call.send(CertificateResponse { cert_chain: chain }.encode_to_vec())
        .await;
    call.end(Status::ok(""));
}

/// Answers a client that may hang up meanwhile.
pub(crate) async fn try_answer(call: Call, chain: Vec<String>) {
    call.try_send(CertificateResponse { cert_chain: chain }.encode_to_vec())
        .await;
}

/// Answers properly, with a certificate of `seconds`.
pub(crate) async fn issue(mut call: Call, authority: &Authority, seconds: i64) {
    let request = read_request(&mut call).await;
    let leaf = authority.sign(&request.csr, seconds);
    answer(call, vec![leaf, authority.root_pem.clone()]).await;
}

pub(crate) fn ca_client(
    address: std::net::SocketAddr,
    root: Option<&Path>,
    token: &Path,
) -> Arc<CaClient> {
    let day = Duration::from_secs(86_400);
    ca_client_with(address, root, token, day, Arc::new(SystemClock))
}

pub(crate) fn ca_client_with(
    address: std::net::SocketAddr,
    root: Option<&Path>,
    token: &Path,
    ttl: Duration,
    clock: Arc<dyn Clock>,
) -> Arc<CaClient> {
    Arc::new(CaClient::new(CaConfig {
        endpoint: connector(address, root),
        metadata: RequestMetadata {
            credential: CredentialSource::JwtFile(token.to_owned()),
            cluster_id: "Kubernetes".to_owned(),
            headers: Vec::new(),
        },
        cert_signer: String::new(),
        ttl,
        try_timeout: Duration::from_secs(10),
        clock,
    }))
}
