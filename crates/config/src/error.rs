//! Refusals and ignored fields, both with the protobuf field path.

/// Why a resource was refused. Its text is the detail of the NACK.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct ConfigError {
    /// Field path in proto syntax, e.g. `filter_chains[2].transport_socket.typed_config.common_tls_context`.
    pub path: String,
    /// What is wrong, in Envoy's words where Envoy has words for it.
    pub reason: String,
}

/// A field or filter that was accepted but is not acted upon.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ignored {
    /// Field path in proto syntax.
    pub path: String,
    /// Name of the extension or field, e.g. `istio.stats`.
    pub name: String,
    /// Why skipping it weakens nothing and changes no answer.
    pub reason: &'static str,
}

/// A parsed resource and what of it is not acted upon.
#[derive(Debug, Clone)]
pub struct Parsed<T> {
    /// The validated value.
    pub value: T,
    /// Accepted but not acted upon.
    pub ignored: Vec<Ignored>,
}
