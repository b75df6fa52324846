//! From the caller's tensors to the tiles and scales that the attention kernels read.
//!
//! One persistent kernel: CTAs claim items of one tile, of queries two, in the order of `sage_layout::schedule`. In every item a thread
//! owns *chunks*, eight channels (16 bytes) of a token, and `head_dim / 8` threads own the chunks of one token.

pub mod query_key;
mod schedule;
mod sequences;
pub mod statistics;
pub mod value;

use sage_layout::params::{QuantizeParams, TensorView};
use sage_layout::schedule::{Item, QUERY_TILES, RAGGED_QUERY_TILES, Work};
use simt::global::CachePolicy;
use simt::{global, grid, math, thread};

use crate::element::Element;
use crate::sequences::Sequences;

/// Channels of a chunk.
pub const CHUNK: usize = 8;

/// Queries that a thread holds.
const QUERIES: usize = query_key::queries(QUERY_TILES);
/// The same in a ragged batch.
const RAGGED_QUERIES: usize = query_key::queries(RAGGED_QUERY_TILES);

/// A tile of a sequence's head.
#[derive(Clone, Copy)]
pub struct Part<S> {
    /// Key head.
    pub head: u32,
    /// Tile of the sequence; of queries, item, counted over all query heads that share the key head: of each, as many as it takes for
    /// `QuantizeParams::query_tiles`. In a ragged batch that is a tile.
    pub tile: u32,
    /// Whose.
    pub sequence: S,
}

/// Sequences that the quantizer finds.
pub trait Find: Sequences {
    /// Makes what [`find`](Self::find) needs, after the CTA's first claim.
    ///
    /// # Safety
    ///
    /// As the parameters say. All threads of the CTA call it, once.
    unsafe fn prepare<const HEAD_DIM: u32>(params: &QuantizeParams);

    /// The item of a claim, if it is not beyond all.
    fn claimed(params: &QuantizeParams, claim: u32) -> Option<Item>;

    /// Whose tile an item is: the sequence, and the tile among its own. Some places are nobody's.
    ///
    /// # Safety
    ///
    /// As the parameters say, after [`prepare`](Self::prepare).
    unsafe fn find(params: &QuantizeParams, item: Item) -> Option<(Self, u32)>;
}

/// A CTA: items until none is left. `S` says whether lengths may differ; `SMOOTHED`, whether queries may be smoothed, and codes be INT4;
/// `ROTATED`, whether queries and keys may be rotated: then all tensors are vectorized.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn quantize<E: Element, S: Find, const HEAD_DIM: u32, const SMOOTHED: bool, const ROTATED: bool>(
    params: &QuantizeParams,
) {
    const KEY_STATISTICS: u32 = Work::KeyStatistics as u32;
    const VALUE_STATISTICS: u32 = Work::ValueStatistics as u32;
    const QUERY: u32 = Work::Query as u32;
    const KEY: u32 = Work::Key as u32;
    const VALUE: u32 = Work::Value as u32;
    // SAFETY: forwarded contract; items are of the call that the parameters describe.
    unsafe {
        grid::allow_dependents();
        let is_attentions = thread::multiprocessor() >= params.multiprocessors;
        if params.quantized_items != 0 && is_attentions && thread::block_idx_x() != 0 {
            return;
        }
        schedule::claim_first::<HEAD_DIM>(params);
        S::prepare::<HEAD_DIM>(params);
        loop {
            let (work, part) = schedule::share::<S, HEAD_DIM>(params);
            schedule::tell_attention::<HEAD_DIM>(params);
            // every item claims the next one
            match work {
                VALUE_STATISTICS if params.value_scale != 0 => {
                    statistics::value_statistics::<E, S, HEAD_DIM, ROTATED>(params, part)
                }
                KEY_STATISTICS => statistics::mean_statistics::<E, S, HEAD_DIM, SMOOTHED, ROTATED, true>(params, part),
                VALUE_STATISTICS => {
                    statistics::mean_statistics::<E, S, HEAD_DIM, SMOOTHED, ROTATED, false>(params, part)
                }
                QUERY if S::RAGGED => {
                    query_key::quantize_query::<E, S, HEAD_DIM, SMOOTHED, ROTATED, RAGGED_QUERIES>(params, part)
                }
                QUERY => query_key::quantize_query::<E, S, HEAD_DIM, SMOOTHED, ROTATED, QUERIES>(params, part),
                KEY => query_key::quantize_key::<E, S, HEAD_DIM, SMOOTHED, ROTATED>(params, part),
                VALUE if params.value_scale != 0 => value::quantize_value::<E, S, HEAD_DIM, ROTATED>(params, part),
                VALUE => value::tile_value::<E, S, HEAD_DIM, ROTATED>(params, part),
                _ => return,
            }
        }
    }
}

/// Bytes of a row of queries' or keys' codes.
#[inline(always)]
fn code_row_bytes<const HEAD_DIM: u32, const SMOOTHED: bool>(params: &QuantizeParams) -> u32 {
    // opaque, or what follows from it is kept in registers from one item to the next
    if SMOOTHED { math::opaque(params.code_row_bytes) } else { HEAD_DIM }
}

/// Index of the thread, unknown to the compiler: what follows from it is computed for each item, rather than kept in
/// registers from one to the next.
#[inline(always)]
fn thread_of_item() -> u32 {
    math::opaque(thread::thread_idx_x())
}

/// A head of a tensor.
#[derive(Clone, Copy)]
pub struct Head {
    /// First element in the caller's tensor.
    address: u64,
}

impl Head {
    /// The head of which the first token is `offset` elements into the tensor ([`Sequences`]).
    #[inline(always)]
    pub fn new(tensor: &TensorView, offset: i64) -> Self {
        Self { address: tensor.address.wrapping_add_signed(2 * offset) }
    }

    /// Eight channels, from channel `8 · chunk`, of the `N` tokens at `first + offset(…)`; zeros from token `tokens` on.
    /// `AGAIN` says whether they will be loaded once more; `VECTORIZED`, whether the tensor is known to be that.
    ///
    /// # Safety
    ///
    /// `tensor` must be the one that this head is of, and readable for `tokens` tokens; vectorized, if `VECTORIZED`.
    #[inline(always)]
    pub unsafe fn load_chunks<const N: usize, const AGAIN: bool, const VECTORIZED: bool>(
        self,
        tensor: &TensorView,
        tokens: u32,
        first: u32,
        offset: impl Fn(usize) -> u32,
        chunk: u32,
    ) -> [Chunk; N] {
        let channel = chunk * CHUNK as u32;
        let element = first as i64 * tensor.strides.token + channel as i64;
        let mut address = self.address.wrapping_add_signed(2 * element);
        // from one token to the next: products with the stride would be kept in registers
        let step = |index: usize| {
            let tokens = if index + 1 < N { offset(index + 1) - offset(index) } else { 0 };
            2 * (tokens as i64 * tensor.strides.token)
        };
        let mut chunks = [Chunk::ZERO; N];
        let last_time = CachePolicy::evict_first();
        if VECTORIZED || tensor.vectorized != 0 {
            for index in 0..N {
                if first + offset(index) < tokens && channel < tensor.head_dim {
                    // SAFETY: the chunk is inside the tensor, and rows are aligned to 16 bytes and whole chunks long.
                    chunks[index] = Chunk(unsafe {
                        match AGAIN {
                            true => global::load_u32x4(address),
                            false => global::load_u32x4_hint(address, last_time),
                        }
                    });
                }
                address = address.wrapping_add_signed(step(index));
            }
        } else {
            // opaque, so that it is not unrolled: it is rare. Chunks move up, as an array that is indexed by a variable lives in local memory
            let mut index = 0;
            while index < N {
                for place in 1..N {
                    chunks[place - 1] = chunks[place];
                }
                chunks[N - 1] = Chunk::ZERO;
                let existing = if first + offset(index) < tokens { tensor.head_dim.saturating_sub(channel) } else { 0 };
                for element in 0..CHUNK {
                    if (element as u32) < existing {
                        // SAFETY: the element is inside the tensor.
                        let bits = unsafe { global::load_u16(address + 2 * element as u64) };
                        chunks[N - 1].0[element / 2] |= (bits as u32) << (16 * (element % 2));
                    }
                }
                address = address.wrapping_add_signed(step(index));
                index = math::opaque(index as u32 + 1) as usize;
            }
        }
        chunks
    }
}

/// A chunk as it is in memory: pairs of 16-bit elements. Zero bits are zeros in both formats.
#[derive(Clone, Copy)]
pub struct Chunk(pub [u32; CHUNK / 2]);

impl Chunk {
    const ZERO: Self = Self([0; CHUNK / 2]);

    /// The same chunk, whose values are converted anew: sixteen bytes take four registers, eight values eight.
    #[inline(always)]
    fn again(&self) -> Self {
        self.map(math::opaque)
    }

    /// A chunk of values, each as near as can be.
    #[inline(always)]
    pub fn of_values<E: Element>([a, b, c, d, e, f, g, h]: [f32; CHUNK]) -> Self {
        Self([[a, b], [c, d], [e, f], [g, h]].map(E::pack_nearest))
    }

    /// What becomes of each pair.
    #[inline(always)]
    pub fn map(self, pair: impl FnMut(u32) -> u32) -> Self {
        Self(self.0.map(pair))
    }

    /// The elements' values.
    #[inline(always)]
    pub fn values<E: Element>(&self) -> [f32; CHUNK] {
        let mut values = [0.0; CHUNK];
        for index in 0..CHUNK / 2 {
            [values[2 * index], values[2 * index + 1]] = E::unpack(self.0[index]);
        }
        values
    }
}

/// `N` f32 channels, a multiple of 4, that this launch wrote before.
///
/// # Safety
///
/// `address` must be readable for `4 · N` bytes and a multiple of 16, and what was written there ordered before.
#[inline(always)]
unsafe fn load_channels<const N: usize>(address: u64) -> [f32; N] {
    let mut values = [0.0; N];
    for quad in 0..N / 4 {
        // SAFETY: forwarded contract.
        let words = unsafe { global::load_written_u32x4(address + 16 * quad as u64) };
        for index in 0..4 {
            values[4 * quad + index] = f32::from_bits(words[index]);
        }
    }
    values
}
