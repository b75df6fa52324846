//! How far a result is from the exact one.

pub use sageattention::testing::Accuracy;
