//! The entry points: one for each row of the kernel table. On the host, [`launch`] runs them in the SIMT executor.

#[cfg(not(target_arch = "nvptx64"))]
use sage_layout::kernel::{Family, Kernel};
use sage_layout::params::*;
#[cfg(not(target_arch = "nvptx64"))]
use simt::host::{self, Kind, Launch, Memory, Options, Report, Trace};

use crate::element::{Bf16, F16};
use crate::{attention::hopper, quantize};

#[cfg(target_arch = "nvptx64")]
macro_rules! params {
    (ChannelStatistics) => {
        ChannelStatisticsParams
    };
    (KeyMean) => {
        KeyMeanParams
    };
    (ValueScale) => {
        ValueScaleParams
    };
    (QuantizeQuery) => {
        QuantizeQueryParams
    };
    (QuantizeKey) => {
        QuantizeKeyParams
    };
    (QuantizeValue) => {
        QuantizeValueParams
    };
    (TileValue) => {
        TileValueParams
    };
    (Attention) => {
        AttentionParams
    };
    (AttentionF16) => {
        AttentionParams
    };
}

macro_rules! program {
    (ChannelStatistics, $head_dim:literal, $element:ident) => {
        quantize::statistics::channel_statistics::<$element, $head_dim>
    };
    (KeyMean, $head_dim:literal, $element:ident) => {
        quantize::statistics::key_mean::<$head_dim>
    };
    (ValueScale, $head_dim:literal, $element:ident) => {
        quantize::statistics::value_scale::<$head_dim>
    };
    (QuantizeQuery, $head_dim:literal, $element:ident) => {
        quantize::query_key::quantize_query::<$element, $head_dim>
    };
    (QuantizeKey, $head_dim:literal, $element:ident) => {
        quantize::query_key::quantize_key::<$element, $head_dim>
    };
    (QuantizeValue, $head_dim:literal, $element:ident) => {
        quantize::value::quantize_value::<$element, $head_dim>
    };
    (TileValue, $head_dim:literal, $element:ident) => {
        quantize::value::tile_value::<$head_dim>
    };
    (Attention, 64, $element:ident) => {
        hopper::attention::<hopper::E4m3Values<$element, 64, 36>>
    };
    (Attention, 128, $element:ident) => {
        hopper::attention::<hopper::E4m3Values<$element, 128, 68>>
    };
    (AttentionF16, 64, $element:ident) => {
        hopper::attention::<hopper::HalfValues<$element, 64, 32>>
    };
    (AttentionF16, 128, $element:ident) => {
        hopper::attention::<hopper::HalfValues<$element, 128, 64>>
    };
}

#[cfg(target_arch = "nvptx64")]
macro_rules! define_entries {
    ($($variant:ident = $symbol:literal: $family:ident, $head_dim:tt, $element:ident;)*) => { $(
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
                // its blocks claim work from each other
                blocks_in_order: matches!(kernel.family(), Family::Attention | Family::AttentionF16),
            };
            match (kernel, params) {
                $((Kernel::$variant, Params::$family(params)) => host::launch(shape, memory, options, || {
                    // SAFETY: the executor checks every access.
                    unsafe { program!($family, $head_dim, $element)(params) }
                }),)*
                _ => Err(Report {
                    kind: Kind::Launch,
                    message: format!("{} with the parameters of {:?}", kernel.symbol(), params.family()),
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
