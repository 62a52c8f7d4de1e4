//! tcp_proxy: relays bytes between a downstream connection and a cluster.
