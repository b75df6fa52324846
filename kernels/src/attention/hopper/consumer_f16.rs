//! A consumer warpgroup with 16-bit values: 64 queries against every key tile they see.
//!
//! The pipeline is that of [`consumer_fp8`](super::consumer_fp8). Products of 16-bit numbers are summed in f32, so that the output
//! stays in its accumulator from the first tile to the last; row sums are added up in registers, before probabilities are
//! rounded. That takes fewer tensor-core cycles than columns of ones, and the sums tell what is too large.

use core::cmp::min;

use sage_layout::kernel::AttentionShared;
use sage_layout::params::AttentionParams;
use sage_layout::tile::{KEY_CHUNK, KEY_TILE};
use sage_layout::value_tile;
use simt::wgmma::{self, Descriptor, ValueAccumulator};
use simt::{math, warp};

use super::pipeline::{Position, Signals};
use super::warpgroup::Warpgroup;
use crate::attention::epilogue::{self, RowEnds};
use crate::attention::mask::VisibleKeys;
use crate::attention::modifier::{ChunkScores, Modifier, Score};
use crate::attention::schedule::WorkItem;
use crate::attention::softmax::{HalfProbabilities, OnlineSoftmax, Scores, Visible};
use crate::element::Element;
use crate::sequences::Sequences;

/// Bytes of a row that a product takes: 16 keys.
const STEP_BYTES: u32 = 32;

/// What it keeps for an item.
struct State<const REGISTERS: usize> {
    scores: Scores,
    output: [f32; REGISTERS],
    /// Sums of the lane's own probabilities: a quarter of two rows'.
    row_sum: [f32; 2],
    softmax: OnlineSoftmax,
    query_scale: f32,
    /// Turns the lane's scores of the current tile into base-2 scores.
    scale: f32,
}

impl<const REGISTERS: usize> State<REGISTERS> {
    /// The scores in its registers.
    #[inline(always)]
    fn chunk_scores(&self, visible: Visible) -> ChunkScores<i32, 32> {
        ChunkScores { scores: self.scores, scale: self.scale, visible }
    }
}

/// Attention of every item of this CTA. `REGISTERS` is half of `HEAD_DIM`.
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
    [f32; REGISTERS]: ValueAccumulator<E::Operands>,
{
    let memory = const { AttentionShared::f16(HEAD_DIM) };
    let mut warpgroup = Warpgroup::<HEAD_DIM>::new(params, memory, base, signals, warpgroup);
    // SAFETY: forwarded contract; `attend` releases the item.
    unsafe {
        while let Some(item) = warpgroup.next_item::<S>() {
            attend::<E, M, S, HEAD_DIM, REGISTERS>(&mut warpgroup, item);
        }
    }
}

/// One item, from its scores to its output.
#[inline(always)]
unsafe fn attend<E: Element, M: Modifier, S: Sequences, const HEAD_DIM: u32, const REGISTERS: usize>(
    warpgroup: &mut Warpgroup<HEAD_DIM>,
    item: WorkItem<S>,
) where
    [f32; REGISTERS]: ValueAccumulator<E::Operands>,
{
    let params = warpgroup.params;
    let tiles = item.warpgroup_key_tiles(params, warpgroup.index);
    let first_row = warpgroup.first_row(item);

    // SAFETY: for all functions that refer to here: shared memory is read after the signal that it is full and before the
    // signal that it is empty; registers in flight are settled before use.
    unsafe {
        let mut state = State::<REGISTERS> {
            scores: [0; 32],
            output: [0.0; REGISTERS],
            row_sum: [0.0; 2],
            softmax: OnlineSoftmax::new(),
            query_scale: warpgroup.query_scale(item),
            scale: 0.0,
        };
        warpgroup.release_tiles_before(item);
        if tiles.count() > 0 && !M::MODIFIES {
            warpgroup.wait_tiles(warpgroup.position);
            state.scale = state.query_scale * warpgroup.key_scale(item, tiles.first);
            wgmma::fence();
            warpgroup.multiply_query_key(&mut state.scores, warpgroup.key_chunk(warpgroup.position, 0));
            wgmma::commit();
            wgmma::wait::<0>();
            wgmma::settle(&mut state.scores);
            let visible = VisibleKeys::new(params, item.sequence, first_row, warpgroup.lane);
            let first = Visible::Some(visible.of_chunk(tiles.first * KEY_TILE));
            state.softmax.raise_reference::<HalfProbabilities<E>, _>(&state.chunk_scores(first));
        }
        if tiles.count() > 0 {
            let mut tile = tiles.first;
            while tile < tiles.end {
                let [whole_end, end] = if M::MODIFIES { [tile, tiles.end] } else { tiles.runs(tile, tiles.end) };
                while tile < whole_end {
                    step::<E, S, HEAD_DIM, REGISTERS>(warpgroup, &mut state, item, [tile, tiles.end], None);
                    tile += 1;
                }
                let visible = VisibleKeys::new(params, item.sequence, first_row, warpgroup.lane);
                while tile < end {
                    if M::MODIFIES {
                        step_modified::<E, M, S, HEAD_DIM, REGISTERS>(warpgroup, &mut state, item, tile, visible);
                    } else {
                        step::<E, S, HEAD_DIM, REGISTERS>(
                            warpgroup,
                            &mut state,
                            item,
                            [tile, tiles.end],
                            Some(visible),
                        );
                    }
                    tile += 1;
                }
            }
        }
        let item = warpgroup.again(item);
        let first_row = warpgroup.first_row(item);
        warpgroup.release_item(item);
        finish::<E, S, HEAD_DIM, REGISTERS>(warpgroup, &state, item, first_row);
    }
}

/// One key tile, whose first 64 keys' scores are in `state.scores`; leaves the next tile's there. After the last, before
/// `end`, it leaves scores that nobody reads: that costs less than a second form of this loop.
#[inline(always)]
unsafe fn step<E: Element, S: Sequences, const HEAD_DIM: u32, const REGISTERS: usize>(
    warpgroup: &mut Warpgroup<HEAD_DIM>,
    state: &mut State<REGISTERS>,
    item: WorkItem<S>,
    [tile, end]: [u32; 2],
    mask: Option<VisibleKeys>,
) where
    [f32; REGISTERS]: ValueAccumulator<E::Operands>,
{
    let current = warpgroup.position;
    let next_tile = min(tile + 1, end - 1);
    let first_key = tile * KEY_TILE;
    let visible = |first_key: u32| match mask {
        Some(mask) => Visible::Some(mask.of_chunk(first_key)),
        None => Visible::All,
    };
    let (first, second) = (visible(first_key), visible(first_key + KEY_CHUNK));
    let value = value_chunk(warpgroup, current);

    // SAFETY: see `attend`.
    unsafe {
        // chunk A; nothing is in flight
        let scores = state.chunk_scores(first);
        let (mut probabilities, saturated) = state.softmax.probabilities(&scores);
        if saturated {
            rebase(state, &scores, &mut probabilities);
        }
        add_row_sums::<E, REGISTERS>(state, &probabilities);
        wgmma::fence();
        warpgroup.multiply_query_key(&mut state.scores, warpgroup.key_chunk(current, 1));
        wgmma::commit();
        multiply_value(&mut state.output, &probabilities, value);
        wgmma::commit();
        wgmma::wait::<1>();
        wgmma::settle(&mut state.scores);

        // chunk B; P·V of chunk A is in flight until the exponentials are done
        warpgroup.position.advance();
        let next = if next_tile > tile { warpgroup.position } else { current };
        warpgroup.wait_tiles(next);
        let scores = state.chunk_scores(second);
        let (mut probabilities, saturated) = state.softmax.probabilities(&scores);
        if saturated {
            wgmma::wait::<0>();
            wgmma::settle(&mut state.output);
            rebase(state, &scores, &mut probabilities);
        }
        // behind the branch, over which ptxas does not move it up: before, it would stand above the exponentials
        wgmma::wait::<0>();
        wgmma::settle(&mut state.output);
        add_row_sums::<E, REGISTERS>(state, &probabilities);
        wgmma::fence();
        warpgroup.multiply_query_key(&mut state.scores, warpgroup.key_chunk(next, 0));
        multiply_value(&mut state.output, &probabilities, value.advance(value_tile::GROUP_BYTES));
        wgmma::commit();
        // now, when registers are free
        let next_key_scale = warpgroup.key_scale(item, next_tile);
        wgmma::wait::<0>();
        wgmma::settle(&mut state.scores);
        wgmma::settle(&mut state.output);
        warpgroup.release_tiles(current);
        state.scale = state.query_scale * next_key_scale;
    }
}

/// One key tile with modified scores, a chunk at a time. Nothing is in flight while scores are modified, and no chunk's maximum is
/// known before: the first replaces the reference that there is none.
#[inline(always)]
unsafe fn step_modified<E: Element, M: Modifier, S: Sequences, const HEAD_DIM: u32, const REGISTERS: usize>(
    warpgroup: &mut Warpgroup<HEAD_DIM>,
    state: &mut State<REGISTERS>,
    item: WorkItem<S>,
    tile: u32,
    mask: VisibleKeys,
) where
    [f32; REGISTERS]: ValueAccumulator<E::Operands>,
{
    let position = warpgroup.position;
    let value = value_chunk(warpgroup, position);
    // SAFETY: see `attend`.
    unsafe {
        warpgroup.wait_tiles(position);
        state.scale = state.query_scale * warpgroup.key_scale(item, tile);
        // not unrolled: modifiers are much code
        for chunk in 0..math::opaque(KEY_TILE / KEY_CHUNK) {
            wgmma::fence();
            warpgroup.multiply_query_key(&mut state.scores, warpgroup.key_chunk(position, chunk));
            wgmma::commit();
            wgmma::wait::<0>();
            wgmma::settle(&mut state.scores);
            let first_key = tile * KEY_TILE + chunk * KEY_CHUNK;
            let scores = state.chunk_scores(Visible::Some(mask.of_chunk(first_key)));
            let scores = M::apply(warpgroup.place(item), first_key, scores);
            let (mut probabilities, saturated) = state.softmax.probabilities(&scores);
            if saturated {
                rebase(state, &scores, &mut probabilities);
            }
            add_row_sums::<E, REGISTERS>(state, &probabilities);
            wgmma::fence();
            multiply_value(&mut state.output, &probabilities, value.advance(chunk * value_tile::GROUP_BYTES));
            wgmma::commit();
            wgmma::wait::<0>();
            wgmma::settle(&mut state.output);
        }
        warpgroup.release_tiles(position);
        warpgroup.position.advance();
    }
}

/// The first 64 keys of a value tile; the others are a group of rows further on.
#[inline(always)]
fn value_chunk<const HEAD_DIM: u32>(warpgroup: &Warpgroup<HEAD_DIM>, position: Position) -> Descriptor {
    Descriptor::with_stride(warpgroup.value_tile(position), value_tile::ROW_BYTES, value_tile::GROUP_STRIDE)
}

/// `output` += probabilities · value for 64 keys.
#[inline(always)]
unsafe fn multiply_value<E: Element, const REGISTERS: usize>(
    output: &mut [f32; REGISTERS],
    probabilities: &HalfProbabilities<E>,
    value: Descriptor,
) where
    [f32; REGISTERS]: ValueAccumulator<E::Operands>,
{
    for (step, operand) in (0..).zip(&probabilities.operands) {
        // SAFETY: see `attend`.
        unsafe { output.multiply_accumulate(operand, value.advance(step * STEP_BYTES)) };
    }
}

#[inline(always)]
fn add_row_sums<E, const REGISTERS: usize>(state: &mut State<REGISTERS>, probabilities: &HalfProbabilities<E>) {
    for row in 0..2 {
        state.row_sum[row] += probabilities.sums[row];
    }
}

/// Rare: takes the true row maxima, rescales what is accumulated, and redoes the chunk's probabilities.
#[inline(always)]
fn rebase<E: Element, S: Score, const REGISTERS: usize>(
    state: &mut State<REGISTERS>,
    scores: &ChunkScores<S, 32>,
    probabilities: &mut HalfProbabilities<E>,
) {
    let rescale;
    (*probabilities, rescale) = state.softmax.rebase(scores);
    for (index, value) in state.output.iter_mut().enumerate() {
        *value *= rescale[index / 2 % 2];
    }
    for row in 0..2 {
        state.row_sum[row] *= rescale[row];
    }
}

/// Divides by the row sums, and writes output and log-sum-exp.
#[inline(always)]
unsafe fn finish<E: Element, S: Sequences, const HEAD_DIM: u32, const REGISTERS: usize>(
    warpgroup: &Warpgroup<HEAD_DIM>,
    state: &State<REGISTERS>,
    item: WorkItem<S>,
    first_row: u32,
) {
    let params = warpgroup.params;
    if first_row >= item.sequence.queries(params.output.tokens) {
        return;
    }
    let row_sum = state.row_sum.map(|sum| {
        let pair = sum + warp::shuffle_xor(sum, 1);
        pair + warp::shuffle_xor(pair, 2)
    });
    let lane = warpgroup.lane_at_the_end::<S>();
    // SAFETY: the warp's own region; the outputs are as the parameters say.
    unsafe {
        let ends = RowEnds::new(params, item, first_row, lane);
        let denominators = ends.denominators(&state.softmax, row_sum);
        let inverse = epilogue::inverse(denominators);
        epilogue::store_rows::<E, S>(params, HEAD_DIM, item, first_row, lane, warpgroup.region(), |index| {
            state.output[index] * inverse[index / 2 % 2]
        });
        ends.store(params, &state.softmax, denominators);
    }
}
