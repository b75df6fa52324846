//! Queries and keys to INT8 or INT4 tiles (SageAttention2, section 3.2; groups: `sage_layout::scale`).
//!
//! An item is one tile, or some query tiles of a head. A CTA's threads form 16 rows of chunks: row `lane` holds tokens `lane`, `lane + 16`, … of the
//! tile, so that a thread's tokens are all equal modulo 8, as the finest quantization groups are.

use core::cmp::{max, min};

use sage_layout::kernel::threads_per_row;
use sage_layout::params::QuantizeParams;
use sage_layout::scale::{
    Granularity, INT8_MAX, KEY_SCALES_PER_TILE, QUERY_SCALES_PER_TILE, QUERY_SCALES_PER_WARP, int_scale,
};
use sage_layout::schedule::QUERY_TILES;
use sage_layout::schedule::counter::Tensor;
use sage_layout::statistics::TOKEN_LANES;
use sage_layout::tile::{KEY_TILE, QUERY_BLOCK, WARP_ROWS, WARPGROUP_ROWS, query_blocks};
use sage_layout::{int4_tile, swizzle};
use simt::global::CachePolicy;
use simt::{convert, global, math, shared, thread, warp};

use super::schedule::{claim, wait_for_statistics};
use super::{CHUNK, Chunk, Head, Part, code_row_bytes, load_channels, thread_of_item};
use crate::element::Element;
use crate::rotary::turn_rows;
use crate::sequences::Sequences;

/// Warps of the attention kernel that a query tile is for.
const WARPS_PER_TILE: u32 = WARPGROUP_ROWS / WARP_ROWS;
/// Tokens that a thread holds of so many query tiles: one of each of those warps.
pub const fn queries(tiles: u32) -> usize {
    const { assert!(WARP_ROWS == TOKEN_LANES) };
    (tiles * WARPS_PER_TILE) as usize
}
/// Tokens of a key tile that a thread holds.
const KEYS: usize = (KEY_TILE / TOKEN_LANES) as usize;

const PER_BLOCK: u32 = Granularity::PerBlock as u32;
const PER_WARP: u32 = Granularity::PerWarp as u32;
const PER_THREAD: u32 = Granularity::PerThread as u32;

/// The larger of two absolute values; NaN, if one of them is. (As integers, the bits of positive numbers are in order,
/// NaN above all.)
#[inline(always)]
pub(crate) fn max_abs(a: f32, b: f32) -> f32 {
    f32::from_bits(max(a.to_bits(), b.to_bits()))
}

/// Largest absolute value.
#[inline(always)]
pub(crate) fn amax(values: &[f32; CHUNK]) -> f32 {
    values.iter().fold(0.0, |largest, value| max_abs(largest, value.abs()))
}

/// The distances of values from means.
#[inline(always)]
pub(crate) fn less(mut values: [f32; CHUNK], means: [f32; CHUNK]) -> [f32; CHUNK] {
    for channel in 0..CHUNK {
        values[channel] -= means[channel];
    }
    values
}

/// Combines `value` over the threads of a row: with the neighbour's, with that of the next pair, and so on
/// (`sage_layout::statistics`).
#[inline(always)]
pub(crate) fn reduce_row<const HEAD_DIM: u32>(mut value: f32, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut distance = 1;
    while distance < threads_per_row(HEAD_DIM) {
        value = combine(value, warp::shuffle_xor(value, distance));
        distance *= 2;
    }
    value
}

/// Eight codes, the first in the lowest byte.
#[inline(always)]
pub(crate) fn codes_of(values: &[f32; CHUNK], inverse: f32) -> [u32; 2] {
    [0, 4].map(|first: usize| convert::i8x4([0, 1, 2, 3].map(|index: usize| values[first + index] * inverse)))
}

/// Where a thread's codes go.
struct CodePlaces {
    /// Those of its first row.
    first: u64,
    is_int4: bool,
}

impl CodePlaces {
    /// In the `tile`-th of the tiles of `rows` rows at `codes`.
    #[inline(always)]
    fn new<const HEAD_DIM: u32, const SMOOTHED: bool>(
        params: &QuantizeParams,
        (codes, rows): (u64, u32),
        tile: u64,
        (lane, chunk): (u32, u32),
    ) -> Self {
        let row_bytes = code_row_bytes::<HEAD_DIM, SMOOTHED>(params);
        let is_int4 = row_bytes < HEAD_DIM;
        let offset = match is_int4 {
            true => swizzle::offset(lane, chunk * CHUNK as u32 / 2, int4_tile::row_bytes(HEAD_DIM)),
            false => swizzle::offset(lane, chunk * CHUNK as u32, HEAD_DIM),
        };
        Self { first: codes + tile * (rows * row_bytes) as u64 + offset as u64, is_int4 }
    }

    /// Writes eight codes of the `index`th of the thread's rows.
    ///
    /// # Safety
    ///
    /// The tile is writable, and the chunk this thread's own.
    #[inline(always)]
    unsafe fn store<const HEAD_DIM: u32>(&self, index: usize, words: [u32; 2]) {
        const { assert!(TOKEN_LANES.is_multiple_of(swizzle::PERIOD)) };
        let place = |row_bytes: u32| self.first + (index as u32 * TOKEN_LANES * row_bytes) as u64;
        // SAFETY: forwarded contract; the place is a multiple of what is stored.
        unsafe {
            if self.is_int4 {
                global::store_u32(place(int4_tile::row_bytes(HEAD_DIM)), int4_tile::pack_words(words));
            } else {
                global::store_u32x2_hint(place(HEAD_DIM), words, CachePolicy::evict_first());
            }
        }
    }
}

/// This thread's chunk of the mean of a block of queries, which are an item's, and of which this thread has `rows`; writes it to memory too.
///
/// # Safety
///
/// As the kernel table and the parameters say; all threads of the CTA call it, and nobody uses its shared memory. The block has queries.
#[inline(always)]
unsafe fn query_mean<E: Element, const HEAD_DIM: u32, const QUERIES: usize>(
    params: &QuantizeParams,
    rows: &[Chunk; QUERIES],
    head_index: u64,
    block: u32,
    (lane, chunk): (u32, u32),
) -> [f32; CHUNK] {
    let tokens = math::opaque(params.query.tokens);
    let thread = thread_of_item();
    let mut sum = [0.0f32; CHUNK];
    for row in rows {
        // a token that is not there has zeros
        let values = row.again().values::<E>();
        for channel in 0..CHUNK {
            sum[channel] += values[channel];
        }
    }
    let place = |lane: u32, channel: u32| shared::dynamic() + 4 * (lane * HEAD_DIM + channel);
    // SAFETY: the places are this thread's own, within the launch's shared memory.
    unsafe {
        for quad in 0..CHUNK / 4 {
            let words = [0, 1, 2, 3].map(|index: usize| sum[4 * quad + index].to_bits());
            shared::store_u32x4(place(lane, (chunk as usize * CHUNK + 4 * quad) as u32), words);
        }
    }
    thread::sync_threads();
    if thread < HEAD_DIM {
        let mut sum = 0.0f32;
        for lane in 0..TOKEN_LANES {
            // SAFETY: all lanes were written before the barrier.
            sum += unsafe { shared::load_f32(place(lane, thread)) };
        }
        let mean = sum / min(QUERY_BLOCK, tokens - block * QUERY_BLOCK) as f32;
        // SAFETY: the place is this thread's own; means hold a row for each block.
        unsafe {
            shared::store_f32(place(TOKEN_LANES, thread), mean);
            let row = head_index * query_blocks(tokens) as u64 + block as u64;
            global::store_f32(params.query_mean + 4 * (row * HEAD_DIM as u64 + thread as u64), mean);
        }
    }
    thread::sync_threads();
    let place = place(TOKEN_LANES, chunk * CHUNK as u32);
    // SAFETY: the mean was written before the barrier.
    let [[a, b, c, d], [e, f, g, h]] = [0, 16].map(|offset| unsafe { shared::load_u32x4(place + offset) });
    [a, b, c, d, e, f, g, h].map(f32::from_bits)
}

/// Some query tiles of one head, [`QUERIES`](queries) tokens a thread; the item counts over all heads that read a key head. Where a head's
/// tiles end before the item's, the rest is not written.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn quantize_query<
    E: Element,
    S: Sequences,
    const HEAD_DIM: u32,
    const SMOOTHED: bool,
    const ROTATED: bool,
    const QUERIES: usize,
>(
    params: &QuantizeParams,
    part: Part<S>,
) {
    let Part { head: key_head, tile: item, sequence } = part;
    let input = &params.query;
    let tokens = sequence.queries(input.tokens);
    let threads_per_row = threads_per_row(HEAD_DIM);
    let thread = thread_of_item();
    let (lane, chunk) = (thread / threads_per_row, thread % threads_per_row);
    let item_tiles = const { QUERIES as u32 / WARPS_PER_TILE };
    // opaque, or what follows from it is kept in registers from one item to the next
    let query_tiles = math::opaque(params.query_tiles);
    let (head, item) = math::div_rem(item, query_tiles.div_ceil(item_tiles));
    let tile = item * item_tiles;
    let head_index = (key_head * params.heads_per_key_head + head) as u64;
    let head = Head::new(input, sequence.query_offset(input, head_index as u32));
    let tile_index = sequence.first_query_tile(head_index, query_tiles) + tile as u64;
    // whether the tile of one of these warps is the head's
    let is_there = |warp: u32| item_tiles == 1 || tile + warp / WARPS_PER_TILE < query_tiles;

    let (first, offset) = (tile * WARPGROUP_ROWS + lane, |index: usize| index as u32 * TOKEN_LANES);
    // SAFETY: the input is readable.
    let mut rows = unsafe { head.load_chunks::<QUERIES, false, ROTATED>(input, tokens, first, offset, chunk) };
    // opaque, or it is kept in a register beside the rows; all bits of what a token has, none of what pads the tile
    let left = math::opaque(tokens).saturating_sub(first);
    let present = |index: usize| if offset(index) < left { u32::MAX } else { 0 };
    // SAFETY: forwarded contract.
    unsafe {
        claim::<HEAD_DIM>(params);
        if ROTATED {
            let token = |index| first + offset(index);
            rows = turn_rows::<E, QUERIES>(&params.query_rotary, rows, token, tokens, chunk);
        }
    }

    // an item of nothing but padding has no mean
    let mut mean = [0.0; CHUNK];
    const { assert!(!(SMOOTHED && (S::RAGGED || ROTATED)) && QUERY_TILES * WARPGROUP_ROWS == QUERY_BLOCK) };
    if SMOOTHED && params.query_mean != 0 && tile * WARPGROUP_ROWS < tokens {
        // SAFETY: forwarded contract; the item before was finished before this one was shared, and the claim lies behind what an item needs.
        mean = unsafe { query_mean::<E, HEAD_DIM, QUERIES>(params, &rows, head_index, item, (lane, chunk)) };
    }

    // shared memory: [warp of the attention kernel][row of the warp], then [warp][scale of the warp]; a thread's row of some index is of the warp
    // of that index. The mean may still be read: it lies behind
    const { assert!(QUERIES as u32 * (WARP_ROWS + QUERY_SCALES_PER_WARP) <= TOKEN_LANES * HEAD_DIM) };
    let row_amax = |warp: u32, row: u32| shared::dynamic() + 4 * (warp * WARP_ROWS + row);
    let group_inverse = |group: u32| row_amax(QUERIES as u32, 0) + 4 * group;
    for first in (0..QUERIES).step_by(2) {
        let pair = [first, first + 1];
        let largest = match SMOOTHED {
            true => pair.map(|index| {
                let largest = amax(&less(rows[index].again().values::<E>(), mean));
                reduce_row::<HEAD_DIM>(f32::from_bits(largest.to_bits() & present(index)), max_abs)
            }),
            false => row_pair_amax::<E, HEAD_DIM>(pair.map(|index| rows[index].map(|values| values & present(index)))),
        };
        for next in 0..2 {
            if chunk == 0 {
                // SAFETY: the place is this row's own, within the launch's shared memory.
                unsafe { shared::store_f32(row_amax(pair[next] as u32, lane), largest[next]) };
            }
        }
    }
    thread::sync_threads();

    if thread < QUERIES as u32 * QUERY_SCALES_PER_WARP {
        let (warp, scale) = (thread / QUERY_SCALES_PER_WARP, thread % QUERY_SCALES_PER_WARP);
        let (mut place, stride, count) = match math::opaque(params.granularity) {
            PER_BLOCK => (row_amax(warp / WARPS_PER_TILE * WARPS_PER_TILE, 0), 4, WARPGROUP_ROWS),
            PER_WARP => (row_amax(warp, 0), 4, WARP_ROWS),
            _ => (row_amax(warp, scale), 4 * QUERY_SCALES_PER_WARP, WARP_ROWS / QUERY_SCALES_PER_WARP),
        };
        let mut largest = 0.0;
        for _ in 0..count {
            // SAFETY: all rows' maxima were written before the barrier.
            largest = max_abs(largest, unsafe { shared::load_f32(place) });
            place += stride;
        }
        let (scale, inverse) = int_scale(largest, if SMOOTHED { params.largest_code } else { INT8_MAX });
        // SAFETY: the place is this thread's own; the output holds these tiles' scales.
        unsafe {
            shared::store_f32(group_inverse(thread), inverse);
            if is_there(warp) {
                let at = tile_index * QUERY_SCALES_PER_TILE as u64 + thread as u64;
                global::store_f32(params.query_scales + 4 * at, scale * params.score_scale);
            }
        }
    }
    thread::sync_threads();

    if params.log_sum_exp_shift != 0 {
        // SAFETY: the mean holds a row for each key head, written before it is published; the shift holds one element for
        // each padded query.
        unsafe {
            let mut mean = [0.0; CHUNK];
            // without keys, there is no mean
            if !S::RAGGED || sequence.keys(0) != 0 {
                // unless an earlier launch took them
                if params.order.per_head.key_statistics != 0 {
                    wait_for_statistics(params, Tensor::Key, key_head, sequence);
                }
                let row = sequence.row(key_head, &params.sequences);
                mean = load_channels::<CHUNK>(
                    params.key_mean + 4 * (row as u64 * HEAD_DIM as u64 + (chunk * CHUNK as u32) as u64),
                );
            }
            for (index, row) in rows.iter().enumerate() {
                let mut product = 0.0;
                for (value, mean) in row.again().values::<E>().iter().zip(&mean) {
                    product += value * mean;
                }
                let product = reduce_row::<HEAD_DIM>(product, |a, b| a + b);
                if chunk == 0 && is_there(index as u32) {
                    let row = tile_index * WARPGROUP_ROWS as u64 + (index as u32 * TOKEN_LANES + lane) as u64;
                    global::store_f32(params.log_sum_exp_shift + 4 * row, product * params.softmax_scale);
                }
            }
        }
    }

    let tiles = (params.query_codes, WARPGROUP_ROWS);
    let places = CodePlaces::new::<HEAD_DIM, SMOOTHED>(params, tiles, tile_index, (lane, chunk));
    for (index, row) in rows.iter().enumerate() {
        // SAFETY: inverses were written before the barrier; the output holds these tiles' codes, one after the other.
        unsafe {
            let group = index as u32 * QUERY_SCALES_PER_WARP + lane % QUERY_SCALES_PER_WARP;
            let inverse = shared::load_f32(group_inverse(group));
            let words = codes_of(&less(row.again().values::<E>(), mean), inverse).map(|word| word & present(index));
            if is_there(index as u32) {
                places.store::<HEAD_DIM>(index, words);
            }
        }
    }
}

/// The largest absolute values of two rows, of which this thread has a chunk each, over all threads of the row; NaN, if one is. As 16-bit
/// numbers, so that a shuffle moves both rows'.
#[inline(always)]
fn row_pair_amax<E: Element, const HEAD_DIM: u32>(rows: [Chunk; 2]) -> [f32; 2] {
    const MAGNITUDES: u32 = 0x7fff_7fff;
    let [a, b] = rows.map(|row| row.0.into_iter().fold(0, |largest, pair| E::max_nan(largest, pair & MAGNITUDES)));
    // of even channels and of odd ones; the first row's in the low half
    let [even, odd] = [a & 0xffff | b << 16, a >> 16 | b & 0xffff_0000];
    let largest = reduce_row::<HEAD_DIM>(f32::from_bits(E::max_nan(even, odd)), |one, other| {
        f32::from_bits(E::max_nan(one.to_bits(), other.to_bits()))
    });
    E::unpack(largest.to_bits())
}

/// The key head, over all batches, that query head `head` reads.
#[inline(always)]
pub fn key_head_of(head: u32, heads_per_key_head: u32) -> u32 {
    math::div_rem(head, heads_per_key_head).0
}

/// One key tile of one head.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn quantize_key<E: Element, S: Sequences, const HEAD_DIM: u32, const SMOOTHED: bool, const ROTATED: bool>(
    params: &QuantizeParams,
    part: Part<S>,
) {
    let Part { head: head_index, tile, sequence } = part;
    let input = &params.key;
    let head = Head::new(input, sequence.key_offset(input, head_index));
    let tokens = sequence.keys(input.tokens);
    let threads_per_row = threads_per_row(HEAD_DIM);
    let thread = thread_of_item();
    let (lane, chunk) = (thread / threads_per_row, thread % threads_per_row);
    let tile_index = sequence.first_key_tile(head_index, params.key_tiles) + tile as u64;

    let (first, offset) = (tile * KEY_TILE + lane, |index: usize| index as u32 * TOKEN_LANES);
    // SAFETY: the input is readable.
    let mut rows = unsafe { head.load_chunks::<KEYS, false, ROTATED>(input, tokens, first, offset, chunk) };
    // SAFETY: forwarded contract.
    unsafe {
        claim::<HEAD_DIM>(params);
        if ROTATED {
            let token = |index| first + offset(index);
            rows = turn_rows::<E, KEYS>(&params.key_rotary, rows, token, tokens, chunk);
        }
    }
    let mut mean = [0.0; CHUNK];
    if params.key_mean != 0 {
        // SAFETY: the mean holds a row for each head, written before it is published.
        mean = unsafe {
            wait_for_statistics(params, Tensor::Key, head_index, sequence);
            let row = sequence.row(head_index, &params.sequences);
            load_channels(params.key_mean + 4 * (row as u64 * HEAD_DIM as u64 + (chunk * CHUNK as u32) as u64))
        };
    }
    let smoothed = |row: Chunk| less(row.values::<E>(), mean);
    // all bits of what a token has, none of what pads the tile
    let left = tokens.saturating_sub(first);
    let present = |index: usize| if offset(index) < left { u32::MAX } else { 0 };
    // Subtraction is monotonic: the largest distance is that of the smallest or of the largest element.
    let (mut low, mut high) = (rows[0], rows[0]);
    for index in 1..KEYS {
        if present(index) != 0 {
            for pair in 0..CHUNK / 2 {
                low.0[pair] = E::min_nan(low.0[pair], rows[index].0[pair]);
                high.0[pair] = E::max_nan(high.0[pair], rows[index].0[pair]);
            }
        }
    }
    let largest = max_abs(amax(&smoothed(low)), amax(&smoothed(high)));
    let largest = f32::from_bits(largest.to_bits() & present(0));

    let largest = reduce_row::<HEAD_DIM>(largest, max_abs);
    let lane_amax = |lane: u32| shared::dynamic() + 4 * lane;
    if chunk == 0 {
        // SAFETY: the place is this row of threads' own, within the launch's shared memory.
        unsafe { shared::store_f32(lane_amax(lane), largest) };
    }
    thread::sync_threads();

    // SAFETY: all lanes' maxima were written before the barrier.
    let load = |lane: u32| unsafe { shared::load_f32(lane_amax(lane)) };
    let pair = lane % 8 / 2 * 2;
    let mut largest = max_abs(max_abs(load(pair), load(pair + 1)), max_abs(load(pair + 8), load(pair + 9)));
    if params.granularity != PER_THREAD {
        for lane in 0..TOKEN_LANES {
            largest = max_abs(largest, load(lane));
        }
    }
    let (scale, inverse) = int_scale(largest, if SMOOTHED { params.largest_code } else { INT8_MAX });
    let tiles = (params.key_codes, KEY_TILE);
    let places = CodePlaces::new::<HEAD_DIM, SMOOTHED>(params, tiles, tile_index, (lane, chunk));
    // SAFETY: the outputs hold this tile's codes and scales.
    unsafe {
        for (index, row) in rows.iter().enumerate() {
            let words = codes_of(&smoothed(row.again()), inverse).map(|word| word & present(index));
            places.store::<HEAD_DIM>(index, words);
        }
        if chunk == 0 && lane < 8 && lane % 2 == 0 {
            let at = tile_index * KEY_SCALES_PER_TILE as u64 + (lane / 2) as u64;
            global::store_f32(params.key_scales + 4 * at, scale);
        }
    }
}
