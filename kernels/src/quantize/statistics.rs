//! Channel statistics over tokens: the keys' mean (SageAttention, section 4.2), the values' segment means and scales
//! (SageAttention2, section 3.4). The order of every sum is `sage_layout::statistics`.
//!
//! A tile's statistics wait in memory until the segment's last tile is finished, whoever finishes it; a segment's, until
//! the head's last segment is. Then whoever finished it publishes the mean or the scale.

use core::cmp::min;

use sage_layout::kernel::threads_per_row;
use sage_layout::params::{QuantizeParams, RotaryParams, TensorView};
use sage_layout::scale::value_scale;
use sage_layout::schedule::counter::Tensor;
use sage_layout::statistics::{Row, TOKEN_LANES, row_offset};
use sage_layout::tile::{KEY_TILE, SEGMENT_KEYS, SEGMENT_TILES, key_tile_bytes, value_tile_bytes};
use simt::{global, math, shared, thread};

use super::schedule::{claim, is_last, publish_statistics, segments_counter, tiles_counter};
use super::{CHUNK, Head, Part, code_row_bytes, thread_of_item};
use crate::element::Element;
use crate::rotary::turn_rows;
use crate::sequences::Sequences;

/// Tokens of a tile that a thread holds.
const TOKENS: usize = (KEY_TILE / TOKEN_LANES) as usize;
/// Numbers that a thread loads before it looks at the first, so that loads overlap: whoever waits for a head's statistics waits for them.
const LOADS_IN_FLIGHT: usize = 16;

/// Sums of one tile of one head of the keys, or of values in 16 bits; if they are the last, the head's mean.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn mean_statistics<
    E: Element,
    S: Sequences,
    const HEAD_DIM: u32,
    const SMOOTHED: bool,
    const ROTATED: bool,
    const OF_KEYS: bool,
>(
    params: &QuantizeParams,
    part: Part<S>,
) {
    let Part { head, tile, sequence } = part;
    let (kind, tensor, means, codes, tile_bytes) = if OF_KEYS {
        let tile_bytes = KEY_TILE * code_row_bytes::<HEAD_DIM, SMOOTHED>(params);
        (Tensor::Key, &params.key, params.key_mean, params.key_codes, tile_bytes)
    } else {
        (Tensor::Value, &params.value, params.value_mean, params.value_tiles, value_tile_bytes(HEAD_DIM))
    };
    let rotary = if OF_KEYS && ROTATED { Some(&params.key_rotary) } else { None };
    let rows = Rows::<HEAD_DIM>::new(params, codes, tile_bytes, part);
    let (segment, channel) = (tile / SEGMENT_TILES, thread_of_item());
    // SAFETY: forwarded contract; the rows are written before the counters tell of them, by one thread each.
    unsafe {
        tile_statistics::<E, S, HEAD_DIM, ROTATED, false>(params, tensor, rotary, part, &rows);
        if !is_last::<HEAD_DIM>(tiles_counter(params, kind, head, sequence, segment), rows.tiles_of(segment)) {
            return;
        }
        if channel < HEAD_DIM {
            let mut sum = 0.0;
            let tile = |index| [rows.address(Row::TileSum, segment * SEGMENT_TILES + index, channel)];
            fold_rows(rows.tiles_of(segment), tile, |_, [tile]| sum += tile);
            global::store_f32(rows.of_segment(Row::SegmentSum, segment, channel), sum);
        }
        if !is_last::<HEAD_DIM>(segments_counter(params, kind, head, sequence), sequence.segments(params.segments)) {
            return;
        }
        if channel < HEAD_DIM {
            let mut sum = 0.0;
            let segment = |segment| [rows.of_segment(Row::SegmentSum, segment, channel)];
            fold_rows(sequence.segments(params.segments), segment, |_, [segment]| sum += segment);
            let row = sequence.row(head, &params.sequences);
            let place = means + 4 * (row as u64 * HEAD_DIM as u64 + channel as u64);
            global::store_f32(place, sum / sequence.keys(tensor.tokens) as f32);
        }
        // the counter's address is computed again rather than kept
        publish_statistics(params, kind, math::opaque(head), sequence);
    }
}

/// Statistics of one value tile of one head; if they are the last of the segment, its means; of the head, its scales.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn value_statistics<E: Element, S: Sequences, const HEAD_DIM: u32, const VECTORIZED: bool>(
    params: &QuantizeParams,
    part: Part<S>,
) {
    let Part { head, tile, sequence } = part;
    let rows = Rows::<HEAD_DIM>::new(params, params.value_tiles, key_tile_bytes(HEAD_DIM), part);
    let (segment, channel) = (tile / SEGMENT_TILES, thread_of_item());
    let (segments, tokens) = (sequence.segments(params.segments), sequence.keys(params.value.tokens));
    let first_segment = sequence.first_segment(head, params.segments);
    let segment_place = |segment: u32| 4 * ((first_segment + segment as u64) * HEAD_DIM as u64 + channel as u64);
    let row_place = || 4 * (sequence.row(head, &params.sequences) as u64 * HEAD_DIM as u64 + channel as u64);
    // SAFETY: forwarded contract; the rows are written before the counters tell of them, by one thread each.
    unsafe {
        tile_statistics::<E, S, HEAD_DIM, VECTORIZED, true>(params, &params.value, None, part, &rows);
        if !is_last::<HEAD_DIM>(tiles_counter(params, Tensor::Value, head, sequence, segment), rows.tiles_of(segment)) {
            return;
        }
        if channel < HEAD_DIM {
            let (mut sum, mut smallest, mut largest) = (0.0f32, f32::INFINITY, f32::NEG_INFINITY);
            let tile = |index| {
                [Row::TileSum, Row::TileMin, Row::TileMax]
                    .map(|row| rows.address(row, segment * SEGMENT_TILES + index, channel))
            };
            fold_rows(rows.tiles_of(segment), tile, |_, [tile_sum, tile_min, tile_max]| {
                sum += tile_sum;
                smallest = smallest.min(tile_min);
                largest = largest.max(tile_max);
            });
            let smoothed = params.smooth_v != 0 && (!S::RAGGED || tokens > KEY_TILE);
            let tokens = min(tokens - segment * SEGMENT_KEYS, SEGMENT_KEYS);
            let mean = if smoothed { sum / tokens as f32 } else { 0.0 };
            let amax = 0.0f32.max(largest - mean).max(mean - smallest);
            global::store_f32(params.value_mean + segment_place(segment), mean);
            global::store_f32(rows.of_segment(Row::SegmentAmax, segment, channel), amax);
        }
        if !is_last::<HEAD_DIM>(segments_counter(params, Tensor::Value, head, sequence), segments) {
            return;
        }
        if channel < HEAD_DIM {
            let (mut amax, mut mean_amax) = (0.0f32, 0.0f32);
            let segment = |segment| {
                [rows.of_segment(Row::SegmentAmax, segment, channel), params.value_mean + segment_place(segment)]
            };
            fold_rows(segments, segment, |_, [segment_amax, mean]: [f32; 2]| {
                amax = amax.max(segment_amax);
                mean_amax = mean_amax.max(mean.abs());
            });
            let (scale, inverse) = value_scale(amax, mean_amax, params.value_max);
            global::store_f32(params.value_scale + row_place(), scale);
            global::store_f32(params.value_inverse_scale + row_place(), inverse);
        }
        publish_statistics(params, Tensor::Value, head, sequence);
        // nobody in this launch waits for these
        if channel < HEAD_DIM {
            // loaded again rather than kept
            let inverse = global::load_written_f32(params.value_inverse_scale + row_place());
            let mean = |segment| [params.value_mean + segment_place(segment)];
            fold_rows(segments, mean, |segment, [mean]| {
                global::store_f32(params.value_mean_codes + segment_place(segment), mean * inverse);
            });
        }
    }
}

/// The statistics rows of a head's parts, in the place of its codes.
struct Rows<const HEAD_DIM: u32> {
    codes: u64,
    tile_bytes: u32,
    tiles: u32,
}

impl<const HEAD_DIM: u32> Rows<HEAD_DIM> {
    #[inline(always)]
    fn new<S: Sequences>(params: &QuantizeParams, codes: u64, tile_bytes: u32, part: Part<S>) -> Self {
        let first_tile = part.sequence.first_key_tile(part.head, params.key_tiles);
        let tiles = part.sequence.key_tiles(params.key_tiles);
        Self { codes: codes + first_tile * tile_bytes as u64, tile_bytes, tiles }
    }

    #[inline(always)]
    fn address(&self, row: Row, tile: u32, channel: u32) -> u64 {
        let tile = self.codes + tile as u64 * self.tile_bytes as u64;
        tile + (row_offset(row, HEAD_DIM) + 4 * channel) as u64
    }

    #[inline(always)]
    fn of_segment(&self, row: Row, segment: u32, channel: u32) -> u64 {
        self.address(row, segment * SEGMENT_TILES, channel)
    }

    /// Tiles of a segment.
    #[inline(always)]
    fn tiles_of(&self, segment: u32) -> u32 {
        min(self.tiles - segment * SEGMENT_TILES, SEGMENT_TILES)
    }
}

/// Loads `N` numbers of each of `count` rows, several rows at a time, and hands them to `visit` in order.
///
/// # Safety
///
/// The addresses must be readable, multiples of 4, and what this launch wrote there ordered before.
#[inline(always)]
unsafe fn fold_rows<const N: usize>(
    count: u32,
    address: impl Fn(u32) -> [u64; N],
    mut visit: impl FnMut(u32, [f32; N]),
) {
    // a power of two
    let in_flight = const { (LOADS_IN_FLIGHT / N.next_power_of_two()) as u32 };
    let mut first = 0;
    while first < count {
        let mut rows = [[0.0; N]; LOADS_IN_FLIGHT];
        for ahead in 0..in_flight {
            // SAFETY: forwarded contract.
            let row = address(min(first + ahead, count - 1)).map(|at| unsafe { global::load_written_f32(at) });
            rows[ahead as usize] = row;
        }
        for ahead in 0..in_flight {
            if first + ahead < count {
                visit(first + ahead, rows[ahead as usize]);
            }
        }
        first += in_flight;
    }
}

/// Sums of every channel over one tile of one head of a tensor, turned if it is to be; with `RANGE`, minima and maxima.
///
/// # Safety
///
/// As the kernel table and the parameters say; the rows must be those of the tensor's head.
#[inline(always)]
unsafe fn tile_statistics<E: Element, S: Sequences, const HEAD_DIM: u32, const VECTORIZED: bool, const RANGE: bool>(
    params: &QuantizeParams,
    tensor: &TensorView,
    rotary: Option<&RotaryParams>,
    part: Part<S>,
    rows: &Rows<HEAD_DIM>,
) {
    let Part { head, tile, sequence } = part;
    let head = Head::new(tensor, sequence.key_offset(tensor, head));
    let tokens = sequence.keys(tensor.tokens);
    let threads_per_row = threads_per_row(HEAD_DIM);
    let thread = thread_of_item();
    let (lane, chunk) = (thread / threads_per_row, thread % threads_per_row);

    let (first, offset) = (tile * KEY_TILE + lane, |index: usize| index as u32 * TOKEN_LANES);
    // SAFETY: the tensor is readable.
    let mut chunks = unsafe { head.load_chunks::<TOKENS, true, VECTORIZED>(tensor, tokens, first, offset, chunk) };
    // SAFETY: forwarded contract.
    unsafe {
        claim::<HEAD_DIM>(params);
        if let Some(rotary) = rotary {
            chunks = turn_rows::<E, TOKENS>(rotary, chunks, |index| first + offset(index), tokens, chunk);
        }
    }
    let left = tokens.saturating_sub(first);
    let mut sum = [0.0f32; CHUNK];
    let mut smallest = [E::INFINITY_PAIR; CHUNK / 2];
    let mut largest = [E::NEGATIVE_INFINITY_PAIR; CHUNK / 2];
    for (index, chunk) in chunks.iter().enumerate() {
        // a token that is not there has zeros
        let values = chunk.values::<E>();
        for channel in 0..CHUNK {
            sum[channel] += values[channel];
        }
        if RANGE && offset(index) < left {
            for pair in 0..CHUNK / 2 {
                smallest[pair] = E::min(smallest[pair], chunk.0[pair]);
                largest[pair] = E::max(largest[pair], chunk.0[pair]);
            }
        }
    }

    // shared memory: f32 sum[token lane][channel], pairs of 16 bits min[token lane][channel], max[token lane][channel]
    let plane = TOKEN_LANES * HEAD_DIM * 4;
    let min_plane = shared::dynamic() + plane;
    let max_plane = min_plane + plane / 2;
    let element = lane * HEAD_DIM + chunk * CHUNK as u32;
    // SAFETY: the places are this thread's own, within the launch's shared memory.
    unsafe {
        for quad in 0..CHUNK / 4 {
            let words = [0, 1, 2, 3].map(|index: usize| sum[4 * quad + index].to_bits());
            shared::store_u32x4(shared::dynamic() + 4 * element + 16 * quad as u32, words);
        }
        if RANGE {
            shared::store_u32x4(min_plane + 2 * element, smallest);
            shared::store_u32x4(max_plane + 2 * element, largest);
        }
    }
    thread::sync_threads();

    // one thread a channel adds; of the others, half take the minima of two channels each, half the maxima
    if thread < HEAD_DIM {
        let mut sum = 0.0f32;
        for lane in 0..TOKEN_LANES {
            // SAFETY: all lanes were written before the barrier.
            sum += unsafe { shared::load_f32(shared::dynamic() + (lane * HEAD_DIM + thread) * 4) };
        }
        // SAFETY: the tile's codes hold the row.
        unsafe { global::store_f32(rows.address(Row::TileSum, tile, thread), sum) };
    } else if RANGE {
        let pair = (thread - HEAD_DIM) % (HEAD_DIM / 2);
        let takes_minima = thread - HEAD_DIM < HEAD_DIM / 2;
        let plane = if takes_minima { min_plane } else { max_plane };
        let mut extreme = if takes_minima { E::INFINITY_PAIR } else { E::NEGATIVE_INFINITY_PAIR };
        for lane in 0..TOKEN_LANES {
            // SAFETY: all lanes were written before the barrier.
            let other = unsafe { shared::load_u32(plane + (lane * HEAD_DIM + 2 * pair) * 2) };
            extreme = if takes_minima { E::min(extreme, other) } else { E::max(extreme, other) };
        }
        let row = if takes_minima { Row::TileMin } else { Row::TileMax };
        // SAFETY: the tile's codes hold the row.
        unsafe { global::store_u32x2(rows.address(row, tile, 2 * pair), E::unpack(extreme).map(f32::to_bits)) };
    }
}
