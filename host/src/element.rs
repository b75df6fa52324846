//! Element types of host tensors.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::tensor::DType;

/// A floating-point element: [`half::f16`], [`half::bf16`] or [`f32`].
pub trait Element: bytemuck::Pod + Send + Sync + private::Sealed {
    /// The type's name in an [`AttentionProblem`](crate::AttentionProblem).
    const DTYPE: DType;
    /// What quantization starts from: f16 if the element is f32, else the same.
    type Rounded: Element;
    /// The element's value.
    fn to_f32(self) -> f32;
    /// The nearest element, ties to even.
    fn from_f32(value: f32) -> Self;
    /// What quantization starts from: of f32 the nearest f16, ties to even, and beyond ±65504 that.
    fn rounded(self) -> Self::Rounded;
    /// What a value becomes that is computed before quantization: the nearest number of 16 bits, f16 of f16 and f32, and there beyond
    /// ±65504 that.
    fn from_prepared(value: f32) -> Self;
    /// The values of `source`, which is as long as `destination`.
    fn widen(source: &[Self], destination: &mut [f32]);
    /// The values of what quantization starts from.
    fn widen_rounded(source: &[Self], destination: &mut [f32]) {
        Self::widen(source, destination);
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
    type Rounded = Self;
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn rounded(self) -> Self {
        self
    }
    fn from_prepared(value: f32) -> Self {
        Self::from_f32(clamped(value))
    }
    fn widen(source: &[Self], destination: &mut [f32]) {
        source.convert_to_f32_slice(destination);
    }
}

impl Element for half::bf16 {
    const DTYPE: DType = DType::Bf16;
    type Rounded = Self;
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn rounded(self) -> Self {
        self
    }
    fn from_prepared(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn widen(source: &[Self], destination: &mut [f32]) {
        source.convert_to_f32_slice(destination);
    }
}

/// What is beyond ±65504, as that.
fn clamped(value: f32) -> f32 {
    value.clamp(f16::MIN.to_f32_const(), f16::MAX.to_f32_const())
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    type Rounded = f16;
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(value: f32) -> Self {
        value
    }
    fn rounded(self) -> f16 {
        f16::from_f32(clamped(self))
    }
    fn from_prepared(value: f32) -> Self {
        f16::from_f32(clamped(value)).to_f32()
    }
    fn widen(source: &[Self], destination: &mut [f32]) {
        destination.copy_from_slice(source);
    }
    fn widen_rounded(source: &[Self], destination: &mut [f32]) {
        /// Elements that are rounded at a time.
        const PIECE: usize = 64;
        for (source, destination) in source.chunks(PIECE).zip(destination.chunks_mut(PIECE)) {
            destination.iter_mut().zip(source).for_each(|(to, &from)| *to = clamped(from));
            let mut rounded = [f16::ZERO; PIECE];
            let rounded = &mut rounded[..source.len()];
            rounded.convert_from_f32_slice(destination);
            rounded.convert_to_f32_slice(destination);
        }
    }
}

mod private {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
    impl Sealed for f32 {}
}
