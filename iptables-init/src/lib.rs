//! Traffic redirection rules: one pure model (`rules`), rendered as iptables-restore text
//! (`iptables`), nft transaction text, nftables JSON and netlink messages (`nft`), applied with
//! verification and rollback. Never writes anything that the model did not produce.

pub mod cli;
pub mod config;
pub mod host;
pub mod iptables;
pub mod nft;
pub mod rules;
pub mod values;
