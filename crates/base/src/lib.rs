//! What both binaries share: SPIFFE identity, logging in Istio's and in Envoy's format, exit codes, time texts.

pub mod exit;
pub mod identity;
pub mod log;
pub mod time;
