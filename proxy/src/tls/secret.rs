//! Secrets by name and source, swapped by pointer.

/// All secrets.
#[derive(Debug, Default)]
pub struct SecretStore {}
