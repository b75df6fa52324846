//! The SIMT executor against the GPU, on the same inputs: how far its arithmetic is the hardware's.

use crate::{DTYPES, with_lse};
use sage_tests::gpu::{Call, gpu};
use sage_tests::tensor::{Inputs, gather, query_shape};
use sage_tests::with_element;
use sageattention::simt::{Accumulation, Execution, Options, Schedule};
use sageattention::{AttentionOptions, AttentionProblem, CausalAlign, Element, Gpu, Mask, TensorLayout};

/// Share of the output's elements that are the same bits, at least, with the hardware's accumulator.
const EQUAL_OUTPUTS: f64 = 0.99;
/// Largest relative difference of any element, with the hardware's accumulator.
const NEAR: f64 = 1.0 / 128.0;
/// Largest difference of a log-sum-exp, with the hardware's accumulator. Where the GPU's approximate exponential falls on the
/// other side of a rounding boundary, one of 2500 probabilities is an eighth off.
const LOG_SUM_EXP: f64 = 2e-4;

/// How the executor's outputs differ from the GPU's.
#[derive(Debug)]
struct Difference {
    /// Share of elements with the same bits.
    equal: f64,
    /// Largest difference, relative to the larger of the element and a hundredth of the largest element.
    relative: f64,
    /// Largest difference of log-sum-exps.
    log_sum_exp: f64,
}

fn compare<T: Element>(
    gpu: &'static Gpu,
    problem: &AttentionProblem,
    options: &AttentionOptions,
    accumulation: Accumulation,
) -> Difference {
    let inputs = Inputs::<T>::random(problem, 11);
    let mut call = Call::new(gpu, problem, options, &inputs).expect("a plan for this GPU");
    call.enqueue().expect("a launch");
    let result = call.outputs().expect("a result");

    let execution = Options { accumulation, ..Options::new(Schedule::InOrder) };
    let executed = Execution::new(problem, options, inputs.slices(), &Default::default(), &execution)
        .unwrap_or_else(|(kernel, report)| panic!("{}: {report}", kernel.symbol()));
    // what the counters end with depends on the number of CTAs
    for region in call.regions().into_iter().filter(|&region| region != "counters") {
        let (on_gpu, executed) = (call.workspace(region).expect("a copy"), executed.workspace(region));
        assert!(executed.as_ref() == Some(&on_gpu), "{region} differs\n{problem:?}\n{options:?}");
    }

    let output = gather(&executed.output::<T>(), problem.output_strides, query_shape(problem));
    let pairs = || result.output.iter().copied().zip(output.iter().copied());
    let floor = pairs().fold(0.0, |largest: f64, (a, _)| largest.max(a.abs())) / 100.0;
    let largest = |differences: &mut dyn Iterator<Item = f64>| differences.fold(0.0, f64::max);
    let log_sum_exps = result.log_sum_exp.iter().zip(executed.log_sum_exp()).filter(|(a, b)| *a != b);
    Difference {
        equal: pairs().filter(|(a, b)| a == b).count() as f64 / output.len() as f64,
        relative: largest(&mut pairs().map(|(a, b)| (a - b).abs() / a.abs().max(floor))),
        log_sum_exp: largest(&mut log_sum_exps.map(|(a, b)| f64::from(a - b).abs())),
    }
}

/// Codes, scales and means are the same bits. With the hardware's accumulator almost all outputs are, too; with one that
/// is exact, they are not.
#[test]
fn same_inputs() {
    let Some(gpu) = gpu() else { return };
    let causal = Mask::CausalAligned(CausalAlign::BottomRight);
    for (head_dim, dtype, mask, smooth_v) in [
        (64, DTYPES[0], Mask::None, true),
        (96, DTYPES[0], Mask::None, true),
        (128, DTYPES[0], causal, true),
        (128, DTYPES[1], Mask::None, true),
        (128, DTYPES[0], Mask::None, false),
        (192, DTYPES[1], causal, true),
    ] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, dtype, [1, 2, 250, head_dim], [1, 2500]);
        let options = AttentionOptions { mask, smooth_v, ..with_lse() };
        let [truncated, single] = [Accumulation::Truncated, Accumulation::Single]
            .map(|accumulation| with_element!(dtype, T => compare::<T>(gpu, &problem, &options, accumulation)));
        println!(
            "head_dim {head_dim}, {dtype}, {mask:?}, smooth_v {smooth_v}\n  {truncated:?}\n  exact sums: {single:?}"
        );
        assert!(truncated.equal >= EQUAL_OUTPUTS && truncated.relative <= NEAR, "{truncated:?}");
        assert!(truncated.log_sum_exp <= LOG_SUM_EXP, "{truncated:?}");
        assert!(single.equal < truncated.equal, "{single:?}");
    }
}
