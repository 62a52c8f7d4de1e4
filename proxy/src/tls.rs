//! TLS: contexts from configuration and secrets, peer verification.

pub mod context;
pub mod crypto;
pub mod failure;
pub mod secret;
pub mod session;
pub mod stats;
pub mod verify;
pub mod x509;
