//! Scores to probabilities, and e4m3 codes to numbers: plain loops over [`LANES`] elements at a time, which the compiler
//! makes vectors of. `FUSED` says whether the CPU has a fused multiply-add instruction.

use std::ops::Range;

use super::{ProbabilityFormat, TILE};

/// Elements that a loop's body treats alike: at least the widest vector.
const LANES: usize = 16;

#[inline(always)]
pub(super) fn scores(
    dots: &[i32; TILE],
    key_scales: &[f32; TILE],
    query_scale: f32,
    bias: Option<&[f32; TILE]>,
    visible: Range<usize>,
    scores: &mut [f32; TILE],
) -> f32 {
    for ((score, dot), key_scale) in scores.iter_mut().zip(dots).zip(key_scales) {
        // |dot| ≤ 127² · 128 < 2²⁴: exact in f32
        *score = *dot as f32 * (query_scale * key_scale);
    }
    if let Some(bias) = bias {
        for (score, bias) in scores.iter_mut().zip(bias) {
            *score += bias;
        }
    }
    scores[..visible.start.min(TILE)].fill(f32::NEG_INFINITY);
    scores[visible.end.min(TILE)..].fill(f32::NEG_INFINITY);
    let largest = |a: f32, b: f32| if a > b { a } else { b };
    let max: [f32; TILE / 2] = std::array::from_fn(|lane| largest(scores[lane], scores[lane + TILE / 2]));
    let max: [f32; TILE / 4] = std::array::from_fn(|lane| largest(max[lane], max[lane + TILE / 4]));
    let max: [f32; TILE / 8] = std::array::from_fn(|lane| largest(max[lane], max[lane + TILE / 8]));
    max.into_iter().fold(f32::NEG_INFINITY, largest)
}

#[inline(always)]
pub(super) fn probabilities<const FUSED: bool>(
    format: ProbabilityFormat,
    scores: &mut [f32; TILE],
    offset: f32,
) -> f32 {
    match format {
        ProbabilityFormat::E4m3 => rounded::<FUSED, true>(scores, offset, round_to_e4m3),
        ProbabilityFormat::F16 => rounded::<FUSED, false>(scores, offset, round_to_f16),
        ProbabilityFormat::Bf16 => rounded::<FUSED, false>(scores, offset, round_to_bf16),
    }
}

/// `SUM_ROUNDED` says whether the sum is that of the rounded numbers.
#[inline(always)]
fn rounded<const FUSED: bool, const SUM_ROUNDED: bool>(
    scores: &mut [f32; TILE],
    offset: f32,
    round: impl Fn(f32) -> f32,
) -> f32 {
    let mut sums = [0.0f32; LANES];
    for chunk in scores.chunks_exact_mut(LANES) {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            let exact = exp2::<FUSED>(*score + offset);
            *score = round(exact);
            *sum += if SUM_ROUNDED { *score } else { exact };
        }
    }
    sums.into_iter().sum()
}

/// 2^`x` for `x` up to 127, to a relative error of 2⁻²²; 2⁻¹²⁶ for everything below −126, and for NaN.
#[inline(always)]
fn exp2<const FUSED: bool>(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer, and leaves that integer in the mantissa's last bits.
    const ROUND: f32 = 12582912.0;
    /// Minimax for 2^fraction, |fraction| ≤ ½.
    const COEFFICIENTS: [f32; 6] = [1.0, 0.693_146_94, 0.240_221_2, 0.055_507_13, 0.009_675_541, 0.001_327_647_2];
    let x = if x > -126.0 { x } else { -126.0 };
    let integer = x + ROUND;
    let fraction = x - (integer - ROUND);
    let mut power = COEFFICIENTS[5];
    for coefficient in COEFFICIENTS[..5].iter().rev() {
        power = if FUSED { power.mul_add(fraction, *coefficient) } else { power * fraction + coefficient };
    }
    f32::from_bits(power.to_bits().wrapping_add(integer.to_bits() << 23))
}

/// The nearest e4m3 number, ties to even, of a number from 0 up; 448 for everything beyond.
#[inline(always)]
fn round_to_e4m3(value: f32) -> f32 {
    round::<3, -6>(if value < 448.0 { value } else { 448.0 })
}

/// The nearest f16, ties to even, of a number from 0 to 65504.
#[inline(always)]
fn round_to_f16(value: f32) -> f32 {
    round::<10, -14>(value)
}

/// The nearest f16 of each number, ties to even.
#[inline(always)]
pub(super) fn round_all_to_f16(numbers: &mut [f32]) {
    for number in numbers {
        let magnitude = number.abs();
        // 65520 lies halfway between the largest number and what would be the next
        let rounded = if magnitude < 65520.0 { round_to_f16(magnitude) } else { magnitude + f32::INFINITY };
        *number = rounded.copysign(*number);
    }
}

/// The nearest bf16, ties to even, of a number from 2⁻¹⁰⁰ to 2¹⁰⁰; 0 for 2⁻¹²⁶, which stands for masked scores.
#[inline(always)]
fn round_to_bf16(value: f32) -> f32 {
    round::<7, -100>(value)
}

/// A number from 0 up, rounded to a mantissa of so many bits; below 2^`SMALLEST_NORMAL` the step stays.
///
/// A number 2^(23 − `BITS`) times as large as `value`'s power of two has `value`'s step as its own last bit, so that adding
/// and subtracting it rounds.
#[inline(always)]
fn round<const BITS: u32, const SMALLEST_NORMAL: i32>(value: f32) -> f32 {
    const EXPONENT: u32 = 0x7f80_0000;
    let smallest = ((SMALLEST_NORMAL + 127) as u32) << 23;
    let power = value.to_bits() & EXPONENT;
    let power = if power > smallest { power } else { smallest };
    let large = f32::from_bits(power + ((23 - BITS) << 23));
    (value + large) - large
}

#[inline(always)]
pub(super) fn decode_e4m3(codes: &[u8], values: &mut [f32]) {
    // The exponents' biases differ by 120, for subnormal codes too: multiplication normalizes them.
    const BIAS: f32 = f32::from_bits((127 + 120) << 23);
    for (value, &code) in values.iter_mut().zip(codes) {
        let magnitude = u32::from(code & 0x7f);
        let number = f32::from_bits(u32::from(code & 0x80) << 24 | magnitude << 20) * BIAS;
        *value = if magnitude == 0x7f { f32::NAN } else { number };
    }
}

#[cfg(test)]
mod tests {
    use sage_layout::round::{e4m3_from_f32, f32_from_e4m3};

    use super::*;

    #[test]
    fn exp2_is_exact_to_22_bits() {
        for step in -126 * 1024..128 * 1024 {
            let x = step as f32 / 1024.0 + 0.000321;
            for power in [exp2::<true>(x), exp2::<false>(x)] {
                let error = f64::from(power) / f64::from(x).exp2() - 1.0;
                assert!(error.abs() < 0.5f64.powi(22), "2^{x}: {error:e}");
            }
        }
        assert_eq!(exp2::<true>(f32::NEG_INFINITY), f32::MIN_POSITIVE);
        assert_eq!(exp2::<true>(f32::NAN), f32::MIN_POSITIVE);
    }

    #[test]
    fn rounding_is_e4m3s() {
        for bits in (0..f32::INFINITY.to_bits()).step_by(999) {
            let value = f32::from_bits(bits);
            assert_eq!(round_to_e4m3(value), f32_from_e4m3(e4m3_from_f32(value)), "{value:e}");
        }
        for code in 0..0x7e {
            let (low, high) = (f32_from_e4m3(code), f32_from_e4m3(code + 1));
            for value in [low, (low + high) / 2.0, ((low + high) / 2.0).next_up(), ((low + high) / 2.0).next_down()] {
                assert_eq!(round_to_e4m3(value), f32_from_e4m3(e4m3_from_f32(value)), "{value:e}");
            }
        }
    }

    #[test]
    fn rounding_is_the_16_bit_formats() {
        for bits in (0..0x7f00_0000).step_by(999) {
            let value = f32::from_bits(bits);
            if value <= 65504.0 {
                assert_eq!(round_to_f16(value), half::f16::from_f32(value).to_f32(), "{value:e}");
            }
            if (2f32.powi(-100)..2f32.powi(100)).contains(&value) {
                assert_eq!(round_to_bf16(value), half::bf16::from_f32(value).to_f32(), "{value:e}");
            }
        }
        assert_eq!(round_to_bf16(f32::MIN_POSITIVE), 0.0);
    }

    #[test]
    fn every_code_decodes() {
        let codes: [u8; 256] = std::array::from_fn(|code| code as u8);
        let mut values = [0.0; 256];
        decode_e4m3(&codes, &mut values);
        for (code, value) in codes.into_iter().zip(values) {
            let expected = f32_from_e4m3(code);
            assert!(value == expected || value.is_nan() && expected.is_nan(), "{code:#x}: {value}");
        }
    }
}
