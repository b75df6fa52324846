//! SageAttention in pure Rust.
pub mod attention;
pub(crate) mod cpu;
pub mod device;
pub mod element;
pub mod error;
pub mod gpu;
pub mod options;
pub mod plan;
pub mod tensor;
pub(crate) mod workspace;

pub use attention::{AttentionOutput, attention};
pub use device::Device;
pub use element::Element;
pub use error::{Error, Unsupported};
pub use gpu::{Gpu, GpuBuffers, GpuInfo, PreparedPlan, devices};
pub use options::*;
pub use plan::{AttentionPlan, supports};
pub use tensor::*;
