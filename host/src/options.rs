//! What to compute: [`AttentionOptions`] and its parts.

pub use sage_layout::architecture::ComputeCapability;
pub use sage_layout::mode::{PvAccum, PvMode, QkMode};
pub use sage_layout::params::BiasType;
pub use sage_layout::rotation::RotaryPairs;
pub use sage_layout::scale::Granularity as QuantGranularity;

use crate::tensor::SequenceLengths;
use half::{bf16, f16};
use sage_layout::dispatch::{self, Defaults};

/// How queries and keys line up, where there are more of the one than of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CausalAlign {
    /// Query `i` lines up with key `i`, the first query with the first key. Under a causal mask it sees keys `0 ..= i`.
    TopLeft,
    /// Query `i` lines up with key `i + key_len - query_len`, the last query with the last key (decoding against a cache, chunked
    /// prefill). Queries that see no key get zeros and a log-sum-exp of −∞.
    BottomRight,
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mask {
    /// Every key.
    #[default]
    None,
    /// No key after the query. Only for equal query and key lengths, where both alignments mean the same.
    Causal,
    /// No key after the query, with the stated alignment; any lengths.
    CausalAligned(CausalAlign),
    /// A sliding window around the key that the query lines up with: from `left` keys before it to `right` keys after it, both
    /// included; `None` is no bound. So `right: Some(0)` is causal, and `left: Some(4095), right: Some(0)` is 4096 keys, the
    /// query's own among them. Tiles of keys that no query of a group sees are skipped, so that time grows with the window.
    Window {
        /// Keys before the query's own.
        left: Option<u32>,
        /// Keys after it.
        right: Option<u32>,
        /// Which key is the query's own.
        align: CausalAlign,
    },
}

/// Distances, in elements, between neighbours of a tensor that has an element for each logit. 0 repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ScoreStrides {
    /// From one batch to the next.
    pub batch: i64,
    /// From one query head to the next.
    pub head: i64,
    /// From one query to the next.
    pub query: i64,
    /// From one key to the next.
    pub key: i64,
}

impl ScoreStrides {
    /// Of a tensor `[batch, query_heads, query_len, key_len]` of these sizes, contiguous.
    pub fn contiguous([_, heads, queries, keys]: [usize; 4]) -> Self {
        let [heads, queries, keys] = [heads, queries, keys].map(|size| size as i64);
        Self { batch: heads * queries * keys, head: queries * keys, query: keys, key: 1 }
    }

    /// Of one of these sizes, of which those that are 1 stand for all.
    pub fn broadcast(sizes @ [batch, heads, queries, keys]: [usize; 4]) -> Self {
        let strides = Self::contiguous(sizes);
        let unless_one = |size: usize, stride: i64| if size == 1 { 0 } else { stride };
        Self {
            batch: unless_one(batch, strides.batch),
            head: unless_one(heads, strides.head),
            query: unless_one(queries, strides.query),
            key: unless_one(keys, strides.key),
        }
    }

    /// Where an element lies.
    pub(crate) fn offset(&self, [batch, head, query, key]: [usize; 4]) -> usize {
        let places = [(batch, self.batch), (head, self.head), (query, self.query), (key, self.key)];
        places.into_iter().map(|(index, stride)| index * stride as usize).sum()
    }

    /// Each axis with its stride.
    pub(crate) fn axes(&self) -> [(&'static str, i64); 4] {
        [("batch", self.batch), ("head", self.head), ("query", self.query), ("key", self.key)]
    }

    /// Elements that a tensor of this shape reaches over; `None` if their bytes can't be counted.
    pub(crate) fn extent(&self, shape: [usize; 4]) -> Option<u64> {
        let mut last: u64 = 0;
        for (size, (_, stride)) in shape.into_iter().zip(self.axes()) {
            last = last.checked_add((size as u64 - 1).checked_mul(u64::try_from(stride).ok()?)?)?;
        }
        (last < 1 << 61).then_some(last + 1)
    }
}

/// What a bias is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bias {
    /// Its elements' type.
    pub dtype: BiasType,
    /// Where they are.
    pub strides: ScoreStrides,
}

/// A rotary embedding: pairs of channels of queries and keys are turned by an angle that grows with the position of their token, its
/// index in its sequence plus an offset. Cosines and sines of the angles come with the call ([`RotaryTables`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rotary {
    /// Channels that are turned, the first of each head: even, at most `head_dim`. Others stay as they are.
    pub dim: usize,
    /// Which of them are pairs.
    pub pairs: RotaryPairs,
    /// Positions that the tables have.
    pub positions: usize,
    /// Position of a sequence's first query.
    pub query_offset: usize,
    /// Position of a sequence's first key.
    pub key_offset: usize,
}

impl Rotary {
    /// Elements of a table.
    pub(crate) fn table_len(&self) -> usize {
        self.positions * (self.dim / 2)
    }
}

/// Tables of a [`Rotary`] embedding, f32 `[positions, dim / 2]`: device addresses in [`GpuBuffers`](crate::GpuBuffers) (`u64`), slices in
/// [`CallInputs`] (`&[f32]`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RotaryTables<A> {
    /// Cosines.
    pub cos: A,
    /// Sines.
    pub sin: A,
}

impl<A> RotaryTables<A> {
    /// Both made into others, each by its name and itself.
    pub fn try_map<B, E>(self, mut f: impl FnMut(&'static str, A) -> Result<B, E>) -> Result<RotaryTables<B>, E> {
        Ok(RotaryTables { cos: f("rotary cos", self.cos)?, sin: f("rotary sin", self.sin)? })
    }
}

/// Options of an attention call. `AttentionOptions::default()` is SageAttention2's default on Hopper, with values smoothed too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// How many queries and keys share a scale. Finer is more exact and costs nothing. Default: per thread.
    pub granularity: QuantGranularity,
    /// How queries and keys are quantized. Default: INT8.
    pub qk_mode: QkMode,
    /// How probabilities are multiplied with values. Default: FP8.
    pub pv_mode: PvMode,
    /// What their products are summed in: [`PvAccum::of`] the mode, and with bf16 values in 16 bits only
    /// [`PvAccum::F32`], which is the default.
    pub pv_accum: PvAccum,
    /// Subtract from queries the channel mean of every 128 before quantizing, and add its product with the keys back to the
    /// scores in f32 (SageAttention2, section 3.1). INT4 needs it; INT8 gains where queries have offsets by
    /// channel, on real tensors a quarter of its error. It costs a product of each 128 queries' mean with every key, in f32.
    /// Default: off.
    pub smooth_q: bool,
    /// Subtract the keys' channel mean before quantizing; softmax does not notice (SageAttention, section 4.2). Default: on.
    pub smooth_k: bool,
    /// Subtract the values' channel mean before rounding them, and add it back to the output (SageAttention2, section
    /// 3.4). Default: on.
    ///
    /// - [`PvMode::Fp8`] with [`PvAccum::F32`]: the mean over each segment of 1024 keys, so that FP8 sums stay exact enough at any
    ///   length. Up to 128 keys nothing is subtracted: their sums are short, and real activations were measured to be more
    ///   exact as they are.
    /// - [`PvMode::F16`] with [`PvAccum::F16`]: the mean over all keys, so that f16 sums stay small.
    /// - With all others there is no long sum that could lose by a mean: on and off are the same computation.
    pub smooth_v: bool,
    /// A rotary embedding of queries and keys, before anything else is done to them; its tables come with the call
    /// ([`CallInputs::rotary`] or [`GpuBuffers::rotary`](crate::GpuBuffers::rotary)). Default: none.
    pub rotary: Option<Rotary>,
    /// Rotate queries and keys by a Hadamard matrix, after the rotary embedding: exact attention does not notice, and what is large in
    /// one channel is spread over all. Real tensors lose a quarter to a third of their error by it. It costs a launch for queries and one for
    /// keys. Default: off.
    pub hadamard: bool,
    /// Which keys a query sees. Default: all.
    pub mask: Mask,
    /// What `query · key` is multiplied by before the exponential; finite and positive. Default: `head_dim`^-½.
    pub softmax_scale: Option<f32>,
    /// Attention sinks: each query head has one more logit, which no value belongs to. It is in the denominator of the softmax and
    /// in the log-sum-exp, is not multiplied by `softmax_scale`, and comes with the call ([`CallInputs::sinks`] or
    /// [`GpuBuffers::sinks`](crate::GpuBuffers::sinks)). A query that sees no key has zeros and its head's sink as log-sum-exp.
    /// Default: none.
    pub sinks: bool,
    /// A soft cap: logits become `soft_cap · tanh(logit / soft_cap)` after `softmax_scale`, before bias and masks; finite and
    /// positive. Default: none.
    pub soft_cap: Option<f32>,
    /// A bias: a number for each logit, `[batch, query_heads, query_len, key_len]`, added after scale and cap, in natural units; it
    /// comes with the call ([`CallInputs::bias`] or [`GpuBuffers::bias`](crate::GpuBuffers::bias)). Finite or −∞, which hides a key;
    /// what is below −10²⁹ may hide it too. Not with packed sequences, whose logits are no such tensor. Default: none.
    pub bias: Option<Bias>,
    /// A boolean mask: a byte for each logit, `[batch, query_heads, query_len, key_len]`, not 0 where the query sees the key, if `mask`
    /// shows it too; it comes with the call ([`CallInputs::boolean_mask`] or
    /// [`GpuBuffers::boolean_mask`](crate::GpuBuffers::boolean_mask)). Not with packed sequences. Default: none.
    pub boolean_mask: Option<ScoreStrides>,
    /// Also return the natural logarithm of each row's sum of exponentials, `[batch, query_heads, query_len]`, f32.
    /// Default: no.
    pub return_lse: bool,
}

impl Default for AttentionOptions {
    fn default() -> Self {
        Self {
            granularity: QuantGranularity::PerThread,
            qk_mode: QkMode::Int8,
            pv_mode: PvMode::Fp8,
            pv_accum: PvAccum::F32,
            smooth_q: false,
            smooth_k: true,
            smooth_v: true,
            rotary: None,
            hadamard: false,
            mask: Mask::None,
            softmax_scale: None,
            sinks: false,
            soft_cap: None,
            bias: None,
            boolean_mask: None,
            return_lse: false,
        }
    }
}

/// What a call reads besides queries, keys and values: each if the problem or the options ask for it, and only then.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CallInputs<'a> {
    /// `[query_heads]`: each head's sink, in natural units; finite, or −∞ for a head that has none. See
    /// [`AttentionOptions::sinks`].
    pub sinks: Option<&'a [f32]>,
    /// How long the sequences are, of the problem's kind ([`Lengths`](crate::Lengths)).
    pub lengths: SequenceLengths<&'a [i32]>,
    /// See [`AttentionOptions::bias`].
    pub bias: Option<BiasSlice<'a>>,
    /// See [`AttentionOptions::boolean_mask`].
    pub boolean_mask: Option<&'a [u8]>,
    /// See [`AttentionOptions::rotary`]; finite.
    pub rotary: Option<RotaryTables<&'a [f32]>>,
}

/// A bias in host memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BiasSlice<'a> {
    /// In binary16.
    F16(&'a [f16]),
    /// In bfloat16.
    Bf16(&'a [bf16]),
    /// In binary32.
    F32(&'a [f32]),
}

impl<'a> BiasSlice<'a> {
    /// The type of its elements.
    pub fn dtype(&self) -> BiasType {
        match self {
            Self::F16(_) => BiasType::F16,
            Self::Bf16(_) => BiasType::Bf16,
            Self::F32(_) => BiasType::F32,
        }
    }

    /// Its elements.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F16(elements) => elements.len(),
            Self::Bf16(elements) => elements.len(),
            Self::F32(elements) => elements.len(),
        }
    }

    /// An element.
    pub(crate) fn get(&self, index: usize) -> f32 {
        match self {
            Self::F16(elements) => elements[index].to_f32(),
            Self::Bf16(elements) => elements[index].to_f32(),
            Self::F32(elements) => elements[index],
        }
    }

    /// Its elements from one on.
    pub(crate) fn starting_at(self, first: usize) -> Self {
        match self {
            Self::F16(elements) => Self::F16(&elements[first..]),
            Self::Bf16(elements) => Self::Bf16(&elements[first..]),
            Self::F32(elements) => Self::F32(&elements[first..]),
        }
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::F16(elements) => bytemuck::cast_slice(elements),
            Self::Bf16(elements) => bytemuck::cast_slice(elements),
            Self::F32(elements) => bytemuck::cast_slice(elements),
        }
    }
}

impl AttentionOptions {
    /// SageAttention's own choice for a GPU of this compute capability; on Hopper, and where it has none, ours.
    ///
    /// | capability | queries and keys | P·V | sums | granularity |
    /// |---|---|---|---|---|
    /// | up to 8.8 (Turing, Ampere) | INT8 | 16 bits | f32 | per thread |
    /// | 8.9 (Ada) | INT8 | FP8 | f16, added to f32 every 64 keys | per thread |
    /// | 9.x (Hopper) | INT8 | FP8 | f32 | per thread |
    /// | 10.x, 11.x (Blackwell in data centers) | INT8 | FP8 | f32, added to f32 every 64 keys | per thread |
    /// | 12.0 and up (other Blackwell) | INT8 | FP8 | f16, added to f32 every 64 keys | per warp |
    pub fn auto(capability: ComputeCapability) -> Self {
        let Defaults { granularity, modes } = dispatch::defaults(capability);
        Self {
            granularity,
            qk_mode: modes.query_key,
            pv_mode: modes.value,
            pv_accum: modes.accumulator,
            ..Self::default()
        }
    }
}
