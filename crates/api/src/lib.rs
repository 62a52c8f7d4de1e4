//! Protobuf: Envoy's API, Istio's few messages, proto3 JSON both ways.
//!
//! `envoy` re-exports the generated types of the `envoy-types` package; `json` converts between wire bytes and
//! JSON with a compact descriptor table instead of a reflection pool; `type_url` names the resources.

pub mod any;
pub mod json;
mod table;
pub mod type_url;

/// Generated types and gRPC stubs: Envoy's API below `envoy::envoy`, the others beside it.
pub use envoy_types::pb as envoy;
/// Google's well-known types.
pub use envoy_types::pb::google;
pub use type_url::message_name as type_name;
