//! Acceptance of the mesh: injected pods with real rules, agents and proxies in namespaces of their
//! own, against the embedded control plane and recorded configuration.
//!
//! Each test has a lab of its own. Skipped, with the reason, without root, fixtures or products.

#[path = "mesh/bench.rs"]
mod bench;
#[path = "mesh/dns.rs"]
mod dns;
#[path = "mesh/faults.rs"]
mod faults;
#[path = "mesh/gateway.rs"]
mod gateway;
#[path = "mesh/injected.rs"]
mod injected;
#[path = "mesh/interception.rs"]
mod interception;
#[path = "mesh/lifecycle.rs"]
mod lifecycle;
#[path = "mesh/protocols.rs"]
mod protocols;
#[path = "mesh/security.rs"]
mod security;
#[path = "mesh/xds.rs"]
mod xds;
