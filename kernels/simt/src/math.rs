//! Arithmetic that `core` lacks on the GPU.

use crate::arch;

/// `a * b + c`, rounded once.
#[inline(always)]
#[track_caller]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    arch::math::fma(a, b, c)
}

/// `a * b + c`, rounded once, and at least 0 and at most 1; NaN becomes 0 (`fma.sat`).
#[inline(always)]
#[track_caller]
pub fn fma_saturated(a: f32, b: f32, c: f32) -> f32 {
    arch::math::fma_saturated(a, b, c)
}

/// `a * b + c`, rounded once, of the low halves, and of the high halves, as f16 (`fma.f16x2`).
#[inline(always)]
#[track_caller]
pub fn fma_f16x2(a: u32, b: u32, c: u32) -> u32 {
    arch::math::fma_f16x2(a, b, c)
}

/// 2ˣ, relative error at most 2⁻²²; subnormal inputs and results become 0 (`ex2.approx.ftz`).
#[inline(always)]
#[track_caller]
pub fn exp2(x: f32) -> f32 {
    arch::math::exp2(x)
}

/// log₂ x, error at most 2⁻²², absolute for x from ½ to 2, relative elsewhere (`lg2.approx.ftz`).
#[inline(always)]
#[track_caller]
pub fn log2(x: f32) -> f32 {
    arch::math::log2(x)
}

/// 1 / x, at most 1 unit in the last place off (`rcp.approx.ftz`).
#[inline(always)]
#[track_caller]
pub fn reciprocal(x: f32) -> f32 {
    arch::math::reciprocal(x)
}

/// `a | b | c` in one instruction (`lop3`).
#[inline(always)]
#[track_caller]
pub fn or3(a: u32, b: u32, c: u32) -> u32 {
    arch::math::or3(a, b, c)
}

macro_rules! packed {
    ($($name:ident $which:literal, $format:literal;)*) => { $(
        #[doc = concat!("The ", $which, " of the low halves, and of the high halves, as ", $format, "; a NaN loses against a number.")]
        #[inline(always)]
        #[track_caller]
        pub fn $name(a: u32, b: u32) -> u32 {
            arch::math::$name(a, b)
        }
    )* };
}

packed! {
    min_f16x2 "smaller", "f16";
    max_f16x2 "larger", "f16";
    min_bf16x2 "smaller", "bf16";
    max_bf16x2 "larger", "bf16";
}

macro_rules! packed_nan {
    ($($name:ident $which:literal, $format:literal;)*) => { $(
        #[doc = concat!("The ", $which, " of the low halves, and of the high halves, as ", $format, "; NaN, if one of them is.")]
        #[inline(always)]
        #[track_caller]
        pub fn $name(a: u32, b: u32) -> u32 {
            arch::math::$name(a, b)
        }
    )* };
}

packed_nan! {
    min_nan_f16x2 "smaller", "f16";
    max_nan_f16x2 "larger", "f16";
    min_nan_bf16x2 "smaller", "bf16";
    max_nan_bf16x2 "larger", "bf16";
}

/// Quotient and remainder. By 0, which callers rule out, they are 0: there is no panic on a GPU.
#[inline(always)]
pub fn div_rem(dividend: u32, divisor: u32) -> (u32, u32) {
    match core::num::NonZeroU32::new(divisor) {
        Some(divisor) => (dividend / divisor, dividend % divisor),
        None => (0, 0),
    }
}

/// The same value, unknown to the compiler: what was computed from it is computed again rather than kept in registers.
#[inline(always)]
#[track_caller]
pub fn opaque(value: u32) -> u32 {
    arch::math::opaque(value)
}
