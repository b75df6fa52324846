//! The CPU engine in every mode: against attention in f64 on the numbers that its codes stand for, so that what is compared
//! is how probabilities and sums are rounded; and how far the modes are from exact attention, against each other.

mod common {
    pub mod options;
}

use common::options::any_options;
use half::f16;
use proptest::prelude::*;
use sage_tests::error::Accuracy;
use sage_tests::modes::{PV_MODES, QK_MODES, f16_roundings, on_codes};
use sage_tests::tensor::{Inputs, attend};
use sage_tests::with_element;
use sageattention::{
    AttentionOptions, AttentionProblem, CausalAlign, DType, Element, Mask, PvAccum, PvMode, QkMode, QuantGranularity,
    TensorLayout, supports, testing,
};

/// Root mean square of the relative error of a number rounded to so many bits after the first, which is as likely in each
/// octave at each place on a logarithmic scale: half a step is 2^(−bits − 1), its mean square a third of its square, and 1/m²
/// of a mantissa m in [1, 2) is .54 on average.
fn rounding(bits: i32) -> f64 {
    2f64.powi(-bits - 1) * (0.541f64 / 3.0).sqrt()
}

/// The expected relative L1 between the engine and [`on_codes`]: probabilities are rounded, then sums, then the output.
fn expected(problem: &AttentionProblem, options: &AttentionOptions) -> f64 {
    let (bits, output) = match problem.dtype {
        DType::Bf16 => (7, rounding(7)),
        DType::F32 => (10, 0.0),
        _ => (10, rounding(10)),
    };
    let probability = match options.pv_mode {
        PvMode::Fp8 => rounding(3),
        PvMode::F16 => rounding(bits),
    };
    // of a sum's roundings, all of one size, the errors are independent
    let sums = f16_roundings(options, problem.key_len).sqrt() * rounding(10);
    (probability.powi(2) + sums.powi(2) + output.powi(2)).sqrt()
}

/// How much larger than expected an error may be; outputs of few keys or channels scatter more.
const SCATTER: f64 = 1.15;

fn near_codes<T: Element>(problem: &AttentionProblem, options: &AttentionOptions, seed: u64) -> f64 {
    let inputs = Inputs::<T>::normal(problem, seed);
    let codes = on_codes(problem, options, &inputs);
    let result = attend(problem, options, &inputs);
    if codes.output.iter().all(|&x| x == 0.0) {
        assert!(result.output.iter().all(|&x| x == 0.0), "queries that see nothing have zeros");
        return 0.0;
    }
    let accuracy = Accuracy::of(result.output.iter().copied(), &codes.output);
    let expected = expected(problem, options);
    let limit = expected * (SCATTER + 6.0 / (codes.output.len() as f64).sqrt());
    assert!(accuracy.relative_l1 < limit, "{accuracy:?}, expected {expected}\n{problem:?}\n{options:?}");
    for (row, (&result, &codes)) in result.log_sum_exp.iter().zip(&codes.log_sum_exp).enumerate() {
        // a sum of e4m3 numbers may be one, rounded by up to 1/16; others are summed before they are rounded
        let near = if options.pv_mode == PvMode::Fp8 { 0.065 } else { 1e-4 };
        let distance = (f64::from(result) - codes).abs();
        assert!(f64::from(result) == codes || distance < near, "log-sum-exp of row {row}: {result}, not {codes}");
    }
    accuracy.relative_l1 / expected
}

/// Everything with everything: queries and keys, granularities, values, head dimensions, masks, element types.
#[test]
fn the_whole_matrix() {
    for (pv_mode, pv_accum) in PV_MODES {
        let (mut least, mut largest) = (f64::INFINITY, 0.0f64);
        for (index, granularity) in QuantGranularity::ALL.into_iter().enumerate() {
            for ((qk_mode, smooth_q), head_dim) in QK_MODES.into_iter().flat_map(|mode| [(mode, 64), (mode, 128)]) {
                for mask in [Mask::None, Mask::CausalAligned(CausalAlign::BottomRight)] {
                    let options = AttentionOptions {
                        granularity,
                        qk_mode,
                        pv_mode,
                        pv_accum,
                        smooth_q,
                        smooth_k: (index + head_dim / 64) % 2 == 0,
                        smooth_v: mask == Mask::None,
                        mask,
                        return_lse: true,
                        ..Default::default()
                    };
                    let shape = [1, 2, 35, head_dim];
                    let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, shape, [1, 150]);
                    let error = near_codes::<f16>(&problem, &options, 1);
                    (least, largest) = (least.min(error), largest.max(error));
                    for dtype in [DType::Bf16, DType::F32] {
                        let problem = AttentionProblem { dtype, ..problem };
                        if supports(&problem, &options).is_ok() {
                            let error = with_element!(dtype, T => near_codes::<T>(&problem, &options, 2));
                            (least, largest) = (least.min(error), largest.max(error));
                        }
                    }
                }
            }
        }
        println!("{pv_mode:?} {pv_accum:?}: {least} to {largest} times what is expected");
        assert!(least > 0.45, "{pv_mode:?} {pv_accum:?}: fewer roundings than the mode has");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn is_near_its_codes(
        options in any_options(),
        lengths in (1..150usize, 1..300usize),
        heads in (1..3usize, 1..3usize, 1..3usize),
        head_dim in 16..257usize,
        nhd: bool,
        seed: u64,
    ) {
        let ((query_len, key_len), (batch, key_heads, ratio)) = (lengths, heads);
        let layout = if nhd { TensorLayout::Nhd } else { TensorLayout::Hnd };
        let query_shape = [batch, key_heads * ratio, query_len, head_dim];
        let problem = AttentionProblem::cross(layout, DType::F16, query_shape, [key_heads, key_len]);
        // biases of smoothed queries are compared with those of keys as they are
        near_codes::<f16>(&problem, &AttentionOptions { hadamard: false, ..options }, seed);
    }
}

/// A channel's offset on queries and keys, as models have it: what smoothing is for.
fn with_offsets(problem: &AttentionProblem, [of_queries, of_keys]: [f32; 2]) -> Inputs<f16> {
    let mut inputs = Inputs::<f16>::with_offsets(problem, 3, [0.0, 0.0]);
    for (tensor, size) in [(&mut inputs.query, of_queries), (&mut inputs.key, of_keys)] {
        for (place, element) in tensor.iter_mut().enumerate() {
            let sign = [1.0, -1.0][place % problem.head_dim / 16 % 2];
            let offset = if place % problem.head_dim % 16 == 5 { sign * size } else { 0.0 };
            *element = f16::from_f32(element.to_f32() + offset);
        }
    }
    inputs
}

fn relative_l1(problem: &AttentionProblem, options: &AttentionOptions, inputs: &Inputs<f16>) -> f64 {
    let exact = testing::exact(problem, options, inputs.slices()).output;
    Accuracy::of(attend(problem, options, inputs).output, &exact).relative_l1
}

/// INT4's steps are 127 / 7 times INT8's, and so is the error, as long as it is small.
#[test]
fn int4_has_the_error_of_its_steps() {
    let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 2, 500, 64]);
    let inputs = with_offsets(&problem, [0.0, 0.0]);
    for (granularity, smooth_q) in QuantGranularity::ALL.into_iter().flat_map(|g| [(g, false), (g, true)]) {
        let [int8, int4] = QkMode::ALL.map(|qk_mode| {
            let options =
                AttentionOptions { granularity, qk_mode, smooth_q, pv_mode: PvMode::F16, ..Default::default() };
            relative_l1(&problem, &options, &inputs)
        });
        let ratio = int4 / int8 / (127.0 / 7.0);
        println!("{granularity:?}, smooth_q {smooth_q}: {int8} {int4}, {ratio}");
        assert!((0.8..1.2).contains(&ratio), "{granularity:?}: {int8} {int4}");
    }
}

/// Offsets that smoothing takes out cost nothing; those that stay cost much.
#[test]
fn smoothing_takes_offsets_out() {
    let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 2, 500, 64]);
    for qk_mode in QkMode::ALL {
        let error = |offsets, smooth_q, smooth_k| {
            let options = AttentionOptions { qk_mode, smooth_q, smooth_k, pv_mode: PvMode::F16, ..Default::default() };
            relative_l1(&problem, &options, &with_offsets(&problem, offsets))
        };
        let plain = error([0.0, 0.0], true, true);
        let both = error([16.0, 16.0], true, true);
        let keys_alone = error([0.0, 16.0], false, true);
        let [without_q, without_k, without] =
            [error([16.0, 0.0], false, true), error([0.0, 16.0], true, false), error([16.0, 16.0], false, false)];
        println!("{qk_mode:?}: {plain} {both} {keys_alone} / {without_q} {without_k} {without}");
        // offsets are rounded with the inputs, which exact attention sees too
        assert!(both < 1.1 * plain && keys_alone < 1.2 * plain, "{qk_mode:?}: {plain} {both} {keys_alone}");
        assert!(without_q > 2.0 * plain && without_k > 2.0 * plain, "{qk_mode:?}: {plain} {without_q} {without_k}");
        assert!(without > without_k, "{qk_mode:?}: {without} {without_k}");
    }
}

/// What sums are taken in costs little beside what queries, keys and values lose by their own rounding.
#[test]
fn sums_cost_little() {
    let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 2, 100, 128], [2, 2000]);
    let inputs = Inputs::<f16>::normal(&problem, 4);
    let error = |pv_mode, pv_accum| {
        relative_l1(&problem, &AttentionOptions { pv_mode, pv_accum, ..Default::default() }, &inputs)
    };
    for pv_mode in PvMode::ALL {
        let plain = error(pv_mode, PvAccum::F32);
        for &pv_accum in PvAccum::of(pv_mode) {
            let error = error(pv_mode, pv_accum);
            println!("{pv_mode:?} {pv_accum:?}: {error}, {} times F32's", error / plain);
            assert!(error < 1.05 * plain, "{pv_mode:?} {pv_accum:?}: {error}, F32 {plain}");
        }
    }
    assert!(error(PvMode::F16, PvAccum::F16) < 0.5 * error(PvMode::Fp8, PvAccum::F32));
}

/// Where sums are rounded to f16 and where they start anew, seen on keys of equal weight whose values cancel but for what
/// rounding drops: 2048 + 1 is 2048 in f16, and 126 + 7/64 is 126 + 8/64.
#[test]
fn f16_sums_are_rounded_after_each_product() {
    let output = |len: usize, (pv_mode, pv_accum), values: &[(usize, f32)]| -> f64 {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, 1, 64], [1, len]);
        let mut inputs = Inputs::<f16>::random(&problem, 6);
        inputs.key.fill(f16::ONE);
        inputs.value.fill(f16::ZERO);
        for &(key, value) in values {
            inputs.value[key * 64..][..64].fill(f16::from_f32(value));
        }
        let options = AttentionOptions { pv_mode, pv_accum, smooth_v: false, ..Default::default() };
        attend(&problem, &options, &inputs).output[0]
    };
    let near = |result: f64, expected: f64| (result - expected).abs() <= expected * 2f64.powi(-10);
    let f16 = |accum| (PvMode::F16, accum);

    // 1 is in the product of 2048, and dropped
    let one_product = [(0, 2048.0), (1, 1.0), (16, -2048.0)];
    assert_eq!(output(64, f16(PvAccum::F32), &one_product), 1.0 / 64.0);
    assert_eq!(output(64, f16(PvAccum::F16F32), &one_product), 0.0);
    assert_eq!(output(64, f16(PvAccum::F16), &one_product), 0.0);
    // −2048 and 1 are in the same product, which is exact
    let cancelling = [(0, 2048.0), (16, 1.0), (17, -2048.0)];
    assert_eq!(output(64, f16(PvAccum::F16F32), &cancelling), 1.0 / 64.0);
    assert_eq!(output(64, f16(PvAccum::F16), &cancelling), 1.0 / 64.0);
    // 1 is in another chunk than the first 2048
    let two_chunks = [(0, 2048.0), (64, 1.0), (80, -2048.0)];
    assert_eq!(output(128, f16(PvAccum::F16F32), &two_chunks), 1.0 / 128.0);
    assert_eq!(output(128, f16(PvAccum::F16), &two_chunks), 0.0);

    // probabilities are 56, and values 2.25 and 2⁻⁹ times 64
    let one_product = [(0, 144.0), (31, 0.125), (32, -144.0)];
    let two_products = [(0, 144.0), (32, 0.125), (33, -144.0)];
    let sums = (PvMode::Fp8, PvAccum::F32F16);
    let expected = |sum: f64| 64.0 * sum / (56.0 * 64.0);
    assert!(near(output(64, sums, &one_product), expected(8.0 / 64.0)), "{}", output(64, sums, &one_product));
    assert!(near(output(64, sums, &two_products), expected(7.0 / 64.0)), "{}", output(64, sums, &two_products));
}

/// Equal keys of equal weight whose values are far from zero: their sum ends f16's range. The mean does not.
#[test]
fn smoothed_values_keep_f16_sums_in_range() {
    let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, 5, 64], [1, 1000]);
    let mut inputs = Inputs::<f16>::random(&problem, 5);
    inputs.key.fill(f16::ONE);
    for value in &mut inputs.value {
        *value = f16::from_f32(200.0 + value.to_f32());
    }
    let run = |pv_accum, smooth_v| {
        let options = AttentionOptions { pv_mode: PvMode::F16, pv_accum, smooth_v, ..Default::default() };
        attend_anything(&problem, &options, &inputs)
    };
    let exact = testing::exact(&problem, &AttentionOptions::default(), inputs.slices()).output;
    assert!(run(PvAccum::F16, false).iter().any(|x| x.is_infinite()));
    for result in [run(PvAccum::F16, true), run(PvAccum::F16F32, true), run(PvAccum::F32, false)] {
        let accuracy = Accuracy::of(result, &exact);
        // 200 is a multiple of 1/8 in f16
        assert!(accuracy.max <= 0.15, "{accuracy:?}");
    }
}

/// The engine's output, which may be no numbers.
fn attend_anything(problem: &AttentionProblem, options: &AttentionOptions, inputs: &Inputs<f16>) -> Vec<f64> {
    let mut output = vec![f16::ZERO; inputs.query.len()];
    testing::attend(problem, options, inputs.slices(), &mut output, None);
    output.into_iter().map(f16::to_f64).collect()
}
