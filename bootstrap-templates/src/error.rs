//! Refusals and warnings of this crate. Every one names the field, annotation or metadata key it
//! is about, in the spelling a user would have typed it.

/// What is wrong with the value of one field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldProblem {
    /// The JSON value has another type than the field.
    #[error("expected {expected}, got {got}")]
    WrongType {
        /// What the field holds.
        expected: &'static str,
        /// The JSON type that was found.
        got: &'static str,
    },
    /// A number outside of the field's range.
    #[error("{0} is out of range")]
    OutOfRange(String),
    /// Neither a protobuf JSON duration such as `1.5s` nor one of Go such as `1m30s`, or negative.
    #[error("{0:?} is not a duration such as \"45s\" or \"1m30s\"")]
    BadDuration(String),
    /// Not a value of the enumeration.
    #[error("{0:?} is not a known value")]
    UnknownEnumValue(String),
    /// Not `host:port`.
    #[error("{0:?} is not an address of the form host:port")]
    BadAddress(String),
    /// The field must be set and is not.
    #[error("must be set")]
    Required,
    /// The value is legal for Istio but this product does not implement it.
    #[error("is not supported{0}")]
    Unsupported(&'static str),
    /// The value must hold JSON and does not parse.
    #[error("is not valid JSON: {0}")]
    BadJson(String),
}

/// One refused field: where it is and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct FieldError {
    /// Path in JSON spelling, e.g. `tracing.zipkin.address`, or the name of a metadata variable.
    pub path: String,
    /// The reason.
    pub problem: FieldProblem,
}

impl FieldError {
    /// A refusal of `path`.
    pub fn new(path: impl Into<String>, problem: FieldProblem) -> Self {
        Self {
            path: path.into(),
            problem,
        }
    }
}

/// A setting that was understood as wrong but must not stop the proxy; the caller logs it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// A field no version known here has; the reference ignores it too.
    #[error("unknown field {0} is ignored")]
    UnknownField(String),
    /// Two members of one `oneof` are set.
    #[error("{field} is ignored: {by} is set as well")]
    Overruled {
        /// Path of the one that does not count.
        field: String,
        /// Protobuf name of the one that does.
        by: &'static str,
    },
    /// A metadata boolean that is not a Go boolean; it counts as unset.
    #[error("{key}: {value:?} is not a boolean, ignored")]
    BadBoolean {
        /// Metadata key.
        key: &'static str,
        /// The text found.
        value: String,
    },
    /// `ISTIO_METAJSON_*` that is not a JSON object.
    #[error("{variable} is not a JSON object, ignored: {reason}")]
    BadMetaJson {
        /// Environment variable.
        variable: String,
        /// Parser message.
        reason: String,
    },
    /// An annotation whose value cannot be used.
    #[error("annotation {annotation} is ignored: {reason}")]
    BadAnnotation {
        /// Annotation name.
        annotation: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Metadata discovery needs delta xDS.
    #[error("metadata discovery is off: it is not supported with ISTIO_DELTA_XDS=false")]
    MetadataDiscoveryNeedsDelta,
    /// A tracer for which the bootstrap has no representation (istiod configures it instead).
    #[error("{0} has no effect on the bootstrap")]
    TracerWithoutBootstrap(&'static str),
}
