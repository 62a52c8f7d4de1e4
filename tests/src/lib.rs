//! Support for tests and the demo: control plane, CA, applications, pods.
