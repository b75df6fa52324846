//! A consumer warpgroup with e4m3 values: 64 queries against every key tile they see.
//!
//! Keys are taken in chunks of 64, two a tile. While the tensor cores multiply, the warps turn scores into
//! probabilities; three warpgroups a multiprocessor fill each other's gaps.
//!
//! ```text
//!                 tile j, chunk A               tile j, chunk B                 tile j + 1, chunk A
//! warps         │ softmax(A)   wait │ softmax(B)       wait   │ softmax(A') …
//! tensor cores  │        Q·Kᵀ(B) P·V(A)     │         Q·Kᵀ(A') P·V(B) │
//! ```
//!
//! The FP8 tensor cores keep 13 bits of an accumulator. So the row sums are emptied into f32 after every tile, the output
//! after every 32 tiles, and the value means of its four segments are put back first:
//! `output += Σ row_sum[segment] · mean[segment]` (`docs/numerics.md`, "Two-level accumulation").

use core::cmp::min;

use sage_layout::kernel::AttentionShared;
use sage_layout::params::AttentionParams;
use sage_layout::scale::INT8_MAX;
use sage_layout::tile::{CHUNKS_PER_TILE, KEY_CHUNK, KEY_TILE, SEGMENT_TILES, SEGMENTS_PER_FLUSH};
use simt::wgmma::{self, Descriptor, E4m3, ValueAccumulator};
use simt::{math, shared, warp};

use super::consumer_ahead_fp8;
use super::pipeline::Signals;
use super::units;
use super::warpgroup::Warpgroup;
use crate::attention::epilogue::{self, RowEnds};
use crate::attention::interpolation::ZERO_SCORE;
use crate::attention::mask::VisibleKeys;
use crate::attention::modifier::{ChunkScores, Modifier, Score};
use crate::attention::schedule::{KeyTiles, WorkItem};
use crate::attention::softmax::{E4m3Probabilities, OnlineSoftmax, Scores, Visible};
use crate::element::Element;
use crate::sequences::Sequences;

/// Bytes between the registers of a lane in a warp's region of shared memory: lanes are adjacent.
const LANE_STRIDE: u32 = 4 * warp::LANES;
/// Bytes of a row that a product takes: 32 keys.
const STEP_BYTES: u32 = 32;

/// What a consumer warpgroup keeps for the whole kernel.
pub struct Consumer<'a, const HEAD_DIM: u32, const REGISTERS: usize> {
    /// What it does as any other.
    pub warpgroup: Warpgroup<'a, HEAD_DIM>,
    /// The warp's f32 sums: `REGISTERS` a lane. Registers `0 .. N` hold the flushed output, `N` and `N + 2` the flushed row
    /// sums, `N + 1` and `N + 3` those of segments since the last flush, where `N = REGISTERS − 4`. Of the latter, the four lanes that
    /// share rows hold those of a segment each.
    region: u32,
}

/// What it keeps for an item.
pub struct State<const REGISTERS: usize> {
    /// Of a chunk.
    pub scores: Scores,
    /// Output since the last flush, in code units; the last four are row sums in two columns, of which the first is emptied and read.
    pub output: [f32; REGISTERS],
    /// Row sums of the segment that were emptied, of the lane's two rows.
    row_sums: [f32; 2],
    /// The references.
    pub softmax: OnlineSoftmax,
    /// What the flushed sums must still be multiplied by.
    rescale: [f32; 2],
    /// The lane's.
    pub query_scale: f32,
    /// Turns the lane's scores of the current tile into base-2 scores.
    pub scale: f32,
}

impl<const REGISTERS: usize> State<REGISTERS>
where
    [f32; REGISTERS]: ValueAccumulator<E4m3>,
{
    /// Registers of the output proper.
    pub const OUTPUTS: usize = REGISTERS - 4;

    /// The scores in its registers.
    #[inline(always)]
    pub fn chunk_scores(&self, visible: Visible) -> ChunkScores<i32, 32> {
        ChunkScores { scores: self.scores, scale: self.scale, visible }
    }

    /// Takes the row sums out of the accumulator, in f32. No product is in flight.
    #[inline(always)]
    pub fn empty_row_sums(&mut self) {
        for (row, sum) in self.row_sums.iter_mut().enumerate() {
            let accumulator = &mut self.output[Self::OUTPUTS + 2 * row];
            *sum += *accumulator;
            *accumulator = 0.0;
        }
        wgmma::settle(&mut self.output);
    }

    /// The output += probabilities · value for 64 keys.
    ///
    /// # Safety
    ///
    /// As for [`ValueAccumulator::multiply_accumulate`].
    #[inline(always)]
    pub unsafe fn multiply_value(&mut self, probabilities: &E4m3Probabilities, value: Descriptor) {
        // SAFETY: forwarded contract.
        unsafe {
            self.output.multiply_accumulate(&probabilities[0], value);
            self.output.multiply_accumulate(&probabilities[1], value.advance(STEP_BYTES));
        }
    }
}

/// Attention of every item of this CTA. `REGISTERS` is half of `HEAD_DIM`, and four.
///
/// # Safety
///
/// All threads of consumer warpgroup `warpgroup` call it; barriers are initialised; the operands are as the parameters
/// say.
#[inline(always)]
pub unsafe fn consume<E: Element, M: Modifier, S: Sequences, const HEAD_DIM: u32, const REGISTERS: usize>(
    params: &AttentionParams,
    base: u32,
    signals: Signals,
    warpgroup: u32,
) where
    [f32; REGISTERS]: ValueAccumulator<E4m3>,
{
    let mut consumer = Consumer::<HEAD_DIM, REGISTERS>::new(params, base, signals, warpgroup);
    // SAFETY: forwarded contract; `attend` releases the item.
    unsafe {
        while let Some(item) = consumer.warpgroup.next_item::<S>() {
            // a constant: where registers hold the scores of two chunks
            if const { HEAD_DIM <= consumer_ahead_fp8::MOST_CHANNELS && !M::MODIFIES } {
                consumer_ahead_fp8::attend::<E, S, HEAD_DIM, REGISTERS>(&mut consumer, item);
            } else {
                consumer.attend::<E, M, S>(item);
            }
        }
    }
}

impl<'a, const HEAD_DIM: u32, const REGISTERS: usize> Consumer<'a, HEAD_DIM, REGISTERS>
where
    [f32; REGISTERS]: ValueAccumulator<E4m3>,
{
    /// At the beginning, for consumer warpgroup `warpgroup`'s threads.
    #[inline(always)]
    pub fn new(params: &'a AttentionParams, base: u32, signals: Signals, warpgroup: u32) -> Self {
        const { assert!(HEAD_DIM * (INT8_MAX * INT8_MAX) as u32 <= ZERO_SCORE, "scores can be interpolated") };
        let memory = const { AttentionShared::fp8(HEAD_DIM) };
        let warpgroup = Warpgroup::new(params, memory, base, signals, warpgroup);
        let region = warpgroup.region() + 4 * warpgroup.lane;
        Self { warpgroup, region }
    }

    /// Nothing added up for an item, in registers and in shared memory.
    ///
    /// # Safety
    ///
    /// For all methods: see [`Warpgroup::next_item`]; the regions are used by nobody else, and registers of products in flight are settled.
    #[inline(always)]
    pub unsafe fn new_state(&self) -> State<REGISTERS> {
        // SAFETY: forwarded contract.
        unsafe {
            self.clear_row_sums();
            State {
                scores: [0; 32],
                output: [0.0; REGISTERS],
                row_sums: [0.0; 2],
                softmax: OnlineSoftmax::new(),
                rescale: [1.0; 2],
                query_scale: self.warpgroup.query_scale(),
                scale: 0.0,
            }
        }
    }

    /// The scores of the first 64 keys, and a reference for them.
    ///
    /// # Safety
    ///
    /// See [`new_state`](Self::new_state); `tiles` are the warpgroup's.
    #[inline(always)]
    pub unsafe fn begin<S: Sequences>(&self, state: &mut State<REGISTERS>, item: WorkItem<S>, tiles: KeyTiles) {
        // SAFETY: forwarded contract.
        unsafe {
            self.warpgroup.wait_tiles(self.warpgroup.position);
            self.warpgroup.query_key(&mut state.scores, self.warpgroup.key_chunk(self.warpgroup.position, 0));
            state.scale = state.query_scale * self.warpgroup.key_scale(self.warpgroup.position);
        }
        let visible = self.warpgroup.first_visible(item, tiles);
        state.softmax.raise_reference::<E4m3Probabilities, _>(&state.chunk_scores(visible));
    }

    /// One item, from its scores to its output.
    #[inline(always)]
    unsafe fn attend<E: Element, M: Modifier, S: Sequences>(&mut self, item: WorkItem<S>) {
        let params = self.warpgroup.params;
        let tiles = item.warpgroup_key_tiles(params, self.warpgroup.index);
        let first_row = self.warpgroup.first_row(item);
        // the last of the tiles after which row sums are kept: of a segment, or of a part that divides it
        let last = min(params.tiles_per_flush, SEGMENT_TILES).wrapping_sub(1);
        let mut flushed = tiles.first & !last;

        // SAFETY: for all methods that refer to here: shared memory is read after the signal that it is full and before
        // the signal that it is empty; regions are the lane's own; registers in flight are settled before use.
        unsafe {
            let mut state = self.new_state();
            self.warpgroup.release_tiles_before::<M, S>(item);
            if tiles.count() > 0 && !M::MODIFIES {
                self.begin(&mut state, item, tiles);
            }
            if tiles.count() > 0 {
                let mut tile = tiles.first;
                loop {
                    let end = min((tile | last) + 1, tiles.end);
                    let [whole_end, masked_end] = if M::MODIFIES { [tile, end] } else { tiles.runs(tile, end) };
                    while tile < whole_end {
                        self.step(&mut state, [tile, tiles.end]);
                        tile += 1;
                    }
                    if tile < masked_end {
                        // opaque, or it is kept in registers through all tiles
                        let visible =
                            VisibleKeys::new(params, item.sequence, math::opaque(first_row), self.warpgroup.lane);
                        let chunk_end = item.warpgroup_chunk_end(params, self.warpgroup.index);
                        while tile < masked_end {
                            if M::MODIFIES {
                                self.step_modified::<M, S>(&mut state, item, tile, visible);
                            } else {
                                self.step_masked(&mut state, [tile, tiles.end], chunk_end, visible);
                            }
                            tile += 1;
                        }
                    }
                    if tile < end {
                        continue;
                    }
                    state.empty_row_sums();
                    self.keep_row_sums(&mut state, tile - 1);
                    if tile == tiles.end {
                        break;
                    }
                    if tile - flushed == params.tiles_per_flush {
                        self.collect(&mut state, item, [flushed, tile], flushed > tiles.first);
                        self.flush(&mut state);
                        flushed = tile;
                    }
                }
            }
            self.end::<E, M, S>(&mut state, item, [flushed, tiles.end], flushed > tiles.first);
        }
    }

    /// After the last tile: releases the item, and makes its output of the tiles since the last flush and of what was flushed, if something
    /// was.
    ///
    /// # Safety
    ///
    /// See [`new_state`](Self::new_state).
    #[inline(always)]
    pub unsafe fn end<E: Element, M: Modifier, S: Sequences>(
        &mut self,
        state: &mut State<REGISTERS>,
        item: WorkItem<S>,
        tiles: [u32; 2],
        was_flushed: bool,
    ) {
        // SAFETY: forwarded contract.
        unsafe {
            let item = self.warpgroup.again(item);
            let first_row = self.warpgroup.first_row(item);
            // before the means, so that nobody waits for both
            let lane = self.warpgroup.lane_at_the_end::<S>();
            let scales = units::scales::<S, HEAD_DIM, REGISTERS>(self.warpgroup.params, item, lane);
            self.warpgroup.release_item::<M, S>(item);
            self.collect(state, item, tiles, was_flushed);
            self.finish::<E, S>(state, item, first_row, &scales);
        }
    }

    /// One key tile that all queries see whole, whose first 64 keys' scores are in `state.scores`; leaves the next tile's there. After the
    /// last, before `end`, it leaves scores that nobody reads: that costs less than a second form of this loop.
    #[inline(always)]
    unsafe fn step(&mut self, state: &mut State<REGISTERS>, [tile, end]: [u32; 2]) {
        let current = self.warpgroup.position;
        let value = self.warpgroup.value_chunk(current, 0);

        // SAFETY: see `attend`.
        unsafe {
            // chunk A; nothing is in flight
            let scores = state.chunk_scores(Visible::All);
            let (mut probabilities, saturated) = state.softmax.probabilities(&scores);
            if saturated {
                self.rebase(state, &scores, &mut probabilities);
            }
            wgmma::fence();
            self.warpgroup.multiply_query_key(&mut state.scores, self.warpgroup.key_chunk(current, 1));
            wgmma::commit();
            state.multiply_value(&probabilities, value);
            wgmma::commit();
            wgmma::wait::<1>();
            wgmma::settle(&mut state.scores);

            // chunk B; P·V of chunk A is in flight (ptxas moves its wait above the exponentials, which is faster than after)
            self.warpgroup.position.advance();
            let next = self.warpgroup.position.only_if(tile + 1 < end, current);
            self.warpgroup.wait_tiles(next);
            let next_key_scale = self.warpgroup.key_scale(next);
            let scores = state.chunk_scores(Visible::All);
            let (mut probabilities, saturated) = state.softmax.probabilities(&scores);
            wgmma::wait::<0>();
            wgmma::settle(&mut state.output);
            if saturated {
                self.rebase(state, &scores, &mut probabilities);
            }
            // those of chunk B of the tile before, and of chunk A
            state.empty_row_sums();
            wgmma::fence();
            self.warpgroup.multiply_query_key(&mut state.scores, self.warpgroup.key_chunk(next, 0));
            state.multiply_value(&probabilities, self.warpgroup.value_chunk(current, 1));
            wgmma::commit();
            wgmma::wait::<0>();
            wgmma::settle(&mut state.scores);
            wgmma::settle(&mut state.output);
            self.warpgroup.release_tiles(current);
            state.scale = state.query_scale * next_key_scale;
        }
    }

    /// One key tile of which some query does not see all, otherwise as `step`. Its chunks before `chunk_end` come one after the other, with
    /// nothing in flight meanwhile; those behind it nobody sees. Such tiles are few, and this form of the loop is short.
    ///
    /// # Safety
    ///
    /// See [`new_state`](Self::new_state).
    #[inline(always)]
    pub unsafe fn step_masked(
        &mut self,
        state: &mut State<REGISTERS>,
        [tile, end]: [u32; 2],
        chunk_end: u32,
        mask: VisibleKeys,
    ) {
        let current = self.warpgroup.position;
        self.warpgroup.position.advance();
        let next = self.warpgroup.position.only_if(tile + 1 < end, current);
        let first_chunk = tile * CHUNKS_PER_TILE;
        let last = min(chunk_end - first_chunk, CHUNKS_PER_TILE) - 1;
        let mut next_key_scale = 0.0;
        // SAFETY: see `attend`.
        unsafe {
            for chunk in 0..=last {
                let visible = Visible::Some(mask.of_chunk((first_chunk + chunk) * KEY_CHUNK));
                let scores = state.chunk_scores(visible);
                let (mut probabilities, saturated) = state.softmax.probabilities(&scores);
                if saturated {
                    self.rebase(state, &scores, &mut probabilities);
                }
                let mut key = self.warpgroup.key_chunk(current, 1);
                if chunk == last {
                    self.warpgroup.wait_tiles(next);
                    key = self.warpgroup.key_chunk(next, 0);
                    next_key_scale = self.warpgroup.key_scale(next);
                }
                wgmma::fence();
                self.warpgroup.multiply_query_key(&mut state.scores, key);
                state.multiply_value(&probabilities, self.warpgroup.value_chunk(current, chunk));
                wgmma::commit();
                wgmma::wait::<0>();
                wgmma::settle(&mut state.scores);
                wgmma::settle(&mut state.output);
                state.empty_row_sums();
            }
            self.warpgroup.release_tiles(current);
            state.scale = state.query_scale * next_key_scale;
        }
    }

    /// One key tile with modified scores, a chunk at a time. Nothing is in flight while scores are modified, and no chunk's maximum is
    /// known before: the first replaces the reference that there is none.
    #[inline(always)]
    unsafe fn step_modified<M: Modifier, S: Sequences>(
        &mut self,
        state: &mut State<REGISTERS>,
        item: WorkItem<S>,
        tile: u32,
        mask: VisibleKeys,
    ) {
        // SAFETY: see `attend`.
        unsafe {
            let shown = self.warpgroup.shown::<M, S>(item, tile);
            // such a tile was not fetched
            if shown.nothing {
                return;
            }
            let position = self.warpgroup.position;
            self.warpgroup.wait_tiles(position);
            state.scale = state.query_scale * self.warpgroup.key_scale(position);
            // not unrolled: modifiers are much code
            for chunk in 0..math::opaque(CHUNKS_PER_TILE) {
                self.warpgroup.query_key(&mut state.scores, self.warpgroup.key_chunk(position, chunk));
                let first_key = tile * KEY_TILE + chunk * KEY_CHUNK;
                let scores = state.chunk_scores(Visible::Some(mask.of_chunk(first_key)));
                let scores = M::apply(self.warpgroup.place(item, shown), first_key, 0, scores);
                let (mut probabilities, saturated) = state.softmax.probabilities(&scores);
                if saturated {
                    self.rebase(state, &scores, &mut probabilities);
                }
                wgmma::fence();
                state.multiply_value(&probabilities, self.warpgroup.value_chunk(position, chunk));
                wgmma::commit();
                wgmma::wait::<0>();
                wgmma::settle(&mut state.output);
            }
            state.empty_row_sums();
            self.warpgroup.release_tiles(position);
            self.warpgroup.position.advance();
        }
    }

    /// Rare: takes the true row maxima, rescales what is accumulated, and redoes the chunk's probabilities.
    ///
    /// # Safety
    ///
    /// See [`new_state`](Self::new_state).
    #[inline(always)]
    pub unsafe fn rebase<S: Score>(
        &self,
        state: &mut State<REGISTERS>,
        scores: &ChunkScores<S, 32>,
        probabilities: &mut E4m3Probabilities,
    ) {
        let rescale;
        (*probabilities, rescale) = state.softmax.rebase(scores);
        for (index, value) in state.output.iter_mut().enumerate() {
            *value *= rescale[index / 2 % 2];
        }
        for row in 0..2 {
            state.rescale[row] *= rescale[row];
            state.row_sums[row] *= rescale[row];
            // SAFETY: the lane's own region.
            unsafe {
                let at = self.current_row_sum(row);
                shared::store_f32(at, shared::load_f32(at) * rescale[row]);
            }
        }
    }

    #[inline(always)]
    fn register(&self, index: usize) -> u32 {
        self.region + index as u32 * LANE_STRIDE
    }

    #[inline(always)]
    fn current_row_sum(&self, row: usize) -> u32 {
        self.register(State::<REGISTERS>::OUTPUTS + 2 * row + 1)
    }

    #[inline(always)]
    unsafe fn clear_row_sums(&self) {
        for row in 0..2 {
            // SAFETY: the lane's own region.
            unsafe { shared::store_f32(self.current_row_sum(row), 0.0) };
        }
    }

    /// Adds the segment's row sums to those since the last flush, and begins the next segment's. The lane that keeps them is that of the
    /// segment of `tile`.
    ///
    /// # Safety
    ///
    /// See [`new_state`](Self::new_state).
    #[inline(always)]
    pub unsafe fn keep_row_sums(&self, state: &mut State<REGISTERS>, tile: u32) {
        let segment = tile / SEGMENT_TILES;
        let keeps = (segment ^ self.warpgroup.lane).is_multiple_of(SEGMENTS_PER_FLUSH);
        for (row, sum) in state.row_sums.into_iter().enumerate() {
            let at = self.current_row_sum(row);
            // SAFETY: the lane's own region.
            unsafe { shared::store_f32(at, shared::load_f32(at) + if keeps { sum } else { 0.0 }) };
        }
        state.row_sums = [0.0; 2];
    }

    /// Makes the accumulators of tiles `start .. end` the sums over all tiles before `end`: adds the value means of the segments,
    /// the row sums, and what was flushed, if something was.
    ///
    /// # Safety
    ///
    /// See [`new_state`](Self::new_state).
    #[inline(always)]
    pub unsafe fn collect<S: Sequences>(
        &self,
        state: &mut State<REGISTERS>,
        item: WorkItem<S>,
        [start, end]: [u32; 2],
        was_flushed: bool,
    ) {
        let lane = self.warpgroup.lane_at_the_end::<S>();
        // SAFETY: the lane's own region; means hold a row for each segment of each key head.
        unsafe {
            let kept = [0, 1].map(|row| shared::load_f32(self.current_row_sum(row)));
            let mut segment = start / SEGMENT_TILES;
            while segment * SEGMENT_TILES < end {
                let row_sum =
                    kept.map(|sum| warp::shuffle_xor(sum, (segment ^ self.warpgroup.lane) % SEGMENTS_PER_FLUSH));
                let params = self.warpgroup.params;
                units::add_means::<S, HEAD_DIM>(params, item, segment, lane, row_sum, &mut state.output);
                for row in 0..2 {
                    state.output[State::<REGISTERS>::OUTPUTS + 2 * row] += row_sum[row];
                }
                segment += 1;
            }
            if was_flushed {
                for (index, sum) in state.output.iter_mut().enumerate() {
                    // the second column of row sums is nobody's, and its place another's
                    let at = self.register(if index < State::<REGISTERS>::OUTPUTS { index } else { index & !1 });
                    *sum = math::fma(shared::load_f32(at), state.rescale[index / 2 % 2], *sum);
                }
            }
        }
    }

    /// Empties the accumulators into shared memory.
    ///
    /// # Safety
    ///
    /// See [`new_state`](Self::new_state).
    #[inline(always)]
    pub unsafe fn flush(&self, state: &mut State<REGISTERS>) {
        for (index, sum) in state.output.iter_mut().enumerate() {
            if index < State::<REGISTERS>::OUTPUTS || index % 2 == 0 {
                // SAFETY: the lane's own region.
                unsafe { shared::store_f32(self.register(index), *sum) };
            }
            *sum = 0.0;
        }
        state.rescale = [1.0; 2];
        // SAFETY: the lane's own region.
        unsafe { self.clear_row_sums() };
    }

    /// Divides by the row sums, scales, and writes output and log-sum-exp.
    #[inline(always)]
    unsafe fn finish<E: Element, S: Sequences>(
        &self,
        state: &State<REGISTERS>,
        item: WorkItem<S>,
        first_row: u32,
        scales: &[f32; REGISTERS],
    ) {
        let Warpgroup { params, .. } = self.warpgroup;
        let lane = self.warpgroup.lane_at_the_end::<S>();
        if first_row >= item.sequence.queries(params.output.tokens) {
            return;
        }
        // SAFETY: the lane's own region until the warp's barrier; scales hold a row for each key head.
        unsafe {
            let ends = RowEnds::new(params, item, first_row, lane);
            let row_sum = [0, 1].map(|row| state.output[State::<REGISTERS>::OUTPUTS + 2 * row]);
            let denominators = ends.denominators(&state.softmax, row_sum);
            let inverse = epilogue::inverse(denominators);
            let output = units::scaled::<HEAD_DIM, REGISTERS>(scales, inverse, &state.output);
            // other lanes' flushed sums lie where the rows are put together
            warp::sync_warp();
            self.warpgroup.store_output::<E, S>(item, first_row, lane, |index| output[index]);
            ends.store(params, &state.softmax, denominators);
        }
    }
}
