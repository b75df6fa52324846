//! The CPU's parts for tests and benchmarks, without checks: the problem, the options and the slices must fit each other.

pub use crate::accuracy::Accuracy;
use crate::cpu;
pub use crate::cpu::exact::ExactOutput;
pub use crate::cpu::quantize::Quantized;
use crate::element::Element;
use crate::options::AttentionOptions;
use crate::plan::Resolved;
use crate::tensor::{AttentionProblem, SequenceLengths};

/// Attention in f64.
pub fn exact<T: Element>(
    problem: &AttentionProblem,
    options: &AttentionOptions,
    [query, key, value]: [&[T]; 3],
) -> ExactOutput {
    exact_varlen(problem, options, SequenceLengths::Uniform, [query, key, value])
}

/// [`exact`] of sequences of these lengths: `[query heads][queries]` are those of all with packed tensors.
pub fn exact_varlen<T: Element>(
    problem: &AttentionProblem,
    options: &AttentionOptions,
    lengths: SequenceLengths<&[i32]>,
    inputs: [&[T]; 3],
) -> ExactOutput {
    cpu::exact(&Resolved::derive(*problem, *options), lengths, inputs)
}

/// Codes and scales.
pub fn quantize<T: Element>(
    problem: &AttentionProblem,
    options: &AttentionOptions,
    [query, key, value]: [&[T]; 3],
) -> Quantized {
    cpu::quantize(&Resolved::derive(*problem, *options), query, key, value).expect("memory for the codes")
}

/// What smoothed queries take out of the scores, in octaves: `[query heads][query blocks][key tiles · 128]`, empty without
/// `smooth_q`.
pub fn score_bias<T: Element>(
    problem: &AttentionProblem,
    options: &AttentionOptions,
    inputs @ [_, key, _]: [&[T]; 3],
) -> Vec<f32> {
    cpu::score_biases(&Resolved::derive(*problem, *options), &quantize(problem, options, inputs), key)
}

/// Quantized attention on the CPU. `output` is written where the problem's output strides say, `log_sum_exp` is
/// `[batch, query_heads, query_len]`.
pub fn attend<T: Element>(
    problem: &AttentionProblem,
    options: &AttentionOptions,
    inputs: [&[T]; 3],
    output: &mut [T],
    log_sum_exp: Option<&mut [f32]>,
) {
    attend_varlen(problem, options, SequenceLengths::Uniform, inputs, output, log_sum_exp);
}

/// [`attend`] of sequences of these lengths.
pub fn attend_varlen<T: Element>(
    problem: &AttentionProblem,
    options: &AttentionOptions,
    lengths: SequenceLengths<&[i32]>,
    inputs: [&[T]; 3],
    output: &mut [T],
    log_sum_exp: Option<&mut [f32]>,
) {
    let plan = Resolved::derive(*problem, *options);
    cpu::attend(&plan, lengths, inputs, output, log_sum_exp).expect("memory for the codes");
}
