//! Sequences of different lengths on the CPU engine: each as if it were alone.

mod common {
    pub mod options;
}

use common::options::any_options;
use half::f16;
use proptest::prelude::*;
use sage_layout::sequence::Sequence;
use sage_tests::tensor::{Inputs, Outputs, attend, attend_varlen, gather, indices, offset, query_shape};
use sage_tests::varlen::Batch;
use sage_tests::with_element;
use sageattention::{
    AttentionOptions, AttentionProblem, Bias, BiasSlice, BiasType, CallInputs, CausalAlign, DType, Device, Element,
    Error, Lengths, Mask, PvAccum, PvMode, QkMode, ScoreStrides, SequenceLengths, TensorLayout, Unsupported,
    attention_with, supports, testing,
};

/// Options that sequences of different lengths have.
fn ragged_options() -> impl Strategy<Value = AttentionOptions> {
    any_options().prop_map(|options| AttentionOptions { smooth_q: false, qk_mode: QkMode::Int8, ..options })
}

fn any_heads() -> impl Strategy<Value = [usize; 3]> {
    let head_dim = prop_oneof![3 => Just(64usize), 3 => Just(128usize), 2 => 1..129usize];
    (1..3usize, 1..4usize, head_dim).prop_map(|(keys, ratio, head_dim)| [keys * ratio, keys, head_dim])
}

/// That of the queries, or another.
fn any_value_head_dim() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![2 => Just(None), 1 => (1..257usize).prop_map(Some)]
}

/// Some sequences, possibly empty, with tokens on both sides in all.
fn any_packed() -> impl Strategy<Value = Batch> {
    let length = || prop_oneof![1 => Just(0usize), 4 => 1..40usize, 3 => 100..300usize, 1 => 1000..1200usize];
    let sequences = prop::collection::vec((length(), length()).prop_map(|(queries, keys)| [queries, keys]), 1..6);
    let dtype = prop_oneof![Just(DType::F16), Just(DType::Bf16), Just(DType::F32)];
    let has_tokens = |sequences: &Vec<[usize; 2]>| (0..2).all(|of| sequences.iter().any(|lengths| lengths[of] > 0));
    (sequences.prop_filter("tokens", has_tokens), any_heads(), any_value_head_dim(), dtype).prop_map(
        |(sequences, heads, value_head_dim, dtype)| {
            Batch::packed(dtype, &sequences, heads).with_value_head_dim(value_head_dim)
        },
    )
}

fn any_padded() -> impl Strategy<Value = Batch> {
    let layout = prop_oneof![Just(TensorLayout::Hnd), Just(TensorLayout::Nhd)];
    (1..4usize, 1..200usize, 1..400usize, any_heads(), any_value_head_dim(), layout).prop_flat_map(
        |(batch, query_len, key_len, heads, value_head_dim, layout)| {
            prop::collection::vec(0..=key_len, batch).prop_map(move |kv_lens| {
                let batch = Batch::padded(layout, DType::F16, [query_len, key_len], &kv_lens, heads);
                batch.with_value_head_dim(value_head_dim)
            })
        },
    )
}

/// What other sums need of values is f16's.
fn fitting(batch: &Batch, options: &AttentionOptions) -> AttentionOptions {
    let pv_accum = if batch.problem.dtype != DType::Bf16 { options.pv_accum } else { PvAccum::F32 };
    AttentionOptions { pv_accum, ..*options }
}

/// Lengths, as calls take them.
fn more(lengths: SequenceLengths<&[i32]>) -> CallInputs<'_> {
    CallInputs { lengths, ..Default::default() }
}

fn check_sequences<T: Element>(batch: &Batch, options: &AttentionOptions, inputs: &Inputs<T>) {
    let outputs = attend_varlen(&batch.problem, options, batch.slices(), inputs);
    for (index, expected) in batch.expected(options, inputs).into_iter().enumerate() {
        assert!(batch.rows_of(index, &outputs) == expected, "sequence {index}\n{batch:?}\n{options:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn packed_sequences_are_alone(batch in any_packed(), options in ragged_options(), seed: u64) {
        let options = fitting(&batch, &options);
        with_element!(batch.problem.dtype, T => {
            check_sequences(&batch, &options, &Inputs::<T>::random(&batch.problem, seed));
        });
    }

    /// Padding is NaN, or as large as can be: it is never read.
    #[test]
    fn padded_keys_are_shorter_tensors(batch in any_padded(), options in ragged_options(), seed: u64) {
        let mut inputs = Inputs::<f16>::random(&batch.problem, seed);
        check_sequences(&batch, &options, &inputs);
        let clean = attend_varlen(&batch.problem, &options, batch.slices(), &inputs);
        poison_padding(&batch, &mut inputs);
        prop_assert!(attend_varlen(&batch.problem, &options, batch.slices(), &inputs) == clean);
    }

    #[test]
    fn one_sequence_is_a_dense_call(
        queries in 1..300usize, keys in 1..300usize, heads in any_heads(), options in ragged_options(), seed: u64
    ) {
        let batch = Batch::packed(DType::F16, &[[queries, keys]], heads);
        let dense = AttentionProblem { lengths: Lengths::Uniform, ..batch.problem };
        let inputs = Inputs::<f16>::random(&dense, seed);
        let expected = attend(&dense, &options, &inputs);
        prop_assert!(attend_varlen(&batch.problem, &options, batch.slices(), &inputs) == expected);
        let padded = dense.with_padded_keys();
        let lengths = SequenceLengths::PaddedKeys { kv_lens: &[keys as i32][..] };
        prop_assert!(attend_varlen(&padded, &options, lengths, &inputs) == expected);
    }

    #[test]
    fn is_near_exact_attention(batch in any_packed(), options in ragged_options(), seed: u64) {
        let options = AttentionOptions { pv_mode: PvMode::F16, pv_accum: PvAccum::F32, ..options };
        let problem = AttentionProblem { dtype: DType::F16, ..batch.problem };
        let batch = Batch { problem, ..batch };
        let inputs = Inputs::<f16>::random(&problem, seed);
        let exact = testing::exact_with(&problem, &options, inputs.slices(), &more(batch.slices()));
        let exact = Outputs { output: exact.output, log_sum_exp: exact.log_sum_exp.iter().map(|&x| x as f32).collect() };
        // as near as each sequence alone is
        for (index, Sequence { queries, keys, .. }) in batch.table().into_iter().enumerate() {
            let found = batch.rows_of(index, &exact);
            if queries > 0 && keys > 0 {
                let (problem, inputs) = batch.alone(index, &inputs);
                prop_assert!(found.output == testing::exact(&problem, &options, inputs.slices()).output);
            } else {
                prop_assert!(found.output.iter().all(|&element| element == 0.0));
                prop_assert!(found.log_sum_exp.iter().all(|&lse| lse == f32::NEG_INFINITY));
            }
        }
    }
}

/// Puts NaN and infinities into keys and values that no sequence has.
fn poison_padding(batch: &Batch, inputs: &mut Inputs<f16>) {
    let SequenceLengths::PaddedKeys { kv_lens } = &batch.lengths else { unreachable!("a padded batch") };
    let problem = &batch.problem;
    let tensors = [
        (&mut inputs.key, problem.key_strides, problem.key_shape()),
        (&mut inputs.value, problem.value_strides, problem.value_shape()),
    ];
    for (elements, strides, shape) in tensors {
        for index @ [sequence, _, token, channel] in indices(shape) {
            if token >= kv_lens[sequence] as usize {
                let poison = if channel % 2 == 0 { f16::NAN } else { f16::NEG_INFINITY };
                elements[offset(strides, index)] = poison;
            }
        }
    }
}

/// The library's calls, on host tensors.
#[test]
fn calls() {
    let options = AttentionOptions { return_lse: true, ..Default::default() };
    let packed = Batch::packed(DType::F16, &[[3, 0], [0, 4], [5, 200]], [2, 1, 64]);
    let padded = Batch::padded(TensorLayout::Hnd, DType::F16, [8, 200], &[7, 0, 200], [2, 1, 64]);
    for (batch, is_padded) in [(packed, false), (padded, true)] {
        let mut inputs = Inputs::<f16>::random(&batch.problem, 1);
        if is_padded {
            poison_padding(&batch, &mut inputs);
        }
        let [query, key, value] = inputs.slices();
        let result = attention_with(Device::Cpu, batch.problem, options, [query, key, value], more(batch.slices()));
        let result = result.expect("a valid call");
        let expected = attend_varlen(&batch.problem, &options, batch.slices(), &inputs);
        let strides = batch.problem.output_strides;
        assert_eq!(gather(&result.output, strides, query_shape(&batch.problem)), expected.output);
        let log_sum_exp = result.log_sum_exp.expect("asked for");
        assert_eq!((log_sum_exp.len(), &log_sum_exp), (batch.rows(), &expected.log_sum_exp));
    }
}

#[test]
fn lengths_that_can_not_be() {
    let packed = Batch::packed(DType::F16, &[[3, 1], [0, 4]], [1, 1, 64]).problem;
    let padded = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [2, 1, 5, 64]).with_padded_keys();
    let call = |problem: AttentionProblem, lengths| {
        let query = vec![f16::ONE; 2 * 5 * 64];
        attention_with(Device::Cpu, problem, AttentionOptions::default(), [&query[..]; 3], more(lengths))
    };
    let of = |cu_seqlens_q, cu_seqlens_k| SequenceLengths::Packed { cu_seqlens_q, cu_seqlens_k };
    let good: (&[i32], &[i32]) = (&[0, 3, 3], &[0, 1, 5]);
    assert!(call(packed, of(good.0, good.1)).is_ok());
    for (problem, lengths, words) in [
        (packed, SequenceLengths::Uniform, "lengths are Uniform, the problem's are Packed; they must be the same"),
        (packed, of(&[0, 3], good.1), "cu_seqlens_q has 2 elements; it must have 3"),
        (packed, of(&[1, 3, 3], good.1), "cu_seqlens_q[0] is 1; it must be from 0 to 0"),
        (packed, of(good.0, &[0, 6, 5]), "cu_seqlens_k[1] is 6; it must be from 0 to 5"),
        (packed, of(good.0, &[0, -1, 5]), "cu_seqlens_k[1] is -1; it must be from 0 to 5"),
        (packed, of(good.0, &[0, 1, 4]), "cu_seqlens_k[2] is 4; it must be from 5 to 5"),
        (padded, SequenceLengths::PaddedKeys { kv_lens: &[5, 6][..] }, "kv_lens[1] is 6; it must be from 0 to 5"),
        (padded, SequenceLengths::PaddedKeys { kv_lens: &[5][..] }, "kv_lens has 1 elements; it must have 2"),
    ] {
        assert_eq!(call(problem, lengths).expect_err(words).to_string(), words);
    }
}

/// A bias and a boolean mask of padded sequences, with a soft cap: the same as without lengths, if the mask hides the padding; and for
/// whole sequences to the bit.
#[test]
fn modified_scores_of_padded_sequences() {
    let kv_lens = [300, 0, 7, 129];
    let batch = Batch::padded(TensorLayout::Nhd, DType::F16, [40, 300], &kv_lens, [4, 2, 64]);
    let padded = batch.problem;
    let dense = AttentionProblem { lengths: Lengths::Uniform, ..padded };
    let inputs = Inputs::<f16>::random(&dense, 12);
    let shape @ [_, _, queries, keys] = padded.score_shape();
    let size: usize = shape.iter().product();
    let strides = ScoreStrides::contiguous(shape);
    let bias: Vec<f32> = (0..size).map(|index| (index * 7919 % 1000) as f32 / 300.0 - 1.5).collect();
    let shown: Vec<u8> = (0..size).map(|index| u8::from(index % 7 != 3 && index / 50 % 5 != 2)).collect();
    let without_padding: Vec<u8> = shown
        .iter()
        .enumerate()
        .map(|(index, &byte)| byte * u8::from(index % keys < kv_lens[index / keys / queries / shape[1]]))
        .collect();
    let options = AttentionOptions {
        soft_cap: Some(4.0),
        bias: Some(Bias { dtype: BiasType::F32, strides }),
        boolean_mask: Some(strides),
        return_lse: true,
        ..Default::default()
    };
    let more = |boolean_mask, lengths| CallInputs {
        bias: Some(BiasSlice::F32(&bias)),
        boolean_mask: Some(boolean_mask),
        lengths,
        ..Default::default()
    };
    let kv_lens = kv_lens.map(|keys| keys as i32);
    let lengths = SequenceLengths::PaddedKeys { kv_lens: &kv_lens[..] };
    let of_lengths = testing::exact_with(&padded, &options, inputs.slices(), &more(&shown[..], lengths));
    let uniform = more(&without_padding[..], SequenceLengths::Uniform);
    let of_mask = testing::exact_with(&dense, &options, inputs.slices(), &uniform);
    assert_eq!(of_lengths.log_sum_exp, of_mask.log_sum_exp);
    for (of_lengths, of_mask) in of_lengths.output.iter().zip(&of_mask.output) {
        assert!((of_lengths - of_mask).abs() < 1e-9, "{of_lengths} {of_mask}");
    }

    let whole = [keys as i32; 4];
    let lengths = SequenceLengths::PaddedKeys { kv_lens: &whole[..] };
    let run = |problem, call_inputs| {
        attention_with(Device::Cpu, problem, options, inputs.slices(), call_inputs).expect("a valid call")
    };
    assert!(run(padded, more(&shown[..], lengths)) == run(dense, more(&shown[..], SequenceLengths::Uniform)));
}

#[test]
fn options_that_need_other_lengths() {
    let packed = AttentionProblem::packed(DType::F16, 3, [10, 2, 64], [20, 1]);
    for (options, words) in [
        (
            AttentionOptions { smooth_q: true, ..Default::default() },
            "smooth_q with lengths Packed is not supported; lengths must be one of [Uniform] there",
        ),
        (
            AttentionOptions { qk_mode: QkMode::Int4, ..Default::default() },
            "qk_mode Int4 with lengths Packed is not supported; lengths must be one of [Uniform] there",
        ),
        (
            AttentionOptions { boolean_mask: Some(ScoreStrides::default()), ..Default::default() },
            "boolean_mask with lengths Packed is not supported; lengths must be one of [Uniform, PaddedKeys] there",
        ),
        (
            AttentionOptions { mask: Mask::Causal, ..Default::default() },
            "mask is Causal with lengths Packed, of which queries and keys may differ; choose \
             CausalAligned(CausalAlign::TopLeft) or CausalAligned(CausalAlign::BottomRight)",
        ),
    ] {
        assert_eq!(supports(&packed, &options).expect_err(words).to_string(), words);
    }
    for align in [CausalAlign::TopLeft, CausalAlign::BottomRight] {
        let options = AttentionOptions { mask: Mask::CausalAligned(align), ..Default::default() };
        assert_eq!(supports(&packed, &options), Ok(()));
    }
    let long = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [4, 1, 1, 64], [1, 1 << 28]).with_padded_keys();
    let refused = supports(&long, &AttentionOptions::default());
    assert_eq!(
        refused,
        Err(Unsupported::TooLarge { argument: "batch * key_len", got: 1 << 30, allowed: (1 << 30) - 1 })
    );
    let error = attention_with::<f16>(Device::Cpu, long, AttentionOptions::default(), [&[]; 3], CallInputs::default());
    assert!(matches!(error, Err(Error::Unsupported(_))), "{error:?}");
}
