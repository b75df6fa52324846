//! For any CPU.

use super::multiply::{Matrix, Vector, multiply_accumulate};
use super::{ProbabilityFormat, QUAD, ROWS, TILE, softmax};

pub(super) use softmax::{decode_e4m3, round_all_to_f16 as round_to_f16, scores};

pub(super) fn dots(queries: &[i8], keys: &[i8], dots: &mut [[i32; TILE]; ROWS]) {
    let width = queries.len() / ROWS;
    for (query, dots) in queries.chunks_exact(width).zip(dots) {
        dots.fill(0);
        for (query, keys) in query.chunks_exact(QUAD).zip(keys.chunks_exact(QUAD * TILE)) {
            for (dot, key) in dots.iter_mut().zip(keys.chunks_exact(QUAD)) {
                for (query, key) in query.iter().zip(key) {
                    *dot += i32::from(*query) * i32::from(*key);
                }
            }
        }
    }
}

pub(super) fn probabilities(format: ProbabilityFormat, scores: &mut [f32; TILE], offset: f32) -> f32 {
    softmax::probabilities::<false>(format, scores, offset)
}

pub(super) fn multiply_accumulate_f32(a: Matrix<&[f32]>, b: Matrix<&[f32]>, c: Matrix<&mut [f32]>, size: [usize; 2]) {
    // SAFETY: plain arrays need no special instructions.
    unsafe { multiply_accumulate::<[f32; 4], 4, 2>(a, b, c, size) }
}

pub(super) fn multiply_accumulate_f64(a: Matrix<&[f64]>, b: Matrix<&[f64]>, c: Matrix<&mut [f64]>, size: [usize; 2]) {
    // SAFETY: plain arrays need no special instructions.
    unsafe { multiply_accumulate::<[f64; 2], 4, 2>(a, b, c, size) }
}

macro_rules! array_vector {
    ($element:ty, $lanes:literal) => {
        // SAFETY: an array is its elements.
        unsafe impl Vector for [$element; $lanes] {
            type Element = $element;
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn splat(element: $element) -> Self {
                [element; $lanes]
            }
            #[inline(always)]
            unsafe fn load(source: *const $element) -> Self {
                // SAFETY: the caller's; an array is aligned like its elements.
                unsafe { source.cast::<Self>().read() }
            }
            #[inline(always)]
            unsafe fn store(self, destination: *mut $element) {
                // SAFETY: as above.
                unsafe { destination.cast::<Self>().write(self) }
            }
            #[inline(always)]
            unsafe fn multiply_add(self, factor: Self, addend: Self) -> Self {
                std::array::from_fn(|lane| self[lane] * factor[lane] + addend[lane])
            }
        }
    };
}
array_vector!(f32, 4);
array_vector!(f64, 2);
