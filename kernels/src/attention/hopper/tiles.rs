//! The main loop's rounds of consumers whose row sums are added up in registers, before probabilities are rounded.
//!
//! The pipeline is that of [`consumer_fp8`](super::consumer_fp8). Without columns of ones the products take fewer tensor-core cycles, and
//! the sums tell what is too large.

use core::marker::PhantomData;

use sage_layout::tile::{CHUNKS_PER_TILE, KEY_CHUNK, KEY_TILE, VALUE_ROW_BYTES};
use sage_layout::value_tile;
use simt::math;
use simt::wgmma::{self, Descriptor, ValueAccumulator};

use super::warpgroup::Warpgroup;
use crate::attention::mask::VisibleKeys;
use crate::attention::modifier::{ChunkScores, Modifier, Score};
use crate::attention::schedule::{KeyTiles, WorkItem};
use crate::attention::softmax::{HalfProbabilities, OnlineSoftmax, Operands, Scores, SummedE4m3Probabilities, Visible};
use crate::element::Element;
use crate::sequences::Sequences;

/// Bytes of a row of values that a product takes.
const STEP_BYTES: u32 = 32;

/// What probabilities are multiplied with.
pub trait Products {
    /// The probabilities.
    type Probabilities: Operands;
    /// Both operands.
    type Operands: wgmma::Operands;
    /// Bytes from the first 64 keys of a value tile to the others.
    const CHUNK_STRIDE: u32;

    /// The first 64 keys of the value tile at an address.
    fn values(tile: u32) -> Descriptor;
}

/// 16-bit values. Halves of a tile are groups of rows that alternate.
pub struct HalfProducts<E>(PhantomData<E>);

/// e4m3 values. Keys are columns, one byte each.
pub struct E4m3Products;

impl<E: Element> Products for HalfProducts<E> {
    type Probabilities = HalfProbabilities<E>;
    type Operands = E::Operands;
    const CHUNK_STRIDE: u32 = value_tile::GROUP_BYTES;

    #[inline(always)]
    fn values(tile: u32) -> Descriptor {
        Descriptor::with_stride(tile, value_tile::ROW_BYTES, value_tile::GROUP_STRIDE)
    }
}

impl Products for E4m3Products {
    type Probabilities = SummedE4m3Probabilities;
    type Operands = wgmma::E4m3;
    const CHUNK_STRIDE: u32 = KEY_CHUNK;

    #[inline(always)]
    fn values(tile: u32) -> Descriptor {
        Descriptor::new(tile, VALUE_ROW_BYTES)
    }
}

/// What a consumer keeps for an item. `REGISTERS` is half of the head dimension.
pub struct State<const REGISTERS: usize, const SUMS: usize> {
    scores: Scores,
    /// Sums of probabilities times values.
    pub output: [f32; REGISTERS],
    /// What follows the references of the lane's two rows. The first are sums of the lane's own probabilities: a quarter of the rows'.
    pub row_sums: [[f32; 2]; SUMS],
    /// The references.
    pub softmax: OnlineSoftmax,
    query_scale: f32,
    /// Turns the lane's scores of the current tile into base-2 scores.
    scale: f32,
}

impl<const REGISTERS: usize, const SUMS: usize> State<REGISTERS, SUMS> {
    /// Nothing added up. All methods are inlined into the loops of an item, and have a [`Warpgroup`]'s contract.
    ///
    /// # Safety
    ///
    /// See [`Warpgroup::next_item`].
    #[inline(always)]
    pub unsafe fn new<const HEAD_DIM: u32>(warpgroup: &Warpgroup<HEAD_DIM>) -> Self {
        Self {
            scores: [0; 32],
            output: [0.0; REGISTERS],
            row_sums: [[0.0; 2]; SUMS],
            softmax: OnlineSoftmax::new(),
            // SAFETY: forwarded contract.
            query_scale: unsafe { warpgroup.query_scale() },
            scale: 0.0,
        }
    }

    /// The scores in its registers.
    #[inline(always)]
    fn chunk_scores(&self, visible: Visible) -> ChunkScores<i32, 32> {
        ChunkScores { scores: self.scores, scale: self.scale, visible }
    }

    /// The scores of the first 64 keys, and a reference for them.
    ///
    /// # Safety
    ///
    /// See [`Warpgroup::next_item`]; `tiles` are the warpgroup's.
    #[inline(always)]
    pub unsafe fn begin<P: Products, S: Sequences, const HEAD_DIM: u32>(
        &mut self,
        warpgroup: &Warpgroup<HEAD_DIM>,
        item: WorkItem<S>,
        tiles: KeyTiles,
    ) {
        // SAFETY: forwarded contract.
        unsafe {
            warpgroup.wait_tiles(warpgroup.position);
            self.scale = self.query_scale * warpgroup.key_scale(warpgroup.position);
            warpgroup.query_key(&mut self.scores, warpgroup.key_chunk(warpgroup.position, 0));
            let visible = warpgroup.first_visible(item, tiles);
            self.softmax.raise_reference::<P::Probabilities, _>(&self.chunk_scores(visible));
        }
    }

    /// One key tile, whose first 64 keys' scores are in its registers; leaves the next tile's there. After the last, before
    /// `end`, it leaves scores that nobody reads: that costs less than a second form of the loop.
    ///
    /// # Safety
    ///
    /// See [`Warpgroup::next_item`].
    #[inline(always)]
    pub unsafe fn step<P: Products, const HEAD_DIM: u32>(
        &mut self,
        warpgroup: &mut Warpgroup<HEAD_DIM>,
        [tile, end]: [u32; 2],
        mask: Option<VisibleKeys>,
    ) where
        [f32; REGISTERS]: ValueAccumulator<P::Operands>,
    {
        let current = warpgroup.position;
        let first_key = tile * KEY_TILE;
        let visible = |first_key: u32| match mask {
            Some(mask) => Visible::Some(mask.of_chunk(first_key)),
            None => Visible::All,
        };
        let (first, second) = (visible(first_key), visible(first_key + KEY_CHUNK));
        let value = P::values(warpgroup.value_tile(current));

        // SAFETY: shared memory is read after the signal that it is full and before the signal that it is empty; registers in
        // flight are settled before use.
        unsafe {
            // chunk A; nothing is in flight
            let scores = self.chunk_scores(first);
            let (mut probabilities, saturated) = self.softmax.probabilities(&scores);
            if saturated {
                self.rebase(&scores, &mut probabilities);
            }
            self.add_row_sums(&probabilities);
            wgmma::fence();
            warpgroup.multiply_query_key(&mut self.scores, warpgroup.key_chunk(current, 1));
            wgmma::commit();
            self.multiply_value::<P>(&probabilities, value);
            wgmma::commit();
            wgmma::wait::<1>();
            wgmma::settle(&mut self.scores);

            // chunk B; P·V of chunk A is in flight until the exponentials are done
            warpgroup.position.advance();
            let next = warpgroup.position.only_if(tile + 1 < end, current);
            warpgroup.wait_tiles(next);
            let scores = self.chunk_scores(second);
            let (mut probabilities, saturated) = self.softmax.probabilities(&scores);
            if saturated {
                wgmma::wait::<0>();
                wgmma::settle(&mut self.output);
                self.rebase(&scores, &mut probabilities);
            }
            // behind the branch, over which ptxas does not move it up: before, it would stand above the exponentials
            wgmma::wait::<0>();
            wgmma::settle(&mut self.output);
            self.add_row_sums(&probabilities);
            wgmma::fence();
            warpgroup.multiply_query_key(&mut self.scores, warpgroup.key_chunk(next, 0));
            self.multiply_value::<P>(&probabilities, value.advance(P::CHUNK_STRIDE));
            wgmma::commit();
            // now, when registers are free
            let next_key_scale = warpgroup.key_scale(next);
            wgmma::wait::<0>();
            wgmma::settle(&mut self.scores);
            wgmma::settle(&mut self.output);
            warpgroup.release_tiles(current);
            self.scale = self.query_scale * next_key_scale;
        }
    }

    /// One key tile with modified scores, a chunk at a time. Nothing is in flight while scores are modified, and no chunk's maximum is
    /// known before: the first replaces the reference that there is none.
    ///
    /// # Safety
    ///
    /// See [`Warpgroup::next_item`].
    #[inline(always)]
    pub unsafe fn step_modified<P: Products, M: Modifier, S: Sequences, const HEAD_DIM: u32>(
        &mut self,
        warpgroup: &mut Warpgroup<HEAD_DIM>,
        item: WorkItem<S>,
        tile: u32,
        mask: VisibleKeys,
    ) where
        [f32; REGISTERS]: ValueAccumulator<P::Operands>,
    {
        // SAFETY: as in `step`.
        unsafe {
            let shown = warpgroup.shown::<M, S>(item, tile);
            // such a tile was not fetched
            if shown.nothing {
                return;
            }
            let position = warpgroup.position;
            let value = P::values(warpgroup.value_tile(position));
            warpgroup.wait_tiles(position);
            self.scale = self.query_scale * warpgroup.key_scale(position);
            // not unrolled: modifiers are much code
            for chunk in 0..math::opaque(CHUNKS_PER_TILE) {
                warpgroup.query_key(&mut self.scores, warpgroup.key_chunk(position, chunk));
                let first_key = tile * KEY_TILE + chunk * KEY_CHUNK;
                let scores = self.chunk_scores(Visible::Some(mask.of_chunk(first_key)));
                let scores = M::apply(warpgroup.place(item, shown), first_key, 0, scores);
                let (mut probabilities, saturated) = self.softmax.probabilities(&scores);
                if saturated {
                    self.rebase(&scores, &mut probabilities);
                }
                self.add_row_sums(&probabilities);
                wgmma::fence();
                self.multiply_value::<P>(&probabilities, value.advance(chunk * P::CHUNK_STRIDE));
                wgmma::commit();
                wgmma::wait::<0>();
                wgmma::settle(&mut self.output);
            }
            warpgroup.release_tiles(position);
            warpgroup.position.advance();
        }
    }

    /// The output += probabilities · value for 64 keys.
    #[inline(always)]
    unsafe fn multiply_value<P: Products>(&mut self, probabilities: &P::Probabilities, value: Descriptor)
    where
        [f32; REGISTERS]: ValueAccumulator<P::Operands>,
    {
        for step in 0..P::Probabilities::STEPS {
            let value = value.advance(step as u32 * STEP_BYTES);
            // SAFETY: as in `step`.
            unsafe { self.output.multiply_accumulate(probabilities.operand(step), value) };
        }
    }

    #[inline(always)]
    fn add_row_sums(&mut self, probabilities: &impl Operands) {
        for row in 0..2 {
            self.row_sums[0][row] += probabilities.sums()[row];
        }
    }

    /// Rare: takes the true row maxima, rescales what is accumulated, and redoes the chunk's probabilities.
    #[inline(always)]
    fn rebase<S: Score>(&mut self, scores: &ChunkScores<S, 32>, probabilities: &mut impl Operands) {
        let rescale;
        (*probabilities, rescale) = self.softmax.rebase(scores);
        for (index, value) in self.output.iter_mut().enumerate() {
            *value *= rescale[index / 2 % 2];
        }
        for sums in &mut self.row_sums {
            for row in 0..2 {
                sums[row] *= rescale[row];
            }
        }
    }
}
