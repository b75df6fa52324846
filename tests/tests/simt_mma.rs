//! The `mma.sync` kernels in the SIMT executor: no mistake under any schedule, and attention near the CPU engine.

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sage_tests::codes::expected_regions;
use sage_tests::gpu::assert_near;
use sage_tests::modes::QK_MODES;
use sage_tests::tensor::{Inputs, Outputs, attend, gather, query_shape};
use sageattention::simt::{Accumulation, Execution, Options, Schedule};
use sageattention::testing::quantize;
use sageattention::{
    AttentionOptions, AttentionProblem, CausalAlign, ComputeCapability, DType, Element, Mask, PvAccum, PvMode, QkMode,
    QuantGranularity, TensorLayout,
};

/// A GPU that has all of them.
const ADA: ComputeCapability = ComputeCapability::new(8, 9);
/// One with smaller instructions, for f16 values alone.
const TURING: ComputeCapability = ComputeCapability::new(7, 5);

/// Values, accumulator, element types.
type Variant = (PvMode, PvAccum, &'static [DType]);

const VARIANTS: [Variant; 6] = [
    (PvMode::F16, PvAccum::F32, &[DType::F16, DType::Bf16]),
    (PvMode::F16, PvAccum::F16, &[DType::F16]),
    (PvMode::F16, PvAccum::F16F32, &[DType::F16]),
    (PvMode::Fp8, PvAccum::F32, &[DType::F16, DType::Bf16]),
    (PvMode::Fp8, PvAccum::F32F32, &[DType::F16, DType::Bf16]),
    (PvMode::Fp8, PvAccum::F32F16, &[DType::F16, DType::Bf16]),
];

/// Executes all kernels of a call, as on each GPU that has its own for it, and compares with the CPU engine: codes to the bit,
/// and the result.
fn check<T: Element>(problem: &AttentionProblem, options: &AttentionOptions, execution: &Options, inputs: &Inputs<T>) {
    check_on(ADA, problem, options, execution, inputs);
    let is_plain_int8 = options.qk_mode == QkMode::Int8 && !options.smooth_q;
    if is_plain_int8 && options.pv_mode == PvMode::F16 && problem.dtype == DType::F16 {
        check_on(TURING, problem, options, execution, inputs);
    }
}

fn check_on<T: Element>(
    gpu: ComputeCapability,
    problem: &AttentionProblem,
    options: &AttentionOptions,
    execution: &Options,
    inputs: &Inputs<T>,
) {
    let execution = &Options { schedule: Schedule::replayed().unwrap_or(execution.schedule), ..execution.clone() };
    let what = format!("compute capability {gpu}\n{problem:?}\n{options:?}\n{execution:?}");
    let result = Execution::of_gpu(gpu, problem, options, inputs.slices(), execution)
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
    match problem.dtype {
        DType::F16 => {
            check::<f16>(problem, options, execution, &inputs(problem, (seed, rising)));
        }
        _ => check::<bf16>(problem, options, execution, &inputs(problem, (seed, rising))),
    }
}

/// Every variant with both head dimensions.
fn for_each_variant((qk_mode, smooth_q): (QkMode, bool), mut f: impl FnMut(DType, usize, AttentionOptions)) {
    for (pv_mode, pv_accum, dtypes) in VARIANTS {
        for head_dim in [64, 128] {
            for &dtype in dtypes {
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
        let options = AttentionOptions { smooth_q: true, ..options };
        check_dtype(&problem, &options, &Options::new(Schedule::InOrder), (9, true));
    });
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
        }
    }
}

/// Lengths at the edges of chunks and warps, all masks, every granularity, grouped heads, both layouts.
fn calls() -> impl Strategy<Value = (AttentionProblem, AttentionOptions)> {
    let lengths = (1usize..=300, 1usize..=300);
    let heads = prop::sample::select(vec![(1, 1), (2, 1), (4, 2)]);
    let head_dim = prop::sample::select(vec![64, 128, 64, 128, 40, 72, 33]);
    let layout = prop::sample::select(vec![TensorLayout::Hnd, TensorLayout::Nhd]);
    let mask = prop::sample::select(vec![
        Mask::None,
        Mask::CausalAligned(CausalAlign::TopLeft),
        Mask::CausalAligned(CausalAlign::BottomRight),
    ]);
    let granularity = prop::sample::select(QuantGranularity::ALL.to_vec());
    let variant = prop::sample::select(VARIANTS.to_vec());
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<prop::sample::Index>());
    let qk_mode = prop::sample::select(QK_MODES.to_vec());
    (lengths, heads, head_dim, layout, mask, granularity, (variant, flags, qk_mode)).prop_map(
        |(
            (queries, keys),
            (query_heads, key_heads),
            head_dim,
            layout,
            mask,
            granularity,
            (variant, flags, (qk_mode, smooth_q)),
        )| {
            let (pv_mode, pv_accum, dtypes) = variant;
            let (smooth_k, smooth_v, return_lse, dtype) = flags;
            let shape = [1, query_heads, queries, head_dim];
            let problem = AttentionProblem::cross(layout, *dtype.get(dtypes), shape, [key_heads, keys]);
            let options = AttentionOptions {
                qk_mode,
                smooth_q,
                pv_mode,
                pv_accum,
                mask,
                granularity,
                smooth_k,
                smooth_v,
                return_lse,
                ..Default::default()
            };
            (problem, options)
        },
    )
}

proptest! {
    // the same calls every time, so that one that fails does so again
    #![proptest_config(ProptestConfig {
        cases: 60, failure_persistence: None, rng_seed: RngSeed::Fixed(0), ..Default::default()
    })]

    #[test]
    fn random_calls_and_schedules((problem, options) in calls(), seed: u64, schedule in 0u64..1000, truncated: bool) {
        let schedule = Schedule::Random(schedule);
        let accumulation = if truncated { Accumulation::Truncated } else { Accumulation::Single };
        let execution = Options { accumulation, ..Options::new(schedule) };
        check_dtype(&problem, &options, &execution, (seed, false));
    }
}
