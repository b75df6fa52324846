//! New tokens to the blocks of a cache, each by itself.

use sage_layout::cache::{BLOCK_TOKENS, key_scales, power_of_two, value_exponent, value_exponents, values};
use sage_layout::kernel::threads_per_row;
use sage_layout::params::{CacheAppendParams, TensorView};
use sage_layout::scale::{INT8_MAX, int_scale};
use sage_layout::swizzle;
use simt::{convert, global, math, thread};

use super::{block_address, capacity, length};
use crate::element::Element;
use crate::quantize::query_key::{amax, codes_of, less, max_abs, reduce_row};
use crate::quantize::{CHUNK, Head};

/// Threads of a CTA.
const THREADS: u32 = 128;

/// The kernel. A thread has eight channels of a token's key and value.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn append<E: Element, const HEAD_DIM: u32>(params: &CacheAppendParams) {
    let CacheAppendParams { cache, key, value, key_mean } = params;
    let tokens_of_cta = const { THREADS / threads_per_row(HEAD_DIM) };
    let thread = thread::thread_idx_x();
    let (lane, chunk) = (thread / threads_per_row(HEAD_DIM), thread % threads_per_row(HEAD_DIM));
    let (head_index, group) = math::div_rem(thread::block_idx_x(), key.tokens.div_ceil(tokens_of_cta));
    let (batch, head) = math::div_rem(head_index, cache.key_heads);
    let (first, channel) = (group * tokens_of_cta + lane, chunk * CHUNK as u32);

    // SAFETY: tensors, mean and lengths are as the parameters say.
    let (keys, values_of_token, mean, before) = unsafe {
        let load = |tensor: &TensorView| {
            let offset = batch as i64 * tensor.strides.batch + head as i64 * tensor.strides.head;
            Head::new(tensor, offset).load_chunks::<1, false, false>(tensor, tensor.tokens, first, |_| 0, chunk)[0]
        };
        let mut mean = [0.0; CHUNK];
        for index in 0..CHUNK {
            let channel = channel + index as u32;
            let at = key_mean + 4 * (head as u64 * key.head_dim as u64 + channel as u64);
            mean[index] = global::load_f32_if(*key_mean != 0 && channel < key.head_dim, at);
        }
        (load(key).values::<E>(), load(value).values::<E>(), mean, length(cache, batch))
    };
    let keys = less(keys, mean);
    let (scale, inverse) = int_scale(reduce_row::<HEAD_DIM>(amax(&keys), max_abs), INT8_MAX);
    let exponent = value_exponent(reduce_row::<HEAD_DIM>(amax(&values_of_token), max_abs));

    let token = before + first;
    if first >= key.tokens || token >= capacity(cache) {
        return;
    }
    let (block, row) = (token / BLOCK_TOKENS, token % BLOCK_TOKENS);
    // SAFETY: the token is one that the sequence's pages hold, and this thread's chunk its own.
    unsafe {
        let (block, exists) = block_address::<HEAD_DIM>(cache, batch, head, block);
        if !exists {
            return;
        }
        let at = block + swizzle::offset(row, channel, HEAD_DIM) as u64;
        global::store_u32x2(at, codes_of(&keys, inverse));
        let inverse = power_of_two(-exponent);
        let codes =
            |first: usize| convert::e4m3x4([0, 1, 2, 3].map(|index: usize| values_of_token[first + index] * inverse));
        global::store_u32x2(at + values(HEAD_DIM) as u64, [codes(0), codes(4)]);
        if chunk == 0 {
            global::store_f32(block + (key_scales(HEAD_DIM) + 4 * row) as u64, scale);
            global::store_f32(block + (value_exponents(HEAD_DIM) + 4 * row) as u64, exponent);
        }
    }
}
