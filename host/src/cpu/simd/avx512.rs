//! For x86-64 with AVX-512 and VNNI.

use std::arch::x86_64::*;
use std::ops::Range;

use super::multiply::{Matrix, multiply_accumulate, register_vector};
use super::{ProbabilityFormat, QUAD, ROWS, TILE, softmax};

/// Four products and their sum an instruction (`vpdpbusd`). Its first factor is unsigned, so that it gets the query plus
/// 128, and 128 times the sum of the key's codes is taken off beforehand.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
pub(super) fn dots(queries: &[i8], keys: &[i8], dots: &mut [[i32; TILE]; ROWS]) {
    /// Rows and vectors of 16 keys whose sums stay in registers.
    const BLOCK: [usize; 2] = [4, 4];
    const LANES: usize = 16;
    const PLUS_128: i32 = 0x8080_8080u32 as i32;
    let width = queries.len() / ROWS;
    assert!(width.is_multiple_of(QUAD) && keys.len() == width * TILE);
    for first in (0..TILE).step_by(BLOCK[1] * LANES) {
        let key_at = |quad: usize, n: usize| {
            let start = (quad * TILE + first + n * LANES) * QUAD;
            // SAFETY: quad < width / 4 and first + n · 16 + 16 ≤ 128, so the 64 bytes are in `keys`.
            unsafe { _mm512_loadu_si512(keys.as_ptr().add(start).cast()) }
        };
        let mut corrections = [_mm512_setzero_si512(); BLOCK[1]];
        for quad in 0..width / QUAD {
            for (n, correction) in corrections.iter_mut().enumerate() {
                *correction = _mm512_dpbusd_epi32(*correction, _mm512_set1_epi32(PLUS_128), key_at(quad, n));
            }
        }
        for correction in &mut corrections {
            *correction = _mm512_sub_epi32(_mm512_setzero_si512(), *correction);
        }
        for row in (0..ROWS).step_by(BLOCK[0]) {
            let mut sums = [corrections; BLOCK[0]];
            for quad in 0..width / QUAD {
                let mut key = [_mm512_setzero_si512(); BLOCK[1]];
                for (n, key) in key.iter_mut().enumerate() {
                    *key = key_at(quad, n);
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: row + r < 16, so the 4 bytes are in `queries`.
                    let query =
                        unsafe { queries.as_ptr().add((row + r) * width + quad * QUAD).cast::<i32>().read_unaligned() };
                    let query = _mm512_set1_epi32(query ^ PLUS_128);
                    for (sum, key) in sums.iter_mut().zip(key) {
                        *sum = _mm512_dpbusd_epi32(*sum, query, key);
                    }
                }
            }
            for (dots, sums) in dots[row..].iter_mut().zip(sums) {
                for (dots, sum) in dots[first..].chunks_exact_mut(LANES).zip(sums) {
                    // SAFETY: a chunk has 16 elements.
                    unsafe { _mm512_storeu_si512(dots.as_mut_ptr().cast(), sum) };
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
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

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
pub(super) fn round_to_f16(numbers: &mut [f32]) {
    softmax::round_all_to_f16(numbers)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
pub(super) fn probabilities(format: ProbabilityFormat, scores: &mut [f32; TILE], offset: f32) -> f32 {
    softmax::probabilities::<true>(format, scores, offset)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
pub(super) fn decode_e4m3(codes: &[u8], values: &mut [f32]) {
    softmax::decode_e4m3(codes, values)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
pub(super) fn multiply_accumulate_f32(a: Matrix<&[f32]>, b: Matrix<&[f32]>, c: Matrix<&mut [f32]>, size: [usize; 2]) {
    // SAFETY: this function's target features.
    unsafe { multiply_accumulate::<__m512, 8, 2>(a, b, c, size) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
pub(super) fn multiply_accumulate_f64(a: Matrix<&[f64]>, b: Matrix<&[f64]>, c: Matrix<&mut [f64]>, size: [usize; 2]) {
    // SAFETY: this function's target features.
    unsafe { multiply_accumulate::<__m512d, 8, 2>(a, b, c, size) }
}

register_vector!(__m512, f32, 16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps);
register_vector!(__m512d, f64, 8, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_fmadd_pd);
