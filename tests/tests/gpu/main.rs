//! The GPU against the CPU engine, against exact attention, and against itself.
//!
//! Every run is in poisoned buffers with guards (`sage_tests::gpu`): what was not written, what was written elsewhere, and
//! what was read from elsewhere shows in every test. Without a GPU they are skipped, with a line that says so; with
//! `SAGE_REQUIRE_GPU=1` they fail.

mod accuracy;
mod cache;
mod codes;
mod executor;
mod masks;
mod memory;
mod merge;
mod mma;
mod properties;
mod quantized;
mod rotation;
mod several;
mod shapes;
mod streams;
mod varlen;

use sage_tests::with_element;
use sageattention::{AttentionOptions, AttentionProblem, DType, Mask, PvMode, QuantGranularity, TensorLayout};

const DTYPES: [DType; 3] = [DType::F16, DType::Bf16, DType::F32];
const LAYOUTS: [TensorLayout; 2] = [TensorLayout::Hnd, TensorLayout::Nhd];

/// The default options with a log-sum-exp.
fn with_lse() -> AttentionOptions {
    AttentionOptions { return_lse: true, ..Default::default() }
}

/// The same in each mode.
fn modes() -> [AttentionOptions; 2] {
    PvMode::ALL.map(|pv_mode| AttentionOptions { pv_mode, ..with_lse() })
}

/// Modes, each with the smoothing of values that it has.
const SMOOTHINGS: [(PvMode, bool); 3] = [(PvMode::Fp8, true), (PvMode::Fp8, false), (PvMode::F16, true)];

/// Runs on the GPU and on the CPU in each mode, and compares. The options' mode does not matter.
fn compare(gpu: &'static sageattention::Gpu, problem: &AttentionProblem, options: &AttentionOptions, seed: u64) {
    for pv_mode in PvMode::ALL {
        compare_mode(gpu, problem, &AttentionOptions { pv_mode, ..*options }, seed);
    }
}

fn compare_mode(gpu: &'static sageattention::Gpu, problem: &AttentionProblem, options: &AttentionOptions, seed: u64) {
    with_element!(problem.dtype, T => {
        let inputs = sage_tests::tensor::Inputs::<T>::random(problem, seed);
        let result = sage_tests::gpu::attend(gpu, problem, options, &inputs);
        let expected = sage_tests::tensor::attend(problem, options, &inputs);
        let what = format_args!("{problem:?}\n{options:?}");
        sage_tests::gpu::assert_near(&result, &expected, problem.value_head_dim, options.pv_mode, what);
    });
}

/// Takes the `index`-th of a few, round and round.
fn pick<T: Copy>(of: &[T], index: usize) -> T {
    of[index % of.len()]
}

/// A different mixture of options for each index.
fn mixed_options(index: usize) -> AttentionOptions {
    AttentionOptions {
        granularity: pick(&QuantGranularity::ALL, index),
        mask: pick(&[Mask::None, Mask::Causal], index),
        smooth_k: !index.is_multiple_of(5),
        smooth_v: !index.is_multiple_of(7),
        pv_mode: pick(&PvMode::ALL, index / 2),
        ..with_lse()
    }
}
