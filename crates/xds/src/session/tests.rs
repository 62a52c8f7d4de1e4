//! Message sequences.
