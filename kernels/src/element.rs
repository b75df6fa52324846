//! The caller's element types.

use simt::convert;
use simt::wgmma::{self, Operands};

/// A 16-bit floating-point format.
pub trait Element {
    /// The tensor cores' word for it.
    type Operands: Operands;
    /// log₂ of the largest sum of probabilities of 16 keys, a whole number, from −126 on: all of them must be numbers of the
    /// format, and their products with values f32.
    const LOG2_LARGEST_SUM: f32;

    /// The value of an element's bits.
    fn to_f32(bits: u16) -> f32;
    /// Two elements, rounded to nearest even, the first in the low half.
    fn pack(values: [f32; 2]) -> u32;

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

    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        convert::f32_from_f16(bits)
    }

    #[inline(always)]
    fn pack(values: [f32; 2]) -> u32 {
        convert::f16x2(values)
    }
}

impl Element for Bf16 {
    type Operands = wgmma::Bf16;
    // values may be as large as f32's: their sums, weighted with this, must be too
    const LOG2_LARGEST_SUM: f32 = -10.0;

    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        convert::f32_from_bf16(bits)
    }

    #[inline(always)]
    fn pack(values: [f32; 2]) -> u32 {
        convert::bf16x2(values)
    }
}
