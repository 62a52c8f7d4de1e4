//! HTTP: codecs, connection manager, filters, routing, local replies.

pub mod conn_manager;
pub mod date;
pub mod downstream;
pub mod filters;
pub mod h1;
pub mod h2;
pub mod hash;
pub mod headers;
pub mod local_reply;
pub mod mirror;
pub mod mutate;
pub mod path;
pub mod redirect;
pub mod request;
pub mod retry;
pub mod route;
pub mod router;
pub mod stats;
pub mod stream;
pub mod timeouts;
pub mod trace_context;
pub mod upstream;
pub mod xfcc;
