//! [`consumer_fp8`](super::consumer_fp8) where there are registers for the scores of two chunks.
//!
//! A chunk's scores are multiplied while the warps are at the softmax of the one before, and its probabilities while they are at the one
//! after it: nobody waits for a product that was not issued a chunk ago.
//!
//! ```text
//!                 tile j, chunk A             tile j, chunk B      tile j + 1, chunk A
//! warps         │ softmax(A)                │ softmax(B)         │ softmax(A') …
//! tensor cores  │ Q·Kᵀ(B)  P·V(B of j − 1)  │ Q·Kᵀ(A')  P·V(A)   │ Q·Kᵀ(B')  P·V(B)
//! ```
//!
//! When a tile is done, its last probabilities are *pending*: they are multiplied with the next tile, whose first products also complete the
//! row sums of the tile before. No product is in flight at the end of a round, or ptxas makes them wait for each other.

use core::cmp::{max, min};

use sage_layout::tile::SEGMENT_TILES;
use simt::math;
use simt::wgmma::{self, E4m3, ValueAccumulator};

use super::consumer_fp8::{Consumer, State};
use super::pipeline::Position;
use crate::attention::mask::VisibleKeys;
use crate::attention::modifier::{ChunkScores, Unmodified};
use crate::attention::schedule::WorkItem;
use crate::attention::softmax::{E4m3Probabilities, Probabilities, Scores, Visible};
use crate::element::Element;
use crate::sequences::Sequences;

/// The most channels with whose output the scores of two chunks fit into a consumer's registers.
pub const MOST_CHANNELS: u32 = 96;

/// What a consumer warpgroup keeps for an item, beside [`State`], whose scores are those of a tile's first chunk.
struct Ahead<const REGISTERS: usize> {
    state: State<REGISTERS>,
    /// Scores of the second chunk.
    second_scores: Scores,
    /// Probabilities of the second chunk of the tile before: zeros, if they were multiplied already.
    pending: E4m3Probabilities,
    /// That tile's position, or if they were multiplied, the next tile's.
    pending_position: Position,
}

/// One item, from its scores to its output.
///
/// # Safety
///
/// Here and elsewhere: see [`Consumer::new_state`].
#[inline(always)]
pub unsafe fn attend<E: Element, S: Sequences, const HEAD_DIM: u32, const REGISTERS: usize>(
    consumer: &mut Consumer<HEAD_DIM, REGISTERS>,
    item: WorkItem<S>,
) where
    [f32; REGISTERS]: ValueAccumulator<E4m3>,
{
    let params = consumer.warpgroup.params;
    let tiles = item.warpgroup_key_tiles(params, consumer.warpgroup.index);
    let first_row = consumer.warpgroup.first_row(item);
    // the last tile of a segment, or of a part that divides it
    let last = min(params.tiles_per_flush, SEGMENT_TILES).wrapping_sub(1);
    let mut flushed = tiles.first & !last;

    // SAFETY: forwarded contract.
    unsafe {
        let state = consumer.new_state();
        consumer.warpgroup.release_tiles_before::<Unmodified, S>(item);
        let mut ahead = Ahead::<REGISTERS> {
            state,
            second_scores: [0; 32],
            pending: Probabilities::ZERO,
            pending_position: consumer.warpgroup.position,
        };
        if tiles.count() > 0 {
            consumer.begin(&mut ahead.state, item, tiles);
            let mut tile = tiles.first;
            loop {
                // with the first tile of a segment, the row sums of the one before are complete
                let segment_end = ((max(tile, 1) - 1) | last) + 2;
                let end = min(min(segment_end, flushed.saturating_add(params.tiles_per_flush)), tiles.end);
                let [whole_end, masked_end] = tiles.runs(tile, end);
                while tile < whole_end {
                    ahead.step(consumer, [tile, tiles.end]);
                    tile += 1;
                }
                if tile < masked_end {
                    ahead.multiply_pending(consumer, tile);
                    // opaque, or it is kept in registers through all tiles
                    let first_row = math::opaque(first_row);
                    let visible = VisibleKeys::new(params, item.sequence, first_row, consumer.warpgroup.lane);
                    let chunk_end = item.warpgroup_chunk_end(params, consumer.warpgroup.index);
                    while tile < masked_end {
                        consumer.step_masked(&mut ahead.state, [tile, tiles.end], chunk_end, visible);
                        consumer.keep_row_sums(&mut ahead.state, tile);
                        tile += 1;
                    }
                    ahead.pending_position = consumer.warpgroup.position;
                }
                if tile < end {
                    continue;
                }
                // a segment's are complete, or more of the same follows
                consumer.keep_row_sums(&mut ahead.state, tile.saturating_sub(2));
                let is_full = tile - flushed == params.tiles_per_flush;
                if is_full || tile == tiles.end {
                    ahead.multiply_pending(consumer, tile);
                }
                if tile == tiles.end {
                    break;
                }
                if is_full {
                    consumer.collect(&mut ahead.state, item, [flushed, tile], flushed > tiles.first);
                    consumer.flush(&mut ahead.state);
                    flushed = tile;
                }
            }
        }
        let was_flushed = flushed > tiles.first;
        consumer.end::<E, Unmodified, S>(&mut ahead.state, item, [flushed, tiles.end], was_flushed);
    }
}

impl<const REGISTERS: usize> Ahead<REGISTERS>
where
    [f32; REGISTERS]: ValueAccumulator<E4m3>,
{
    /// One key tile, whose first 64 keys' scores are there; leaves the next tile's there, and its own last probabilities pending. After the
    /// last tile, before `end`, it leaves scores that nobody reads: that costs less than a second form of this loop.
    #[inline(always)]
    unsafe fn step<const HEAD_DIM: u32>(
        &mut self,
        consumer: &mut Consumer<HEAD_DIM, REGISTERS>,
        [tile, end]: [u32; 2],
    ) {
        let (current, pending) = (consumer.warpgroup.position, self.pending_position);
        consumer.warpgroup.position.advance();
        let next = consumer.warpgroup.position.only_if(tile + 1 < end, current);
        let warpgroup = &consumer.warpgroup;

        // SAFETY: forwarded contract.
        unsafe {
            // chunk A
            wgmma::fence();
            warpgroup.multiply_query_key(&mut self.second_scores, warpgroup.key_chunk(current, 1));
            self.state.multiply_value(&self.pending, warpgroup.value_chunk(pending, 1));
            wgmma::commit();
            let scores = self.state.chunk_scores(Visible::All);
            let (mut probabilities, saturated) = self.state.softmax.probabilities(&scores);
            if saturated {
                self.settle_second();
                consumer.rebase(&mut self.state, &scores, &mut probabilities);
            }
            self.settle_second();
            self.state.empty_row_sums();
            warpgroup.release_tiles_if(!pending.is_same_slot(current), pending);

            // chunk B
            warpgroup.wait_tiles(next);
            let next_key_scale = warpgroup.key_scale(next);
            wgmma::fence();
            warpgroup.multiply_query_key(&mut self.state.scores, warpgroup.key_chunk(next, 0));
            self.state.multiply_value(&probabilities, warpgroup.value_chunk(current, 0));
            wgmma::commit();
            let scores = ChunkScores { scores: self.second_scores, scale: self.state.scale, visible: Visible::All };
            let (mut probabilities, saturated) = self.state.softmax.probabilities(&scores);
            if saturated {
                self.settle_first();
                consumer.rebase(&mut self.state, &scores, &mut probabilities);
            }
            self.state.scale = self.state.query_scale * next_key_scale;
            self.settle_first();
            (self.pending, self.pending_position) = (probabilities, current);
        }
    }

    /// Waits for the first chunk's scores and the output.
    #[inline(always)]
    fn settle_first(&mut self) {
        wgmma::wait::<0>();
        wgmma::settle(&mut self.state.scores);
        wgmma::settle(&mut self.state.output);
    }

    /// Waits for the second chunk's scores and the output.
    #[inline(always)]
    fn settle_second(&mut self) {
        wgmma::wait::<0>();
        wgmma::settle(&mut self.second_scores);
        wgmma::settle(&mut self.state.output);
    }

    /// Multiplies the pending probabilities, if there are some, so that there are none before `tile`.
    #[inline(always)]
    unsafe fn multiply_pending<const HEAD_DIM: u32>(&mut self, consumer: &Consumer<HEAD_DIM, REGISTERS>, tile: u32) {
        let Consumer { warpgroup, .. } = consumer;
        if self.pending_position.is_same_slot(warpgroup.position) {
            return;
        }
        // SAFETY: forwarded contract.
        unsafe {
            wgmma::fence();
            self.state.multiply_value(&self.pending, warpgroup.value_chunk(self.pending_position, 1));
            wgmma::commit();
            wgmma::wait::<0>();
            wgmma::settle(&mut self.state.output);
            self.state.empty_row_sums();
            warpgroup.release_tiles(self.pending_position);
            consumer.keep_row_sums(&mut self.state, tile - 1);
        }
        (self.pending, self.pending_position) = (Probabilities::ZERO, warpgroup.position);
    }
}
