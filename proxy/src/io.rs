//! Sockets and byte streams.

pub mod copy;
pub mod socket;
pub mod stream;
