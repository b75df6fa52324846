//! Attention on parts of the keys to attention on all: outputs are averaged with the weights that their log-sum-exps say.

use core::f32::consts::{LN_2, LOG2_E};

use sage_layout::params::MergeParams;
use sage_layout::tile::MAX_HEAD_DIM;
use simt::{global, math, thread, warp};

use crate::element::Element;

/// Rows of a CTA, one a warp.
const ROWS: u32 = 4;
/// Channels that a lane has.
const CHANNELS: usize = (MAX_HEAD_DIM / warp::LANES) as usize;

/// The kernel.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn merge<E: Element, const HEAD_DIM: u32>(params: &MergeParams) {
    let MergeParams { parts, output, count, .. } = params;
    let thread = thread::thread_idx_x();
    let (row, lane) = (thread::block_idx_x() * ROWS + thread / warp::LANES, thread % warp::LANES);
    if row >= params.rows {
        return;
    }
    let (head_index, token) = math::div_rem(row, output.tokens);
    let (batch, head) = math::div_rem(head_index, output.heads);
    // SAFETY: the row is one of those that the parameters say.
    unsafe {
        let log_sum_exp = |part: u32| {
            let at = params.log_sum_exps.wrapping_add_signed(part as i64 * params.log_sum_exp_stride);
            global::load_f32(at + 4 * row as u64)
        };
        let mut sink = f32::NEG_INFINITY;
        if params.sinks != 0 {
            sink = global::load_f32(params.sinks + 4 * head as u64);
        }
        let mut largest = sink;
        for part in 0..*count {
            let part = log_sum_exp(part);
            // NaN stays
            if part > largest || part.is_nan() {
                largest = part;
            }
        }
        let weight = |log_sum_exp: f32| math::exp2((log_sum_exp - largest) * LOG2_E);
        let is_empty = largest == f32::NEG_INFINITY;
        let mut sum = if is_empty { 1.0 } else { weight(sink) };
        let mut values = [0.0f32; CHANNELS];
        if !is_empty {
            for part in 0..*count {
                let weight = weight(log_sum_exp(part));
                sum += weight;
                // what has no weight may be anything
                if weight != 0.0 {
                    for step in 0..(HEAD_DIM / warp::LANES) as usize {
                        let channel = lane + step as u32 * warp::LANES;
                        if channel < parts.head_dim {
                            let strides = &parts.strides;
                            let index = batch as i64 * strides.batch
                                + head as i64 * strides.head
                                + token as i64 * strides.token
                                + channel as i64;
                            let part = parts.address.wrapping_add_signed(part as i64 * params.part_stride);
                            let value = match params.parts_are_f32 {
                                0 => E::to_f32(global::load_u16(part.wrapping_add_signed(2 * index))),
                                _ => global::load_f32(part.wrapping_add_signed(4 * index)),
                            };
                            values[step] = math::fma(weight, value, values[step]);
                        }
                    }
                }
            }
        }
        let inverse = math::reciprocal(sum);
        let strides = &output.strides;
        let index = batch as i64 * strides.batch + head as i64 * strides.head + token as i64 * strides.token;
        for step in 0..(HEAD_DIM / warp::LANES) as usize {
            let channel = lane + step as u32 * warp::LANES;
            if channel < output.head_dim {
                let at = output.address.wrapping_add_signed(2 * (index + channel as i64));
                global::store_u16(at, E::pack([values[step] * inverse, 0.0]) as u16);
            }
        }
        if params.log_sum_exp != 0 && lane == 0 {
            let all = if is_empty { f32::NEG_INFINITY } else { math::fma(math::log2(sum), LN_2, largest) };
            global::store_f32(params.log_sum_exp + 4 * row as u64, all);
        }
    }
}
