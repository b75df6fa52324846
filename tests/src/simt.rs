//! Calls in the SIMT executor, against the CPU engine.

use sageattention::simt::{Execution, Options, Schedule};
use sageattention::{AttentionOptions, AttentionProblem, CallInputs, ComputeCapability, Element, SequenceLengths};

use crate::codes::expected_regions;
use crate::gpu::assert_near;
use crate::tensor::{Inputs, Outputs, ScoreTensors, attend_varlen, gather, quantize};
use crate::varlen::Batch;

/// Executes all kernels of a call as a GPU of this compute capability runs them, and compares all that they write with the CPU
/// engine: codes and scales to the bit, and attention near it.
///
/// # Panics
///
/// On a mistake that the executor finds, and on a difference.
pub fn check<T: Element>(
    gpu: ComputeCapability,
    problem: &AttentionProblem,
    options: &AttentionOptions,
    execution: &Options,
    inputs: &Inputs<T>,
) {
    let lengths = SequenceLengths::Uniform;
    let result = execute(gpu, problem, options, lengths, execution, inputs);
    for (region, expected) in expected_regions(&quantize(problem, options, inputs)) {
        if !expected.is_empty() {
            let found = result.workspace(region).expect("a region of the plan");
            assert!(found == expected, "{region} differs\n{problem:?}\n{options:?}\n{execution:?}");
        }
    }
}

/// [`check`] of sequences of different lengths. Codes and scales are compared with those of each sequence alone.
///
/// # Panics
///
/// As [`check`].
pub fn check_batch<T: Element>(
    gpu: ComputeCapability,
    batch: &Batch,
    options: &AttentionOptions,
    execution: &Options,
    inputs: &Inputs<T>,
) {
    let result = execute(gpu, &batch.problem, options, batch.slices(), execution, inputs);
    let what = format!("{batch:?}\n{options:?}\n{execution:?}");
    let table: Vec<u32> = bytemuck::pod_collect_to_vec(&result.workspace("sequences").expect("a ragged batch"));
    let expected: Vec<u32> = batch.table().into_iter().flat_map(|sequence| sequence.words()).collect();
    assert_eq!(table, expected, "{what}");
    let order: Vec<u32> = bytemuck::pod_collect_to_vec(&result.workspace("sequence_order").expect("a ragged batch"));
    assert_eq!(order, batch.order(result.cta_queries).concat(), "{what}");
    batch.assert_regions(options, inputs, |region| result.workspace(region), &what);
}

/// Executes all kernels of a call, and compares its outputs.
fn execute<T: Element>(
    gpu: ComputeCapability,
    problem: &AttentionProblem,
    options: &AttentionOptions,
    lengths: SequenceLengths<&[i32]>,
    execution: &Options,
    inputs: &Inputs<T>,
) -> Execution {
    let execution = &Options { schedule: Schedule::replayed().unwrap_or(execution.schedule), ..execution.clone() };
    let what = format!("compute capability {gpu}\n{problem:?}\n{lengths:?}\n{options:?}\n{execution:?}");
    let score_tensors = ScoreTensors::of(problem, options);
    let call_inputs = CallInputs { lengths, ..score_tensors.inputs() };
    let result = Execution::of_gpu(gpu, problem, options, inputs.slices(), &call_inputs, execution)
        .unwrap_or_else(|(kernel, report)| panic!("{}: {report}\n{what}", kernel.symbol()));
    let output: Vec<T> = result.output();
    let rows = gather(&output, problem.output_strides, problem.output_shape());
    let written_once = output.len() * size_of::<T>() - result.output_not_written_once().len();
    assert_eq!(written_once, rows.len() * size_of::<T>(), "bytes of the output that were written once\n{what}");
    let outputs = Outputs { output: rows, log_sum_exp: result.log_sum_exp() };
    let expected = attend_varlen(problem, options, lengths, inputs);
    assert_near(&outputs, &expected, problem.value_head_dim, options.pv_mode, &what);
    result
}
