//! Supervisor of the proxy: xDS proxy, SDS, CA client, status.

pub mod ca_client;
pub mod credential;
pub mod istiod;
pub mod resolver;
pub mod sds;
pub mod secret_manager;
pub mod uds;
pub mod xds_proxy;
