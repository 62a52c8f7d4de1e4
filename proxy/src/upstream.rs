//! Upstreams: clusters and hosts, balancing, pools, connecting, outlier detection.

pub mod cluster;
pub mod connect;
pub mod host;
pub mod load_balancer;
pub mod outlier;
pub mod pool;
pub mod stats;
