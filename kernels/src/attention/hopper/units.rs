//! What e4m3 values are stored in units of, and less: their channels' scales, their segments' means.

use sage_layout::params::AttentionParams;
use sage_layout::tile::stored_head_dim;
use simt::{global, math};

use crate::attention::schedule::WorkItem;
use crate::sequences::Sequences;

/// Adds `row_sum · mean` of segment `segment` to the output's registers.
///
/// # Safety
///
/// The parameters' means are there, and the item's sequence has the segment.
#[inline(always)]
pub unsafe fn add_means<S: Sequences, const HEAD_DIM: u32>(
    params: &AttentionParams,
    item: WorkItem<S>,
    segment: u32,
    lane: u32,
    row_sum: [f32; 2],
    output: &mut [f32],
) {
    let means = item.sequence.first_segment(item.key_head, S::segment_places(params));
    let means = (means + segment as u64) * const { stored_head_dim(HEAD_DIM) } as u64 + 2 * (lane % 4) as u64;
    let means = params.value_mean_codes + 4 * means;
    for group in 0..HEAD_DIM as usize / 8 {
        // SAFETY: means hold a row for each segment of each key head.
        let mean = unsafe { global::load_f32x2(means + 32 * group as u64) };
        for part in 0..4 {
            let sum = &mut output[4 * group + part];
            *sum = math::fma(row_sum[part / 2], mean[part % 2], *sum);
        }
    }
}

/// The output's registers, divided by their rows' denominators and multiplied by their channels' scales.
///
/// # Safety
///
/// The parameters' scales are there.
#[inline(always)]
pub unsafe fn scaled<S: Sequences, const HEAD_DIM: u32, const REGISTERS: usize>(
    params: &AttentionParams,
    item: WorkItem<S>,
    lane: u32,
    inverse: [f32; 2],
    output: &[f32; REGISTERS],
) -> [f32; REGISTERS] {
    let row = item.sequence.row(item.key_head, &params.sequences);
    let scales = row as u64 * const { stored_head_dim(HEAD_DIM) } as u64 + 2 * (lane % 4) as u64;
    let scales = params.value_scale + 4 * scales;
    let mut scaled = [0.0; REGISTERS];
    for group in 0..HEAD_DIM as usize / 8 {
        // without keys there are no scales
        let scale = match S::RAGGED && item.sequence.keys(0) == 0 {
            true => [0.0; 2],
            // SAFETY: scales hold a row for each key head.
            false => unsafe { global::load_f32x2(scales + 32 * group as u64) },
        };
        for part in 0..4 {
            let index = 4 * group + part;
            scaled[index] = output[index] * inverse[part / 2] * scale[part % 2];
        }
    }
    scaled
}
