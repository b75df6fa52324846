//! Whether all sequences of a call are equally long, and what follows for places in memory.
//!
//! [`Uniform`] ones need no numbers of their own: everything is in the kernel's parameters. A [`Ragged`] batch's are in a table
//! (`sage_layout::sequence`). Kernels are generic over the two, so that the first pays nothing for the second; those that look a
//! sequence up once take both ([`RaggedOrUniform`]).

use sage_layout::params::{AttentionParams, SequencesParams, TensorView};
use sage_layout::sequence::{Sequence, first_part, last_at};
use sage_layout::tile::{
    CONSUMER_WARPGROUPS, CTA_QUERIES, KEY_TILE, SEGMENT_KEYS, WARPGROUP_ROWS, key_tiles, padded_queries, segments,
};
use sage_layout::visibility::Band;
use simt::{global, math, warp};

/// An item's sequence. Heads are counted over batches and heads of uniform sequences, and of a ragged batch over heads.
pub trait Sequences: Copy {
    /// Whether lengths may differ.
    const RAGGED: bool;

    /// Its queries; `uniform` if all are equally long, likewise in what follows.
    fn queries(self, uniform: u32) -> u32;
    /// Its keys.
    fn keys(self, uniform: u32) -> u32;
    /// Its key tiles.
    fn key_tiles(self, uniform: u32) -> u32;
    /// Its segments.
    fn segments(self, uniform: u32) -> u32;
    /// Which keys its queries see.
    fn visible(self, params: &AttentionParams) -> Band;

    /// Index of its first query tile over all heads, each of which has `places`.
    fn first_query_tile(self, head: u64, places: u32) -> u64;
    /// Index of its first key tile over all heads.
    fn first_key_tile(self, head: u32, places: u32) -> u64;
    /// Index of its first segment over all heads.
    fn first_segment(self, head: u32, places: u32) -> u64;
    /// Index, over all heads, of what there is once for a head and sequence.
    fn row(self, head: u32, sequences: &SequencesParams) -> u32;
    /// Index of the sequence among those of a head.
    fn index(self) -> u32;
    /// What there is to it beside its index.
    fn words(self) -> [u32; 4];
    /// That of such an index and words.
    fn from_words(index: u32, words: [u32; 4]) -> Self;

    /// Elements from a tensor's beginning to its head's first query.
    fn query_offset(self, tensor: &TensorView, head: u32) -> i64;
    /// Elements from a tensor's beginning to its head's first key.
    fn key_offset(self, tensor: &TensorView, head: u32) -> i64;
    /// Elements of the log-sum-exp before its head's first query.
    fn log_sum_exp_offset(self, params: &AttentionParams, head: u32) -> u64;

    /// Places for CTAs of `queries` queries, of a head.
    fn cta_places(params: &AttentionParams, queries: u32) -> u32;
    /// Places for query tiles, of a head.
    fn query_places(params: &AttentionParams) -> u32;
    /// Places for key tiles, of a head.
    fn key_places(params: &AttentionParams) -> u32;
    /// Places for segments, of a head.
    fn segment_places(params: &AttentionParams) -> u32;
    /// The sequence that a place for CTAs of `queries` queries may be of, and the place of its first.
    ///
    /// # Safety
    ///
    /// The parameters' table and order are there.
    unsafe fn of_cta(params: &AttentionParams, place: u32) -> (Self, u32);
    /// The sequence of an index.
    ///
    /// # Safety
    ///
    /// The parameters' table is there, and has the index.
    unsafe fn of_index(sequences: &SequencesParams, index: u32) -> Self;
    /// The same, which is then known to be the same in all lanes of the warp. They must all be here.
    fn same_in_all_lanes(self) -> Self;
}

/// All sequences are equally long.
#[derive(Clone, Copy)]
pub struct Uniform;

/// A sequence among others of other lengths; `OR_UNIFORM`, or all of a batch that has no table, as if it were of one sequence and all
/// batches' heads.
#[derive(Clone, Copy)]
pub struct Ragged<const OR_UNIFORM: bool = false> {
    /// Which.
    pub index: u32,
    /// Where, and how long.
    pub sequence: Sequence,
}

/// Either, as the parameters say.
pub type RaggedOrUniform = Ragged<true>;

#[inline(always)]
fn uniform_offset(tensor: &TensorView, head: u32) -> i64 {
    let (batch, head) = math::div_rem(head, tensor.heads);
    batch as i64 * tensor.strides.batch + head as i64 * tensor.strides.head
}

impl Sequences for Uniform {
    const RAGGED: bool = false;

    #[inline(always)]
    fn queries(self, uniform: u32) -> u32 {
        uniform
    }

    #[inline(always)]
    fn keys(self, uniform: u32) -> u32 {
        uniform
    }

    #[inline(always)]
    fn key_tiles(self, uniform: u32) -> u32 {
        uniform
    }

    #[inline(always)]
    fn segments(self, uniform: u32) -> u32 {
        uniform
    }

    #[inline(always)]
    fn visible(self, params: &AttentionParams) -> Band {
        params.visible
    }

    #[inline(always)]
    fn first_query_tile(self, head: u64, places: u32) -> u64 {
        head * places as u64
    }

    #[inline(always)]
    fn first_key_tile(self, head: u32, places: u32) -> u64 {
        head as u64 * places as u64
    }

    #[inline(always)]
    fn first_segment(self, head: u32, places: u32) -> u64 {
        head as u64 * places as u64
    }

    #[inline(always)]
    fn row(self, head: u32, _: &SequencesParams) -> u32 {
        head
    }

    #[inline(always)]
    fn index(self) -> u32 {
        0
    }

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        [0; 4]
    }

    #[inline(always)]
    fn from_words(_: u32, _: [u32; 4]) -> Self {
        Self
    }

    #[inline(always)]
    fn query_offset(self, tensor: &TensorView, head: u32) -> i64 {
        uniform_offset(tensor, head)
    }

    #[inline(always)]
    fn key_offset(self, tensor: &TensorView, head: u32) -> i64 {
        uniform_offset(tensor, head)
    }

    #[inline(always)]
    fn log_sum_exp_offset(self, params: &AttentionParams, head: u32) -> u64 {
        head as u64 * params.output.tokens as u64
    }

    #[inline(always)]
    fn cta_places(params: &AttentionParams, queries: u32) -> u32 {
        // opaque, or it is kept in registers from one item to the next
        math::opaque(params.output.tokens).div_ceil(queries)
    }

    #[inline(always)]
    fn query_places(params: &AttentionParams) -> u32 {
        padded_queries(params.output.tokens) / WARPGROUP_ROWS
    }

    #[inline(always)]
    fn key_places(params: &AttentionParams) -> u32 {
        key_tiles(params.key_len)
    }

    #[inline(always)]
    fn segment_places(params: &AttentionParams) -> u32 {
        // opaque, likewise
        segments(math::opaque(params.key_len))
    }

    #[inline(always)]
    unsafe fn of_cta(_: &AttentionParams, _: u32) -> (Self, u32) {
        (Self, 0)
    }

    #[inline(always)]
    unsafe fn of_index(_: &SequencesParams, _: u32) -> Self {
        Self
    }

    #[inline(always)]
    fn same_in_all_lanes(self) -> Self {
        self
    }
}

impl<const OR_UNIFORM: bool> Sequences for Ragged<OR_UNIFORM> {
    const RAGGED: bool = true;

    #[inline(always)]
    fn queries(self, _: u32) -> u32 {
        self.sequence.queries
    }

    #[inline(always)]
    fn keys(self, _: u32) -> u32 {
        self.sequence.keys
    }

    #[inline(always)]
    fn key_tiles(self, _: u32) -> u32 {
        key_tiles(self.sequence.keys)
    }

    #[inline(always)]
    fn segments(self, _: u32) -> u32 {
        segments(self.sequence.keys)
    }

    #[inline(always)]
    fn visible(self, params: &AttentionParams) -> Band {
        let Sequence { queries, keys, .. } = self.sequence;
        let shift = if params.from_last_key != 0 { keys as i32 - queries as i32 } else { 0 };
        params.visible.shifted(shift, keys)
    }

    #[inline(always)]
    fn first_query_tile(self, head: u64, places: u32) -> u64 {
        head * places as u64
            + (first_part(self.sequence.query_start, self.index, CTA_QUERIES) * CONSUMER_WARPGROUPS) as u64
    }

    #[inline(always)]
    fn first_key_tile(self, head: u32, places: u32) -> u64 {
        head as u64 * places as u64 + first_part(self.sequence.key_start, self.index, KEY_TILE) as u64
    }

    #[inline(always)]
    fn first_segment(self, head: u32, places: u32) -> u64 {
        head as u64 * places as u64 + first_part(self.sequence.key_start, self.index, SEGMENT_KEYS) as u64
    }

    #[inline(always)]
    fn row(self, head: u32, sequences: &SequencesParams) -> u32 {
        head * sequences.count + self.index
    }

    #[inline(always)]
    fn index(self) -> u32 {
        self.index
    }

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        self.sequence.words()
    }

    #[inline(always)]
    fn from_words(index: u32, words: [u32; 4]) -> Self {
        Self { index, sequence: Sequence::from_words(words) }
    }

    #[inline(always)]
    fn query_offset(self, tensor: &TensorView, head: u32) -> i64 {
        self.offset(tensor, head, self.sequence.query_start)
    }

    #[inline(always)]
    fn key_offset(self, tensor: &TensorView, head: u32) -> i64 {
        self.offset(tensor, head, self.sequence.key_start)
    }

    #[inline(always)]
    fn log_sum_exp_offset(self, params: &AttentionParams, head: u32) -> u64 {
        let [of_head, of_sequence] = params.log_sum_exp_strides;
        head as u64 * of_head + self.index as u64 * of_sequence + self.sequence.query_start as u64
    }

    #[inline(always)]
    fn cta_places(params: &AttentionParams, _: u32) -> u32 {
        params.sequences.cta_places
    }

    #[inline(always)]
    fn query_places(params: &AttentionParams) -> u32 {
        params.sequences.query_places * CONSUMER_WARPGROUPS
    }

    #[inline(always)]
    fn key_places(params: &AttentionParams) -> u32 {
        params.sequences.key_places
    }

    #[inline(always)]
    fn segment_places(params: &AttentionParams) -> u32 {
        params.sequences.segment_places
    }

    #[inline(always)]
    unsafe fn of_cta(params: &AttentionParams, place: u32) -> (Self, u32) {
        let sequences = &params.sequences;
        if OR_UNIFORM && sequences.table == 0 {
            let SequencesParams { queries, keys, .. } = *sequences;
            return (Self { index: 0, sequence: Sequence { query_start: 0, key_start: 0, queries, keys } }, 0);
        }
        // SAFETY: forwarded contract; the search asks for ranks of the order.
        unsafe {
            let first_place = |rank| Self::load(order(sequences, rank));
            let rank = last_at(place, sequences.count, first_place);
            let index = Self::load(order(sequences, rank) + 4);
            (Self::of_index(sequences, index), first_place(rank))
        }
    }

    #[inline(always)]
    unsafe fn of_index(sequences: &SequencesParams, index: u32) -> Self {
        // one by one: what is not used is not loaded
        let word = |word: u64| {
            // SAFETY: forwarded contract.
            unsafe { Self::load(entry(sequences, index) + 4 * word) }
        };
        Self::from_words(index, [0, 1, 2, 3].map(word))
    }

    #[inline(always)]
    fn same_in_all_lanes(self) -> Self {
        Self::from_words(self.index, self.words().map(warp::broadcast))
    }
}

/// Where a sequence stands in the table, its first query first.
#[inline(always)]
pub fn entry(sequences: &SequencesParams, index: u32) -> u64 {
    sequences.table + index as u64 * Sequence::BYTES as u64
}

/// Where attention's order has a rank: the place of the sequence's first CTA, then the sequence.
#[inline(always)]
pub fn order(sequences: &SequencesParams, rank: u32) -> u64 {
    sequences.order + 8 * rank as u64
}

impl<const OR_UNIFORM: bool> Ragged<OR_UNIFORM> {
    /// A word of the table or the order. The quantizer, which writes them, loads them too.
    ///
    /// # Safety
    ///
    /// They are there, and have the word.
    #[inline(always)]
    unsafe fn load(address: u64) -> u32 {
        // SAFETY: forwarded contract; of those that may be uniform, an earlier launch wrote the table.
        unsafe { if OR_UNIFORM { global::load_u32(address) } else { global::load_written_u32(address) } }
    }

    #[inline(always)]
    fn offset(self, tensor: &TensorView, head: u32, start: u32) -> i64 {
        let strides = &tensor.strides;
        // of a ragged batch, heads are not counted over batches
        let of_head = if OR_UNIFORM { uniform_offset(tensor, head) } else { head as i64 * strides.head };
        self.index as i64 * strides.batch + of_head + start as i64 * strides.token
    }
}
