//! What both binaries share: SPIFFE identity, the drain signal,
//! logging in Istio's and in Envoy's format, exit codes, time texts, memory of the start.

pub mod drain;
pub mod exit;
pub mod identity;
pub mod log;
pub mod memory;
pub mod time;
