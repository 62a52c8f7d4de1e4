//! The native nftables backend: transaction text, expressions, netlink batch, apply and verify.

pub mod apply;
pub mod compile;
pub mod expr;
pub mod message;
pub mod ours;
pub mod plan;
pub mod socket;
pub mod state;
pub mod text;
pub mod wire;
pub mod xtables;
