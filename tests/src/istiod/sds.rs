//! The workload's secrets over SDS, for a proxy that runs without an agent.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use hyper::body::Incoming;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;

use super::ads::Ads;
use super::snapshot::{Resource, SECRET, Snapshot};
use crate::ca::{Authority, CaError, KeyKind};

/// Serves `default` and `ROOTCA` to whoever connects.
#[derive(Debug, Clone)]
pub struct Sds {
    inner: Ads,
}

fn inline(text: String) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::InlineString(text)),
        ..Default::default()
    })
}

/// The two secrets of one workload, named as istiod's configuration names them.
pub fn secrets(authority: &Authority, spiffe: &str) -> Result<Snapshot, CaError> {
    let identity = authority.workload(spiffe, KeyKind::Rsa2048, Duration::from_secs(24 * 3600))?;
    let mut snapshot = Snapshot::default();
    let certificate = TlsCertificate {
        certificate_chain: inline(identity.chain_pem),
        private_key: inline(identity.key_pem),
        ..Default::default()
    };
    let trust = CertificateValidationContext {
        trusted_ca: inline(authority.root_pem()),
        ..Default::default()
    };
    for (name, kind) in [
        ("default", secret::Type::TlsCertificate(certificate)),
        ("ROOTCA", secret::Type::ValidationContext(trust)),
    ] {
        let message = Secret {
            name: name.to_owned(),
            r#type: Some(kind),
        };
        snapshot.insert(Resource::new(name, SECRET, &message));
    }
    Ok(snapshot)
}

impl Sds {
    /// Issues the workload's certificate once and serves it.
    pub fn new(authority: Arc<Authority>, spiffe: &str) -> Result<Self, CaError> {
        let inner = Ads::default();
        inner.set_default(secrets(&authority, spiffe)?);
        Ok(Self { inner })
    }

    pub(super) async fn call(&self, request: http::Request<Incoming>) -> http::Response<Body> {
        let mut server = SecretDiscoveryServiceServer::new(self.clone());
        server
            .call(request)
            .await
            .unwrap_or_else(|never| match never {})
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Answers<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Ok(Response::new(self.inner.delta(request.into_inner())))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Ok(Response::new(self.inner.sotw(request.into_inner())))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("streams only"))
    }
}
