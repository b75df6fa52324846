//! The CPU's parts for tests and benchmarks, without checks: the problem, the options and the slices must fit each other.

pub use crate::accuracy::Accuracy;
pub use crate::cpu::exact::ExactOutput;
pub use crate::cpu::quantize::Quantized;
use crate::cpu::{self, Prepared};
use crate::element::Element;
use crate::options::{AttentionOptions, CallInputs};
use crate::plan::Resolved;
use crate::tensor::AttentionProblem;

/// Attention in f64.
pub fn exact<T: Element>(problem: &AttentionProblem, options: &AttentionOptions, inputs: [&[T]; 3]) -> ExactOutput {
    exact_with(problem, options, inputs, &CallInputs::default())
}

/// [`exact`] with what else the options ask for.
pub fn exact_with<T: Element>(
    problem: &AttentionProblem,
    options: &AttentionOptions,
    inputs: [&[T]; 3],
    call_inputs: &CallInputs,
) -> ExactOutput {
    cpu::exact(&Resolved::derive(*problem, *options), inputs, call_inputs)
}

/// Codes and scales.
pub fn quantize<T: Element>(problem: &AttentionProblem, options: &AttentionOptions, inputs: [&[T]; 3]) -> Quantized {
    quantize_with(problem, options, inputs, &CallInputs::default())
}

/// [`quantize`] with what else the options ask for.
pub fn quantize_with<T: Element>(
    problem: &AttentionProblem,
    options: &AttentionOptions,
    [query, key, value]: [&[T]; 3],
    call_inputs: &CallInputs,
) -> Quantized {
    let plan = Resolved::derive(*problem, *options);
    let prepared = cpu::prepare(&plan, [query, key], call_inputs.rotary).expect("memory for rotated queries and keys");
    let Prepared { plan, query, key } = prepared;
    cpu::quantize(&plan, [&query, &key, value].map(Some), None).expect("memory for the codes")
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
    attend_with(problem, options, inputs, &CallInputs::default(), output, log_sum_exp);
}

/// [`attend`] with what else the options ask for.
pub fn attend_with<T: Element>(
    problem: &AttentionProblem,
    options: &AttentionOptions,
    inputs: [&[T]; 3],
    call_inputs: &CallInputs,
    output: &mut [T],
    log_sum_exp: Option<&mut [f32]>,
) {
    let plan = Resolved::derive(*problem, *options);
    cpu::attend(&plan, inputs, call_inputs, output, log_sum_exp).expect("memory for the codes");
}
