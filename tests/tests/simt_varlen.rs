//! Sequences of different lengths in the SIMT executor: no mistake under any schedule, codes and scales as of each sequence
//! alone, and attention near the CPU engine.

use half::f16;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sage_tests::modes::{PV_MODES, element_types};
use sage_tests::simt::check_batch;
use sage_tests::tensor::{Inputs, Outputs, gather, indices, key_shape, offset, query_shape};
use sage_tests::varlen::Batch;
use sage_tests::with_element;
use sageattention::simt::{Execution, Options, Schedule};
use sageattention::{
    AttentionOptions, AttentionProblem, Bias, BiasType, CallInputs, CausalAlign, ComputeCapability, DType, Mask,
    PvMode, ScoreStrides, SequenceLengths, TensorLayout,
};

const HOPPER: ComputeCapability = ComputeCapability::new(9, 0);
/// One that has all `mma.sync` kernels.
const ADA: ComputeCapability = ComputeCapability::new(8, 9);

const MASKS: [Mask; 3] =
    [Mask::None, Mask::CausalAligned(CausalAlign::TopLeft), Mask::CausalAligned(CausalAlign::BottomRight)];

fn check(batch: &Batch, options: &AttentionOptions, execution: &Options, seed: u64) {
    check_on(HOPPER, batch, options, execution, seed);
}

fn check_on(gpu: ComputeCapability, batch: &Batch, options: &AttentionOptions, execution: &Options, seed: u64) {
    with_element!(batch.problem.dtype, T => {
        check_batch(gpu, batch, options, execution, &Inputs::<T>::random(&batch.problem, seed));
    });
}

/// In each mode, with each mask.
fn each() -> impl Iterator<Item = AttentionOptions> {
    PvMode::ALL.into_iter().flat_map(|pv_mode| {
        MASKS.map(|mask| AttentionOptions { pv_mode, mask, return_lse: true, ..Default::default() })
    })
}

#[test]
fn packed() {
    let sequences = [[200, 130], [0, 50], [1, 129], [70, 0], [64, 64], [0, 0], [193, 300]];
    for (index, options) in each().enumerate() {
        let (dtype, head_dim) = [(DType::F16, 64), (DType::Bf16, 128), (DType::F32, 64), (DType::F32, 128)][index % 4];
        let batch = Batch::packed(dtype, &sequences, [2, 1, head_dim]);
        check(&batch, &options, &Options::new(Schedule::Random(index as u64)), 1);
    }
}

#[test]
fn padded() {
    for (index, options) in each().enumerate() {
        let layout = if index % 2 == 0 { TensorLayout::Hnd } else { TensorLayout::Nhd };
        let batch = Batch::padded(layout, DType::F16, [100, 300], &[300, 0, 1, 128, 129], [2, 2, 64]);
        check(&batch, &options, &Options::new(Schedule::Random(index as u64)), 2);
    }
}

/// In every mode of the `mma.sync` kernels, with every head dimension; of Hopper's, those with more than 128 channels.
#[test]
fn mma() {
    let sequences = [[130, 130], [0, 50], [1, 129], [70, 0], [0, 0], [20, 200]];
    for (index, (pv_mode, pv_accum)) in PV_MODES.into_iter().enumerate() {
        for (turn, head_dim) in [64, 128, 256].into_iter().enumerate() {
            let dtypes = element_types((pv_mode, pv_accum));
            let dtype = dtypes[(index + turn) % dtypes.len()];
            let options = AttentionOptions {
                pv_mode,
                pv_accum,
                mask: MASKS[(index + turn) % 3],
                sinks: index % 2 == 0,
                return_lse: true,
                ..Default::default()
            };
            let batch = match (index + turn) % 2 {
                0 => Batch::packed(dtype, &sequences, [2, 1, head_dim]),
                _ => Batch::padded(TensorLayout::Nhd, dtype, [100, 200], &[200, 0, 1, 129], [2, 2, head_dim]),
            };
            let gpu = if head_dim > 128 { HOPPER } else { ADA };
            check_on(gpu, &batch, &options, &Options::new(Schedule::Random(index as u64)), 1);
        }
    }
}

/// A soft cap, in every mode, of packed sequences; of padded ones a bias and a boolean mask too. Hopper runs the `mma.sync` kernels.
#[test]
fn modified_scores() {
    let sequences = [[130, 130], [0, 50], [1, 129], [70, 0], [0, 0], [20, 200]];
    for (index, (pv_mode, pv_accum)) in PV_MODES.into_iter().enumerate() {
        for (turn, head_dim) in [64, 128, 256].into_iter().enumerate() {
            let dtypes = element_types((pv_mode, pv_accum));
            let dtype = dtypes[(index + turn) % dtypes.len()];
            let options = AttentionOptions {
                pv_mode,
                pv_accum,
                mask: MASKS[(index + turn) % 3],
                soft_cap: Some(3.0),
                sinks: index % 2 == 0,
                smooth_k: turn != 1,
                return_lse: true,
                ..Default::default()
            };
            let execution = Options::new(Schedule::Random(index as u64));
            let gpu = [ADA, HOPPER][turn % 2];
            if (index + turn) % 2 == 0 {
                check_on(gpu, &Batch::packed(dtype, &sequences, [2, 1, head_dim]), &options, &execution, 1);
                continue;
            }
            let padded = Batch::padded(TensorLayout::Nhd, dtype, [150, 200], &[200, 0, 1, 129], [2, 2, head_dim]);
            let shape @ [batch, heads, _, keys] = padded.problem.score_shape();
            let options = AttentionOptions {
                soft_cap: options.soft_cap.filter(|_| turn != 2),
                bias: (turn != 0).then_some(Bias {
                    dtype: [BiasType::F16, BiasType::Bf16, BiasType::F32][index % 3],
                    strides: ScoreStrides::contiguous(shape),
                }),
                boolean_mask: (index % 3 != 1).then_some(ScoreStrides::broadcast([batch, heads, 1, keys])),
                ..options
            };
            check_on(gpu, &padded, &options, &execution, 2);
        }
    }
}

/// Segment means of sequences, and references that are replaced.
#[test]
fn mma_segments() {
    let batch = Batch::packed(DType::F16, &[[20, 1100], [3, 5], [10, 2100]], [1, 1, 64]);
    for smooth_k in [false, true] {
        let options = AttentionOptions { return_lse: true, smooth_k, ..Default::default() };
        let inputs = Inputs::<f16>::rising(&batch.problem, 9);
        check_batch(ADA, &batch, &options, &Options::new(Schedule::InOrder), &inputs);
    }
}

/// What a call gives a sequence is what the same kernel gives it alone, to the bit; and keys and values that pad it are never read.
#[test]
fn mma_as_each_alone() {
    let kv_lens = [130, 0, 5, 200];
    for (index, (pv_mode, pv_accum)) in PV_MODES.into_iter().enumerate() {
        let options =
            AttentionOptions { pv_mode, pv_accum, mask: MASKS[index % 3], return_lse: true, ..Default::default() };
        let execution = Options::new(Schedule::InOrder);
        let batch =
            Batch::padded(TensorLayout::Hnd, DType::F16, [140, 200], &kv_lens, [2, 1, [64, 128, 256][index % 3]]);
        let inputs = Inputs::<f16>::random(&batch.problem, 7);
        let mut poisoned = inputs.clone();
        for index @ [sequence, _, token, _] in indices(key_shape(&batch.problem)) {
            if token >= kv_lens[sequence] {
                poisoned.key[offset(batch.problem.key_strides, index)] = f16::NAN;
                poisoned.value[offset(batch.problem.value_strides, index)] = f16::INFINITY;
            }
        }
        let run = |problem: &AttentionProblem, inputs: &Inputs<f16>, lengths| {
            let more = CallInputs { lengths, ..Default::default() };
            let result = Execution::of_gpu(ADA, problem, &options, inputs.slices(), &more, &execution);
            let result = result.unwrap_or_else(|(kernel, report)| panic!("{}: {report}\n{options:?}", kernel.symbol()));
            let output: Vec<f16> = result.output();
            let output = gather(&output, problem.output_strides, query_shape(problem));
            Outputs { output, log_sum_exp: result.log_sum_exp() }
        };
        let together = run(&batch.problem, &poisoned, batch.slices());
        for (index, _) in kv_lens.iter().enumerate().filter(|(_, keys)| **keys > 0) {
            let (problem, inputs) = batch.alone(index, &inputs);
            let alone = run(&problem, &inputs, SequenceLengths::Uniform);
            assert!(batch.rows_of(index, &together) == alone, "{index} {options:?}");
        }
    }
}

/// Many CTAs that all wait for the table, and for each other's statistics.
#[test]
fn every_schedule() {
    let batch = Batch::packed(DType::F16, &[[100, 200], [30, 10], [50, 140]], [2, 2, 64]);
    for schedule in Schedule::with((0..4).map(Schedule::Random)) {
        for pv_mode in PvMode::ALL {
            let options = AttentionOptions { pv_mode, return_lse: true, ..Default::default() };
            check(&batch, &options, &Options::new(schedule), 3);
        }
    }
}

/// Segments of several sequences, and more of them than threads write the table with.
#[test]
fn segments_and_many_sequences() {
    let options = AttentionOptions { return_lse: true, ..Default::default() };
    let batch = Batch::packed(DType::F16, &[[20, 1100], [3, 5], [10, 2100]], [1, 1, 64]);
    check(&batch, &options, &Options::new(Schedule::InOrder), 4);
    let many: Vec<[usize; 2]> = (0..150).map(|index| [index % 3, index % 4]).collect();
    check(&Batch::packed(DType::Bf16, &many, [1, 1, 64]), &options, &Options::new(Schedule::InOrder), 5);
}

/// Lengths that make no sense are cut to what the tensors hold: nothing else is read or written, and all CTAs end.
#[test]
fn nonsense() {
    let problem = Batch::packed(DType::F16, &[[40, 50], [20, 150], [0, 10]], [1, 1, 64]).problem;
    let inputs = Inputs::<f16>::random(&problem, 6);
    let options = AttentionOptions { return_lse: true, ..Default::default() };
    for (cu_seqlens_q, cu_seqlens_k, expected) in [
        ([0, 1 << 30, -5, 30], [0, 50, 200, 210], [[0, 0, 60, 50], [60, 50, 0, 150], [60, 200, 0, 10]]),
        ([i32::MIN, 7, 3, 10], [5, 0, 600, 2], [[0, 5, 7, 0], [7, 5, 0, 205], [7, 210, 3, 0]]),
        ([-1; 4], [i32::MAX; 4], [[0, 210, 0, 0]; 3]),
    ] {
        let lengths = SequenceLengths::Packed { cu_seqlens_q: &cu_seqlens_q[..], cu_seqlens_k: &cu_seqlens_k[..] };
        let more = CallInputs { lengths, ..Default::default() };
        let execution = Options::new(Schedule::Random(0));
        let result = Execution::of_gpu(HOPPER, &problem, &options, inputs.slices(), &more, &execution);
        let result = result.unwrap_or_else(|(kernel, report)| panic!("{}: {report}\n{lengths:?}", kernel.symbol()));
        let table: Vec<u32> = bytemuck::pod_collect_to_vec(&result.workspace("sequences").expect("a ragged batch"));
        assert_eq!(table, expected.concat(), "{lengths:?}");
    }
}

proptest! {
    // the same calls every time, so that one that fails does so again
    #![proptest_config(ProptestConfig {
        cases: 24, failure_persistence: None, rng_seed: RngSeed::Fixed(0), ..Default::default()
    })]

    #[test]
    fn random_batches(
        sequences in prop::collection::vec((0usize..220, 0usize..300), 1..5),
        heads in prop::sample::select(vec![[1, 1], [2, 1], [4, 2]]),
        head_dim in prop::sample::select(vec![64, 128, 40, 72]),
        value_head_dim in prop::sample::select(vec![None, None, Some(64), Some(100)]),
        mask in prop::sample::select(MASKS.to_vec()),
        [f16, smooth_k, smooth_v, return_lse]: [bool; 4],
        seed: u64,
    ) {
        let sequences: Vec<_> = sequences.into_iter().map(|(queries, keys)| [queries, keys]).collect();
        // tensors have some token
        prop_assume!(sequences.iter().any(|[queries, _]| *queries > 0) && sequences.iter().any(|[_, keys]| *keys > 0));
        let pv_mode = if f16 { PvMode::F16 } else { PvMode::Fp8 };
        let options = AttentionOptions { pv_mode, mask, smooth_k, smooth_v, return_lse, ..Default::default() };
        let batch = Batch::packed(DType::F16, &sequences, [heads[0], heads[1], head_dim]);
        let batch = batch.with_value_head_dim(value_head_dim);
        check(&batch, &options, &Options::new(Schedule::Random(seed)), seed);
    }
}
