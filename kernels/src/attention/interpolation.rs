//! Powers of two without the MUFU, two at a time.
//!
//! The 16 exponentials a clock of a multiprocessor's MUFU are fewer than a tile's products leave time for, so some are made of other
//! instructions, ten for two scores. The bits of an f16 with the value `2^e · (1 + f)` are those of `e + f`, in 10 binary places: read as
//! f16, a sum of an exponent and a constant is a power of two, interpolated between those of integers (N. Schraudolph, "A Fast, Compact
//! Approximation of the Exponential Function", 1999), up to 6 % too large. With half an octave subtracted and multiplied by √2, it is one
//! interpolated between those of half integers. Their sum is 2.061 to 2.092 times the power, 2.081 times in the mean; so an error is at most 1 %, and 0.45 %
//! in the mean square. e4m3 rounds by up to 6 %.
//!
//! ```text
//! place = clamp(score · scale / 32 + offset, 0, 1)    one `fma.sat`: what is out of range becomes an end of it
//! bits  = bits 8 to 23 of the f32 1 + 1/64 + place    those of a negative f16, from half an octave on
//! power = −bits − √2 · (bits − half an octave)
//! ```
//!
//! A place of 0 is less than half of the least e4m3 number; one of 1 is NaN, and so counts as saturated, as does what is infinite before.

use simt::math;

/// What an octave is of the range of places: an f16 has 5 bits of exponent.
pub const PLACES_PER_OCTAVE: f32 = 1.0 / 32.0;

/// The place of 2⁰: the exponent bias of f16, 15, less half an octave, log₂ of what both interpolations together are in the mean, and half
/// a unit of what is cut off.
const PLACE_OF_ONE: f32 = 13.443_04 * PLACES_PER_OCTAVE;

/// Two f16: −√2.
const SECOND_WEIGHT: u32 = 0xbda8_bda8;
/// Half an octave of two f16's bits.
const HALF_OCTAVE: u32 = 0x0200_0200;
/// What the place is added to.
const FIRST: f32 = 1.0 + PLACES_PER_OCTAVE / 2.0;

/// What is added to a score in places.
#[inline(always)]
pub fn offset(octaves: f32) -> f32 {
    math::fma(octaves, PLACES_PER_OCTAVE, PLACE_OF_ONE)
}

/// Powers of two, in the halves of a register, as f16.
#[inline(always)]
pub fn powers(places: [f32; 2]) -> u32 {
    let [low, high] = places.map(|place| (FIRST + place).to_bits());
    // bytes 1 and 2 of either: the lowest bit of the exponent, which becomes the sign, and 15 of the mantissa
    let bits = math::permute_bytes::<0x6521>(low, high);
    math::multiply_subtract_f16x2(bits.wrapping_sub(HALF_OCTAVE), SECOND_WEIGHT, bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use simt::convert;

    fn power(exponent: f32) -> f32 {
        let place = math::fma_saturated(exponent, PLACES_PER_OCTAVE, offset(0.0));
        convert::f32_from_f16((powers([place, 0.0])) as u16)
    }

    #[test]
    fn close_to_powers_of_two() {
        let exponents = || (-8 * 1024..9 * 1024).map(|step| step as f32 / 1024.0);
        let errors = exponents().map(|exponent| f64::from(power(exponent)) / f64::from(exponent).exp2() - 1.0);
        let (mut sum, mut squares, mut largest) = (0.0, 0.0, 0.0f64);
        for error in errors {
            (sum, squares, largest) = (sum + error, squares + error * error, largest.max(error.abs()));
        }
        let count = exponents().count() as f64;
        assert!((sum / count).abs() < 2e-4, "mean {}", sum / count);
        assert!((squares / count).sqrt() < 0.0046, "root mean square {}", (squares / count).sqrt());
        assert!(largest < 0.0105, "largest {largest}");
    }

    /// Small ones are 0 in e4m3, large ones saturated, however far away they are.
    #[test]
    fn ends_of_the_range() {
        let code = |exponent: f32| {
            let place = math::fma_saturated(exponent, PLACES_PER_OCTAVE, offset(0.0));
            convert::e4m3x4_of_f32_and_f16([0.0; 2], powers([place; 2])) >> 24
        };
        for exponent in [-10.1, -13.0, -15.0, -33.0, -1e9, f32::NEG_INFINITY] {
            assert_eq!(code(exponent), 0, "{exponent}");
        }
        for exponent in [8.83, 9.0, 15.0, 16.0, 17.0, 18.0, 19.0, 50.0, 1e9, f32::INFINITY] {
            assert!((code(exponent) + 2) & 0x80 != 0, "{exponent}: {:#x}", code(exponent));
        }
    }
}
