//! Protobuf: Envoy's API, Istio's few messages, proto3 JSON both ways.
//!
//! `envoy` re-exports the generated types of the `envoy-types` package; `json` converts between wire bytes and
//! JSON with a compact descriptor table instead of a reflection pool; `type_url` names the resources.

pub mod json;
mod table;
pub mod type_url;

/// Generated types and gRPC stubs of Envoy's API.
pub use envoy_types::pb as envoy;
