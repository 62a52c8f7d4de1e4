//! Validated model of the data-plane configuration.
