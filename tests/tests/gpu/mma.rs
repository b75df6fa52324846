//! The `mma.sync` kernels, near the CPU engine.

use crate::{LAYOUTS, pick, with_element, with_lse};
use sage_tests::gpu::{assert_near, attend_with, gpu};
use sage_tests::modes::QK_MODES;
use sage_tests::tensor::{Inputs, attend};
use sageattention::{
    Architecture, AttentionOptions, AttentionProblem, CausalAlign, DType, Mask, PvAccum, PvMode, QuantGranularity,
};

/// Values, accumulator, element types.
const VARIANTS: [(PvMode, PvAccum, &[DType]); 6] = [
    (PvMode::F16, PvAccum::F32, &[DType::F16, DType::Bf16]),
    (PvMode::F16, PvAccum::F16, &[DType::F16]),
    (PvMode::F16, PvAccum::F16F32, &[DType::F16]),
    (PvMode::Fp8, PvAccum::F32, &[DType::F16, DType::Bf16]),
    (PvMode::Fp8, PvAccum::F32F32, &[DType::F16, DType::Bf16]),
    (PvMode::Fp8, PvAccum::F32F16, &[DType::F16, DType::Bf16]),
];

#[test]
fn every_variant() {
    let Some(gpu) = gpu() else { return };
    let lengths = [(1, 1), (200, 77), (77, 200), (113, 203), (333, 333), (128, 64), (1025, 2051), (500, 5000)];
    let masks = [Mask::None, Mask::CausalAligned(CausalAlign::TopLeft), Mask::CausalAligned(CausalAlign::BottomRight)];
    for (pv_mode, pv_accum, dtypes) in VARIANTS {
        let architecture = Some(match pv_mode {
            PvMode::Fp8 => Architecture::Sm89,
            PvMode::F16 => Architecture::Sm80,
        });
        for (index, (query_len, key_len)) in lengths.into_iter().enumerate() {
            for head_dim in [64, 128, pick(&[40, 72, 127], index)] {
                for mask in masks {
                    for &dtype in dtypes {
                        let shape = [2, 4, query_len, head_dim];
                        let problem = AttentionProblem::cross(pick(&LAYOUTS, index), dtype, shape, [2, key_len]);
                        for (qk_mode, smooth_q) in QK_MODES {
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
                                let result = attend_with(gpu, architecture, &problem, &options, &inputs);
                                let what = format_args!("{problem:?}\n{options:?}");
                                assert_near(&result, &attend(&problem, &options, &inputs), head_dim, pv_mode, what);
                            });
                        }
                    }
                }
            }
        }
    }
}
