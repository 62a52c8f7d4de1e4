//! Listeners: accept, inspect, choose the filter chain, serve, drain.

pub mod acceptor;
pub mod drain;
pub mod filter_chain;
pub mod http_first_line;
pub mod inspect;
pub mod manager;
pub mod proxy_protocol;
pub mod runtime;
pub mod tls_hello;
