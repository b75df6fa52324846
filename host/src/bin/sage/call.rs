//! An attention call, its result head after head.

use crate::progress::Progress;
use crate::score_tensors::ScoreTensors;
use sageattention::testing::{self, ExactOutput};
use sageattention::{
    AttentionOptions, AttentionOutput, AttentionPlan, AttentionProblem, CallInputs, Device, Element, Error, Lengths,
    SequenceLengths, TensorLayout, attention_with,
};

/// Multiply-adds between two moves of the progress bar, a thread: about a tenth of a second.
const STEP_MULTIPLY_ADDS: usize = 1 << 31;

/// A call that was checked.
#[derive(Clone, Copy)]
pub struct Call<'a, T> {
    problem: AttentionProblem,
    options: AttentionOptions,
    query: &'a [T],
    key: &'a [T],
    value: &'a [T],
    score_tensors: &'a ScoreTensors,
    lengths: SequenceLengths<&'a [i32]>,
    /// The first batch and query head of the tensors.
    first: [usize; 2],
}

impl<'a, T: Element> Call<'a, T> {
    /// Checks the problem and the options; sequences are equally long, or as [`with_lengths`](Self::with_lengths) says. The output
    /// will be contiguous, in the order of its axes.
    pub fn new(
        problem: AttentionProblem,
        options: AttentionOptions,
        [query, key, value]: [&'a [T]; 3],
        score_tensors: &'a ScoreTensors,
    ) -> Result<Self, Error> {
        let problem = head_major(problem);
        AttentionPlan::new(problem, options)?;
        let lengths = SequenceLengths::Uniform;
        Ok(Self { problem, options, query, key, value, score_tensors, lengths, first: [0; 2] })
    }

    /// The call on sequences of these lengths.
    pub fn with_lengths(self, lengths: &'a SequenceLengths<Vec<i32>>) -> Self {
        Self { lengths: lengths.as_ref().map(|_, lengths| lengths.as_slice()), ..self }
    }

    /// What is computed.
    pub fn problem(&self) -> &AttentionProblem {
        &self.problem
    }

    /// Quantized attention: the output is `[batch, query_heads, query_len, value_head_dim]`.
    pub fn attention(&self, device: Device) -> Result<AttentionOutput<T>, Error> {
        if device != Device::Cpu {
            let progress = Progress::start(format!("attention on {device}"), 1);
            let result = self.run(device);
            progress.advance();
            return result;
        }
        let steps = self.steps();
        let progress = Progress::start("attention on the CPU", steps.len());
        let log_sum_exp = self.options.return_lse.then(Vec::new);
        let mut whole = AttentionOutput { output: Vec::new(), log_sum_exp };
        for step in steps {
            let part = step.run(device)?;
            whole.output.extend(part.output);
            whole.log_sum_exp.iter_mut().for_each(|whole| whole.extend(part.log_sum_exp.iter().flatten()));
            progress.advance();
        }
        Ok(whole)
    }

    fn run(&self, device: Device) -> Result<AttentionOutput<T>, Error> {
        let inputs = [self.query, self.key, self.value];
        attention_with(device, self.problem, self.options, inputs, self.inputs())
    }

    fn inputs(&self) -> CallInputs<'_> {
        CallInputs { lengths: self.lengths, ..self.score_tensors.inputs(self.first) }
    }

    /// Attention in f64, on the same tensors: the output is `[batch, query_heads, query_len, value_head_dim]`.
    pub fn exact_output(&self) -> Vec<f64> {
        let steps = self.steps();
        let progress = Progress::start("exact attention", steps.len());
        let mut whole = Vec::new();
        for step in steps {
            let inputs = [step.query, step.key, step.value];
            let ExactOutput { output, .. } = testing::exact_with(&step.problem, &step.options, inputs, &step.inputs());
            whole.extend(output);
            progress.advance();
        }
        whole
    }

    /// The call cut into calls on neighbouring heads, which give neighbouring parts of the result. Sequences of different lengths
    /// stay together.
    fn steps(&self) -> Vec<Call<'a, T>> {
        let AttentionProblem { batch, query_heads, key_heads, query_len, key_len, lengths, .. } = self.problem;
        let channels = self.problem.head_dim + self.problem.value_head_dim;
        if lengths != Lengths::Uniform {
            return vec![*self];
        }
        let ratio = query_heads / key_heads;
        let multiply_adds = [ratio, query_len, key_len, channels]
            .into_iter()
            .fold(1usize, |product, size| product.saturating_mul(size));
        let heads_per_step = (STEP_MULTIPLY_ADDS * rayon::current_num_threads() / multiply_adds).clamp(1, key_heads);
        let step = |batch: usize, first: usize| {
            let heads = heads_per_step.min(key_heads - first);
            let tail = |tensor: &'a [T], strides: sageattention::Strides, head: usize| {
                &tensor[(batch as i64 * strides.batch + head as i64 * strides.head) as usize..]
            };
            Call {
                query: tail(self.query, self.problem.query_strides, first * ratio),
                key: tail(self.key, self.problem.key_strides, first),
                value: tail(self.value, self.problem.value_strides, first),
                problem: head_major(AttentionProblem {
                    batch: 1,
                    query_heads: heads * ratio,
                    key_heads: heads,
                    ..self.problem
                }),
                options: self.options,
                score_tensors: self.score_tensors,
                lengths: SequenceLengths::Uniform,
                first: [batch, first * ratio],
            }
        };
        (0..batch)
            .flat_map(|batch| (0..key_heads).step_by(heads_per_step).map(move |first| (batch, first)))
            .map(|(batch, first)| step(batch, first))
            .collect()
    }
}

/// The problem with a contiguous `[batch, query_heads, query_len, value_head_dim]` output.
fn head_major(problem: AttentionProblem) -> AttentionProblem {
    let output_strides = TensorLayout::Hnd.strides(problem.query_heads, problem.query_len, problem.value_head_dim);
    AttentionProblem { output_strides, ..problem }
}
