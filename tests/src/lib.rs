//! What the tests share: random tensors, measures of error, runs on the GPU.

pub mod error;
pub mod gpu;
pub mod tensor;
