//! A consumer warpgroup with 16-bit values: 64 queries against every key tile they see.
//!
//! Products of 16-bit numbers are summed in f32, so that the output stays in its accumulator from the first tile to the last; row sums
//! are added up in registers ([`tiles`](super::tiles)).

use sage_layout::kernel::AttentionShared;
use sage_layout::params::AttentionParams;
use simt::wgmma::ValueAccumulator;

use super::pipeline::Signals;
use super::tiles::{HalfProducts, State};
use super::warpgroup::Warpgroup;
use crate::attention::epilogue::{self, RowEnds};
use crate::attention::mask::VisibleKeys;
use crate::attention::modifier::Modifier;
use crate::attention::schedule::WorkItem;
use crate::attention::softmax;
use crate::element::Element;
use crate::sequences::Sequences;

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

    // SAFETY: forwarded contract.
    unsafe {
        let mut state = State::<REGISTERS, 1>::new(warpgroup);
        warpgroup.release_tiles_before::<M, S>(item);
        if tiles.count() > 0 && !M::MODIFIES {
            state.begin::<HalfProducts<E>, S, HEAD_DIM>(warpgroup, item, tiles);
        }
        if tiles.count() > 0 {
            let mut tile = tiles.first;
            while tile < tiles.end {
                let [whole_end, end] = if M::MODIFIES { [tile, tiles.end] } else { tiles.runs(tile, tiles.end) };
                while tile < whole_end {
                    state.step::<HalfProducts<E>, HEAD_DIM>(warpgroup, [tile, tiles.end], None);
                    tile += 1;
                }
                let visible = VisibleKeys::new(params, item.sequence, first_row, warpgroup.lane);
                while tile < end {
                    if M::MODIFIES {
                        state.step_modified::<HalfProducts<E>, M, S, HEAD_DIM>(warpgroup, item, tile, visible);
                    } else {
                        let tiles = [tile, tiles.end];
                        state.step::<HalfProducts<E>, HEAD_DIM>(warpgroup, tiles, Some(visible));
                    }
                    tile += 1;
                }
            }
        }
        let item = warpgroup.again(item);
        let first_row = warpgroup.first_row(item);
        warpgroup.release_item::<M, S>(item);
        warpgroup.wait_for_region();
        finish::<E, S, HEAD_DIM, REGISTERS>(warpgroup, &state, item, first_row);
        warpgroup.release_region();
    }
}

/// Divides by the row sums, and writes output and log-sum-exp.
#[inline(always)]
unsafe fn finish<E: Element, S: Sequences, const HEAD_DIM: u32, const REGISTERS: usize>(
    warpgroup: &Warpgroup<HEAD_DIM>,
    state: &State<REGISTERS, 1>,
    item: WorkItem<S>,
    first_row: u32,
) {
    let params = warpgroup.params;
    if first_row >= item.sequence.queries(params.output.tokens) {
        return;
    }
    let row_sum = state.row_sums[0].map(softmax::row_sum);
    let lane = warpgroup.lane_at_the_end::<S>();
    // SAFETY: the warp's own region; the outputs are as the parameters say.
    unsafe {
        let ends = RowEnds::new(params, item, first_row, lane);
        let denominators = ends.denominators(&state.softmax, row_sum);
        let inverse = epilogue::inverse(denominators);
        warpgroup.store_output::<E, S>(item, first_row, lane, |index| state.output[index] * inverse[index / 2 % 2]);
        ends.store(params, &state.softmax, denominators);
    }
}
