//! What attention must satisfy whatever the numbers are.

use crate::{DTYPES, LAYOUTS, SMOOTHINGS, modes, pick, with_lse};
use half::f16;
use sage_tests::error::{Accuracy, assert_rows_near};
use sage_tests::gpu::{assert_near, attend, gpu};
use sage_tests::tensor::{Inputs, Outputs, Random, indices, key_shape, offset, query_shape, tensor};
use sage_tests::with_element;
use sageattention::{AttentionOptions, AttentionProblem, CausalAlign, Mask, PvMode, QuantGranularity};

fn problem(head_dim: usize) -> AttentionProblem {
    AttentionProblem::new(LAYOUTS[0], DTYPES[0], [2, 4, 300, head_dim])
}

/// Softmax does not see a row that is added to every key, and smoothing keeps the codes from seeing it; the
/// log-sum-exp moves by `softmax_scale · query · row`.
#[test]
fn shifted_keys() {
    let Some(gpu) = gpu() else { return };
    for head_dim in [64, 96, 128, 192] {
        let problem = problem(head_dim);
        let inputs = Inputs::<f16>::random(&problem, 30);
        let mut random = Random(31);
        // Multiples of the f16 step at the sum, so that the sum is exact more often than not.
        let row: Vec<f32> = (0..head_dim).map(|_| (random.normal() * 4.0).round()).collect();
        let mut shifted = inputs.clone();
        for token in shifted.key.chunks_exact_mut(head_dim) {
            for (element, &shift) in token.iter_mut().zip(&row) {
                *element = f16::from_f32(element.to_f32() + shift);
            }
        }
        let softmax_scale = (head_dim as f32).powf(-0.5);
        let mut expected = attend(gpu, &problem, &with_lse(), &inputs);
        for (query, log_sum_exp) in inputs.query.chunks_exact(head_dim).zip(&mut expected.log_sum_exp) {
            let score: f32 = query.iter().zip(&row).map(|(element, shift)| element.to_f32() * shift).sum();
            *log_sum_exp += softmax_scale * score;
        }
        let result = attend(gpu, &problem, &with_lse(), &shifted);
        assert_near(&result, &expected, head_dim, PvMode::Fp8, "shifted keys");
    }
}

#[test]
fn permuted_heads() {
    let Some(gpu) = gpu() else { return };
    let problem = AttentionProblem { batch: 1, ..problem(64) };
    let inputs = Inputs::<f16>::random(&problem, 32);
    let head = 300 * 64;
    let permute =
        |tensor: &[f16]| [2, 0, 3, 1].iter().flat_map(|&from| &tensor[from * head..][..head]).copied().collect();
    let permuted = Inputs { query: permute(&inputs.query), key: permute(&inputs.key), value: permute(&inputs.value) };
    for options in modes() {
        let expected = attend(gpu, &problem, &options, &inputs);
        let result = attend(gpu, &problem, &options, &permuted);
        for (to, from) in [2, 0, 3, 1].into_iter().enumerate() {
            assert!(result.output[to * head..][..head] == expected.output[from * head..][..head]);
            assert!(result.log_sum_exp[to * 300..][..300] == expected.log_sum_exp[from * 300..][..300]);
        }
    }
}

/// A weighted mean of ones is one.
#[test]
fn values_of_ones() {
    let Some(gpu) = gpu() else { return };
    for dtype in DTYPES {
        let each = SMOOTHINGS.into_iter().flat_map(|mode| [(mode, Mask::None), (mode, Mask::Causal)]);
        for ((pv_mode, smooth_v), mask) in each {
            let problem = AttentionProblem { dtype, ..problem(128) };
            let options = AttentionOptions { pv_mode, smooth_v, mask, ..with_lse() };
            with_element!(dtype, T => {
                let value = tensor(problem.value_strides, key_shape(&problem), |_| 1.0);
                let inputs = Inputs::<T> { value, ..Inputs::random(&problem, 33) };
                let result = attend(gpu, &problem, &options, &inputs);
                let furthest = result.output.iter().map(|one| (one - 1.0).abs()).fold(0.0, f64::max);
                assert!(furthest <= 4e-3, "{dtype}, {options:?}: {furthest}");
            });
        }
    }
}

/// The first queries of a causal mask don't see what keys and values come later. (Means and value scales do; so the
/// results are near, not equal.)
#[test]
fn causal_ignores_later_keys() {
    let Some(gpu) = gpu() else { return };
    let seen = 200;
    for mask in [Mask::Causal, Mask::CausalAligned(CausalAlign::TopLeft)] {
        let problem = problem(64);
        let options = AttentionOptions { mask, ..with_lse() };
        let inputs = Inputs::<f16>::random(&problem, 34);
        let mut random = Random(35);
        let mut poisoned = inputs.clone();
        for (index, (key, value)) in poisoned.key.iter_mut().zip(&mut poisoned.value).enumerate() {
            if index / 64 % 300 >= seen {
                // Keys that would win every softmax, and values that would show.
                *key = f16::from_f32(3.0 * random.normal());
                *value = f16::from_f32(value.to_f32() + 3.0);
            }
        }
        let first_rows = |outputs: &Outputs| Outputs {
            output: outputs.output.chunks_exact(300 * 64).flat_map(|head| &head[..seen * 64]).copied().collect(),
            log_sum_exp: outputs.log_sum_exp.chunks_exact(300).flat_map(|head| &head[..seen]).copied().collect(),
        };
        // The keys' new mean moves scores within their rounding, so compare both with the exact result.
        let exact = sageattention::testing::exact(&problem, &options, inputs.slices());
        let exact: Vec<f64> =
            exact.output.chunks_exact(300 * 64).flat_map(|head| &head[..seen * 64]).copied().collect();
        for inputs in [&inputs, &poisoned] {
            let accuracy = Accuracy::of(first_rows(&attend(gpu, &problem, &options, inputs)).output, &exact);
            assert!(accuracy.relative_l1 < 0.08 && accuracy.cosine > 0.997, "{accuracy:?}");
        }
    }
}

/// Without smoothing, whole tiles that a query does not see leave no trace: keys of any size, values within their
/// channel's range.
#[test]
fn later_tiles_leave_no_trace() {
    let Some(gpu) = gpu() else { return };
    for (head_dim, mode) in [64, 96, 128, 192].into_iter().flat_map(|head_dim| modes().map(|mode| (head_dim, mode))) {
        let problem = AttentionProblem::new(LAYOUTS[1], DTYPES[0], [1, 2, 400, head_dim]);
        let options = AttentionOptions { mask: Mask::Causal, smooth_k: false, smooth_v: false, ..mode };
        let mut inputs = Inputs::<f16>::random(&problem, 40);
        // The channels' largest values come first.
        for (channel, value) in inputs.value.iter_mut().take(2 * head_dim).enumerate() {
            *value = f16::from_f32(if channel % 2 == 0 { 9.0 } else { -9.0 });
        }
        let clean = attend(gpu, &problem, &options, &inputs);
        let mut random = Random(41);
        for index in indices(key_shape(&problem)).filter(|[_, _, token, _]| *token >= 256) {
            let place = offset(problem.key_strides, index);
            inputs.key[place] = f16::from_f32(60000.0 * random.normal().signum());
            inputs.value[place] = f16::from_f32((random.uniform() * 18.0 - 9.0) as f32);
        }
        let poisoned = attend(gpu, &problem, &options, &inputs);
        assert!(clean != poisoned);
        for (row, [_, _, query, _]) in indices([1, 2, 400, 1]).enumerate().filter(|(_, [_, _, query, _])| *query < 256)
        {
            let output = row * head_dim..(row + 1) * head_dim;
            assert!(poisoned.output[output.clone()] == clean.output[output], "query {query}");
            assert!(poisoned.log_sum_exp[row] == clean.log_sum_exp[row], "log_sum_exp of query {query}");
        }
    }
}

/// Scores that rise all the way: references are replaced after every flush of the accumulators, and what was flushed
/// must follow.
#[test]
fn rising_scores() {
    let Some(gpu) = gpu() else { return };
    for head_dim in [64, 96, 128, 192] {
        let each = SMOOTHINGS.into_iter().flat_map(|mode| [(mode, Mask::None), (mode, Mask::Causal)]);
        for ((pv_mode, smooth_v), mask) in each {
            let problem = AttentionProblem::new(LAYOUTS[0], DTYPES[0], [1, 2, 3000, head_dim]);
            let options = AttentionOptions { pv_mode, mask, smooth_k: false, smooth_v, ..with_lse() };
            let inputs = Inputs::<f16>::rising(&problem, 42);
            let exact = sageattention::testing::exact(&problem, &options, inputs.slices());
            let result = attend(gpu, &problem, &options, &inputs);
            assert_rows_near(&result.output, &exact.output, head_dim, [0.1, 0.0], format_args!("{options:?}"));
            for (row, (&result, &exact)) in result.log_sum_exp.iter().zip(&exact.log_sum_exp).enumerate() {
                assert!((f64::from(result) - exact).abs() < 0.2, "log_sum_exp of row {row}: {result}, exactly {exact}");
            }
        }
    }
}

/// One score that is far beyond the reference, at each of a chunk's places: no other tells of it.
#[test]
fn outliers() {
    let Some(gpu) = gpu() else { return };
    for head_dim in [64, 96, 128, 192, 256] {
        let problem = AttentionProblem::cross(LAYOUTS[0], DTYPES[0], [1, 64, 70, head_dim], [64, 300]);
        let inputs = Inputs::<f16>::outliers(&problem, 43, 130);
        for (pv_mode, smooth_v) in SMOOTHINGS {
            let options = AttentionOptions { pv_mode, smooth_k: false, smooth_v, ..with_lse() };
            let exact = sageattention::testing::exact(&problem, &options, inputs.slices());
            let result = attend(gpu, &problem, &options, &inputs);
            assert_rows_near(&result.output, &exact.output, head_dim, [0.1, 0.0], format_args!("{options:?}"));
        }
    }
}

/// Scores of which one unit of the integers is up to ten octaves, so that a row is the values of its largest; and a scale that belongs to
/// one key. Log-sum-exps would be as large, and as little exact.
#[test]
fn huge_scores() {
    let Some(gpu) = gpu() else { return };
    for head_dim in [64, 96, 128, 192, 256] {
        let problem = AttentionProblem::cross(LAYOUTS[0], DTYPES[0], [1, 4, 200, head_dim], [4, 700]);
        let scaled = [[20.0, 20.0], [300.0, 300.0], [10_000.0, 1.0]];
        let inputs = scaled.map(|factors| Inputs::<f16>::scaled(&problem, 44, factors));
        let with_huge_key = [100.0, 3000.0, 60_000.0].map(|size| Inputs::with_huge_key(&problem, 45, size));
        for inputs in inputs.iter().chain(&with_huge_key) {
            for options in modes() {
                let options = AttentionOptions { smooth_k: false, return_lse: false, ..options };
                let result = attend(gpu, &problem, &options, inputs);
                let expected = sage_tests::tensor::attend(&problem, &options, inputs);
                assert_near(&result, &expected, head_dim, options.pv_mode, format_args!("{options:?}"));
            }
        }
    }
}

#[test]
fn shared_key_heads_equal_repeated_ones() {
    let Some(gpu) = gpu() else { return };
    let shared = AttentionProblem::cross(LAYOUTS[0], DTYPES[0], [1, 6, 200, 64], [2, 333]);
    let repeated = AttentionProblem::cross(LAYOUTS[0], DTYPES[0], [1, 6, 200, 64], [6, 333]);
    let inputs = Inputs::<f16>::random(&shared, 36);
    let repeat = |tensor: &[f16]| tensor.chunks_exact(333 * 64).flat_map(|head| head.repeat(3)).collect();
    let copies = Inputs { query: inputs.query.clone(), key: repeat(&inputs.key), value: repeat(&inputs.value) };
    for options in modes() {
        assert!(attend(gpu, &shared, &options, &inputs) == attend(gpu, &repeated, &options, &copies));
    }
}

/// Attention over two halves of the keys, weighted by their sums of exponentials, is attention over all.
#[test]
fn halves_merge_by_their_log_sum_exp() {
    let Some(gpu) = gpu() else { return };
    for (smooth_k, head_dim) in [(true, 64), (false, 64), (true, 128), (false, 128)] {
        let whole = AttentionProblem::cross(LAYOUTS[0], DTYPES[0], [1, 2, 250, head_dim], [2, 600]);
        let half = AttentionProblem { key_len: 300, ..whole };
        let options = AttentionOptions { smooth_k, ..with_lse() };
        // Without smoothing, the offset of `Inputs::random`'s keys would drown the comparison.
        let mut random = Random(37);
        let mut normal = |shape| {
            tensor(
                LAYOUTS[0].strides(2, if shape { 250 } else { 600 }, head_dim),
                if shape { query_shape(&whole) } else { key_shape(&whole) },
                |_| random.normal(),
            )
        };
        let inputs = Inputs::<f16> { query: normal(true), key: normal(false), value: normal(false) };
        // The whole's strides, starting later.
        let second = Inputs {
            key: inputs.key[300 * head_dim..].to_vec(),
            value: inputs.value[300 * head_dim..].to_vec(),
            ..inputs.clone()
        };
        let first = Inputs {
            key: inputs.key[..900 * head_dim].to_vec(),
            value: inputs.value[..900 * head_dim].to_vec(),
            ..inputs.clone()
        };
        let [first, second] = [first, second].map(|inputs| attend(gpu, &half, &options, &inputs));
        let mut merged = first.clone();
        for row in 0..merged.log_sum_exp.len() {
            let [a, b] = [first.log_sum_exp[row], second.log_sum_exp[row]].map(f64::from);
            let sum = a.max(b) + (a.min(b) - a.max(b)).exp().ln_1p();
            merged.log_sum_exp[row] = sum as f32;
            for channel in row * head_dim..(row + 1) * head_dim {
                merged.output[channel] =
                    (a - sum).exp() * first.output[channel] + (b - sum).exp() * second.output[channel];
            }
        }
        // Two quantizations, so compare with the exact result.
        let exact = sageattention::testing::exact(&whole, &options, inputs.slices());
        let accuracy = Accuracy::of(merged.output, &exact.output);
        assert!(accuracy.relative_l1 < 0.045 && accuracy.cosine > 0.999, "smooth_k {smooth_k}: {accuracy:?}");
        for (row, (&merged, &exact)) in merged.log_sum_exp.iter().zip(&exact.log_sum_exp).enumerate() {
            assert!((f64::from(merged) - exact).abs() < 0.05, "log_sum_exp of row {row}: {merged}, exactly {exact}");
        }
    }
}

#[test]
fn layouts_are_equal() {
    let Some(gpu) = gpu() else { return };
    for (index, granularity) in QuantGranularity::ALL.into_iter().enumerate() {
        let head_dim = pick(&[64, 128, 40], index);
        for mode in modes() {
            let options = AttentionOptions { granularity, ..mode };
            let [hnd, nhd] = LAYOUTS.map(|layout| {
                let problem = AttentionProblem::cross(layout, DTYPES[1], [2, 4, 130, head_dim], [2, 260]);
                attend(gpu, &problem, &options, &Inputs::<half::bf16>::random(&problem, 38))
            });
            assert!(hnd == nhd, "{options:?}");
        }
    }
}

/// Zeros everywhere are not divided by.
#[test]
fn zeros() {
    let Some(gpu) = gpu() else { return };
    let problem = problem(64);
    let zeros = || vec![f16::ZERO; 2 * 4 * 300 * 64];
    let inputs = Inputs { query: zeros(), key: zeros(), value: zeros() };
    for options in modes() {
        let result = attend(gpu, &problem, &options, &inputs);
        assert!(result.output.iter().all(|&element| element == 0.0));
        assert!(result.log_sum_exp.iter().all(|&value| (value - 300f32.ln()).abs() < 1e-3));
    }
}

/// With f32 that f16 can hold, all is as with f16 but the output, which is not rounded.
#[test]
fn f32_is_f16_and_its_output_is_not_rounded() {
    let Some(gpu) = gpu() else { return };
    for (index, head_dim) in [64, 96, 128, 192, 256, 40, 37].into_iter().enumerate() {
        for options in modes() {
            let shape = [2, 4, 300, head_dim];
            let narrow = AttentionProblem::cross(pick(&LAYOUTS, index), DTYPES[0], shape, [2, 555]);
            let wide = AttentionProblem { dtype: DTYPES[2], ..narrow };
            let inputs = Inputs::<f16>::random(&narrow, 50);
            let narrow = attend(gpu, &narrow, &options, &inputs);
            let wide = attend(gpu, &wide, &options, &inputs.widened());
            assert_eq!(wide.log_sum_exp, narrow.log_sum_exp);
            assert!(wide.output != narrow.output);
            let rounded: Vec<f64> = wide.output.iter().map(|&element| f16::from_f64(element).to_f64()).collect();
            assert!(rounded == narrow.output, "{head_dim}, {options:?}");
        }
    }
}

/// bf16 holds values as large as f32, whose sums must be numbers too.
#[test]
fn the_largest_values() {
    let Some(gpu) = gpu() else { return };
    let problem = AttentionProblem::cross(LAYOUTS[0], DTYPES[1], [1, 2, 100, 128], [2, 2000]);
    let options = AttentionOptions { pv_mode: PvMode::F16, ..with_lse() };
    let mut inputs = Inputs::<half::bf16>::random(&problem, 43);
    inputs.value.fill(half::bf16::MAX);
    let exact = sageattention::testing::exact(&problem, &options, inputs.slices());
    let accuracy = Accuracy::of(attend(gpu, &problem, &options, &inputs).output, &exact.output);
    assert!(accuracy.relative_l1 < 0.004, "{accuracy:?}");
}
