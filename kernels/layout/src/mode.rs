//! How queries meet keys, and probabilities meet values: the choices that kernels differ in.

/// How queries and keys are quantized (SageAttention2, section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum QkMode {
    /// Codes from −127 to 127: a relative L1 of .011 on normal inputs, and what the values' mode adds.
    #[default]
    Int8,
    /// Codes from −7 to 7, two a byte: half the memory, and twice the products a clock where tensor cores have INT4 (Turing,
    /// Ampere, Ada; Hopper and Blackwell have none, and compute it slowly). Eighteen times the error of INT8: .20 on normal inputs, about .1 on real ones, whose
    /// offsets by channel have to be smoothed out of queries and keys both.
    Int4,
}

impl QkMode {
    /// Every mode.
    pub const ALL: [Self; 2] = [Self::Int8, Self::Int4];

    /// The mode in a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// How probabilities are multiplied with values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PvMode {
    /// Probabilities and values in e4m3 (SageAttention2, section 3.3).
    #[default]
    Fp8,
    /// Values as they are; probabilities in the values' 16-bit type: SageAttention's FP16 P·V, for f16 and bf16. Nearly as
    /// exact as Q·Kᵀ in INT8 allows, relative L1 on normal inputs .011 instead of .039, and slower: P·V takes the tensor
    /// cores twice as long, and twice the memory.
    F16,
}

impl PvMode {
    /// Every mode.
    pub const ALL: [Self; 2] = [Self::Fp8, Self::F16];

    /// The mode in a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fp8 => "fp8",
            Self::F16 => "16-bit",
        }
    }
}

/// What products of probabilities and values are summed in; in brackets SageAttention's `pv_accum_dtype`.
///
/// Named after what sums are kept in, and for two levels, what each chunk's own sum is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PvAccum {
    /// In the tensor cores' f32 accumulator (`fp32`). With [`PvMode::Fp8`], Ada and Hopper keep 13 bits of it; our kernels empty
    /// it into f32 often enough (see `docs/numerics.md`, "Two-level accumulation").
    #[default]
    F32,
    /// [`PvMode::Fp8`]: the accumulator starts anew for every chunk of keys, whose sum is added to f32 (`fp32+fp32`;
    /// SageAttention2, section 3.5).
    F32F32,
    /// [`PvMode::F16`]: everything in f16 (`fp16`): twice as fast where f16 accumulators are (GeForce cards). Sums keep 11 bits
    /// and end at 65504: a long row of values that have a mean can overflow, which smoothed values prevent.
    F16,
    /// [`PvMode::F16`]: in f16 within a chunk of keys, whose sum is added to f32 (`fp16+fp32`): nearly the speed of
    /// [`F16`](Self::F16), for values up to 1000 without its overflow.
    F16F32,
    /// [`PvMode::Fp8`]: in f16 within a chunk of keys, whose sum is added to f32 (`fp32+fp16`; SageAttention2++). Twice as fast
    /// as f32 accumulators on GeForce cards. Values are scaled to 2.25 instead of 448, so that no chunk's sum overflows.
    F32F16,
}

impl PvAccum {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::F32, Self::F32F32, Self::F16, Self::F16F32, Self::F32F16];

    /// SageAttention's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "fp32",
            Self::F32F32 => "fp32+fp32",
            Self::F16 => "fp16",
            Self::F16F32 => "fp16+fp32",
            Self::F32F16 => "fp32+fp16",
        }
    }

    /// The kinds that go with a mode.
    pub const fn of(mode: PvMode) -> &'static [Self] {
        match mode {
            PvMode::Fp8 => &[Self::F32, Self::F32F32, Self::F32F16],
            PvMode::F16 => &[Self::F32, Self::F16, Self::F16F32],
        }
    }
}
