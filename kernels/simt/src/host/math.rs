//! Where PTX only bounds the error, the host computes the correctly rounded value (or close to it).

use half::{bf16, f16};

use super::poison;

/// Subnormal numbers become zeros of their sign, as with `.ftz`.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

#[track_caller]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    poison::check("fma", &[a, b, c]);
    a.mul_add(b, c)
}

#[track_caller]
pub fn fma_saturated(a: f32, b: f32, c: f32) -> f32 {
    let result = fma(a, b, c);
    if result.is_nan() { 0.0 } else { result.clamp(0.0, 1.0) }
}

#[track_caller]
pub fn fma_f16x2(a: u32, b: u32, c: u32) -> u32 {
    let number = |half: u32| f16::from_bits(half as u16).to_f64();
    let rounded = |[a, b, c]: [u32; 3]| {
        // the product of two f16 is exact in f64
        f16::from_f64(number(a) * number(b) + number(c)).to_bits() as u32
    };
    rounded([a, b, c]) | rounded([a, b, c].map(|pair| pair >> 16)) << 16
}

#[track_caller]
pub fn exp2(x: f32) -> f32 {
    poison::check("ex2", &[x]);
    flush((flush(x) as f64).exp2() as f32)
}

#[track_caller]
pub fn log2(x: f32) -> f32 {
    poison::check("lg2", &[x]);
    (flush(x) as f64).log2() as f32
}

#[track_caller]
pub fn reciprocal(x: f32) -> f32 {
    poison::check("rcp", &[x]);
    flush(1.0 / flush(x))
}

#[track_caller]
pub fn or3(a: u32, b: u32, c: u32) -> u32 {
    a | b | c
}

pub fn opaque(value: u32) -> u32 {
    value
}

/// Applies a function to the low halves and to the high halves.
fn halves(a: u32, b: u32, function: impl Fn(u16, u16) -> u16) -> u32 {
    function(a as u16, b as u16) as u32 | (function((a >> 16) as u16, (b >> 16) as u16) as u32) << 16
}

/// One of two 16-bit numbers, as `pick` chooses between them as f32.
fn pick(a: (u16, f32), b: (u16, f32), pick: impl Fn(f32, f32) -> bool) -> u16 {
    if a.1.is_nan() || pick(b.1, a.1) && !b.1.is_nan() { b.0 } else { a.0 }
}

macro_rules! packed {
    ($($name:ident $format:ident, $compare:ident;)*) => { $(
        pub fn $name(a: u32, b: u32) -> u32 {
            let number = |bits| (bits, $format::from_bits(bits).to_f32());
            halves(a, b, |a, b| pick(number(a), number(b), |a, b| a.total_cmp(&b).$compare()))
        }
    )* };
}

packed! {
    min_f16x2 f16, is_lt;
    max_f16x2 f16, is_gt;
    min_bf16x2 bf16, is_lt;
    max_bf16x2 bf16, is_gt;
}

macro_rules! packed_nan {
    ($($name:ident $number:ident, $format:ident;)*) => { $(
        pub fn $name(a: u32, b: u32) -> u32 {
            let nan = $format::NAN.to_bits();
            let is_nan = |bits| $format::from_bits(bits).is_nan();
            let numbers = $number(a, b);
            let low = if is_nan(a as u16) || is_nan(b as u16) { nan } else { numbers as u16 };
            let high = (numbers >> 16) as u16;
            let high = if is_nan((a >> 16) as u16) || is_nan((b >> 16) as u16) { nan } else { high };
            low as u32 | (high as u32) << 16
        }
    )* };
}

packed_nan! {
    min_nan_f16x2 min_f16x2, f16;
    max_nan_f16x2 max_f16x2, f16;
    min_nan_bf16x2 min_bf16x2, bf16;
    max_nan_bf16x2 max_bf16x2, bf16;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturates_between_0_and_1() {
        assert_eq!(
            [0.5, -3.0, 9.0, f32::INFINITY, f32::NAN].map(|x| fma_saturated(x, 1.0, 0.25)),
            [0.75, 0.0, 1.0, 1.0, 0.0]
        );
    }

    #[test]
    fn halves_are_apart() {
        // 2 · 3 − 1 and −1 · 0.5 − 0.25
        assert_eq!(fma_f16x2(0xbc00_4000, 0x3800_4200, 0xb400_bc00), 0xba00_4500);
    }

    /// What GPUs without the instructions compute: of all numbers, each with those around it and every one in 251.
    #[test]
    fn extremes_in_integers_are_the_same() {
        use sage_layout::half::{self, Format};
        type Case = (Format, fn(Format, u16, u16) -> u16, fn(u32, u32) -> u32);
        let cases: [Case; 8] = [
            (half::F16, Format::min, min_f16x2),
            (half::F16, Format::max, max_f16x2),
            (half::F16, Format::min_nan, min_nan_f16x2),
            (half::F16, Format::max_nan, max_nan_f16x2),
            (half::BF16, Format::min, min_bf16x2),
            (half::BF16, Format::max, max_bf16x2),
            (half::BF16, Format::min_nan, min_nan_bf16x2),
            (half::BF16, Format::max_nan, max_nan_bf16x2),
        ];
        for (index, (format, function, expected)) in cases.into_iter().enumerate() {
            for a in 0..=u16::MAX {
                let others = (a % 251..=u16::MAX - 251).step_by(251).map(|b| (b, b ^ 0x8000));
                for (b, c) in others.chain([(a, a.wrapping_add(1)), (a.wrapping_sub(1), a ^ 0x8000)]) {
                    let (pair, other) = (a as u32 | (c as u32) << 16, b as u32 | (a as u32) << 16);
                    let result = format.pairs(pair, other, function);
                    assert_eq!(result, expected(pair, other), "case {index}: {pair:#x} and {other:#x}");
                }
            }
        }
    }

    #[test]
    fn packed_extremes_take_halves_apart() {
        // (1, -2) and (-0, NaN)
        assert_eq!(min_f16x2(0xc000_3c00, 0x7e00_8000), 0xc000_8000);
        assert_eq!(max_f16x2(0xc000_3c00, 0x7e00_8000), 0xc000_3c00);
        assert_eq!(max_f16x2(0x7e00_8000, 0xc000_0000), 0xc000_0000);
        assert_eq!(min_bf16x2(0xc000_3f80, 0x7fc0_8000), 0xc000_8000);
        assert_eq!(max_bf16x2(0xff80_3f80, 0x7f80_7f80), 0x7f80_7f80);
        assert_eq!(min_nan_f16x2(0xc000_3c00, 0x7e00_8000), 0x7e00_8000);
        assert_eq!(max_nan_bf16x2(0x4000_3f80, 0x3f80_ffc0), 0x4000_7fc0);
    }
}
