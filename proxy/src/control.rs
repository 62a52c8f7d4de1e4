//! xDS to runtime objects: the published tables, and what applies updates to them.

pub mod store;
