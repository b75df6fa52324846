//! Attention on parts of the keys to attention on all: outputs are averaged with the weights that their log-sum-exps say.

use core::f32::consts::{LN_2, LOG2_E};

use sage_layout::kernel::MergeShared;
use sage_layout::params::MergeParams;
use sage_layout::tile::MAX_HEAD_DIM;
use simt::{global, math, shared, thread, warp};

use crate::element::Element;

/// Channels that a lane has.
const CHANNELS: usize = (MAX_HEAD_DIM / warp::LANES) as usize;
/// Parts whose outputs are loaded at a time.
const PARTS: u32 = 4;

/// The kernel. A warp has a row; its lanes weigh the parts, then each adds up its channels of all.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn merge<E: Element, const HEAD_DIM: u32>(params: &MergeParams) {
    let MergeParams { parts, output, count, .. } = params;
    let thread = thread::thread_idx_x();
    let (warp, lane) = (thread / warp::LANES, thread % warp::LANES);
    let row = thread::block_idx_x() * MergeShared::ROWS + warp;
    if row >= params.rows {
        return;
    }
    let (head_index, token) = math::div_rem(row, output.tokens);
    let (batch, head) = math::div_rem(head_index, output.heads);
    let weights = shared::dynamic() + warp * MergeShared::ROW_STRIDE;
    // SAFETY: the row is one of those that the parameters say; each place of the warp's shared memory is written by one lane, before
    // the warp meets, and read after it.
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
        let mut part = lane;
        while part < *count {
            largest = larger(largest, log_sum_exp(part));
            part += warp::LANES;
        }
        for step in 0..5 {
            largest = larger(largest, warp::shuffle_xor(largest, 1 << step));
        }
        let is_empty = largest == f32::NEG_INFINITY;
        // nothing weighs anything then
        let reference = if is_empty { 0.0 } else { largest };
        let weight = |log_sum_exp: f32| math::exp2((log_sum_exp - reference) * LOG2_E);
        let mut sum = if lane == 0 { weight(sink) } else { 0.0 };
        let mut part = lane;
        while part < count.next_multiple_of(PARTS) {
            let weight = if part < *count { weight(log_sum_exp(part)) } else { 0.0 };
            shared::store_f32(weights + 4 * part, weight);
            sum += weight;
            part += warp::LANES;
        }
        for step in 0..5 {
            sum += warp::shuffle_xor(sum, 1 << step);
        }
        warp::sync_warp();

        let row_of = |strides: &sage_layout::params::Strides| {
            batch as i64 * strides.batch + head as i64 * strides.head + token as i64 * strides.token
        };
        let mut values = [0.0f32; CHANNELS];
        let mut first = 0;
        while first < *count {
            for index in 0..PARTS {
                let weight = shared::load_f32(weights + 4 * (first + index));
                let part = (first + index) as i64 * params.part_stride;
                let part = parts.address.wrapping_add_signed(part);
                for step in 0..(HEAD_DIM / warp::LANES) as usize {
                    let channel = lane + step as u32 * warp::LANES;
                    // what has no weight may be anything
                    let counts = weight != 0.0 && channel < parts.head_dim;
                    let element = row_of(&parts.strides) + channel as i64;
                    let value = match params.parts_are_f32 {
                        0 => E::to_f32(global::load_u16_if(counts, part.wrapping_add_signed(2 * element))),
                        _ => global::load_f32_if(counts, part.wrapping_add_signed(4 * element)),
                    };
                    values[step] = math::fma(weight, value, values[step]);
                }
            }
            first += PARTS;
        }
        let inverse = if is_empty { 0.0 } else { math::reciprocal(sum) };
        for step in 0..(HEAD_DIM / warp::LANES) as usize {
            let channel = lane + step as u32 * warp::LANES;
            if channel < output.head_dim {
                let (element, value) = (row_of(&output.strides) + channel as i64, values[step] * inverse);
                match params.output_is_f32 {
                    0 => {
                        global::store_u16(output.address.wrapping_add_signed(2 * element), E::pack([value, 0.0]) as u16)
                    }
                    _ => global::store_f32(output.address.wrapping_add_signed(4 * element), value),
                }
            }
        }
        if params.log_sum_exp != 0 && lane == 0 {
            let all = if is_empty { f32::NEG_INFINITY } else { math::fma(math::log2(sum), LN_2, largest) };
            global::store_f32(params.log_sum_exp + 4 * row as u64, all);
        }
    }
}

/// The larger of two numbers; NaN, if one of them is.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}
