//! The kernel table: every GPU program, its symbol, its launch shape, shared memory and barriers.
//!
//! [`for_each_kernel!`](crate::for_each_kernel) is the one list. This module makes [`Kernel`] of it, `sage-kernels`
//! makes the entry points, and `cargo xtask check-ptx` compares the compiled PTX with it.

use crate::architecture::Architecture;
use crate::cache;
use crate::scale::{KEY_SCALES_PER_TILE, QUERY_SCALES_PER_TILE};
use crate::sequence::Sequence;
use crate::tile::{
    KEY_CHUNK, MMA_QUERIES, VALUE_ROW_BYTES, WARP_ROWS, WARPGROUP_ROWS, consumer_warpgroups, key_tile_bytes,
    query_tile_bytes, stored_head_dim, value_tile_bytes,
};

/// Element type of the caller's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE binary32.
    F32,
}

impl ElementType {
    /// What quantizers and attention kernels take instead: binary32 is rounded to binary16 first ([`Family::Prepare`]).
    pub const fn rounded(self) -> Self {
        match self {
            Self::F16 | Self::F32 => Self::F16,
            Self::Bf16 => Self::Bf16,
        }
    }
}

/// Makes [`Family`] of the families, each with the architectures whose PTX it is compiled to.
macro_rules! define_family {
    ($($(#[$documentation:meta])* $family:ident: $architectures:expr;)*) => {
        /// What a kernel does; its instantiations differ in head dimension and element type.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Family { $($(#[$documentation])* $family),* }

        impl Family {
            /// Every family.
            pub const ALL: &[Self] = &[$(Self::$family),*];

            /// Its name, which is also the `--cfg` that it is compiled with.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$family => stringify!($family)),* }
            }

            /// The architectures whose PTX it is compiled to.
            pub const fn architectures(self) -> &'static [Architecture] {
                match self { $(Self::$family => &const { $architectures }),* }
            }

            /// Whether its kernels are among those of an architecture.
            ///
            /// What takes smoothed queries has no machine code of GPUs newer than Ada, whose INT4 has no tensor cores, and what is about a
            /// cache none of Ampere's smaller GPUs; the quantizers that rotate and those of ragged batches, and what modifies scores with
            /// `mma.sync`, have none of either. Their drivers compile the PTX.
            pub fn exists_for(self, architecture: Architecture) -> bool {
                use Architecture::{Sm86, Sm100, Sm120};
                let only_ptx = match (self, architecture) {
                    (Self::QuantizeRotated | Self::QuantizeRagged | Self::MaskTiles, Sm86 | Sm100 | Sm120) => true,
                    (_, Sm86 | Sm100 | Sm120) if self.modifies_scores() => true,
                    (_, Sm100 | Sm120) => self.smooths_queries(),
                    (_, Sm86) => self.is_about_a_cache(),
                    _ => false,
                };
                self.architectures().contains(&architecture.ptx()) && !only_ptx
            }
        }
    };
}

define_family! {
    /// Queries, keys or values to 16 bits, rotated if they are to be, before they are quantized.
    Prepare: [Architecture::Sm75, Architecture::Sm80, Architecture::Sm89, Architecture::Sm90a];
    /// Queries and keys to INT8 tiles, values to transposed tiles in e4m3 or 16 bits, with the statistics that takes.
    Quantize: [Architecture::Sm75, Architecture::Sm80, Architecture::Sm89, Architecture::Sm90a];
    /// The same, with smoothed queries, or queries and keys in INT4.
    QuantizeSmoothed: [Architecture::Sm80, Architecture::Sm89];
    /// [`Quantize`](Self::Quantize) with queries and keys rotated.
    QuantizeRotated: [Architecture::Sm75, Architecture::Sm80, Architecture::Sm89, Architecture::Sm90a];
    /// [`Quantize`](Self::Quantize) for sequences of different lengths.
    QuantizeRagged: [Architecture::Sm80, Architecture::Sm89, Architecture::Sm90a];
    /// Attention on INT8 queries and keys and e4m3 values, for Hopper.
    Attention: [Architecture::Sm90a];
    /// Attention on INT8 queries and keys and 16-bit values, for Hopper.
    AttentionF16: [Architecture::Sm90a];
    /// [`Attention`](Self::Attention) for sequences of different lengths.
    AttentionRagged: [Architecture::Sm90a];
    /// [`AttentionF16`](Self::AttentionF16) for sequences of different lengths.
    AttentionF16Ragged: [Architecture::Sm90a];
    /// [`Attention`](Self::Attention) with scores modified: soft cap, bias, boolean mask.
    AttentionModified: [Architecture::Sm90a];
    /// [`AttentionF16`](Self::AttentionF16) with scores modified.
    AttentionModifiedF16: [Architecture::Sm90a];
    /// What a boolean mask shows of key tiles ([`mask_tile`](crate::mask_tile)), before the families that modify scores; whatever the head
    /// dimension and the element type, of which its row has some.
    MaskTiles: [Architecture::Sm80, Architecture::Sm89, Architecture::Sm90a];
    /// Attention with `mma.sync` on INT8 queries and keys and 16-bit values, summed in f32.
    MmaF16F32: [Architecture::Sm80, Architecture::Sm89];
    /// … summed in f16.
    MmaF16F16: [Architecture::Sm80, Architecture::Sm89];
    /// … summed in f16 for 64 keys at a time, and these sums in f32.
    MmaF16F16F32: [Architecture::Sm80, Architecture::Sm89];
    /// Attention with Turing's `mma.sync` on INT8 queries and keys and f16 values, summed in f32.
    TuringF16F32: [Architecture::Sm75];
    /// … summed in f16.
    TuringF16F16: [Architecture::Sm75];
    /// … summed in f16 for 64 keys at a time, and these sums in f32.
    TuringF16F16F32: [Architecture::Sm75];
    /// Attention with `mma.sync` on INT8 queries and keys and e4m3 values, summed in the tensor cores' accumulator.
    MmaFp8F32: [Architecture::Sm89];
    /// … summed there for 64 keys at a time, and these sums in f32.
    MmaFp8F32F32: [Architecture::Sm89];
    /// … summed in f16 for 64 keys at a time, and these sums in f32.
    MmaFp8F32F16: [Architecture::Sm89];
    /// [`MmaF16F32`](Self::MmaF16F32) with scores modified, in place of [`MmaF16F16`](Self::MmaF16F16) and
    /// [`MmaF16F16F32`](Self::MmaF16F16F32) too.
    MmaModifiedF16: [Architecture::Sm80];
    /// [`MmaFp8F32F32`](Self::MmaFp8F32F32) with scores modified, in place of [`MmaFp8F32`](Self::MmaFp8F32) and
    /// [`MmaFp8F32F16`](Self::MmaFp8F32F16) too.
    MmaModifiedFp8: [Architecture::Sm89];
    /// [`MmaF16F32`](Self::MmaF16F32) with smoothed queries.
    MmaSmoothedF16F32: [Architecture::Sm80, Architecture::Sm89];
    /// [`MmaF16F16`](Self::MmaF16F16) with smoothed queries.
    MmaSmoothedF16F16: [Architecture::Sm80, Architecture::Sm89];
    /// [`MmaF16F16F32`](Self::MmaF16F16F32) with smoothed queries.
    MmaSmoothedF16F16F32: [Architecture::Sm80, Architecture::Sm89];
    /// [`MmaFp8F32`](Self::MmaFp8F32) with smoothed queries.
    MmaSmoothedFp8F32: [Architecture::Sm89];
    /// [`MmaFp8F32F32`](Self::MmaFp8F32F32) with smoothed queries.
    MmaSmoothedFp8F32F32: [Architecture::Sm89];
    /// [`MmaFp8F32F16`](Self::MmaFp8F32F16) with smoothed queries.
    MmaSmoothedFp8F32F16: [Architecture::Sm89];
    /// [`MmaF16F32`](Self::MmaF16F32) with queries and keys in INT4, smoothed or not.
    MmaInt4F16F32: [Architecture::Sm80, Architecture::Sm89];
    /// [`MmaF16F16`](Self::MmaF16F16) with queries and keys in INT4, smoothed or not.
    MmaInt4F16F16: [Architecture::Sm80, Architecture::Sm89];
    /// [`MmaF16F16F32`](Self::MmaF16F16F32) with queries and keys in INT4, smoothed or not.
    MmaInt4F16F16F32: [Architecture::Sm80, Architecture::Sm89];
    /// [`MmaFp8F32`](Self::MmaFp8F32) with queries and keys in INT4, smoothed or not.
    MmaInt4Fp8F32: [Architecture::Sm89];
    /// [`MmaFp8F32F32`](Self::MmaFp8F32F32) with queries and keys in INT4, smoothed or not.
    MmaInt4Fp8F32F32: [Architecture::Sm89];
    /// [`MmaFp8F32F16`](Self::MmaFp8F32F16) with queries and keys in INT4, smoothed or not.
    MmaInt4Fp8F32F16: [Architecture::Sm89];
    /// Keys and values to the blocks of a cache.
    CacheAppend: [Architecture::Sm80, Architecture::Sm90a];
    /// Attention with `mma.sync` of up to 16 rows on a part of a cache.
    CacheAttention: [Architecture::Sm80, Architecture::Sm90a];
    /// The same of up to 64 rows, which share what is copied.
    CacheAttentionWide: [Architecture::Sm80, Architecture::Sm90a];
    /// Attention on parts of the keys to attention on all.
    Merge: [Architecture::Sm80, Architecture::Sm90a];
}

impl Family {
    /// Whether its kernels quantize, before those of attention.
    pub const fn quantizes(self) -> bool {
        matches!(self, Self::Quantize | Self::QuantizeRotated | Self::QuantizeSmoothed | Self::QuantizeRagged)
    }

    /// Whether its kernels do attention.
    pub const fn attends(self) -> bool {
        !self.quantizes() && !self.is_about_a_cache() && !matches!(self, Self::Prepare | Self::MaskTiles)
    }

    /// The quantizer that goes with an attention family, for sequences of different lengths if `ragged`, and with queries and keys rotated
    /// if `rotated`; of sequences of different lengths and of smoothed queries there is none that rotates.
    pub const fn quantizer(self, ragged: bool, rotated: bool) -> Self {
        match (self.smooths_queries(), ragged, rotated) {
            (true, ..) => Self::QuantizeSmoothed,
            (false, true, _) => Self::QuantizeRagged,
            (false, false, true) => Self::QuantizeRotated,
            (false, false, false) => Self::Quantize,
        }
    }

    /// Whether its kernels are Hopper's, whose CTAs take items until none is left.
    pub const fn is_persistent(self) -> bool {
        matches!(
            self,
            Self::Attention
                | Self::AttentionF16
                | Self::AttentionRagged
                | Self::AttentionF16Ragged
                | Self::AttentionModified
                | Self::AttentionModifiedF16
        )
    }

    /// Whether its kernels are those of a cache, which take parameters of their own.
    pub const fn is_about_a_cache(self) -> bool {
        matches!(self, Self::CacheAppend | Self::CacheAttention | Self::CacheAttentionWide | Self::Merge)
    }

    /// Whether its kernels modify scores: soft cap, bias, boolean mask.
    pub const fn modifies_scores(self) -> bool {
        matches!(
            self,
            Self::AttentionModified | Self::AttentionModifiedF16 | Self::MmaModifiedF16 | Self::MmaModifiedFp8
        )
    }

    /// Whether its kernels take smoothed queries.
    pub const fn smooths_queries(self) -> bool {
        self.is_smoothed_int8() || self.is_int4() || matches!(self, Self::QuantizeSmoothed)
    }

    const fn is_smoothed_int8(self) -> bool {
        use Family::*;
        matches!(
            self,
            MmaSmoothedF16F32
                | MmaSmoothedF16F16
                | MmaSmoothedF16F16F32
                | MmaSmoothedFp8F32
                | MmaSmoothedFp8F32F32
                | MmaSmoothedFp8F32F16
        )
    }

    const fn is_int4(self) -> bool {
        use Family::*;
        matches!(
            self,
            MmaInt4F16F32 | MmaInt4F16F16 | MmaInt4F16F16F32 | MmaInt4Fp8F32 | MmaInt4Fp8F32F32 | MmaInt4Fp8F32F16
        )
    }

    /// Of an `mma.sync` family, the chunks of keys and values in shared memory.
    const fn stages(self) -> u32 {
        match self {
            Self::TuringF16F32 | Self::TuringF16F16 | Self::TuringF16F16F32 => TURING_STAGES,
            _ => MMA_STAGES,
        }
    }

    /// Of an `mma.sync` family, the bytes of a value.
    const fn value_bytes(self) -> u32 {
        use Family::*;
        match self {
            MmaFp8F32 | MmaFp8F32F32 | MmaFp8F32F16 | MmaModifiedFp8 => 1,
            MmaSmoothedFp8F32 | MmaSmoothedFp8F32F32 | MmaSmoothedFp8F32F16 => 1,
            MmaInt4Fp8F32 | MmaInt4Fp8F32F32 | MmaInt4Fp8F32F16 => 1,
            _ => 2,
        }
    }
}

/// Calls a macro with the kernel table: rows of `Variant = "symbol": Family, head dimension, element type;`.
#[macro_export]
macro_rules! for_each_kernel {
    ($callback:ident) => {
        $callback! {
            MaskTilesD64F16 = "sage_mask_tiles_d64_f16": MaskTiles, 64, F16;
            PrepareD64F16 = "sage_prepare_d64_f16": Prepare, 64, F16;
            PrepareD64Bf16 = "sage_prepare_d64_bf16": Prepare, 64, Bf16;
            PrepareD64F32 = "sage_prepare_d64_f32": Prepare, 64, F32;
            PrepareD128F16 = "sage_prepare_d128_f16": Prepare, 128, F16;
            PrepareD128Bf16 = "sage_prepare_d128_bf16": Prepare, 128, Bf16;
            PrepareD128F32 = "sage_prepare_d128_f32": Prepare, 128, F32;
            PrepareD256F16 = "sage_prepare_d256_f16": Prepare, 256, F16;
            PrepareD256Bf16 = "sage_prepare_d256_bf16": Prepare, 256, Bf16;
            PrepareD256F32 = "sage_prepare_d256_f32": Prepare, 256, F32;
            QuantizeD64F16 = "sage_quantize_d64_f16": Quantize, 64, F16;
            QuantizeD64Bf16 = "sage_quantize_d64_bf16": Quantize, 64, Bf16;
            QuantizeD128F16 = "sage_quantize_d128_f16": Quantize, 128, F16;
            QuantizeD128Bf16 = "sage_quantize_d128_bf16": Quantize, 128, Bf16;
            QuantizeD256F16 = "sage_quantize_d256_f16": Quantize, 256, F16;
            QuantizeD256Bf16 = "sage_quantize_d256_bf16": Quantize, 256, Bf16;
            QuantizeRotatedD64F16 = "sage_quantize_rotated_d64_f16": QuantizeRotated, 64, F16;
            QuantizeRotatedD64Bf16 = "sage_quantize_rotated_d64_bf16": QuantizeRotated, 64, Bf16;
            QuantizeRotatedD128F16 = "sage_quantize_rotated_d128_f16": QuantizeRotated, 128, F16;
            QuantizeRotatedD128Bf16 = "sage_quantize_rotated_d128_bf16": QuantizeRotated, 128, Bf16;
            QuantizeRotatedD256F16 = "sage_quantize_rotated_d256_f16": QuantizeRotated, 256, F16;
            QuantizeRotatedD256Bf16 = "sage_quantize_rotated_d256_bf16": QuantizeRotated, 256, Bf16;
            QuantizeSmoothedD64F16 = "sage_quantize_smoothed_d64_f16": QuantizeSmoothed, 64, F16;
            QuantizeSmoothedD64Bf16 = "sage_quantize_smoothed_d64_bf16": QuantizeSmoothed, 64, Bf16;
            QuantizeSmoothedD128F16 = "sage_quantize_smoothed_d128_f16": QuantizeSmoothed, 128, F16;
            QuantizeSmoothedD128Bf16 = "sage_quantize_smoothed_d128_bf16": QuantizeSmoothed, 128, Bf16;
            QuantizeRaggedD64F16 = "sage_quantize_ragged_d64_f16": QuantizeRagged, 64, F16;
            QuantizeRaggedD64Bf16 = "sage_quantize_ragged_d64_bf16": QuantizeRagged, 64, Bf16;
            QuantizeRaggedD128F16 = "sage_quantize_ragged_d128_f16": QuantizeRagged, 128, F16;
            QuantizeRaggedD128Bf16 = "sage_quantize_ragged_d128_bf16": QuantizeRagged, 128, Bf16;
            QuantizeRaggedD256F16 = "sage_quantize_ragged_d256_f16": QuantizeRagged, 256, F16;
            QuantizeRaggedD256Bf16 = "sage_quantize_ragged_d256_bf16": QuantizeRagged, 256, Bf16;
            AttentionD64F16 = "sage_attention_hopper_d64_f16": Attention, 64, F16;
            AttentionD64Bf16 = "sage_attention_hopper_d64_bf16": Attention, 64, Bf16;
            AttentionD96F16 = "sage_attention_hopper_d96_f16": Attention, 96, F16;
            AttentionD96Bf16 = "sage_attention_hopper_d96_bf16": Attention, 96, Bf16;
            AttentionD128F16 = "sage_attention_hopper_d128_f16": Attention, 128, F16;
            AttentionD128Bf16 = "sage_attention_hopper_d128_bf16": Attention, 128, Bf16;
            AttentionD192F16 = "sage_attention_hopper_d192_f16": Attention, 192, F16;
            AttentionD192Bf16 = "sage_attention_hopper_d192_bf16": Attention, 192, Bf16;
            AttentionD256F16 = "sage_attention_hopper_d256_f16": Attention, 256, F16;
            AttentionD256Bf16 = "sage_attention_hopper_d256_bf16": Attention, 256, Bf16;
            AttentionF16D64F16 = "sage_attention_hopper_f16_d64_f16": AttentionF16, 64, F16;
            AttentionF16D64Bf16 = "sage_attention_hopper_f16_d64_bf16": AttentionF16, 64, Bf16;
            AttentionF16D96F16 = "sage_attention_hopper_f16_d96_f16": AttentionF16, 96, F16;
            AttentionF16D96Bf16 = "sage_attention_hopper_f16_d96_bf16": AttentionF16, 96, Bf16;
            AttentionF16D128F16 = "sage_attention_hopper_f16_d128_f16": AttentionF16, 128, F16;
            AttentionF16D128Bf16 = "sage_attention_hopper_f16_d128_bf16": AttentionF16, 128, Bf16;
            AttentionF16D192F16 = "sage_attention_hopper_f16_d192_f16": AttentionF16, 192, F16;
            AttentionF16D192Bf16 = "sage_attention_hopper_f16_d192_bf16": AttentionF16, 192, Bf16;
            AttentionF16D256F16 = "sage_attention_hopper_f16_d256_f16": AttentionF16, 256, F16;
            AttentionF16D256Bf16 = "sage_attention_hopper_f16_d256_bf16": AttentionF16, 256, Bf16;
            AttentionRaggedD64F16 = "sage_attention_hopper_ragged_d64_f16": AttentionRagged, 64, F16;
            AttentionRaggedD64Bf16 = "sage_attention_hopper_ragged_d64_bf16": AttentionRagged, 64, Bf16;
            AttentionRaggedD128F16 = "sage_attention_hopper_ragged_d128_f16": AttentionRagged, 128, F16;
            AttentionRaggedD128Bf16 = "sage_attention_hopper_ragged_d128_bf16": AttentionRagged, 128, Bf16;
            AttentionF16RaggedD64F16 = "sage_attention_hopper_f16_ragged_d64_f16": AttentionF16Ragged, 64, F16;
            AttentionF16RaggedD64Bf16 = "sage_attention_hopper_f16_ragged_d64_bf16": AttentionF16Ragged, 64, Bf16;
            AttentionF16RaggedD128F16 = "sage_attention_hopper_f16_ragged_d128_f16": AttentionF16Ragged, 128, F16;
            AttentionF16RaggedD128Bf16 = "sage_attention_hopper_f16_ragged_d128_bf16": AttentionF16Ragged, 128, Bf16;
            AttentionModifiedD64F16 = "sage_attention_hopper_modified_d64_f16": AttentionModified, 64, F16;
            AttentionModifiedD64Bf16 = "sage_attention_hopper_modified_d64_bf16": AttentionModified, 64, Bf16;
            AttentionModifiedD128F16 = "sage_attention_hopper_modified_d128_f16": AttentionModified, 128, F16;
            AttentionModifiedD128Bf16 = "sage_attention_hopper_modified_d128_bf16": AttentionModified, 128, Bf16;
            AttentionModifiedF16D64F16 = "sage_attention_hopper_modified_f16_d64_f16": AttentionModifiedF16, 64, F16;
            AttentionModifiedF16D64Bf16 = "sage_attention_hopper_modified_f16_d64_bf16": AttentionModifiedF16, 64, Bf16;
            AttentionModifiedF16D128F16 = "sage_attention_hopper_modified_f16_d128_f16": AttentionModifiedF16, 128, F16;
            AttentionModifiedF16D128Bf16 = "sage_attention_hopper_modified_f16_d128_bf16": AttentionModifiedF16, 128, Bf16;
            MmaF16F32D64F16 = "sage_attention_mma_f16_f32_d64_f16": MmaF16F32, 64, F16;
            MmaF16F32D64Bf16 = "sage_attention_mma_f16_f32_d64_bf16": MmaF16F32, 64, Bf16;
            MmaF16F32D128F16 = "sage_attention_mma_f16_f32_d128_f16": MmaF16F32, 128, F16;
            MmaF16F32D128Bf16 = "sage_attention_mma_f16_f32_d128_bf16": MmaF16F32, 128, Bf16;
            MmaF16F32D256F16 = "sage_attention_mma_f16_f32_d256_f16": MmaF16F32, 256, F16;
            MmaF16F32D256Bf16 = "sage_attention_mma_f16_f32_d256_bf16": MmaF16F32, 256, Bf16;
            MmaF16F16D64F16 = "sage_attention_mma_f16_f16_d64_f16": MmaF16F16, 64, F16;
            MmaF16F16D128F16 = "sage_attention_mma_f16_f16_d128_f16": MmaF16F16, 128, F16;
            MmaF16F16D256F16 = "sage_attention_mma_f16_f16_d256_f16": MmaF16F16, 256, F16;
            MmaF16F16F32D64F16 = "sage_attention_mma_f16_f16f32_d64_f16": MmaF16F16F32, 64, F16;
            MmaF16F16F32D128F16 = "sage_attention_mma_f16_f16f32_d128_f16": MmaF16F16F32, 128, F16;
            MmaF16F16F32D256F16 = "sage_attention_mma_f16_f16f32_d256_f16": MmaF16F16F32, 256, F16;
            TuringF16F32D64F16 = "sage_attention_turing_f16_f32_d64_f16": TuringF16F32, 64, F16;
            TuringF16F32D128F16 = "sage_attention_turing_f16_f32_d128_f16": TuringF16F32, 128, F16;
            TuringF16F16D64F16 = "sage_attention_turing_f16_f16_d64_f16": TuringF16F16, 64, F16;
            TuringF16F16D128F16 = "sage_attention_turing_f16_f16_d128_f16": TuringF16F16, 128, F16;
            TuringF16F16F32D64F16 = "sage_attention_turing_f16_f16f32_d64_f16": TuringF16F16F32, 64, F16;
            TuringF16F16F32D128F16 = "sage_attention_turing_f16_f16f32_d128_f16": TuringF16F16F32, 128, F16;
            MmaFp8F32D64F16 = "sage_attention_mma_fp8_f32_d64_f16": MmaFp8F32, 64, F16;
            MmaFp8F32D64Bf16 = "sage_attention_mma_fp8_f32_d64_bf16": MmaFp8F32, 64, Bf16;
            MmaFp8F32D128F16 = "sage_attention_mma_fp8_f32_d128_f16": MmaFp8F32, 128, F16;
            MmaFp8F32D128Bf16 = "sage_attention_mma_fp8_f32_d128_bf16": MmaFp8F32, 128, Bf16;
            MmaFp8F32D256F16 = "sage_attention_mma_fp8_f32_d256_f16": MmaFp8F32, 256, F16;
            MmaFp8F32D256Bf16 = "sage_attention_mma_fp8_f32_d256_bf16": MmaFp8F32, 256, Bf16;
            MmaFp8F32F32D64F16 = "sage_attention_mma_fp8_f32f32_d64_f16": MmaFp8F32F32, 64, F16;
            MmaFp8F32F32D64Bf16 = "sage_attention_mma_fp8_f32f32_d64_bf16": MmaFp8F32F32, 64, Bf16;
            MmaFp8F32F32D128F16 = "sage_attention_mma_fp8_f32f32_d128_f16": MmaFp8F32F32, 128, F16;
            MmaFp8F32F32D128Bf16 = "sage_attention_mma_fp8_f32f32_d128_bf16": MmaFp8F32F32, 128, Bf16;
            MmaFp8F32F32D256F16 = "sage_attention_mma_fp8_f32f32_d256_f16": MmaFp8F32F32, 256, F16;
            MmaFp8F32F32D256Bf16 = "sage_attention_mma_fp8_f32f32_d256_bf16": MmaFp8F32F32, 256, Bf16;
            MmaFp8F32F16D64F16 = "sage_attention_mma_fp8_f32f16_d64_f16": MmaFp8F32F16, 64, F16;
            MmaFp8F32F16D64Bf16 = "sage_attention_mma_fp8_f32f16_d64_bf16": MmaFp8F32F16, 64, Bf16;
            MmaFp8F32F16D128F16 = "sage_attention_mma_fp8_f32f16_d128_f16": MmaFp8F32F16, 128, F16;
            MmaFp8F32F16D128Bf16 = "sage_attention_mma_fp8_f32f16_d128_bf16": MmaFp8F32F16, 128, Bf16;
            MmaFp8F32F16D256F16 = "sage_attention_mma_fp8_f32f16_d256_f16": MmaFp8F32F16, 256, F16;
            MmaFp8F32F16D256Bf16 = "sage_attention_mma_fp8_f32f16_d256_bf16": MmaFp8F32F16, 256, Bf16;
            MmaModifiedF16D64F16 = "sage_attention_mma_modified_f16_d64_f16": MmaModifiedF16, 64, F16;
            MmaModifiedF16D64Bf16 = "sage_attention_mma_modified_f16_d64_bf16": MmaModifiedF16, 64, Bf16;
            MmaModifiedF16D128F16 = "sage_attention_mma_modified_f16_d128_f16": MmaModifiedF16, 128, F16;
            MmaModifiedF16D128Bf16 = "sage_attention_mma_modified_f16_d128_bf16": MmaModifiedF16, 128, Bf16;
            MmaModifiedF16D256F16 = "sage_attention_mma_modified_f16_d256_f16": MmaModifiedF16, 256, F16;
            MmaModifiedF16D256Bf16 = "sage_attention_mma_modified_f16_d256_bf16": MmaModifiedF16, 256, Bf16;
            MmaModifiedFp8D64F16 = "sage_attention_mma_modified_fp8_d64_f16": MmaModifiedFp8, 64, F16;
            MmaModifiedFp8D64Bf16 = "sage_attention_mma_modified_fp8_d64_bf16": MmaModifiedFp8, 64, Bf16;
            MmaModifiedFp8D128F16 = "sage_attention_mma_modified_fp8_d128_f16": MmaModifiedFp8, 128, F16;
            MmaModifiedFp8D128Bf16 = "sage_attention_mma_modified_fp8_d128_bf16": MmaModifiedFp8, 128, Bf16;
            MmaModifiedFp8D256F16 = "sage_attention_mma_modified_fp8_d256_f16": MmaModifiedFp8, 256, F16;
            MmaModifiedFp8D256Bf16 = "sage_attention_mma_modified_fp8_d256_bf16": MmaModifiedFp8, 256, Bf16;
            MmaSmoothedF16F32D64F16 = "sage_attention_mma_smoothed_f16_f32_d64_f16": MmaSmoothedF16F32, 64, F16;
            MmaSmoothedF16F32D64Bf16 = "sage_attention_mma_smoothed_f16_f32_d64_bf16": MmaSmoothedF16F32, 64, Bf16;
            MmaSmoothedF16F32D128F16 = "sage_attention_mma_smoothed_f16_f32_d128_f16": MmaSmoothedF16F32, 128, F16;
            MmaSmoothedF16F32D128Bf16 = "sage_attention_mma_smoothed_f16_f32_d128_bf16": MmaSmoothedF16F32, 128, Bf16;
            MmaSmoothedF16F16D64F16 = "sage_attention_mma_smoothed_f16_f16_d64_f16": MmaSmoothedF16F16, 64, F16;
            MmaSmoothedF16F16D128F16 = "sage_attention_mma_smoothed_f16_f16_d128_f16": MmaSmoothedF16F16, 128, F16;
            MmaSmoothedF16F16F32D64F16 = "sage_attention_mma_smoothed_f16_f16f32_d64_f16": MmaSmoothedF16F16F32, 64, F16;
            MmaSmoothedF16F16F32D128F16 = "sage_attention_mma_smoothed_f16_f16f32_d128_f16": MmaSmoothedF16F16F32, 128, F16;
            MmaSmoothedFp8F32D64F16 = "sage_attention_mma_smoothed_fp8_f32_d64_f16": MmaSmoothedFp8F32, 64, F16;
            MmaSmoothedFp8F32D64Bf16 = "sage_attention_mma_smoothed_fp8_f32_d64_bf16": MmaSmoothedFp8F32, 64, Bf16;
            MmaSmoothedFp8F32D128F16 = "sage_attention_mma_smoothed_fp8_f32_d128_f16": MmaSmoothedFp8F32, 128, F16;
            MmaSmoothedFp8F32D128Bf16 = "sage_attention_mma_smoothed_fp8_f32_d128_bf16": MmaSmoothedFp8F32, 128, Bf16;
            MmaSmoothedFp8F32F32D64F16 = "sage_attention_mma_smoothed_fp8_f32f32_d64_f16": MmaSmoothedFp8F32F32, 64, F16;
            MmaSmoothedFp8F32F32D64Bf16 = "sage_attention_mma_smoothed_fp8_f32f32_d64_bf16": MmaSmoothedFp8F32F32, 64, Bf16;
            MmaSmoothedFp8F32F32D128F16 = "sage_attention_mma_smoothed_fp8_f32f32_d128_f16": MmaSmoothedFp8F32F32, 128, F16;
            MmaSmoothedFp8F32F32D128Bf16 = "sage_attention_mma_smoothed_fp8_f32f32_d128_bf16": MmaSmoothedFp8F32F32, 128, Bf16;
            MmaSmoothedFp8F32F16D64F16 = "sage_attention_mma_smoothed_fp8_f32f16_d64_f16": MmaSmoothedFp8F32F16, 64, F16;
            MmaSmoothedFp8F32F16D64Bf16 = "sage_attention_mma_smoothed_fp8_f32f16_d64_bf16": MmaSmoothedFp8F32F16, 64, Bf16;
            MmaSmoothedFp8F32F16D128F16 = "sage_attention_mma_smoothed_fp8_f32f16_d128_f16": MmaSmoothedFp8F32F16, 128, F16;
            MmaSmoothedFp8F32F16D128Bf16 = "sage_attention_mma_smoothed_fp8_f32f16_d128_bf16": MmaSmoothedFp8F32F16, 128, Bf16;
            MmaInt4F16F32D64F16 = "sage_attention_mma_int4_f16_f32_d64_f16": MmaInt4F16F32, 64, F16;
            MmaInt4F16F32D64Bf16 = "sage_attention_mma_int4_f16_f32_d64_bf16": MmaInt4F16F32, 64, Bf16;
            MmaInt4F16F32D128F16 = "sage_attention_mma_int4_f16_f32_d128_f16": MmaInt4F16F32, 128, F16;
            MmaInt4F16F32D128Bf16 = "sage_attention_mma_int4_f16_f32_d128_bf16": MmaInt4F16F32, 128, Bf16;
            MmaInt4F16F16D64F16 = "sage_attention_mma_int4_f16_f16_d64_f16": MmaInt4F16F16, 64, F16;
            MmaInt4F16F16D128F16 = "sage_attention_mma_int4_f16_f16_d128_f16": MmaInt4F16F16, 128, F16;
            MmaInt4F16F16F32D64F16 = "sage_attention_mma_int4_f16_f16f32_d64_f16": MmaInt4F16F16F32, 64, F16;
            MmaInt4F16F16F32D128F16 = "sage_attention_mma_int4_f16_f16f32_d128_f16": MmaInt4F16F16F32, 128, F16;
            MmaInt4Fp8F32D64F16 = "sage_attention_mma_int4_fp8_f32_d64_f16": MmaInt4Fp8F32, 64, F16;
            MmaInt4Fp8F32D64Bf16 = "sage_attention_mma_int4_fp8_f32_d64_bf16": MmaInt4Fp8F32, 64, Bf16;
            MmaInt4Fp8F32D128F16 = "sage_attention_mma_int4_fp8_f32_d128_f16": MmaInt4Fp8F32, 128, F16;
            MmaInt4Fp8F32D128Bf16 = "sage_attention_mma_int4_fp8_f32_d128_bf16": MmaInt4Fp8F32, 128, Bf16;
            MmaInt4Fp8F32F32D64F16 = "sage_attention_mma_int4_fp8_f32f32_d64_f16": MmaInt4Fp8F32F32, 64, F16;
            MmaInt4Fp8F32F32D64Bf16 = "sage_attention_mma_int4_fp8_f32f32_d64_bf16": MmaInt4Fp8F32F32, 64, Bf16;
            MmaInt4Fp8F32F32D128F16 = "sage_attention_mma_int4_fp8_f32f32_d128_f16": MmaInt4Fp8F32F32, 128, F16;
            MmaInt4Fp8F32F32D128Bf16 = "sage_attention_mma_int4_fp8_f32f32_d128_bf16": MmaInt4Fp8F32F32, 128, Bf16;
            MmaInt4Fp8F32F16D64F16 = "sage_attention_mma_int4_fp8_f32f16_d64_f16": MmaInt4Fp8F32F16, 64, F16;
            MmaInt4Fp8F32F16D64Bf16 = "sage_attention_mma_int4_fp8_f32f16_d64_bf16": MmaInt4Fp8F32F16, 64, Bf16;
            MmaInt4Fp8F32F16D128F16 = "sage_attention_mma_int4_fp8_f32f16_d128_f16": MmaInt4Fp8F32F16, 128, F16;
            MmaInt4Fp8F32F16D128Bf16 = "sage_attention_mma_int4_fp8_f32f16_d128_bf16": MmaInt4Fp8F32F16, 128, Bf16;
            CacheAppendD64F16 = "sage_cache_append_d64_f16": CacheAppend, 64, F16;
            CacheAppendD64Bf16 = "sage_cache_append_d64_bf16": CacheAppend, 64, Bf16;
            CacheAppendD128F16 = "sage_cache_append_d128_f16": CacheAppend, 128, F16;
            CacheAppendD128Bf16 = "sage_cache_append_d128_bf16": CacheAppend, 128, Bf16;
            CacheAppendD256F16 = "sage_cache_append_d256_f16": CacheAppend, 256, F16;
            CacheAppendD256Bf16 = "sage_cache_append_d256_bf16": CacheAppend, 256, Bf16;
            CacheAttentionD64F16 = "sage_cache_attention_d64_f16": CacheAttention, 64, F16;
            CacheAttentionD64Bf16 = "sage_cache_attention_d64_bf16": CacheAttention, 64, Bf16;
            CacheAttentionD128F16 = "sage_cache_attention_d128_f16": CacheAttention, 128, F16;
            CacheAttentionD128Bf16 = "sage_cache_attention_d128_bf16": CacheAttention, 128, Bf16;
            CacheAttentionD256F16 = "sage_cache_attention_d256_f16": CacheAttention, 256, F16;
            CacheAttentionD256Bf16 = "sage_cache_attention_d256_bf16": CacheAttention, 256, Bf16;
            CacheAttentionWideD64F16 = "sage_cache_attention_wide_d64_f16": CacheAttentionWide, 64, F16;
            CacheAttentionWideD64Bf16 = "sage_cache_attention_wide_d64_bf16": CacheAttentionWide, 64, Bf16;
            CacheAttentionWideD128F16 = "sage_cache_attention_wide_d128_f16": CacheAttentionWide, 128, F16;
            CacheAttentionWideD128Bf16 = "sage_cache_attention_wide_d128_bf16": CacheAttentionWide, 128, Bf16;
            CacheAttentionWideD256F16 = "sage_cache_attention_wide_d256_f16": CacheAttentionWide, 256, F16;
            CacheAttentionWideD256Bf16 = "sage_cache_attention_wide_d256_bf16": CacheAttentionWide, 256, Bf16;
            MergeD64F16 = "sage_merge_d64_f16": Merge, 64, F16;
            MergeD64Bf16 = "sage_merge_d64_bf16": Merge, 64, Bf16;
            MergeD128F16 = "sage_merge_d128_f16": Merge, 128, F16;
            MergeD128Bf16 = "sage_merge_d128_bf16": Merge, 128, Bf16;
            MergeD256F16 = "sage_merge_d256_f16": Merge, 256, F16;
            MergeD256Bf16 = "sage_merge_d256_bf16": Merge, 256, Bf16;
        }
    };
}

macro_rules! define_kernel {
    ($($variant:ident = $symbol:literal: $family:ident, $head_dim:literal, $element:ident;)*) => {
        /// A GPU program. The variants are named family, head dimension, element type.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum Kernel { $($variant),* }

        impl Kernel {
            /// Every kernel, in the table's order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The kernel's symbol in its PTX module, and the module's file name.
            pub const fn symbol(self) -> &'static str {
                match self { $(Self::$variant => $symbol),* }
            }

            /// Its family and head dimension.
            const fn own_archive(self) -> &'static str {
                match self { $(Self::$variant => concat!(stringify!($family), "_d", stringify!($head_dim))),* }
            }

            /// What the kernel does.
            pub const fn family(self) -> Family {
                match self { $(Self::$variant => Family::$family),* }
            }

            /// Channels that it computes, of operands that are stored with as many or more ([`stored_head_dim`]).
            pub const fn head_dim(self) -> u32 {
                match self { $(Self::$variant => $head_dim),* }
            }

            /// Element type of its tensors: the caller's, or what they are rounded to.
            pub const fn element(self) -> ElementType {
                match self { $(Self::$variant => ElementType::$element),* }
            }
        }
    };
}
for_each_kernel!(define_kernel);

/// Warps of a CTA of the `mma.sync` kernels.
pub const fn mma_warps(padded_head_dim: u32) -> u32 {
    if padded_head_dim > 128 { 8 } else { 4 }
}

/// Row blocks of 16 queries that a warp of the `mma.sync` kernels holds: each key and value that it loads meets all of them. The
/// outputs of two with more than 128 channels would not fit its registers.
pub const fn mma_blocks(padded_head_dim: u32) -> usize {
    (MMA_QUERIES / (mma_warps(padded_head_dim) * WARP_ROWS)) as usize
}

/// Chunks of 64 keys and their values that the `mma.sync` kernels hold in shared memory.
pub const MMA_STAGES: u32 = 2;
/// The same on Turing, which has no copies that another stage would be for.
pub const TURING_STAGES: u32 = 1;

/// Threads that share a row of 16-bit elements in the quantizer: one for each 16 bytes.
pub const fn threads_per_row(padded_head_dim: u32) -> u32 {
    padded_head_dim / 8
}

impl Kernel {
    /// The kernel that does `family` for `head_dim` channels and an element type, if there is one: the smallest that has so many.
    pub fn find(family: Family, head_dim: u32, element: ElementType) -> Option<Self> {
        let serves =
            |kernel: &Self| kernel.family() == family && kernel.element() == element && kernel.head_dim() >= head_dim;
        Self::ALL.iter().copied().filter(serves).min_by_key(|kernel| kernel.head_dim())
    }

    /// Whether it is among the kernels of an architecture: its family is, and of what comes before attention, some attention kernel of the
    /// architecture goes with it. Those of 256 channels have no machine code of GPUs newer than Ada but Hopper: their drivers compile the PTX.
    pub fn exists_for(self, architecture: Architecture) -> bool {
        let is_used = match (self.family(), architecture) {
            (Family::QuantizeRagged, Architecture::Sm90a) => self.head_dim() <= 128,
            // those of Turing have f16 alone
            (Family::Quantize | Family::QuantizeRotated | Family::Prepare, Architecture::Sm75) => {
                self.head_dim() <= 128 && !matches!(self.element(), ElementType::Bf16)
            }
            (_, Architecture::Sm100 | Architecture::Sm120) => self.head_dim() <= 128,
            _ => true,
        };
        is_used && self.family().exists_for(architecture)
    }

    /// The kernels of an architecture.
    pub fn of(architecture: Architecture) -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(move |kernel| kernel.exists_for(architecture))
    }

    /// The archive that its images are embedded in, with those of other element types and fewer channels of the same operands, which are
    /// much alike; and with those of a cache's other kernels, which are loaded together.
    pub fn archive(self) -> &'static str {
        match (self.family().is_about_a_cache(), stored_head_dim(self.head_dim())) {
            (true, 64) => "Cache_d64",
            (true, 128) => "Cache_d128",
            (true, _) => "Cache_d256",
            (false, stored) => Self::find(self.family(), stored, self.element()).unwrap_or(self).own_archive(),
        }
    }

    /// Threads of a CTA; becomes `.maxntid`.
    pub const fn threads(self) -> u32 {
        match self.family() {
            family if family.quantizes() || matches!(family, Family::Prepare) => {
                crate::statistics::TOKEN_LANES * threads_per_row(self.head_dim())
            }
            family if family.is_persistent() => (1 + consumer_warpgroups(self.head_dim())) * 128,
            Family::CacheAttention | Family::MaskTiles => 32,
            Family::CacheAppend | Family::CacheAttentionWide => 128,
            Family::Merge => 32 * MergeShared::ROWS,
            _ => mma_warps(self.head_dim()) * 32,
        }
    }

    /// CTAs that a multiprocessor must hold at a time; becomes `.minnctapersm`, see
    /// [`launch_bounds`](Self::launch_bounds).
    pub const fn min_blocks(self) -> u32 {
        match self.family() {
            // 1024 threads with 64 registers: near copy bandwidth takes that many loads in flight
            // they need more: 80
            Family::QuantizeRotated | Family::QuantizeRagged => 768 / self.threads(),
            family if family.quantizes() || matches!(family, Family::Prepare) => 1024 / self.threads(),
            family if family.is_persistent() => 1,
            // how many run together, shared memory decides
            Family::CacheAttention | Family::CacheAttentionWide => 2,
            Family::CacheAppend => 8,
            Family::Merge => 4,
            // as many as every architecture's multiprocessors hold: their loads are short
            Family::MaskTiles => 16,
            // 168 registers, or 255
            Family::MmaF16F32 | Family::MmaF16F16 | Family::MmaFp8F32 if self.head_dim() == 64 => 3,
            Family::TuringF16F32 | Family::TuringF16F16 if self.head_dim() == 64 => 3,
            _ if self.head_dim() > 128 => 1,
            _ => 2,
        }
    }

    /// `.maxntid` and `.minnctapersm`, for which ptxas allots registers.
    pub const fn launch_bounds(self, architecture: Architecture) -> (u32, u32) {
        match (self.family(), architecture) {
            // more would need more shared memory than there is
            (Family::Quantize, Architecture::Sm75) => (self.threads(), 768 / self.threads()),
            // it needs more than 64 registers there
            (Family::Quantize, Architecture::Sm120) => (self.threads(), self.min_blocks() - 1),
            _ => (self.threads(), self.min_blocks()),
        }
    }

    /// Whether ptxas may spill registers: those of the `mma.sync` kernels hold a warp's output and queries, and a few values
    /// more do not fit; nor, in some of Hopper's, what is kept for an item beside addresses of biases or a sequence of its own, or
    /// the output of 192 channels or more, or that of 96 beside the scores of two chunks. The budgets (`kernels/budgets`) say how many.
    pub const fn may_spill(self) -> bool {
        match self.family() {
            family if family.quantizes() => false,
            Family::Prepare | Family::MaskTiles | Family::TuringF16F16 => false,
            Family::Attention => !matches!(self.head_dim(), 64 | 128),
            Family::AttentionF16 => self.head_dim() > 192,
            family if family.is_about_a_cache() => self.head_dim() > 128,
            Family::TuringF16F32 => self.head_dim() > 64,
            _ => true,
        }
    }

    /// Dynamic shared memory of a launch, in bytes.
    pub const fn shared_bytes(self) -> u32 {
        match self.family() {
            Family::Prepare | Family::MaskTiles => 0,
            family if family.quantizes() => QuantizeShared::new(self.head_dim()).bytes,
            Family::Attention | Family::AttentionRagged | Family::AttentionModified => {
                AttentionShared::fp8(self.head_dim()).bytes
            }
            Family::AttentionF16 | Family::AttentionF16Ragged | Family::AttentionModifiedF16 => {
                AttentionShared::f16(self.head_dim()).bytes
            }
            Family::CacheAppend => 0,
            Family::Merge => MergeShared::BYTES,
            Family::CacheAttention | Family::CacheAttentionWide => MMA_STAGES * cache::block_bytes(self.head_dim()),
            family => {
                let key_row_bytes = self.head_dim() / if family.is_int4() { 2 } else { 1 };
                let shared = MmaShared::new(self.head_dim(), key_row_bytes, family.value_bytes(), family.stages());
                if family.smooths_queries() { shared.biased_bytes } else { shared.bytes }
            }
        }
    }

    /// `bar.sync` instructions that the compiled kernel must have: as many as the source.
    pub const fn block_barriers(self) -> u32 {
        match self.family() {
            Family::Prepare | Family::MaskTiles => 0,
            Family::Quantize | Family::QuantizeRotated => 28,
            Family::QuantizeSmoothed => 30,
            Family::QuantizeRagged => 32,
            // the output waits for queries, through whose memory it goes
            family if family.is_persistent() => 1 + (self.head_dim() > 128) as u32,
            Family::TuringF16F32 | Family::TuringF16F16 | Family::TuringF16F16F32 => 3,
            Family::CacheAppend | Family::Merge => 0,
            Family::CacheAttention | Family::CacheAttentionWide => 1,
            family if family.smooths_queries() => 2,
            _ => 1,
        }
    }
}

/// The quantizer's shared memory. Offsets are in bytes from its start.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeShared {
    /// The item at hand: work, head, tile, sequence; see [`schedule`](crate::schedule).
    pub item: u32,
    /// Index of the next item.
    pub claim: u32,
    /// Whether this CTA is the last of those that wait for each other.
    pub is_last: u32,
    /// The key head of which the CTA's last item was quantized.
    pub finished: u32,
    /// All of it. At its start is what an item needs.
    pub bytes: u32,
}

impl QuantizeShared {
    /// Distance of a transposed value tile's rows: 16 bytes more than they are long, against bank conflicts.
    pub const VALUE_ROW_STRIDE: u32 = VALUE_ROW_BYTES + 16;

    /// The layout for a padded head dimension.
    pub const fn new(padded_head_dim: u32) -> Self {
        // The largest of: sums in f32, minima and maxima in 16 bits of every token lane and channel; a transposed value
        // tile; sums of queries and their mean; largest absolute values of each query row, and what the groups' are multiplied by.
        let statistics = crate::statistics::TOKEN_LANES * padded_head_dim * (4 + 2 + 2);
        let value = padded_head_dim * Self::VALUE_ROW_STRIDE;
        let item = if statistics > value { statistics } else { value };
        Self { item, claim: item + 16, is_last: item + 20, finished: item + 24, bytes: item + 28 }
    }
}

/// The attention kernel's shared memory. Offsets are in bytes from its start, which is aligned to 1024.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShared {
    /// Consumer warpgroups.
    pub warpgroups: u32,
    /// Slots of the ring of key and value tiles.
    pub stages: u32,
    /// Query tiles, one a consumer warpgroup.
    pub query: u32,
    /// Ring of key tiles.
    pub key: u32,
    /// Ring of value tiles; those of e4m3 with up to 128 channels are each followed by [`Self::ONES_BYTES`] of ones.
    pub value: u32,
    /// Bytes of a value tile that are copied there: its first channels are its first rows.
    pub value_bytes: u32,
    /// Bytes of a value tile of the operand.
    pub value_tile_bytes: u32,
    /// Distance of the value ring's slots.
    pub value_stride: u32,
    /// A region for each consumer warp: with e4m3 values and up to 128 channels, what was emptied out of its accumulators; always,
    /// rows of the output on their way to memory, of [`output_channels`](Self::output_channels) at a time.
    pub region: u32,
    /// Distance of the warps' regions.
    pub region_stride: u32,
    /// Channels of a warp's output that its region holds.
    pub output_channels: u32,
    /// Ring of the key tiles' scales.
    pub key_scales: u32,
    /// The query tiles' scales.
    pub query_scales: u32,
    /// mbarriers, 8 bytes each.
    pub barriers: u32,
    /// The item that each consumer warpgroup's queries belong to: first query, head, key head and sequence, 16 bytes each.
    pub items: u32,
    /// In a ragged batch, what a consumer warp needs at its item's end: 16 bytes each.
    pub own_items: u32,
    /// All of it.
    pub bytes: u32,
}

impl AttentionShared {
    /// Eight channels of e4m3 ones for 128 keys: the extra value columns whose product is the row sum.
    pub const ONES_BYTES: u32 = 8 * VALUE_ROW_BYTES;

    /// Bytes of a key tile's scales.
    pub const KEY_SCALES_BYTES: u32 = 4 * KEY_SCALES_PER_TILE;

    /// Bytes of a query tile's scales.
    pub const QUERY_SCALES_BYTES: u32 = 4 * QUERY_SCALES_PER_TILE;

    /// Bytes after each row of the output in a warp's region, against bank conflicts.
    pub const OUTPUT_PADDING: u32 = 16;

    /// The layout with e4m3 values, for a kernel's head dimension.
    pub const fn fp8(head_dim: u32) -> Self {
        let value_bytes = key_tile_bytes(head_dim);
        if head_dim > 128 {
            return Self::wide(head_dim, value_bytes, 3);
        }
        // a lane holds head_dim / 2 flushed output sums, and for its two rows the flushed row sum and one segment's since
        let region_stride = (head_dim / 2 + 4) * 32 * 4;
        // with fewer channels a slot is held longer, until the next tile's first products are done
        let stages = match head_dim {
            64 => 6,
            96 => 4,
            _ => 3,
        };
        Self::narrow(head_dim, stages, value_bytes, value_bytes + Self::ONES_BYTES, region_stride)
    }

    /// The layout with 16-bit values, for a kernel's head dimension.
    pub const fn f16(head_dim: u32) -> Self {
        let value_bytes = value_tile_bytes(head_dim);
        if head_dim > 128 {
            return Self::wide(head_dim, value_bytes, 2);
        }
        let output_bytes = WARP_ROWS * (2 * head_dim + Self::OUTPUT_PADDING);
        Self::narrow(head_dim, 3, value_bytes, value_bytes, output_bytes)
    }

    const fn narrow(head_dim: u32, stages: u32, value_bytes: u32, value_stride: u32, region_stride: u32) -> Self {
        let warpgroups = consumer_warpgroups(head_dim);
        let shared = Self::with_tiles(head_dim, stages, value_bytes, value_stride);
        let end = shared.region + warpgroups * 4 * region_stride;
        Self { region_stride, output_channels: head_dim, ..shared }.with_rest(end)
    }

    /// Tiles leave no room for the output. It goes through the queries that the warp has read, in parts.
    const fn wide(head_dim: u32, value_bytes: u32, stages: u32) -> Self {
        let shared = Self::with_tiles(head_dim, stages, value_bytes, value_bytes);
        let end = shared.region;
        let region_stride = WARP_ROWS * stored_head_dim(head_dim);
        Self { region: shared.query, region_stride, output_channels: 64, ..shared }.with_rest(end)
    }

    const fn with_tiles(head_dim: u32, stages: u32, value_bytes: u32, value_stride: u32) -> Self {
        let (warpgroups, stored) = (consumer_warpgroups(head_dim), stored_head_dim(head_dim));
        let key = warpgroups * query_tile_bytes(stored);
        let value = key + stages * key_tile_bytes(stored);
        let region = value + stages * value_stride;
        let none = 0;
        Self {
            warpgroups,
            stages,
            query: 0,
            key,
            value,
            value_bytes,
            value_tile_bytes: value_bytes / head_dim * stored,
            value_stride,
            region,
            region_stride: none,
            output_channels: none,
            key_scales: none,
            query_scales: none,
            barriers: none,
            items: none,
            own_items: none,
            bytes: none,
        }
    }

    /// The rest, which begins with the keys' scales.
    const fn with_rest(self, key_scales: u32) -> Self {
        let query_scales = key_scales + self.stages * Self::KEY_SCALES_BYTES;
        let barriers = query_scales + self.warpgroups * Self::QUERY_SCALES_BYTES;
        let items = barriers + 16 * (self.warpgroups + self.stages);
        let own_items = items + 16 * self.warpgroups;
        Self {
            barriers,
            items,
            own_items,
            bytes: own_items + 4 * self.warpgroups * 16,
            key_scales,
            query_scales,
            ..self
        }
    }

    /// Queries of a CTA.
    pub const fn queries(&self) -> u32 {
        self.warpgroups * WARPGROUP_ROWS
    }

    /// Whether the output goes through the memory of the queries.
    pub const fn reuses_queries(&self) -> bool {
        self.region == self.query
    }
}

/// Shared memory of the `mma.sync` kernels. Offsets are in bytes from its start.
#[derive(Clone, Copy, Debug)]
pub struct MmaShared {
    /// In a stage, where the chunk of values is, behind the keys: swizzled rows of a channel each.
    pub value: u32,
    /// Bytes of a stage, and distance of the stages.
    pub stage_bytes: u32,
    /// Distance of the warps' regions, which lie where the stages were: rows of the output on their way to memory.
    pub region_stride: u32,
    /// What smoothing took out of the scores, behind the stages: for each stage, f32 of every key.
    pub bias: u32,
    /// Without smoothed queries, the item, in the same place.
    pub item: u32,
    /// All of it, without smoothed queries.
    pub bytes: u32,
    /// All of it, with smoothed queries.
    pub biased_bytes: u32,
}

impl MmaShared {
    /// In an item's memory, behind head, key head, first query, index of its sequence, and the sequence: the end of its chunks, and the
    /// index of its first key tile over all heads.
    pub const ITEM_BOUNDS: u32 = 16 + Sequence::BYTES;
    /// The chunks of each warp's queries.
    pub const ITEM_CHUNKS: u32 = Self::ITEM_BOUNDS + 16;

    /// The layout for a padded head dimension, rows of keys and values of so many bytes, and so many stages.
    pub const fn new(padded_head_dim: u32, key_row_bytes: u32, value_bytes: u32, stages: u32) -> Self {
        let value = KEY_CHUNK * key_row_bytes;
        let stage_bytes = value + KEY_CHUNK * padded_head_dim * value_bytes;
        let region_stride = WARP_ROWS * (2 * padded_head_dim + AttentionShared::OUTPUT_PADDING);
        let (stages_end, regions_end) = (stages * stage_bytes, mma_warps(padded_head_dim) * region_stride);
        let end = if stages_end > regions_end { stages_end } else { regions_end };
        let item_bytes = Self::ITEM_CHUNKS + 16 * mma_warps(padded_head_dim);
        let [bytes, biased_bytes] = [end + item_bytes, end + stages * KEY_CHUNK * 4];
        Self { value, stage_bytes, region_stride, bias: end, item: end, bytes, biased_bytes }
    }
}

/// Shared memory of the kernel that merges parts: each row's weights.
#[derive(Clone, Copy, Debug)]
pub struct MergeShared;

impl MergeShared {
    /// Rows of a CTA, one a warp.
    pub const ROWS: u32 = 4;
    /// Most parts.
    pub const MAX_PARTS: u32 = 128;
    /// Distance of the rows' weights.
    pub const ROW_STRIDE: u32 = 4 * Self::MAX_PARTS;
    /// All of it.
    pub const BYTES: u32 = Self::ROWS * Self::ROW_STRIDE;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::QUERY_TILES;

    extern crate std;

    #[test]
    fn symbols_are_unique_and_say_what_they_are() {
        for (index, kernel) in Kernel::ALL.iter().enumerate() {
            assert!(Kernel::ALL[..index].iter().all(|other| other.symbol() != kernel.symbol()));
            let element = match kernel.element() {
                ElementType::F16 => "f16",
                ElementType::Bf16 => "bf16",
                ElementType::F32 => "f32",
            };
            assert!(kernel.symbol().ends_with(&std::format!("_d{}_{element}", kernel.head_dim())));
            assert!(kernel.element() != ElementType::F32 || kernel.family() == Family::Prepare);
            assert_eq!(Kernel::find(kernel.family(), kernel.head_dim(), kernel.element()), Some(*kernel));
        }
    }

    #[test]
    fn shared_memory_fits_and_tiles_are_aligned() {
        for &kernel in Kernel::ALL {
            for architecture in kernel.family().architectures() {
                let (needed, allowed) = (kernel.shared_bytes(), architecture.shared_bytes());
                assert!(needed <= allowed, "{kernel:?} needs {needed} bytes, {architecture:?} has {allowed}");
            }
            assert!(kernel.threads() <= 1024 && kernel.threads() % 32 == 0);
        }
        for head_dim in crate::tile::PADDED_HEAD_DIMS {
            let quantize = QuantizeShared::new(head_dim);
            let rows = [head_dim, head_dim / 2];
            let each =
                rows.into_iter().flat_map(|row| [(row, 1, MMA_STAGES), (row, 2, MMA_STAGES), (row, 2, TURING_STAGES)]);
            for (key_row_bytes, value_bytes, stages) in each {
                let shared = MmaShared::new(head_dim, key_row_bytes, value_bytes, stages);
                assert_eq!((shared.value % 1024, shared.stage_bytes % 1024), (0, 0));
                assert!(mma_warps(head_dim) * shared.region_stride <= shared.bytes);
            }
            let queries = QUERY_TILES * (WARPGROUP_ROWS + QUERY_SCALES_PER_TILE);
            assert!(quantize.item.is_multiple_of(16) && quantize.item >= 4 * queries);
        }
        for head_dim in
            Kernel::ALL.iter().filter(|kernel| kernel.family().is_persistent()).map(|kernel| kernel.head_dim())
        {
            for shared in [AttentionShared::fp8(head_dim), AttentionShared::f16(head_dim)] {
                assert!(shared.value_bytes <= shared.value_tile_bytes && shared.value_bytes.is_multiple_of(head_dim));
                for offset in [shared.query, shared.key, shared.value, shared.value_stride] {
                    assert_eq!(offset % 1024, 0);
                }
                // the output's rows, and their distance against bank conflicts
                let row_bytes = 2 * shared.output_channels + AttentionShared::OUTPUT_PADDING;
                assert!(shared.region_stride >= WARP_ROWS * row_bytes);
                assert!(head_dim.is_multiple_of(shared.output_channels));
                assert_eq!((shared.region % 16, shared.region_stride % 16, shared.key_scales % 16), (0, 0, 0));
            }
        }
    }
}
