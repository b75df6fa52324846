//! What to compute: [`AttentionOptions`] and its parts.

pub use sage_layout::scale::Granularity as QuantGranularity;

/// How the two sides of an unequal causal mask line up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CausalAlign {
    /// Query `i` sees keys `0 ..= i`: the first query lines up with the first key.
    TopLeft,
    /// Query `i` sees keys `0 ..= i + key_len - query_len`: the last query lines up with the last key (decoding
    /// against a cache, chunked prefill). Queries that see no key get zeros and a log-sum-exp of −∞.
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
}

/// How probabilities are multiplied with values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PvMode {
    /// Probabilities and values in e4m3, tensor-core sums emptied into f32 every 4096 keys, or every 128 without
    /// `smooth_v`: SageAttention2's `pv_accum_dtype="fp32+fp32"`.
    #[default]
    Fp8,
    /// Values as they are; probabilities in the values' 16-bit type; sums in f32: SageAttention's FP16 P·V, for f16 and
    /// bf16. Nearly as exact as Q·Kᵀ in INT8 allows, relative L1 on normal inputs .011 instead of .039, and slower:
    /// P·V takes the tensor cores twice as long, and twice the memory.
    F16,
}

impl PvMode {
    /// Every mode.
    pub const ALL: [Self; 2] = [Self::Fp8, Self::F16];
}

/// Options of an attention call. `AttentionOptions::default()` is SageAttention2's default on Hopper, with values smoothed too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// How many queries and keys share an INT8 scale. Finer is more exact and costs nothing. Default: per thread.
    pub granularity: QuantGranularity,
    /// How probabilities are multiplied with values. Default: FP8.
    pub pv_mode: PvMode,
    /// Subtract the keys' channel mean before quantizing; softmax does not notice (SageAttention, section 4.2). Default: on.
    pub smooth_k: bool,
    /// Subtract the values' channel mean over each segment of keys before quantizing, and add it back to the output
    /// (SageAttention2, section 3.4), so that FP8 sums stay exact enough at any length. Up to 128 keys nothing is
    /// subtracted: their sums are short, and real activations were measured to be more exact as they are. Default: on.
    ///
    /// It is about how values are quantized: with [`PvMode::F16`] they are not, and on and off are the same computation.
    pub smooth_v: bool,
    /// Which keys a query sees. Default: all.
    pub mask: Mask,
    /// What `query · key` is multiplied by before the exponential; finite and positive. Default: `head_dim`^-½.
    pub softmax_scale: Option<f32>,
    /// Also return the natural logarithm of each row's sum of exponentials, `[batch, query_heads, query_len]`, f32.
    /// Default: no.
    pub return_lse: bool,
}

impl Default for AttentionOptions {
    fn default() -> Self {
        Self {
            granularity: QuantGranularity::PerThread,
            pv_mode: PvMode::Fp8,
            smooth_k: true,
            smooth_v: true,
            mask: Mask::None,
            softmax_scale: None,
            return_lse: false,
        }
    }
}
