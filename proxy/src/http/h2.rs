//! HTTP/2 on the `h2` crate: head conversion and the two roles.

pub mod client;
pub mod convert;
pub mod server;
