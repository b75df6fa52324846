//! For x86-64 with AVX2 and FMA.

use std::arch::x86_64::*;
use std::ops::Range;

use super::multiply::{Matrix, multiply_accumulate, register_vector};
use super::{ProbabilityFormat, QUAD, ROWS, TILE, softmax};

/// Bytes × bytes to 16 bits (`vpmaddubsw`) to 32 bits (`vpmaddwd`). The first factor of `vpmaddubsw` is unsigned, so the
/// query's sign moves to the key; two products of at most 127² fit into 16 bits.
#[target_feature(enable = "avx2,fma")]
pub(super) fn dots(queries: &[i8], keys: &[i8], dots: &mut [[i32; TILE]; ROWS]) {
    /// Rows and vectors of 8 keys whose sums stay in registers.
    const BLOCK: [usize; 2] = [2, 4];
    const LANES: usize = 8;
    let width = queries.len() / ROWS;
    assert!(width.is_multiple_of(QUAD) && keys.len() == width * TILE);
    let ones = _mm256_set1_epi16(1);
    for row in (0..ROWS).step_by(BLOCK[0]) {
        for first in (0..TILE).step_by(BLOCK[1] * LANES) {
            let mut sums = [[_mm256_setzero_si256(); BLOCK[1]]; BLOCK[0]];
            for quad in 0..width / QUAD {
                let mut key = [_mm256_setzero_si256(); BLOCK[1]];
                for (n, key) in key.iter_mut().enumerate() {
                    let start = (quad * TILE + first + n * LANES) * QUAD;
                    // SAFETY: quad < width / 4 and first + n · 8 + 8 ≤ 128, so the 32 bytes are in `keys`.
                    *key = unsafe { _mm256_loadu_si256(keys.as_ptr().add(start).cast()) };
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: row + r < 16, so the 4 bytes are in `queries`.
                    let query =
                        unsafe { queries.as_ptr().add((row + r) * width + quad * QUAD).cast::<i32>().read_unaligned() };
                    let query = _mm256_set1_epi32(query);
                    let magnitude = _mm256_abs_epi8(query);
                    for (sum, key) in sums.iter_mut().zip(key) {
                        let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(key, query));
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                    }
                }
            }
            for (dots, sums) in dots[row..].iter_mut().zip(sums) {
                for (dots, sum) in dots[first..].chunks_exact_mut(LANES).zip(sums) {
                    // SAFETY: a chunk has 8 elements.
                    unsafe { _mm256_storeu_si256(dots.as_mut_ptr().cast(), sum) };
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn scores(
    dots: &[i32; TILE],
    key_scales: &[f32; TILE],
    query_scale: f32,
    bias: Option<&[f32; TILE]>,
    visible: Range<usize>,
    scores: &mut [f32; TILE],
) -> f32 {
    softmax::scores(dots, key_scales, query_scale, bias, visible, scores)
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn round_to_f16(numbers: &mut [f32]) {
    softmax::round_all_to_f16(numbers)
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn probabilities(format: ProbabilityFormat, scores: &mut [f32; TILE], offset: f32) -> f32 {
    softmax::probabilities::<true>(format, scores, offset)
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn decode_e4m3(codes: &[u8], values: &mut [f32]) {
    softmax::decode_e4m3(codes, values)
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn multiply_accumulate_f32(a: Matrix<&[f32]>, b: Matrix<&[f32]>, c: Matrix<&mut [f32]>, size: [usize; 2]) {
    // SAFETY: this function's target features.
    unsafe { multiply_accumulate::<__m256, 4, 2>(a, b, c, size) }
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn multiply_accumulate_f64(a: Matrix<&[f64]>, b: Matrix<&[f64]>, c: Matrix<&mut [f64]>, size: [usize; 2]) {
    // SAFETY: this function's target features.
    unsafe { multiply_accumulate::<__m256d, 4, 2>(a, b, c, size) }
}

register_vector!(__m256, f32, 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps);
register_vector!(__m256d, f64, 4, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_fmadd_pd);
