//! Sequences of different lengths: codes and scales as of each sequence alone, attention near the CPU engine.

use crate::{DTYPES, LAYOUTS, modes, pick, with_lse};
use half::f16;
use sage_tests::gpu::{Call, LARGE_POISON, NAN_POISON, assert_near, attend_with, gpu};
use sage_tests::modes::{PV_MODES, element_types};
use sage_tests::tensor::{Inputs, attend_varlen, indices, key_shape, offset};
use sage_tests::varlen::Batch;
use sage_tests::with_element;
use sageattention::{
    Architecture, AttentionOptions, Bias, BiasType, CausalAlign, Error, Gpu, Mask, PvMode, ScoreStrides,
    SequenceLengths,
};

const MASKS: [Mask; 3] =
    [Mask::None, Mask::CausalAligned(CausalAlign::TopLeft), Mask::CausalAligned(CausalAlign::BottomRight)];

/// Around the sizes of tiles, CTAs and segments, some without queries or keys.
const SEQUENCES: [[usize; 2]; 12] = [
    [700, 1100],
    [0, 50],
    [1, 129],
    [70, 0],
    [64, 64],
    [0, 0],
    [193, 4300],
    [192, 128],
    [1, 1],
    [1500, 1500],
    [33, 1024],
    [128, 1025],
];

/// The best kernels, and the `mma.sync` ones of each PTX that has them.
fn architectures(options: &AttentionOptions) -> &'static [Option<Architecture>] {
    match options.pv_mode {
        PvMode::Fp8 => &[None, Some(Architecture::Sm89)],
        PvMode::F16 if options.soft_cap.is_some() || options.bias.is_some() || options.boolean_mask.is_some() => {
            &[None, Some(Architecture::Sm80)]
        }
        PvMode::F16 => &[None, Some(Architecture::Sm89), Some(Architecture::Sm80)],
    }
}

fn call<T: sageattention::Element>(
    gpu: &'static Gpu,
    architecture: Option<Architecture>,
    batch: &Batch,
    options: &AttentionOptions,
    inputs: &Inputs<T>,
    poison: u8,
) -> Result<Call<T>, Error> {
    Call::with_lengths(gpu, architecture, &batch.problem, options, batch.slices(), inputs, poison)
}

fn compare(gpu: &'static Gpu, batch: &Batch, options: &AttentionOptions, seed: u64) -> Result<(), Error> {
    with_element!(batch.problem.dtype, T => {
        let inputs = Inputs::<T>::random(&batch.problem, seed);
        let expected = attend_varlen(&batch.problem, options, batch.slices(), &inputs);
        let each = architectures(options).iter().flat_map(|&one| [NAN_POISON, LARGE_POISON].map(|poison| (one, poison)));
        for (architecture, poison) in each {
            let mut call = call(gpu, architecture, batch, options, &inputs, poison)?;
            call.enqueue()?;
            let result = call.outputs()?;
            let what = format!("{architecture:?}\n{batch:?}\n{options:?}");
            let table: Vec<u32> = bytemuck::pod_collect_to_vec(&call.workspace("sequences")?);
            let words: Vec<u32> = batch.table().into_iter().flat_map(|sequence| sequence.words()).collect();
            assert_eq!(table, words, "{what}");
            let names = call.regions();
            let region = |name: &str| names.contains(&name).then(|| call.workspace(name).expect("a region of the plan"));
            batch.assert_regions(options, &inputs, region, &what);
            assert_near(&result, &expected, batch.problem.head_dim, options.pv_mode, &what);
        }
    });
    Ok(())
}

#[test]
fn packed() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let each = MASKS.into_iter().flat_map(|mask| modes().map(|mode| (mask, mode)));
    for (index, (mask, mode)) in each.enumerate() {
        for head_dim in [64, 128, 256, pick(&[40, 72, 33], index)] {
            let batch = Batch::packed(pick(&DTYPES, index + head_dim / 64), &SEQUENCES, [4, 2, head_dim]);
            let options = AttentionOptions { mask, smooth_k: index % 5 != 4, smooth_v: index % 3 != 2, ..mode };
            compare(gpu, &batch, &options, index as u64)?;
        }
    }
    Ok(())
}

#[test]
fn padded() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let each = MASKS.into_iter().flat_map(|mask| modes().map(|mode| (mask, mode)));
    for (index, (mask, mode)) in each.enumerate() {
        let kv_lens = [2300, 0, 1, 128, 129, 1024, 1025];
        let batch = Batch::padded(
            pick(&LAYOUTS, index),
            pick(&DTYPES, index),
            [300, 2300],
            &kv_lens,
            [4, 2, [64, 128, 256][index % 3]],
        );
        compare(gpu, &batch, &AttentionOptions { mask, ..mode }, index as u64)?;
    }
    Ok(())
}

/// Every accumulator of the `mma.sync` kernels.
#[test]
fn accumulators() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (index, (pv_mode, pv_accum)) in PV_MODES.into_iter().enumerate() {
        for head_dim in [64, 128, 256] {
            for &dtype in element_types((pv_mode, pv_accum)) {
                let mask = MASKS[(index + head_dim / 64) % 3];
                let options = AttentionOptions { pv_mode, pv_accum, mask, ..with_lse() };
                compare(gpu, &Batch::packed(dtype, &SEQUENCES, [4, 2, head_dim]), &options, index as u64)?;
            }
        }
    }
    Ok(())
}

/// A soft cap, and of padded sequences a bias and a boolean mask, in every mode.
#[test]
fn modified_scores() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (index, (pv_mode, pv_accum)) in PV_MODES.into_iter().enumerate() {
        for (turn, head_dim) in [64, 128, 256].into_iter().enumerate() {
            let dtype = pick(element_types((pv_mode, pv_accum)), index + turn);
            let mask = MASKS[(index + turn) % 3];
            let options = AttentionOptions { pv_mode, pv_accum, mask, soft_cap: Some(3.0), ..with_lse() };
            compare(gpu, &Batch::packed(dtype, &SEQUENCES, [4, 2, head_dim]), &options, index as u64)?;
            let kv_lens = [2300, 0, 1, 128, 129, 1024, 1025];
            let batch = Batch::padded(pick(&LAYOUTS, turn), dtype, [300, 2300], &kv_lens, [4, 2, head_dim]);
            let shape @ [sequences, heads, _, keys] = batch.problem.score_shape();
            let bias_type = pick(&[BiasType::F16, BiasType::Bf16, BiasType::F32], index);
            let options = AttentionOptions {
                soft_cap: options.soft_cap.filter(|_| turn != 2),
                bias: (turn != 0).then_some(Bias { dtype: bias_type, strides: ScoreStrides::contiguous(shape) }),
                boolean_mask: (index % 3 != 1).then_some(ScoreStrides::broadcast([sequences, heads, 1, keys])),
                ..options
            };
            compare(gpu, &batch, &options, index as u64)?;
        }
    }
    Ok(())
}

/// Keys and values that pad a sequence are never read.
#[test]
fn poisoned_padding() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (layout, options) in LAYOUTS.into_iter().flat_map(|layout| modes().map(|mode| (layout, mode))) {
        let kv_lens = [0, 5, 700, 128];
        let batch = Batch::padded(layout, DTYPES[0], [100, 700], &kv_lens, [2, 2, 128]);
        let inputs = Inputs::<f16>::random(&batch.problem, 3);
        let mut poisoned = inputs.clone();
        for index @ [sequence, _, token, channel] in indices(key_shape(&batch.problem)) {
            if token >= kv_lens[sequence] {
                let poison = if channel % 2 == 0 { f16::NAN } else { f16::INFINITY };
                poisoned.key[offset(batch.problem.key_strides, index)] = poison;
                poisoned.value[offset(batch.problem.value_strides, index)] = poison;
            }
        }
        for &architecture in architectures(&options) {
            let [clean, poisoned] = [&inputs, &poisoned].map(|inputs| {
                let mut call = call(gpu, architecture, &batch, &options, inputs, NAN_POISON)?;
                call.enqueue()?;
                call.outputs()
            });
            assert!(clean? == poisoned?, "{architecture:?} {options:?}");
        }
    }
    Ok(())
}

/// One sequence, packed or padded, is a dense call to the bit.
#[test]
fn one_sequence() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (mask, mode) in MASKS.into_iter().flat_map(|mask| modes().map(|mode| (mask, mode))) {
        let options = AttentionOptions { mask, ..mode };
        let batch = Batch::packed(DTYPES[0], &[[900, 2500]], [4, 2, 128]);
        let inputs = Inputs::<f16>::random(&batch.problem, 4);
        let (dense, _) = batch.alone(0, &inputs);
        let padded =
            Batch { problem: dense.with_padded_keys(), lengths: SequenceLengths::PaddedKeys { kv_lens: vec![2500] } };
        for &architecture in architectures(&options) {
            let expected = attend_with(gpu, architecture, &dense, &options, &inputs);
            for batch in [&batch, &padded] {
                let mut call = call(gpu, architecture, batch, &options, &inputs, NAN_POISON)?;
                call.enqueue()?;
                assert!(call.outputs()? == expected, "{architecture:?}\n{batch:?}\n{options:?}");
            }
        }
    }
    Ok(())
}

/// More sequences than the quantizer has threads, most of them short.
#[test]
fn many_sequences() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let sequences: Vec<[usize; 2]> = (0..3000).map(|index| [index * 7 % 13, index * index % 31]).collect();
    for pv_mode in PvMode::ALL {
        compare(
            gpu,
            &Batch::packed(DTYPES[0], &sequences, [2, 1, 64]),
            &AttentionOptions { pv_mode, ..with_lse() },
            5,
        )?;
    }
    Ok(())
}

/// Lengths that make no sense are cut to what the tensors hold: nothing else is read or written, and the call ends.
#[test]
fn nonsense() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let batch = Batch::packed(DTYPES[0], &[[100, 50], [200, 350], [0, 100]], [2, 1, 64]);
    let inputs = Inputs::<f16>::random(&batch.problem, 6);
    for options in modes() {
        for &architecture in architectures(&options) {
            let mut call = call(gpu, architecture, &batch, &options, &inputs, NAN_POISON)?;
            for cu_seqlens_q in [[0, 1 << 30, -5, 300], [i32::MIN, i32::MAX, 7, 3], [300, 200, 100, 0], [-1; 4]] {
                for cu_seqlens_k in [[0, 50, 400, 500], [500, 0, 600, 2], [i32::MAX; 4], [9, 8, 7, 6]] {
                    let lengths =
                        SequenceLengths::Packed { cu_seqlens_q: &cu_seqlens_q[..], cu_seqlens_k: &cu_seqlens_k[..] };
                    call.set_lengths(lengths)?;
                    call.enqueue()?;
                    call.check_guards()?;
                }
            }
        }
    }
    Ok(())
}
