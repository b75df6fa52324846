//! Rotary embedding and Hadamard rotation: codes as the CPU's, and attention near it.

use half::f16;
use sage_tests::gpu::{Call, NAN_POISON, assert_near, attend_with, gpu};
use sage_tests::tensor::{Inputs, attend, attend_varlen};
use sage_tests::varlen::Batch;
use sage_tests::with_element;
use sageattention::{
    Architecture, AttentionOptions, AttentionProblem, DType, Error, PvMode, QkMode, QuantGranularity, Rotary,
    RotaryPairs,
};

use crate::{DTYPES, LAYOUTS, codes, compare, pick, with_lse};

/// Channels of a head, and those that are turned.
const DIMENSIONS: [(usize, usize); 9] =
    [(64, 64), (128, 128), (128, 32), (256, 256), (96, 96), (192, 64), (40, 20), (100, 34), (61, 60)];

#[test]
fn near_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for (index, (head_dim, dim)) in DIMENSIONS.into_iter().enumerate() {
        for (turn, dtype) in DTYPES.into_iter().enumerate() {
            let problem = AttentionProblem::cross(pick(&LAYOUTS, index), dtype, [2, 4, 300, head_dim], [2, 777]);
            let pairs = pick(&RotaryPairs::ALL, index + turn);
            let rotary = Rotary { dim, pairs, positions: 800, query_offset: 477, key_offset: 23 };
            for (rotary, hadamard) in [(Some(rotary), false), (Some(rotary), true), (None, true)] {
                compare(gpu, &problem, &AttentionOptions { rotary, hadamard, ..with_lse() }, 1);
            }
        }
    }
}

#[test]
fn codes_are_the_cpus() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (index, (head_dim, dim)) in DIMENSIONS.into_iter().enumerate() {
        for dtype in DTYPES {
            let problem = AttentionProblem::cross(pick(&LAYOUTS, index), dtype, [2, 4, 200, head_dim], [2, 333]);
            for (pairs, hadamard) in RotaryPairs::ALL.into_iter().flat_map(|pairs| [false, true].map(|h| (pairs, h))) {
                let rotary = Some(Rotary { dim, pairs, positions: 340, query_offset: 133, key_offset: 5 });
                let options = AttentionOptions { rotary, hadamard, ..with_lse() };
                with_element!(dtype, T => codes::compare::<T>(gpu, &problem, &options)?);
            }
        }
    }
    Ok(())
}

/// Many items a CTA, so that some wait for statistics of turned keys; every granularity, with and without the keys' mean.
#[test]
fn codes_of_many_tiles_are_the_cpus() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (index, head_dim) in [64, 128, 256].into_iter().enumerate() {
        for (granularity, smooth_k) in QuantGranularity::ALL.into_iter().flat_map(|g| [true, false].map(|k| (g, k))) {
            for pairs in RotaryPairs::ALL {
                let problem =
                    AttentionProblem::cross(pick(&LAYOUTS, index), DType::F16, [2, 8, 1030, head_dim], [4, 5000]);
                let rotary = Some(Rotary { dim: head_dim, pairs, positions: 5003, query_offset: 3970, key_offset: 3 });
                let options = AttentionOptions { granularity, smooth_k, rotary, ..with_lse() };
                codes::compare::<f16>(gpu, &problem, &options)?;
            }
        }
    }
    Ok(())
}

/// The quantizers that turn, as older GPUs have them.
#[test]
fn kernels_of_older_gpus() {
    let Some(gpu) = gpu() else { return };
    for (head_dim, dim) in [(64, 64), (128, 128), (104, 48), (256, 256)] {
        for (architecture, pv_mode, dtype) in [
            (Architecture::Sm89, PvMode::Fp8, DType::F16),
            (Architecture::Sm89, PvMode::Fp8, DType::Bf16),
            (Architecture::Sm80, PvMode::F16, DType::F16),
            (Architecture::Sm80, PvMode::F16, DType::Bf16),
            (Architecture::Sm75, PvMode::F16, DType::F16),
        ] {
            if head_dim > 128 && architecture == Architecture::Sm75 {
                continue;
            }
            let problem = AttentionProblem::cross(LAYOUTS[0], dtype, [2, 4, 300, head_dim], [2, 777]);
            for pairs in RotaryPairs::ALL {
                let rotary = Some(Rotary { dim, pairs, positions: 800, query_offset: 477, key_offset: 23 });
                let options = AttentionOptions { rotary, pv_mode, ..with_lse() };
                with_element!(dtype, T => {
                    let inputs = Inputs::<T>::random(&problem, 1);
                    let result = attend_with(gpu, Some(architecture), &problem, &options, &inputs);
                    let what = format_args!("{architecture:?}\n{problem:?}\n{options:?}");
                    assert_near(&result, &attend(&problem, &options, &inputs), head_dim, pv_mode, what);
                });
            }
        }
    }
}

/// INT4 and smoothed queries, whose biases are made of the keys as they were prepared.
#[test]
fn other_codes() {
    let Some(gpu) = gpu() else { return };
    let problem = AttentionProblem::cross(LAYOUTS[1], DTYPES[0], [1, 4, 300, 128], [2, 500]);
    let rotary =
        Some(Rotary { dim: 128, pairs: RotaryPairs::HalfSplit, positions: 500, query_offset: 200, key_offset: 0 });
    for (qk_mode, smooth_q) in [(QkMode::Int4, true), (QkMode::Int4, false), (QkMode::Int8, true)] {
        compare(gpu, &problem, &AttentionOptions { qk_mode, smooth_q, rotary, hadamard: true, ..with_lse() }, 3);
    }
}

#[test]
fn sequences_of_different_lengths() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let batch = Batch::packed(DType::F16, &[[300, 500], [0, 0], [1, 40], [70, 0], [33, 200]], [4, 2, 128]);
    for (pairs, hadamard) in RotaryPairs::ALL.into_iter().flat_map(|pairs| [false, true].map(|h| (pairs, h))) {
        let rotary = Some(Rotary { dim: 128, pairs, positions: 510, query_offset: 9, key_offset: 2 });
        let options = AttentionOptions { rotary, hadamard, ..with_lse() };
        let inputs = Inputs::<f16>::random(&batch.problem, 4);
        let lengths = batch.slices();
        let mut call = Call::with_lengths(gpu, None, &batch.problem, &options, lengths, &inputs, NAN_POISON)?;
        call.enqueue()?;
        let expected = attend_varlen(&batch.problem, &options, lengths, &inputs);
        assert_near(&call.outputs()?, &expected, 128, PvMode::Fp8, "packed");
    }
    Ok(())
}
