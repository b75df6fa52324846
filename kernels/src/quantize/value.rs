//! Values to transposed tiles: in e4m3 (SageAttention2, section 3.4), or in the 16 bits that they have.

use sage_layout::kernel::{QuantizeShared, threads_per_row};
use sage_layout::params::QuantizeParams;
use sage_layout::schedule::counter::Tensor;
use sage_layout::statistics::TOKEN_LANES;
use sage_layout::swizzle::{self, CHUNK_BYTES};
use sage_layout::tile::{KEY_TILE, SEGMENT_TILES, VALUE_ROW_BYTES, key_tile_bytes, value_tile_bytes};
use sage_layout::token_order::token_at;
use sage_layout::value_tile;
use simt::global::CachePolicy;
use simt::{convert, global, shared, thread};

use super::schedule::{claim, wait_for_statistics};
use super::{CHUNK, Head, Part, load_channels, thread_of_item};
use crate::element::Element;
use crate::sequences::Sequences;

const ROW_STRIDE: u32 = QuantizeShared::VALUE_ROW_STRIDE;
/// Words of four codes in a row of a transposed tile.
const WORDS_PER_ROW: u32 = VALUE_ROW_BYTES / 4;
/// Pieces in which a row of a transposed tile goes out.
const CHUNKS_PER_ROW: u32 = VALUE_ROW_BYTES / CHUNK_BYTES;
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
pub unsafe fn quantize_value<E: Element, S: Sequences, const HEAD_DIM: u32, const VECTORIZED: bool>(
    params: &QuantizeParams,
    part: Part<S>,
) {
    let Part { head: head_index, tile, sequence } = part;
    let input = &params.value;
    let head = Head::new(input, sequence.key_offset(input, head_index));
    let row = sequence.row(head_index, &params.sequences);

    // two neighbouring lanes read 32 neighbouring bytes; the others write neighbouring words
    let word_and_chunk = || {
        let thread = thread_of_item();
        (thread / 2 % TOKEN_LANES, thread / (2 * TOKEN_LANES) * 2 + thread % 2)
    };
    let (word, chunk) = word_and_chunk();
    // of the eight tokens, every four make a word
    let first = tile * KEY_TILE + token_at(4 * word);
    let offset = |index: usize| token_at((index / 4) as u32 * 4 * TOKEN_LANES + index as u32 % 4);
    // SAFETY: the input is readable.
    let rows = unsafe {
        head.load_chunks::<{ 4 * WORDS }, false, VECTORIZED>(input, sequence.keys(input.tokens), first, offset, chunk)
    };
    // SAFETY: statistics come before; all threads of the CTA are here.
    unsafe {
        claim::<HEAD_DIM>(params);
        wait_for_statistics(params, Tensor::Value, head_index, sequence);
    }
    // again, rather than kept in registers beside the rows
    let (word, chunk) = word_and_chunk();
    let channel = chunk * CHUNK as u32;
    let segment = sequence.first_segment(head_index, params.segments) + (tile / SEGMENT_TILES) as u64;
    for half in 0..CHUNK / CHANNELS {
        let channel = channel + (half * CHANNELS) as u32;
        // SAFETY: scales hold a row for each head, means one for each segment of each head, written before they are
        // published.
        let (inverse, mean) = unsafe {
            let inverse = params.value_inverse_scale + 4 * (row as u64 * HEAD_DIM as u64 + channel as u64);
            let mean = params.value_mean + 4 * (segment * HEAD_DIM as u64 + channel as u64);
            (load_channels::<CHANNELS>(inverse), load_channels::<CHANNELS>(mean))
        };
        for index in 0..WORDS {
            for pair in 0..CHANNELS / 2 {
                let mut scaled = [[0.0; 4]; 2];
                for position in 0..4 {
                    let values = E::unpack(rows[4 * index + position].0[half * CHANNELS / 2 + pair]);
                    for offset in 0..2 {
                        let channel = 2 * pair + offset;
                        scaled[offset][position] = (values[offset] - mean[channel]) * inverse[channel];
                    }
                }
                for offset in 0..2 {
                    let row = channel + (2 * pair + offset) as u32;
                    let at = shared::dynamic() + row * ROW_STRIDE + 4 * (word + index as u32 * TOKEN_LANES);
                    let codes = convert::e4m3x4(scaled[offset]);
                    // SAFETY: the word is this thread's own, within the launch's shared memory.
                    unsafe { shared::store_u32(at, codes) };
                }
            }
        }
    }
    thread::sync_threads();

    let tile_index = sequence.first_key_tile(head_index, params.key_tiles) + tile as u64;
    let codes = params.value_tiles + tile_index * key_tile_bytes(HEAD_DIM) as u64;
    let tokens = sequence.keys(input.tokens) - tile * KEY_TILE;
    let thread = thread_of_item();
    let (channel, column) = (thread / CHUNKS_PER_ROW, thread % CHUNKS_PER_ROW * CHUNK_BYTES);
    let from = shared::dynamic() + channel * ROW_STRIDE + column;
    let to = codes + swizzle::offset(channel, column, VALUE_ROW_BYTES) as u64;
    let channels_at_a_time = const {
        let channels = TOKEN_LANES * threads_per_row(HEAD_DIM) / CHUNKS_PER_ROW;
        assert!(channels.is_multiple_of(swizzle::PERIOD));
        channels
    };
    for step in 0..HEAD_DIM / channels_at_a_time {
        let channels_before = step * channels_at_a_time;
        // SAFETY: all rows were written before the barrier; the output holds this tile.
        unsafe {
            let mut row = shared::load_u32x4(from + channels_before * ROW_STRIDE);
            if tokens < KEY_TILE {
                for word in 0..4 {
                    row[word] &= present(tokens, column + 4 * word as u32);
                }
            }
            let to = to + (channels_before * VALUE_ROW_BYTES) as u64;
            global::store_u32x4_hint(to, row, CachePolicy::evict_first());
        }
    }
}

/// A mask for the word of codes from `position`: all bits of a tile's first `tokens`, none of what pads it.
#[inline(always)]
fn present(tokens: u32, position: u32) -> u32 {
    let mut mask = 0;
    for code in 0..4 {
        mask |= if token_at(position + code) < tokens { 0xff << (8 * code) } else { 0 };
    }
    mask
}

/// Tokens of a 16-bit chunk.
const TOKENS: usize = (CHUNK_BYTES / 2) as usize;

/// One 16-bit value tile of one head.
///
/// A thread turns eight channels of eight tokens round and writes a chunk of each channel; the chunks that a warp writes at a
/// time are whole rows of the tile.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn tile_value<E: Element, S: Sequences, const HEAD_DIM: u32, const VECTORIZED: bool>(
    params: &QuantizeParams,
    part: Part<S>,
) {
    let Part { head: head_index, tile, sequence } = part;
    let input = &params.value;
    let head = Head::new(input, sequence.key_offset(input, head_index));
    let tokens = sequence.keys(input.tokens);
    let groups = KEY_TILE / TOKENS as u32;

    let thread = thread_of_item();
    // two neighbouring lanes read 32 neighbouring bytes
    let (group, chunk) = (thread / 2 % groups, thread / (2 * groups) * 2 + thread % 2);
    let first_key = group * TOKENS as u32;
    let first = tile * KEY_TILE + first_key;
    // SAFETY: the input is readable. What pads the tile is zero.
    let mut rows =
        unsafe { head.load_chunks::<TOKENS, false, VECTORIZED>(input, tokens, first, |index| index as u32, chunk) };
    // SAFETY: forwarded contract.
    unsafe { claim::<HEAD_DIM>(params) };
    if params.value_mean != 0 {
        // SAFETY: statistics come before; all threads of the CTA are here.
        unsafe { wait_for_statistics(params, Tensor::Value, head_index, sequence) };
        let row = sequence.row(head_index, &params.sequences);
        let means = params.value_mean + 4 * (row as u64 * HEAD_DIM as u64 + (chunk * CHUNK as u32) as u64);
        for half in 0..CHUNK / CHANNELS {
            // SAFETY: means hold a row for each head, written before they are published.
            let mean = unsafe { load_channels::<CHANNELS>(means + (4 * half * CHANNELS) as u64) };
            for token in 0..TOKENS {
                for pair in 0..CHANNELS / 2 {
                    let values = &mut rows[token].0[half * CHANNELS / 2 + pair];
                    let [a, b] = E::unpack(*values);
                    let smoothed = E::pack([a - mean[2 * pair], b - mean[2 * pair + 1]]);
                    *values = if first + (token as u32) < tokens { smoothed } else { 0 };
                }
            }
        }
    }
    let tile_index = sequence.first_key_tile(head_index, params.key_tiles) + tile as u64;
    let tiles = params.value_tiles + tile_index * value_tile_bytes(HEAD_DIM) as u64;
    for index in 0..CHUNK {
        let half = |token: usize| rows[token].0[index / 2] >> (16 * (index % 2)) & 0xffff;
        let pairs = [0, 2, 4, 6].map(|token: usize| half(token) | half(token + 1) << 16);
        let place = value_tile::offset(chunk * CHUNK as u32 + index as u32, first_key);
        // SAFETY: the output holds this tile, and the chunk is this thread's own.
        unsafe { global::store_u32x4_hint(tiles + place as u64, pairs, CachePolicy::evict_first()) };
    }
    // before the next item's place is written
    thread::sync_threads();
}
