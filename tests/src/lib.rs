//! What tests and benchmarks share.

pub mod gpu;
pub mod random;
