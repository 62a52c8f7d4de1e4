//! Admin interface.
