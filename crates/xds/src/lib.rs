//! xDS protocol: client sessions without IO or clock, and the gRPC transport that carries them.
//! Knows names, versions and nonces; never looks into the contents of a resource.

pub mod grpc;
pub mod session;
pub mod transport;
pub mod type_url;
pub mod wire;

/// Generated protobuf types of Envoy's API, as the transport's users encode them.
pub use envoy_types::pb;
pub use session::{Protocol, Request, Resource, Session, SessionError, Update, UpdateId};
pub use transport::{
    AdsClient, AdsHandle, Backoff, ClientConfig, Connector, DisconnectReason, Event, Service,
    TcpConnector, UdsConnector,
};
