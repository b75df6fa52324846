//! Codes and scales: the GPU's bits are the CPU engine's.

use half::f16;

use crate::{DTYPES, LAYOUTS, SMOOTHINGS, modes, pick, with_lse};
use sage_tests::codes::expected_regions;
use sage_tests::gpu::{Call, LARGE_POISON, NAN_POISON, gpu};
use sage_tests::modes::{PV_MODES, QK_MODES};
use sage_tests::tensor::{Inputs, quantize};
use sage_tests::with_element;
use sageattention::{AttentionOptions, AttentionProblem, DType, Element, Error, Gpu, QuantGranularity};

/// What was read from outside of the tensors shows in some region or in the result: as NaN, or as a large number.
pub fn compare<T: Element>(
    gpu: &'static Gpu,
    problem: &AttentionProblem,
    options: &AttentionOptions,
) -> Result<(), Error> {
    let inputs = Inputs::<T>::random(problem, problem.key_len as u64);
    let quantized = quantize(problem, options, &inputs);
    let mut outputs = Vec::new();
    for poison in [NAN_POISON, LARGE_POISON] {
        let mut call = Call::with_poison(gpu, problem, options, &inputs, poison)?;
        call.enqueue()?;
        for (region, expected) in expected_regions(&quantized) {
            if expected.is_empty() {
                continue;
            }
            let result = call.workspace(region)?;
            assert_eq!(result.len(), expected.len(), "{region}: lengths\n{problem:?}\n{options:?}");
            let different = result.iter().zip(&expected).filter(|(result, expected)| result != expected).count();
            if let Some(first) = result.iter().zip(&expected).position(|(result, expected)| result != expected) {
                panic!(
                    "{region}: {different} of {} bytes differ, the first at {first}: {:#04x}, expected {:#04x}\n\
                     poison {poison:#04x}\n{problem:?}\n{options:?}",
                    result.len(),
                    result[first],
                    expected[first]
                );
            }
        }
        outputs.push(call.outputs()?);
    }
    assert!(outputs[0] == outputs[1], "something stray was read\n{problem:?}\n{options:?}");
    Ok(())
}

#[test]
fn are_bit_equal_for_every_granularity_dtype_layout_and_smoothing() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (index, head_dim) in [64, 128, 40, 72, 96, 1, 127].into_iter().enumerate() {
        for granularity in QuantGranularity::ALL {
            for (smooth_k, (pv_mode, smooth_v)) in [true, false].into_iter().flat_map(|k| SMOOTHINGS.map(|v| (k, v))) {
                for dtype in DTYPES {
                    let layout = pick(&LAYOUTS, index + usize::from(smooth_k));
                    let problem = AttentionProblem::cross(layout, dtype, [2, 4, 200, head_dim], [2, 333]);
                    let options = AttentionOptions { granularity, pv_mode, smooth_k, smooth_v, ..with_lse() };
                    with_element!(dtype, T => compare::<T>(gpu, &problem, &options)?);
                }
            }
        }
    }
    Ok(())
}

/// Values have another range for sums in f16, or are less their mean over all keys.
#[test]
fn are_bit_equal_for_every_kind_of_sum() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (index, (head_dim, key_len)) in [(64, 77), (128, 200), (72, 1100), (128, 5000)].into_iter().enumerate() {
        for (pv_mode, pv_accum) in PV_MODES {
            for smooth_v in [true, false] {
                let problem =
                    AttentionProblem::cross(pick(&LAYOUTS, index), DType::F16, [2, 4, 200, head_dim], [2, key_len]);
                let options = AttentionOptions { pv_mode, pv_accum, smooth_v, ..with_lse() };
                compare::<f16>(gpu, &problem, &options)?;
            }
        }
    }
    Ok(())
}

/// INT4 and smoothed queries, in whole and short blocks.
#[test]
fn are_bit_equal_for_every_query_key_mode() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (index, (head_dim, queries)) in
        [64, 128, 40, 127].into_iter().flat_map(|d| [1, 63, 64, 65, 128, 129, 333].map(|n| (d, n))).enumerate()
    {
        for (qk_mode, smooth_q) in QK_MODES {
            let (dtype, granularity) = (pick(&DTYPES, index), pick(&QuantGranularity::ALL, index));
            let problem =
                AttentionProblem::cross(pick(&LAYOUTS, index / 2), dtype, [2, 4, queries, head_dim], [2, 1300]);
            let smooth_k = !index.is_multiple_of(3);
            let options = AttentionOptions { qk_mode, smooth_q, smooth_k, granularity, ..with_lse() };
            with_element!(dtype, T => compare::<T>(gpu, &problem, &options)?);
        }
    }
    Ok(())
}

/// Around the ends of warps, tiles, CTAs and segments.
#[test]
fn are_bit_equal_for_every_kind_of_length() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let lengths =
        [1, 2, 7, 8, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 191, 192, 193, 383, 385, 1000, 1023, 1024, 1025];
    for (index, length) in lengths.into_iter().chain([2047, 2049, 5000]).enumerate() {
        let dtype = pick(&DTYPES, index);
        let head_dim = pick(&[64, 128, 80], index);
        let problem = AttentionProblem::new(pick(&LAYOUTS, index / 2), dtype, [1, 2, length, head_dim]);
        for mode in modes() {
            let options = AttentionOptions { granularity: pick(&QuantGranularity::ALL, index), ..mode };
            with_element!(dtype, T => compare::<T>(gpu, &problem, &options)?);
        }
    }
    Ok(())
}

/// More items than CTAs at a time, so that quantization begins before all statistics are there: short heads and long ones,
/// shared ones, and without the log-sum-exp, for which queries wait.
#[test]
fn are_bit_equal_when_every_cta_takes_many_items() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (index, (shape, keys)) in
        [([64, 8, 300, 64], [4, 400]), ([1, 24, 4096, 128], [24, 4096]), ([1, 8, 500, 128], [2, 20000])]
            .into_iter()
            .enumerate()
    {
        let dtype = pick(&DTYPES, index);
        let problem = AttentionProblem::cross(pick(&LAYOUTS, index), dtype, shape, keys);
        for return_lse in [true, false] {
            let options = AttentionOptions { return_lse, ..Default::default() };
            with_element!(dtype, T => compare::<T>(gpu, &problem, &options)?);
        }
    }
    Ok(())
}
