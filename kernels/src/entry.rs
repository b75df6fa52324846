//! The entry points: one for each row of the kernel table.

use sage_layout::params::*;

use crate::element::{Bf16, F16};
use crate::{attention::hopper, quantize};

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
    (Attention) => {
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
    (Attention, 64, $element:ident) => {
        hopper::attention::<$element, 36>
    };
    (Attention, 128, $element:ident) => {
        hopper::attention::<$element, 68>
    };
}

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
sage_layout::for_each_kernel!(define_entries);
