//! SageAttention's quantization modes: how Q·Kᵀ and P·V are multiplied.

/// The integers that queries and keys become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QkMode {
    /// INT8 (SageAttention).
    #[default]
    Int8,
    /// INT4 (SageAttention2).
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
#[non_exhaustive]
pub enum PvMode {
    /// Probabilities and values in e4m3.
    #[default]
    Fp8,
    /// Values as they are, probabilities in the values' 16-bit type.
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

/// Where the products of probabilities and values are added up; SageAttention's `pv_accum_dtype`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PvAccum {
    /// `fp32`: in the tensor cores' f32 accumulator.
    #[default]
    F32,
    /// `fp32+fp32`: a few keys at a time in the tensor cores, and those sums in f32.
    F32F32,
    /// `fp16`: in f16.
    F16,
    /// `fp16+fp32`: a few keys at a time in f16, and those sums in f32; 16-bit values.
    F16F32,
    /// `fp32+fp16`: a few keys at a time in f16, and those sums in f32; e4m3 values (SageAttention2++).
    F32F16,
}

impl PvAccum {
    /// Every accumulator.
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
}
