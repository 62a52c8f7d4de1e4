//! The data plane: an L4/L7 proxy driven by xDS, with Envoy's command line.
