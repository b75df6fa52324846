//! What to compute: [`AttentionOptions`] and its parts.

pub use sage_layout::architecture::ComputeCapability;
pub use sage_layout::mode::{PvAccum, PvMode, QkMode};
pub use sage_layout::scale::Granularity as QuantGranularity;

use crate::tensor::SequenceLengths;
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
    /// Which keys a query sees. Default: all.
    pub mask: Mask,
    /// What `query · key` is multiplied by before the exponential; finite and positive. Default: `head_dim`^-½.
    pub softmax_scale: Option<f32>,
    /// Attention sinks: each query head has one more logit, which no value belongs to. It is in the denominator of the softmax and
    /// in the log-sum-exp, is not multiplied by `softmax_scale`, and comes with the call ([`ScoreInputs::sinks`] or
    /// [`GpuBuffers::sinks`](crate::GpuBuffers::sinks)). A query that sees no key has zeros and its head's sink as log-sum-exp.
    /// Default: none.
    pub sinks: bool,
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
            mask: Mask::None,
            softmax_scale: None,
            sinks: false,
            return_lse: false,
        }
    }
}

/// What a call reads besides queries, keys and values: each if the options ask for it, and only then.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoreInputs<'a> {
    /// `[query_heads]`: each head's sink, in natural units; finite, or −∞ for a head that has none. See
    /// [`AttentionOptions::sinks`].
    pub sinks: Option<&'a [f32]>,
    /// How long the sequences are, of the problem's kind ([`Lengths`](crate::Lengths)).
    pub lengths: SequenceLengths<&'a [i32]>,
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
