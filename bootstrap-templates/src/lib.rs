//! Injected environment to Envoy bootstrap and gRPC bootstrap.
