//! The native nftables backend: transaction text, expressions, netlink batch, apply and verify.

pub mod plan;
pub mod text;
