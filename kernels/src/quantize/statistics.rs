//! Channel statistics over tokens: the keys' mean (SageAttention, section 4.2), the values' segment means and scales
//! (SageAttention2, section 3.4). The order of every sum is `sage_layout::statistics`.

use sage_layout::params::{ChannelStatisticsParams, KeyMeanParams, ValueScaleParams};
use sage_layout::scale::value_scale as scale_of;
use sage_layout::statistics::TOKEN_LANES;
use sage_layout::tile::{SEGMENT_KEYS, segments};
use simt::{global, shared, thread};

use super::{CHUNK, Chunk, Head};
use crate::element::Element;

/// Tokens that a thread loads before it adds the first, so that loads overlap.
const TOKENS_IN_FLIGHT: usize = 2;

/// Sum, minimum and maximum of every channel over one segment of one head.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn channel_statistics<E: Element, const HEAD_DIM: u32>(params: &ChannelStatisticsParams) {
    let input = &params.input;
    let head = Head::of_block(input);
    let segment = thread::block_idx_x();
    let threads_per_row = HEAD_DIM / CHUNK as u32;
    let (lane, chunk) = (thread::thread_idx_x() / threads_per_row, thread::thread_idx_x() % threads_per_row);

    let mut sum = [0.0f32; CHUNK];
    let mut min = [f32::INFINITY; CHUNK];
    let mut max = [f32::NEG_INFINITY; CHUNK];
    let segment_end = (segment + 1) * SEGMENT_KEYS;
    let end = if segment_end < input.tokens { segment_end } else { input.tokens };
    let mut token = segment * SEGMENT_KEYS + lane;
    while token < end {
        let mut rows = [Chunk::ZERO; TOKENS_IN_FLIGHT];
        for (ahead, row) in rows.iter_mut().enumerate() {
            // SAFETY: the input is readable; tokens beyond its end load nothing.
            *row = unsafe { head.load_chunk(input, token + ahead as u32 * TOKEN_LANES, chunk) };
        }
        for (ahead, row) in rows.iter().enumerate() {
            if token + (ahead as u32) * TOKEN_LANES < end {
                let values = row.values::<E>();
                for channel in 0..CHUNK {
                    sum[channel] += values[channel];
                    min[channel] = min[channel].min(values[channel]);
                    max[channel] = max[channel].max(values[channel]);
                }
            }
        }
        token += TOKENS_IN_FLIGHT as u32 * TOKEN_LANES;
    }

    // shared memory: [sum, min, max][token lane][channel]
    let place = shared::dynamic() + (lane * HEAD_DIM + chunk * CHUNK as u32) * 4;
    let plane = TOKEN_LANES * HEAD_DIM * 4;
    for channel in 0..CHUNK {
        let at = place + 4 * channel as u32;
        // SAFETY: the place is this thread's own, within the launch's shared memory.
        unsafe {
            shared::store_f32(at, sum[channel]);
            shared::store_f32(at + plane, min[channel]);
            shared::store_f32(at + 2 * plane, max[channel]);
        }
    }
    thread::sync_threads();

    let channel = thread::thread_idx_x();
    if channel < HEAD_DIM {
        let (mut sum, mut min, mut max) = (0.0f32, f32::INFINITY, f32::NEG_INFINITY);
        for lane in 0..TOKEN_LANES {
            let at = shared::dynamic() + (lane * HEAD_DIM + channel) * 4;
            // SAFETY: all lanes were written before the barrier.
            unsafe {
                sum += shared::load_f32(at);
                min = min.min(shared::load_f32(at + plane));
                max = max.max(shared::load_f32(at + 2 * plane));
            }
        }
        let row = head.index * segments(input.tokens) as u64 + segment as u64;
        let at = 4 * (row * HEAD_DIM as u64 + channel as u64);
        // SAFETY: the outputs hold a row for each segment of each head.
        unsafe {
            global::store_f32(params.sum + at, sum);
            if params.min != 0 {
                global::store_f32(params.min + at, min);
                global::store_f32(params.max + at, max);
            }
        }
    }
}

/// Mean of every channel of one head; a thread a channel.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn key_mean<const HEAD_DIM: u32>(params: &KeyMeanParams) {
    let (head, channel) = (thread::block_idx_x() as u64, thread::thread_idx_x() as u64);
    let segments = segments(params.tokens);
    let mut sum = 0.0;
    for segment in 0..segments {
        let row = head * segments as u64 + segment as u64;
        // SAFETY: the sums hold a row for each segment of each head.
        sum += unsafe { global::load_f32(params.sum + 4 * (row * HEAD_DIM as u64 + channel)) };
    }
    // SAFETY: the means hold a row for each head.
    unsafe { global::store_f32(params.mean + 4 * (head * HEAD_DIM as u64 + channel), sum / params.tokens as f32) };
}

/// Segment means and the scale of every channel of one head; a thread a channel.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn value_scale<const HEAD_DIM: u32>(params: &ValueScaleParams) {
    let (head, channel) = (thread::block_idx_x() as u64, thread::thread_idx_x() as u64);
    let segments = segments(params.tokens);
    let place = |segment: u32| 4 * ((head * segments as u64 + segment as u64) * HEAD_DIM as u64 + channel);
    let mean_of = |segment: u32| {
        let left = params.tokens - segment * SEGMENT_KEYS;
        let tokens = if left < SEGMENT_KEYS { left } else { SEGMENT_KEYS };
        // SAFETY: the sums hold a row for each segment of each head.
        let sum = unsafe { global::load_f32(params.sum + place(segment)) };
        if params.smooth != 0 { sum / tokens as f32 } else { 0.0 }
    };

    let (mut amax, mut mean_amax) = (0.0f32, 0.0f32);
    for segment in 0..segments {
        let mean = mean_of(segment);
        // SAFETY: minima and maxima have the sums' shape.
        let (min, max) =
            unsafe { (global::load_f32(params.min + place(segment)), global::load_f32(params.max + place(segment))) };
        amax = amax.max(max - mean).max(mean - min);
        mean_amax = mean_amax.max(mean.abs());
    }
    let (scale, inverse) = scale_of(amax, mean_amax);
    // SAFETY: the scales hold a row for each head, the means one for each segment of each head.
    unsafe {
        global::store_f32(params.scale + 4 * (head * HEAD_DIM as u64 + channel), scale);
        global::store_f32(params.inverse_scale + 4 * (head * HEAD_DIM as u64 + channel), inverse);
        for segment in 0..segments {
            let mean = mean_of(segment);
            global::store_f32(params.mean + place(segment), mean);
            global::store_f32(params.mean_codes + place(segment), mean * inverse);
        }
    }
}
