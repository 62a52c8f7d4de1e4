//! xDS protocol sessions without IO or clock, and their gRPC transport.
