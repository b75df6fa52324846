//! What must hold between masks, and for sinks, on the CPU and in the SIMT executor.

mod common {
    pub mod options;
}

use common::options::any_options;
use half::f16;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sage_layout::mask_tile;
use sage_tests::modes::{MASKS, PV_MODES, element_types};
use sage_tests::simt;
use sage_tests::tensor::{Inputs, attend, exact};
use sageattention::simt::{Execution, Options, Schedule};
use sageattention::{
    AttentionOptions, AttentionOutput, AttentionProblem, Bias, BiasSlice, BiasType, CallInputs, CausalAlign,
    ComputeCapability, DType, Device, Mask, PvMode, ScoreStrides, TensorLayout, attention_with, testing,
};

/// A GPU with kernels of its own for modified scores, and one that has those on `mma.sync` alone.
const HOPPER: ComputeCapability = ComputeCapability::new(9, 0);
const ADA: ComputeCapability = ComputeCapability::new(8, 9);

const ALIGNMENTS: [CausalAlign; 2] = [CausalAlign::TopLeft, CausalAlign::BottomRight];

fn problem(query_len: usize, key_len: usize) -> AttentionProblem {
    AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 2, query_len, 64], [2, key_len])
}

/// The call on the CPU and in the executor.
fn run(
    device: Device,
    problem: AttentionProblem,
    options: AttentionOptions,
    inputs: &Inputs<f16>,
    call_inputs: CallInputs,
) -> AttentionOutput<f16> {
    attention_with(device, problem, options, inputs.slices(), call_inputs).expect("a valid call")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_window_that_shows_all_is_none(query_len in 1..300usize, key_len in 1..400usize, options in any_options(), seed: u64) {
        let problem = problem(query_len, key_len);
        let inputs = Inputs::<f16>::random(&problem, seed);
        let all = attend(&problem, &AttentionOptions { mask: Mask::None, ..options }, &inputs);
        for align in ALIGNMENTS {
            for width in [(query_len + key_len) as u32, u32::MAX] {
                let mask = Mask::Window { left: Some(width), right: Some(width), align };
                prop_assert_eq!(&attend(&problem, &AttentionOptions { mask, ..options }, &inputs), &all);
            }
        }
    }

    #[test]
    fn a_window_that_ends_at_the_query_is_causal(query_len in 1..300usize, key_len in 1..400usize, options in any_options(), seed: u64) {
        let problem = problem(query_len, key_len);
        let inputs = Inputs::<f16>::random(&problem, seed);
        for align in ALIGNMENTS {
            let causal = AttentionOptions { mask: Mask::CausalAligned(align), ..options };
            let causal = attend(&problem, &causal, &inputs);
            for left in [None, Some((query_len + key_len) as u32)] {
                let mask = Mask::Window { left, right: Some(0), align };
                prop_assert_eq!(&attend(&problem, &AttentionOptions { mask, ..options }, &inputs), &causal);
            }
        }
    }

    /// A sink multiplies the output by what it leaves of the denominator.
    #[test]
    fn a_sink_takes_its_part(query_len in 1..100usize, key_len in 1..300usize, options in any_options(), sinks in any::<[i8; 2]>(), seed: u64) {
        let problem = problem(query_len, key_len);
        let inputs = Inputs::<f16>::random(&problem, seed);
        let options = AttentionOptions { return_lse: true, ..options };
        let without = attend(&problem, &options, &inputs);
        let sinks = sinks.map(|sink| f32::from(sink) / 8.0);
        let with = AttentionOptions { sinks: true, ..options };
        let with = run(Device::Cpu, problem, with, &inputs, CallInputs { sinks: Some(&sinks), ..Default::default() });
        let (output, log_sum_exps) = (with.output, with.log_sum_exp.expect("asked for"));
        for (row, (log_sum_exp, before)) in log_sum_exps.into_iter().zip(without.log_sum_exp).enumerate() {
            let sink = f64::from(sinks[row / query_len]);
            let before = f64::from(before);
            let expected = before.max(sink) + (-(before - sink).abs()).exp().ln_1p();
            prop_assert!((f64::from(log_sum_exp) - expected).abs() < 1e-4, "{} {}", log_sum_exp, expected);
            let channels = 64 * row..64 * (row + 1);
            for (got, without) in output[channels.clone()].iter().zip(&without.output[channels]) {
                let (got, expected) = (got.to_f64(), without * (before - expected).exp());
                prop_assert!((got - expected).abs() < 1e-3 * (0.1 + expected.abs()), "{} {}", got, expected);
            }
        }
    }
}

/// Strides of an element for each score, with some axes repeated, and gaps between the others.
fn any_score_strides() -> impl Strategy<Value = fn([usize; 4]) -> ScoreStrides> {
    prop::sample::select(vec![
        ScoreStrides::contiguous,
        |[_, _, queries, keys]: [usize; 4]| ScoreStrides::broadcast([1, 1, queries, keys]),
        |[_, _, _, keys]: [usize; 4]| ScoreStrides::broadcast([1, 1, 1, keys]),
        |[batch, heads, _, keys]: [usize; 4]| ScoreStrides::broadcast([batch, heads, 1, keys]),
        // queries are the adjacent ones
        |[_, heads, queries, keys]: [usize; 4]| ScoreStrides {
            batch: (heads * (queries * keys + 3)) as i64,
            head: (queries * keys + 3) as i64,
            query: 1,
            key: queries as i64,
        },
        |[_, _, _, keys]: [usize; 4]| ScoreStrides { batch: 0, head: 7, query: keys as i64 + 5, key: 2 },
    ])
}

const BIAS_TYPES: [BiasType; 3] = [BiasType::F16, BiasType::Bf16, BiasType::F32];

/// What is done to scores, as the options say it; with all masks, and sinks.
fn any_modifiers(shape: [usize; 4]) -> impl Strategy<Value = AttentionOptions> {
    let bias = (any_score_strides(), prop::sample::select(&BIAS_TYPES[..]));
    let bias = prop::option::of(bias.prop_map(move |(strides, dtype)| Bias { dtype, strides: strides(shape) }));
    let boolean_mask = prop::option::of(any_score_strides().prop_map(move |strides| strides(shape)));
    let soft_cap = prop::option::of(prop::sample::select(vec![2.0f32, 15.0, 50.0]));
    let flags = any::<[bool; 3]>();
    (bias, boolean_mask, soft_cap, prop::sample::select(&MASKS[..]), flags).prop_map(
        |(bias, boolean_mask, soft_cap, mask, [sinks, smooth_k, smooth_v])| AttentionOptions {
            bias,
            boolean_mask,
            soft_cap,
            mask,
            sinks,
            smooth_k,
            smooth_v,
            return_lse: true,
            ..Default::default()
        },
    )
}

fn any_modified_problem() -> impl Strategy<Value = (AttentionProblem, AttentionOptions)> {
    let head_dim = prop::sample::select(vec![64, 128, 40, 64, 128, 200]);
    let layout = prop::sample::select(vec![TensorLayout::Hnd, TensorLayout::Nhd]);
    let heads = prop::sample::select(vec![(1, 1), (2, 1), (4, 2)]);
    (1..3usize, heads, 1..220usize, 1..300usize, head_dim, layout).prop_flat_map(
        |(batch, (query_heads, key_heads), query_len, key_len, head_dim, layout)| {
            let shape = [batch, query_heads, query_len, head_dim];
            let problem = AttentionProblem::cross(layout, DType::F16, shape, [key_heads, key_len]);
            any_modifiers(problem.score_shape()).prop_map(move |options| (problem, options))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    /// In every mode, against exact attention.
    #[test]
    fn modified_scores_are_near_exact((problem, options) in any_modified_problem(), mode in prop::sample::select(&PV_MODES[..]), smooth_q: bool, seed: u64) {
        let options = AttentionOptions { pv_mode: mode.0, pv_accum: mode.1, smooth_q, ..options };
        let inputs = Inputs::<f16>::random(&problem, seed);
        let (exact, result) = (exact(&problem, &options, &inputs), attend(&problem, &options, &inputs));
        let is_exact = |row: usize| !exact.log_sum_exp[row].is_finite();
        let width = problem.head_dim;
        let (mut error, mut all) = (0.0, 0.0);
        for (row, (&got, &expected)) in result.log_sum_exp.iter().zip(&exact.log_sum_exp).enumerate() {
            let outputs = result.output[row * width..][..width].iter().zip(&exact.output[row * width..][..width]);
            if is_exact(row) {
                prop_assert!(f64::from(got) == expected && outputs.clone().all(|(&got, _)| got == 0.0), "row {}", row);
            } else {
                // logits of unsmoothed keys are .03 off, a bias in bf16 is rounded in both
                prop_assert!((f64::from(got) - expected).abs() < 0.3, "row {}: {}, exactly {}", row, got, expected);
            }
            for (got, expected) in outputs {
                error += (got - expected).abs();
                all += expected.abs();
            }
        }
        let limit = 0.15 + 1.0 / (exact.output.len() as f64).sqrt();
        prop_assert!(error <= limit * all, "{} of {}", error, all);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, rng_seed: RngSeed::Fixed(0), ..Default::default() })]

    /// The kernels that modify scores, near the CPU engine, in every mode of the `mma.sync` kernels.
    #[test]
    fn modified_scores_in_the_executor((problem, options) in any_modified_problem(), pv in prop::sample::select(&PV_MODES[..]), gpu in prop::sample::select(&[HOPPER, ADA][..]), seed: u64, schedule in 0u64..1000) {
        let options = AttentionOptions { pv_mode: pv.0, pv_accum: pv.1, ..options };
        prop_assume!(options.soft_cap.is_some() || options.bias.is_some() || options.boolean_mask.is_some());
        let inputs = Inputs::<f16>::random(&problem, seed);
        simt::check(gpu, &problem, &options, &Options::new(Schedule::Random(schedule)), &inputs);
    }
}

/// More than a segment and a flush; windows that begin within.
#[test]
fn modified_scores_of_many_segments() {
    for (mask, smooth_v) in [
        (Mask::None, true),
        (Mask::Window { left: Some(4700), right: None, align: CausalAlign::BottomRight }, true),
        (Mask::None, false),
    ] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, 20, 64], [1, 5300]);
        let bias = Bias { dtype: BiasType::F16, strides: ScoreStrides::contiguous(problem.score_shape()) };
        let options = AttentionOptions {
            mask,
            smooth_v,
            smooth_k: false,
            bias: Some(bias),
            soft_cap: Some(60.0),
            return_lse: true,
            ..Default::default()
        };
        for inputs in [Inputs::<f16>::random(&problem, 8), Inputs::rising(&problem, 9)] {
            for gpu in [HOPPER, ADA] {
                simt::check(gpu, &problem, &options, &Options::new(Schedule::InOrder), &inputs);
            }
        }
    }
}

/// A boolean mask that hides tiles at the ends of segments, whole segments, and the last keys: the means of values' segments come back none
/// the less.
#[test]
fn hidden_segments() {
    let keys = 4300;
    let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, 150, 64], [1, keys]);
    let strides = ScoreStrides::broadcast([1, 1, 1, keys]);
    let inputs = Inputs::<f16>::random(&problem, 10);
    for hidden in [&[0..100, 900..1100, 2048..3072, 4200..4300][..], &[0..1300, 3000..4300], &[1024..1030, 1100..4300]]
    {
        let boolean_mask: Vec<u8> =
            (0..keys).map(|key| u8::from(!hidden.iter().any(|range| range.contains(&key)))).collect();
        for mask in [Mask::None, Mask::CausalAligned(CausalAlign::BottomRight)] {
            let options =
                AttentionOptions { mask, boolean_mask: Some(strides), return_lse: true, ..Default::default() };
            let more = CallInputs { boolean_mask: Some(&boolean_mask), ..Default::default() };
            let exact = testing::exact_with(&problem, &options, inputs.slices(), &more);
            for gpu in [HOPPER, ADA] {
                let execution = Options::new(Schedule::InOrder);
                let result = Execution::of_gpu(gpu, &problem, &options, inputs.slices(), &more, &execution)
                    .unwrap_or_else(|(kernel, report)| panic!("{}: {report}", kernel.symbol()));
                let output: Vec<f16> = result.output();
                let distance = |(got, exact): (&f16, &f64)| (got.to_f64() - exact).abs();
                let error: f64 = output.iter().zip(&exact.output).map(distance).sum();
                let all: f64 = exact.output.iter().map(|exact| exact.abs()).sum();
                assert!(error < 0.06 * all, "{gpu}, {mask:?}, {hidden:?}: {error} of {all}");
            }
        }
    }
}

/// A bias of −∞ is a boolean mask, and no bias is 0, to the bit; rows of which nothing counts are zeros.
#[test]
fn minus_infinity_hides() {
    let problem = problem(150, 330);
    let inputs = Inputs::<f16>::random(&problem, 5);
    let strides = ScoreStrides::contiguous(problem.score_shape());
    let shows =
        |index: usize| index / 330 % 7 != 3 && (index / 41).is_multiple_of(2) && !(128..300).contains(&(index % 330));
    let boolean_mask: Vec<u8> = (0..2 * 150 * 330).map(|index| u8::from(shows(index)) << (index % 8)).collect();
    let bias: Vec<f32> = boolean_mask.iter().map(|&byte| if byte == 0 { f32::NEG_INFINITY } else { 0.0 }).collect();
    let half: Vec<f16> = bias.iter().copied().map(f16::from_f32).collect();
    for (device, pv_mode) in
        [Device::Cpu, Device::Simt].into_iter().flat_map(|device| PvMode::ALL.map(|mode| (device, mode)))
    {
        let options = AttentionOptions { pv_mode, return_lse: true, ..Default::default() };
        let with_mask = AttentionOptions { boolean_mask: Some(strides), ..options };
        let with_mask = run(
            device,
            problem,
            with_mask,
            &inputs,
            CallInputs { boolean_mask: Some(&boolean_mask), ..Default::default() },
        );
        for (dtype, bias) in [(BiasType::F32, BiasSlice::F32(&bias)), (BiasType::F16, BiasSlice::F16(&half))] {
            let with_bias = AttentionOptions { bias: Some(Bias { dtype, strides }), ..options };
            let with_bias =
                run(device, problem, with_bias, &inputs, CallInputs { bias: Some(bias), ..Default::default() });
            assert_eq!(with_bias, with_mask, "{device}, {pv_mode:?}");
        }
        for row in (0..2 * 150).filter(|row| row % 7 == 3) {
            assert!(with_mask.output[64 * row..][..64].iter().all(|&element| element == f16::ZERO));
            assert_eq!(with_mask.log_sum_exp.as_ref().expect("asked for")[row], f32::NEG_INFINITY);
        }
        let causal: Vec<u8> = (0..150 * 330).map(|index| u8::from(index % 330 <= index / 330)).collect();
        let as_mask = AttentionOptions { boolean_mask: Some(ScoreStrides::broadcast([1, 1, 150, 330])), ..options };
        let as_mask =
            run(device, problem, as_mask, &inputs, CallInputs { boolean_mask: Some(&causal), ..Default::default() });
        let mask = Mask::CausalAligned(CausalAlign::TopLeft);
        let causal = run(device, problem, AttentionOptions { mask, ..options }, &inputs, CallInputs::default());
        let difference = |(a, b): (&f16, &f16)| (a.to_f64() - b.to_f64()).abs();
        let difference: f64 = as_mask.output.iter().zip(&causal.output).map(difference).sum();
        assert!(
            difference < 0.03 * causal.output.iter().map(|element| element.to_f64().abs()).sum::<f64>(),
            "{device}: {difference}"
        );
    }
}

/// Tiles of 128 keys that a boolean mask hides from all queries of an item, 192 or 128, are not read, and where it shows all, it is not: the words say
/// so, and the bits are those of a bias of −∞, which is always read. With masks that leave an item's warpgroups different tiles.
#[test]
fn tiles_of_boolean_masks() {
    check_tiles_of_boolean_masks(HOPPER, 192);
    check_tiles_of_boolean_masks(ADA, 128);
}

fn check_tiles_of_boolean_masks(gpu: ComputeCapability, item_queries: usize) {
    let shape @ [_, heads, queries, keys] = [1, 2, 250, 430];
    let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, heads, queries, 64], [1, keys]);
    let clean = Inputs::<f16>::random(&problem, 6);
    let mut poisoned = clean.clone();
    poisoned.key[2 * 128 * 64..3 * 128 * 64].fill(f16::NAN);
    poisoned.value[2 * 128 * 64..3 * 128 * 64].fill(f16::NAN);
    // of head, item and tile; no query sees the third tile
    let kind = |head: usize, item: usize, tile: usize| {
        if tile == 2 { mask_tile::HIDDEN } else { ((head + 2 * item + tile) % 3) as u32 }
    };
    let window = Mask::Window { left: Some(200), right: Some(100), align: CausalAlign::BottomRight };
    for (index, mask) in [Mask::None, Mask::CausalAligned(CausalAlign::BottomRight), window].into_iter().enumerate() {
        for (strides, rows) in [
            (ScoreStrides::contiguous(shape), [heads, queries]),
            // rows of 432 bytes, which are loaded 16 bytes at a time; every other key of longer rows, which are not
            (ScoreStrides { key: 1, query: 432, head: 432 * 250, batch: 0 }, [heads, queries]),
            (ScoreStrides { key: 2, query: 861, head: 0, batch: 0 }, [1, queries]),
            (ScoreStrides { key: 1, query: 0, head: 432, batch: 0 }, [heads, 1]),
        ] {
            let items = rows[1].div_ceil(item_queries);
            let axes = [(rows[0], strides.head), (rows[1], strides.query), (keys, strides.key)];
            let last: i64 = axes.iter().map(|&(size, stride)| (size as i64 - 1) * stride).sum();
            let mut boolean_mask = vec![0u8; last as usize + 1];
            for (head, row, key) in (0..rows[0])
                .flat_map(|head| (0..rows[1]).flat_map(move |row| (0..keys).map(move |key| (head, row, key))))
            {
                let place = head as i64 * strides.head + row as i64 * strides.query + key as i64 * strides.key;
                boolean_mask[place as usize] = match kind(head, row / item_queries, key / 128) {
                    mask_tile::HIDDEN => 0,
                    mask_tile::WHOLE => 1 << (key % 8),
                    _ => u8::from((row + key) % 3 != 0),
                };
            }
            let bias: Vec<f32> =
                boolean_mask.iter().map(|&byte| if byte == 0 { f32::NEG_INFINITY } else { 0.0 }).collect();
            let pv_mode = PvMode::ALL[index % 2];
            let options = AttentionOptions { mask, pv_mode, smooth_k: false, return_lse: true, ..Default::default() };
            let run = |inputs: &Inputs<f16>, options: AttentionOptions, more: CallInputs| {
                let schedule = Schedule::replayed().unwrap_or(Schedule::Random(index as u64));
                Execution::of_gpu(gpu, &problem, &options, inputs.slices(), &more, &Options::new(schedule))
                    .unwrap_or_else(|(kernel, report)| panic!("{}: {report}", kernel.symbol()))
            };
            let bits = |execution: &Execution| (execution.output::<f16>(), execution.log_sum_exp());
            let with_mask = AttentionOptions { boolean_mask: Some(strides), ..options };
            let more = CallInputs { boolean_mask: Some(&boolean_mask), ..Default::default() };
            let of_mask = run(&clean, with_mask, more);
            let with_bias = AttentionOptions { bias: Some(Bias { dtype: BiasType::F32, strides }), ..options };
            let more_bias = CallInputs { bias: Some(BiasSlice::F32(&bias)), ..Default::default() };
            assert!(bits(&of_mask) == bits(&run(&clean, with_bias, more_bias)), "{mask:?} {strides:?}");
            if pv_mode == PvMode::F16 {
                assert!(bits(&of_mask) == bits(&run(&poisoned, with_mask, more)), "{mask:?} {strides:?}");
            }
            let words: Vec<u32> =
                bytemuck::pod_collect_to_vec(&of_mask.workspace("mask_tiles").expect("with a boolean mask"));
            let items = (0..rows[0]).flat_map(|head| (0..items).map(move |item| (head, item)));
            let expected: Vec<u32> =
                items.flat_map(|(head, item)| (0..4).map(move |tile| kind(head, item, tile))).collect();
            // the workspace has room for the smallest items
            assert_eq!(words[..expected.len()], expected, "{mask:?} {strides:?}");
        }
    }
}

/// The same on both engines.
#[test]
fn masks_that_show_the_same_are_the_same() {
    let problem = problem(70, 300);
    let inputs = Inputs::<f16>::random(&problem, 1);
    for (device, pv_mode) in
        [Device::Cpu, Device::Simt].into_iter().flat_map(|device| PvMode::ALL.map(|mode| (device, mode)))
    {
        let with = |mask| {
            let options = AttentionOptions { pv_mode, mask, return_lse: true, ..Default::default() };
            run(device, problem, options, &inputs, CallInputs::default())
        };
        for align in ALIGNMENTS {
            assert_eq!(with(Mask::Window { left: Some(400), right: Some(400), align }), with(Mask::None));
            assert_eq!(with(Mask::Window { left: None, right: Some(0), align }), with(Mask::CausalAligned(align)));
        }
    }
}

/// With a sink of −∞ everything is as without; one far above all scores leaves nothing; and queries that see no key have its value.
#[test]
fn extreme_sinks() {
    let problem = problem(80, 30);
    let inputs = Inputs::<f16>::random(&problem, 2);
    let mask = Mask::CausalAligned(CausalAlign::BottomRight);
    for (device, (pv_mode, pv_accum)) in PV_MODES
        .into_iter()
        .map(|mode| (Device::Cpu, mode))
        .chain([PV_MODES[0], PV_MODES[3]].map(|mode| (Device::Simt, mode)))
    {
        let plain = AttentionOptions { pv_mode, pv_accum, mask, return_lse: true, ..Default::default() };
        assert!(element_types((pv_mode, pv_accum)).contains(&DType::F16));
        let options = AttentionOptions { sinks: true, ..plain };
        let with = |sink: f32| {
            run(device, problem, options, &inputs, CallInputs { sinks: Some(&[sink; 2]), ..Default::default() })
        };
        assert_eq!(with(f32::NEG_INFINITY), run(device, problem, plain, &inputs, CallInputs::default()));
        for sink in [300.0, 1e6, 3e38] {
            let result = with(sink);
            assert!(result.output.iter().all(|&element| element == f16::ZERO), "{device}, {sink}");
            assert!(result.log_sum_exp.expect("asked for").iter().all(|&sum| sum == sink), "{device}, {sink}");
        }
        for sink in [-3e38, -1e6, 1.25] {
            let result = with(sink);
            let log_sum_exp = result.log_sum_exp.expect("asked for");
            for (row, sum) in log_sum_exp.into_iter().enumerate() {
                let sees_none = row % 80 < 50;
                assert_eq!(sum == sink, sees_none, "{device}, {sink}: {sum} of row {row}");
                assert!(!sees_none || result.output[64 * row..][..64].iter().all(|&element| element == f16::ZERO));
            }
        }
    }
}

/// Tiles of 128 keys that no query sees are not read: without smoothing their keys may be anything, and so may their values
/// where values have no scale, with `PvMode::F16`.
#[test]
fn tiles_outside_of_every_window_leave_no_trace() {
    let problem = problem(60, 500);
    let mask = Mask::Window { left: Some(50), right: Some(0), align: CausalAlign::BottomRight };
    for (device, pv_mode) in
        [Device::Cpu, Device::Simt].into_iter().flat_map(|device| PvMode::ALL.map(|mode| (device, mode)))
    {
        let options = AttentionOptions { pv_mode, mask, smooth_k: false, return_lse: true, ..Default::default() };
        let clean = Inputs::<f16>::random(&problem, 3);
        let mut poisoned = clean.clone();
        for token in (0..2 * 500).filter(|token| token % 500 < 384) {
            poisoned.key[64 * token..64 * (token + 1)].fill(f16::MAX);
            if pv_mode == PvMode::F16 {
                poisoned.value[64 * token..64 * (token + 1)].fill(f16::MAX);
            }
        }
        let run = |inputs| run(device, problem, options, inputs, CallInputs::default());
        assert_eq!(run(&clean), run(&poisoned), "{device}, {pv_mode:?}");
    }
    // what the calls above refuse
    for poison in [f16::NAN, f16::INFINITY] {
        let options =
            AttentionOptions { pv_mode: PvMode::F16, mask, smooth_k: false, return_lse: true, ..Default::default() };
        let clean = Inputs::<f16>::random(&problem, 4);
        let mut poisoned = clean.clone();
        for token in (0..2 * 500).filter(|token| token % 500 < 384) {
            poisoned.key[64 * token..64 * (token + 1)].fill(poison);
            poisoned.value[64 * token..64 * (token + 1)].fill(poison);
        }
        assert_eq!(attend(&problem, &options, &clean), attend(&problem, &options, &poisoned));
    }
}
