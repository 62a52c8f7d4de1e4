//! Support for tests and the demo: control plane, CA, applications, pods, Envoy as oracle.
//!
//! The product never depends on this crate. It may use root and network namespaces, but only ones it
//! made itself, and it ends only processes it started.

pub mod apps;
pub mod ca;
pub mod capture;
pub mod cli;
pub mod demo;
pub mod dns;
pub mod fixtures;
pub mod istiod;
pub mod mask;
pub mod netns;
pub mod oracle;
pub mod pod;
pub mod probe;
pub mod startup;
