//! Element types of host tensors.

use half::slice::HalfFloatSliceExt;

use crate::tensor::DType;

/// A 16-bit floating-point element: [`half::f16`] or [`half::bf16`].
pub trait Element: bytemuck::Pod + Send + Sync + private::Sealed {
    /// The type's name in an [`AttentionProblem`](crate::AttentionProblem).
    const DTYPE: DType;
    /// The element's value.
    fn to_f32(self) -> f32;
    /// The nearest element, ties to even.
    fn from_f32(value: f32) -> Self;
    /// The values of `source`, which is as long as `destination`.
    fn widen(source: &[Self], destination: &mut [f32]);
}

impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn widen(source: &[Self], destination: &mut [f32]) {
        source.convert_to_f32_slice(destination);
    }
}

impl Element for half::bf16 {
    const DTYPE: DType = DType::Bf16;
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn widen(source: &[Self], destination: &mut [f32]) {
        source.convert_to_f32_slice(destination);
    }
}

mod private {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}
