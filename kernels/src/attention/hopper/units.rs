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
        let mean = unsafe { global::load_written_f32x2(means + 32 * group as u64) };
        for part in 0..4 {
            let sum = &mut output[4 * group + part];
            *sum = math::fma(row_sum[part / 2], mean[part % 2], *sum);
        }
    }
}

/// The channels' scales that belong to a lane's output registers: two for every four.
///
/// # Safety
///
/// The parameters' scales are there.
#[inline(always)]
pub unsafe fn scales<S: Sequences, const HEAD_DIM: u32, const REGISTERS: usize>(
    params: &AttentionParams,
    item: WorkItem<S>,
    lane: u32,
) -> [f32; REGISTERS] {
    let row = item.sequence.row(item.key_head, &params.sequences);
    let address = row as u64 * const { stored_head_dim(HEAD_DIM) } as u64 + 2 * (lane % 4) as u64;
    let address = params.value_scale + 4 * address;
    let mut scales = [0.0; REGISTERS];
    for group in 0..HEAD_DIM as usize / 8 {
        // without keys there are no scales
        if !S::RAGGED || item.sequence.keys(0) != 0 {
            // SAFETY: scales hold a row for each key head.
            [scales[2 * group], scales[2 * group + 1]] =
                unsafe { global::load_written_f32x2(address + 32 * group as u64) };
        }
    }
    scales
}

/// The output's registers, divided by their rows' denominators and multiplied by their channels' [`scales`].
#[inline(always)]
pub fn scaled<const HEAD_DIM: u32, const REGISTERS: usize>(
    scales: &[f32; REGISTERS],
    inverse: [f32; 2],
    output: &[f32; REGISTERS],
) -> [f32; REGISTERS] {
    let mut scaled = [0.0; REGISTERS];
    for group in 0..HEAD_DIM as usize / 8 {
        for part in 0..4 {
            let index = 4 * group + part;
            scaled[index] = output[index] * inverse[part / 2] * scales[2 * group + part % 2];
        }
    }
    scaled
}
