//! Rotary embedding and Hadamard rotation, on the CPU engine and in the SIMT executor.

mod common {
    pub mod options;
}

use common::options::any_options;
use half::f16;
use proptest::prelude::*;
use sage_tests::error::Accuracy;
use sage_tests::modes::element_types;
use sage_tests::simt;
use sage_tests::tensor::{Inputs, Outputs, Random, ScoreTensors, attend, exact, quantize};
use sage_tests::varlen::Batch;
use sage_tests::with_element;
use sageattention::simt::{Options, Schedule};
use sageattention::{
    AttentionOptions, AttentionPlan, AttentionProblem, CallInputs, ComputeCapability, DType, Device, Element, PvAccum,
    PvMode, QkMode, QuantGranularity, Rotary, RotaryPairs, RotaryTables, SequenceLengths, TensorLayout, attention_with,
    testing,
};

const HOPPER: ComputeCapability = ComputeCapability::new(9, 0);
const AMPERE: ComputeCapability = ComputeCapability::new(8, 0);
const TURING: ComputeCapability = ComputeCapability::new(7, 5);

/// All channels, in tables that have just the positions.
fn rotary(problem: &AttentionProblem, pairs: RotaryPairs, offset: usize) -> Rotary {
    let AttentionProblem { head_dim, query_len, key_len, .. } = *problem;
    let dim = head_dim & !1;
    Rotary { dim, pairs, positions: query_len.max(key_len) + offset, query_offset: offset, key_offset: offset }
}

/// The most exact P·V.
fn sixteen_bits() -> AttentionOptions {
    AttentionOptions { pv_mode: PvMode::F16, return_lse: true, ..Default::default() }
}

fn difference(a: &[f64], b: &[f64]) -> f64 {
    Accuracy::of(a.iter().copied(), b).relative_l1
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..Default::default() })]

    /// Angles of 0 turn nothing.
    #[test]
    fn at_position_0_nothing_is_turned(
        queries in 1..200usize, keys in 1..300usize, head_dim in 2..257usize, options in any_options(), is_split: bool, seed: u64
    ) {
        let problem = AttentionProblem::cross(TensorLayout::Nhd, DType::F16, [2, 2, queries, head_dim], [1, keys]);
        let inputs = Inputs::<f16>::random(&problem, seed);
        let rotary = rotary(&problem, RotaryPairs::ALL[usize::from(is_split)], 3);
        let table_len = rotary.positions * (rotary.dim / 2);
        let tables = RotaryTables { cos: &vec![1.0; table_len][..], sin: &vec![0.0; table_len][..] };
        let run = |rotary, tables| {
            let options = AttentionOptions { rotary, ..options };
            let more = CallInputs { rotary: tables, ..Default::default() };
            attention_with(Device::Cpu, problem, options, inputs.slices(), more).expect("a valid call")
        };
        prop_assert_eq!(run(Some(rotary), Some(tables)), run(None, None));
    }

    /// Scores depend on the difference of positions.
    #[test]
    fn a_common_offset_changes_nothing(
        queries in 1..100usize, keys in 1..200usize, head_dim in 2..129usize, is_split: bool, offset in 0..200usize, seed: u64
    ) {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 2, queries, head_dim], [1, keys]);
        let inputs = Inputs::<f16>::random(&problem, seed);
        let pairs = RotaryPairs::ALL[usize::from(is_split)];
        let [near, far] = [0, offset].map(|offset| AttentionOptions { rotary: Some(rotary(&problem, pairs, offset)), ..sixteen_bits() });
        let [near, far] = [near, far].map(|options| exact(&problem, &options, &inputs));
        // what the tables' roundings make
        prop_assert!(difference(&far.output, &near.output) < 1e-4);
    }

    #[test]
    fn is_near_exact_attention(
        queries in 20..200usize, keys in 20..300usize, head_dim in 16..257usize, channels in 1..8usize, is_split: bool,
        hadamard: bool, dtype in prop::sample::select(vec![DType::F16, DType::Bf16, DType::F32]), seed: u64
    ) {
        let problem = AttentionProblem::cross(TensorLayout::Nhd, dtype, [1, 2, queries, head_dim], [2, keys]);
        let all = rotary(&problem, RotaryPairs::ALL[usize::from(is_split)], 5);
        let rotary = Rotary { dim: ((head_dim / channels) & !1).max(2), ..all };
        let options = AttentionOptions { rotary: Some(rotary), hadamard, ..sixteen_bits() };
        with_element!(dtype, T => {
            let inputs = Inputs::<T>::random(&problem, seed);
            let (result, exact) = (attend(&problem, &options, &inputs), exact(&problem, &options, &inputs));
            prop_assert!(difference(&result.output, &exact.output) < 0.05);
            for (result, exact) in result.log_sum_exp.iter().zip(exact.log_sum_exp) {
                prop_assert!((f64::from(*result) - exact).abs() < 0.15);
            }
        });
    }

    /// Positions begin anew with every sequence.
    #[test]
    fn sequences_are_alone(
        lengths in prop::collection::vec((0..60usize, 0..150usize), 1..5), is_split: bool, hadamard: bool, seed: u64
    ) {
        let sequences: Vec<_> = lengths.into_iter().map(|(queries, keys)| [queries, keys]).chain([[3, 4]]).collect();
        let batch = Batch::packed(DType::Bf16, &sequences, [2, 1, 48]);
        let rotary = Rotary { dim: 32, positions: 160, ..rotary(&batch.problem, RotaryPairs::ALL[usize::from(is_split)], 7) };
        let options = AttentionOptions { rotary: Some(rotary), hadamard, return_lse: true, ..Default::default() };
        let inputs = Inputs::<half::bf16>::random(&batch.problem, seed);
        let outputs = sage_tests::tensor::attend_varlen(&batch.problem, &options, batch.slices(), &inputs);
        for (index, expected) in batch.expected(&options, &inputs).into_iter().enumerate() {
            prop_assert!(batch.rows_of(index, &outputs) == expected);
        }
        let more = CallInputs { lengths: batch.slices(), ..Default::default() };
        let tables = ScoreTensors::of(&batch.problem, &options);
        let more = CallInputs { rotary: tables.inputs().rotary, ..more };
        let exact = testing::exact_with(&batch.problem, &options, inputs.slices(), &more);
        let exact = Outputs { output: exact.output, log_sum_exp: Vec::new() };
        for (index, [queries, keys]) in sequences.into_iter().enumerate() {
            if queries > 0 && keys > 0 {
                let (problem, inputs) = batch.alone(index, &inputs);
                prop_assert!(batch.rows_of(index, &exact).output == sage_tests::tensor::exact(&problem, &options, &inputs).output);
            }
        }
    }
}

/// Two channels are eight times as large as the others, as in some models.
#[test]
fn a_hadamard_rotation_spreads_large_channels() {
    let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 4, 500, 128]);
    let mut random = Random(1);
    let mut inputs = Inputs::<f16>::normal(&problem, 2);
    for (query, key) in inputs.query.chunks_exact_mut(128).zip(inputs.key.chunks_exact_mut(128)) {
        for channel in [3, 70] {
            query[channel] = f16::from_f32(0.1 * random.normal());
            key[channel] = f16::from_f32(8.0 * random.normal());
        }
    }
    let error = |qk_mode, hadamard| {
        let options = AttentionOptions { qk_mode, smooth_q: true, hadamard, ..sixteen_bits() };
        let exact = exact(&problem, &options, &inputs);
        difference(&attend(&problem, &options, &inputs).output, &exact.output)
    };
    let int4 = [false, true].map(|hadamard| error(QkMode::Int4, hadamard));
    assert!(int4[1] < 0.5 * int4[0], "{int4:?}");
    let int8 = [false, true].map(|hadamard| error(QkMode::Int8, hadamard));
    assert!(int8[1] < 0.5 * int8[0], "{int8:?}");
}

/// A rotation of a row of one, by definition: signs of the matrix's row, and the rest of the channels.
#[test]
fn codes_are_those_of_rotated_keys() {
    let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F32, [1, 1, 1, 50], [1, 1]);
    let options = AttentionOptions { smooth_k: false, hadamard: true, ..Default::default() };
    let one = |channel: usize| (0..50).map(|other| if other == channel { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
    for channel in [0, 5, 49] {
        let inputs = Inputs { query: one(0), key: one(channel), value: one(0) };
        let codes = quantize(&problem, &options, &inputs).key_codes;
        for (place, &code) in codes[..64].iter().enumerate() {
            let sign = if (place & channel).count_ones() % 2 == 0 { 127 } else { -127 };
            assert_eq!(code, sign, "{channel}, {place}");
        }
    }
}

/// What 16 bits can't hold after a rotation becomes the largest that they can.
#[test]
fn large_elements() {
    let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 1, 70, 64]);
    let mut inputs = Inputs::<f16>::random(&problem, 3);
    inputs.key[64..128].fill(f16::MAX);
    let options = AttentionOptions { hadamard: true, ..sixteen_bits() };
    let result = attend(&problem, &options, &inputs);
    assert!(result.output.iter().all(|element| element.is_finite()));
    simt::check(HOPPER, &problem, &options, &Options::new(Schedule::InOrder), &inputs);
}

fn check<T: Element>(gpu: ComputeCapability, problem: &AttentionProblem, options: &AttentionOptions, seed: u64) {
    let schedule = Options::new(Schedule::Random(seed));
    simt::check(gpu, problem, options, &schedule, &Inputs::<T>::random(problem, seed));
}

/// Whole chunks and others, some channels and all, both kinds of pairs, every element type: the CPU's codes to the bit.
#[test]
fn kernels_make_the_same_codes() {
    let shapes = [
        (64, 64, 8),
        (128, 96, 8),
        (256, 256, 16),
        (40, 20, 8),
        (100, 34, 8),
        (61, 60, 3),
        (72, 16, 0),
        (2, 2, 0),
        (90, 90, 8),
    ];
    for (index, (head_dim, dim, padding)) in shapes.into_iter().enumerate() {
        for (turn, dtype) in [DType::F16, DType::Bf16, DType::F32].into_iter().enumerate() {
            let layout = [TensorLayout::Hnd, TensorLayout::Nhd][index % 2];
            let mut problem = AttentionProblem::cross(layout, dtype, [2, 2, 33, head_dim], [1, 150]);
            problem.query_strides.token += 2 * padding;
            problem.query_strides.head *= 2;
            problem.query_strides.batch *= 2;
            let pairs = RotaryPairs::ALL[(index + turn) % 2];
            let rotary = Rotary { dim, query_offset: 117, positions: 160, ..rotary(&problem, pairs, 3) };
            let (rotary, hadamard) =
                [(Some(rotary), false), (Some(rotary), true), (None, true)][(index + 2 * turn) % 3];
            let pv_mode = if turn == 0 { PvMode::Fp8 } else { PvMode::F16 };
            let options = AttentionOptions { rotary, hadamard, pv_mode, return_lse: true, ..Default::default() };
            with_element!(dtype, T => check::<T>(HOPPER, &problem, &options, index as u64));
        }
    }
}

/// Queries and keys that are prepared before they are quantized.
fn prepared(problem: &AttentionProblem, options: &AttentionOptions) -> [bool; 2] {
    let plan = AttentionPlan::new(*problem, *options).expect("a valid plan");
    let regions = plan.workspace_regions();
    ["prepared_query", "prepared_key"].map(|name| regions.iter().any(|(region, _)| *region == name))
}

/// What the quantizer turns itself: the CPU's codes to the bit, of every schedule.
#[test]
fn the_quantizer_turns_under_every_schedule() {
    for (index, (head_dim, dim)) in [(64, 64), (128, 128), (256, 256), (128, 48), (72, 64)].into_iter().enumerate() {
        for (turn, pairs) in RotaryPairs::ALL.into_iter().enumerate() {
            let dtype = [DType::F16, DType::Bf16][(index + turn) % 2];
            let problem = AttentionProblem::cross(TensorLayout::Nhd, dtype, [1, 2, 70, head_dim], [1, 300]);
            let rotary = Rotary { dim, pairs, positions: 302, query_offset: 231, key_offset: 2 };
            let options = AttentionOptions { rotary: Some(rotary), return_lse: true, ..Default::default() };
            assert_eq!(prepared(&problem, &options), [false; 2]);
            for schedule in Schedule::with((0..2).map(Schedule::Random)) {
                with_element!(dtype, T => {
                    let inputs = Inputs::<T>::random(&problem, index as u64);
                    simt::check(HOPPER, &problem, &options, &Options::new(schedule), &inputs);
                });
            }
        }
    }
}

/// Of every granularity, with and without the keys' mean, with channels that pad, by kernels of several generations of GPUs.
#[test]
fn the_quantizer_turns_in_every_mode() {
    for (index, gpu) in [HOPPER, AMPERE, TURING].into_iter().enumerate() {
        for (turn, granularity) in QuantGranularity::ALL.into_iter().enumerate() {
            for (pairs, smooth_k) in RotaryPairs::ALL.into_iter().flat_map(|pairs| [true, false].map(|k| (pairs, k))) {
                let (head_dim, dim) = [(72, 48), (128, 16), (80, 64)][turn];
                let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [2, 4, 65, head_dim], [2, 129]);
                let rotary = Some(Rotary { dim, ..rotary(&problem, pairs, index) });
                let options = AttentionOptions { granularity, smooth_k, rotary, ..sixteen_bits() };
                assert_eq!(prepared(&problem, &options), [false; 2]);
                check::<f16>(gpu, &problem, &options, turn as u64);
            }
        }
    }
}

/// Queries and keys that 16 bits can't hold once they are turned.
#[test]
fn the_quantizer_turns_large_elements() {
    let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 1, 70, 64]);
    let mut inputs = Inputs::<f16>::random(&problem, 3);
    for tensor in [&mut inputs.query, &mut inputs.key] {
        tensor[64..192].fill(f16::MAX);
    }
    for pairs in RotaryPairs::ALL {
        let rotary = Some(rotary(&problem, pairs, 0));
        let options = AttentionOptions { rotary, softmax_scale: Some(1e-10), ..sixteen_bits() };
        simt::check(HOPPER, &problem, &options, &Options::new(Schedule::InOrder), &inputs);
    }
}

/// What the quantizer does not turn.
#[test]
fn what_is_prepared() {
    let problem = |dtype| AttentionProblem::new(TensorLayout::Hnd, dtype, [1, 2, 100, 128]);
    let with = |dim, pairs, more| {
        let rotary = Some(Rotary { dim, pairs, positions: 100, query_offset: 0, key_offset: 0 });
        AttentionOptions { rotary, ..more }
    };
    let [interleaved, half_split] = RotaryPairs::ALL;
    let plain = sixteen_bits();
    for dtype in [DType::F16, DType::Bf16] {
        for (dim, pairs, more, expected) in [
            (128, half_split, plain, false),
            (16, half_split, plain, false),
            (8, half_split, plain, true),
            (8, interleaved, plain, false),
            (20, interleaved, plain, true),
            (128, half_split, AttentionOptions { hadamard: true, ..plain }, true),
            (128, half_split, AttentionOptions { smooth_q: true, ..plain }, true),
            (128, half_split, AttentionOptions { qk_mode: QkMode::Int4, ..plain }, true),
        ] {
            let options = with(dim, pairs, more);
            assert_eq!(prepared(&problem(dtype), &options), [expected; 2], "{dtype}, {options:?}");
        }
    }
    assert_eq!(prepared(&problem(DType::F32), &with(128, half_split, plain)), [true; 2]);
    assert_eq!(prepared(&problem(DType::F16), &plain), [false; 2]);
    // rows that are no whole chunks, or do not begin at one, of any tensor
    let odd = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 2, 100, 92]);
    assert_eq!(prepared(&odd, &with(64, half_split, plain)), [true; 2]);
    assert_eq!(prepared(&problem(DType::F16).with_value_head_dim(92), &with(64, half_split, plain)), [true; 2]);
    let mut apart = problem(DType::F16);
    apart.query_strides.token += 4;
    apart.query_strides.head *= 2;
    assert_eq!(prepared(&apart, &with(64, half_split, plain)), [true; 2]);
    let batch = Batch::packed(DType::F16, &[[30, 30], [30, 40]], [1, 1, 64]);
    assert_eq!(prepared(&batch.problem, &with(64, half_split, plain)), [true; 2]);
}

/// Biases of smoothed queries are made of the keys as they were prepared.
#[test]
fn kernels_of_smoothed_queries() {
    for (index, (qk_mode, smooth_q)) in
        [(QkMode::Int8, true), (QkMode::Int4, false), (QkMode::Int4, true)].into_iter().enumerate()
    {
        let dtype = element_types((PvMode::F16, PvAccum::F32))[index];
        let problem =
            AttentionProblem::cross(TensorLayout::Nhd, dtype, [1, 2, 140, 72], [1, 200]).with_value_head_dim(48);
        let rotary = Some(rotary(&problem, RotaryPairs::ALL[index % 2], 2));
        for hadamard in [true, false] {
            let options = AttentionOptions { qk_mode, smooth_q, rotary, hadamard, ..sixteen_bits() };
            with_element!(dtype, T => check::<T>(AMPERE, &problem, &options, index as u64));
        }
    }
}

#[test]
fn kernels_of_sequences_of_different_lengths() {
    let packed = Batch::packed(DType::F16, &[[3, 5], [0, 0], [0, 40], [70, 0], [33, 200]], [2, 1, 64]);
    let padded = Batch::padded(TensorLayout::Hnd, DType::F16, [20, 150], &[7, 0, 150], [2, 1, 64]);
    for (batch, pairs) in [packed, padded].into_iter().zip(RotaryPairs::ALL) {
        let rotary = Some(Rotary { positions: 205, ..rotary(&batch.problem, pairs, 5) });
        for hadamard in [false, true] {
            let options = AttentionOptions { rotary, hadamard, return_lse: true, ..Default::default() };
            let inputs = Inputs::<f16>::random(&batch.problem, 4);
            simt::check_batch(HOPPER, &batch, &options, &Options::new(Schedule::Random(1)), &inputs);
        }
    }
}

/// Starts that make no sense lead to no place outside of the tables: the executor would find it.
#[test]
fn bad_starts_stay_in_the_tables() {
    let batch = Batch::packed(DType::F16, &[[30, 30], [30, 30]], [1, 1, 64]);
    let rotary = Some(Rotary { positions: 31, ..rotary(&batch.problem, RotaryPairs::HalfSplit, 1) });
    let options = AttentionOptions { rotary, ..Default::default() };
    let (inputs, tables) = (Inputs::<f16>::random(&batch.problem, 5), ScoreTensors::of(&batch.problem, &options));
    for starts in [[50, 10, 3], [0, -5, 60], [i32::MIN, i32::MAX, 7], [0, 0, 60]] {
        let lengths = SequenceLengths::Packed { cu_seqlens_q: &starts[..], cu_seqlens_k: &starts[..] };
        let more = CallInputs { lengths, ..tables.inputs() };
        let execution = Options::new(Schedule::InOrder);
        let result = sageattention::simt::Execution::new(&batch.problem, &options, inputs.slices(), &more, &execution);
        result.unwrap_or_else(|(kernel, report)| panic!("{}: {report}", kernel.symbol()));
    }
}
