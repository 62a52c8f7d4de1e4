//! Listeners: accept, inspect, choose the filter chain, serve, drain.

pub mod drain;
