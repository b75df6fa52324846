//! SageAttention2 on `mma.sync`: INT8 or INT4 Q·Kᵀ and e4m3 or 16-bit P·V, operands by `cp.async` and `ldmatrix`.
//!
//! A CTA does one item, 128 queries of a head; each of its four warps holds 32 of them, two *row blocks* of 16, so that a
//! key or value that it loads from shared memory is multiplied twice. All go through the keys together, 64 at a time. With more
//! than 128 channels, eight warps hold one row block each.
//!
//! ```text
//! global memory ── cp.async, a chunk ahead ──►  ┌─────────┬─────────┐
//!                                               │ K₀   V₀ │ K₁   V₁ │   two stages in turn
//!                                               └────┬────┴─────────┘
//!                 ldmatrix ┌────────────┬────────────┼────────────┐
//!                       warp 0       warp 1       warp 2       warp 3      32 queries each, in registers
//! ```
//!
//! Two or three CTAs share a multiprocessor: one multiplies while another takes exponentials.
//!
//! Turing (`instructions.rs`) has no `cp.async`: there is one stage, and copies go through registers.

pub mod bias;
pub mod chunks;
pub mod codes;
pub mod instructions;
pub mod product;

use core::cmp::min;
use core::marker::PhantomData;

use sage_layout::fragment;
use sage_layout::kernel::{MmaShared, mma_blocks};
use sage_layout::params::AttentionParams;
use sage_layout::scale::{KEY_SCALES_PER_TILE, QUERY_SCALES_PER_TILE, QUERY_SCALES_PER_WARP};
use sage_layout::swizzle;
use sage_layout::tile::{
    CHUNKS_PER_TILE, KEY_CHUNK, KEY_TILE, MAX_HEAD_DIM, MMA_QUERIES, SEGMENT_KEYS, WARP_ROWS, WARPGROUP_ROWS,
};
use simt::{global, math, shared, thread, warp};

use crate::attention::epilogue::{self, RowEnds};
use crate::attention::mask::VisibleKeys;
use crate::attention::modifier::{ChunkScores, Modifier, Place, Shown};
use crate::attention::schedule::{KeyTiles, WorkItem};
use crate::attention::softmax::{OnlineSoftmax, Operands, Probabilities, RowMaxima, Visible};
use crate::element::Element;
use crate::sequences::Sequences;
use bias::Biases;
use chunks::{Copies, Matrix};
use codes::Codes;
use instructions::Instructions;
use product::{Accumulator, Fragment, Product, Sum, Values};

/// Bytes of a step of Q·Kᵀ and of P·V.
const STEP_BYTES: u32 = 32;
/// Largest number of steps of Q·Kᵀ, and of blocks of eight channels: those of head dimension 256. Others use as many as they have.
const STEPS: usize = (MAX_HEAD_DIM / STEP_BYTES) as usize;
const CHANNEL_BLOCKS: usize = (MAX_HEAD_DIM / 8) as usize;
/// Chunks of a segment of keys.
const SEGMENT_CHUNKS: u32 = SEGMENT_KEYS / KEY_CHUNK;

type InstructionsOf<A> = <<A as Accumulator>::Product as Product>::Instructions;
type ValuesOf<A> = <<A as Accumulator>::Product as Product>::Values;
type ProbabilitiesOf<A> = <<A as Accumulator>::Product as Product>::Probabilities;

/// The kernel. `BLOCKS` is [`mma_blocks`] of the head dimension.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn attention<
    A: Accumulator,
    C: Codes,
    M: Modifier,
    E: Element,
    S: Sequences,
    const HEAD_DIM: u32,
    const BLOCKS: usize,
>(
    params: &AttentionParams,
) {
    let memory = Warp::<A, C, M, S, HEAD_DIM, BLOCKS>::MEMORY;
    let stages = InstructionsOf::<A>::STAGES;
    let base = shared::dynamic();
    let thread = thread::thread_idx_x();
    // SAFETY: forwarded contract.
    let find = |place| unsafe { S::of_cta(params, place) };
    let item = WorkItem::nth(params, thread::block_idx_x(), MMA_QUERIES, find);
    if !item.is_there() {
        return;
    }
    let chunks = KeyTiles::of(params, item.sequence, [item.first_query, MMA_QUERIES], KEY_CHUNK);
    // there are under 2²⁸ tiles
    let first_tile = item.sequence.first_key_tile(item.key_head, S::key_places(params)) as u32;

    // SAFETY: a stage and its biases are written after all warps have met, having read what was there, and read after all
    // threads waited for their copies and met. So is what is kept.
    unsafe {
        let bounds = base + memory.item + MmaShared::ITEM_BOUNDS;
        if S::RAGGED && thread == 0 {
            item.keep(base + memory.item);
            shared::store_u32x2(bounds, [chunks.end, first_tile]);
        }
        let biases = C::BIASED.then(|| Biases::new(params, item, base + memory.bias));
        let first = shown_from::<M, S>(params, item, chunks.first, chunks.end);
        for stage in 0..stages - 1 {
            const { assert!(InstructionsOf::<A>::STAGES <= 2) };
            let chunk = first + stage;
            if chunk < chunks.end {
                let copies = Copies::new(params, thread, first_tile);
                copies.start::<InstructionsOf<A>, ValuesOf<A>, C, HEAD_DIM>(base + stage * memory.stage_bytes, chunk);
                if let Some(biases) = &biases {
                    biases.compute::<E, HEAD_DIM>(stage, chunk);
                }
            }
            InstructionsOf::<A>::commit();
        }
        let mut warp = Warp::<A, C, M, S, HEAD_DIM, BLOCKS>::new(params, item, thread);
        let (mut stage, mut chunk) = (0, first);
        while S::RAGGED || chunk < chunks.end {
            InstructionsOf::<A>::wait();
            thread::sync_threads();
            let [end, first_tile] = if S::RAGGED { shared::load_u32x2(bounds) } else { [chunks.end, first_tile] };
            if S::RAGGED && chunk == end {
                break;
            }
            let next = if M::MODIFIES { shown_from::<M, S>(params, warp.item(), chunk + 1, end) } else { chunk + 1 };
            let ahead = if stages == 1 { chunk } else { next };
            if ahead < end {
                let stage = (stage + stages - 1) % stages;
                let copies = Copies::new(params, thread, first_tile);
                copies.start::<InstructionsOf<A>, ValuesOf<A>, C, HEAD_DIM>(base + stage * memory.stage_bytes, ahead);
                if let Some(biases) = &biases {
                    biases.compute::<E, HEAD_DIM>(stage, ahead);
                }
            }
            InstructionsOf::<A>::commit();
            if stages == 1 {
                thread::sync_threads();
            }
            let chunks = warp.chunks();
            if chunks.contains(chunk) {
                let tile = base + stage * memory.stage_bytes;
                let bias = biases.map_or(0, |biases| biases.of_stage(stage));
                warp.step(tile, bias, [chunk, next], first_tile, chunks.is_whole(chunk));
            }
            stage = (stage + 1) % stages;
            chunk = next;
        }
        if !S::RAGGED {
            thread::sync_threads();
        }
        warp.finish::<E>(base);
    }
}

/// The first chunk from `chunk` on in a key tile that the boolean mask does not hide; `end` if there is none before it.
///
/// # Safety
///
/// As for [`Modifier::mask_tile`]; all lanes of the warp call it.
#[inline(always)]
unsafe fn shown_from<M: Modifier, S: Sequences>(
    params: &AttentionParams,
    item: WorkItem<S>,
    mut chunk: u32,
    end: u32,
) -> u32 {
    if !M::MODIFIES {
        return chunk;
    }
    // SAFETY: forwarded contract.
    while chunk < end && unsafe { Shown::of_tile::<M, S>(params, item, MMA_QUERIES, chunk / CHUNKS_PER_TILE).nothing } {
        chunk = (chunk / CHUNKS_PER_TILE + 1) * CHUNKS_PER_TILE;
    }
    min(chunk, end)
}

/// A chunk of keys in shared memory.
#[derive(Clone, Copy)]
struct Keys {
    matrix: Matrix,
    /// Where their biases are, if they have some.
    bias: u32,
    /// The first one.
    first: u32,
    /// What the boolean mask shows of their tile.
    shown: Shown,
}

/// Whether any lane of the warp saw a probability that is too large, or NaN.
#[inline(always)]
fn saturated<P: Probabilities, const BLOCKS: usize>(probabilities: &[P; BLOCKS]) -> bool {
    warp::any(probabilities.iter().fold(false, |any, probabilities| any | probabilities.saturated()))
}

/// A warp's queries.
struct Warp<'a, A: Accumulator, C, M, S: Sequences, const HEAD_DIM: u32, const BLOCKS: usize> {
    params: &'a AttentionParams,
    /// If all sequences are equally long; see [`item`](Self::item).
    own_item: WorkItem<S>,
    /// Of the CTA.
    index: u32,
    lane: u32,
    /// Likewise, see [`chunks`](Self::chunks).
    own_chunks: KeyTiles,
    query: [[[u32; 4]; STEPS]; BLOCKS],
    query_scale: [f32; BLOCKS],
    softmax: [OnlineSoftmax; BLOCKS],
    /// Sums of the lane's own probabilities: a quarter of two rows'.
    row_sum: [[f32; 2]; BLOCKS],
    output: [[A::Output; CHANNEL_BLOCKS]; BLOCKS],
    types: PhantomData<(C, M)>,
}

impl<'a, A: Accumulator, C: Codes, M: Modifier, S: Sequences, const HEAD_DIM: u32, const BLOCKS: usize>
    Warp<'a, A, C, M, S, HEAD_DIM, BLOCKS>
{
    /// Its queries.
    const QUERIES: u32 = {
        assert!(BLOCKS == mma_blocks(HEAD_DIM));
        BLOCKS as u32 * WARP_ROWS
    };
    /// Bytes of a row of queries or keys.
    const ROW_BYTES: u32 = HEAD_DIM / C::PER_BYTE;
    /// Shared memory.
    const MEMORY: MmaShared =
        MmaShared::new(HEAD_DIM, Self::ROW_BYTES, ValuesOf::<A>::BYTES, InstructionsOf::<A>::STAGES);
    /// Steps of Q·Kᵀ.
    const STEPS: usize = (Self::ROW_BYTES / STEP_BYTES) as usize;
    /// Blocks of eight channels.
    const CHANNEL_BLOCKS: usize = (HEAD_DIM / 8) as usize;
    /// Parts of a chunk that are taken at a time.
    const PARTS: usize = (KEY_CHUNK / A::KEYS) as usize;
    /// Groups of 16 keys of a part.
    const GROUPS: usize = (A::KEYS / 16) as usize;
    /// Steps of P·V that they are.
    const VALUE_STEPS: usize = (A::KEYS * ValuesOf::<A>::BYTES / STEP_BYTES) as usize;

    /// At the beginning.
    ///
    /// # Safety
    ///
    /// For all methods: the operands are as the parameters say, and the whole warp calls them.
    #[inline(always)]
    unsafe fn new(params: &'a AttentionParams, item: WorkItem<S>, thread: u32) -> Self {
        let index = warp::broadcast(thread / warp::LANES);
        let lane = thread % warp::LANES;
        let first_row = item.first_query + index * Self::QUERIES;
        let chunks = KeyTiles::of(params, item.sequence, [first_row, Self::QUERIES], KEY_CHUNK);
        let mut this = Self {
            params,
            own_item: item,
            index,
            lane,
            own_chunks: chunks,
            query: [[[0; 4]; STEPS]; BLOCKS],
            query_scale: [0.0; BLOCKS],
            softmax: [OnlineSoftmax::new(); BLOCKS],
            row_sum: [[0.0; 2]; BLOCKS],
            output: [[A::Output::ZERO; CHANNEL_BLOCKS]; BLOCKS],
            types: PhantomData,
        };
        if S::RAGGED && lane == 0 {
            // SAFETY: the place is the warp's own.
            unsafe { shared::store_u32x4(this.chunks_place(), chunks.words()) };
        }
        if chunks.count() > 0 {
            // SAFETY: queries are padded to whole tiles of 64, of which a warp's are a part.
            unsafe { this.load_queries(item) };
        }
        this
    }

    #[inline(always)]
    unsafe fn load_queries(&mut self, item: WorkItem<S>) {
        let first_tile = item.sequence.first_query_tile(item.head as u64, S::query_places(self.params));
        for block in 0..BLOCKS {
            let row = self.row(item, block);
            let tile = first_tile + (row / WARPGROUP_ROWS) as u64;
            let codes = self.params.query + tile * (WARPGROUP_ROWS * Self::ROW_BYTES) as u64;
            for step in 0..Self::STEPS {
                for register in 0..4 {
                    let (within, k) = fragment::a_operand_8bit(self.lane, register, 0);
                    let at =
                        swizzle::offset(row % WARPGROUP_ROWS + within, step as u32 * STEP_BYTES + k, Self::ROW_BYTES);
                    // SAFETY: four bytes of a row of the tile.
                    self.query[block][step][register as usize] = unsafe { global::load_u32(codes + at as u64) };
                }
            }
            let scale = tile * QUERY_SCALES_PER_TILE as u64
                + (row % WARPGROUP_ROWS / WARP_ROWS * QUERY_SCALES_PER_WARP + self.lane / 4) as u64;
            // SAFETY: scales hold a row for each query tile.
            self.query_scale[block] = unsafe { global::load_f32(self.params.query_scale + 4 * scale) };
        }
    }

    #[inline(always)]
    unsafe fn key_scale(&self, chunk: u32, first_tile: u32) -> f32 {
        // there are under 2²⁸ tiles: 32 bits hold the index of a scale
        let tile = first_tile + chunk * KEY_CHUNK / KEY_TILE;
        let place = tile * KEY_SCALES_PER_TILE + self.lane % 4;
        // SAFETY: scales hold a row for each key tile.
        unsafe { global::load_f32(self.params.key_scale + 4 * place as u64) }
    }

    /// The item. Where lengths may differ, all that follows from them is loaded when it is needed: ptxas keeps no such numbers in
    /// uniform registers, and the main loop has no others to spare.
    ///
    /// # Safety
    ///
    /// The CTA's threads met after it was kept.
    #[inline(always)]
    unsafe fn item(&self) -> WorkItem<S> {
        match S::RAGGED {
            // SAFETY: forwarded contract.
            true => unsafe { WorkItem::kept(shared::dynamic() + Self::MEMORY.item) },
            false => self.own_item,
        }
    }

    /// Chunks of keys that its queries see.
    ///
    /// # Safety
    ///
    /// As for [`item`](Self::item).
    #[inline(always)]
    unsafe fn chunks(&self) -> KeyTiles {
        match S::RAGGED {
            // SAFETY: forwarded contract.
            true => KeyTiles::from_words(unsafe { shared::load_u32x4(self.chunks_place()) }),
            false => self.own_chunks,
        }
    }

    #[inline(always)]
    fn chunks_place(&self) -> u32 {
        shared::dynamic() + Self::MEMORY.item + MmaShared::ITEM_CHUNKS + 16 * self.index
    }

    /// First row of a row block.
    #[inline(always)]
    fn row(&self, item: WorkItem<S>, block: usize) -> u32 {
        item.first_query + self.index * Self::QUERIES + block as u32 * WARP_ROWS
    }

    /// What the mask shows of the keys from `first_key` on.
    #[inline(always)]
    unsafe fn visible(&self, first_key: u32) -> [Visible; BLOCKS] {
        // else the compares of several uses are made before all of them
        let first_key = math::opaque(first_key);
        // SAFETY: forwarded contract.
        let item = unsafe { self.item() };
        core::array::from_fn(|block| {
            let keys = VisibleKeys::new(self.params, item.sequence, self.row(item, block), self.lane);
            Visible::Some(keys.of_chunk(first_key))
        })
    }

    /// One chunk of keys, which is in the stage at `stage`, and what smoothing took out of its scores at `bias`; `next` comes after it.
    /// `first_tile` is the index of the item's first key tile over all heads, and the queries see all of the chunk if it `is_whole`.
    #[inline(always)]
    unsafe fn step(&mut self, stage: u32, bias: u32, [chunk, next]: [u32; 2], first_tile: u32, is_whole: bool) {
        let memory = Self::MEMORY;
        let key = Keys {
            matrix: Matrix::new(stage, Self::ROW_BYTES, self.lane),
            bias,
            first: chunk * KEY_CHUNK,
            // SAFETY: forwarded contract.
            shown: unsafe { self.shown(chunk) },
        };
        let value = Matrix::new(stage + memory.value, KEY_CHUNK * ValuesOf::<A>::BYTES, self.lane);
        // SAFETY: forwarded contract.
        unsafe {
            let key_scale = self.key_scale(chunk, first_tile);
            let scale = self.query_scale.map(|query_scale| query_scale * key_scale);
            if M::MODIFIES {
                self.step_modified(key, value, scale);
            } else {
                for part in 0..Self::PARTS {
                    let first_key = key.first + part as u32 * A::KEYS;
                    let mut probabilities = if is_whole {
                        self.probabilities(key, part, scale, [Visible::All; BLOCKS])
                    } else {
                        self.probabilities(key, part, scale, self.visible(first_key))
                    };
                    if saturated(&probabilities) {
                        self.rebase(key, part, scale, self.visible(first_key));
                        probabilities = self.probabilities(key, part, scale, self.visible(first_key));
                    }
                    self.multiply_value(&probabilities, value, part);
                }
            }
            self.change_mean(chunk, next);
        }
    }

    /// The same where modifiers are much code: it is there once for probabilities, and once for maxima.
    #[inline(always)]
    unsafe fn step_modified(&mut self, key: Keys, value: Matrix, scale: [f32; BLOCKS]) {
        // opaque, or loops are unrolled
        for part in 0..math::opaque(Self::PARTS as u32) as usize {
            // SAFETY: forwarded contract.
            unsafe {
                let visible = self.visible(key.first + part as u32 * A::KEYS);
                let mut is_rebased = false;
                let probabilities = loop {
                    let probabilities = self.probabilities(key, part, scale, visible);
                    // NaN stays what it is
                    if math::opaque(is_rebased as u32) != 0 || !saturated(&probabilities) {
                        break probabilities;
                    }
                    self.rebase(key, part, scale, visible);
                    is_rebased = true;
                };
                self.multiply_value(&probabilities, value, part);
            }
        }
    }

    /// What the boolean mask shows of a chunk's tile.
    #[inline(always)]
    unsafe fn shown(&self, chunk: u32) -> Shown {
        if !M::MODIFIES {
            return Shown { nothing: false, everything: true };
        }
        // SAFETY: forwarded contract.
        unsafe { Shown::of_tile::<M, S>(self.params, self.item(), MMA_QUERIES, chunk / CHUNKS_PER_TILE) }
    }

    /// Scores of the `group`-th 16 keys of a part and of a row block, as the softmax takes them.
    #[inline(always)]
    unsafe fn modified(
        &self,
        key: Keys,
        [part, group]: [usize; 2],
        block: usize,
        [first, second]: [[i32; 4]; 2],
        scale: f32,
        visible: Visible,
    ) -> ChunkScores<M::Score, 8> {
        let [[a, b, c, d], [e, f, g, h]] = [first, second];
        let scores = ChunkScores { scores: [a, b, c, d, e, f, g, h], scale, visible };
        // SAFETY: forwarded contract.
        unsafe {
            let item = self.item();
            let (params, first_row) = (self.params, self.row(item, block));
            let place = Place { params, item, first_row, lane: self.lane, shown: key.shown };
            M::apply(place, key.first + part as u32 * A::KEYS, 8 * group, scores)
        }
    }

    /// Scores of the `group`-th 16 keys: two accumulators a row block.
    #[inline(always)]
    unsafe fn scores(&self, key: Keys, group: usize) -> [[[i32; 4]; 2]; BLOCKS] {
        let mut scores = [[[0; 4]; 2]; BLOCKS];
        for step in 0..Self::STEPS {
            // SAFETY: forwarded contract.
            let keys = unsafe { key.matrix.operands(group, step) };
            for column in 0..2 {
                for block in 0..BLOCKS {
                    let (sum, query) = (&mut scores[block][column], &self.query[block][step]);
                    C::multiply::<InstructionsOf<A>>(sum, query, &keys[column]);
                }
            }
        }
        scores
    }

    /// The biases of the lane's columns of the `group`-th 16 keys.
    #[inline(always)]
    unsafe fn bias(&self, key: Keys, group: usize) -> Option<[f32; 4]> {
        // SAFETY: forwarded contract.
        C::BIASED.then(|| unsafe { bias::of_group(key.bias, group, self.lane) })
    }

    /// Probabilities of a part of the chunk against the stale reference.
    #[inline(always)]
    unsafe fn probabilities(
        &self,
        key: Keys,
        part: usize,
        scale: [f32; BLOCKS],
        visible: [Visible; BLOCKS],
    ) -> [ProbabilitiesOf<A>; BLOCKS] {
        let mut probabilities = [ProbabilitiesOf::<A>::ZERO; BLOCKS];
        for group in 0..Self::GROUPS {
            // SAFETY: forwarded contract.
            let (scores, bias) = unsafe {
                let group = part * Self::GROUPS + group;
                (self.scores(key, group), self.bias(key, group))
            };
            for block in 0..BLOCKS {
                // SAFETY: forwarded contract.
                let ChunkScores { scores, scale, visible } =
                    unsafe { self.modified(key, [part, group], block, scores[block], scale[block], visible[block]) };
                let probabilities = &mut probabilities[block];
                self.softmax[block].exponentials_of_group(&scores, group, scale, bias, visible, probabilities);
            }
        }
        probabilities
    }

    /// Rare: takes the true row maxima, and rescales what is accumulated. Scores are multiplied again, so that nothing is
    /// kept for this.
    #[inline(always)]
    unsafe fn rebase(&mut self, key: Keys, part: usize, scale: [f32; BLOCKS], visible: [Visible; BLOCKS]) {
        let mut largest = [RowMaxima::new(); BLOCKS];
        for group in 0..Self::GROUPS {
            // SAFETY: forwarded contract.
            let (scores, bias) = unsafe {
                let group = part * Self::GROUPS + group;
                (self.scores(key, group), self.bias(key, group))
            };
            for block in 0..BLOCKS {
                let Some(bias) = bias else {
                    // SAFETY: forwarded contract.
                    let ChunkScores { scores, visible, .. } = unsafe {
                        self.modified(key, [part, group], block, scores[block], scale[block], visible[block])
                    };
                    largest[block].include(&scores, 8 * group, visible);
                    continue;
                };
                for column in 0..2 {
                    let (scores, first) = (&scores[block][column], 8 * group + 4 * column);
                    let bias = [bias[2 * column], bias[2 * column + 1]];
                    largest[block].include_biased(scores, scale[block], bias, first, visible[block]);
                }
            }
        }
        for block in 0..BLOCKS {
            let scale = if C::BIASED || M::MODIFIES { 1.0 } else { scale[block] };
            let rescale = self.softmax[block].raise_to::<ProbabilitiesOf<A>>(largest[block], scale);
            for output in &mut self.output[block][..Self::CHANNEL_BLOCKS] {
                let [a, b, c, d] = output.values();
                *output = A::Output::from_values([a * rescale[0], b * rescale[0], c * rescale[1], d * rescale[1]]);
            }
            for row in 0..2 {
                self.row_sum[block][row] *= rescale[row];
            }
        }
    }

    /// `output` += probabilities · value for a part of the chunk, and its row sums.
    #[inline(always)]
    unsafe fn multiply_value(&mut self, probabilities: &[ProbabilitiesOf<A>; BLOCKS], value: Matrix, part: usize) {
        for block in 0..BLOCKS {
            let sums = probabilities[block].sums();
            for row in 0..2 {
                self.row_sum[block][row] += sums[row];
            }
        }
        for pair in 0..Self::CHANNEL_BLOCKS / 2 {
            let mut sums: [[Sum<A>; 2]; BLOCKS] = core::array::from_fn(|block| {
                core::array::from_fn(|column| A::begin(&self.output[block][2 * pair + column]))
            });
            for step in 0..Self::VALUE_STEPS {
                // SAFETY: forwarded contract.
                let values = unsafe { value.operands(pair, part * Self::VALUE_STEPS + step) };
                for column in 0..2 {
                    for block in 0..BLOCKS {
                        let operand = probabilities[block].operand(step);
                        A::Product::multiply(&mut sums[block][column], operand, &values[column]);
                    }
                }
            }
            for block in 0..BLOCKS {
                for column in 0..2 {
                    A::end(&mut self.output[block][2 * pair + column], &sums[block][column]);
                }
            }
        }
    }

    /// Sums of whole rows.
    #[inline(always)]
    fn row_sums(&self, block: usize) -> [f32; 2] {
        self.row_sum[block].map(|sum| {
            let pair = sum + warp::shuffle_xor(sum, 1);
            pair + warp::shuffle_xor(pair, 2)
        })
    }

    /// The lane's two channels of a block of eight, of the values' mean over segment `segment`.
    #[inline(always)]
    unsafe fn mean(&self, item: WorkItem<S>, segment: u32, channels: usize) -> [f32; 2] {
        let WorkItem { key_head, sequence, .. } = item;
        let row = match ValuesOf::<A>::HAS_SEGMENTS {
            true => sequence.first_segment(key_head, S::segment_places(self.params)) + segment as u64,
            false => sequence.row(key_head, &self.params.sequences) as u64,
        };
        let place = row * HEAD_DIM as u64 + (8 * channels as u32 + 2 * (self.lane % 4)) as u64;
        // SAFETY: means hold a row for each segment of each key head.
        unsafe { global::load_f32x2(self.params.value_mean_codes + 4 * place) }
    }

    /// Values are stored less the mean of their segment. So the output, after any segment, is kept less that segment's mean
    /// times the row sums: at the next segment it is the difference of the means that comes back, and in the end the last mean.
    /// What the accumulators hold stays as small as it can be, and so does what they round away.
    #[inline(always)]
    unsafe fn change_mean(&mut self, chunk: u32, next: u32) {
        let smoothed = ValuesOf::<A>::HAS_SEGMENTS && self.params.value_mean_codes != 0;
        let segment = chunk / SEGMENT_CHUNKS;
        if !smoothed || next / SEGMENT_CHUNKS == segment {
            return;
        }
        // the next may be another warp's, after a hidden tile
        // SAFETY: forwarded contract.
        let next_segment = min(next, unsafe { self.chunks() }.end - 1) / SEGMENT_CHUNKS;
        if next_segment == segment {
            return;
        }
        // SAFETY: forwarded contract.
        let item = unsafe { self.item() };
        let row_sums: [[f32; 2]; BLOCKS] = core::array::from_fn(|block| self.row_sums(block));
        for channels in 0..Self::CHANNEL_BLOCKS {
            // SAFETY: forwarded contract; there are keys of both segments.
            let [old, new] = unsafe { [segment, next_segment].map(|segment| self.mean(item, segment, channels)) };
            for block in 0..BLOCKS {
                let output = &mut self.output[block][channels];
                let mut values = output.values();
                for (part, value) in values.iter_mut().enumerate() {
                    *value = math::fma(row_sums[block][part / 2], old[part % 2] - new[part % 2], *value);
                }
                *output = A::Output::from_values(values);
            }
        }
    }

    /// Divides by the row sums, scales, and writes output and log-sum-exp.
    ///
    /// # Safety
    ///
    /// As for [`new`](Self::new); nobody reads shared memory any more.
    #[inline(always)]
    unsafe fn finish<E: Element>(&self, base: u32) {
        let Self { params, lane, .. } = *self;
        // SAFETY: forwarded contract.
        let (item, chunks) = unsafe { (self.item(), self.chunks()) };
        if self.row(item, 0) >= item.sequence.queries(params.output.tokens) {
            return;
        }
        let memory = Self::MEMORY;
        let region = base + self.index * memory.region_stride;
        let row = item.sequence.row(item.key_head, &params.sequences);
        let scales = params.value_scale + 4 * (row as u64 * HEAD_DIM as u64 + 2 * (lane % 4) as u64);
        let means = params.value_mean_codes != 0 && chunks.count() > 0;
        for block in 0..BLOCKS {
            let row_sum = self.row_sums(block);
            // SAFETY: the parameters' buffers are there.
            let ends = unsafe { RowEnds::new(params, item, self.row(item, block), lane) };
            let denominators = ends.denominators(&self.softmax[block], row_sum);
            let inverse = epilogue::inverse(denominators);
            let mut output = [0.0; 4 * CHANNEL_BLOCKS];
            for channels in 0..Self::CHANNEL_BLOCKS {
                // SAFETY: there are keys of the last segment; scales hold a row for each key head.
                let (mean, scale) = unsafe {
                    let mean = if means { self.last_mean(item, chunks, channels) } else { [0.0; 2] };
                    // without keys there are no scales
                    let scaled = ValuesOf::<A>::SCALED && (!S::RAGGED || item.sequence.keys(0) != 0);
                    let scale = if scaled { global::load_f32x2(scales + 32 * channels as u64) } else { [1.0; 2] };
                    (mean, scale)
                };
                for (part, &value) in self.output[block][channels].values().iter().enumerate() {
                    let sum = math::fma(row_sum[part / 2], mean[part % 2], value);
                    output[4 * channels + part] = sum * inverse[part / 2] * scale[part % 2];
                }
            }
            // SAFETY: the warp's own region; the outputs are as the parameters say.
            unsafe {
                epilogue::store_rows::<E, S, HEAD_DIM>(
                    params,
                    [0, HEAD_DIM],
                    item,
                    self.row(item, block),
                    lane,
                    region,
                    |index| output[index],
                );
                ends.store(params, &self.softmax[block], denominators);
            }
        }
    }

    #[inline(always)]
    unsafe fn last_mean(&self, item: WorkItem<S>, chunks: KeyTiles, channels: usize) -> [f32; 2] {
        let segment = if ValuesOf::<A>::HAS_SEGMENTS { (chunks.end - 1) / SEGMENT_CHUNKS } else { 0 };
        // SAFETY: forwarded contract.
        unsafe { self.mean(item, segment, channels) }
    }
}
