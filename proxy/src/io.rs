//! Sockets and byte streams.

pub mod copy;
pub mod socket;
mod splice;
pub mod stream;
