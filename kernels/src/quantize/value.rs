//! Values to transposed tiles: in e4m3 (SageAttention2, section 3.4), or in the 16 bits that they have.

use sage_layout::params::{QuantizeValueParams, TileValueParams};
use sage_layout::swizzle::{self, CHUNK_BYTES};
use sage_layout::tile::{
    KEY_TILE, SEGMENT_TILES, VALUE_ROW_BYTES, key_tile_bytes, key_tiles, segments, value_tile_bytes,
};
use sage_layout::token_order::token_at;
use sage_layout::value_tile;
use simt::{convert, global, shared, thread};

use super::{CHUNK, Chunk, Head, load_f32_chunk};
use crate::element::Element;

/// Distance of a transposed tile's rows in shared memory: 16 bytes more than they are long, against bank conflicts.
const ROW_STRIDE: u32 = VALUE_ROW_BYTES + 16;

/// One value tile of one head.
///
/// A thread turns eight channels of the four tokens at positions `4i … 4i + 3` of the tile into eight words of four
/// codes; the words make up the rows of the transposed tile in shared memory, which then go out as whole rows.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn quantize_value<E: Element, const HEAD_DIM: u32>(params: &QuantizeValueParams) {
    let input = &params.input;
    let head = Head::of_block(input);
    let tile = thread::block_idx_x();
    let words_per_row = KEY_TILE / 4;

    let thread = thread::thread_idx_x();
    // two neighbouring lanes read 32 neighbouring bytes; the others write neighbouring words
    let (word, chunk) = (thread / 2 % words_per_row, thread / (2 * words_per_row) * 2 + thread % 2);
    let channel = (chunk * CHUNK as u32) as u64;
    let segment = (head.index * segments(input.tokens) as u64 + (tile / SEGMENT_TILES) as u64) * HEAD_DIM as u64;
    // SAFETY: scales hold a row for each head, means one for each segment of each head.
    let (inverse, mean) = unsafe {
        (
            load_f32_chunk(params.inverse_scale + 4 * (head.index * HEAD_DIM as u64 + channel)),
            load_f32_chunk(params.mean + 4 * (segment + channel)),
        )
    };
    let mut rows = [Chunk::ZERO; 4];
    let token = |position: usize| tile * KEY_TILE + token_at(4 * word + position as u32);
    for (position, row) in rows.iter_mut().enumerate() {
        // SAFETY: the input is readable.
        *row = unsafe { head.load_chunk(input, token(position), chunk) };
    }
    let mut scaled = [[0.0; CHUNK]; 4];
    for position in 0..4 {
        let values = rows[position].values::<E>();
        for index in 0..CHUNK {
            let smoothed = (values[index] - mean[index]) * inverse[index];
            // what pads the tile stays zero
            scaled[position][index] = if token(position) < input.tokens { smoothed } else { 0.0 };
        }
    }
    for index in 0..CHUNK {
        let codes = convert::e4m3x4([0, 1, 2, 3].map(|position: usize| scaled[position][index]));
        let at = shared::dynamic() + (channel as u32 + index as u32) * ROW_STRIDE + 4 * word;
        // SAFETY: the word is this thread's own, within the launch's shared memory.
        unsafe { shared::store_u32(at, codes) };
    }
    thread::sync_threads();

    let tile_index = head.index * key_tiles(input.tokens) as u64 + tile as u64;
    let codes = params.codes + tile_index * key_tile_bytes(HEAD_DIM) as u64;
    let mut piece = thread;
    while piece < HEAD_DIM * (VALUE_ROW_BYTES / CHUNK_BYTES) {
        let (channel, column) =
            (piece / (VALUE_ROW_BYTES / CHUNK_BYTES), piece % (VALUE_ROW_BYTES / CHUNK_BYTES) * CHUNK_BYTES);
        // SAFETY: all rows were written before the barrier; the output holds this tile.
        unsafe {
            let row = shared::load_u32x4(shared::dynamic() + channel * ROW_STRIDE + column);
            global::store_u32x4(codes + swizzle::offset(channel, column, VALUE_ROW_BYTES) as u64, row);
        }
        piece += words_per_row * (HEAD_DIM / CHUNK as u32);
    }
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
pub unsafe fn tile_value<const HEAD_DIM: u32>(params: &TileValueParams) {
    let input = &params.input;
    let head = Head::of_block(input);
    let tile = thread::block_idx_x();
    let groups = KEY_TILE / TOKENS as u32;

    let thread = thread::thread_idx_x();
    // two neighbouring lanes read 32 neighbouring bytes
    let (group, chunk) = (thread / 2 % groups, thread / (2 * groups) * 2 + thread % 2);
    let first_key = group * TOKENS as u32;
    let mut rows = [Chunk::ZERO; TOKENS];
    for (token, row) in rows.iter_mut().enumerate() {
        // SAFETY: the input is readable. What pads the tile is zero.
        *row = unsafe { head.load_chunk(input, tile * KEY_TILE + first_key + token as u32, chunk) };
    }
    let tile_index = head.index * key_tiles(input.tokens) as u64 + tile as u64;
    let tiles = params.tiles + tile_index * value_tile_bytes(HEAD_DIM) as u64;
    for index in 0..CHUNK {
        let half = |token: usize| rows[token].0[index / 2] >> (16 * (index % 2)) & 0xffff;
        let pairs = [0, 2, 4, 6].map(|token: usize| half(token) | half(token + 1) << 16);
        let place = value_tile::offset(chunk * CHUNK as u32 + index as u32, first_key);
        // SAFETY: the output holds this tile, and the chunk is this thread's own.
        unsafe { global::store_u32x4(tiles + place as u64, pairs) };
    }
}
