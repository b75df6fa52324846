//! Attention of a few queries on a part of a cache: INT8 Q·Kᵀ, and P·V in f16 with f32 sums, on `mma.sync`.
//!
//! Queries of all heads that share a key head are rows of one matrix, so that keys and values are read once for all. A warp has 16
//! rows; a CTA is one warp, or four that share what is copied. It quantizes its queries itself, a few rows being less work than
//! a launch, and goes through its part of the sequence's blocks, with the next one on its way.
//!
//! Scores are in octaves, with the exponent of their value added. So a probability is already in units of its value's codes, and no
//! product overflows f16; the sum of a row takes the exponent out again.

use core::cmp::min;
use core::f32::consts::LOG2_E;
use core::ops::Range;

use sage_layout::cache::{
    BLOCK_TOKENS, CODE_UNIT, block_bytes, even_values, key_scales, odd_values, power_of_two, value_exponents, values,
};
use sage_layout::kernel::MMA_STAGES;
use sage_layout::params::CacheAttentionParams;
use sage_layout::scale::{INT8_MAX, int_scale};
use sage_layout::swizzle::CHUNK_BYTES;
use sage_layout::tile::{MAX_HEAD_DIM, WARP_ROWS};
use simt::{convert, copy, global, math, mma, shared, thread, warp};

use super::{block_address, length};
use crate::attention::ampere::chunks::Matrix;
use crate::attention::epilogue;
use crate::attention::mask::ChunkMask;
use crate::attention::modifier::{ChunkScores, Score, capped};
use crate::attention::softmax::{Exponents, F32Sums, HalfProbabilities, OnlineSoftmax, Probabilities, Visible};
use crate::element::{Element, F16};
use crate::quantize::query_key::max_abs;

/// Bytes of a step of Q·Kᵀ, and of values that are turned round at a time.
const STEP_BYTES: u32 = 32;
/// Largest number of them in a row, that of head dimension 256.
const STEPS: usize = (MAX_HEAD_DIM / STEP_BYTES) as usize;
/// Accumulators of eight channels for each step.
const TILES: usize = 4;
/// Groups of 16 keys in a block.
const GROUPS: usize = (BLOCK_TOKENS / 16) as usize;
/// Columns of a block that a lane has.
const COLUMNS: usize = (BLOCK_TOKENS / 4) as usize;

/// The kernel. `WARPS` are those of a CTA.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn attention<E: Element, const HEAD_DIM: u32, const WARPS: u32>(params: &CacheAttentionParams) {
    let CacheAttentionParams { cache, query, splits, row_tiles, .. } = params;
    let (index, tile) = math::div_rem(thread::block_idx_x(), *row_tiles);
    let (index, split) = math::div_rem(index, *splits);
    let (batch, key_head) = math::div_rem(index, cache.key_heads);
    let thread = thread::thread_idx_x();
    let (warp, lane) = (warp::broadcast(thread / warp::LANES), thread % warp::LANES);

    // SAFETY: lengths are as the parameters say.
    let keys = unsafe { length(cache, batch) };
    let shift = if params.from_last_key != 0 { keys as i32 - query.tokens as i32 } else { 0 };
    let visible = params.visible.shifted(shift, keys);
    // neither end of later queries is smaller
    let first = visible.visible_keys(0, keys).start / BLOCK_TOKENS;
    let end = visible.visible_keys(query.tokens - 1, keys).end.div_ceil(BLOCK_TOKENS);
    let blocks = end.saturating_sub(first);
    let part = |split: u32| first + math::div_rem(blocks * split, *splits).0;
    let blocks = Blocks { params, batch, key_head, keys, thread, threads: WARPS * warp::LANES };
    let base = shared::dynamic();
    let stage_at = |block: u32| base + block % MMA_STAGES * block_bytes(HEAD_DIM);

    // SAFETY: a stage is written after all warps have met, having read what was there, and read after all threads waited for
    // their copies and met.
    unsafe {
        let (mut block, end) = (part(split), part(split + 1));
        if block < end {
            blocks.copy::<HEAD_DIM>(stage_at(block), block);
        }
        copy::commit_group();
        let first_row = (tile * WARPS + warp) * WARP_ROWS;
        let mut rows = Rows::<HEAD_DIM>::new::<E>(params, [batch, key_head], first_row, lane);
        let seen = rows.tokens.map(|token| match token {
            Some(token) => visible.visible_keys(token, keys),
            None => 0..0,
        });
        while block < end {
            copy::wait_group::<{ MMA_STAGES - 2 }>();
            thread::sync_threads();
            if block + 1 < end {
                blocks.copy::<HEAD_DIM>(stage_at(block + 1), block + 1);
            }
            copy::commit_group();
            rows.step(stage_at(block), block * BLOCK_TOKENS, &seen, lane);
            block += 1;
        }
        rows.finish(params, split, lane);
    }
}

/// Copies of a sequence's blocks.
struct Blocks<'a> {
    params: &'a CacheAttentionParams,
    batch: u32,
    key_head: u32,
    /// Tokens that the sequence has.
    keys: u32,
    thread: u32,
    threads: u32,
}

impl Blocks<'_> {
    /// Starts the copies of a block to a stage. Scales and exponents of tokens that there are not become 0.
    ///
    /// # Safety
    ///
    /// The block is one of the sequence's; nobody touches the stage until all threads have waited for this group of copies
    /// and met.
    #[inline(always)]
    unsafe fn copy<const HEAD_DIM: u32>(&self, stage: u32, block: u32) {
        const TOKENS_PER_PIECE: u32 = CHUNK_BYTES / 4;
        const PIECES: u32 = BLOCK_TOKENS / TOKENS_PER_PIECE;
        let tokens = self.keys - block * BLOCK_TOKENS;
        // SAFETY: forwarded contract; each piece is one thread's.
        unsafe {
            let (from, _) = block_address::<HEAD_DIM>(&self.params.cache, self.batch, self.key_head, block);
            let mut at = self.thread * CHUNK_BYTES;
            while at < key_scales(HEAD_DIM) {
                copy::async16(stage + at, from + at as u64, CHUNK_BYTES);
                at += self.threads * CHUNK_BYTES;
            }
            let mut piece = self.thread;
            while piece < 2 * PIECES {
                let before = piece % PIECES * TOKENS_PER_PIECE;
                let there = 4 * min(tokens.saturating_sub(before), TOKENS_PER_PIECE);
                let at = key_scales(HEAD_DIM) + piece * CHUNK_BYTES;
                copy::async16(stage + at, from + at as u64, there);
                piece += self.threads;
            }
        }
    }
}

/// Probabilities of 16 rows and a block in units of their values' codes, and their sums in their own.
#[derive(Clone, Copy)]
struct CodeProbabilities {
    operands: HalfProbabilities<F16, F32Sums>,
    /// Of the lane's columns, what takes a probability out of its value's units.
    weights: [f32; COLUMNS],
    /// Sums of the lane's two rows.
    sums: [f32; 2],
}

impl Probabilities for CodeProbabilities {
    const CEILING: f32 = HalfProbabilities::<F16, F32Sums>::CEILING;
    const ZERO: Self = Self { operands: HalfProbabilities::ZERO, weights: [0.0; COLUMNS], sums: [0.0; 2] };

    #[inline(always)]
    fn set<T: Score>(&mut self, group: usize, exponents: &Exponents<T>) {
        let values = exponents.powers();
        self.operands.set_powers(group, &values);
        for row in 0..2 {
            for column in 0..4 {
                let value = values[2 * row + column / 2 * 4 + column % 2];
                self.sums[row] = math::fma(value, self.weights[4 * group + column], self.sums[row]);
            }
        }
    }

    #[inline(always)]
    fn saturated(&self) -> bool {
        self.operands.saturated()
    }
}

/// A warp's rows.
struct Rows<const HEAD_DIM: u32> {
    /// Indices of the lane's two rows over all batches and heads; and their tokens, if there are such rows.
    indices: [u64; 2],
    tokens: [Option<u32>; 2],
    query: [[u32; 4]; STEPS],
    /// What the codes' products are octaves of, but for the key's scale.
    scale: f32,
    /// What smoothed keys took out of the rows' logits.
    shift: [f32; 2],
    /// 0 for none.
    soft_cap: f32,
    softmax: OnlineSoftmax,
    row_sum: [f32; 2],
    output: [[[f32; 4]; TILES]; STEPS],
}

impl<const HEAD_DIM: u32> Rows<HEAD_DIM> {
    const STEPS: usize = (HEAD_DIM / STEP_BYTES) as usize;

    /// Loads and quantizes rows `first_row` on of those of a key head.
    ///
    /// # Safety
    ///
    /// For all methods: operands are as the parameters say, and the whole warp calls them.
    #[inline(always)]
    unsafe fn new<E: Element>(
        params: &CacheAttentionParams,
        [batch, key_head]: [u32; 2],
        first_row: u32,
        lane: u32,
    ) -> Self {
        let CacheAttentionParams { query, heads_per_key_head, .. } = params;
        let strides = &query.strides;
        let mut this = Self {
            indices: [0; 2],
            tokens: [None; 2],
            query: [[0; 4]; STEPS],
            scale: 0.0,
            shift: [0.0; 2],
            soft_cap: params.soft_cap,
            softmax: OnlineSoftmax::new(),
            row_sum: [0.0; 2],
            output: [[[0.0; 4]; TILES]; STEPS],
        };
        let mut elements = [[[0.0f32; 4]; 4]; STEPS];
        let mut largest = 0.0;
        for row in 0..2 {
            let (group, token) = math::div_rem(first_row + lane / 4 + 8 * row as u32, query.tokens);
            let head = key_head * heads_per_key_head + group;
            // rows that there are not have no channels
            let channels = if group < *heads_per_key_head { query.head_dim } else { 0 };
            this.tokens[row] = (channels != 0).then_some(token);
            this.indices[row] = (batch as u64 * query.heads as u64 + head as u64) * query.tokens as u64 + token as u64;
            let first = batch as i64 * strides.batch + head as i64 * strides.head + token as i64 * strides.token;
            let address = query.address.wrapping_add_signed(2 * first);
            let mean = params.key_mean + 4 * key_head as u64 * query.head_dim as u64;
            for step in 0..Self::STEPS {
                for half in 0..2 {
                    let channel = step as u32 * STEP_BYTES + 16 * half as u32 + 4 * (lane % 4);
                    // SAFETY: forwarded contract; the channels are inside the tensor.
                    let values = unsafe { load_four::<E>(address, channel, channels, query.vectorized != 0) };
                    for index in 0..4 {
                        largest = max_abs(largest, values[index].abs());
                        let channel = channel + index as u32;
                        let is_needed = params.key_mean != 0 && channel < channels;
                        // SAFETY: the mean has the key head's channels.
                        let mean = unsafe { global::load_f32_if(is_needed, mean + 4 * channel as u64) };
                        this.shift[row] = math::fma(values[index], mean, this.shift[row]);
                    }
                    elements[step][row + 2 * half] = values;
                }
            }
        }
        for distance in 1..3 {
            largest = max_abs(largest, warp::shuffle_xor(largest, distance));
            for row in 0..2 {
                this.shift[row] += warp::shuffle_xor(this.shift[row], distance);
            }
        }
        this.shift = this.shift.map(|shift| shift * params.softmax_scale);
        let (scale, inverse) = int_scale(largest, INT8_MAX);
        this.scale = scale * params.score_scale;
        for step in 0..Self::STEPS {
            for register in 0..4 {
                this.query[step][register] = convert::i8x4(elements[step][register].map(|value| value * inverse));
            }
        }
        this
    }

    /// One block of keys, from `first_key` on, which is in the stage at `stage`. `seen` are the keys that the lane's rows see.
    #[inline(always)]
    unsafe fn step(&mut self, stage: u32, first_key: u32, seen: &[Range<u32>; 2], lane: u32) {
        // SAFETY: forwarded contract.
        let (scores, weights) = unsafe { self.scores(stage, lane) };
        let is_whole = |row: usize| {
            self.tokens[row].is_none() || (seen[row].start <= first_key && seen[row].end >= first_key + BLOCK_TOKENS)
        };
        let visible = match warp::any(!is_whole(0) || !is_whole(1)) {
            false => Visible::Some(ChunkMask::ALL),
            true => Visible::Some(ChunkMask::of_rows(seen, first_key, lane)),
        };
        let scores = ChunkScores { scores, scale: 1.0, visible };
        let mut probabilities = self.probabilities(&scores, weights);
        if warp::any(probabilities.saturated()) {
            let rescale = self.softmax.raise_reference::<CodeProbabilities, f32>(&scores);
            for step in 0..Self::STEPS {
                for tile in 0..TILES {
                    for index in 0..4 {
                        self.output[step][tile][index] *= rescale[index / 2];
                    }
                }
            }
            for row in 0..2 {
                self.row_sum[row] *= rescale[row];
            }
            probabilities = self.probabilities(&scores, weights);
        }
        for row in 0..2 {
            self.row_sum[row] += probabilities.sums[row];
        }
        let value = Matrix::of_rows(stage + values(HEAD_DIM), HEAD_DIM, lane);
        for step in 0..Self::STEPS {
            for group in 0..GROUPS {
                // SAFETY: forwarded contract.
                let codes = unsafe { value.transposed(group, step) };
                for half in 0..2 {
                    let operands = [codes[half].map(even_values), codes[half].map(odd_values)];
                    for parity in 0..2 {
                        let sum = &mut self.output[step][2 * half + parity];
                        mma::m16n8k16_f32_f16(sum, &probabilities.operands.operands[group], &operands[parity]);
                    }
                }
            }
        }
    }

    /// Scores of a block in octaves, each with its value's exponent; and of the lane's columns, what takes that out again.
    #[inline(always)]
    unsafe fn scores(&self, stage: u32, lane: u32) -> ([f32; 32], [f32; COLUMNS]) {
        let key = Matrix::new(stage, HEAD_DIM, lane);
        let mut scores = [0.0; 32];
        let mut weights = [0.0; COLUMNS];
        for group in 0..GROUPS {
            let mut sums = [[0; 4]; 2];
            for step in 0..Self::STEPS {
                // SAFETY: forwarded contract.
                let keys = unsafe { key.operands(group, step) };
                for column in 0..2 {
                    mma::m16n8k32_s32_s8(&mut sums[column], &self.query[step], &keys[column]);
                }
            }
            for column in 0..2 {
                let first = stage + Self::keys_of_lane(group, column, lane);
                // SAFETY: the stage has a scale and an exponent of each key.
                let [scale, exponent] = unsafe {
                    [key_scales(HEAD_DIM), value_exponents(HEAD_DIM)]
                        .map(|at| shared::load_u32x2(first + at).map(f32::from_bits))
                };
                for index in 0..4 {
                    let scale = scale[index % 2] * self.scale;
                    let score = math::fma(sums[column][index] as f32, scale, exponent[index % 2]);
                    scores[8 * group + 4 * column + index] = score;
                }
                for index in 0..2 {
                    weights[4 * group + 2 * column + index] = power_of_two(-exponent[index]);
                }
            }
        }
        // once a block, not once a score
        if self.soft_cap != 0.0 {
            // SAFETY: forwarded contract.
            unsafe { self.cap(&mut scores, stage, lane) };
        }
        (scores, weights)
    }

    /// Where numbers of the lane's two keys are among those of a block's, for eight keys of a group of 16.
    #[inline(always)]
    fn keys_of_lane(group: usize, column: usize, lane: u32) -> u32 {
        4 * (16 * group as u32 + 8 * column as u32 + 2 * (lane % 4))
    }

    /// Caps scores, which have their values' exponents. What smoothed keys took out of them comes back before.
    #[inline(always)]
    unsafe fn cap(&self, scores: &mut [f32; 32], stage: u32, lane: u32) {
        let inverse = math::reciprocal(self.soft_cap);
        for (index, score) in scores.iter_mut().enumerate() {
            let at = stage + value_exponents(HEAD_DIM) + Self::keys_of_lane(index / 8, index / 4 % 2, lane);
            // SAFETY: the stage has an exponent of each key.
            let exponent = unsafe { shared::load_u32x2(at).map(f32::from_bits) }[index % 2];
            let natural = math::fma(self.shift[index / 2 % 2], LOG2_E, *score - exponent);
            *score = capped(natural, self.soft_cap, inverse) + exponent;
        }
    }

    #[inline(always)]
    fn probabilities(&self, scores: &ChunkScores<f32, 32>, weights: [f32; COLUMNS]) -> CodeProbabilities {
        let mut probabilities = CodeProbabilities { weights, ..CodeProbabilities::ZERO };
        for group in 0..GROUPS {
            let of_group: [f32; 8] = core::array::from_fn(|index| scores.scores[8 * group + index]);
            self.softmax.exponentials_of_group(&of_group, group, 1.0, None, scores.visible, &mut probabilities);
        }
        probabilities
    }

    /// Divides by the row sums, and writes the part's output and log-sum-exp.
    #[inline(always)]
    unsafe fn finish(&self, params: &CacheAttentionParams, split: u32, lane: u32) {
        let row_sum = self.row_sum.map(|sum| {
            let pair = sum + warp::shuffle_xor(sum, 1);
            pair + warp::shuffle_xor(pair, 2)
        });
        let inverse = epilogue::inverse(row_sum);
        for row in 0..2 {
            if self.tokens[row].is_none() {
                continue;
            }
            let index = split as u64 * params.rows as u64 + self.indices[row];
            let output = params.partial_outputs + 4 * index * HEAD_DIM as u64;
            for step in 0..Self::STEPS {
                for half in 0..2 {
                    // even channels are one tile's, odd ones the next's
                    let [even, odd] = [0, 1].map(|parity| self.output[step][2 * half + parity]);
                    let value = |value: f32| (value * inverse[row] * CODE_UNIT).to_bits();
                    let quad = [even[2 * row], odd[2 * row], even[2 * row + 1], odd[2 * row + 1]].map(value);
                    let channel = step as u32 * STEP_BYTES + 16 * half as u32 + 4 * (lane % 4);
                    // SAFETY: the row is one of the call's, and these channels this lane's own.
                    unsafe { global::store_u32x4(output + 4 * channel as u64, quad) };
                }
            }
            if lane.is_multiple_of(4) {
                let log_sum_exp = match row_sum[row] == 0.0 {
                    true => f32::NEG_INFINITY,
                    // capped scores are not smoothed any more
                    false if self.soft_cap != 0.0 => self.softmax.log_sum_exp(row, row_sum[row]),
                    false => self.softmax.log_sum_exp(row, row_sum[row]) + self.shift[row],
                };
                // SAFETY: as above.
                unsafe { global::store_f32(params.partial_log_sum_exps + 4 * index, log_sum_exp) };
            }
        }
    }
}

/// Four channels of the row at `address`, from `channel` on, a multiple of 4; zeros where there are none.
///
/// # Safety
///
/// The row is readable for `head_dim` channels; if `vectorized`, it begins at a multiple of 16 bytes.
#[inline(always)]
unsafe fn load_four<E: Element>(address: u64, channel: u32, head_dim: u32, vectorized: bool) -> [f32; 4] {
    let at = address + 2 * channel as u64;
    let mut pairs = [0; 2];
    // SAFETY: forwarded contract. Vectorized rows are whole groups of eight channels.
    unsafe {
        if vectorized {
            if channel < head_dim {
                pairs = global::load_f32x2(at).map(f32::to_bits);
            }
        } else {
            for index in 0..4 {
                let bits = global::load_u16_if(channel + index < head_dim, at + 2 * index as u64);
                pairs[index as usize / 2] |= (bits as u32) << (16 * (index % 2));
            }
        }
    }
    let [[a, b], [c, d]] = pairs.map(E::unpack);
    [a, b, c, d]
}
