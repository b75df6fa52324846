//! The `mma.sync` kernels in the SIMT executor: no mistake under any schedule, and attention near the CPU engine.

mod common {
    pub mod calls;
}

use common::calls::calls;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sage_tests::modes::{PV_MODES, QK_MODES, element_types};
use sage_tests::simt;
use sage_tests::tensor::Inputs;
use sage_tests::with_element;
use sageattention::simt::{Accumulation, Options, Schedule};
use sageattention::{
    AttentionOptions, AttentionProblem, CausalAlign, ComputeCapability, DType, Element, Mask, PvMode, QkMode,
    TensorLayout,
};

/// A GPU that has all of them.
const ADA: ComputeCapability = ComputeCapability::new(8, 9);
/// One with smaller instructions, for f16 values alone.
const TURING: ComputeCapability = ComputeCapability::new(7, 5);

/// Executes all kernels of a call, as on each GPU that has its own for it, and compares with the CPU engine: codes to the bit,
/// and the result.
fn check<T: Element>(problem: &AttentionProblem, options: &AttentionOptions, execution: &Options, inputs: &Inputs<T>) {
    simt::check(ADA, problem, options, execution, inputs);
    let is_plain_int8 =
        options.qk_mode == QkMode::Int8 && !options.smooth_q && problem.head_dim.max(problem.value_head_dim) <= 128;
    if is_plain_int8 && options.pv_mode == PvMode::F16 && problem.dtype != DType::Bf16 {
        simt::check(TURING, problem, options, execution, inputs);
    }
}

/// With random inputs, or scores that rise along the keys.
fn check_dtype(
    problem: &AttentionProblem,
    options: &AttentionOptions,
    execution: &Options,
    (seed, rising): (u64, bool),
) {
    fn inputs<T: Element>(problem: &AttentionProblem, (seed, rising): (u64, bool)) -> Inputs<T> {
        if rising { Inputs::rising(problem, seed) } else { Inputs::random(problem, seed) }
    }
    with_element!(problem.dtype, T => check::<T>(problem, options, execution, &inputs(problem, (seed, rising))));
}

/// Every variant with every head dimension that it has. f32 runs those of f16.
fn for_each_variant((qk_mode, smooth_q): (QkMode, bool), mut f: impl FnMut(DType, usize, AttentionOptions)) {
    for (pv_mode, pv_accum) in PV_MODES {
        for head_dim in [64, 128, 256].into_iter().filter(|head_dim| *head_dim <= 128 || (qk_mode, smooth_q) == INT8) {
            for &dtype in element_types((pv_mode, pv_accum)).iter().filter(|dtype| **dtype != DType::F32) {
                let options =
                    AttentionOptions { return_lse: true, qk_mode, smooth_q, pv_mode, pv_accum, ..Default::default() };
                f(dtype, head_dim, options);
            }
        }
    }
}

const INT8: (QkMode, bool) = (QkMode::Int8, false);

#[test]
fn every_schedule() {
    for_each_variant(INT8, |dtype, head_dim, options| {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, dtype, [1, 2, 140, head_dim], [1, 200]);
        for schedule in Schedule::with((0..2).map(Schedule::Random)) {
            check_dtype(&problem, &options, &Options::new(schedule), (1, false));
        }
    });
}

/// References are replaced, and everything so far must follow.
#[test]
fn rising_scores() {
    for_each_variant(INT8, |dtype, head_dim, options| {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, dtype, [1, 1, 20, head_dim], [1, 700]);
        let options = AttentionOptions { smooth_k: false, ..options };
        check_dtype(&problem, &options, &Options::new(Schedule::InOrder), (9, true));
        if head_dim <= 128 {
            let options = AttentionOptions { smooth_q: true, ..options };
            check_dtype(&problem, &options, &Options::new(Schedule::InOrder), (9, true));
        }
    });
}

/// Values with fewer channels than keys, and with more, in every mode.
#[test]
fn values_of_another_head_dimension() {
    for (index, (pv_mode, pv_accum)) in PV_MODES.into_iter().enumerate() {
        let (head_dim, value_head_dim) = [(192, 128), (64, 128), (100, 37)][index % 3];
        for (qk_mode, smooth_q) in QK_MODES.into_iter().filter(|mode| head_dim <= 128 || *mode == INT8) {
            let options =
                AttentionOptions { return_lse: true, qk_mode, smooth_q, pv_mode, pv_accum, ..Default::default() };
            let dtype = element_types((pv_mode, pv_accum))[index % 2];
            let problem = AttentionProblem::cross(TensorLayout::Nhd, dtype, [1, 2, 140, head_dim], [1, 200]);
            let problem = problem.with_value_head_dim(value_head_dim);
            check_dtype(&problem, &options, &Options::new(Schedule::Random(3)), (14, false));
        }
    }
}

/// INT4 and smoothed queries: two blocks of queries, the second short; chunks that the mask cuts; a last one that is ragged.
#[test]
fn every_query_key_mode() {
    for mode in QK_MODES.into_iter().filter(|mode| *mode != INT8) {
        for_each_variant(mode, |dtype, head_dim, options| {
            let problem = AttentionProblem::cross(TensorLayout::Nhd, dtype, [1, 2, 140, head_dim], [1, 200]);
            let options = AttentionOptions { mask: Mask::CausalAligned(CausalAlign::BottomRight), ..options };
            check_dtype(&problem, &options, &Options::new(Schedule::Random(3)), (1, false));
        });
    }
}

/// Means of several segments come back.
#[test]
fn segments() {
    for (queries, keys, rising) in [(20, 1100, false), (20, 2500, true)] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, queries, 64], [1, keys]);
        for (smooth_v, smooth_k) in [(true, !rising), (false, !rising)] {
            let options = AttentionOptions { smooth_v, smooth_k, return_lse: true, ..Default::default() };
            check_dtype(&problem, &options, &Options::new(Schedule::InOrder), (6, rising));
            let mask = Mask::Window { left: Some(keys as u32 - 400), right: Some(5), align: CausalAlign::BottomRight };
            let options = AttentionOptions { mask, sinks: true, ..options };
            check_dtype(&problem, &options, &Options::new(Schedule::InOrder), (6, rising));
        }
    }
}

proptest! {
    // the same calls every time, so that one that fails does so again
    #![proptest_config(ProptestConfig {
        cases: 60, failure_persistence: None, rng_seed: RngSeed::Fixed(0), ..Default::default()
    })]

    #[test]
    fn random_calls_and_schedules((problem, options) in calls(&PV_MODES, &QK_MODES), seed: u64, schedule in 0u64..1000, truncated: bool) {
        let schedule = Schedule::Random(schedule);
        let accumulation = if truncated { Accumulation::Truncated } else { Accumulation::Single };
        let execution = Options { accumulation, ..Options::new(schedule) };
        check_dtype(&problem, &options, &execution, (seed, false));
    }
}
