//! A consumer warpgroup with e4m3 values and more than 128 channels: 64 queries against every key tile they see.
//!
//! There is no accumulator with columns of ones beside 256 channels, so row sums are added up in registers ([`tiles`](super::tiles)).
//! The output is emptied into f32 as often as with fewer channels ([`consumer_fp8`](super::consumer_fp8)), and as shared memory is full of
//! tiles, into global memory that is the CTA's own and stays in the L2 cache.

use core::cmp::min;

use sage_layout::kernel::AttentionShared;
use sage_layout::params::AttentionParams;
use sage_layout::tile::{SEGMENT_TILES, SEGMENTS_PER_FLUSH, output_bytes};
use simt::wgmma::{E4m3, ValueAccumulator};
use simt::{global, math, thread, warp};

use super::pipeline::Signals;
use super::tiles::{E4m3Products, State};
use super::units;
use super::warpgroup::Warpgroup;
use crate::attention::epilogue::{self, RowEnds};
use crate::attention::mask::VisibleKeys;
use crate::attention::modifier::Unmodified;
use crate::attention::schedule::WorkItem;
use crate::attention::softmax;
use crate::element::Element;
use crate::sequences::Sequences;

/// Of [`State::row_sums`]: the lane's own of the current segment.
const CURRENT: usize = 0;
/// Row sums of the segments since the last flush: of the four lanes that share rows, each holds those of one.
const KEPT: usize = 1;
/// Parts of the row sums before the last flush, which the four lanes add up to.
const FLUSHED: usize = 2;
/// What the flushed output must still be multiplied by.
const RESCALE: usize = 3;
/// How many.
const SUMS: usize = 4;

/// Output registers that a lane flushes at once: 16 bytes.
const FLUSH_REGISTERS: usize = 4;

/// Attention of every item of this CTA. `REGISTERS` is half of `HEAD_DIM`.
///
/// # Safety
///
/// All threads of consumer warpgroup `warpgroup` call it; barriers are initialised; the operands are as the parameters
/// say.
#[inline(always)]
pub unsafe fn consume<E: Element, S: Sequences, const HEAD_DIM: u32, const REGISTERS: usize>(
    params: &AttentionParams,
    base: u32,
    signals: Signals,
    warpgroup: u32,
) where
    [f32; REGISTERS]: ValueAccumulator<E4m3>,
{
    let memory = const { AttentionShared::fp8(HEAD_DIM) };
    let warpgroup = Warpgroup::<HEAD_DIM>::new(params, memory, base, signals, warpgroup);
    let mut consumer = Consumer::<HEAD_DIM, REGISTERS> { warpgroup };
    // SAFETY: forwarded contract; `attend` releases the item.
    unsafe {
        while let Some(item) = consumer.warpgroup.next_item::<S>() {
            consumer.attend::<E, S>(item);
        }
    }
}

/// What a consumer warpgroup keeps for the whole kernel.
struct Consumer<'a, const HEAD_DIM: u32, const REGISTERS: usize> {
    warpgroup: Warpgroup<'a, HEAD_DIM>,
}

impl<const HEAD_DIM: u32, const REGISTERS: usize> Consumer<'_, HEAD_DIM, REGISTERS>
where
    [f32; REGISTERS]: ValueAccumulator<E4m3>,
{
    /// One item, from its scores to its output.
    #[inline(always)]
    unsafe fn attend<E: Element, S: Sequences>(&mut self, item: WorkItem<S>) {
        let params = self.warpgroup.params;
        let tiles = item.warpgroup_key_tiles(params, self.warpgroup.index);
        // the last of the tiles between two times that row sums are kept: of a segment, or of a part that divides it
        let last = min(params.tiles_per_flush, SEGMENT_TILES).wrapping_sub(1);
        let mut flushed = tiles.first & !last;

        // SAFETY: forwarded contract.
        unsafe {
            let mut state = State::<REGISTERS, SUMS>::new(&self.warpgroup);
            state.row_sums[RESCALE] = [1.0; 2];
            self.warpgroup.release_tiles_before::<Unmodified, S>(item);
            if tiles.count() > 0 {
                state.begin::<E4m3Products, S, HEAD_DIM>(&self.warpgroup, item, tiles);
                let mut tile = tiles.first;
                loop {
                    let end = min((tile | last) + 1, tiles.end);
                    let [whole_end, masked_end] = tiles.runs(tile, end);
                    while tile < whole_end {
                        let tiles = [tile, tiles.end];
                        state.step::<E4m3Products, HEAD_DIM>(&mut self.warpgroup, tiles, None);
                        tile += 1;
                    }
                    if tile < masked_end {
                        // opaque, or it is kept in registers through all tiles
                        let first_row = math::opaque(self.warpgroup.first_row(item));
                        let visible = VisibleKeys::new(params, item.sequence, first_row, self.warpgroup.lane);
                        while tile < masked_end {
                            let tiles = [tile, tiles.end];
                            state.step::<E4m3Products, HEAD_DIM>(&mut self.warpgroup, tiles, Some(visible));
                            tile += 1;
                        }
                    }
                    if tile < end {
                        continue;
                    }
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
            let item = self.warpgroup.again(item);
            self.warpgroup.release_item::<Unmodified, S>(item);
            self.collect(&mut state, item, [flushed, tiles.end], flushed > tiles.first);
            self.warpgroup.wait_for_region();
            self.finish::<E, S>(&state, item);
            self.warpgroup.release_region();
        }
    }

    /// Ends the row sums of a segment, or a part of it, whose last tile was `tile`. The lane that keeps them is that of the segment.
    #[inline(always)]
    fn keep_row_sums(&self, state: &mut State<REGISTERS, SUMS>, tile: u32) {
        let segment = tile / SEGMENT_TILES;
        let keeps = (segment ^ self.warpgroup.lane).is_multiple_of(SEGMENTS_PER_FLUSH);
        for row in 0..2 {
            let sum = softmax::row_sum(state.row_sums[CURRENT][row]);
            state.row_sums[KEPT][row] += if keeps { sum } else { 0.0 };
            state.row_sums[CURRENT][row] = 0.0;
        }
    }

    /// Makes the accumulators of tiles `start .. end` the sums over all tiles before `end`: adds the value means of the segments, and
    /// what was flushed, if something was.
    #[inline(always)]
    unsafe fn collect<S: Sequences>(
        &self,
        state: &mut State<REGISTERS, SUMS>,
        item: WorkItem<S>,
        [start, end]: [u32; 2],
        was_flushed: bool,
    ) {
        let (params, lane) = (self.warpgroup.params, self.warpgroup.lane);
        let kept = state.row_sums[KEPT];
        let mut segment = start / SEGMENT_TILES;
        while segment * SEGMENT_TILES < end {
            let row_sum = kept.map(|sum| warp::shuffle_xor(sum, (segment ^ lane) % SEGMENTS_PER_FLUSH));
            // SAFETY: the segment is the sequence's.
            unsafe { units::add_means::<S, HEAD_DIM>(params, item, segment, lane, row_sum, &mut state.output) };
            segment += 1;
        }
        for row in 0..2 {
            state.row_sums[FLUSHED][row] += kept[row];
            state.row_sums[KEPT][row] = 0.0;
        }
        if was_flushed {
            let rescale = state.row_sums[RESCALE];
            for (place, sums) in state.output.chunks_exact_mut(FLUSH_REGISTERS).enumerate() {
                // SAFETY: the place is the lane's own, and was flushed to.
                let flushed = unsafe { global::load_written_u32x4(self.flush_place(place)) };
                for (index, sum) in sums.iter_mut().enumerate() {
                    *sum = math::fma(f32::from_bits(flushed[index]), rescale[index / 2], *sum);
                }
            }
        }
    }

    /// Empties the output into global memory.
    #[inline(always)]
    unsafe fn flush(&self, state: &mut State<REGISTERS, SUMS>) {
        for (place, sums) in state.output.chunks_exact_mut(FLUSH_REGISTERS).enumerate() {
            let bits = core::array::from_fn(|index| sums[index].to_bits());
            // SAFETY: the place is the lane's own.
            unsafe { global::store_u32x4(self.flush_place(place), bits) };
            sums.fill(0.0);
        }
        state.row_sums[RESCALE] = [1.0; 2];
    }

    /// Where the lane's `place`-th registers are flushed to: lanes are adjacent.
    #[inline(always)]
    fn flush_place(&self, place: usize) -> u64 {
        let cta = self.warpgroup.params.flushed_output + thread::block_idx_x() as u64 * output_bytes(HEAD_DIM) as u64;
        let warp = (4 * self.warpgroup.index + self.warpgroup.warp) * REGISTERS as u32 * (4 * warp::LANES);
        cta + (warp + 16 * self.warpgroup.lane) as u64 + (place as u32 * 16 * warp::LANES) as u64
    }

    /// Divides by the row sums, scales, and writes output and log-sum-exp.
    #[inline(always)]
    unsafe fn finish<E: Element, S: Sequences>(&self, state: &State<REGISTERS, SUMS>, item: WorkItem<S>) {
        let Warpgroup { params, lane, .. } = self.warpgroup;
        let first_row = self.warpgroup.first_row(item);
        if first_row >= item.sequence.queries(params.output.tokens) {
            return;
        }
        let row_sum = state.row_sums[FLUSHED].map(softmax::row_sum);
        // SAFETY: the warp's own region; scales hold a row for each key head; the outputs are as the parameters say.
        unsafe {
            let ends = RowEnds::new(params, item, first_row, lane);
            let denominators = ends.denominators(&state.softmax, row_sum);
            let inverse = epilogue::inverse(denominators);
            let scales = units::scales::<S, HEAD_DIM, REGISTERS>(params, item, lane);
            let output = units::scaled::<HEAD_DIM, REGISTERS>(&scales, inverse, &state.output);
            self.warpgroup.store_output::<E, S>(item, first_row, lane, |index| output[index]);
            ends.store(params, &state.softmax, denominators);
        }
    }
}
