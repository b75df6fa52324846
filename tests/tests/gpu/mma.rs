//! The `mma.sync` kernels, near the CPU engine.

use crate::{LAYOUTS, pick, with_lse};
use sage_tests::gpu::{assert_near, attend_with, gpu};
use sage_tests::modes::{PV_MODES, QK_MODES, element_types};
use sage_tests::tensor::{Inputs, attend};
use sage_tests::with_element;
use sageattention::{
    Architecture, AttentionOptions, AttentionProblem, CausalAlign, DType, Mask, PvMode, QkMode, QuantGranularity,
};

/// Whose kernels there are: Turing's, whose PTX later GPUs run too, are for INT8 as it is and f16.
fn architectures(options: &AttentionOptions, dtype: DType, head_dim: usize) -> &'static [Architecture] {
    let is_plain_int8 = options.qk_mode == QkMode::Int8 && !options.smooth_q && head_dim <= 128;
    match (options.pv_mode, dtype) {
        (PvMode::Fp8, _) => &[Architecture::Sm89],
        (PvMode::F16, DType::F16 | DType::F32) if is_plain_int8 => &[Architecture::Sm80, Architecture::Sm75],
        (PvMode::F16, _) => &[Architecture::Sm80],
    }
}

#[test]
fn every_variant() {
    let Some(gpu) = gpu() else { return };
    let lengths = [(1, 1), (200, 77), (77, 200), (113, 203), (333, 333), (128, 64), (1025, 2051), (500, 5000)];
    let masks = [Mask::None, Mask::CausalAligned(CausalAlign::TopLeft), Mask::CausalAligned(CausalAlign::BottomRight)];
    for (pv_mode, pv_accum) in PV_MODES {
        for (index, (query_len, key_len)) in lengths.into_iter().enumerate() {
            for head_dim in [64, 128, 256, pick(&[40, 72, 127, 200], index)] {
                // long ones take turns in what they vary
                let masks = if index < 5 { &masks[..] } else { &[pick(&masks, index + head_dim / 64)] };
                for &mask in masks {
                    for &dtype in element_types((pv_mode, pv_accum)) {
                        let shape = [2, 4, query_len, head_dim];
                        let problem = AttentionProblem::cross(pick(&LAYOUTS, index), dtype, shape, [2, key_len]);
                        // INT8 alone has kernels for more than 128 channels
                        let qk_modes = match index {
                            _ if head_dim > 128 => &[(QkMode::Int8, false)],
                            0..5 => &QK_MODES[..],
                            _ => &[pick(&QK_MODES, index + head_dim / 64)],
                        };
                        for &(qk_mode, smooth_q) in qk_modes {
                            let options = AttentionOptions {
                                qk_mode,
                                smooth_q,
                                pv_mode,
                                pv_accum,
                                mask,
                                granularity: pick(&QuantGranularity::ALL, index),
                                smooth_k: index % 4 != 3,
                                ..with_lse()
                            };
                            with_element!(dtype, T => {
                                let inputs = Inputs::<T>::random(&problem, index as u64);
                                let expected = attend(&problem, &options, &inputs);
                                for &architecture in architectures(&options, dtype, head_dim) {
                                    let result = attend_with(gpu, Some(architecture), &problem, &options, &inputs);
                                    let what = format_args!("{architecture:?}\n{problem:?}\n{options:?}");
                                    assert_near(&result, &expected, head_dim, pv_mode, what);
                                }
                            });
                        }
                    }
                }
            }
        }
    }
}
