//! The kernel that merges two parts, in the SIMT executor: near the merge in host memory.

use half::{bf16, f16};
use sage_tests::tensor::{Random, gather, span, tensor};
use sageattention::simt::{Options, Schedule};
use sageattention::{AttentionProblem, Element, TensorLayout, merge, simt};

/// Rows of which one part weighs all, or nothing, or neither weighs anything, and others.
fn log_sum_exp(part: usize, row: usize, random: &mut Random) -> f32 {
    match (row % 7, part) {
        (0, 0) | (1, 1) | (2, _) => f32::NEG_INFINITY,
        (3, 0) => 200.0,
        _ => 3.0 * random.normal(),
    }
}

fn check<T: Element>(layout: TensorLayout, shape @ [batch, heads, tokens, channels]: [usize; 4], tolerance: f64) {
    let problem = AttentionProblem::new(layout, T::DTYPE, shape);
    let (strides, rows) = (problem.output_strides, batch * heads * tokens);
    let mut random = Random(5);
    let log_sum_exps = [0, 1].map(|part| (0..rows).map(|row| log_sum_exp(part, row, &mut random)).collect::<Vec<_>>());
    // what has no weight may be anything
    let mut output = |part: usize| {
        tensor::<T>(strides, shape, |[batch, head, token, _]| {
            let sum = log_sum_exps[part][(batch * heads + head) * tokens + token];
            if sum == f32::NEG_INFINITY { f32::NAN } else { random.normal() }
        })
    };
    let outputs = [output(0), output(1)];
    let rows_of = |output: &[T]| tensor_rows::<T>(output, problem);
    let contiguous = outputs.each_ref().map(|output| rows_of(output));
    let sums = log_sum_exps.each_ref().map(Vec::as_slice);
    let expected = merge(contiguous.each_ref().map(Vec::as_slice), sums, channels).expect("equally many rows");
    let expected_sums = expected.log_sum_exp.expect("always");
    let execution = Options::new(Schedule::replayed().unwrap_or(Schedule::Random(channels as u64)));
    let outputs = outputs.each_ref().map(Vec::as_slice);
    let (output, log_sum_exp) =
        simt::merge(problem, outputs, sums, &execution).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(output.len(), span(strides, shape));
    for (found, expected) in gather(&output, strides, shape).iter().zip(&expected.output) {
        let expected = f64::from(expected.to_f32());
        assert!((found - expected).abs() <= tolerance * (1.0 + expected.abs()), "{found}, not {expected}");
    }
    for (found, expected) in log_sum_exp.iter().zip(&expected_sums) {
        assert!(found == expected || (found - expected).abs() < 1e-5, "{found}, not {expected}");
    }
}

/// The rows of an output, one after the other.
fn tensor_rows<T: Element>(output: &[T], problem: AttentionProblem) -> Vec<T> {
    let rows = gather(output, problem.output_strides, sage_tests::tensor::query_shape(&problem));
    rows.into_iter().map(|element| T::from_f32(element as f32)).collect()
}

#[test]
fn two_parts() {
    check::<f16>(TensorLayout::Hnd, [2, 3, 7, 64], 1e-3);
    check::<bf16>(TensorLayout::Nhd, [1, 2, 33, 100], 8e-3);
    check::<f32>(TensorLayout::Nhd, [2, 2, 9, 256], 1e-6);
    check::<f32>(TensorLayout::Hnd, [1, 1, 14, 3], 1e-6);
}
