//! What the tests share: random tensors, real tensors, measures of error.

pub mod data;
pub mod error;
pub mod tensor;
