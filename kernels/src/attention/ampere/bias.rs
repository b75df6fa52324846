//! What smoothing took out of the scores (SageAttention2, section 3.1).
//!
//! `q · (k − mean) = (q − q̄) · (k − mean) + q̄ · (k − mean)`, where `q̄` is the mean of the CTA's queries. The first product is
//! made of codes. The second is the same for all these queries: one number a key, computed from the caller's keys a chunk ahead.

use sage_layout::kernel::{MMA_STAGES, mma_warps};
use sage_layout::params::AttentionParams;
use sage_layout::tile::{KEY_CHUNK, MMA_QUERIES, QUERY_BLOCK, query_blocks};
use simt::{global, math, shared, thread, warp};

use crate::attention::schedule::WorkItem;
use crate::element::Element;
use crate::quantize::{CHUNK, Head};
use crate::sequences::Sequences;

/// Of a CTA: there are none with more than 128 channels.
const THREADS: u32 = mma_warps(128) * warp::LANES;
/// Threads that share a key; each takes every fourth piece of eight channels.
const THREADS_PER_KEY: u32 = 4;
/// Keys that a thread has a part of.
const KEYS: usize = (KEY_CHUNK * THREADS_PER_KEY / THREADS) as usize;
/// Distance of the keys of a thread.
const KEY_DISTANCE: u32 = THREADS / THREADS_PER_KEY;
/// Bytes of a chunk's biases.
const STRIDE: u32 = 4 * KEY_CHUNK;

/// A thread's part of the biases.
#[derive(Clone, Copy)]
pub struct Biases<'a, S> {
    params: &'a AttentionParams,
    item: WorkItem<S>,
    /// Shared memory, `MMA_STAGES · STRIDE` bytes.
    address: u32,
}

impl<'a, S: Sequences> Biases<'a, S> {
    /// Of an item; without smoothed queries they are set to 0.
    ///
    /// # Safety
    ///
    /// All threads of the CTA call it; nobody else touches the shared memory at `address`, and all meet before they load it.
    #[inline(always)]
    pub unsafe fn new(params: &'a AttentionParams, item: WorkItem<S>, address: u32) -> Self {
        const { assert!(MMA_QUERIES == QUERY_BLOCK && MMA_STAGES * KEY_CHUNK == THREADS) };
        if params.query_mean == 0 {
            // SAFETY: the place is this thread's own.
            unsafe { shared::store_f32(address + 4 * thread::thread_idx_x(), 0.0) };
        }
        Self { params, item, address }
    }

    /// Where the biases of a stage's chunk are.
    #[inline(always)]
    pub fn of_stage(&self, stage: u32) -> u32 {
        self.address + stage * STRIDE
    }

    /// Writes those of chunk `chunk`. Keys that the tensor does not have get some number.
    ///
    /// # Safety
    ///
    /// All threads of the CTA call it; nobody reads those of the stage until all have met.
    #[inline(always)]
    pub unsafe fn compute<E: Element, const HEAD_DIM: u32>(&self, stage: u32, chunk: u32) {
        let params = self.params;
        if params.query_mean == 0 {
            return;
        }
        // addresses are computed for each chunk, rather than kept in registers
        let thread = math::opaque(thread::thread_idx_x());
        let (head, key_head) = (math::opaque(self.item.head), math::opaque(self.item.key_head));
        let keys_of_head = Head::new(&params.keys, self.item.sequence.key_offset(&params.keys, key_head));
        let row = |index: u64| index * (4 * HEAD_DIM) as u64;
        let block = head as u64 * query_blocks(params.output.tokens) as u64;
        let query_mean = params.query_mean + row(block + (self.item.first_query / QUERY_BLOCK) as u64);
        let key_mean = params.key_mean + row(key_head as u64);

        let (key, part) = (thread / THREADS_PER_KEY, thread % THREADS_PER_KEY);
        let first = chunk * KEY_CHUNK + key;
        let mut sums = [0.0; KEYS];
        for piece in 0..HEAD_DIM / (CHUNK as u32 * THREADS_PER_KEY) {
            let piece = piece * THREADS_PER_KEY + part;
            // SAFETY: the caller's keys are readable; means hold a row for each block and each key head.
            unsafe {
                let offset = |index: usize| index as u32 * KEY_DISTANCE;
                let keys = keys_of_head.load_chunks::<KEYS, true, false>(
                    &params.keys,
                    params.keys.tokens,
                    first,
                    offset,
                    piece,
                );
                let query_mean = load_piece(query_mean, piece);
                let key_mean = if params.key_mean != 0 { load_piece(key_mean, piece) } else { [0.0; CHUNK] };
                for index in 0..KEYS {
                    let values = keys[index].values::<E>();
                    for channel in 0..CHUNK {
                        let value = values[channel] - key_mean[channel];
                        sums[index] = math::fma(query_mean[channel], value, sums[index]);
                    }
                }
            }
        }
        for index in 0..KEYS {
            let pair = sums[index] + warp::shuffle_xor(sums[index], 1);
            let sum = pair + warp::shuffle_xor(pair, 2);
            if part == 0 {
                let place = self.of_stage(stage) + 4 * (key + index as u32 * KEY_DISTANCE);
                // SAFETY: the place is this key's own.
                unsafe { shared::store_f32(place, sum * params.score_scale) };
            }
        }
    }
}

/// The `piece`-th eight channels of a row that an earlier kernel wrote.
#[inline(always)]
unsafe fn load_piece(row: u64, piece: u32) -> [f32; CHUNK] {
    let address = row + (4 * CHUNK as u32 * piece) as u64;
    // SAFETY: forwarded contract.
    let [[a, b, c, d], [e, f, g, h]] = [0, 16].map(|offset| unsafe { global::load_u32x4(address + offset) });
    [a, b, c, d, e, f, g, h].map(f32::from_bits)
}

/// The biases of the lane's columns of the `group`-th 16 keys (`sage_layout::fragment::accumulator`), from those of a chunk.
///
/// # Safety
///
/// `biases` are a chunk's, which nobody writes.
#[inline(always)]
pub unsafe fn of_group(biases: u32, group: usize, lane: u32) -> [f32; 4] {
    let place = biases + 64 * group as u32 + 8 * (lane % 4);
    // SAFETY: forwarded contract.
    let [[a, b], [c, d]] = [0, 32].map(|offset| unsafe { shared::load_u32x2(place + offset) });
    [a, b, c, d].map(f32::from_bits)
}
