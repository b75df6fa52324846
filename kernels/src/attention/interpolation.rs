//! Powers of two without the MUFU, two at a time.
//!
//! The 16 exponentials a clock of a multiprocessor's MUFU are fewer than a tile's products leave time for, so seven sixteenths of them are made of
//! other instructions, eight for two scores. The bits of an f16 with the value `2^e · (1 + f)` are those of `e + f`, in 10 binary places: read as
//! f16, a sum of an exponent and a constant is a power of two, interpolated between those of integers (N. Schraudolph, "A Fast, Compact
//! Approximation of the Exponential Function", 1999), up to 6 % too large. With half an octave added, it is one interpolated between those of
//! half integers. √2 times the one and the other together are 2.061 to 2.092 times √2 powers, 2.081 times in the mean; so an error is at most
//! 1 %, and 0.45 % in the mean square. e4m3 rounds by up to 6 %.
//!
//! ```text
//! bits  = clamp(round(score · scale · 1024 + offset), 0, 32767)
//! power = √2 · f16(bits) + f16(bits + half an octave)
//! ```
//!
//! No instruction makes such an integer of a score. But an f32 below 2⁻¹²⁵ *is* an integer, its bits, in units of 2⁻¹⁴⁹, the least f32: so is a
//! score with something added that makes it positive, and so is the result of one `fma.sat`, which leaves 0 of what is negative. Packing it
//! into 16 bits leaves 32767, a NaN, of what is too large. Bits of 0 are less than half of the least e4m3 number; and NaN counts as saturated,
//! as do those which are infinite before.
//!
//! What is added is taken away again in the offset, whose rounding moves all powers of a lane alike, by an eighth of what one unit of an integer
//! score is. That is little beside the rounding of queries and keys, whatever the scale.

use simt::{convert, math};

/// The place of an f16's exponent: an octave of its bits.
const OCTAVE: u32 = 1 << 10;
/// The same in units.
const OCTAVE_UNITS: f32 = f32::from_bits(OCTAVE);
/// What is added to scores, which are smaller.
pub const ZERO_SCORE: u32 = 1 << 21;
/// The bits that 2⁰ has: the exponent bias of f16, 15, less log₂ of what both interpolations together are in the mean.
const BITS_OF_ONE: f32 = f32::from_bits(13_765);

/// Two f16: √2.
const SQRT_2: u32 = 0x3da8_3da8;
/// Half an octave of two f16's bits.
const HALF_OCTAVE: u32 = 0x0200_0200;

/// What a [`score`] is multiplied by, if a score is by `scale`.
#[inline(always)]
pub fn scale(scale: f32) -> f32 {
    scale * OCTAVE as f32
}

/// An integer, less than [`ZERO_SCORE`] either way, as a multiple of the least f32, and with that added, which [`offset`] takes away.
#[inline(always)]
pub fn score(score: i32) -> f32 {
    f32::from_bits(ZERO_SCORE.wrapping_add_signed(score))
}

/// What is added to a [`score`] times [`scale`], if `octaves` are added to a score times that.
#[inline(always)]
pub fn offset(octaves: f32, scale: f32) -> f32 {
    math::fma(scale, -f32::from_bits(ZERO_SCORE), math::fma(octaves, OCTAVE_UNITS, BITS_OF_ONE))
}

/// Powers of two, in the halves of a register, as f16.
#[inline(always)]
pub fn powers(places: [f32; 2]) -> u32 {
    let bits = convert::i16x2(places.map(|place| place.to_bits() as i32));
    math::fma_f16x2(bits, SQRT_2, bits.wrapping_add(HALF_OCTAVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2^(score · scale + octaves)
    fn place(score: i32, scale: f32, octaves: f32) -> f32 {
        let scale = super::scale(scale);
        math::fma_saturated(super::score(score), scale, offset(octaves, scale))
    }

    fn power(score: i32, scale: f32, octaves: f32) -> f32 {
        convert::f32_from_f16(powers([place(score, scale, octaves), 0.0]) as u16)
    }

    /// Scales from that of the largest scores with an octave between them to one of a hundred octaves a unit.
    const SCALES: [f32; 9] = [5e-7, 1.26e-4, 1e-3, 0.0071, 0.0625, 0.37, 1.7, 20.0, 100.0];

    #[test]
    fn scores_are_sums_in_units() {
        let unit = f64::from(f32::from_bits(1));
        let largest = ZERO_SCORE as i32 - 1;
        for value in [-largest, -1, 0, 5, largest] {
            assert_eq!(f64::from(score(value)) / unit, f64::from(value) + f64::from(ZERO_SCORE));
        }
    }

    #[test]
    fn close_to_powers_of_two() {
        for scale in SCALES {
            // the result is an octave of the same scores, at either end and in the middle
            for first in [-0.9f32, -0.01, 0.4].map(|part| (part * ZERO_SCORE as f32) as i32) {
                let octaves = -8.0 - first as f32 * scale;
                let step = (0.0007 / scale).max(1.0) as usize;
                let last = (ZERO_SCORE as i32 - 1).min(first + (17.0 / scale) as i32);
                let errors = (first..=last).step_by(step).map(|score| {
                    let exact = (f64::from(score) * f64::from(scale) + f64::from(octaves)).exp2();
                    f64::from(power(score, scale, octaves)) / exact - 1.0
                });
                let largest = errors.map(f64::abs).fold(0.0, f64::max);
                // the offset is rounded, and so are the octaves that a score is
                let moved = f64::from(scale) / 8.0 + f64::from(octaves.abs()) * f64::from(f32::EPSILON);
                assert!(largest < 0.0115 + (moved.exp2() - 1.0), "{scale}, from {first} on: {largest}");
            }
        }
    }

    #[test]
    fn exact_in_the_mean() {
        let errors = || {
            (-60_000..70_000)
                .map(|score| f64::from(power(score, 1.26e-4, 0.0)) / (f64::from(score) * 1.26e-4).exp2() - 1.0)
        };
        let count = errors().count() as f64;
        let (mean, square) = (errors().sum::<f64>() / count, errors().map(|error| error * error).sum::<f64>() / count);
        assert!(mean.abs() < 5e-4, "{mean}");
        assert!(square.sqrt() < 0.0048, "{}", square.sqrt());
    }

    /// Small ones are 0 in e4m3, large ones saturated, however far away they are.
    #[test]
    fn ends_of_the_range() {
        let code = |score: i32, scale: f32, octaves: f32| {
            convert::e4m3x4_of_f32_and_f16([0.0; 2], powers([place(score, scale, octaves); 2])) >> 24
        };
        let is_saturated = |code: u32| (code + 2) & 0x80 != 0;
        for exponent in [10.1, 13.0, 15.0, 33.0, 500.0, 1e6] {
            for score in [20_000, 300_000, 2_000_000] {
                let scale = exponent / score as f32;
                assert_eq!(code(-score, scale, 0.0), 0, "-{exponent}");
                assert_eq!(code(0, scale, -exponent), 0, "-{exponent}");
                assert!(is_saturated(code(score, scale, 0.0)), "{exponent}");
                assert!(is_saturated(code(0, scale, exponent)), "{exponent}");
            }
        }
        for exponent in [8.83, 9.0, 16.0, 17.0, 18.0, 19.0, 24.0, 31.0, 50.0, 63.0, 70.0] {
            assert!(is_saturated(code(20_000, exponent / 20_000.0, 0.0)), "{exponent}");
        }
        for scale in SCALES {
            // without a reference, and with one that is infinitely far away
            assert_eq!(code(-5, scale, 1e30), 0x7f);
            assert_eq!(code(5, scale, f32::NEG_INFINITY), 0);
        }
    }
}
