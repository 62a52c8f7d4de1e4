//! The agent beside the proxy: command line (`cli`), settings (`options`), supervision
//! (`supervisor`), status and metrics (`status`, `metrics`), diagnosis (`doctor`), the way to istiod
//! (`xds_proxy`, `sds`, `secret_manager`, `ca_client`), and the mesh's names (`dns`). [`start`] wires
//! them; it is the start-up sequence.

pub mod bootstrap;
pub mod ca_client;
pub mod cli;
pub mod credential;
pub mod dns;
pub mod doctor;
mod files;
pub mod health;
pub mod istiod;
pub mod log;
pub mod metrics;
pub mod options;
pub mod platform;
mod probing;
pub mod request;
pub mod resolver;
pub mod sds;
pub mod secret_manager;
pub mod start;
pub mod status;
pub mod supervisor;
pub mod uds;
pub mod wait;
pub mod wasm;
pub mod xds_proxy;
