//! The producer: one thread that keeps the ring of tiles full.

use core::cmp::min;

use sage_layout::kernel::AttentionShared;
use sage_layout::mask_tile::HIDDEN;
use sage_layout::params::AttentionParams;
use sage_layout::tile::{key_tile_bytes, query_tile_bytes, stored_head_dim};
use simt::copy::bulk_to_shared;
use simt::{barrier, global, grid, math, shared, thread};

use super::Values;
use super::pipeline::{Position, Signal, Signals};
use crate::attention::modifier::Modifier;
use crate::attention::schedule::{self, WorkItem};
use crate::sequences::Sequences;

/// Key and value tiles of an item that are fetched before its queries: their slots come free first.
const TILES_BEFORE_QUERY: u32 = 2;

/// In place of the first query of what is announced after the last item.
pub const NO_ITEM: u32 = u32::MAX;

/// Claims items, announces them to the consumers, and copies their queries, keys and values into shared memory.
///
/// # Safety
///
/// One thread of the CTA calls it; barriers are initialised; the operands are as the parameters say.
#[inline(always)]
pub unsafe fn produce<V: Values, S: Sequences>(params: &AttentionParams, base: u32, signals: Signals) {
    let memory = const { V::MEMORY };
    let stored_head_dim = const { stored_head_dim(V::HEAD_DIM) };
    let (query_bytes, key_bytes) = (query_tile_bytes(stored_head_dim), key_tile_bytes(stored_head_dim));
    let mut position = Position::new(memory.stages);
    let mut query_phase = 0;

    // SAFETY: a place is written after all its readers released it (a fresh barrier counts as released: the phase
    // before its first is over), and the sources are whole tiles of the operands.
    unsafe {
        // the item's words are written before the arrival that the warpgroup waits for
        let announce = |words: [u32; 4], warpgroup: u32, phase: u32, bytes: u32| {
            signals.of(Signal::QueryEmpty(warpgroup)).wait(phase ^ 1);
            shared::store_u32x4(base + memory.items + 16 * warpgroup, words);
            let full = signals.of(Signal::QueryFull(warpgroup));
            full.arrive_expect_bytes(bytes);
            full
        };
        // not unrolled: the producer has few registers
        let warpgroups = math::opaque(memory.warpgroups);
        let mut index = thread::block_idx_x();
        while index < params.items {
            let item = WorkItem::nth(params, index, memory.queries(), |place| S::of_cta(params, place));
            if item.is_there() {
                if !S::RAGGED && params.quantized_items != 0 {
                    let quantized = params.quantized_items + 4 * item.key_head as u64;
                    global::wait_until_u32(quantized, params.items_of_key_head);
                    barrier::fence_proxy_async_global();
                }
                let tiles = item.key_tiles(params, memory.queries());
                let query_turn = min(tiles.count(), TILES_BEFORE_QUERY);
                let first_tile =
                    item.sequence.first_key_tile(item.key_head, S::key_places(params)) as u32 + tiles.first;
                for turn in 0..=tiles.count() {
                    if turn == query_turn {
                        let first_tile = item.sequence.first_query_tile(item.head as u64, S::query_places(params));
                        for warpgroup in 0..warpgroups {
                            // opaque, or an address of each of its places is kept
                            let warpgroup = math::opaque(warpgroup);
                            let words = [item.first_query, item.head, item.key_head, item.sequence.index()];
                            let bytes = AttentionShared::QUERY_SCALES_BYTES;
                            let full = announce(words, warpgroup, query_phase, query_bytes + bytes);
                            let tile = first_tile as u32 + item.query_tile(params, memory.queries(), warpgroup);
                            let query = base + memory.query + warpgroup * query_bytes;
                            let source = params.query + tile as u64 * query_bytes as u64;
                            bulk_to_shared(query, source, query_bytes, full);
                            let scales = base + memory.query_scales + warpgroup * bytes;
                            bulk_to_shared(scales, params.query_scale + tile as u64 * bytes as u64, bytes, full);
                        }
                        query_phase ^= 1;
                    }
                    let is_shown = |tile| V::Modifier::mask_tile(params, item, memory.queries(), tile) != HIDDEN;
                    if turn < tiles.count() && is_shown(tiles.first + turn) {
                        let full = signals.of(Signal::TilesFull(position.stage));
                        signals.of(Signal::TilesEmpty(position.stage)).wait(position.phase ^ 1);
                        full.arrive_expect_bytes(key_bytes + AttentionShared::KEY_SCALES_BYTES + memory.value_bytes);
                        let tile = (first_tile + turn) as u64;
                        let key = base + memory.key + position.stage * key_bytes;
                        let value = base + memory.value + position.stage * memory.value_stride;
                        bulk_to_shared(key, params.key + tile * key_bytes as u64, key_bytes, full);
                        let bytes = AttentionShared::KEY_SCALES_BYTES;
                        let scales = base + memory.key_scales + position.stage * bytes;
                        bulk_to_shared(scales, params.key_scale + tile * bytes as u64, bytes, full);
                        let source = params.value + tile * memory.value_tile_bytes as u64;
                        bulk_to_shared(value, source, memory.value_bytes, full);
                        position.advance();
                    }
                }
            }
            index = schedule::claim(params);
        }
        for warpgroup in 0..warpgroups {
            announce([NO_ITEM; 4], warpgroup, query_phase, 0);
        }
        // whoever waits for this kernel waits for the quantizer too
        grid::wait_for_prerequisite();
    }
}
