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
use crate::ca::{Authority, CaError, Identity, KeyKind};

/// Serves `default` and `ROOTCA` to whoever connects.
#[derive(Debug, Clone)]
pub struct Sds {
    inner: Ads,
}

fn inline(pem: String) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::InlineBytes(pem.into_bytes())),
        ..Default::default()
    })
}

/// A certificate and the CA by which its peers are checked, under the names a configuration gives them.
fn pair(authority: &Authority, identity: Identity, names: [&str; 2]) -> [Resource; 2] {
    let certificate = TlsCertificate {
        certificate_chain: inline(identity.chain_pem),
        private_key: inline(identity.key_pem),
        ..Default::default()
    };
    let trust = CertificateValidationContext {
        trusted_ca: inline(authority.root_pem()),
        ..Default::default()
    };
    let secret = |name: &str, kind| {
        let message = Secret {
            name: name.to_owned(),
            r#type: Some(kind),
        };
        Resource::new(name, SECRET, &message)
    };
    [
        secret(names[0], secret::Type::TlsCertificate(certificate)),
        secret(names[1], secret::Type::ValidationContext(trust)),
    ]
}

/// The two secrets of one workload, named as istiod's configuration names them.
pub fn secrets(authority: &Authority, spiffe: &str) -> Result<Snapshot, CaError> {
    let identity = authority.workload(spiffe, KeyKind::Rsa2048, Duration::from_secs(24 * 3600))?;
    let mut snapshot = Snapshot::default();
    for resource in pair(authority, identity, ["default", "ROOTCA"]) {
        snapshot.insert(resource);
    }
    Ok(snapshot)
}

/// What a gateway's `credentialName` stands for: `kubernetes://NAME` and `kubernetes://NAME-cacert`, which
/// istiod sends over ADS. The certificate is for `hosts` and new with each call.
pub fn credential(
    authority: &Authority,
    name: &str,
    hosts: &[&str],
) -> Result<[Resource; 2], CaError> {
    let name = format!("kubernetes://{name}");
    let names = [&name, &*format!("{name}-cacert")];
    Ok(pair(authority, authority.server(hosts)?, names))
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
