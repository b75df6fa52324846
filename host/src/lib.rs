//! SageAttention in pure Rust.
pub(crate) mod cpu;
pub mod element;
pub mod options;
pub(crate) mod plan;
pub mod tensor;
#[doc(hidden)]
pub mod testing;
pub use element::Element;
pub use options::*;
pub use tensor::*;
