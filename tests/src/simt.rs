//! Calls in the SIMT executor, against the CPU engine.

use sageattention::simt::{Execution, Options, Schedule};
use sageattention::testing::quantize;
use sageattention::{AttentionOptions, AttentionProblem, ComputeCapability, Element};

use crate::codes::expected_regions;
use crate::gpu::assert_near;
use crate::tensor::{Inputs, Outputs, ScoreTensors, attend, gather, query_shape};

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
    let execution = &Options { schedule: Schedule::replayed().unwrap_or(execution.schedule), ..execution.clone() };
    let what = format!("compute capability {gpu}\n{problem:?}\n{options:?}\n{execution:?}");
    let score_tensors = ScoreTensors::of(problem, options);
    let result = Execution::of_gpu(gpu, problem, options, inputs.slices(), &score_tensors.inputs(), execution)
        .unwrap_or_else(|(kernel, report)| panic!("{}: {report}\n{what}", kernel.symbol()));

    for (region, expected) in expected_regions(&quantize(problem, options, inputs.slices())) {
        if !expected.is_empty() {
            assert!(result.workspace(region).expect("a region of the plan") == expected, "{region} differs\n{what}");
        }
    }
    let output: Vec<T> = result.output();
    let rows = gather(&output, problem.output_strides, query_shape(problem));
    let written_once = output.len() * size_of::<T>() - result.output_not_written_once().len();
    assert_eq!(written_once, rows.len() * size_of::<T>(), "bytes of the output that were written once\n{what}");
    let outputs = Outputs { output: rows, log_sum_exp: result.log_sum_exp() };
    assert_near(&outputs, &attend(problem, options, inputs), problem.head_dim, options.pv_mode, &what);
}
