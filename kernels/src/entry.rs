//! The entry points: one for each row of the kernel table. On the host, [`launch`] runs them in the SIMT executor.

#[cfg(not(target_arch = "nvptx64"))]
use sage_layout::kernel::Kernel;
#[cfg_attr(target_arch = "nvptx64", allow(unused_imports))]
use sage_layout::kernel::mma_blocks;
use sage_layout::params::*;
#[cfg(not(target_arch = "nvptx64"))]
use simt::host::{self, Blocks, Kind, Launch, Memory, Options, Report, Trace};

use crate::element::{Bf16, F16};
// not every architecture has every kernel
#[cfg_attr(target_arch = "nvptx64", allow(unused_imports))]
use crate::{
    attention::{
        ampere::{
            self,
            codes::{Int4, Int8, SmoothedInt8},
            product::{E4m3InF16, E4m3InF32, HalfInF16, HalfInF32, InPlace, OnTuring, OneStep, TwoLevel},
        },
        hopper, mask_tiles,
        modifier::{Modified, Unmodified},
    },
    cache,
    prepare::{self, F32},
    quantize,
    sequences::{Ragged, RaggedOrUniform, Uniform},
};

#[cfg(target_arch = "nvptx64")]
macro_rules! params {
    (Prepare) => {
        PrepareParams
    };
    (MaskTiles) => {
        MaskTilesParams
    };
    (Quantize) => {
        QuantizeParams
    };
    (QuantizeSmoothed) => {
        QuantizeParams
    };
    (QuantizeRagged) => {
        QuantizeParams
    };
    (QuantizeRotated) => {
        QuantizeParams
    };
    (CacheAppend) => {
        CacheAppendParams
    };
    (CacheAttention) => {
        CacheAttentionParams
    };
    (CacheAttentionWide) => {
        CacheAttentionParams
    };
    (Merge) => {
        MergeParams
    };
    ($attention:ident) => {
        AttentionParams
    };
}

#[cfg(not(target_arch = "nvptx64"))]
macro_rules! params {
    (Prepare, $params:ident) => {
        Params::Prepare($params)
    };
    (MaskTiles, $params:ident) => {
        Params::MaskTiles($params)
    };
    (Quantize, $params:ident) => {
        Params::Quantize($params)
    };
    (QuantizeSmoothed, $params:ident) => {
        Params::Quantize($params)
    };
    (QuantizeRagged, $params:ident) => {
        Params::Quantize($params)
    };
    (QuantizeRotated, $params:ident) => {
        Params::Quantize($params)
    };
    (CacheAppend, $params:ident) => {
        Params::CacheAppend($params)
    };
    (CacheAttention, $params:ident) => {
        Params::CacheAttention($params)
    };
    (CacheAttentionWide, $params:ident) => {
        Params::CacheAttention($params)
    };
    (Merge, $params:ident) => {
        Params::Merge($params)
    };
    ($attention:ident, $params:ident) => {
        Params::Attention($params)
    };
}

/// A kernel on `mma.sync`.
// not every architecture has one
#[cfg_attr(target_arch = "nvptx64", allow(unused_macros))]
macro_rules! mma {
    ($accumulator:ty, $codes:ident, $modifier:ident, $element:ident, $sequences:ident, $head_dim:literal) => {
        ampere::attention::<$accumulator, $codes, $modifier, $element, $sequences, $head_dim, { mma_blocks($head_dim) }>
    };
}

macro_rules! program {
    (Prepare, $head_dim:literal, $element:ident) => {
        prepare::prepare::<$element, $head_dim>
    };
    (MaskTiles, 64, F16) => {
        mask_tiles::mask_tiles
    };
    (Quantize, $head_dim:literal, $element:ident) => {
        quantize::quantize::<$element, Uniform, $head_dim, false, false>
    };
    (QuantizeRotated, $head_dim:literal, $element:ident) => {
        quantize::quantize::<$element, Uniform, $head_dim, false, true>
    };
    (QuantizeRagged, $head_dim:literal, $element:ident) => {
        quantize::quantize::<$element, Ragged, $head_dim, false, false>
    };
    (QuantizeSmoothed, $head_dim:literal, $element:ident) => {
        quantize::quantize::<$element, Uniform, $head_dim, true, false>
    };
    (CacheAppend, $head_dim:literal, $element:ident) => {
        cache::append::append::<$element, $head_dim>
    };
    (CacheAttention, $head_dim:literal, $element:ident) => {
        cache::attention::attention::<$element, $head_dim, 1>
    };
    (CacheAttentionWide, $head_dim:literal, $element:ident) => {
        cache::attention::attention::<$element, $head_dim, 4>
    };
    (Merge, $head_dim:literal, $element:ident) => {
        cache::merge::merge::<$element, $head_dim>
    };
    (Attention, 64, $element:ident) => {
        hopper::attention::<hopper::E4m3Values<$element, Unmodified, 64, 36>, Uniform>
    };
    (AttentionRagged, 64, $element:ident) => {
        hopper::attention::<hopper::E4m3Values<$element, Unmodified, 64, 36>, Ragged>
    };
    (Attention, 96, $element:ident) => {
        hopper::attention::<hopper::E4m3Values<$element, Unmodified, 96, 52>, Uniform>
    };
    (Attention, 128, $element:ident) => {
        hopper::attention::<hopper::E4m3Values<$element, Unmodified, 128, 68>, Uniform>
    };
    (Attention, 192, $element:ident) => {
        hopper::attention::<hopper::WideE4m3Values<$element, 192, 96>, Uniform>
    };
    (Attention, 256, $element:ident) => {
        hopper::attention::<hopper::WideE4m3Values<$element, 256, 128>, Uniform>
    };
    (AttentionRagged, 128, $element:ident) => {
        hopper::attention::<hopper::E4m3Values<$element, Unmodified, 128, 68>, Ragged>
    };
    (AttentionF16, 64, $element:ident) => {
        hopper::attention::<hopper::HalfValues<$element, Unmodified, 64, 32>, Uniform>
    };
    (AttentionF16Ragged, 64, $element:ident) => {
        hopper::attention::<hopper::HalfValues<$element, Unmodified, 64, 32>, Ragged>
    };
    (AttentionF16, 96, $element:ident) => {
        hopper::attention::<hopper::HalfValues<$element, Unmodified, 96, 48>, Uniform>
    };
    (AttentionF16, 128, $element:ident) => {
        hopper::attention::<hopper::HalfValues<$element, Unmodified, 128, 64>, Uniform>
    };
    (AttentionF16, 192, $element:ident) => {
        hopper::attention::<hopper::HalfValues<$element, Unmodified, 192, 96>, Uniform>
    };
    (AttentionF16, 256, $element:ident) => {
        hopper::attention::<hopper::HalfValues<$element, Unmodified, 256, 128>, Uniform>
    };
    (AttentionF16Ragged, 128, $element:ident) => {
        hopper::attention::<hopper::HalfValues<$element, Unmodified, 128, 64>, Ragged>
    };
    (AttentionModified, 64, $element:ident) => {
        hopper::attention::<hopper::E4m3Values<$element, Modified, 64, 36>, Uniform>
    };
    (AttentionModified, 128, $element:ident) => {
        hopper::attention::<hopper::E4m3Values<$element, Modified, 128, 68>, Uniform>
    };
    (AttentionModifiedF16, 64, $element:ident) => {
        hopper::attention::<hopper::HalfValues<$element, Modified, 64, 32>, Uniform>
    };
    (AttentionModifiedF16, 128, $element:ident) => {
        hopper::attention::<hopper::HalfValues<$element, Modified, 128, 64>, Uniform>
    };
    (MmaF16F32, $head_dim:literal, $element:ident) => {
        mma!(InPlace<HalfInF32<$element>>, Int8, Unmodified, $element, RaggedOrUniform, $head_dim)
    };
    (MmaF16F16, $head_dim:literal, F16) => {
        mma!(InPlace<HalfInF16>, Int8, Unmodified, F16, RaggedOrUniform, $head_dim)
    };
    (MmaF16F16F32, $head_dim:literal, F16) => {
        mma!(TwoLevel<HalfInF16>, Int8, Unmodified, F16, RaggedOrUniform, $head_dim)
    };
    (TuringF16F32, $head_dim:literal, F16) => {
        mma!(InPlace<OnTuring<HalfInF32<F16>>>, Int8, Unmodified, F16, Uniform, $head_dim)
    };
    (TuringF16F16, $head_dim:literal, F16) => {
        mma!(InPlace<OnTuring<HalfInF16>>, Int8, Unmodified, F16, Uniform, $head_dim)
    };
    (TuringF16F16F32, $head_dim:literal, F16) => {
        mma!(TwoLevel<OnTuring<HalfInF16>>, Int8, Unmodified, F16, Uniform, $head_dim)
    };
    (MmaFp8F32, $head_dim:literal, $element:ident) => {
        mma!(InPlace<E4m3InF32>, Int8, Unmodified, $element, RaggedOrUniform, $head_dim)
    };
    (MmaFp8F32F32, $head_dim:literal, $element:ident) => {
        mma!(TwoLevel<E4m3InF32>, Int8, Unmodified, $element, RaggedOrUniform, $head_dim)
    };
    (MmaFp8F32F16, $head_dim:literal, $element:ident) => {
        mma!(TwoLevel<E4m3InF16>, Int8, Unmodified, $element, RaggedOrUniform, $head_dim)
    };
    (MmaModifiedF16, $head_dim:literal, $element:ident) => {
        mma!(OneStep<InPlace<HalfInF32<$element>>>, Int8, Modified, $element, RaggedOrUniform, $head_dim)
    };
    (MmaModifiedFp8, $head_dim:literal, $element:ident) => {
        mma!(OneStep<TwoLevel<E4m3InF32>>, Int8, Modified, $element, RaggedOrUniform, $head_dim)
    };
    (MmaSmoothedF16F32, $head_dim:literal, $element:ident) => {
        mma!(InPlace<HalfInF32<$element>>, SmoothedInt8, Unmodified, $element, Uniform, $head_dim)
    };
    (MmaSmoothedF16F16, $head_dim:literal, F16) => {
        mma!(InPlace<HalfInF16>, SmoothedInt8, Unmodified, F16, Uniform, $head_dim)
    };
    (MmaSmoothedF16F16F32, $head_dim:literal, F16) => {
        mma!(TwoLevel<HalfInF16>, SmoothedInt8, Unmodified, F16, Uniform, $head_dim)
    };
    (MmaSmoothedFp8F32, $head_dim:literal, $element:ident) => {
        mma!(InPlace<E4m3InF32>, SmoothedInt8, Unmodified, $element, Uniform, $head_dim)
    };
    (MmaSmoothedFp8F32F32, $head_dim:literal, $element:ident) => {
        mma!(TwoLevel<E4m3InF32>, SmoothedInt8, Unmodified, $element, Uniform, $head_dim)
    };
    (MmaSmoothedFp8F32F16, $head_dim:literal, $element:ident) => {
        mma!(TwoLevel<E4m3InF16>, SmoothedInt8, Unmodified, $element, Uniform, $head_dim)
    };
    (MmaInt4F16F32, $head_dim:literal, $element:ident) => {
        mma!(InPlace<HalfInF32<$element>>, Int4, Unmodified, $element, Uniform, $head_dim)
    };
    (MmaInt4F16F16, $head_dim:literal, F16) => {
        mma!(InPlace<HalfInF16>, Int4, Unmodified, F16, Uniform, $head_dim)
    };
    (MmaInt4F16F16F32, $head_dim:literal, F16) => {
        mma!(TwoLevel<HalfInF16>, Int4, Unmodified, F16, Uniform, $head_dim)
    };
    (MmaInt4Fp8F32, $head_dim:literal, $element:ident) => {
        mma!(InPlace<E4m3InF32>, Int4, Unmodified, $element, Uniform, $head_dim)
    };
    (MmaInt4Fp8F32F32, $head_dim:literal, $element:ident) => {
        mma!(TwoLevel<E4m3InF32>, Int4, Unmodified, $element, Uniform, $head_dim)
    };
    (MmaInt4Fp8F32F16, $head_dim:literal, $element:ident) => {
        mma!(TwoLevel<E4m3InF16>, Int4, Unmodified, $element, Uniform, $head_dim)
    };
}

#[cfg(target_arch = "nvptx64")]
macro_rules! define_entries {
    ($($variant:ident = $symbol:literal: $family:ident, $head_dim:tt, $element:ident;)*) => { $(
        // build-ptx names the families that exist for the architecture
        #[cfg($family)]
        /// # Safety
        ///
        /// Launched by the host with parameters that it checked, and the launch shape of the kernel table.
        #[unsafe(export_name = $symbol)]
        #[allow(non_snake_case)]
        pub unsafe extern "ptx-kernel" fn $variant(params: params!($family)) {
            // SAFETY: forwarded contract.
            unsafe { program!($family, $head_dim, $element)(&params) }
        }
    )* };
}
#[cfg(target_arch = "nvptx64")]
sage_layout::for_each_kernel!(define_entries);

#[cfg(not(target_arch = "nvptx64"))]
macro_rules! define_launch {
    ($($variant:ident = $symbol:literal: $family:ident, $head_dim:tt, $element:ident;)*) => {
        /// Runs a kernel in the SIMT executor, with the launch shape of the kernel table.
        ///
        /// # Errors
        ///
        /// What the executor found; parameters of another kernel.
        pub fn launch(
            kernel: Kernel,
            grid: [u32; 3],
            params: &Params,
            memory: &Memory,
            options: &Options,
        ) -> Result<Trace, Report> {
            let shape = Launch {
                grid,
                threads: kernel.threads(),
                shared_bytes: kernel.shared_bytes(),
                // Hopper's blocks claim work from each other; those of the quantizer also wait for each other
                blocks: match kernel.family() {
                    family if family.quantizes() => Blocks::Together,
                    family if family.is_persistent() => Blocks::InOrder,
                    _ => Blocks::Parallel,
                },
            };
            match (kernel, params) {
                $((Kernel::$variant, params!($family, params)) => host::launch(shape, memory, options, || {
                    // SAFETY: the executor checks every access.
                    unsafe { program!($family, $head_dim, $element)(params) }
                }),)*
                _ => Err(Report {
                    kind: Kind::Launch,
                    message: format!("{} with the parameters of another kernel", kernel.symbol()),
                    block: [0; 3],
                    thread: None,
                    schedule: options.schedule,
                }),
            }
        }
    };
}
#[cfg(not(target_arch = "nvptx64"))]
sage_layout::for_each_kernel!(define_launch);
