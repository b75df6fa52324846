//! Quantization groups of queries, keys and values (SageAttention2, section 3.2), and their scales.
//!
//! One thread of the attention kernel holds rows `lane / 4` and `lane / 4 + 8` of its warp's 16 queries, and of every 8
//! keys the two of its quad position, `lane % 4`. The finest granularity gives every thread exactly one query scale and
//! one key scale a tile, so it costs no more than the coarser ones. Scales are therefore always *stored* at that
//! granularity; a coarser one repeats its scale:
//!
//! | granularity | queries that share a scale | keys that share a scale |
//! |---|---|---|
//! | per block | 64 (a warpgroup's rows) | 128 (a key tile) |
//! | per warp | 16 (a warp's rows) | 128 (a key tile) |
//! | per thread | 2 (rows `r` and `r + 8` of a warp) | 32 (keys with `key % 8 / 2` equal in a tile) |

use crate::mode::{PvAccum, QkMode};
use crate::tile::{KEY_TILE, WARP_ROWS, WARPGROUP_ROWS};

/// How many elements share a quantization scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Granularity {
    /// One scale for 64 queries, one for 128 keys.
    PerBlock = 1,
    /// One scale for the 16 queries of a warp, one for 128 keys.
    PerWarp = 2,
    /// One scale for the queries and for the keys that one thread holds: 2 queries, 32 keys.
    PerThread = 3,
}

impl Granularity {
    /// Every granularity, coarse to fine.
    pub const ALL: [Self; 3] = [Self::PerBlock, Self::PerWarp, Self::PerThread];
}

/// Stored scales of the 16 queries of a warp.
pub const QUERY_SCALES_PER_WARP: u32 = 8;
/// Stored scales of the 128 keys of a tile.
pub const KEY_SCALES_PER_TILE: u32 = 4;
/// Stored scales of the 64 queries of a query tile.
pub const QUERY_SCALES_PER_TILE: u32 = WARPGROUP_ROWS / WARP_ROWS * QUERY_SCALES_PER_WARP;

/// Smallest absolute maximum that a group of queries or keys is scaled by: a group of zeros gets this one's scale, and codes 0.
pub const INT_MIN_AMAX: f32 = 1e-7;
/// Largest INT8 code.
pub const INT8_MAX: f32 = 127.0;
/// Largest INT4 code.
pub const INT4_MAX: f32 = 7.0;
/// Largest e4m3 number.
pub const E4M3_MAX: f32 = 448.0;
/// What the largest magnitude of a value channel becomes where products are summed in f16: the sums of 64 keys, with
/// probabilities up to [`E4M3_MAX`], stay under f16's 65504.
pub const F16_SUM_VALUE_MAX: f32 = 2.25;
/// Smallest absolute maximum that a value channel is scaled by.
pub const VALUE_MIN_AMAX: f32 = 1e-30;
/// A value channel's scale never resolves less than this part of its mean: nothing smaller is in a 16-bit input, and
/// the mean in units of the scale stays a modest number.
pub const VALUE_MEAN_RESOLUTION: f32 = 1.0 / 4096.0;

/// Index of the stored scale of query `row`, counted from the first row of its head.
pub const fn query_scale_index(row: u32) -> u32 {
    row / WARP_ROWS * QUERY_SCALES_PER_WARP + row % 8
}

/// Index of the stored scale of `key`, counted from the first key of its head.
pub const fn key_scale_index(key: u32) -> u32 {
    key / KEY_TILE * KEY_SCALES_PER_TILE + key % 8 / 2
}

/// Whether two rows of a query tile (64 rows) share a scale.
pub const fn queries_share_scale(granularity: Granularity, a: u32, b: u32) -> bool {
    match granularity {
        Granularity::PerBlock => a / WARPGROUP_ROWS == b / WARPGROUP_ROWS,
        Granularity::PerWarp => a / WARP_ROWS == b / WARP_ROWS,
        Granularity::PerThread => query_scale_index(a) == query_scale_index(b),
    }
}

/// Whether two keys share a scale.
pub const fn keys_share_scale(granularity: Granularity, a: u32, b: u32) -> bool {
    match granularity {
        Granularity::PerBlock | Granularity::PerWarp => a / KEY_TILE == b / KEY_TILE,
        Granularity::PerThread => key_scale_index(a) == key_scale_index(b),
    }
}

/// Largest code of a mode.
#[inline(always)]
pub const fn largest_code(mode: QkMode) -> f32 {
    match mode {
        QkMode::Int8 => INT8_MAX,
        QkMode::Int4 => INT4_MAX,
    }
}

/// The scale of a group with codes up to `largest`, and what its elements are multiplied by before rounding half to even. A
/// group with an infinity or NaN has NaN for a scale, so that its scores are NaN.
#[inline(always)]
pub fn int_scale(amax: f32, largest: f32) -> (f32, f32) {
    if !amax.is_finite() {
        return (f32::NAN, 0.0);
    }
    let amax = if amax > INT_MIN_AMAX { amax } else { INT_MIN_AMAX };
    (amax / largest, largest / amax)
}

/// What the largest magnitude of a value channel becomes in e4m3.
#[inline(always)]
pub const fn largest_value(accum: PvAccum) -> f32 {
    match accum {
        PvAccum::F32F16 => F16_SUM_VALUE_MAX,
        _ => E4M3_MAX,
    }
}

/// The scale of a value channel, and what its elements are multiplied by before rounding to e4m3.
///
/// `amax` is the largest distance of an element from its segment's mean, `mean_amax` the largest absolute mean, `largest` what
/// the largest distance becomes: see [`largest_value`].
#[inline(always)]
pub fn value_scale(amax: f32, mean_amax: f32, largest: f32) -> (f32, f32) {
    let mut bound = mean_amax * VALUE_MEAN_RESOLUTION;
    if amax > bound {
        bound = amax;
    }
    if bound < VALUE_MIN_AMAX {
        bound = VALUE_MIN_AMAX;
    }
    let scale = bound / largest;
    (scale, 1.0 / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fragment;

    #[test]
    fn every_accumulator_element_of_a_lane_has_the_lanes_scale() {
        for lane in 0..32 {
            for element in 0..64 {
                let (row, key) = fragment::accumulator(lane, element);
                assert_eq!(query_scale_index(row), lane / 4);
                assert_eq!(key_scale_index(key), lane % 4);
            }
        }
    }

    #[test]
    fn groups_have_the_stated_sizes() {
        for (granularity, queries, keys) in
            [(Granularity::PerBlock, 64, 128), (Granularity::PerWarp, 16, 128), (Granularity::PerThread, 2, 32)]
        {
            for index in 0..64 {
                let shared = (0..256).filter(|&other| queries_share_scale(granularity, index, other)).count();
                assert_eq!(shared, queries);
            }
            for index in 0..128 {
                assert_eq!((0..512).filter(|&other| keys_share_scale(granularity, index, other)).count(), keys);
            }
        }
    }

    /// A chunk's products, each as large as codes let them be, are a number in f16.
    #[test]
    fn f16_sums_do_not_overflow() {
        assert!(crate::tile::KEY_CHUNK as f32 * E4M3_MAX * F16_SUM_VALUE_MAX <= 65504.0);
    }

    #[test]
    fn scales_are_finite_and_positive() {
        for amax in [0.0, 1e-45, 1e-30, 1e-7, 1.0, 65504.0, 3e38] {
            for mode in QkMode::ALL {
                let (scale, inverse) = int_scale(amax, largest_code(mode));
                assert!(scale > 0.0 && scale.is_finite() && inverse > 0.0 && inverse.is_finite());
                assert!(amax * inverse < largest_code(mode) + 0.5);
            }
            for (mean, accum) in [0.0, 1.0, 3e38].into_iter().flat_map(|mean| PvAccum::ALL.map(|accum| (mean, accum))) {
                let (scale, inverse) = value_scale(amax, mean, largest_value(accum));
                assert!(scale > 0.0 && scale.is_finite() && inverse > 0.0 && inverse.is_finite());
                assert!(amax * inverse <= largest_value(accum) * 1.00001);
            }
        }
    }
}
