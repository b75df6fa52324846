//! Every kernel in the SIMT executor: no mistake under any schedule, the CPU engine's codes and scales to the bit, and
//! attention near it.
//!
//! A failing schedule is named by its seed; `SAGE_SIMT_SEED` replays it.

mod common {
    pub mod calls;
}

use common::calls::calls;
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sage_tests::codes::expected_regions;
use sage_tests::gpu::assert_near;
use sage_tests::simt;
use sage_tests::tensor::{Inputs, Outputs, ScoreTensors, gather, query_shape};
use sage_tests::with_element;
use sageattention::simt::{Accumulation, Execution, Options, Schedule, Steps};
use sageattention::{
    AttentionOptions, AttentionOutput, AttentionProblem, CallInputs, CausalAlign, ComputeCapability, DType, Device,
    Element, Mask, PvAccum, PvMode, QkMode, TensorLayout, attention, testing,
};

const HOPPER: ComputeCapability = ComputeCapability::new(9, 0);

/// Executes a call with random inputs, and compares all that its kernels write with the CPU engine.
fn check<T: Element>(problem: &AttentionProblem, options: &AttentionOptions, execution: &Options, seed: u64) {
    simt::check(HOPPER, problem, options, execution, &Inputs::<T>::random(problem, seed));
}

fn check_dtype(problem: &AttentionProblem, options: &AttentionOptions, execution: &Options, seed: u64) {
    with_element!(problem.dtype, T => check::<T>(problem, options, execution, seed));
}

fn with_lse() -> AttentionOptions {
    AttentionOptions { return_lse: true, ..Default::default() }
}

/// The same in each mode.
fn modes() -> [AttentionOptions; 2] {
    PvMode::ALL.map(|pv_mode| AttentionOptions { pv_mode, ..with_lse() })
}

#[test]
fn every_schedule() {
    for head_dim in [64, 96, 128, 192, 256] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 3, 200, head_dim], [1, 300]);
        for schedule in Schedule::with((0..4).map(Schedule::Random)) {
            for options in modes() {
                check::<f16>(&problem, &options, &Options::new(schedule), 1);
            }
        }
    }
}

/// Many items a CTA, of heads that wait for each other's statistics.
#[test]
fn more_items_than_ctas() {
    let problem = AttentionProblem::cross(TensorLayout::Nhd, DType::Bf16, [2, 4, 100, 128], [2, 600]);
    for schedule in Schedule::several(4) {
        check::<bf16>(&problem, &with_lse(), &Options::new(schedule), 2);
    }
}

/// One item a CTA, no slot filled twice: lanes may drift apart.
#[test]
fn every_schedule_of_threads() {
    for head_dim in [64, 128, 256] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, 400, head_dim], [1, 384]);
        for schedule in Schedule::with((0..6).map(Schedule::Random)) {
            for options in modes() {
                check::<f16>(&problem, &options, &Options::new(schedule), 1);
            }
        }
    }
}

/// A warpgroup that needs fewer tiles than others waits for the rest and releases them at once, by its warps' first
/// lanes. A lane that were slower than two more copies to the slot would miss the phase that it waits for.
#[test]
fn lanes_that_fall_behind() {
    let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, 1, 64], [1, 1500]);
    for schedule in Schedule::with((0..10).map(Schedule::Random)) {
        for options in modes() {
            check::<f16>(&problem, &options, &Options::new(schedule), 7);
        }
    }
}

/// What Hopper's own kernels compute.
const PV_MODES: [(PvMode, PvAccum); 2] = [(PvMode::Fp8, PvAccum::F32), (PvMode::F16, PvAccum::F32)];

proptest! {
    // the same calls every time, so that one that fails does so again
    #![proptest_config(ProptestConfig {
        cases: 60, failure_persistence: None, rng_seed: RngSeed::Fixed(0), ..Default::default()
    })]

    #[test]
    fn random_calls_and_schedules((problem, options) in calls(&PV_MODES, &[(QkMode::Int8, false)]), seed: u64, schedule in 0u64..1000, truncated: bool) {
        let schedule = Schedule::Random(schedule);
        let accumulation = if truncated { Accumulation::Truncated } else { Accumulation::Single };
        check_dtype(&problem, &options, &Options { accumulation, ..Options::new(schedule) }, seed);
    }
}

/// Rows of the caller's tensors that lie apart, in any order of the axes.
#[test]
fn strides() {
    for dtype in [DType::Bf16, DType::F32] {
        check_strides(AttentionProblem::cross(TensorLayout::Hnd, dtype, [2, 2, 70, 64], [1, 130]));
    }
}

fn check_strides(mut problem: AttentionProblem) {
    for (padding, schedule) in [(8, Schedule::Random(1)), (3, Schedule::Random(2))] {
        problem.query_strides.token += padding;
        problem.query_strides.head *= 2;
        problem.query_strides.batch *= 2;
        problem.key_strides.batch += 1000 * padding;
        problem.value_strides.token += padding;
        problem.value_strides.batch *= 2;
        problem.output_strides = problem.query_strides;
        for options in modes() {
            check_dtype(&problem, &options, &Options::new(schedule), 5);
        }
    }
}

/// With f32 that f16 can hold, all is as with f16 but the output, which is not rounded.
#[test]
fn f32_is_f16_and_its_output_is_not_rounded() {
    let ampere = ComputeCapability::new(8, 0);
    for (gpu, pv_mode, head_dim) in [
        (HOPPER, PvMode::Fp8, 64),
        (HOPPER, PvMode::F16, 128),
        (HOPPER, PvMode::Fp8, 100),
        (HOPPER, PvMode::Fp8, 200),
        (HOPPER, PvMode::F16, 37),
        (ampere, PvMode::F16, 64),
    ] {
        let narrow = AttentionProblem::cross(TensorLayout::Nhd, DType::F16, [1, 2, 100, head_dim], [1, 150]);
        let wide = AttentionProblem { dtype: DType::F32, ..narrow };
        let options = AttentionOptions { pv_mode, ..with_lse() };
        let inputs = Inputs::<f16>::random(&narrow, 13);
        let (widened, more) = (inputs.widened(), CallInputs::default());
        let run = |result: Result<Execution, _>| result.expect("a call without mistakes");
        let narrow = run(Execution::of_gpu(gpu, &narrow, &options, inputs.slices(), &more, &in_order()));
        let wide = run(Execution::of_gpu(gpu, &wide, &options, widened.slices(), &more, &in_order()));
        for region in ["query_codes", "query_scales", "key_codes", "key_scales", "value_codes", "value_tiles"] {
            assert!(narrow.workspace(region) == wide.workspace(region), "{region}");
        }
        assert_eq!(narrow.log_sum_exp(), wide.log_sum_exp());
        let (narrow, wide) = (narrow.output::<f16>(), wide.output::<f32>());
        assert!(wide.iter().any(|&element| f16::from_f32(element).to_f32() != element));
        assert!(wide.iter().map(|&element| f16::from_f32(element)).eq(narrow), "{pv_mode:?}, {head_dim}");
    }
}

/// What f16 can't hold becomes the largest that it can.
#[test]
fn f32_beyond_f16() {
    for head_dim in [64, 61] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F32, [1, 1, 70, head_dim], [1, 140]);
        for options in modes() {
            let mut beyond = Inputs::<f32>::random(&problem, 14);
            beyond.query[3] = 1e9;
            beyond.query[5] = 65520.0;
            beyond.key[7 * head_dim] = -65504.01;
            beyond.key[7 * head_dim + 8] = f32::NEG_INFINITY;
            beyond.value[11 * head_dim + 8] = 1e30;
            let mut clamped = beyond.clone();
            for tensor in [&mut clamped.query, &mut clamped.key, &mut clamped.value] {
                tensor.iter_mut().for_each(|element| *element = element.clamp(-65504.0, 65504.0));
            }
            let [beyond, clamped] = [beyond, clamped].map(|inputs| {
                let result = Execution::new(&problem, &options, inputs.slices(), &CallInputs::default(), &in_order());
                let result = result.expect("a call without mistakes");
                let regions = expected_regions(&testing::quantize(&problem, &options, inputs.slices()));
                for (region, expected) in regions.into_iter().filter(|(_, expected)| !expected.is_empty()) {
                    assert!(result.workspace(region).expect("a region of the plan") == expected, "{region}");
                }
                (result.output::<f32>(), result.log_sum_exp())
            });
            assert_eq!(beyond, clamped);
        }
    }
}

/// More than a segment of keys: two means are put back; without smoothing, sums are flushed after every tile.
#[test]
fn two_segments() {
    for head_dim in [64, 96, 192, 256] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, 20, head_dim], [1, 1100]);
        for (pv_mode, smooth_v) in [(PvMode::Fp8, true), (PvMode::Fp8, false), (PvMode::F16, true)] {
            let options = AttentionOptions { pv_mode, smooth_v, ..with_lse() };
            check::<f16>(&problem, &options, &Options::new(Schedule::Random(3)), 6);
        }
    }
}

/// Windows that begin within a segment, and are longer than a flush: means, row sums and flushes of the segments that they touch.
#[test]
fn windows_of_segments() {
    let align = CausalAlign::BottomRight;
    for (head_dim, key_len, left, smooth_v) in [
        (64, 2400, 1300, true),
        (64, 2400, 700, false),
        (64, 4096 + 1500, 4096 + 700, true),
        (64, 1200, 100, true),
        (96, 2400, 1300, true),
        (192, 1200, 700, false),
        (256, 1200, 700, false),
        (256, 4096 + 1500, 4096 + 700, true),
    ] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, 20, head_dim], [1, key_len]);
        let mask = Mask::Window { left: Some(left), right: Some(3), align };
        let options = AttentionOptions { mask, smooth_v, sinks: true, ..with_lse() };
        check::<f16>(&problem, &options, &in_order(), 10);
        let options = AttentionOptions { smooth_k: false, ..options };
        simt::check(HOPPER, &problem, &options, &in_order(), &Inputs::<f16>::rising(&problem, 11));
    }
}

/// Items whose warpgroups begin and end with different tiles.
#[test]
fn windows_of_several_items() {
    for align in [CausalAlign::TopLeft, CausalAlign::BottomRight] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::Bf16, [1, 2, 700, 64], [1, 600]);
        for (options, schedule) in modes().into_iter().zip([Schedule::Random(5), Schedule::InOrder]) {
            let mask = Mask::Window { left: Some(100), right: Some(20), align };
            check::<bf16>(&problem, &AttentionOptions { mask, ..options }, &Options::new(schedule), 12);
        }
    }
}

/// Scores that rise along the keys: references are replaced, and everything so far must follow.
#[test]
fn rising_scores() {
    for (head_dim, dtype) in [
        (64, DType::F16),
        (96, DType::Bf16),
        (128, DType::Bf16),
        (192, DType::F16),
        (256, DType::F16),
        (128, DType::F32),
    ] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, dtype, [1, 1, 20, head_dim], [1, 700]);
        for options in modes() {
            let options = AttentionOptions { smooth_k: false, ..options };
            with_element!(dtype, T => {
                simt::check(HOPPER, &problem, &options, &in_order(), &Inputs::<T>::rising(&problem, 9));
            });
        }
    }
}

/// One score that is far beyond the reference, at each of a chunk's places: no other tells of it.
#[test]
fn outliers() {
    for head_dim in [64, 128] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 64, 16, head_dim], [64, 256]);
        let options = AttentionOptions { smooth_k: false, ..with_lse() };
        simt::check(HOPPER, &problem, &options, &in_order(), &Inputs::<f16>::outliers(&problem, 17, 128));
    }
}

/// Scores of which one unit of the integers is up to ten octaves, so that a row is the values of its largest; and a scale that belongs to
/// one key. Log-sum-exps would be as large, and as little exact.
#[test]
fn huge_scores() {
    for head_dim in [64, 96, 128] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 2, 70, head_dim], [2, 300]);
        for options in modes() {
            let options = AttentionOptions { smooth_k: false, return_lse: false, ..options };
            let scaled = [[20.0, 20.0], [300.0, 300.0], [10_000.0, 1.0]];
            let inputs = scaled.map(|factors| Inputs::<f16>::scaled(&problem, 18, factors));
            let with_huge_key = [100.0, 3000.0, 60_000.0].map(|size| Inputs::with_huge_key(&problem, 19, size));
            for inputs in inputs.iter().chain(&with_huge_key) {
                simt::check(HOPPER, &problem, &options, &in_order(), inputs);
            }
        }
    }
}

/// More keys than one flush: sums of four segments are flushed, and follow the references that are replaced afterwards.
#[test]
fn flushed_segments() {
    for head_dim in [64, 96, 192, 256] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, 20, head_dim], [1, 4096 + 1100]);
        let options = AttentionOptions { smooth_k: false, ..with_lse() };
        for inputs in [Inputs::<f16>::random(&problem, 8), Inputs::rising(&problem, 9)] {
            simt::check(HOPPER, &problem, &options, &in_order(), &inputs);
        }
    }
}

/// More items than one CTA does, each of which flushes to the same place.
#[test]
fn flushed_items() {
    for head_dim in [170, 200] {
        let problem = AttentionProblem::cross(TensorLayout::Nhd, DType::Bf16, [1, 3, 300, head_dim], [1, 300]);
        let mask = Mask::CausalAligned(CausalAlign::TopLeft);
        let options = AttentionOptions { smooth_v: false, mask, ..with_lse() };
        for schedule in Schedule::several(2) {
            check::<bf16>(&problem, &options, &Options::new(schedule), 13);
        }
    }
}

/// Calls whose operands are stored with more channels than attention multiplies.
fn calls_of_fewer_channels() -> impl Iterator<Item = (AttentionProblem, AttentionOptions)> {
    let head_dims = [(80, 80), (90, 90), (96, 96), (130, 130), (160, 160), (192, 192), (96, 33), (70, 129)];
    let each = head_dims.into_iter().flat_map(|head_dims| modes().map(|options| (head_dims, options)));
    each.enumerate().map(|(index, ((head_dim, value_head_dim), options))| {
        let dtype = [DType::F16, DType::Bf16, DType::F32][index % 3];
        let problem = AttentionProblem::cross(TensorLayout::Nhd, dtype, [1, 2, 100, head_dim], [1, 200]);
        let mask = [Mask::CausalAligned(CausalAlign::BottomRight), Mask::None][index / 2 % 2];
        let (sinks, softmax_scale) = (index % 3 == 0, Some(0.1));
        (problem.with_value_head_dim(value_head_dim), AttentionOptions { mask, sinks, softmax_scale, ..options })
    })
}

#[test]
fn fewer_channels_than_stored() {
    for (index, (problem, options)) in calls_of_fewer_channels().enumerate() {
        check_dtype(&problem, &options, &Options::new(Schedule::Random(index as u64)), 15);
    }
}

/// The channels that attention does not multiply may hold anything, and are no part of any sum: outputs are those of a call that has all
/// stored channels, with zeros.
#[test]
fn stored_channels_are_left_alone() {
    for (problem, options) in calls_of_fewer_channels() {
        with_element!(problem.dtype, T => check_left_alone::<T>(&problem, &options));
    }
}

fn check_left_alone<T: Element + PartialEq>(problem: &AttentionProblem, options: &AttentionOptions) {
    let run = |steps, problem: &AttentionProblem, inputs: &Inputs<T>| {
        let score_tensors = ScoreTensors::of(problem, options);
        let call_inputs = score_tensors.inputs();
        Execution::in_steps(steps, HOPPER, problem, options, inputs.slices(), &call_inputs, &in_order())
            .unwrap_or_else(|(kernel, report)| panic!("{}: {report}\n{problem:?}", kernel.symbol()))
    };
    let inputs = Inputs::<T>::random(problem, 16);
    let result = run(Steps::Call, problem, &inputs);
    let overwritten = run(Steps::OverwrittenChannels, problem, &inputs);
    assert!(result.workspace("query_codes") != overwritten.workspace("query_codes"));
    assert!(result.output::<T>() == overwritten.output::<T>(), "{problem:?}");
    assert_eq!(result.log_sum_exp(), overwritten.log_sum_exp());

    let stored = if problem.head_dim.max(problem.value_head_dim) > 128 { 256 } else { 128 };
    let widen = |tensor: &[T], head_dim: usize| -> Vec<T> {
        let rows = tensor.chunks_exact(head_dim);
        rows.flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(T::zeroed(), stored - head_dim))).collect()
    };
    let whole = AttentionProblem::cross(TensorLayout::Nhd, problem.dtype, [1, 2, 100, stored], [1, 200]);
    let whole_inputs = Inputs {
        query: widen(&inputs.query, problem.head_dim),
        key: widen(&inputs.key, problem.head_dim),
        value: widen(&inputs.value, problem.value_head_dim),
    };
    let whole = run(Steps::Call, &whole, &whole_inputs);
    assert!(widen(&result.output::<T>(), problem.value_head_dim) == whole.output::<T>(), "{problem:?}");
    assert_eq!(result.log_sum_exp(), whole.log_sum_exp());
}

/// Values with fewer channels than keys, and with more: another native head dimension, and no whole chunks.
#[test]
fn values_of_another_head_dimension() {
    for (head_dim, value_head_dim, dtype) in [
        (192, 128, DType::F16),
        (64, 128, DType::Bf16),
        (128, 64, DType::F32),
        (100, 37, DType::F16),
        (37, 100, DType::F32),
    ] {
        let problem = AttentionProblem::cross(TensorLayout::Nhd, dtype, [1, 2, 100, head_dim], [1, 300]);
        let problem = problem.with_value_head_dim(value_head_dim);
        for options in modes() {
            check_dtype(&problem, &options, &Options::new(Schedule::Random(4)), 14);
        }
    }
}

fn in_order() -> Options {
    Options::new(Schedule::InOrder)
}

/// The library's call, as on any other device.
#[test]
fn device() {
    let mut problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 2, 50, 64], [2, 60]);
    problem.output_strides.token += 8;
    problem.output_strides.head *= 2;
    let inputs = Inputs::<f16>::random(&problem, 8);
    let [query, key, value] = inputs.slices();
    let call = |device| attention(device, problem, with_lse(), query, key, value).expect("a call without mistakes");
    let outputs = |result: AttentionOutput<f16>| Outputs {
        output: gather(&result.output, problem.output_strides, query_shape(&problem)),
        log_sum_exp: result.log_sum_exp.expect("asked for"),
    };
    let (simt, cpu) = (call(Device::Simt), call(Device::Cpu));
    let gaps = |result: &AttentionOutput<f16>| result.output.iter().filter(|element| element.to_bits() == 0).count();
    assert_eq!(gaps(&simt), gaps(&cpu));
    assert_near(&outputs(simt), &outputs(cpu), problem.head_dim, PvMode::Fp8, "Device::Simt");
}

/// A fresh accumulator for every key tile is what sums are without smoothed values.
#[test]
fn two_levels_of_f32() {
    let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, 20, 64], [1, 300]);
    let inputs = Inputs::<f16>::random(&problem, 8);
    let [query, key, value] = inputs.slices();
    let [fresh, unsmoothed] = [
        AttentionOptions { pv_accum: PvAccum::F32F32, ..with_lse() },
        AttentionOptions { smooth_v: false, ..with_lse() },
    ]
    .map(|options| attention(Device::Simt, problem, options, query, key, value).expect("a call without mistakes"));
    assert_eq!(fresh, unsmoothed);
}
