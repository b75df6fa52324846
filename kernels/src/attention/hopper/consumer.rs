//! A consumer warpgroup: 64 queries against every key tile they see.
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
use sage_layout::scale::{KEY_SCALES_PER_TILE, QUERY_SCALES_PER_TILE, QUERY_SCALES_PER_WARP};
use sage_layout::tile::{
    KEY_CHUNK, SEGMENT_TILES, SEGMENTS_PER_FLUSH, WARP_ROWS, WARPGROUP_ROWS, key_tile_bytes, key_tiles, padded_queries,
    query_tile_bytes, segments,
};
use simt::wgmma::{self, Descriptor, E4m3, ValueAccumulator};
use simt::{global, math, shared, thread, warp};

use super::head_dim;
use super::pipeline::{Position, Signal, Signals};
use super::producer::NO_ITEM;
use crate::attention::epilogue;
use crate::attention::mask::VisibleKeys;
use crate::attention::schedule::WorkItem;
use crate::attention::softmax::{E4m3Probabilities, OnlineSoftmax, Scores, Visible};
use crate::element::Element;

/// Bytes between the registers of a lane in a warp's region of shared memory: lanes are adjacent.
const LANE_STRIDE: u32 = 4 * warp::LANES;
/// Channels of a 32-byte step of the INT8 product.
const STEP_BYTES: u32 = 32;

/// What a consumer warpgroup keeps for the whole kernel.
struct Consumer<'a, const REGISTERS: usize> {
    params: &'a AttentionParams,
    base: u32,
    signals: Signals,
    warpgroup: u32,
    /// Warp of the warpgroup.
    warp: u32,
    lane: u32,
    /// The warp's f32 sums: `REGISTERS` a lane. Registers `0 .. N` hold the flushed output, `N` and `N + 2` the flushed row
    /// sums, `N + 1` and `N + 3` those since the last flush, where `N = REGISTERS − 4`. Of the latter, the four lanes that
    /// share rows hold those of a segment each.
    region: u32,
    position: Position,
}

/// What it keeps for an item.
struct State<const REGISTERS: usize> {
    scores: Scores,
    /// Output since the last flush, in code units; the last four are row sums of the current tile.
    output: [f32; REGISTERS],
    softmax: OnlineSoftmax,
    /// What the flushed sums must still be multiplied by.
    rescale: [f32; 2],
    query_scale: f32,
    /// Turns the lane's scores of the current tile into base-2 scores.
    scale: f32,
    /// The lane's scale of the first key tile.
    key_scale: u64,
    visible: VisibleKeys,
}

/// Attention of every item of this CTA.
///
/// # Safety
///
/// All threads of consumer warpgroup `warpgroup` call it; barriers are initialised; the operands are as the parameters
/// say.
#[inline(always)]
pub unsafe fn consume<E: Element, const REGISTERS: usize>(
    params: &AttentionParams,
    base: u32,
    signals: Signals,
    warpgroup: u32,
) where
    [f32; REGISTERS]: ValueAccumulator<E4m3>,
{
    let memory = const { AttentionShared::new(head_dim(REGISTERS)) };
    let thread = thread::thread_idx_x() % 128;
    let warp = warp::broadcast(thread / warp::LANES);
    let region = base + memory.master + (4 * warpgroup + warp) * memory.master_stride;
    let mut consumer = Consumer::<REGISTERS> {
        params,
        base,
        signals,
        warpgroup,
        warp,
        lane: thread % warp::LANES,
        region: region + 4 * (thread % warp::LANES),
        position: Position::new(),
    };
    let mut query_phase = 0;
    loop {
        // SAFETY: the producer writes the item's index before it signals, and again only after all four warps released
        // their queries in `attend`, by which time each has its own copy.
        let index = unsafe {
            signals.of(Signal::QueryFull(warpgroup)).wait(query_phase);
            warp::broadcast(shared::load_u32(base + memory.items + 4 * warpgroup))
        };
        if index == NO_ITEM {
            break;
        }
        // SAFETY: forwarded contract; the queries are there.
        unsafe { consumer.attend::<E>(WorkItem::nth(params, index)) };
        query_phase ^= 1;
    }
}

impl<const REGISTERS: usize> Consumer<'_, REGISTERS>
where
    [f32; REGISTERS]: ValueAccumulator<E4m3>,
{
    const HEAD_DIM: u32 = head_dim(REGISTERS);
    /// Registers of the output proper.
    const OUTPUTS: usize = REGISTERS - 4;
    const MEMORY: AttentionShared = AttentionShared::new(Self::HEAD_DIM);

    /// One item, from its scores to its output.
    #[inline(always)]
    unsafe fn attend<E: Element>(&mut self, item: WorkItem) {
        let params = self.params;
        let tiles = item.warpgroup_key_tiles(params, self.warpgroup);
        let warp = self.warp;
        let tile_row = item.first_query + self.warpgroup * WARPGROUP_ROWS;
        let first_row = tile_row + warp * WARP_ROWS;
        let query_tile =
            (item.head as u64 * padded_queries(params.output.tokens) as u64 + tile_row as u64) / WARPGROUP_ROWS as u64;
        let query_scale =
            query_tile * QUERY_SCALES_PER_TILE as u64 + (warp * QUERY_SCALES_PER_WARP + self.lane / 4) as u64;
        let key_scale =
            item.key_head as u64 * (key_tiles(params.key_len) * KEY_SCALES_PER_TILE) as u64 + (self.lane % 4) as u64;

        // SAFETY: for all methods that refer to here: shared memory is read after the signal that it is full and before
        // the signal that it is empty; regions are the lane's own; registers in flight are settled before use.
        unsafe {
            let mut state = State::<REGISTERS> {
                scores: [0; 32],
                output: [0.0; REGISTERS],
                softmax: OnlineSoftmax::new(),
                rescale: [1.0; 2],
                query_scale: global::load_f32(params.query_scale + 4 * query_scale),
                scale: 0.0,
                key_scale: params.key_scale + 4 * key_scale,
                visible: VisibleKeys::new(params, first_row, self.lane),
            };
            self.clear_row_sums();

            if tiles.all > 0 {
                let key_scale = global::load_f32(state.key_scale);
                self.wait_tiles(self.position);
                wgmma::fence();
                self.multiply_query_key(&mut state.scores, self.key_chunk(self.position, 0));
                wgmma::commit();
                wgmma::wait::<0>();
                wgmma::settle(&mut state.scores);
                state.scale = state.query_scale * key_scale;
                let visible = Visible::Some(state.visible.of_chunk(0));
                state.softmax.raise_reference::<E4m3Probabilities>(&state.scores, state.scale, visible);

                let mut tile = 0;
                let mut flushed = 0;
                loop {
                    let end = min(tile + min(params.tiles_per_flush, SEGMENT_TILES), tiles.all);
                    while tile < min(end, tiles.whole) {
                        self.step::<false>(&mut state, tile, tiles.all);
                        tile += 1;
                    }
                    while tile < end {
                        self.step::<true>(&mut state, tile, tiles.all);
                        tile += 1;
                    }
                    self.empty_row_sums(&mut state.output, tile - 1);
                    if tile == tiles.all {
                        break;
                    }
                    if tile - flushed == params.tiles_per_flush {
                        self.collect(&mut state, item.key_head, flushed, tile);
                        self.flush(&mut state);
                        flushed = tile;
                    }
                }
                self.signals.of(Signal::QueryEmpty(self.warpgroup)).arrive_if(self.lane == 0);
                self.collect(&mut state, item.key_head, flushed, tile);
            } else {
                self.signals.of(Signal::QueryEmpty(self.warpgroup)).arrive_if(self.lane == 0);
            }
            for _ in tiles.all..item.key_tiles(params) {
                self.wait_tiles(self.position);
                // in `step` the products' waits keep the lanes together
                warp::sync_warp();
                self.release_tiles(self.position);
                self.position.advance();
            }
            self.finish::<E>(&state, item, first_row);
        }
    }

    /// One key tile, whose first 64 keys' scores are in `state.scores`; leaves the next tile's there. After the last of
    /// `tiles`, it leaves scores that nobody reads: that costs less than a second form of this loop.
    #[inline(always)]
    unsafe fn step<const MASKED: bool>(&mut self, state: &mut State<REGISTERS>, tile: u32, tiles: u32) {
        let current = self.position;
        let next_tile = min(tile + 1, tiles - 1);
        let visible = |chunk: u32| {
            if MASKED { Visible::Some(state.visible.of_chunk((2 * tile + chunk) * KEY_CHUNK)) } else { Visible::All }
        };
        let (first, second) = (visible(0), visible(1));
        let value = self.value_chunk(current, 0);

        // SAFETY: see `attend`.
        unsafe {
            let next_key_scale =
                global::load_f32(state.key_scale + 4 * (KEY_SCALES_PER_TILE as u64 * next_tile as u64));

            // chunk A; nothing is in flight
            let (mut probabilities, saturated) = state.softmax.probabilities(&state.scores, state.scale, first);
            if saturated {
                self.rebase(state, first, &mut probabilities);
            }
            wgmma::fence();
            self.multiply_query_key(&mut state.scores, self.key_chunk(current, 1));
            wgmma::commit();
            Self::multiply_value(&mut state.output, &probabilities, value);
            wgmma::commit();
            wgmma::wait::<1>();
            wgmma::settle(&mut state.scores);

            // chunk B; P·V of chunk A is in flight until the exponentials are done
            self.position.advance();
            let next = if next_tile > tile { self.position } else { current };
            self.wait_tiles(next);
            let (mut probabilities, saturated) = state.softmax.probabilities(&state.scores, state.scale, second);
            wgmma::wait::<0>();
            wgmma::settle(&mut state.output);
            if saturated {
                self.rebase(state, second, &mut probabilities);
            }
            // those of chunk B of the tile before, and of chunk A
            self.empty_row_sums(&mut state.output, tile);
            wgmma::settle(&mut state.output);
            wgmma::fence();
            self.multiply_query_key(&mut state.scores, self.key_chunk(next, 0));
            Self::multiply_value(&mut state.output, &probabilities, value.advance(KEY_CHUNK));
            wgmma::commit();
            wgmma::wait::<0>();
            wgmma::settle(&mut state.scores);
            wgmma::settle(&mut state.output);
            self.release_tiles(current);
            state.scale = state.query_scale * next_key_scale;
        }
    }

    /// `scores` = query · keyᵀ for 64 keys.
    #[inline(always)]
    unsafe fn multiply_query_key(&self, scores: &mut Scores, key: Descriptor) {
        let query = Descriptor::new(
            self.base + Self::MEMORY.query + self.warpgroup * query_tile_bytes(Self::HEAD_DIM),
            Self::HEAD_DIM,
        );
        // SAFETY: see `attend`.
        unsafe {
            wgmma::m64n64k32_s32_s8::<false>(scores, query, key);
            for step in 1..Self::HEAD_DIM / STEP_BYTES {
                let (query, key) = (query.advance(step * STEP_BYTES), key.advance(step * STEP_BYTES));
                wgmma::m64n64k32_s32_s8::<true>(scores, query, key);
            }
        }
    }

    /// `output` += probabilities · value for 64 keys.
    #[inline(always)]
    unsafe fn multiply_value(output: &mut [f32; REGISTERS], probabilities: &E4m3Probabilities, value: Descriptor) {
        // SAFETY: see `attend`.
        unsafe {
            output.multiply_accumulate(&probabilities[0], value);
            output.multiply_accumulate(&probabilities[1], value.advance(STEP_BYTES));
        }
    }

    /// Rare: takes the true row maxima, rescales what is accumulated, and redoes the chunk's probabilities.
    #[inline(always)]
    unsafe fn rebase(&self, state: &mut State<REGISTERS>, visible: Visible, probabilities: &mut E4m3Probabilities) {
        let rescale;
        (*probabilities, rescale) = state.softmax.rebase(&state.scores, state.scale, visible);
        for (index, value) in state.output.iter_mut().enumerate() {
            *value *= rescale[index / 2 % 2];
        }
        for row in 0..2 {
            state.rescale[row] *= rescale[row];
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
        self.register(Self::OUTPUTS + 2 * row + 1)
    }

    #[inline(always)]
    unsafe fn clear_row_sums(&self) {
        for row in 0..2 {
            // SAFETY: the lane's own region.
            unsafe { shared::store_f32(self.current_row_sum(row), 0.0) };
        }
    }

    /// Adds the row sums out of the accumulator to those since the last flush, in f32. The lane that keeps them is that of
    /// the segment of `tile`.
    #[inline(always)]
    unsafe fn empty_row_sums(&self, output: &mut [f32; REGISTERS], tile: u32) {
        let segment = tile / SEGMENT_TILES;
        let keeps = (segment ^ self.lane).is_multiple_of(SEGMENTS_PER_FLUSH);
        for row in 0..2 {
            let at = self.current_row_sum(row);
            let sum = if keeps { output[Self::OUTPUTS + 2 * row] } else { 0.0 };
            // SAFETY: the lane's own region.
            unsafe { shared::store_f32(at, shared::load_f32(at) + sum) };
        }
        output[Self::OUTPUTS..].fill(0.0);
    }

    /// Makes the accumulators of tiles `start .. end` the sums over tiles `0 .. end`: adds the value means of the segments, the
    /// row sums, and what was flushed.
    #[inline(always)]
    unsafe fn collect(&self, state: &mut State<REGISTERS>, key_head: u32, start: u32, end: u32) {
        let means = key_head as u64 * segments(self.params.key_len) as u64;
        // SAFETY: the lane's own region; means hold a row for each segment of each key head.
        unsafe {
            let kept = [0, 1].map(|row| shared::load_f32(self.current_row_sum(row)));
            let mut segment = start / SEGMENT_TILES;
            while segment * SEGMENT_TILES < end {
                let means = (means + segment as u64) * Self::HEAD_DIM as u64 + 2 * (self.lane % 4) as u64;
                let means = self.params.value_mean_codes + 4 * means;
                let row_sum = kept.map(|sum| warp::shuffle_xor(sum, (segment ^ self.lane) % SEGMENTS_PER_FLUSH));
                for group in 0..Self::OUTPUTS / 4 {
                    let mean = global::load_f32x2(means + 32 * group as u64);
                    for part in 0..4 {
                        let sum = &mut state.output[4 * group + part];
                        *sum = math::fma(row_sum[part / 2], mean[part % 2], *sum);
                    }
                }
                for row in 0..2 {
                    state.output[Self::OUTPUTS + 2 * row] += row_sum[row];
                }
                segment += 1;
            }
            if start > 0 {
                for (index, sum) in state.output.iter_mut().enumerate() {
                    // the two columns of row sums are equal, and the second's place is another's
                    let at = self.register(if index < Self::OUTPUTS { index } else { index & !1 });
                    *sum = math::fma(shared::load_f32(at), state.rescale[index / 2 % 2], *sum);
                }
            }
        }
    }

    /// Empties the accumulators into shared memory.
    #[inline(always)]
    unsafe fn flush(&self, state: &mut State<REGISTERS>) {
        for (index, sum) in state.output.iter_mut().enumerate() {
            if index < Self::OUTPUTS || index % 2 == 0 {
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
    unsafe fn finish<E: Element>(&self, state: &State<REGISTERS>, item: WorkItem, first_row: u32) {
        let params = self.params;
        if first_row >= params.output.tokens {
            return;
        }
        let scales =
            params.value_scale + 4 * (item.key_head as u64 * Self::HEAD_DIM as u64 + 2 * (self.lane % 4) as u64);
        // SAFETY: the lane's own region until the warp's barrier; scales hold a row for each key head.
        unsafe {
            let row_sum = [0, 1].map(|row| state.output[Self::OUTPUTS + 2 * row]);
            let inverse = row_sum.map(|sum| if sum == 0.0 { 0.0 } else { math::reciprocal(sum) });
            let mut output = [0.0; REGISTERS];
            for group in 0..Self::OUTPUTS / 4 {
                let scale = global::load_f32x2(scales + 32 * group as u64);
                for part in 0..4 {
                    let index = 4 * group + part;
                    output[index] = state.output[index] * inverse[part / 2] * scale[part % 2];
                }
            }
            warp::sync_warp();
            let (batch, head) = math::div_rem(item.head, params.output.heads);
            let buffer = self.region - 4 * self.lane;
            epilogue::store_rows::<E>(params, Self::HEAD_DIM, (batch, head), first_row, self.lane, buffer, |index| {
                output[index]
            });
            if params.log_sum_exp != 0 && self.lane.is_multiple_of(4) {
                for row in 0..2 {
                    let query = first_row + self.lane / 4 + 8 * row as u32;
                    if query < params.output.tokens {
                        let mut log_sum_exp = state.softmax.log_sum_exp(row, row_sum[row]);
                        if params.log_sum_exp_shift != 0 {
                            let padded = padded_queries(params.output.tokens) as u64;
                            let at = params.log_sum_exp_shift + 4 * (item.head as u64 * padded + query as u64);
                            log_sum_exp += global::load_f32(at);
                        }
                        let at = item.head as u64 * params.output.tokens as u64 + query as u64;
                        global::store_f32(params.log_sum_exp + 4 * at, log_sum_exp);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn key_chunk(&self, position: Position, chunk: u32) -> Descriptor {
        let tile = self.base + Self::MEMORY.key + position.stage * key_tile_bytes(Self::HEAD_DIM);
        Descriptor::new(tile, Self::HEAD_DIM).advance(chunk * KEY_CHUNK * Self::HEAD_DIM)
    }

    /// Keys are the columns of a value tile, one byte each.
    #[inline(always)]
    fn value_chunk(&self, position: Position, chunk: u32) -> Descriptor {
        let tile = self.base + Self::MEMORY.value + position.stage * Self::MEMORY.value_stride;
        Descriptor::new(tile, sage_layout::tile::VALUE_ROW_BYTES).advance(chunk * KEY_CHUNK)
    }

    #[inline(always)]
    unsafe fn wait_tiles(&self, position: Position) {
        // SAFETY: see `attend`.
        unsafe { self.signals.of(Signal::TilesFull(position.stage)).wait(position.phase) };
    }

    #[inline(always)]
    unsafe fn release_tiles(&self, position: Position) {
        // SAFETY: see `attend`.
        unsafe { self.signals.of(Signal::TilesEmpty(position.stage)).arrive_if(self.lane == 0) };
    }
}
