//! Values to transposed e4m3 tiles (SageAttention2, section 3.4).

use sage_layout::kernel::{QuantizeShared, threads_per_row};
use sage_layout::params::QuantizeParams;
use sage_layout::schedule::counter::Tensor;
use sage_layout::statistics::TOKEN_LANES;
use sage_layout::swizzle::{self, CHUNK_BYTES};
use sage_layout::tile::{KEY_TILE, SEGMENT_TILES, VALUE_ROW_BYTES, key_tile_bytes, key_tiles, segments};
use sage_layout::token_order::token_at;
use simt::{convert, global, shared, thread};

use super::schedule::wait_for_statistics;
use super::{CHUNK, Chunk, Head, load_channels};
use crate::element::Element;

const ROW_STRIDE: u32 = QuantizeShared::VALUE_ROW_STRIDE;
/// Words of four codes in a row of a transposed tile.
const WORDS_PER_ROW: u32 = VALUE_ROW_BYTES / 4;
/// Words of a row that a thread makes.
const WORDS: usize = (WORDS_PER_ROW / TOKEN_LANES) as usize;
/// Channels whose scales and means a thread holds at a time.
const CHANNELS: usize = 4;

/// One value tile of one head.
///
/// A word is four codes, of the tokens at positions `4i … 4i + 3` of the tile. A thread makes the words of eight channels
/// at two places; the words make up the rows of the transposed tile in shared memory, which then go out as whole rows.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn quantize_value<E: Element, const HEAD_DIM: u32>(params: &QuantizeParams, head_index: u32, tile: u32) {
    let input = &params.value;
    let head = Head::new(input, head_index);

    let thread = thread::thread_idx_x();
    // two neighbouring lanes read 32 neighbouring bytes; the others write neighbouring words
    let (word, chunk) = (thread / 2 % TOKEN_LANES, thread / (2 * TOKEN_LANES) * 2 + thread % 2);
    let word = |index: usize| index as u32 * TOKEN_LANES + word;
    let token = |index: usize, position: usize| tile * KEY_TILE + token_at(4 * word(index) + position as u32);
    let mut rows = [[Chunk::ZERO; 4]; WORDS];
    for (index, rows) in rows.iter_mut().enumerate() {
        for (position, row) in rows.iter_mut().enumerate() {
            // SAFETY: the input is readable.
            *row = unsafe { head.load_chunk::<false>(input, token(index, position), chunk) };
        }
    }
    // SAFETY: statistics come before; all threads of the CTA are here.
    unsafe { wait_for_statistics(params, Tensor::Value, head_index) };
    let channel = chunk * CHUNK as u32;
    let segment = head_index as u64 * segments(input.tokens) as u64 + (tile / SEGMENT_TILES) as u64;
    for half in 0..CHUNK / CHANNELS {
        let channel = channel + (half * CHANNELS) as u32;
        // SAFETY: scales hold a row for each head, means one for each segment of each head, written before they are
        // published.
        let (inverse, mean) = unsafe {
            let inverse = params.value_inverse_scale + 4 * (head_index as u64 * HEAD_DIM as u64 + channel as u64);
            let mean = params.value_mean + 4 * (segment * HEAD_DIM as u64 + channel as u64);
            (load_channels::<CHANNELS>(inverse), load_channels::<CHANNELS>(mean))
        };
        for (index, rows) in rows.iter().enumerate() {
            let scaled = [0, 1, 2, 3].map(|position: usize| {
                let [low, high] = [0, 1].map(|pair: usize| E::unpack(rows[position].0[half * 2 + pair]));
                let values = [low[0], low[1], high[0], high[1]];
                [0, 1, 2, 3].map(|channel: usize| {
                    let smoothed = (values[channel] - mean[channel]) * inverse[channel];
                    // what pads the tile stays zero
                    if token(index, position) < input.tokens { smoothed } else { 0.0 }
                })
            });
            for offset in 0..CHANNELS {
                let codes = convert::e4m3x4(scaled.map(|values| values[offset]));
                let at = shared::dynamic() + (channel + offset as u32) * ROW_STRIDE + 4 * word(index);
                // SAFETY: the word is this thread's own, within the launch's shared memory.
                unsafe { shared::store_u32(at, codes) };
            }
        }
    }
    thread::sync_threads();

    let tile_index = head_index as u64 * key_tiles(input.tokens) as u64 + tile as u64;
    let codes = params.value_codes + tile_index * key_tile_bytes(HEAD_DIM) as u64;
    let mut piece = thread;
    while piece < HEAD_DIM * (VALUE_ROW_BYTES / CHUNK_BYTES) {
        let (channel, column) =
            (piece / (VALUE_ROW_BYTES / CHUNK_BYTES), piece % (VALUE_ROW_BYTES / CHUNK_BYTES) * CHUNK_BYTES);
        // SAFETY: all rows were written before the barrier; the output holds this tile.
        unsafe {
            let row = shared::load_u32x4(shared::dynamic() + channel * ROW_STRIDE + column);
            global::store_u32x4_evict_first(codes + swizzle::offset(channel, column, VALUE_ROW_BYTES) as u64, row);
        }
        piece += TOKEN_LANES * threads_per_row(HEAD_DIM);
    }
}
