//! The producer: one thread that keeps the ring of tiles full.

use core::cmp::min;

use sage_layout::kernel::AttentionShared;
use sage_layout::params::AttentionParams;
use sage_layout::tile::{
    CONSUMER_WARPGROUPS, CTA_QUERIES, WARPGROUP_ROWS, key_tile_bytes, key_tiles, padded_queries, query_tile_bytes,
};
use simt::copy::bulk_to_shared;

use super::head_dim;
use super::pipeline::{Position, Signal, Signals};
use crate::attention::schedule;

/// Key and value tiles of an item that are fetched before its queries: their slots come free first.
const TILES_BEFORE_QUERY: u32 = 2;

/// Copies every item's queries, keys and values into shared memory.
///
/// # Safety
///
/// One thread of the CTA calls it; barriers are initialised; the operands are as the parameters say.
#[inline(always)]
pub unsafe fn produce<const REGISTERS: usize>(params: &AttentionParams, base: u32, signals: Signals) {
    let head_dim = const { head_dim(REGISTERS) };
    let memory = const { AttentionShared::new(self::head_dim(REGISTERS)) };
    let (query_bytes, key_bytes) = (query_tile_bytes(head_dim), key_tile_bytes(head_dim));
    let mut position = Position::new();
    let mut query_phase = 0;

    for item in schedule::items(params) {
        let tiles = item.key_tiles(params);
        let query_turn = min(tiles, TILES_BEFORE_QUERY);
        let mut source = item.key_head as u64 * key_tiles(params.key_len) as u64 * key_bytes as u64;
        for turn in 0..=tiles {
            // SAFETY: a place is copied into after all its readers released it (a fresh barrier counts as released:
            // the phase before its first is over), and the sources are whole tiles of the operands.
            unsafe {
                if turn == query_turn {
                    let padded = padded_queries(params.output.tokens) as u64;
                    let mut source =
                        params.query + (item.head as u64 * padded + item.first_query as u64) * head_dim as u64;
                    for warpgroup in 0..CONSUMER_WARPGROUPS {
                        let full = signals.of(Signal::QueryFull(warpgroup));
                        signals.of(Signal::QueryEmpty(warpgroup)).wait(query_phase ^ 1);
                        full.arrive_expect_bytes(query_bytes);
                        bulk_to_shared(base + memory.query + warpgroup * query_bytes, source, query_bytes, full);
                        source += query_bytes as u64;
                    }
                    query_phase ^= 1;
                }
                if turn < tiles {
                    let full = signals.of(Signal::TilesFull(position.stage));
                    signals.of(Signal::TilesEmpty(position.stage)).wait(position.phase ^ 1);
                    full.arrive_expect_bytes(2 * key_bytes);
                    let key = base + memory.key + position.stage * key_bytes;
                    let value = base + memory.value + position.stage * memory.value_stride;
                    bulk_to_shared(key, params.key + source, key_bytes, full);
                    bulk_to_shared(value, params.value + source, key_bytes, full);
                    source += key_bytes as u64;
                    position.advance();
                }
            }
        }
    }
}

const _: () = assert!(CTA_QUERIES == CONSUMER_WARPGROUPS * WARPGROUP_ROWS);
