//! The program and its engine in real network namespaces: what it writes, what a failure leaves,
//! what a clean-up leaves, what connections notice. Needs root and `ip`; a test that needs more
//! says so when it skips.

mod cleanup;
mod contract;
mod lab;
mod load;
mod modes;
mod pod_security;
mod program;
mod property;
mod rollback;
#[path = "../golden/rows.rs"]
mod rows;
mod validation;
