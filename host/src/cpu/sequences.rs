//! The sequences of a ragged batch, each as a call of its own.

use sage_layout::params::Strides;

use crate::element::Element;
use crate::error::Error;
use crate::options::{AttentionOptions, CallInputs, Rotary, ScoreStrides};
use crate::plan::{self, Resolved};
use crate::tensor::{Lengths, SequenceLengths};

/// One sequence: where it lies in the call's tensors, and the plan for it alone.
pub(crate) struct Sequence {
    /// `None` if it has no queries or no keys.
    pub plan: Option<Resolved>,
    /// Batch and first query in the call's query and output.
    pub query: [usize; 2],
    /// Batch and first key.
    pub key: [usize; 2],
    /// Its queries.
    pub queries: usize,
}

impl Sequence {
    /// Elements of a tensor of these strides before the sequence's.
    fn offset([batch, token]: [usize; 2], strides: Strides) -> usize {
        (batch as i64 * strides.batch + token as i64 * strides.token) as usize
    }

    /// Its part of the inputs.
    pub fn inputs<'a, T>(&self, plan: &Resolved, [query, key, value]: [&'a [T]; 3]) -> [&'a [T]; 3] {
        let problem = &plan.problem;
        [
            &query[Self::offset(self.query, problem.query_strides)..],
            &key[Self::offset(self.key, problem.key_strides)..],
            &value[Self::offset(self.key, problem.value_strides)..],
        ]
    }

    /// What else its part of the call takes: of a bias and a boolean mask, its batch.
    pub fn call_inputs<'a>(&self, plan: &Resolved, call_inputs: &CallInputs<'a>) -> CallInputs<'a> {
        let AttentionOptions { bias, boolean_mask, .. } = plan.options;
        let first = |strides: Option<ScoreStrides>| self.query[0] * strides.map_or(0, |strides| strides.batch as usize);
        CallInputs {
            bias: call_inputs.bias.map(|elements| elements.starting_at(first(bias.map(|bias| bias.strides)))),
            boolean_mask: call_inputs.boolean_mask.map(|elements| &elements[first(boolean_mask)..]),
            ..*call_inputs
        }
    }

    /// Its part of the output.
    pub fn output<'a, T>(&self, plan: &Resolved, output: &'a mut [T]) -> &'a mut [T] {
        &mut output[Self::offset(self.query, plan.problem.output_strides)..]
    }

    /// Row of its first query of a head among those of the call, `[batch, query_heads, query_len]` or `[query_heads,
    /// query_len]`.
    pub fn row(&self, plan: &Resolved, head: usize) -> usize {
        let [batch, token] = self.query;
        (batch * plan.problem.query_heads + head) * plan.problem.query_len + token
    }
}

/// The sequences of a ragged batch with these lengths, which were checked.
pub(crate) fn sequences(plan: &Resolved, lengths: SequenceLengths<&[i32]>) -> Vec<Sequence> {
    let problem = &plan.problem;
    let sequence = |query, queries: usize, key, keys: usize| {
        let plan = (queries > 0 && keys > 0).then(|| plan.of_sequence(queries, keys));
        Sequence { plan, query, key, queries }
    };
    match lengths {
        SequenceLengths::Uniform => Vec::new(),
        SequenceLengths::PaddedKeys { kv_lens } => (0..problem.batch)
            .map(|batch| sequence([batch, 0], problem.query_len, [batch, 0], kv_lens[batch] as usize))
            .collect(),
        SequenceLengths::Packed { cu_seqlens_q, cu_seqlens_k } => {
            let range = |starts: &[i32], index: usize| (starts[index] as usize, starts[index + 1] as usize);
            let each = (0..problem.batch).map(|index| (range(cu_seqlens_q, index), range(cu_seqlens_k, index)));
            each.map(|((query, query_end), (key, key_end))| {
                sequence([0, query], query_end - query, [0, key], key_end - key)
            })
            .collect()
        }
    }
}

/// Checks lengths against the problem that they are said to be of.
pub(crate) fn check_lengths(plan: &Resolved, lengths: SequenceLengths<&[i32]>) -> Result<(), Error> {
    let problem = &plan.problem;
    let (got, expected) = (lengths.kind(), problem.lengths);
    if got != expected {
        return Err(Error::LengthsKind { got, expected });
    }
    let count = |argument, lengths: &[i32], needed| match lengths.len() {
        got if got == needed => Ok(()),
        got => Err(Error::SliceLength { argument, got, needed }),
    };
    let value = |argument, index, got, least, most| match got {
        _ if (least..=most).contains(&got) => Ok(()),
        _ => Err(Error::LengthsValue { argument, index, got, least, most }),
    };
    match lengths {
        SequenceLengths::Uniform => Ok(()),
        SequenceLengths::PaddedKeys { kv_lens } => {
            count("kv_lens", kv_lens, problem.batch)?;
            let most = problem.key_len as i32;
            kv_lens.iter().enumerate().try_for_each(|(index, &keys)| value("kv_lens", index, keys, 0, most))
        }
        SequenceLengths::Packed { cu_seqlens_q, cu_seqlens_k } => {
            let each =
                [("cu_seqlens_q", cu_seqlens_q, problem.query_len), ("cu_seqlens_k", cu_seqlens_k, problem.key_len)];
            each.into_iter().try_for_each(|(argument, starts, tokens)| {
                count(argument, starts, problem.batch + 1)?;
                let mut least = 0;
                for (index, &start) in starts.iter().enumerate() {
                    // the first is 0, and the last the number of tokens
                    let most = if index == 0 { 0 } else { tokens as i32 };
                    let least_here = if index == problem.batch { tokens as i32 } else { least };
                    value(argument, index, start, least_here, most)?;
                    least = start;
                }
                Ok(())
            })
        }
    }
}

/// Checks that a rotary embedding's tables have the positions of packed sequences of these lengths, which were checked.
pub(crate) fn check_positions(rotary: &Rotary, lengths: SequenceLengths<&[i32]>) -> Result<(), Error> {
    let SequenceLengths::Packed { cu_seqlens_q, cu_seqlens_k } = lengths else { return Ok(()) };
    let longest = |starts: &[i32]| starts.windows(2).map(|ends| (ends[1] - ends[0]) as usize).max().unwrap_or(0);
    Ok(plan::check_positions(rotary, [longest(cu_seqlens_q), longest(cu_seqlens_k)])?)
}

/// Attention of every sequence by itself; as [`attend`](super::attend::attend) otherwise. Queries without keys get zeros and
/// −∞, or their head's sink.
pub(crate) fn attend<T: Element>(
    plan: &Resolved,
    inputs: [&[T]; 3],
    call_inputs: &CallInputs,
    output: &mut [T],
    mut log_sum_exp: Option<&mut [f32]>,
) -> Result<(), Error> {
    let problem = &plan.problem;
    if problem.lengths == Lengths::Uniform {
        return super::attend::attend(plan, inputs, call_inputs, output, log_sum_exp);
    }
    for sequence in sequences(plan, call_inputs.lengths) {
        let rows = problem.query_heads * sequence.queries;
        let mut own_log_sum_exp = super::zeroed("log_sum_exp", if log_sum_exp.is_some() { rows } else { 0 })?;
        let own_output = sequence.output(plan, output);
        if let Some(own) = &sequence.plan {
            let wanted = log_sum_exp.is_some().then_some(&mut own_log_sum_exp[..]);
            let call_inputs = sequence.call_inputs(plan, call_inputs);
            super::attend::attend(own, sequence.inputs(plan, inputs), &call_inputs, own_output, wanted)?;
        } else {
            for (row, log_sum_exp) in own_log_sum_exp.iter_mut().enumerate() {
                *log_sum_exp = call_inputs.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[row / sequence.queries]);
            }
            for row in 0..rows {
                let place = [0, row / sequence.queries, row % sequence.queries];
                let start = super::view::offset(problem.output_strides, place);
                own_output[start..start + problem.value_head_dim].fill(T::from_f32(0.0));
            }
        }
        if let Some(log_sum_exp) = &mut log_sum_exp {
            for (head, own) in own_log_sum_exp.chunks_exact(sequence.queries.max(1)).enumerate() {
                let row = sequence.row(plan, head);
                log_sum_exp[row..row + own.len()].copy_from_slice(own);
            }
        }
    }
    Ok(())
}

/// Attention of every sequence by itself in f64; as [`exact`](super::exact::exact) otherwise.
pub(crate) fn exact<T: Element>(
    plan: &Resolved,
    inputs: [&[T]; 3],
    call_inputs: &CallInputs,
) -> super::exact::ExactOutput {
    let problem = &plan.problem;
    if problem.lengths == Lengths::Uniform {
        return super::exact::exact(plan, inputs, call_inputs);
    }
    let [batch, heads, queries, head_dim] = problem.output_shape();
    let mut result = super::exact::ExactOutput {
        output: vec![0.0; batch * heads * queries * head_dim],
        log_sum_exp: vec![f64::NEG_INFINITY; batch * heads * queries],
    };
    if let Some(sinks) = call_inputs.sinks {
        for (row, log_sum_exp) in result.log_sum_exp.iter_mut().enumerate() {
            *log_sum_exp = f64::from(sinks[row / queries % heads]);
        }
    }
    for sequence in sequences(plan, call_inputs.lengths) {
        let Some(own) = &sequence.plan else { continue };
        let own = super::exact::exact(own, sequence.inputs(plan, inputs), &sequence.call_inputs(plan, call_inputs));
        for head in 0..heads {
            let (from, to) = (head * sequence.queries, sequence.row(plan, head));
            let (from, to) = (from..from + sequence.queries, to..to + sequence.queries);
            result.log_sum_exp[to.clone()].copy_from_slice(&own.log_sum_exp[from.clone()]);
            result.output[to.start * head_dim..to.end * head_dim]
                .copy_from_slice(&own.output[from.start * head_dim..from.end * head_dim]);
        }
    }
    result
}
