//! xDS streams over the static clusters of the bootstrap.

use std::sync::Arc;

use outrigger_config::address::Address;
use outrigger_config::bootstrap::{AdsConfig, Bootstrap};
use outrigger_config::cluster::{Discovery, TransportSocket};
use outrigger_xds::{
    AdsClient, AdsHandle, ClientConfig, Event, Protocol, Service, Session, TcpConnector,
    UdsConnector,
};
use tokio::sync::mpsc;

use crate::control::engine::OpenSds;
use crate::control::subscription::Xds;

/// Events of every SDS stream with the cluster they came over.
pub type SdsEvents = mpsc::Receiver<(Arc<str>, Event)>;

/// Opens the ADS stream.
///
/// # Errors
/// When the cluster is not one a stream can be opened over.
pub fn open_ads(
    bootstrap: &Bootstrap,
    config: &AdsConfig,
) -> Result<(AdsHandle, mpsc::Receiver<Event>), String> {
    let protocol = if config.delta {
        Protocol::Delta
    } else {
        Protocol::Sotw
    };
    open(bootstrap, &config.cluster, Service::Ads, protocol)
}

/// What the engine opens SDS streams with.
pub fn open_sds(bootstrap: &Bootstrap, events: mpsc::Sender<(Arc<str>, Event)>) -> OpenSds {
    let bootstrap = bootstrap.clone();
    Box::new(move |cluster| {
        let opened = open(&bootstrap, cluster, Service::Sds, Protocol::Sotw);
        let (handle, mut stream) = match opened {
            Ok(opened) => opened,
            Err(reason) => {
                tracing::error!(target: "secret", "{reason}");
                return None;
            }
        };
        let (cluster, events) = (Arc::clone(cluster), events.clone());
        tokio::task::spawn_local(async move {
            while let Some(event) = stream.recv().await {
                if events.send((Arc::clone(&cluster), event)).await.is_err() {
                    return;
                }
            }
        });
        Some(Box::new(handle) as Box<dyn Xds>)
    })
}

fn open(
    bootstrap: &Bootstrap,
    cluster: &Arc<str>,
    service: Service,
    protocol: Protocol,
) -> Result<(AdsHandle, mpsc::Receiver<Event>), String> {
    let refuse = |reason: &str| format!("cluster '{cluster}' for xDS: {reason}");
    let config = bootstrap
        .clusters
        .iter()
        .find(|c| c.name == *cluster)
        .ok_or_else(|| refuse("is not a static cluster"))?;
    if !matches!(config.transport_socket, TransportSocket::RawBuffer) {
        return Err(refuse("a transport socket is not supported on xDS streams"));
    }
    let Discovery::Static(assignment) = &config.discovery else {
        return Err(refuse("only type STATIC is supported"));
    };
    let endpoint = assignment
        .localities
        .iter()
        .flat_map(|l| &l.endpoints)
        .next();
    let client = ClientConfig::new(service, bootstrap.node.clone());
    let session = Session::new(protocol);
    match endpoint.map(|e| &e.address) {
        Some(Address::Pipe(path)) => Ok(AdsClient::spawn(
            UdsConnector((&**path).into()),
            session,
            client,
        )),
        Some(Address::Ip(address)) => Ok(AdsClient::spawn(TcpConnector(*address), session, client)),
        Some(Address::Dns { .. }) | None => Err(refuse("has no literal endpoint")),
    }
}
