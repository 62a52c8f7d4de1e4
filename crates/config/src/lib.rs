//! Validated model of the data-plane configuration: raw xDS resource in, typed and checked value out,
//! every refusal with the protobuf field path. No sockets, no runtime, no TLS library here.
//!
//! The types say what the proxy acts upon; what a resource carries beyond them is either refused or listed
//! as [`Ignored`] with the reason why skipping it changes neither security nor an answer.

pub mod access_log;
pub mod address;
pub mod bootstrap;
pub mod cluster;
pub mod error;
pub mod format;
pub mod http;
pub mod listener;
pub mod matcher;
mod parse;
pub mod route;
pub mod tls;

pub use error::{ConfigError, Ignored, Parsed};
pub use parse::{
    parse_bootstrap, parse_cluster, parse_listener, parse_load_assignment,
    parse_route_configuration, parse_secret,
};
