//! Identity, drain, logging in Istio's format, exit codes.
