//! Upstream connections of one worker.

/// Pools of one worker.
#[derive(Debug, Default)]
pub struct Pools {}
