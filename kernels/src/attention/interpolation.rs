//! Powers of two without the MUFU, two at a time.
//!
//! The 16 exponentials a clock of a multiprocessor's MUFU are fewer than a tile's products leave time for, so half of them are made of other
//! instructions, eight for two scores. The bits of an f16 with the value `2^e · (1 + f)` are those of `e + f`, in 10 binary places: read as
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
//! No instruction makes such an integer of a score. But an f32 below 2⁻¹²⁵ *is* an integer, in units of 2⁻¹⁴⁹, the least f32: so is a score to
//! which the bits of 1.5 · 2⁻¹²⁶ are added, and so is the result of one `fma.sat`, which leaves 0 of what is negative. Packing it into 16 bits
//! leaves 32767, a NaN, of what is too large. Bits of 0 are less than half of the least e4m3 number; and NaN counts as saturated, as do those
//! which are infinite before.

use simt::{convert, math};

/// The place of an f16's exponent: an octave of its bits.
const OCTAVE: u32 = 1 << 10;
/// The same in units.
const OCTAVE_UNITS: f32 = f32::from_bits(OCTAVE);
/// Bits of 1.5 · 2⁻¹²⁶: with any score added, of which there are under 2²² either way, they are those of a sum in units.
const ZERO_SCORE: u32 = 0x00c0_0000;
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

/// An integer, at most 2²² either way, as a multiple of the least f32, and with something added that [`offset`] takes away.
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

    #[test]
    fn scores_are_sums_in_units() {
        let unit = f64::from(f32::from_bits(1));
        for value in [-(1 << 22) + 1, -1, 0, 5, (1 << 22) - 1] {
            let units = f64::from(score(value)) / unit;
            assert_eq!(units, f64::from(value) + f64::from(ZERO_SCORE));
        }
    }

    #[test]
    fn close_to_powers_of_two() {
        // of the largest scores of 256 channels, of usual ones, and of those of which one is an octave
        for (scale, octaves) in [(9.0 / 4.1e6, 0.0), (1.26e-4, 4.8), (1.26e-4, -300.0), (0.0071, 4.8), (1.0 / 16.0, 300.0)] {
            let first = ((-8.0 - octaves) / scale) as i32;
            let step = (0.0007f32 / scale).max(1.0) as usize;
            let scores = || (first..first + (17.0 / scale) as i32).step_by(step);
            let errors = scores().map(|score| {
                let exact = (f64::from(score) * f64::from(scale) + f64::from(octaves)).exp2();
                f64::from(power(score, scale, octaves)) / exact - 1.0
            });
            let (mut sum, mut squares, mut largest) = (0.0, 0.0, 0.0f64);
            for error in errors {
                (sum, squares, largest) = (sum + error, squares + error * error, largest.max(error.abs()));
            }
            let count = scores().count() as f64;
            assert!((sum / count).abs() < 5e-4 + 0.53 * f64::from(scale), "{scale}: mean {}", sum / count);
            assert!((squares / count).sqrt() < 0.0048 + 0.53 * f64::from(scale), "{scale}: root mean square {}", (squares / count).sqrt());
            // the offset is rounded to three quarters of a score at most
            assert!(largest < 0.011 + 0.53 * f64::from(scale), "{scale}: largest {largest}");
        }
    }

    /// Small ones are 0 in e4m3, large ones saturated, however far away they are.
    #[test]
    fn ends_of_the_range() {
        let code = |exponent: f32| {
            let places = [(20_000, exponent / 20_000.0), (-3_000_000, exponent / -3e6), (2_000_000, exponent / 2e6)];
            let codes = places.map(|(score, scale)| {
                convert::e4m3x4_of_f32_and_f16([0.0; 2], powers([place(score, scale, 0.0); 2])) >> 24
            });
            assert!(codes.iter().all(|&code| code == codes[0]), "{exponent}: {codes:x?}");
            codes[0]
        };
        for exponent in [-10.1, -13.0, -15.0, -33.0, -1e6, -1e9] {
            assert_eq!(code(exponent), 0, "{exponent}");
        }
        for exponent in [8.83, 9.0, 15.0, 16.0, 17.0, 18.0, 19.0, 24.0, 31.0, 33.0, 50.0, 63.0, 70.0, 500.0, 1e6, 1e9] {
            assert!((code(exponent) + 2) & 0x80 != 0, "{exponent}: {:#x}", code(exponent));
        }
        // without a reference
        assert!(convert::e4m3x4_of_f32_and_f16([0.0; 2], powers([place(-5, 0.1, 1e30); 2])) >> 24 == 0x7f);
    }
}
