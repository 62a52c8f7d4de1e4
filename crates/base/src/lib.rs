//! What products on every level share: the calendar, and memory that only the start needed.

pub mod memory;
pub mod time;
