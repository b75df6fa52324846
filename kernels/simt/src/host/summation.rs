//! How the tensor cores sum products; the same for `mma.sync` and `wgmma`.

use half::{bf16, f16};
use sage_layout::round::f32_from_e4m3;

/// What a number that is not one looks like when the tensor cores make it.
const NAN: u32 = 0x7fff_ffff;
const F16_NAN: u16 = 0x7fff;

/// How floating-point products, which are exact, are summed with the accumulator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accumulation {
    /// In double precision, then rounded once, to nearest even.
    #[default]
    Single,
    /// As the tensor cores do (`docs/numerics.md`): products and accumulator are aligned to the largest exponent among them,
    /// a product's being the sum of its factors', and cut off 13 bits below it for e4m3, 25 otherwise. The sum is cut off the
    /// same way and to f32, or rounded to nearest even to f16. For e4m3 that is Hopper's to the bit; 25 was not measured.
    Truncated,
}

/// What an operand's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Int4,
    Int8,
    E4m3,
    F16,
    Bf16,
}

/// What an accumulator's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    I32,
    F16,
    F32,
}

/// An operand's element.
#[derive(Clone, Copy, Default)]
pub struct Factor {
    value: f64,
    exponent: i32,
}

impl Format {
    /// Bits of an element.
    pub fn bits(self) -> u32 {
        match self {
            Self::Int4 => 4,
            Self::Int8 | Self::E4m3 => 8,
            Self::F16 | Self::Bf16 => 16,
        }
    }

    /// Exponent of the smallest normal number; smaller ones have it too.
    fn smallest_exponent(self) -> i32 {
        match self {
            Self::Int4 | Self::Int8 => 0,
            Self::E4m3 => -6,
            Self::F16 => -14,
            Self::Bf16 => -126,
        }
    }

    /// Bits that truncated sums keep below the largest exponent.
    fn kept_bits(self) -> i32 {
        if self == Self::E4m3 { 13 } else { 25 }
    }

    /// The element in the lowest bits.
    pub fn decode(self, bits: u32) -> Factor {
        let value = match self {
            Self::Int4 => ((bits << 28) as i32 >> 28) as f64,
            Self::Int8 => bits as i8 as f64,
            Self::E4m3 => f32_from_e4m3(bits as u8) as f64,
            Self::F16 => f16::from_bits(bits as u16).to_f64(),
            Self::Bf16 => bf16::from_bits(bits as u16).to_f64(),
        };
        Factor { value, exponent: exponent(value).max(self.smallest_exponent()) }
    }
}

/// The exponent of a number's leading one.
fn exponent(value: f64) -> i32 {
    (value.to_bits() >> 52 & 0x7ff) as i32 - 1023
}

/// Cuts off what is more than `kept_bits` below 2^`exponent`.
fn truncate(value: f64, exponent: i32, kept_bits: i32) -> f64 {
    let unit = 2f64.powi(exponent - kept_bits);
    (value / unit).trunc() * unit
}

/// Rounds towards zero; what is beyond all numbers becomes infinite.
fn f32_toward_zero(value: f64) -> f32 {
    let nearest = value as f32;
    let is_beyond = value.abs() >= 2f64.powi(128);
    if !is_beyond && (nearest as f64).abs() > value.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest }
}

/// Rounds to nearest even, once.
fn f16_nearest(value: f64) -> f16 {
    let cut = f32_toward_zero(value);
    // a last bit that tells of anything cut off keeps the second rounding from seeing a tie
    let sticky = value.is_finite() && cut.is_finite() && cut as f64 != value;
    f16::from_f32(f32::from_bits(cut.to_bits() | sticky as u32))
}

/// Adds products to an accumulator.
fn add(format: Format, factors: impl Iterator<Item = (Factor, Factor)> + Clone, old: Factor, how: Accumulation) -> f64 {
    let values = factors.clone().map(|(a, b)| a.value * b.value).chain([old.value]);
    let plain = values.clone().sum();
    let not_zero = factors.filter(|(a, b)| a.value * b.value != 0.0).map(|(a, b)| a.exponent + b.exponent);
    let largest = not_zero.chain((old.value != 0.0).then_some(old.exponent)).max();
    match (how, largest) {
        (Accumulation::Truncated, Some(largest)) if values.clone().all(f64::is_finite) => {
            let kept = format.kept_bits();
            let sum: f64 = values.map(|value| truncate(value, largest, kept)).sum();
            if sum == 0.0 { sum } else { truncate(sum, exponent(sum), kept) }
        }
        _ => plain,
    }
}

impl Sum {
    /// Number of elements in a register.
    pub fn packed(self) -> usize {
        if self == Self::F16 { 2 } else { 1 }
    }

    /// What a register holds after products were added to its element `element`.
    pub fn update(
        self,
        register: u32,
        element: usize,
        format: Format,
        factors: impl Iterator<Item = (Factor, Factor)> + Clone,
        how: Accumulation,
    ) -> u32 {
        let old = |value: f64, smallest| Factor { value, exponent: exponent(value).max(smallest) };
        match self {
            Self::I32 => {
                let sum: i32 = factors.map(|(a, b)| a.value as i32 * b.value as i32).sum();
                (register as i32).wrapping_add(sum) as u32
            }
            Self::F32 => {
                let sum = add(format, factors, old(f32::from_bits(register) as f64, -126), how);
                let rounded = if how == Accumulation::Truncated { f32_toward_zero(sum) } else { sum as f32 };
                if sum.is_nan() { NAN } else { rounded.to_bits() }
            }
            Self::F16 => {
                let shift = 16 * element;
                let sum = add(format, factors, old(f16::from_bits((register >> shift) as u16).to_f64(), -14), how);
                let rounded = if sum.is_nan() { F16_NAN } else { f16_nearest(sum).to_bits() };
                register & !(0xffff << shift) | (rounded as u32) << shift
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums that an H100 made: A's and B's codes, the accumulator before and after.
    #[test]
    fn truncated_sums_are_the_hardware_s() {
        for line in include_str!("../../tests/data/hopper_e4m3_sums.txt").lines().filter(|line| !line.starts_with('#'))
        {
            let [a, b, before, after] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let codes =
                |text: &str| -> Vec<u8> { text.as_bytes().chunks(2).map(|digits| hexadecimal(digits) as u8).collect() };
            let bits = |text: &str| hexadecimal(text.as_bytes());
            let decode = |code| Format::E4m3.decode(code as u32);
            let factors: Vec<_> = codes(a).into_iter().zip(codes(b)).map(|(a, b)| (decode(a), decode(b))).collect();
            let factors = factors.iter().copied();
            let sum = Sum::F32.update(bits(before), 0, Format::E4m3, factors, Accumulation::Truncated);
            assert_eq!(sum, bits(after), "{line}");
        }
    }

    fn hexadecimal(digits: &[u8]) -> u32 {
        u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
    }

    #[test]
    fn rounds_once() {
        assert_eq!(f32_toward_zero(1.0 + 2f64.powi(-24) * 1.5), 1.0);
        assert_eq!(f32_toward_zero(-1.0 - 2f64.powi(-23) * 1.9), -1.0 - 2f32.powi(-23));
        assert_eq!(f32_toward_zero(2f64.powi(128) - 2f64.powi(80)), f32::MAX);
        assert_eq!(f32_toward_zero(2f64.powi(128)), f32::INFINITY);
        // between two f16, just above the middle, by less than an f32 tells
        assert_eq!(f16_nearest(1.0 + 2f64.powi(-11) + 2f64.powi(-40)), f16::from_f32(1.0 + 2f32.powi(-10)));
        assert_eq!(f16_nearest(1.0 + 2f64.powi(-11)), f16::from_f32(1.0));
        assert_eq!(f16_nearest(65519.99), f16::MAX);
        assert_eq!(f16_nearest(65520.0), f16::INFINITY);
        assert_eq!(f16_nearest(f64::NEG_INFINITY), f16::NEG_INFINITY);
    }

    /// One product and an accumulator that it is much smaller than.
    #[test]
    fn truncation_keeps_bits_below_the_largest_exponent() {
        let one = |format: Format, product: f64, old: f64| {
            let factor = |value| Factor { value, exponent: exponent(value) };
            add(format, [(factor(product), factor(1.0))].into_iter(), factor(old), Accumulation::Truncated)
        };
        assert_eq!(one(Format::E4m3, 3.0, 16384.0), 16386.0);
        assert_eq!(one(Format::E4m3, -3.0, 16384.0), 16382.0);
        assert_eq!(one(Format::E4m3, 1.0, 16384.0), 16384.0);
        assert_eq!(one(Format::F16, 2f64.powi(-25), 1.0), 1.0 + 2f64.powi(-25));
        assert_eq!(one(Format::F16, 2f64.powi(-26), 1.0), 1.0);
        assert_eq!(one(Format::F16, -0.5, 0.5), 0.0);
        assert!(one(Format::F16, f64::NAN, 0.5).is_nan());
    }
}
