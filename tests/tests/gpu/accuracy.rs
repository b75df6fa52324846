//! Near exact attention, at any length.

use crate::{DTYPES, modes, with_lse};
use half::f16;
use sage_tests::data::{BARS, Layer, whisper};
use sage_tests::error::Accuracy;
use sage_tests::gpu::{attend, gpu};
use sage_tests::tensor::{Inputs, Random, key_shape, query_shape, tensor};
use sageattention::{AttentionOptions, AttentionProblem, CausalAlign, Gpu, Mask, QuantGranularity, TensorLayout};

/// A few queries tell as much as many, and the exact reference is slow.
const FEW: usize = 192;

/// Relative L1 distance from exact attention, of standard normal queries and keys and values that `value` makes of
/// normal numbers and the token.
fn relative_l1(
    gpu: &'static Gpu,
    [query_len, key_len, head_dim]: [usize; 3],
    options: &AttentionOptions,
    value: impl Fn(f32, usize) -> f32,
) -> f64 {
    let problem = AttentionProblem::cross(TensorLayout::Hnd, DTYPES[0], [1, 4, query_len, head_dim], [4, key_len]);
    let mut random = Random(key_len as u64);
    let inputs = Inputs::<f16> {
        query: tensor(problem.query_strides, query_shape(&problem), |_| random.normal()),
        key: tensor(problem.key_strides, key_shape(&problem), |_| random.normal()),
        value: tensor(problem.value_strides, key_shape(&problem), |[_, _, token, _]| value(random.normal(), token)),
    };
    let result = attend(gpu, &problem, options, &inputs);
    let exact = sageattention::testing::exact(&problem, options, inputs.slices());
    for (&result, &exact) in result.log_sum_exp.iter().zip(&exact.log_sum_exp) {
        assert!((f64::from(result) - exact).abs() < 0.05, "log_sum_exp is {result}, exactly {exact}");
    }
    let accuracy = Accuracy::of(result.output, &exact.output);
    println!("head_dim {head_dim}, key_len {key_len}: {accuracy:?}");
    accuracy.relative_l1
}

/// The bound holds at every length: the tensor cores' short accumulators don't let the error grow.
#[test]
fn normal_values() {
    let Some(gpu) = gpu() else { return };
    let [fp8, f16] = modes();
    for (options, head_dim, bound) in [(fp8, 64, 0.041), (fp8, 128, 0.0395), (f16, 64, 0.012), (f16, 128, 0.012)] {
        for key_len in [1536, 16384] {
            let error = relative_l1(gpu, [FEW, key_len, head_dim], &options, |normal, _| normal);
            assert!(error <= bound, "{:?}, head_dim {head_dim}, key_len {key_len}: {error}", options.pv_mode);
        }
    }
}

/// Values that share a mean, or whose mean drifts along the keys, are where plain FP8 sums lose most. Smoothed, and
/// emptied every four segments, they are no worse than plain and emptied after every tile.
#[test]
fn values_with_a_mean() {
    let Some(gpu) = gpu() else { return };
    // Under the mask, the short sequence has queries that see few keys, too.
    for shape in [[1536, 1536, 128], [FEW, 16384, 128]] {
        for mask in [Mask::None, Mask::CausalAligned(CausalAlign::BottomRight)] {
            let compare = |name: &str, value: &dyn Fn(f32, usize) -> f32| {
                let [smoothed, plain] = [true, false]
                    .map(|smooth_v| relative_l1(gpu, shape, &AttentionOptions { mask, smooth_v, ..with_lse() }, value));
                assert!(smoothed <= 1.02 * plain, "{name}, {shape:?}, {mask:?}: {smoothed}, plain {plain}");
            };
            compare("mean 1", &|normal, _| normal + 1.0);
            compare("mean 10", &|normal, _| normal + 10.0);
            compare("drifting mean", &|normal, token| normal + 4.0 * token as f32 / shape[1] as f32);
        }
    }
}

/// As near exact attention as the CPU engine, on what trained models compute; with default options, at the bar.
#[test]
fn real_data() {
    let Some(gpu) = gpu() else { return };
    for (name, cosine, relative_l1) in BARS {
        let Layer { problem, inputs, .. } = whisper(name);
        let mask = if name == "causal" { Mask::Causal } else { Mask::None };
        for (granularity, mode) in QuantGranularity::ALL.into_iter().flat_map(|one| modes().map(|mode| (one, mode))) {
            let options = AttentionOptions { mask, granularity, ..mode };
            let exact = sageattention::testing::exact(&problem, &options, inputs.slices());
            let [gpu, cpu] =
                [attend(gpu, &problem, &options, &inputs), sage_tests::tensor::attend(&problem, &options, &inputs)]
                    .map(|result| Accuracy::of(result.output, &exact.output));
            println!("{name}, {granularity:?}: {gpu:?}; CPU {cpu:?}");
            assert!(gpu.relative_l1 <= 1.05 * cpu.relative_l1, "{name}, {granularity:?}: {gpu:?}, CPU {cpu:?}");
            if granularity == with_lse().granularity {
                assert!(gpu.relative_l1 <= relative_l1 && gpu.cosine >= cosine, "{name}: {gpu:?}");
            }
        }
    }
}
