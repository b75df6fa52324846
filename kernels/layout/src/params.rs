//! Parameters of the kernels: one `#[repr(C)]` struct each, passed by value.
//!
//! Addresses are device addresses; 0 means "not there" where a field says it may be. Strides count elements. All sizes
//! were checked by the host: lengths are under 2³⁰, head counts under 2¹⁶, and over all heads and batches there are under 2²⁸
//! tiles of keys and under 2²⁸ CTAs of queries. So 32 bits hold the index of a tile or of its scales; addresses take 64.

use crate::kernel::Family;
use crate::schedule::Order;
use crate::visibility::Band;

/// A device address.
pub type Address = u64;

/// Distances, in elements, between consecutive batches, heads and tokens of a tensor. Channels are adjacent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Strides {
    /// From one batch to the next.
    pub batch: i64,
    /// From one head to the next.
    pub head: i64,
    /// From one token to the next.
    pub token: i64,
}

/// A tensor of the caller: `[batch, head, token, channel]` in any order of the first three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TensorView {
    /// First element.
    pub address: Address,
    /// Distances between elements.
    pub strides: Strides,
    /// Heads a batch.
    pub heads: u32,
    /// Tokens a head.
    pub tokens: u32,
    /// Channels that exist, at most the kernel's padded head dimension.
    pub head_dim: u32,
    /// 1 if every row starts at a multiple of 16 bytes and has a multiple of eight channels, else 0.
    pub vectorized: u32,
}

/// The sequences ([`sequence`](crate::sequence)), for the families that take a ragged batch: those whose names say so, and the `mma.sync`
/// ones for INT8 without smoothed queries, which take equally long ones too.
///
/// Packed tensors are one batch; those of a padded batch have the stride of a batch less that of a sequence's tokens, so that
/// in both a sequence begins at `address + index · batch stride + start · token stride`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SequencesParams {
    /// [`Sequence`](crate::sequence::Sequence) `[count]`, which the quantizer writes. 0 if all are equally long.
    pub table: Address,
    /// u32 `[count][2]`, which the quantizer writes: the order in which attention takes sequences, longest first. Of each, the place of
    /// its first CTA, and its index.
    pub order: Address,
    /// i32 `[count + 1]` of the caller: where each packed sequence's queries begin, and the last one's end. 0 for a padded batch.
    pub query_starts: Address,
    /// The same of the keys.
    pub key_starts: Address,
    /// i32 `[count]` of the caller: each sequence's keys in a padded batch. 0 for packed sequences.
    pub key_lens: Address,
    /// Sequences; 1 if all are equally long, of as many heads as there are in all batches.
    pub count: u32,
    /// Queries: of all packed sequences, or of each in a padded batch or among equally long ones.
    pub queries: u32,
    /// Keys, likewise.
    pub keys: u32,
    /// Places for 192 queries, of a head.
    pub query_places: u32,
    /// Places for key tiles, of a head.
    pub key_places: u32,
    /// Places for segments, of a head.
    pub segment_places: u32,
    /// Queries of a CTA of the attention kernel.
    pub cta_queries: u32,
    /// Places for such CTAs, of a head.
    pub cta_places: u32,
}

/// Rotary embedding of queries or keys before they are quantized ([`rotation`](crate::rotation)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RotaryParams {
    /// f32 `[positions][dim / 2]`: cosines; 0 for no rotary embedding. A multiple of 16 bytes, as the next.
    pub cos: Address,
    /// The same shape: sines.
    pub sin: Address,
    /// Channels that are turned, even, at most the tensor's.
    pub dim: u32,
    /// Their [`RotaryPairs`](crate::rotation::RotaryPairs) as a number.
    pub pairs: u32,
    /// Position of a sequence's first token.
    pub first_position: u32,
    /// Positions that the tables have. Others are taken as the last one.
    pub positions: u32,
}

/// `Prepare`: grid (batch · heads · tiles). A CTA prepares 128 tokens of a head.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PrepareParams {
    /// Of the kernel's element type.
    pub source: TensorView,
    /// 16 bits `[batch · heads][tokens][row]`: rounded to nearest even, f16 of f16 and f32, and beyond ±65504 that; bf16 of bf16.
    pub prepared: Address,
    /// Of queries or keys.
    pub rotary: RotaryParams,
    /// i32 `[sequences + 1]` of the caller: where each packed sequence begins. 0 if every batch is one.
    pub starts: Address,
    /// Packed sequences.
    pub sequences: u32,
    /// Tiles of 128 tokens, of a head.
    pub tiles: u32,
    /// Channels with what pads them, zeros, to a multiple of eight; of a Hadamard rotation, the kernel's head dimension.
    pub row: u32,
    /// 1 for a Hadamard rotation, else 0.
    pub hadamard: u32,
}

/// `Quantize`: grid (at most as many CTAs as run at a time, and at most one an item).
///
/// CTAs claim items in the order of [`Order`]. While the statistics of a head are not finished, those of its tiles and
/// segments stand in the place of the codes ([`statistics`](crate::statistics)).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct QuantizeParams {
    /// Queries.
    pub query: TensorView,
    /// Keys.
    pub key: TensorView,
    /// Values.
    pub value: TensorView,
    /// Of the queries, for `QuantizeRotated`, as the next. Pairs are of whole chunks
    /// ([`RotaryPairs::are_whole_chunks`](crate::rotation::RotaryPairs::are_whole_chunks)), and all three tensors vectorized.
    pub query_rotary: RotaryParams,
    /// Of the keys.
    pub key_rotary: RotaryParams,
    /// `[batch · heads][query tiles]` of 64 rows of codes, swizzled: INT8, or INT4 as in [`int4_tile`](crate::int4_tile).
    pub query_codes: Address,
    /// f32 `[batch · heads][query tiles][QUERY_SCALES_PER_TILE]`: scales times `score_scale`.
    pub query_scales: Address,
    /// f32 `[batch · heads][query_blocks][padded head_dim]`: what is subtracted from queries; 0 for nothing.
    pub query_mean: Address,
    /// `[batch · key heads][key tiles]` of 128 rows of codes, as the queries'.
    pub key_codes: Address,
    /// f32 `[batch · key heads][key tiles][KEY_SCALES_PER_TILE]`.
    pub key_scales: Address,
    /// f32 `[batch · key heads][padded head_dim]`: what is subtracted from keys; 0 for nothing.
    pub key_mean: Address,
    /// e4m3 `[batch · key heads][key tiles][padded head_dim · 128]`: transposed, tokens reordered, swizzled. Without
    /// `value_scale`, values in 16 bits, as in [`value_tile`](crate::value_tile).
    pub value_tiles: Address,
    /// f32 `[batch · key heads][padded head_dim]`: scales; 0 for values in 16 bits, then so is the next.
    pub value_scale: Address,
    /// The same shape: what values are multiplied by before they are rounded.
    pub value_inverse_scale: Address,
    /// f32 `[batch · key heads][segments][padded head_dim]`: segment means. For values in 16 bits, what is subtracted from them,
    /// `[batch · key heads][padded head_dim]`; 0 for nothing.
    pub value_mean: Address,
    /// The same shape: segment means in units of the channel's scale; 0 for values in 16 bits.
    pub value_mean_codes: Address,
    /// f32 `[batch · heads][padded queries]`: `softmax_scale · query · key_mean` of each row; 0 if not wanted.
    pub log_sum_exp_shift: Address,
    /// u32 [`counter`](crate::schedule::counter)s. 0 before the launch.
    pub counters: Address,
    /// What there is to do, in which order.
    pub order: Order,
    /// Query heads that share a key head.
    pub heads_per_key_head: u32,
    /// A [`Granularity`](crate::scale::Granularity) as a number.
    pub granularity: u32,
    /// The softmax scale.
    pub softmax_scale: f32,
    /// The softmax scale times log₂ e, folded into the scales.
    pub score_scale: f32,
    /// Largest code of queries and keys.
    pub largest_code: f32,
    /// Bytes of a row of their codes: INT4 has half of INT8's.
    pub code_row_bytes: u32,
    /// What the largest value of a channel becomes in e4m3.
    pub value_max: f32,
    /// 1 to subtract the values' means (`smooth_v`), 0 to take them as 0.
    pub smooth_v: u32,
    /// Query tiles a head, those that pad it included.
    pub query_tiles: u32,
    /// Key tiles a head.
    pub key_tiles: u32,
    /// Segments of keys a head.
    pub segments: u32,
    /// For `QuantizeRagged`, and whoever reads what it writes. There tiles, segments and items are counted by places; and scales and means that others have for
    /// each of `[batch · key heads]`, it has for each of `[key heads][sequences]`.
    pub sequences: SequencesParams,
    /// u32 `[batch · key heads]`, 0 before the launch: how many of a head's items, other than of statistics, are done, for an attention kernel
    /// that runs at the same time; 0 if there is none.
    pub quantized_items: Address,
    /// Multiprocessors that quantize then: those with lower numbers. CTAs on others leave them to attention, but for the first CTA.
    pub multiprocessors: u32,
    /// Nothing.
    pub padding: u32,
}

/// A tensor of the caller with an element for each score: `[batch, query head, query, key]`. Strides count elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ScoreView {
    /// First element; 0 if there is none.
    pub address: Address,
    /// From one batch to the next.
    pub batch: i64,
    /// From one query head to the next.
    pub head: i64,
    /// From one query to the next.
    pub query: i64,
    /// From one key to the next.
    pub key: i64,
}

/// The type of a bias's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum BiasType {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE binary32.
    F32,
}

impl BiasType {
    /// Bytes of an element.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// What is done to scores before the softmax, in this order.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Modifiers {
    /// Scores become `soft_cap · tanh(score / soft_cap)`, in natural units; 0 for no cap.
    pub soft_cap: f32,
    /// 1 / `soft_cap`.
    pub inverse_soft_cap: f32,
    /// f32 `[batch · heads][padded queries]`: what smoothed keys took out of a row's scores, in natural units, and the cap needs; 0
    /// for nothing.
    pub score_shift: Address,
    /// Added to scores, in natural units.
    pub bias: ScoreView,
    /// u8: scores count where it is not 0.
    pub boolean_mask: ScoreView,
    /// Where [`MaskTilesParams::tiles`] are, in bytes: of a batch and head, of an item in place of a query, and of a key tile in place of a
    /// key; address 0 if there are none, and nothing is known of the mask.
    pub mask_tiles: ScoreView,
    /// The bias's [`BiasType`].
    pub bias_type: u32,
    /// Nothing.
    pub padding: u32,
}

/// `MaskTiles`: grid (batches · heads · items · key tiles). A CTA of one warp looks at one tile of the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MaskTilesParams {
    /// u8, in elements that are bytes.
    pub mask: ScoreView,
    /// u32 `[batches][heads][items][key tiles]`: see [`mask_tile`](crate::mask_tile).
    pub tiles: Address,
    /// Heads of the mask, 1 if all are the same.
    pub heads: u32,
    /// Items; 1 if all queries are the same.
    pub items: u32,
    /// Queries of an item of the attention kernel.
    pub item_queries: u32,
    /// Key tiles.
    pub key_tiles: u32,
    /// Queries of the mask, 1 if all are the same.
    pub queries: u32,
    /// Keys.
    pub keys: u32,
    /// Whether keys are adjacent, and every address of a row a multiple of 16 bytes: 1, else 0.
    pub vectorized: u32,
    /// Nothing.
    pub padding: u32,
}

/// `Attention` and `AttentionF16`: grid (at most one CTA a multiprocessor, and at most one an item).
///
/// An item is 192 queries of one head, with more than 128 channels 128 queries. Each CTA begins with the item of its index, and then claims the next one that
/// nobody has.
///
/// The `Mma` families: grid (items). An item is 128 queries of one head, and the CTA of its index does it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AttentionParams {
    /// Query codes; see [`QuantizeParams::query_codes`].
    pub query: Address,
    /// Key codes; see [`QuantizeParams::key_codes`].
    pub key: Address,
    /// Value codes, or for `AttentionF16` tiles; see [`QuantizeParams::value_tiles`].
    pub value: Address,
    /// Query scales. A multiple of 16 bytes.
    pub query_scale: Address,
    /// Key scales, likewise.
    pub key_scale: Address,
    /// Value scales; 0 for `AttentionF16`.
    pub value_scale: Address,
    /// Segment means of the values, in units of the value scales; 0 for `AttentionF16`. For `AttentionMmaFp8`, 0 if there are
    /// none; for `AttentionMmaF16`, the values' means, or 0.
    pub value_mean_codes: Address,
    /// f32 `[batch · heads][padded queries]`: what smoothed keys took out of every logit of a row, in natural units; 0 for nothing.
    pub log_sum_exp_shift: Address,
    /// f32 `[batch · query heads][query_len]`: natural logarithm of each row's sum of exponentials; 0 if not wanted.
    pub log_sum_exp: Address,
    /// u32: items that were claimed beyond each CTA's first. 0 before the launch, and 0 again after it.
    pub claimed_items: Address,
    /// f32 `[query heads]`: a logit of each head that only the denominator of its softmax has, in natural units; 0 for none.
    pub sinks: Address,
    /// The result, in the queries' shape.
    pub output: TensorView,
    /// Keys a head.
    pub key_len: u32,
    /// Which of them a query sees.
    pub visible: Band,
    /// Query heads that share a key head.
    pub heads_per_key_head: u32,
    /// Items: batch · query heads · the CTAs that it takes for their queries ([`cta_queries`](crate::tile::cta_queries) each, or
    /// [`MMA_QUERIES`](crate::tile::MMA_QUERIES)).
    pub items: u32,
    /// Key tiles after which the FP8 accumulators are emptied into f32: a divisor or a multiple of
    /// [`SEGMENT_TILES`](crate::tile::SEGMENT_TILES), at most [`TILES_PER_FLUSH`](crate::tile::TILES_PER_FLUSH). 0 for `AttentionF16`.
    pub tiles_per_flush: u32,
    /// Query heads, over all batches, that are worked on at a time: those that share a key head, or, under a mask, as
    /// many as [`cached_heads`](crate::tile::cached_heads), so that the longest items of more heads come first.
    pub heads_per_group: u32,
    /// The softmax scale times log₂ e. This and what follows are for the families that have smoothed queries
    /// ([`Family::smooths_queries`]).
    pub score_scale: f32,
    /// See [`QuantizeParams::query_mean`].
    pub query_mean: Address,
    /// See [`QuantizeParams::key_mean`].
    pub key_mean: Address,
    /// The caller's keys.
    pub keys: TensorView,
    /// With sequences of different lengths, 1 if `visible` is counted from each one's last key and query, else 0.
    pub from_last_key: u32,
    /// 1 if the output is f32, 0 if it is of the kernel's element type.
    pub output_is_f32: u32,
    /// For the families that take a ragged batch: lengths, items and operands are as in [`QuantizeParams::sequences`].
    pub sequences: SequencesParams,
    /// Elements of `log_sum_exp` from one head to the next, and from a sequence to the next beyond its queries.
    pub log_sum_exp_strides: [u64; 2],
    /// For the families that modify scores ([`Family::modifies_scores`]).
    pub modifiers: Modifiers,
    /// For `Attention` with more than 128 channels: f32 of a CTA's output for each of
    /// [`MAX_WIDE_CTAS`](crate::tile::MAX_WIDE_CTAS), or of the items if there are fewer, where it is emptied to; 0 if there are no more
    /// key tiles than `tiles_per_flush`.
    pub flushed_output: Address,
    /// [`QuantizeParams::quantized_items`], if the quantizer may still run; else 0.
    pub quantized_items: Address,
    /// How many items a key head has there.
    pub items_of_key_head: u32,
    /// Nothing.
    pub padding: u32,
}

/// A cache of quantized keys and values ([`cache`](crate::cache)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CacheView {
    /// `[pages][key heads][blocks_per_page]` blocks.
    pub pages: Address,
    /// i32 `[batch][pages_per_sequence]`: the sequences' pages. 0 if sequence `b` has those from `b · pages_per_sequence` on.
    pub page_table: Address,
    /// i32 `[batch]`: tokens that the sequences have, cut to what their pages hold. For `CacheAppend`, before the new ones.
    pub lengths: Address,
    /// Pages that there are. Others in the table are not written, and others' tokens are read in their stead.
    pub page_count: u32,
    /// Pages that a sequence may have.
    pub pages_per_sequence: u32,
    /// Blocks of a head that a page has.
    pub blocks_per_page: u32,
    /// Key heads.
    pub key_heads: u32,
}

/// `CacheAppend`: grid (batch · key heads · groups of as many tokens as a CTA takes).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CacheAppendParams {
    /// The cache. Tokens beyond what a sequence's pages hold are not written.
    pub cache: CacheView,
    /// The new keys.
    pub key: TensorView,
    /// The new values.
    pub value: TensorView,
    /// f32 `[key heads][head_dim]`: what is subtracted from keys; 0 for nothing.
    pub key_mean: Address,
}

/// `CacheAttention` and `CacheAttentionWide`: grid (batch · key heads · splits · row tiles).
///
/// A CTA does 16 rows a warp: queries of all heads that share a key head, head by head; of the sequence's blocks, one of `splits`
/// parts.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CacheAttentionParams {
    /// The cache.
    pub cache: CacheView,
    /// Queries.
    pub query: TensorView,
    /// f32 `[key heads][head_dim]`: what was subtracted from keys, where the logits' loss matters; else 0.
    pub key_mean: Address,
    /// f32 `[splits][batch · query heads · query_len][padded head_dim]`: the output of each part of the keys.
    pub partial_outputs: Address,
    /// f32 `[splits][batch · query heads · query_len]`: its log-sum-exp, in natural units.
    pub partial_log_sum_exps: Address,
    /// Which keys a query sees, before it is [`shifted`](Band::shifted) to a sequence.
    pub visible: Band,
    /// 1 if that is counted from the last key and query, else 0.
    pub from_last_key: u32,
    /// Query heads that share a key head.
    pub heads_per_key_head: u32,
    /// CTAs for the rows of a key head.
    pub row_tiles: u32,
    /// Parts of the keys.
    pub splits: u32,
    /// batch · query heads · query_len
    pub rows: u32,
    /// See [`Modifiers::soft_cap`]; 0 for no cap.
    pub soft_cap: f32,
    /// The softmax scale.
    pub softmax_scale: f32,
    /// The softmax scale times log₂ e.
    pub score_scale: f32,
}

/// `Merge`: grid (rows, [`MergeShared::ROWS`](crate::kernel::MergeShared::ROWS) a CTA).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MergeParams {
    /// The first part's output.
    pub parts: TensorView,
    /// Bytes from one part's output to the next one's.
    pub part_stride: i64,
    /// f32 `[batch · heads · tokens]`: the first part's log-sum-exps.
    pub log_sum_exps: Address,
    /// Bytes from one part's to the next one's.
    pub log_sum_exp_stride: i64,
    /// The result.
    pub output: TensorView,
    /// f32 `[batch · heads · tokens]`: its log-sum-exp; 0 if not wanted.
    pub log_sum_exp: Address,
    /// f32 `[heads]`: see [`AttentionParams::sinks`].
    pub sinks: Address,
    /// Parts, at most [`MergeShared::MAX_PARTS`](crate::kernel::MergeShared::MAX_PARTS).
    pub count: u32,
    /// 1 if the parts' outputs are f32, 0 if they are of the kernel's element type.
    pub parts_are_f32: u32,
    /// The same of the result.
    pub output_is_f32: u32,
    /// batch · heads · tokens
    pub rows: u32,
}

/// The parameters of some kernel.
#[derive(Clone, Copy, Debug)]
pub enum Params {
    /// Of `Prepare`.
    Prepare(PrepareParams),
    /// Of `MaskTiles`.
    MaskTiles(MaskTilesParams),
    /// Of the quantizers.
    Quantize(QuantizeParams),
    /// Of every attention family but those on a cache.
    Attention(AttentionParams),
    /// Of `CacheAppend`.
    CacheAppend(CacheAppendParams),
    /// Of `CacheAttention` and `CacheAttentionWide`.
    CacheAttention(CacheAttentionParams),
    /// Of `Merge`.
    Merge(MergeParams),
}

impl Params {
    /// Whether kernels of a family take them.
    pub const fn are_of(&self, family: Family) -> bool {
        match self {
            Self::Prepare(_) => matches!(family, Family::Prepare),
            Self::MaskTiles(_) => matches!(family, Family::MaskTiles),
            Self::Quantize(_) => family.quantizes(),
            Self::Attention(_) => family.attends(),
            Self::CacheAppend(_) => matches!(family, Family::CacheAppend),
            Self::CacheAttention(_) => matches!(family, Family::CacheAttention | Family::CacheAttentionWide),
            Self::Merge(_) => matches!(family, Family::Merge),
        }
    }

    /// Where the struct is.
    pub const fn as_ptr(&self) -> *const () {
        match self {
            Self::Prepare(params) => core::ptr::from_ref(params).cast(),
            Self::MaskTiles(params) => core::ptr::from_ref(params).cast(),
            Self::Quantize(params) => core::ptr::from_ref(params).cast(),
            Self::Attention(params) => core::ptr::from_ref(params).cast(),
            Self::CacheAppend(params) => core::ptr::from_ref(params).cast(),
            Self::CacheAttention(params) => core::ptr::from_ref(params).cast(),
            Self::Merge(params) => core::ptr::from_ref(params).cast(),
        }
    }
}

macro_rules! from_params {
    ($($variant:ident: $params:ident;)*) => { $(
        impl From<$params> for Params {
            fn from(params: $params) -> Self {
                Self::$variant(params)
            }
        }
    )* };
}
from_params! {
    Prepare: PrepareParams;
    MaskTiles: MaskTilesParams;
    Quantize: QuantizeParams;
    Attention: AttentionParams;
    CacheAppend: CacheAppendParams;
    CacheAttention: CacheAttentionParams;
    Merge: MergeParams;
}

const _: () = {
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<Strides>() == 24 && align_of::<Strides>() == 8);
    assert!(size_of::<TensorView>() == 48 && align_of::<TensorView>() == 8);
    assert!(offset_of!(TensorView, heads) == 32 && offset_of!(TensorView, vectorized) == 44);
    assert!(size_of::<RotaryParams>() == 32 && align_of::<RotaryParams>() == 8 && offset_of!(RotaryParams, dim) == 16);
    assert!(size_of::<PrepareParams>() == 112 && offset_of!(PrepareParams, sequences) == 96);
    assert!(size_of::<SequencesParams>() == 72 && offset_of!(SequencesParams, count) == 40);
    assert!(size_of::<Order>() == 72 && align_of::<Order>() == 8);
    assert!(size_of::<QuantizeParams>() == 520 && offset_of!(QuantizeParams, query_codes) == 208);
    assert!(offset_of!(QuantizeParams, order) == 312 && offset_of!(QuantizeParams, heads_per_key_head) == 384);
    assert!(offset_of!(QuantizeParams, sequences) == 432);
    assert!(size_of::<Band>() == 8 && align_of::<Band>() == 4);
    assert!(size_of::<ScoreView>() == 40 && size_of::<Modifiers>() == 144 && offset_of!(Modifiers, bias) == 16);
    assert!(offset_of!(Modifiers, boolean_mask) == 56 && offset_of!(Modifiers, bias_type) == 136);
    assert!(offset_of!(AttentionParams, modifiers) == 328);
    assert!(size_of::<CacheView>() == 40 && size_of::<CacheAppendParams>() == 144);
    assert!(size_of::<CacheAttentionParams>() == 152 && offset_of!(CacheAttentionParams, visible) == 112);
    assert!(size_of::<MergeParams>() == 152 && offset_of!(MergeParams, output) == 72);
    assert!(size_of::<MaskTilesParams>() == 80 && offset_of!(MaskTilesParams, heads) == 48);
    assert!(size_of::<AttentionParams>() == 496 && offset_of!(AttentionParams, output) == 88);
    assert!(
        offset_of!(AttentionParams, key_len) == 136
            && offset_of!(AttentionParams, visible) == 140
            && offset_of!(AttentionParams, items) == 152
            && offset_of!(AttentionParams, heads_per_group) == 160
            && offset_of!(AttentionParams, query_mean) == 168
            && offset_of!(AttentionParams, keys) == 184
            && offset_of!(AttentionParams, output_is_f32) == 236
            && offset_of!(AttentionParams, sequences) == 240
    );
};
