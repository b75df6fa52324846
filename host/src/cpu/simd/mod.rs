//! The inner loops of the CPU's attention, for each instruction set.
//!
//! | module | CPUs |
//! |---|---|
//! | [`portable`] | any |
//! | [`avx2`] | x86-64 with AVX2 and FMA |
//! | [`avx512`] | x86-64 with AVX-512 (F, BW, DQ, VL, VNNI) |
//!
//! Each has the same functions. Integer results are equal everywhere; floating-point results differ in their last bits,
//! because only some CPUs fuse multiplication with addition.
//!
//! Matrix products work on [`ROWS`] rows at a time, so that one block's scores stay in the first-level cache.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod multiply;
mod portable;
mod softmax;

use std::ops::Range;

use sage_layout::tile::KEY_TILE;

pub(super) use multiply::Matrix;

/// Rows of a block.
pub(super) const ROWS: usize = 16;
/// Keys of a tile.
pub(super) const TILE: usize = KEY_TILE as usize;
/// Adjacent channels that an integer instruction multiplies and adds up.
pub(super) const QUAD: usize = 4;

/// What probabilities are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbabilityFormat {
    E4m3,
    F16,
    Bf16,
}

/// An instruction set that this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InstructionSet(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Calls the same function of the module that `self` stands for.
macro_rules! dispatch {
    ($self:ident, $function:ident($($argument:expr),*)) => {
        match $self.0 {
            Level::Portable => portable::$function($($argument),*),
            // SAFETY: `InstructionSet::available` makes this level only on CPUs that have its instructions.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::$function($($argument),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::$function($($argument),*) },
        }
    };
}

impl InstructionSet {
    /// Every instruction set that this CPU has, best first.
    fn available() -> impl Iterator<Item = Self> {
        [
            #[cfg(target_arch = "x86_64")]
            (is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("fma"))
            .then_some(Self(Level::Avx512)),
            #[cfg(target_arch = "x86_64")]
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(Level::Avx2)),
            Some(Self(Level::Portable)),
        ]
        .into_iter()
        .flatten()
    }

    /// The best instruction set that this CPU has.
    pub fn detect() -> Self {
        Self::available().next().unwrap_or(Self(Level::Portable))
    }

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "AVX-512",
        }
    }

    /// `dots[row][key] = Σ queries[row][channel] · keys[key][channel]` for [`ROWS`] rows and a tile of keys.
    ///
    /// `queries` is `[ROWS][width]`, `keys` is `[width / 4][128][4]` (four adjacent channels of every key); codes are
    /// within ±127.
    pub fn dots(self, queries: &[i8], keys: &[i8], dots: &mut [[i32; TILE]; ROWS]) {
        dispatch!(self, dots(queries, keys, dots))
    }

    /// One row's scores: `dots · query_scale · key_scales`, plus the bias if there is one, −∞ but for the keys that are `visible`. Returns the
    /// largest.
    pub fn scores(
        self,
        dots: &[i32; TILE],
        key_scales: &[f32; TILE],
        query_scale: f32,
        bias: Option<&[f32; TILE]>,
        visible: Range<usize>,
        scores: &mut [f32; TILE],
    ) -> f32 {
        dispatch!(self, scores(dots, key_scales, query_scale, bias, visible, scores))
    }

    /// Rounds each number to f16.
    pub fn round_to_f16(self, numbers: &mut [f32]) {
        dispatch!(self, round_to_f16(numbers))
    }

    /// Replaces each score by `2^(score + offset)`, rounded. Returns their sum: in e4m3, where 448 is the largest, after
    /// rounding, else before.
    pub fn probabilities(self, format: ProbabilityFormat, scores: &mut [f32; TILE], offset: f32) -> f32 {
        dispatch!(self, probabilities(format, scores, offset))
    }

    /// The numbers that e4m3 codes stand for.
    pub fn decode_e4m3(self, codes: &[u8], values: &mut [f32]) {
        dispatch!(self, decode_e4m3(codes, values))
    }

    /// `c += a · b` for [`ROWS`] rows of `a` and `c`; `columns` is a multiple of 64.
    pub fn multiply_accumulate_f32(
        self,
        a: Matrix<&[f32]>,
        b: Matrix<&[f32]>,
        c: Matrix<&mut [f32]>,
        [depth, columns]: [usize; 2],
    ) {
        dispatch!(self, multiply_accumulate_f32(a, b, c, [depth, columns]))
    }

    /// `c += a · b` for [`ROWS`] rows of `a` and `c`; `columns` is a multiple of 64.
    pub fn multiply_accumulate_f64(
        self,
        a: Matrix<&[f64]>,
        b: Matrix<&[f64]>,
        c: Matrix<&mut [f64]>,
        [depth, columns]: [usize; 2],
    ) {
        dispatch!(self, multiply_accumulate_f64(a, b, c, [depth, columns]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers without a pattern, the same in every run.
    fn noise(seed: u32) -> impl FnMut() -> u32 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            state >> 8
        }
    }

    #[test]
    fn integer_products_are_equal_everywhere() {
        for width in [64, 128, 256] {
            let mut noise = noise(1);
            // the extremes often, for the sake of 16-bit sums on the way
            let mut code = || match noise() % 4 {
                0 => 127,
                1 => -127,
                _ => (noise() % 255) as i32 as i8 as i32,
            };
            let mut codes = |len: usize| -> Vec<i8> { (0..len).map(|_| code().max(-127) as i8).collect() };
            let (queries, keys) = (codes(ROWS * width), codes(TILE * width));
            for instructions in InstructionSet::available() {
                let mut dots = [[0; TILE]; ROWS];
                instructions.dots(&queries, &keys, &mut dots);
                for (row, dots) in dots.iter().enumerate() {
                    for (key, &dot) in dots.iter().enumerate() {
                        let product = |channel: usize| {
                            let key = keys[(channel / QUAD * TILE + key) * QUAD + channel % QUAD];
                            i32::from(queries[row * width + channel]) * i32::from(key)
                        };
                        assert_eq!(dot, (0..width).map(product).sum(), "{instructions:?}, row {row}, key {key}");
                    }
                }
            }
        }
    }

    #[test]
    fn matrix_products_are_exact_on_small_integers() {
        let mut noise = noise(2);
        let mut integers = |len: usize| -> Vec<f32> { (0..len).map(|_| (noise() % 17) as f32 - 8.0).collect() };
        for columns in [64, 128, 256] {
            for depth in [0, 1, 7, 128] {
                let (a, b, c) = (integers(ROWS * 130), integers(128 * 260), integers(ROWS * 270));
                let wide = |narrow: &[f32]| -> Vec<f64> { narrow.iter().map(|&x| f64::from(x)).collect() };
                for instructions in InstructionSet::available() {
                    let (mut narrow, mut double) = (c.clone(), wide(&c));
                    instructions.multiply_accumulate_f32(
                        Matrix { elements: &a, stride: 130 },
                        Matrix { elements: &b, stride: 260 },
                        Matrix { elements: &mut narrow, stride: 270 },
                        [depth, columns],
                    );
                    instructions.multiply_accumulate_f64(
                        Matrix { elements: &wide(&a), stride: 130 },
                        Matrix { elements: &wide(&b), stride: 260 },
                        Matrix { elements: &mut double, stride: 270 },
                        [depth, columns],
                    );
                    for (place, &before) in c.iter().enumerate() {
                        let (row, column) = (place / 270, place % 270);
                        let product = |k: usize| a[row * 130 + k] * b[k * 260 + column];
                        let sum: f32 = if column < columns { (0..depth).map(product).sum() } else { 0.0 };
                        assert_eq!(narrow[place], before + sum, "{instructions:?}, {place}");
                        assert_eq!(double[place], f64::from(before + sum), "{instructions:?}, {place}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_bias_is_added_to_every_score() {
        let dots: [i32; TILE] = std::array::from_fn(|key| key as i32 - 60);
        let bias: [f32; TILE] = std::array::from_fn(|key| (key % 7) as f32);
        for instructions in InstructionSet::available() {
            let mut row = [0.0; TILE];
            let max = instructions.scores(&dots, &[0.5; TILE], 4.0, Some(&bias), 10..100, &mut row);
            for (key, score) in row.into_iter().enumerate() {
                let expected = 2.0 * (key as f32 - 60.0) + (key % 7) as f32;
                assert_eq!(
                    score,
                    if (10..100).contains(&key) { expected } else { f32::NEG_INFINITY },
                    "{instructions:?}"
                );
            }
            assert_eq!(max, row.into_iter().fold(f32::NEG_INFINITY, f32::max));
        }
    }

    #[test]
    fn numbers_are_rounded_to_f16() {
        let mut numbers: Vec<f32> = (0..1 << 20).map(|step| f32::from_bits(step * 4093)).collect();
        numbers.extend([65504.0, 65519.9, 65520.0, -65520.0, 65519.996, f32::INFINITY, -0.0, f32::NAN, 3e-8, 2.9e-8]);
        for instructions in InstructionSet::available() {
            let mut rounded = numbers.clone();
            instructions.round_to_f16(&mut rounded);
            for (&number, rounded) in numbers.iter().zip(rounded) {
                let expected = half::f16::from_f32(number).to_f32();
                let equal = rounded.to_bits() == expected.to_bits() || rounded.is_nan() && expected.is_nan();
                assert!(equal, "{instructions:?}: {number:e} to {rounded:e}, expected {expected:e}");
            }
        }
    }

    #[test]
    fn probabilities_agree() {
        let mut noise = noise(3);
        let dots: [i32; TILE] = std::array::from_fn(|_| noise() as i32 % 200_000 - 100_000);
        let key_scales: [f32; TILE] = std::array::from_fn(|key| [0.01, 0.02, 0.03, 0.015][key % 8 / 2]);
        for visible in [0..1, 0..2, 0..17, 0..127, 0..128, 3..4, 16..90, 127..128] {
            for format in [ProbabilityFormat::E4m3, ProbabilityFormat::F16, ProbabilityFormat::Bf16] {
                let mut expected = None;
                for instructions in InstructionSet::available() {
                    let mut row = [0.0; TILE];
                    let max = instructions.scores(&dots, &key_scales, 0.005, None, visible.clone(), &mut row);
                    let sum = instructions.probabilities(format, &mut row, 5.8 - max);
                    assert!(
                        row[..visible.start].iter().chain(&row[visible.end..]).all(|&probability| probability == 0.0)
                    );
                    let of_rounded = row.iter().sum::<f32>();
                    if format == ProbabilityFormat::E4m3 {
                        assert_eq!(of_rounded, sum);
                        assert_eq!(*expected.get_or_insert((row, max, sum)), (row, max, sum), "{instructions:?}");
                    }
                    assert!((of_rounded - sum).abs() <= sum / 256.0, "{format:?}");
                }
            }
        }
    }
}
