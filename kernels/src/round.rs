//! Queries, keys or values in f32 to f16, before the quantizer.

use sage_layout::kernel::threads_per_row;
use sage_layout::params::RoundParams;
use sage_layout::statistics::TOKEN_LANES;
use sage_layout::tile::KEY_TILE;
use simt::global::CachePolicy;
use simt::{global, math, thread};

use crate::element::{Element, F16};
use crate::quantize::CHUNK;

/// Two f16, as near as can be; what is beyond ±65504 becomes that.
#[inline(always)]
fn round_pair(values: [f32; 2]) -> u32 {
    const LARGEST_PAIR: u32 = F16::INFINITY_PAIR - 0x0001_0001;
    F16::max_nan(F16::min_nan(F16::pack(values), LARGEST_PAIR), LARGEST_PAIR | 0x8000_8000)
}

/// A CTA: 128 tokens of a head. Threads own chunks of eight channels, as in the quantizer.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn round<const HEAD_DIM: u32>(params: &RoundParams) {
    let source = &params.source;
    let threads_per_row = threads_per_row(HEAD_DIM);
    let thread = thread::thread_idx_x();
    let (lane, channel) = (thread / threads_per_row, thread % threads_per_row * CHUNK as u32);
    let (all_head, tile) = math::div_rem(thread::block_idx_x(), params.tiles);
    let (batch, head) = math::div_rem(all_head, source.heads);
    if channel >= params.row {
        return;
    }
    let head_start = batch as i64 * source.strides.batch + head as i64 * source.strides.head + channel as i64;
    for index in 0..KEY_TILE / TOKEN_LANES {
        let token = tile * KEY_TILE + index * TOKEN_LANES + lane;
        if token < source.tokens {
            let element = head_start + token as i64 * source.strides.token;
            let from = source.address.wrapping_add_signed(4 * element);
            let row = all_head as u64 * source.tokens as u64 + token as u64;
            let to = params.rounded + 2 * (row * params.row as u64 + channel as u64);
            let mut values = [0.0; CHUNK];
            // SAFETY: the elements are inside the tensor, and at multiples of 16 bytes where rows are; the place is this
            // thread's own.
            unsafe {
                if source.vectorized != 0 {
                    let policy = CachePolicy::evict_first();
                    let [[a, b, c, d], [e, f, g, h]] =
                        [0, 16].map(|offset| global::load_u32x4_hint(from + offset, policy));
                    values = [a, b, c, d, e, f, g, h].map(f32::from_bits);
                } else {
                    for (offset, value) in values.iter_mut().enumerate() {
                        let exists = channel + (offset as u32) < source.head_dim;
                        *value = global::load_f32_if(exists, from + 4 * offset as u64);
                    }
                }
                let [a, b, c, d, e, f, g, h] = values;
                global::store_u32x4(to, [[a, b], [c, d], [e, f], [g, h]].map(round_pair));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_f16_cannot_hold() {
        for (value, expected) in [
            (1.0, 0x3c00),
            (-0.0, 0x8000),
            (65519.996, 0x7bff),
            (65520.0, 0x7bff),
            (-1e30, 0xfbff),
            (f32::INFINITY, 0x7bff),
            (f32::NEG_INFINITY, 0xfbff),
            (1.0 + 1.5 / 1024.0, 0x3c02),
            (1e-7, 0x0002),
        ] {
            assert_eq!(round_pair([0.0, value]), expected << 16, "{value}");
        }
        assert!(F16::unpack(round_pair([f32::NAN, 1.0]))[0].is_nan());
    }
}
