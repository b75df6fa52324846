//! How attention is computed: what SageAttention's users know by these names.

/// How queries and keys are quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum QkMode {
    /// In INT8.
    #[default]
    Int8,
    /// In INT4.
    Int4,
}

impl QkMode {
    /// Every mode.
    pub const ALL: [Self; 2] = [Self::Int8, Self::Int4];
}

/// The type of probabilities and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PvMode {
    /// e4m3.
    #[default]
    Fp8,
    /// The 16-bit type of the caller's values.
    F16,
}

impl PvMode {
    /// Every mode.
    pub const ALL: [Self; 2] = [Self::Fp8, Self::F16];
}

/// What products of probabilities and values are summed in: SageAttention's `pv_accum_dtype`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PvAccum {
    /// In f32.
    #[default]
    F32,
    /// A few keys' in a tensor core's f32, these in f32.
    F32F32,
    /// In f16.
    F16,
    /// 64 keys' in f16, these in f32; 16-bit values.
    F16F32,
    /// 64 keys' in f16, these in f32; e4m3 values of a smaller range.
    F32F16,
}

impl PvAccum {
    /// Every accumulator.
    pub const ALL: [Self; 5] = [Self::F32, Self::F32F32, Self::F16, Self::F16F32, Self::F32F16];
}
