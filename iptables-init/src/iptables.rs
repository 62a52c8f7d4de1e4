//! The iptables backend: restore text, binary choice, state comparison, apply and clean up.

pub mod text;
