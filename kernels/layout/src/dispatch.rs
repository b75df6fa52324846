//! Which GPU is which.

/// What CUDA calls a GPU's generation: 8.0 for A100, 8.9 for Ada, 9.0 for Hopper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ComputeCapability {
    /// The number before the point.
    pub major: u32,
    /// The number behind it.
    pub minor: u32,
}
