//! The caller's element types.

use simt::wgmma::{self, Operands};
use simt::{convert, math, mma};

/// A 16-bit floating-point format.
pub trait Element {
    /// The tensor cores' word for it.
    type Operands: Operands;
    /// log₂ of the largest sum of probabilities of 16 keys, a whole number, from −126 on: all of them must be numbers of the
    /// format, and their products with values f32.
    const LOG2_LARGEST_SUM: f32;
    /// Two infinities.
    const INFINITY_PAIR: u32;
    /// Two negative infinities.
    const NEGATIVE_INFINITY_PAIR: u32 = Self::INFINITY_PAIR | 0x8000_8000;

    /// The value of an element's bits.
    fn to_f32(bits: u16) -> f32;
    /// Two elements, rounded to nearest even, the first in the low half.
    fn pack(values: [f32; 2]) -> u32;
    /// Two elements, as near as can be; the first in the low half. What is beyond ±65504 becomes that in f16.
    fn pack_nearest(values: [f32; 2]) -> u32;
    /// The smaller of two elements, and of two others; a number rather than NaN.
    fn min(a: u32, b: u32) -> u32;
    /// The larger of two elements, and of two others; a number rather than NaN.
    fn max(a: u32, b: u32) -> u32;
    /// The smaller of two elements, and of two others; NaN rather than a number.
    fn min_nan(a: u32, b: u32) -> u32;
    /// The larger of two elements, and of two others; NaN rather than a number.
    fn max_nan(a: u32, b: u32) -> u32;

    /// `sum` += `a` · `b` in f32 (`mma.sync.m16n8k16`).
    fn m16n8k16_f32(sum: &mut [f32; 4], a: &[u32; 4], b: &[u32; 2]);

    /// Two values; the first from the low half.
    #[inline(always)]
    fn unpack(pair: u32) -> [f32; 2] {
        [Self::to_f32(pair as u16), Self::to_f32((pair >> 16) as u16)]
    }
}

/// IEEE binary16.
pub struct F16;

/// bfloat16.
pub struct Bf16;

impl Element for F16 {
    type Operands = wgmma::F16;
    // 65536 would be an infinity, and smaller ones may add up to it
    const LOG2_LARGEST_SUM: f32 = 15.0;
    const INFINITY_PAIR: u32 = 0x7c00_7c00;

    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        convert::f32_from_f16(bits)
    }

    #[inline(always)]
    fn pack(values: [f32; 2]) -> u32 {
        convert::f16x2(values)
    }

    #[inline(always)]
    fn pack_nearest(values: [f32; 2]) -> u32 {
        const LARGEST_PAIR: u32 = F16::INFINITY_PAIR - 0x0001_0001;
        Self::max_nan(Self::min_nan(Self::pack(values), LARGEST_PAIR), LARGEST_PAIR | 0x8000_8000)
    }

    #[inline(always)]
    fn min(a: u32, b: u32) -> u32 {
        math::min_f16x2(a, b)
    }

    #[inline(always)]
    fn max(a: u32, b: u32) -> u32 {
        math::max_f16x2(a, b)
    }

    #[inline(always)]
    fn min_nan(a: u32, b: u32) -> u32 {
        math::min_nan_f16x2(a, b)
    }

    #[inline(always)]
    fn max_nan(a: u32, b: u32) -> u32 {
        math::max_nan_f16x2(a, b)
    }

    #[inline(always)]
    fn m16n8k16_f32(sum: &mut [f32; 4], a: &[u32; 4], b: &[u32; 2]) {
        mma::m16n8k16_f32_f16(sum, a, b);
    }
}

impl Element for Bf16 {
    type Operands = wgmma::Bf16;
    // values may be as large as f32's: their sums, weighted with this, must be too
    const LOG2_LARGEST_SUM: f32 = -10.0;
    const INFINITY_PAIR: u32 = 0x7f80_7f80;

    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        convert::f32_from_bf16(bits)
    }

    #[inline(always)]
    fn pack(values: [f32; 2]) -> u32 {
        convert::bf16x2(values)
    }

    #[inline(always)]
    fn pack_nearest(values: [f32; 2]) -> u32 {
        Self::pack(values)
    }

    #[inline(always)]
    fn min(a: u32, b: u32) -> u32 {
        math::min_bf16x2(a, b)
    }

    #[inline(always)]
    fn max(a: u32, b: u32) -> u32 {
        math::max_bf16x2(a, b)
    }

    #[inline(always)]
    fn min_nan(a: u32, b: u32) -> u32 {
        math::min_nan_bf16x2(a, b)
    }

    #[inline(always)]
    fn max_nan(a: u32, b: u32) -> u32 {
        math::max_nan_bf16x2(a, b)
    }

    #[inline(always)]
    fn m16n8k16_f32(sum: &mut [f32; 4], a: &[u32; 4], b: &[u32; 2]) {
        mma::m16n8k16_f32_bf16(sum, a, b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_f16_cannot_hold() {
        for (value, expected) in [
            (1.0, 0x3c00),
            (-0.0, 0x8000),
            (65519.996, 0x7bff),
            (65520.0, 0x7bff),
            (-1e30, 0xfbff),
            (f32::INFINITY, 0x7bff),
            (f32::NEG_INFINITY, 0xfbff),
            (1.0 + 1.5 / 1024.0, 0x3c02),
            (1e-7, 0x0002),
        ] {
            assert_eq!(F16::pack_nearest([0.0, value]), expected << 16, "{value}");
        }
        assert!(F16::unpack(F16::pack_nearest([f32::NAN, 1.0]))[0].is_nan());
    }
}
