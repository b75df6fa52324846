//! Conversions between number formats, all rounding to nearest even.

use crate::arch;

/// Four e4m3 codes, the first in the lowest byte; values beyond ±448 saturate, NaN becomes `0x7f`
/// (`cvt.rn.satfinite.e4m3x2.f32`).
#[inline(always)]
#[track_caller]
pub fn e4m3x4(values: [f32; 4]) -> u32 {
    arch::convert::e4m3x4(values)
}

/// The same of two f32 and, after them, of two f16, which are in the halves of `high` (`cvt.rn.satfinite.e4m3x2.f16x2`).
#[inline(always)]
#[track_caller]
pub fn e4m3x4_of_f32_and_f16(low: [f32; 2], high: u32) -> u32 {
    arch::convert::e4m3x4_of_f32_and_f16(low, high)
}

/// Two i16, the first in the low half; what is beyond saturates (`cvt.pack.sat.s16.s32`).
#[inline(always)]
#[track_caller]
pub fn i16x2(values: [i32; 2]) -> u32 {
    arch::convert::i16x2(values)
}

/// Two f16, the first in the low half (`cvt.rn.f16x2.f32`).
#[inline(always)]
#[track_caller]
pub fn f16x2(values: [f32; 2]) -> u32 {
    arch::convert::f16x2(values)
}

/// Two bf16, the first in the low half (`cvt.rn.bf16x2.f32`).
#[inline(always)]
#[track_caller]
pub fn bf16x2(values: [f32; 2]) -> u32 {
    arch::convert::bf16x2(values)
}

/// The value of f16 bits, exactly.
#[inline(always)]
#[track_caller]
pub fn f32_from_f16(bits: u16) -> f32 {
    arch::convert::f32_from_f16(bits)
}

/// The value of bf16 bits, exactly.
#[inline(always)]
#[track_caller]
pub fn f32_from_bf16(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// The nearest integers, ties to even, as four i8, the first in the lowest byte; what is beyond saturates, NaN becomes 0
/// (`cvt.rni.s32.f32`, `cvt.pack.sat.s8.s32.b32`).
#[inline(always)]
#[track_caller]
pub fn i8x4(values: [f32; 4]) -> u32 {
    arch::convert::i8x4(values)
}
