//! TLS: contexts from configuration and secrets, peer verification.

pub mod context;
pub mod secret;
