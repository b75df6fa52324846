//! What the tests share: random tensors, real tensors, every mode, measures of error, runs on the GPU and in the SIMT executor.

pub mod cache;
pub mod codes;
pub mod data;
pub mod error;
pub mod gpu;
pub mod modes;
pub mod simt;
pub mod tensor;
pub mod varlen;
