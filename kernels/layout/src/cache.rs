//! A cache of quantized keys and values, version 1 of the format.
//!
//! A token is quantized by itself when it is appended, and never touched again: its key to INT8 with a scale, its value to e4m3 in
//! units of a power of two. So it does not matter how many tokens came at a time, and nothing has to be known of those to come.
//!
//! Tokens of a key head lie in *blocks* of 64, each of them one piece of memory that attention copies as it is:
//!
//! | offset | what |
//! |---|---|
//! | 0 | INT8 `[64][padded head_dim]`: key codes, in swizzled rows |
//! | [`values`] | e4m3 `[64][padded head_dim]`: value codes, in swizzled rows |
//! | [`key_scales`] | f32 `[64]`: what a key's codes are multiplied by |
//! | [`value_exponents`] | f32 `[64]`: whole numbers; a value is its codes · 2^exponent |
//!
//! A *page* is one or two blocks of every key head, `[key heads][blocks]`. Which pages a sequence has, a table says.
//!
//! The exponent needs no multiplication of its own: attention adds it to the score, as both are in octaves. A power of two loses
//! nothing, since e4m3 has exponents of its own.

use crate::scale::E4M3_MAX;
use crate::tile::KEY_CHUNK;

/// Version of the format.
pub const VERSION: u32 = 1;

/// Tokens of a block.
pub const BLOCK_TOKENS: u32 = KEY_CHUNK;
/// Blocks that a page may have, of a head.
pub const BLOCKS_PER_PAGE: [u32; 2] = [1, 2];

/// Smallest exponent. What is less than 2⁻⁸⁹ counts as 0; and with it, sums of exponentials stay in f32.
pub const MIN_EXPONENT: i32 = -80;

/// Offset of the value codes in a block.
pub const fn values(padded_head_dim: u32) -> u32 {
    BLOCK_TOKENS * padded_head_dim
}

/// Offset of the key scales in a block.
pub const fn key_scales(padded_head_dim: u32) -> u32 {
    2 * BLOCK_TOKENS * padded_head_dim
}

/// Offset of the value exponents in a block.
pub const fn value_exponents(padded_head_dim: u32) -> u32 {
    key_scales(padded_head_dim) + 4 * BLOCK_TOKENS
}

/// Bytes of a block.
pub const fn block_bytes(padded_head_dim: u32) -> u32 {
    value_exponents(padded_head_dim) + 4 * BLOCK_TOKENS
}

/// The least exponent with which the largest of a value's channels is in e4m3's range; NaN for infinities and NaN, so that what
/// such a value reaches is NaN.
#[inline(always)]
pub fn value_exponent(amax: f32) -> f32 {
    const BIAS: i32 = 127;
    const MANTISSA_BITS: u32 = 23;
    const MANTISSA: u32 = (1 << MANTISSA_BITS) - 1;
    if !amax.is_finite() {
        return f32::NAN;
    }
    let exponent = |bits: u32| (bits >> MANTISSA_BITS) as i32 - BIAS;
    let (bits, largest) = (amax.to_bits(), E4M3_MAX.to_bits());
    let exceeds = (bits & MANTISSA > largest & MANTISSA) as i32;
    let least = exponent(bits) - exponent(largest) + exceeds;
    (if least > MIN_EXPONENT { least } else { MIN_EXPONENT }) as f32
}

/// 2^`exponent`, a whole number from −126 to 127.
#[inline(always)]
pub fn power_of_two(exponent: f32) -> f32 {
    f32::from_bits(((exponent as i32).wrapping_add(127) as u32) << 23)
}

/// What an e4m3 code is worth beside the f16 number of [`even_values`] and [`odd_values`].
pub const CODE_UNIT: f32 = 256.0;

/// Of four e4m3 codes, the first of each pair as f16 numbers, in units of [`CODE_UNIT`]: the exponent's bias is less by eight.
#[inline(always)]
pub const fn even_values(codes: u32) -> u32 {
    (codes & 0x0080_0080) << 8 | (codes & 0x007f_007f) << 7
}

/// The same of the second of each pair.
#[inline(always)]
pub const fn odd_values(codes: u32) -> u32 {
    codes & 0x8000_8000 | (codes & 0x7f00_7f00) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_the_least_that_hold_a_value() {
        for amax in [448.0f32, 448.1, 447.9, 1.0, 1e-3, 3.5, 3.500001, 65504.0, 3e38, 2.0f32.powi(-60)] {
            let exponent = value_exponent(amax);
            let scaled = amax * power_of_two(-exponent);
            assert!(scaled <= E4M3_MAX && 2.0 * scaled > E4M3_MAX, "{amax}: 2^{exponent}, {scaled}");
        }
        for tiny in [0.0, 1e-40, 1e-30] {
            assert_eq!(value_exponent(tiny), MIN_EXPONENT as f32);
        }
        assert!(value_exponent(f32::INFINITY).is_nan() && value_exponent(f32::NAN).is_nan());
    }

    /// IEEE binary16's value of a number that is finite.
    fn f16_value(bits: u16) -> f32 {
        let (sign, exponent, mantissa) = (bits >> 15, bits >> 10 & 0x1f, bits & 0x3ff);
        let magnitude = match exponent {
            0 => mantissa as f32 / 1024.0 / 16384.0,
            _ => (1.0 + mantissa as f32 / 1024.0) * power_of_two(exponent as f32 - 15.0),
        };
        if sign == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn codes_become_f16_numbers() {
        // all but NaN
        for code in (0..=255u8).filter(|code| code & 0x7f != 0x7f) {
            let expected = crate::round::f32_from_e4m3(code);
            let others = !code & 0xbf;
            let halves = |word: u32| [word as u16, (word >> 16) as u16].map(|bits| f16_value(bits) * CODE_UNIT);
            let of_others = crate::round::f32_from_e4m3(others);
            assert_eq!(halves(even_values(u32::from_le_bytes([code, others, others, code]))), [expected, of_others]);
            assert_eq!(halves(odd_values(u32::from_le_bytes([others, code, code, others]))), [expected, of_others]);
        }
    }

    #[test]
    fn blocks_are_whole_pieces() {
        for head_dim in crate::tile::PADDED_HEAD_DIMS {
            assert_eq!((values(head_dim) % 128, block_bytes(head_dim) % 128), (0, 0));
            assert_eq!(block_bytes(head_dim), 128 * head_dim + 512);
        }
    }
}
