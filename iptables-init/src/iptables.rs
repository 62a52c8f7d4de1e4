//! The iptables backend: restore text, binary choice, state comparison, apply and clean up.

pub mod apply;
pub mod detect;
pub mod legacy;
pub mod state;
pub mod text;
