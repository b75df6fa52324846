//! SageAttention in pure Rust.
pub mod element;
pub mod options;
pub(crate) mod plan;
pub mod tensor;
pub use element::Element;
pub use options::*;
pub use tensor::*;
