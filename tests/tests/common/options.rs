use proptest::prelude::*;
use sage_tests::modes::{MASKS, PV_MODES};
use sageattention::{AttentionOptions, Mask, QkMode, QuantGranularity};

/// Every mode with every mask; nothing that comes with the call.
pub fn any_options() -> impl Strategy<Value = AttentionOptions> {
    let mask = prop_oneof![1 => Just(Mask::None), 2 => prop::sample::select(&MASKS[..])];
    let granularity = prop::sample::select(&QuantGranularity::ALL[..]);
    let qk_mode = prop::sample::select(&QkMode::ALL[..]);
    let pv = prop::sample::select(&PV_MODES[..]);
    let softmax_scale = prop_oneof![3 => Just(None), 1 => (0.01f32..0.3).prop_map(Some)];
    (granularity, qk_mode, pv, any::<[bool; 5]>(), mask, softmax_scale).prop_map(
        |(
            granularity,
            qk_mode,
            (pv_mode, pv_accum),
            [smooth_q, smooth_k, smooth_v, return_lse, hadamard],
            mask,
            softmax_scale,
        )| {
            AttentionOptions {
                granularity,
                qk_mode,
                pv_mode,
                pv_accum,
                smooth_q,
                smooth_k,
                smooth_v,
                hadamard,
                mask,
                softmax_scale,
                return_lse,
                ..Default::default()
            }
        },
    )
}
