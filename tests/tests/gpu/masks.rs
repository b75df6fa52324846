//! Windows, sinks, soft caps, biases and boolean masks, near the CPU engine.

use crate::{DTYPES, LAYOUTS, compare, modes, pick, with_lse};
use half::f16;
use sage_tests::gpu::{assert_near, attend, attend_with, gpu};
use sage_tests::modes::{MASKS, PV_MODES, QK_MODES, element_types};
use sage_tests::tensor::{Inputs, exact};
use sage_tests::with_element;
use sageattention::{
    Architecture, AttentionOptions, AttentionProblem, Bias, BiasType, CausalAlign, Mask, PvMode, ScoreStrides,
};

#[test]
fn every_mask_and_sinks() {
    let Some(gpu) = gpu() else { return };
    let lengths = [(1, 1), (1, 1000), (200, 77), (77, 200), (333, 333), (799, 3), (193, 128), (1025, 2051), (64, 5000)];
    for (index, (query_len, key_len)) in lengths.into_iter().enumerate() {
        for (number, mask) in MASKS.into_iter().enumerate() {
            for head_dim in [64, 96, 128, 192, 256] {
                let (layout, dtype) = (pick(&LAYOUTS, index), pick(&DTYPES, index + number));
                let problem = AttentionProblem::cross(layout, dtype, [2, 4, query_len, head_dim], [2, key_len]);
                let options = AttentionOptions {
                    mask,
                    sinks: (index + number).is_multiple_of(2),
                    smooth_k: number % 3 != 2,
                    smooth_v: number % 4 != 3,
                    ..with_lse()
                };
                compare(gpu, &problem, &options, 50);
            }
        }
    }
}

/// Windows that begin within a segment of keys and within the tiles of a flush, and are as long as several.
#[test]
fn long_windows() {
    let Some(gpu) = gpu() else { return };
    for left in [100, 1023, 1024, 1500, 4095, 5000, 9000] {
        for (right, align) in [(Some(0), CausalAlign::TopLeft), (Some(700), CausalAlign::BottomRight)] {
            for head_dim in [64, 96, 128, 192, 256] {
                let problem = AttentionProblem::cross(LAYOUTS[0], DTYPES[0], [1, 2, 1700, head_dim], [2, 10_000]);
                let mask = Mask::Window { left: Some(left), right, align };
                compare(gpu, &problem, &AttentionOptions { mask, sinks: true, ..with_lse() }, 51);
                // references are replaced after flushes
                let inputs = Inputs::<f16>::rising(&problem, 52);
                for pv_mode in PvMode::ALL {
                    let options = AttentionOptions { pv_mode, mask, smooth_k: false, ..with_lse() };
                    let expected = sage_tests::tensor::attend(&problem, &options, &inputs);
                    let result = attend(gpu, &problem, &options, &inputs);
                    assert_near(&result, &expected, head_dim, pv_mode, format_args!("{options:?}"));
                }
            }
        }
    }
}

#[test]
fn windows_of_the_mma_kernels() {
    let Some(gpu) = gpu() else { return };
    for (pv_mode, pv_accum) in PV_MODES {
        for (index, mask) in MASKS.into_iter().enumerate() {
            for (qk_mode, smooth_q) in QK_MODES {
                let dtype = pick(element_types((pv_mode, pv_accum)), index);
                let shape = [1, 5, pick(&[300, 77, 1025], index), pick(&[64, 128, 40], index)];
                let problem =
                    AttentionProblem::cross(LAYOUTS[1], dtype, shape, [1, pick(&[300, 2051, 128], index / 2)]);
                let options =
                    AttentionOptions { qk_mode, smooth_q, pv_mode, pv_accum, mask, sinks: true, ..with_lse() };
                let architecture = if pv_mode == PvMode::Fp8 { Architecture::Sm89 } else { Architecture::Sm80 };
                with_element!(dtype, T => {
                    let inputs = Inputs::<T>::random(&problem, index as u64);
                    let expected = sage_tests::tensor::attend(&problem, &options, &inputs);
                    let result = attend_with(gpu, Some(architecture), &problem, &options, &inputs);
                    assert_near(&result, &expected, shape[3], pv_mode, format_args!("{architecture:?}\n{problem:?}\n{options:?}"));
                });
            }
        }
    }
}

/// The GPU's best kernels that modify scores, and those on `mma.sync`, in all of their modes.
#[test]
fn modified_scores() {
    let Some(gpu) = gpu() else { return };
    let lengths = [(1, 1), (1, 1000), (200, 77), (333, 333), (193, 128), (700, 2051), (64, 5300)];
    for (index, (query_len, key_len)) in lengths.into_iter().enumerate() {
        for head_dim in [64, 128, 40, 256] {
            for number in 0..12 {
                let dtype = pick(&DTYPES, index + number);
                let shape = [2, 4, query_len, head_dim];
                let problem = AttentionProblem::cross(pick(&LAYOUTS, index), dtype, shape, [2, key_len]);
                let strides = [
                    ScoreStrides::contiguous(problem.score_shape()),
                    ScoreStrides::broadcast([1, 1, query_len, key_len]),
                    ScoreStrides::broadcast([2, 4, 1, key_len]),
                    ScoreStrides { batch: 0, head: 3, query: 1, key: query_len as i64 + 1 },
                ];
                let bias = Bias {
                    dtype: pick(&[BiasType::F16, BiasType::Bf16, BiasType::F32], number),
                    strides: pick(&strides, number),
                };
                let options = AttentionOptions {
                    mask: pick(&MASKS, index + number),
                    sinks: number % 4 == 1,
                    soft_cap: (number % 3 != 1).then_some(pick(&[2.0, 30.0], number / 2)),
                    bias: (number % 3 != 0).then_some(bias),
                    boolean_mask: (number % 2 == 0).then_some(pick(&strides, number / 2)),
                    smooth_k: number % 5 != 4,
                    smooth_v: number % 7 != 6,
                    ..with_lse()
                };
                compare(gpu, &problem, &options, 56);
                let (pv_mode, pv_accum) = pick(&PV_MODES, index + number);
                if !element_types((pv_mode, pv_accum)).contains(&dtype) {
                    continue;
                }
                let options = AttentionOptions { pv_mode, pv_accum, ..options };
                let architecture = if pv_mode == PvMode::Fp8 { Architecture::Sm89 } else { Architecture::Sm80 };
                with_element!(dtype, T => {
                    let inputs = Inputs::<T>::random(&problem, 57);
                    let expected = sage_tests::tensor::attend(&problem, &options, &inputs);
                    let result = attend_with(gpu, Some(architecture), &problem, &options, &inputs);
                    assert_near(&result, &expected, head_dim, pv_mode, format_args!("{architecture:?}\n{problem:?}\n{options:?}"));
                });
            }
        }
    }
}

#[test]
fn masks_that_show_the_same_are_the_same() {
    let Some(gpu) = gpu() else { return };
    let problem = AttentionProblem::cross(LAYOUTS[0], DTYPES[0], [2, 2, 700, 128], [1, 5000]);
    let inputs = Inputs::<f16>::random(&problem, 53);
    for options in modes() {
        let with = |mask| attend(gpu, &problem, &AttentionOptions { mask, ..options }, &inputs);
        for align in [CausalAlign::TopLeft, CausalAlign::BottomRight] {
            assert!(with(Mask::Window { left: Some(5700), right: Some(5000), align }) == with(Mask::None));
            assert!(with(Mask::Window { left: None, right: Some(0), align }) == with(Mask::CausalAligned(align)));
            assert!(with(Mask::Window { left: Some(5700), right: Some(0), align }) == with(Mask::CausalAligned(align)));
        }
    }
}

/// Tiles that no query sees are not read.
#[test]
fn tiles_outside_of_every_window_leave_no_trace() {
    let Some(gpu) = gpu() else { return };
    let problem = AttentionProblem::cross(LAYOUTS[0], DTYPES[0], [1, 2, 60, 64], [2, 2000]);
    let mask = Mask::Window { left: Some(50), right: Some(0), align: CausalAlign::BottomRight };
    let options = AttentionOptions { pv_mode: PvMode::F16, mask, smooth_k: false, ..with_lse() };
    let clean = Inputs::<f16>::random(&problem, 54);
    let mut poisoned = clean.clone();
    for token in (0..2 * 2000).filter(|token| token % 2000 < 1792) {
        poisoned.key[64 * token..64 * (token + 1)].fill(f16::NAN);
        poisoned.value[64 * token..64 * (token + 1)].fill(f16::NAN);
    }
    assert!(attend(gpu, &problem, &options, &clean) == attend(gpu, &problem, &options, &poisoned));
}

/// A head whose sink is far above all scores, in `sage_tests::tensor::ScoreTensors`, has zeros; queries without keys have their sink.
#[test]
fn sinks_are_near_exact() {
    let Some(gpu) = gpu() else { return };
    for mode in modes() {
        let problem = AttentionProblem::cross(LAYOUTS[0], DTYPES[0], [2, 5, 300, 64], [5, 200]);
        let options = AttentionOptions { mask: Mask::CausalAligned(CausalAlign::BottomRight), sinks: true, ..mode };
        let inputs = Inputs::<f16>::normal(&problem, 55);
        let (result, exact) = (attend(gpu, &problem, &options, &inputs), exact(&problem, &options, &inputs));
        for (row, (&got, &expected)) in result.log_sum_exp.iter().zip(&exact.log_sum_exp).enumerate() {
            let is_equal = row % 300 < 100 || row / 300 % 5 == 3;
            let is_near = f64::from(got) == expected || !is_equal && (f64::from(got) - expected).abs() < 0.1;
            assert!(is_near, "log_sum_exp of row {row}: {got}, exactly {expected}");
            let row = &result.output[64 * row..][..64];
            assert!(!is_equal || row.iter().all(|&element| element == 0.0));
        }
    }
}
