//! What both binaries share: SPIFFE identity, the drain signal,
//! logging in Istio's and in Envoy's format, exit codes, time texts.

pub mod drain;
pub mod exit;
pub mod identity;
pub mod log;
pub mod time;
