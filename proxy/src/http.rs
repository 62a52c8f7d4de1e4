//! HTTP: codecs, connection manager, filters, routing, local replies.

pub mod conn_manager;
pub mod headers;
pub mod route;
