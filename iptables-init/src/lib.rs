//! Traffic redirection rules: one pure model (`rules`), rendered as iptables-restore text
//! (`iptables`), nft transaction text and netlink messages (`nft`), applied with verification and
//! rollback (`run`), explained for one packet (`explain`). Never writes anything that the model did not produce.

pub mod cli;
pub mod cni;
pub mod config;
pub mod dry_run;
pub mod engine;
pub mod explain;
pub mod host;
pub mod iptables;
pub mod log;
pub mod namespace;
pub mod nft;
pub mod report;
pub mod routes;
pub mod rules;
pub mod run;
pub mod validate;
pub mod values;

pub use run::main_with_args;
