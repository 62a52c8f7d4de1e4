//! Protobuf: Envoy's API, Istio's few messages, proto3 JSON both ways.
