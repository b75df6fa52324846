//! The CPU engine against exact attention, and what must hold between its own results.

mod common {
    pub mod options;
}

use common::options::any_options;
use half::{bf16, f16};
use proptest::prelude::*;
use sage_tests::error::{Accuracy, assert_rows_near};
use sage_tests::modes::{PV_MODES, f16_roundings};
use sage_tests::tensor::{Inputs, Outputs, Random, attend, exact, indices, key_shape, offset, query_shape, tensor};
use sage_tests::with_element;
use sageattention::{
    AttentionOptions, AttentionProblem, DType, Element, Mask, PvAccum, PvMode, QkMode, Strides, TensorLayout, testing,
};

/// Strides of a tensor with its tokens, heads or batches in any order, and gaps after each.
fn any_strides(heads: usize, tokens: usize, head_dim: usize) -> impl Strategy<Value = Strides> {
    (any::<bool>(), 0..9usize, 0..9usize, 0..9usize).prop_map(move |(heads_first, row_gap, gap, batch_gap)| {
        let row = head_dim + row_gap;
        let (head, token) = if heads_first { (tokens * row + gap, row) } else { (row, heads * row + gap) };
        let batch = heads * head + tokens * token + batch_gap;
        Strides { batch: batch as i64, head: head as i64, token: token as i64 }
    })
}

fn any_problem() -> impl Strategy<Value = AttentionProblem> {
    let lengths = prop_oneof![4 => 1..40usize, 4 => 40..300usize, 1 => Just(128usize), 1 => 1000..1400usize];
    let head_dims = prop_oneof![3 => Just(64usize), 3 => Just(128usize), 1 => Just(256usize), 3 => 1..257usize];
    let dtype = prop_oneof![Just(DType::F16), Just(DType::Bf16), Just(DType::F32)];
    let value_head_dims = prop_oneof![2 => Just(None), 1 => (1..257usize).prop_map(Some)];
    (1..3usize, 1..4usize, 1..4usize, lengths.clone(), lengths, (head_dims, value_head_dims), dtype).prop_flat_map(
        |(batch, key_heads, ratio, query_len, key_len, (head_dim, value_head_dim), dtype)| {
            let query_heads = key_heads * ratio;
            let value_head_dim = value_head_dim.unwrap_or(head_dim);
            let of_queries = |channels| any_strides(query_heads, query_len, channels);
            let of_keys = |channels| any_strides(key_heads, key_len, channels);
            (of_queries(head_dim), of_keys(head_dim), of_keys(value_head_dim), of_queries(value_head_dim)).prop_map(
                move |(query_strides, key_strides, value_strides, output_strides)| AttentionProblem {
                    query_strides,
                    key_strides,
                    value_strides,
                    output_strides,
                    value_head_dim,
                    ..AttentionProblem::cross(
                        TensorLayout::Hnd,
                        dtype,
                        [batch, query_heads, query_len, head_dim],
                        [key_heads, key_len],
                    )
                },
            )
        },
    )
}

fn near_exact<T: Element>(problem: &AttentionProblem, options: &AttentionOptions, seed: u64) {
    let inputs = Inputs::<T>::random(problem, seed);
    let exact = exact(problem, options, &inputs);
    let result = attend(problem, options, &inputs);
    // Standard deviation of a logit's error, about: INT8 steps of numbers up to 4, or up to 9 where the keys' offset stays.
    let scale = options.softmax_scale.map_or(1.0, |scale| f64::from(scale) * (problem.head_dim as f64).sqrt());
    let steps = if options.qk_mode == QkMode::Int4 { 127.0 / 7.0 } else { 1.0 };
    let noise = steps * scale * if options.smooth_k { 0.012 } else { 0.03 };
    // few elements make the measure noisy
    let (rounding, log_rounding) = match options.pv_mode {
        PvMode::F16 => (0.004, 0.001),
        // e4m3 rounds a single probability by up to 1/16
        PvMode::Fp8 => (0.045, 0.07),
    };
    let rounding = rounding + f16_roundings(options, problem.key_len) * 2f64.powi(-11);
    let limit = rounding + 3.0 * noise + 1.0 / (exact.output.len() as f64).sqrt();
    let accuracy = Accuracy::of(result.output.iter().copied(), &exact.output);
    assert!(exact.output.iter().all(|&x| x == 0.0) || accuracy.relative_l1 < limit, "{accuracy:?}, limit {limit}");
    for (row, (&result, &exact)) in result.log_sum_exp.iter().zip(&exact.log_sum_exp).enumerate() {
        let result = f64::from(result);
        let near = (result - exact).abs() < log_rounding + 6.0 * noise;
        assert!(result == exact || near, "row {row}: log-sum-exp {result}, exactly {exact}");
    }
    for (output, log_sum_exp) in result.output.chunks(problem.value_head_dim).zip(&exact.log_sum_exp) {
        assert!(log_sum_exp.is_finite() || output.iter().all(|&x| x == 0.0), "a query without keys gives zeros");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn is_near_exact_attention(problem in any_problem(), options in any_options(), sinks: bool, seed: u64) {
        // what other sums need of values is f16's
        let pv_accum = if problem.dtype != DType::Bf16 { options.pv_accum } else { PvAccum::F32 };
        let options = AttentionOptions { pv_accum, sinks, ..options };
        with_element!(problem.dtype, T => near_exact::<T>(&problem, &options, seed));
    }

    /// Gaps are NaN in the one and not there in the other.
    #[test]
    fn strides_change_nothing(problem in any_problem(), options in any_options(), seed: u64) {
        let strided = Inputs::<f16>::random(&problem, seed);
        let contiguous_problem = AttentionProblem::cross(
            TensorLayout::Nhd,
            DType::F16,
            query_shape(&problem),
            [problem.key_heads, problem.key_len],
        )
        .with_value_head_dim(problem.value_head_dim);
        let contiguous = Inputs {
            query: restride(&strided.query, problem.query_strides, contiguous_problem.query_strides, query_shape(&problem)),
            key: restride(&strided.key, problem.key_strides, contiguous_problem.key_strides, key_shape(&problem)),
            value: restride(&strided.value, problem.value_strides, contiguous_problem.value_strides, problem.value_shape()),
        };
        let result = attend(&contiguous_problem, &options, &contiguous);
        prop_assert_eq!(attend(&problem, &options, &strided), result);
    }

    #[test]
    fn grouped_heads_are_repeated_heads(problem in any_problem(), options in any_options(), seed: u64) {
        let inputs = Inputs::<f16>::random(&problem, seed);
        let ratio = (problem.query_heads / problem.key_heads) as i64;
        let mut repeated = problem;
        repeated.key_heads = problem.query_heads;
        repeated.key_strides = TensorLayout::Hnd.strides(problem.query_heads, problem.key_len, problem.head_dim);
        repeated.value_strides = TensorLayout::Hnd.strides(problem.query_heads, problem.key_len, problem.value_head_dim);
        let repeat = |elements: &[f16], strides, repeated_strides, shape| {
            tensor(repeated_strides, shape, |[batch, head, token, channel]| {
                elements[offset(strides, [batch, head / ratio as usize, token, channel])].to_f32()
            })
        };
        let repeated_inputs = Inputs {
            query: inputs.query.clone(),
            key: repeat(&inputs.key, problem.key_strides, repeated.key_strides, repeated.key_shape()),
            value: repeat(&inputs.value, problem.value_strides, repeated.value_strides, repeated.value_shape()),
        };
        prop_assert_eq!(attend(&problem, &options, &inputs), attend(&repeated, &options, &repeated_inputs));
    }

    /// Values with fewer channels than keys are values padded with zeros; with more, keys and queries are padded.
    #[test]
    fn channels_of_values_are_padded(problem in any_problem(), options in any_options(), channels in 1..257usize, seed: u64) {
        let (layout, shape) = (TensorLayout::Nhd, query_shape(&problem));
        let narrow = AttentionProblem::cross(layout, DType::F16, shape, [problem.key_heads, problem.key_len]);
        let narrow = narrow.with_value_head_dim(channels);
        let width = problem.head_dim.max(channels);
        let [batch, heads, tokens, _] = shape;
        let wide = AttentionProblem::cross(layout, DType::F16, [batch, heads, tokens, width], [problem.key_heads, problem.key_len]);
        let inputs = Inputs::<f16>::random(&narrow, seed);
        let pad = |elements: &[f16], strides, to, shape, existing| tensor(to, shape, |index @ [.., channel]| {
            if channel < existing { elements[offset(strides, index)].to_f32() } else { 0.0 }
        });
        let padded = Inputs::<f16> {
            query: pad(&inputs.query, narrow.query_strides, wide.query_strides, wide.query_shape(), problem.head_dim),
            key: pad(&inputs.key, narrow.key_strides, wide.key_strides, wide.key_shape(), problem.head_dim),
            value: pad(&inputs.value, narrow.value_strides, wide.value_strides, wide.value_shape(), channels),
        };
        let softmax_scale = Some(options.softmax_scale.unwrap_or((problem.head_dim as f32).powf(-0.5)));
        let expected = attend(&wide, &AttentionOptions { softmax_scale, ..options }, &padded);
        let result = attend(&narrow, &options, &inputs);
        prop_assert_eq!(result.log_sum_exp, expected.log_sum_exp);
        for (result, expected) in result.output.chunks(channels).zip(expected.output.chunks(width)) {
            prop_assert_eq!(result, &expected[..channels]);
            prop_assert!(expected[channels..].iter().all(|&element| element == 0.0));
        }
    }

    #[test]
    fn heads_are_independent(heads in 2..6usize, len in 1..200usize, rotation in 1..6usize, options in any_options(), seed: u64) {
        let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, heads, len, 64]);
        let mut inputs = Inputs::<f16>::random(&problem, seed);
        let mut expected = attend(&problem, &options, &inputs);
        let rotation = rotation % heads;
        for tensor in [&mut inputs.query, &mut inputs.key, &mut inputs.value] {
            tensor.rotate_left(rotation * len * 64);
        }
        expected.output.rotate_left(rotation * len * 64);
        if options.return_lse {
            expected.log_sum_exp.rotate_left(rotation * len);
        }
        prop_assert_eq!(attend(&problem, &options, &inputs), expected);
    }

    #[test]
    fn values_of_one_give_one(mut problem in any_problem(), options in any_options(), seed: u64) {
        problem.dtype = DType::F16;
        let mut inputs = Inputs::<f16>::random(&problem, seed);
        inputs.value = tensor(problem.value_strides, problem.value_shape(), |_| 1.0);
        let exact = testing::exact(&problem, &options, inputs.slices());
        let result = attend(&problem, &options, &inputs).output;
        for (row, log_sum_exp) in result.chunks(problem.value_head_dim).zip(exact.log_sum_exp) {
            let expected = if log_sum_exp.is_finite() { 1.0 } else { 0.0 };
            // one step of f16: 16-bit probabilities are rounded after they were added up
            let rounding = if options.pv_mode == PvMode::F16 { 2f64.powi(-10) } else { 0.0 };
            let near = expected * (rounding + f16_roundings(&options, problem.key_len) * 2f64.powi(-11));
            prop_assert!(row.iter().all(|&x| (x - expected).abs() <= near), "{:?}, allowed {}", row, near);
        }
    }
}

/// The elements of one tensor in other strides.
fn restride<T: Element>(elements: &[T], from: Strides, to: Strides, shape: [usize; 4]) -> Vec<T> {
    tensor(to, shape, |index| elements[offset(from, index)].to_f32())
}

fn difference(a: &Outputs, b: &Outputs) -> Accuracy {
    Accuracy::of(a.output.iter().copied(), &b.output)
}

/// Softmax does not notice a row that is added to every key; with `smooth_k` neither does the quantizer.
#[test]
fn a_constant_row_on_every_key_changes_nothing() {
    for size in [8.0, 64.0] {
        let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 2, 500, 64]);
        let options = AttentionOptions { return_lse: true, ..Default::default() };
        // keys are multiples of 1/16, so that shifted keys are exact in f16
        let mut inputs = Inputs::<f16>::random(&problem, 5);
        for key in &mut inputs.key {
            *key = f16::from_f32((key.to_f32() * 16.0).round() / 16.0);
        }
        let mut shifted = inputs.clone();
        for (index, key) in shifted.key.iter_mut().enumerate() {
            let shift = if index % 64 % 3 == 0 { size } else { -size / 2.0 };
            *key = f16::from_f32(key.to_f32() + shift);
        }
        let [plain, moved] = [&inputs, &shifted].map(|inputs| attend(&problem, &options, inputs));
        // the mean is rounded, so a few codes may differ by one
        assert!(difference(&moved, &plain).relative_l1 < 2e-3, "{:?}", difference(&moved, &plain));
        let exact = testing::exact(&problem, &options, shifted.slices()).log_sum_exp;
        for (result, exact) in moved.log_sum_exp.iter().zip(exact) {
            assert!((f64::from(*result) - exact).abs() < 0.15, "log-sum-exp {result}, exactly {exact}");
        }
        // and smoothing is what does it
        let rough = AttentionOptions { smooth_k: false, ..options };
        let rough = difference(&attend(&problem, &rough, &shifted), &plain);
        assert!(rough.relative_l1 > 0.005, "{rough:?}");
    }
}

/// Keys that a query must not see, in later tiles than any it sees, may be anything that leaves the statistics alone:
/// keys anything at all without `smooth_k`, values anything within their channel's range without `smooth_v`.
#[test]
fn later_tiles_leave_no_trace() {
    for (pv_mode, pv_accum) in PV_MODES {
        for (qk_mode, smooth_q) in QkMode::ALL.into_iter().flat_map(|mode| [(mode, false), (mode, true)]) {
            check_later_tiles(AttentionOptions { pv_mode, pv_accum, qk_mode, smooth_q, ..Default::default() });
        }
    }
}

fn check_later_tiles(options: AttentionOptions) {
    let problem = AttentionProblem::new(TensorLayout::Nhd, DType::F16, [1, 2, 400, 64]);
    let options = AttentionOptions { mask: Mask::Causal, smooth_k: false, smooth_v: false, ..options };
    let mut inputs = Inputs::<f16>::random(&problem, 6);
    // the channels' largest values come first
    for (channel, value) in inputs.value.iter_mut().take(2 * 64).enumerate() {
        *value = f16::from_f32(if channel % 2 == 0 { 9.0 } else { -9.0 });
    }
    let clean = attend(&problem, &options, &inputs);
    let mut random = Random(7);
    for [batch, head, token, channel] in indices(key_shape(&problem)).filter(|[_, _, token, _]| *token >= 256) {
        let place = offset(problem.key_strides, [batch, head, token, channel]);
        inputs.key[place] = f16::from_f32(60000.0 * random.normal().signum());
        inputs.value[place] = f16::from_f32((random.uniform() * 18.0 - 9.0) as f32);
    }
    let poisoned = attend(&problem, &options, &inputs);
    for (place, [_, _, token, _]) in indices(query_shape(&problem)).enumerate() {
        assert!(token >= 256 || poisoned.output[place] == clean.output[place], "query {token}");
    }
    assert_ne!(clean.output, poisoned.output);
}

/// With smoothing, later keys and values move the means, and with them only the rounding.
#[test]
fn later_keys_change_no_more_than_the_rounding() {
    let problem = AttentionProblem::new(TensorLayout::Hnd, DType::Bf16, [1, 2, 700, 128]);
    let options = AttentionOptions { mask: Mask::Causal, ..Default::default() };
    let inputs = Inputs::<bf16>::random(&problem, 8);
    let mut other = inputs.clone();
    let mut random = Random(9);
    for [batch, head, token, channel] in indices(key_shape(&problem)).filter(|[_, _, token, _]| *token >= 350) {
        let place = offset(problem.key_strides, [batch, head, token, channel]);
        other.key[place] = bf16::from_f32(3.0 * random.normal());
        other.value[place] = bf16::from_f32(3.0 * random.normal());
    }
    let exact = testing::exact(&problem, &options, inputs.slices()).output;
    let early = |output: Vec<f64>| -> Vec<f64> {
        let places = indices(query_shape(&problem)).zip(output);
        places.filter(|([_, _, token, _], _)| *token < 350).map(|(_, element)| element).collect()
    };
    let accuracy = Accuracy::of(early(attend(&problem, &options, &other).output), &early(exact));
    assert!(accuracy.relative_l1 < 0.08, "{accuracy:?}");
}

/// Attention over two halves of the keys, weighted by their log-sum-exps, is attention over all of them.
#[test]
fn halves_merge_by_log_sum_exp() {
    let options = AttentionOptions { return_lse: true, ..Default::default() };
    for (key_len, split) in [(300, 128), (1500, 777), (2600, 1024)] {
        let problem = |key_len| AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 2, 65, 64], [1, key_len]);
        let inputs = Inputs::<f16>::random(&problem(key_len), 10);
        let (early_keys, late_keys) = inputs.key.split_at(split * 64);
        let (early_values, late_values) = inputs.value.split_at(split * 64);
        let half = |key: &[f16], value: &[f16]| {
            let inputs = Inputs { query: inputs.query.clone(), key: key.to_vec(), value: value.to_vec() };
            attend(&problem(key.len() / 64), &options, &inputs)
        };
        let (early, late) = (half(early_keys, early_values), half(late_keys, late_values));
        let merged: Vec<f64> = (0..early.output.len())
            .map(|place| {
                let [early_weight, late_weight] =
                    [&early, &late].map(|half| f64::from(half.log_sum_exp[place / 64]).exp());
                (early.output[place] * early_weight + late.output[place] * late_weight) / (early_weight + late_weight)
            })
            .collect();
        let exact = testing::exact(&problem(key_len), &options, inputs.slices());
        let (merged, whole) = (
            Accuracy::of(merged, &exact.output),
            difference_to(&exact.output, &attend(&problem(key_len), &options, &inputs)),
        );
        assert!(merged.relative_l1 < whole.relative_l1 * 1.15, "merged {merged:?}, whole {whole:?}");
    }
}

fn difference_to(exact: &[f64], result: &Outputs) -> Accuracy {
    Accuracy::of(result.output.iter().copied(), exact)
}

/// The relative error on normal inputs is the scheme's, whatever the length.
#[test]
fn the_error_does_not_grow_with_the_length() {
    fn check<T: Element>(pv_mode: PvMode, len: usize, limit: f64) {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, T::DTYPE, [1, 1, 100, 128], [1, len]);
        let options = AttentionOptions { pv_mode, ..Default::default() };
        let inputs = Inputs::<T>::normal(&problem, 11);
        let exact = testing::exact(&problem, &options, inputs.slices());
        let accuracy = difference_to(&exact.output, &attend(&problem, &options, &inputs));
        println!("{pv_mode:?}, {}, {len} keys: {accuracy:?}", T::DTYPE);
        assert!(accuracy.relative_l1 < limit, "{pv_mode:?}, {}, {len} keys: {accuracy:?}", T::DTYPE);
    }
    for len in [128, 1500, 4000, 16384] {
        check::<f16>(PvMode::Fp8, len, 0.0395);
        check::<f16>(PvMode::F16, len, 0.012);
        check::<bf16>(PvMode::F16, len, 0.012);
        check::<f32>(PvMode::F16, len, 0.012);
    }
}

/// Scores that rise all the way: what was summed up must follow each new maximum.
#[test]
fn rising_scores() {
    let modes = PV_MODES.into_iter().flat_map(|mode| [(mode, true), (mode, false)]);
    for (((pv_mode, pv_accum), smooth_v), mask) in modes.flat_map(|mode| [(mode, Mask::None), (mode, Mask::Causal)]) {
        let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 1, 3000, 64]);
        let options = AttentionOptions {
            pv_mode,
            pv_accum,
            mask,
            smooth_k: false,
            smooth_v,
            return_lse: true,
            ..Default::default()
        };
        let inputs = Inputs::<f16>::rising(&problem, 42);
        let exact = testing::exact(&problem, &options, inputs.slices());
        let result = attend(&problem, &options, &inputs);
        assert_rows_near(&result.output, &exact.output, 64, [0.1, 0.0], format_args!("{options:?}"));
        for (row, (&result, &exact)) in result.log_sum_exp.iter().zip(&exact.log_sum_exp).enumerate() {
            assert!((f64::from(result) - exact).abs() < 0.2, "log-sum-exp of row {row}: {result}, exactly {exact}");
        }
    }
}

#[test]
fn results_repeat_on_any_number_of_threads() {
    let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [2, 3, 333, 64]);
    let inputs = Inputs::<f16>::random(&problem, 12);
    for (pv_mode, pv_accum) in PV_MODES {
        let smooth_q = pv_mode == PvMode::F16;
        let mask = Mask::Causal;
        let options = AttentionOptions { pv_mode, pv_accum, smooth_q, return_lse: true, mask, ..Default::default() };
        let expected = attend(&problem, &options, &inputs);
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            assert_eq!(pool.install(|| attend(&problem, &options, &inputs)), expected, "{threads} threads");
        }
    }
}

/// bf16 holds values as large as f32, whose sums must be numbers too.
#[test]
fn the_largest_values() {
    let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::Bf16, [1, 1, 10, 64], [1, 2000]);
    let options = AttentionOptions { pv_mode: PvMode::F16, ..Default::default() };
    let mut inputs = Inputs::<bf16>::random(&problem, 13);
    inputs.value.fill(bf16::MAX);
    let exact = testing::exact(&problem, &options, inputs.slices());
    let result = attend(&problem, &options, &inputs);
    let accuracy = difference_to(&exact.output, &result);
    assert!(accuracy.relative_l1 < 0.004, "{accuracy:?}");
}
