//! xDS to runtime objects: the published tables, and what applies updates to them. Everything but `store`
//! lives on the control thread.

pub mod depends;
pub mod dns;
pub mod engine;
pub mod lifecycle;
pub mod registry;
pub mod store;
pub mod subscription;
