//! HTTP/1: head parser, body decoder, encoder, and the two connection roles. The codec is our own because the
//! answers and log lines of malformed requests must be Envoy's, and because the head is the hot path.

pub mod body;
pub mod client;
pub mod encode;
pub mod io;
pub mod parse;
pub mod server;
