//! The words of every error: each names the argument, what it got and what is allowed.

use half::{bf16, f16};
use sage_layout::dispatch::Modes;
use sageattention::{
    AttentionOptions, AttentionPlan, AttentionProblem, Bias, BiasSlice, BiasType, CallInputs, CausalAlign,
    ComputeCapability, DType, Device, Error, Gpu, GpuBuffers, Mask, Operand, PvAccum, PvMode, QkMode, QuantGranularity,
    Rotary, RotaryPairs, RotaryTables, ScoreStrides, SequenceLengths, Strides, TensorDesc, TensorLayout, Unsupported,
    attention, attention_with, devices, supports,
};

/// One batch, 4 heads, 100 tokens, 64 channels.
fn problem() -> AttentionProblem {
    AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 4, 100, 64])
}

#[track_caller]
fn assert_refused(problem: AttentionProblem, options: AttentionOptions, words: &str) {
    let unsupported = supports(&problem, &options).expect_err(words);
    assert_eq!(unsupported.to_string(), words);
    assert_eq!(AttentionPlan::new(problem, options), Err(Error::Unsupported(unsupported)));
}

#[track_caller]
fn assert_problem_refused(problem: AttentionProblem, words: &str) {
    assert_refused(problem, AttentionOptions::default(), words);
}

#[test]
fn a_good_problem_is_planned() -> Result<(), Error> {
    let plan = AttentionPlan::new(problem(), AttentionOptions { return_lse: true, ..Default::default() })?;
    assert_eq!(plan.softmax_scale(), 0.125);
    assert_eq!(plan.log_sum_exp_len(), 400);
    assert_eq!(plan.problem(), &problem());
    assert!(plan.options().return_lse);
    assert!(plan.workspace_bytes() > 3 * 4 * 100 * 64);
    assert_eq!(AttentionPlan::new(problem(), AttentionOptions::default())?.log_sum_exp_len(), 0);
    Ok(())
}

#[test]
fn regions_of_the_workspace_are_aligned_and_apart() -> Result<(), Error> {
    let counts = [(true, true, 12), (true, false, 11), (false, true, 10), (false, false, 10)];
    // with 16-bit values, their tiles are all that there is of them, and a mean for f16 sums
    let modes = [(PvMode::Fp8, PvAccum::F32, 0), (PvMode::F16, PvAccum::F32, 4), (PvMode::F16, PvAccum::F16, 3)];
    let each = counts.into_iter().flat_map(|count| modes.map(|mode| (count, mode)));
    for ((smooth_k, return_lse, count), (pv_mode, pv_accum, less)) in each {
        let options = AttentionOptions { pv_mode, pv_accum, smooth_k, return_lse, ..Default::default() };
        let plan = AttentionPlan::new(problem(), options)?;
        let regions = plan.workspace_regions();
        assert_eq!(regions.len(), count - less);
        let mut end = 0;
        for (name, region) in regions {
            assert!(region.start >= end && region.start % 256 == 0 && !region.is_empty(), "{name}");
            end = region.end;
        }
        assert!(end <= plan.workspace_bytes());
    }
    Ok(())
}

/// Both modes take the same problems. How values would be smoothed is no question where they are not quantized.
#[test]
fn modes() {
    for (pv_mode, smooth_v) in [(PvMode::Fp8, true), (PvMode::F16, true), (PvMode::F16, false)] {
        let options = AttentionOptions { pv_mode, smooth_v, ..Default::default() };
        assert_eq!(supports(&problem(), &options), Ok(()));
    }
    let [default, f16] = [PvMode::Fp8, PvMode::F16].map(|pv_mode| AttentionOptions { pv_mode, ..Default::default() });
    assert_eq!(default, AttentionOptions::default());
    let tensor = vec![f16::ONE; 4 * 100 * 64];
    let call = |options| attention(Device::Cpu, problem(), options, &tensor, &tensor, &tensor);
    assert_eq!(call(f16), call(AttentionOptions { smooth_v: false, ..f16 }));
}

#[test]
fn value_head_dims() {
    for value_head_dim in [0, 257, usize::MAX] {
        let words = format!("value_head_dim is {value_head_dim}; allowed are 1 to 256");
        assert_problem_refused(problem().with_value_head_dim(value_head_dim), &words);
    }
    let problem = problem().with_value_head_dim(96);
    assert_eq!((problem.value_shape(), problem.output_shape()), ([1, 4, 100, 96], [1, 4, 100, 96]));
    let strides = TensorLayout::Hnd.strides(4, 100, 96);
    assert_eq!((problem.value_strides, problem.output_strides), (strides, strides));
    assert_eq!(AttentionPlan::new(problem, AttentionOptions::default()).map(|plan| plan.softmax_scale()), Ok(0.125));
    let overlapping = AttentionProblem { output_strides: problem.query_strides, ..problem };
    let words = "output's token stride is 64, so that elements overlap; an output's strides must keep its elements apart, here by at \
                 least 96";
    assert_problem_refused(overlapping, words);
    let (short, long) = (vec![f16::ONE; 4 * 100 * 64], vec![f16::ONE; 4 * 100 * 96]);
    let call = |value: &[f16]| attention(Device::Cpu, problem, AttentionOptions::default(), &short, &short, value);
    assert_eq!(call(&long).map(|result| result.output.len()), Ok(long.len()));
    let words = "value has 25600 elements; its shape and strides need at least 38400";
    assert_eq!(call(&short).expect_err(words).to_string(), words);
}

/// Each mode has its sums.
#[test]
fn sums() {
    let f32_alone = [PvAccum::F32];
    let each = PvMode::ALL.into_iter().flat_map(|mode| [DType::F16, DType::Bf16, DType::F32].map(|d| (mode, d)));
    for (pv_mode, dtype) in each {
        let allowed = match (pv_mode, dtype) {
            (PvMode::F16, DType::Bf16) => &f32_alone[..],
            _ => PvAccum::of(pv_mode),
        };
        for pv_accum in PvAccum::ALL {
            let options = AttentionOptions { pv_mode, pv_accum, ..Default::default() };
            let supported = supports(&AttentionProblem { dtype, ..problem() }, &options);
            assert_eq!(supported.is_ok(), allowed.contains(&pv_accum), "{options:?}, {dtype}");
        }
    }
    assert_refused(
        problem(),
        AttentionOptions { pv_accum: PvAccum::F16, ..Default::default() },
        "pv_accum is F16 with pv_mode Fp8 and f16 values; allowed there is F32, F32F32 or F32F16",
    );
    assert_refused(
        AttentionProblem { dtype: DType::Bf16, ..problem() },
        AttentionOptions { pv_mode: PvMode::F16, pv_accum: PvAccum::F16F32, ..Default::default() },
        "pv_accum is F16F32 with pv_mode F16 and bf16 values; allowed there is F32",
    );
}

/// Every GPU's own choice is one that can be planned, with every element type.
#[test]
fn automatic_options() {
    let auto = |major, minor| AttentionOptions::auto(ComputeCapability::new(major, minor));
    for (major, minor) in [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1)] {
        for dtype in [DType::F16, DType::Bf16, DType::F32] {
            assert_eq!(supports(&AttentionProblem { dtype, ..problem() }, &auto(major, minor)), Ok(()));
        }
    }
    assert_eq!(auto(9, 0), AttentionOptions::default());
    for (major, minor) in [(7, 5), (8, 0), (8, 6)] {
        assert_eq!((auto(major, minor).pv_mode, auto(major, minor).pv_accum), (PvMode::F16, PvAccum::F32));
    }
    for (minor, granularity) in [(0, QuantGranularity::PerWarp), (1, QuantGranularity::PerWarp)] {
        assert_eq!((auto(12, minor).pv_accum, auto(12, minor).granularity), (PvAccum::F32F16, granularity));
    }
    assert_eq!((auto(8, 9).pv_accum, auto(8, 9).granularity), (PvAccum::F32F16, QuantGranularity::PerThread));
}

/// The executor runs a Hopper's kernels, those of older GPUs where it has no own ones: every mode has some.
#[test]
fn kernels_of_every_mode() {
    let problem = AttentionProblem { batch: 1, query_heads: 1, key_heads: 1, ..problem() };
    let tensor = vec![f16::ONE; 4 * 100 * 64];
    for options in [
        AttentionOptions { qk_mode: QkMode::Int4, ..Default::default() },
        AttentionOptions { smooth_q: true, ..Default::default() },
    ] {
        for device in [Device::Simt, Device::Cpu] {
            let result = attention(device, problem, options, &tensor, &tensor, &tensor);
            assert!(result.is_ok_and(|result| result.output.iter().all(|&element| element == f16::ONE)), "{options:?}");
        }
    }
}

#[test]
fn infinities_and_nan() {
    let problem = problem();
    for (tensor, element, words) in [
        (0, f16::NAN, "query[0, 0, 1, 2] is NaN; allowed are finite numbers"),
        (1, f16::INFINITY, "key[0, 0, 1, 2] is inf; allowed are finite numbers"),
        (2, f16::NEG_INFINITY, "value[0, 0, 1, 2] is -inf; allowed are finite numbers"),
    ] {
        let mut tensors = [(); 3].map(|()| vec![f16::ONE; 4 * 100 * 64]);
        tensors[tensor][64 + 2] = element;
        let [query, key, value] = &tensors;
        let refused = attention(Device::Cpu, problem, AttentionOptions::default(), query, key, value);
        assert_eq!(refused.expect_err(words).to_string(), words);
    }
}

#[test]
fn head_dims() {
    for head_dim in [0, 257, 320, 1 << 40] {
        let problem = AttentionProblem { head_dim, ..problem() };
        assert_problem_refused(problem, &format!("head_dim is {head_dim}; allowed are 1 to 256"));
    }
}

#[test]
fn head_ratio() {
    assert_problem_refused(
        AttentionProblem { query_heads: 6, key_heads: 4, ..problem() },
        "query_heads is 6, key_heads is 4; query_heads must be a multiple of key_heads",
    );
}

#[test]
fn zero_lengths_and_counts() {
    for (zero, name) in [
        (AttentionProblem { batch: 0, ..problem() }, "batch"),
        (AttentionProblem { query_heads: 0, ..problem() }, "query_heads"),
        (AttentionProblem { key_heads: 0, ..problem() }, "key_heads"),
        (AttentionProblem { query_len: 0, ..problem() }, "query_len"),
        (AttentionProblem { key_len: 0, ..problem() }, "key_len"),
    ] {
        assert_problem_refused(zero, &format!("{name} is 0; it must be at least 1"));
    }
}

#[test]
fn lengths_and_counts_that_are_too_large() {
    assert_problem_refused(
        AttentionProblem { key_len: 1 << 30, ..problem() },
        "key_len is 1073741824; at most 1073741823 are allowed",
    );
    assert_problem_refused(
        AttentionProblem { batch: 1 << 30, ..problem() },
        "batch is 1073741824; at most 1073741823 are allowed",
    );
    assert_problem_refused(
        AttentionProblem { batch: 40000, query_heads: 40000, ..problem() },
        "batch * query_heads * query tiles (192 queries each) is 1600000000; at most 268435455 are allowed",
    );
    assert_problem_refused(
        AttentionProblem { batch: 1000, key_len: (1 << 30) - 1, ..problem() },
        "batch * key_heads * key tiles (128 keys each) is 33554432000; at most 268435455 are allowed",
    );
}

/// Nothing overflows on the way to the error.
#[test]
fn sizes_that_no_machine_has() {
    for size in [1 << 29, 1 << 62, usize::MAX] {
        for layout in [TensorLayout::Hnd, TensorLayout::Nhd] {
            let problem = AttentionProblem::new(layout, DType::F16, [size, size, size, 64]);
            let refused = supports(&problem, &AttentionOptions::default());
            assert!(matches!(refused, Err(Unsupported::TooLarge { .. })), "{refused:?}");
        }
    }
    let many = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1 << 20, 3, 49, 32]);
    assert_eq!(supports(&many, &AttentionOptions::default()), Ok(()));
}

#[test]
fn strides() {
    let strides = problem().key_strides;
    assert_problem_refused(
        AttentionProblem { key_strides: Strides { token: -64, ..strides }, ..problem() },
        "key's token stride is -64; strides must not be negative",
    );
    assert_problem_refused(
        AttentionProblem { output_strides: Strides { head: 64, token: 64, ..strides }, ..problem() },
        "output's token stride is 64, so that elements overlap; an output's strides must keep its elements apart, \
         here by at least 256",
    );
    assert_problem_refused(
        AttentionProblem { output_strides: Strides { token: 63, ..strides }, ..problem() },
        "output's token stride is 63, so that elements overlap; an output's strides must keep its elements apart, \
         here by at least 64",
    );
    assert_problem_refused(
        AttentionProblem { value_strides: Strides { head: i64::MAX / 2, ..strides }, ..problem() },
        "value's shape and strides span more than 2^63 bytes; the last element's address must be a number",
    );
    let broadcast = Strides { batch: 0, head: 0, token: 0 };
    let inputs = AttentionProblem { key_strides: broadcast, value_strides: broadcast, ..problem() };
    assert_eq!(supports(&inputs, &AttentionOptions::default()), Ok(()));
}

#[test]
fn ambiguous_causal_mask() {
    let unequal = AttentionProblem { query_len: 50, ..problem() };
    assert_refused(
        unequal,
        AttentionOptions { mask: Mask::Causal, ..Default::default() },
        "mask is Causal with query_len 50 and key_len 100; for unequal lengths choose \
         CausalAligned(CausalAlign::TopLeft) or CausalAligned(CausalAlign::BottomRight)",
    );
    for align in [CausalAlign::TopLeft, CausalAlign::BottomRight] {
        let options = AttentionOptions { mask: Mask::CausalAligned(align), ..Default::default() };
        assert_eq!(supports(&unequal, &options), Ok(()));
    }
}

#[test]
fn softmax_scales() {
    for (scale, words) in [(f32::NAN, "NaN"), (0.0, "0"), (-1.0, "-1"), (f32::INFINITY, "inf")] {
        let options = AttentionOptions { softmax_scale: Some(scale), ..Default::default() };
        let error = supports(&problem(), &options).expect_err(words);
        assert_eq!(error.to_string(), format!("softmax_scale is {words}; it must be finite and positive"));
    }
}

/// `from_tensors` with one tensor exchanged.
#[track_caller]
fn assert_tensors_refused(layout: TensorLayout, tensor: &str, replacement: TensorDesc, words: &str) {
    let good = TensorDesc::new(DType::F16, &[1, 4, 100, 64], &[25600, 6400, 64, 1]);
    let take = |name| if name == tensor { replacement } else { good };
    let error = AttentionProblem::from_tensors(layout, &take("query"), &take("key"), &take("value"), &take("output"));
    assert_eq!(error.expect_err(words).to_string(), words);
}

#[test]
fn tensors() -> Result<(), Error> {
    let (hnd, nhd) = (TensorLayout::Hnd, TensorLayout::Nhd);
    let shape = [1, 4, 100, 64];
    let strides = [25600, 6400, 64, 1];
    assert_tensors_refused(
        hnd,
        "key",
        TensorDesc::new(DType::F16, &shape[1..], &strides[1..]),
        "key has rank 3; it must have rank 4: [batch, heads, tokens, head_dim]",
    );
    assert_tensors_refused(
        nhd,
        "query",
        TensorDesc::new(DType::F16, &[64], &[1]),
        "query has rank 1; it must have rank 4: [batch, tokens, heads, head_dim]",
    );
    assert_tensors_refused(
        hnd,
        "value",
        TensorDesc::new(DType::F16, &shape, &strides[1..]),
        "value has 3 strides for 4 axes; it must have one for each",
    );
    assert_tensors_refused(
        hnd,
        "output",
        TensorDesc::new(DType::F16, &shape, &[25600, 6400, 1, 100]),
        "output's last stride is 100; it must be 1: the channels of a token are adjacent in memory",
    );
    assert_tensors_refused(
        hnd,
        "value",
        TensorDesc::new(DType::Bf16, &shape, &strides),
        "value is bf16, query is f16; all four tensors must have the same element type",
    );
    assert_tensors_refused(
        hnd,
        "value",
        TensorDesc::new(DType::F16, &[1, 4, 99, 64], &strides),
        "value's tokens is 99; it must be 100, as key's",
    );
    assert_tensors_refused(
        nhd,
        "output",
        TensorDesc::new(DType::F16, &[1, 4, 99, 64], &strides),
        "output's heads is 99; it must be 100, as query's",
    );

    let tensor = TensorDesc::new(DType::F16, &shape, &strides);
    assert_eq!(AttentionProblem::from_tensors(hnd, &tensor, &tensor, &tensor, &tensor)?.query_len, 100);
    // Frameworks put anything into the stride of an axis of size 1.
    let odd = TensorDesc::new(DType::F16, &shape, &[-7, 6400, 64, 1]);
    let problem = AttentionProblem::from_tensors(hnd, &odd, &odd, &odd, &odd)?;
    assert_eq!(supports(&problem, &AttentionOptions::default()), Ok(()));
    let problem = AttentionProblem::from_tensors(nhd, &tensor, &tensor, &tensor, &tensor)?;
    assert_eq!((problem.query_heads, problem.query_len), (100, 4));
    assert_eq!(problem.key_strides, Strides { batch: 0, head: 64, token: 6400 });
    Ok(())
}

#[test]
fn host_slices() {
    let (good, short) = (vec![f16::ONE; 25600], vec![f16::ONE; 25599]);
    let call = |query: &[f16], key: &[f16], value: &[f16]| {
        attention(Device::Cpu, problem(), AttentionOptions::default(), query, key, value)
    };
    for (name, result) in [
        ("query", call(&short, &good, &good)),
        ("key", call(&good, &short, &good)),
        ("value", call(&good, &good, &short)),
    ] {
        let words = format!("{name} has 25599 elements; its shape and strides need at least 25600");
        assert_eq!(result.expect_err(&words).to_string(), words);
    }
    let slice = vec![bf16::ONE; 25600];
    let error = attention(Device::Cpu, problem(), AttentionOptions::default(), &slice, &slice, &slice);
    let words = "the slices hold bf16, the problem's dtype is f16; they must be the same";
    assert_eq!(error.expect_err(words).to_string(), words);
    assert!(call(&good, &good, &good).is_ok());
}

/// f32 is rounded to f16, which ends at 65504.
#[test]
fn f32_out_of_range() {
    let problem = AttentionProblem { dtype: DType::F32, ..problem() };
    let call = |element: f32| {
        let (good, mut value) = (vec![1.0; 25600], vec![1.0; 25600]);
        value[6400 + 64 * 3 + 5] = element;
        attention(Device::Cpu, problem, AttentionOptions::default(), &good, &good, &value)
    };
    assert!(call(65504.0).is_ok() && call(-65504.0).is_ok());
    let words =
        "value[0, 1, 3, 5] is -65504.004; f32 tensors are rounded to f16, and allowed are numbers from -65504 to 65504";
    assert_eq!(call(-65504.004).expect_err(words).to_string(), words);
    for (element, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let words = format!("value[0, 1, 3, 5] is {name}; allowed are finite numbers");
        assert_eq!(call(element).expect_err(&words).to_string(), words);
    }
}

#[test]
fn sinks() {
    let slice = vec![f16::ONE; 25600];
    let call = |asked_for, sinks: Option<&[f32]>| {
        let options = AttentionOptions { sinks: asked_for, ..Default::default() };
        attention_with(Device::Cpu, problem(), options, [&slice; 3], CallInputs { sinks, ..Default::default() })
    };
    for (asked_for, sinks, words) in [
        (true, None, "sinks is None, the options ask for it; it is needed if they do, and allowed only then"),
        (
            false,
            Some(&[0.0; 4][..]),
            "sinks is there, the options do not ask for it; it is needed if they do, and allowed only then",
        ),
        (true, Some(&[0.0; 3]), "sinks has 3 elements; its shape and strides need at least 4"),
        (
            true,
            Some(&[0.0, f32::NAN, 0.0, 0.0]),
            "sinks[1] is NaN; allowed are finite numbers, and -inf for a head that has none",
        ),
        (
            true,
            Some(&[0.0, 0.0, 0.0, f32::INFINITY]),
            "sinks[3] is inf; allowed are finite numbers, and -inf for a head that has none",
        ),
    ] {
        assert_eq!(call(asked_for, sinks).expect_err(words).to_string(), words);
    }
    assert!(call(true, Some(&[0.0, -1.0, 1e30, f32::NEG_INFINITY])).is_ok());
}

#[test]
fn soft_caps_biases_and_masks() {
    for (got, words) in [(0.0, "0"), (-2.0, "-2"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let options = AttentionOptions { soft_cap: Some(got), ..Default::default() };
        assert_eq!(
            supports(&problem(), &options).expect_err(words).to_string(),
            format!("soft_cap is {words}; it must be finite and positive")
        );
    }
    let strides = ScoreStrides::contiguous(problem().score_shape());
    let bias = |strides| AttentionOptions { bias: Some(Bias { dtype: BiasType::F32, strides }), ..Default::default() };
    assert_refused(
        problem(),
        bias(ScoreStrides { query: -1, ..strides }),
        "bias's query stride is -1; strides must not be negative",
    );
    let mask = |strides| AttentionOptions { boolean_mask: Some(strides), ..Default::default() };
    assert_refused(
        problem(),
        mask(ScoreStrides { key: i64::MAX, ..strides }),
        "boolean_mask's shape and strides span more than 2^63 bytes; the last element's address must be a number",
    );

    let slice = vec![f16::ONE; 25600];
    let call = |options, call_inputs| attention_with(Device::Cpu, problem(), options, [&slice; 3], call_inputs);
    let numbers = |last| [vec![0.0; 39_999], vec![last]].concat();
    let (good, nan, short) = (numbers(f32::NEG_INFINITY), numbers(f32::NAN), vec![0u8; 39_999]);
    let none = CallInputs::default();
    for (options, call_inputs, words) in [
        (bias(strides), none, "bias is None, the options ask for it; it is needed if they do, and allowed only then"),
        (
            bias(strides),
            CallInputs { bias: Some(BiasSlice::F32(&nan)), ..none },
            "bias[39999] is NaN; allowed are finite numbers, and -inf to hide a key",
        ),
        (
            bias(strides),
            CallInputs { bias: Some(BiasSlice::F16(&slice)), ..none },
            "bias holds F16, the options' bias is F32; they must be the same",
        ),
        (
            bias(strides),
            CallInputs { bias: Some(BiasSlice::F32(&good[1..])), ..none },
            "bias has 39999 elements; its shape and strides need at least 40000",
        ),
        (
            mask(strides),
            CallInputs { boolean_mask: Some(&short), ..none },
            "boolean_mask has 39999 elements; its shape and strides need at least 40000",
        ),
        (
            AttentionOptions::default(),
            CallInputs { boolean_mask: Some(&short), ..none },
            "boolean_mask is there, the options do not ask for it; it is needed if they do, and allowed only then",
        ),
    ] {
        assert_eq!(call(options, call_inputs).expect_err(words).to_string(), words);
    }
    assert!(call(bias(strides), CallInputs { bias: Some(BiasSlice::F32(&good)), ..none }).is_ok());
    assert!(call(mask(ScoreStrides::default()), CallInputs { boolean_mask: Some(&[0]), ..none }).is_ok());
}

#[test]
fn rotary_embeddings() {
    let rotary = Rotary { dim: 64, pairs: RotaryPairs::HalfSplit, positions: 107, query_offset: 7, key_offset: 0 };
    let with = |rotary| AttentionOptions { rotary: Some(rotary), ..Default::default() };
    for dim in [0, 7, 66, usize::MAX] {
        let words = format!("rotary dim is {dim}; it must be even, from 2 to head_dim, 64");
        assert_refused(problem(), with(Rotary { dim, ..rotary }), &words);
    }
    for (refused, words) in [
        (
            Rotary { positions: 106, ..rotary },
            "rotary has 106 positions; query needs 107: 100 tokens from position 7 on",
        ),
        (Rotary { key_offset: 8, ..rotary }, "rotary has 107 positions; key needs 108: 100 tokens from position 8 on"),
        (Rotary { positions: 1 << 30, ..rotary }, "rotary positions is 1073741824; at most 1073741823 are allowed"),
    ] {
        assert_refused(problem(), with(refused), words);
    }
    let overflowing = Rotary { query_offset: usize::MAX, ..rotary };
    assert!(matches!(supports(&problem(), &with(overflowing)), Err(Unsupported::RotaryPositions { .. })));

    let slice = vec![f16::ONE; 25600];
    let table = vec![0.5f32; 107 * 32];
    let good = RotaryTables { cos: &table[..], sin: &table[..] };
    let call = |options, rotary| {
        let more = CallInputs { rotary, ..Default::default() };
        attention_with(Device::Cpu, problem(), options, [&slice; 3], more)
    };
    assert!(call(with(rotary), Some(good)).is_ok());
    let mut infinite = table.clone();
    infinite[33] = f32::INFINITY;
    for (options, tables, words) in [
        (with(rotary), None, "rotary is None, the options ask for it; it is needed if they do, and allowed only then"),
        (
            AttentionOptions::default(),
            Some(good),
            "rotary is there, the options do not ask for it; it is needed if they do, and allowed only then",
        ),
        (
            with(rotary),
            Some(RotaryTables { sin: &table[1..], ..good }),
            "rotary sin has 3423 elements; its shape and strides need at least 3424",
        ),
        (
            with(rotary),
            Some(RotaryTables { cos: &infinite, ..good }),
            "rotary cos[0, 0, 1, 1] is inf; allowed are finite numbers",
        ),
    ] {
        assert_eq!(call(options, tables).expect_err(words).to_string(), words);
    }

    // how long packed sequences are, the call says
    let packed = AttentionProblem::packed(DType::F16, 2, [100, 4, 64], [100, 4]);
    let rotary = Rotary { positions: 60, ..rotary };
    assert!(matches!(
        supports(&packed, &with(Rotary { key_offset: 60, ..rotary })),
        Err(Unsupported::RotaryPositions { tensor: "key", needed: 61, .. })
    ));
    let call = |starts: [i32; 3]| {
        let lengths = SequenceLengths::Packed { cu_seqlens_q: &starts[..], cu_seqlens_k: &starts[..] };
        let more = CallInputs { lengths, rotary: Some(good), ..Default::default() };
        attention_with(Device::Cpu, packed, with(rotary), [&slice; 3], more)
    };
    assert!(call([0, 50, 100]).is_ok());
    let words = "rotary has 60 positions; query needs 67: 60 tokens from position 7 on";
    assert_eq!(call([0, 40, 100]).expect_err(words).to_string(), words);

    let plan = AttentionPlan::new(problem(), with(Rotary { positions: 107, ..rotary })).expect("a valid plan");
    let buffers = GpuBuffers { query: 0x1000, key: 0x2000, value: 0x3000, output: 0x4000, ..Default::default() };
    let buffers = GpuBuffers { workspace: 0x10000, workspace_bytes: plan.workspace_bytes(), ..buffers };
    for (rotary, words) in [
        (None, "rotary is None, the options ask for it; it is needed if they do, and allowed only then"),
        (
            Some(RotaryTables { cos: 0x5000, sin: 0 }),
            "rotary sin's device address is null; it must be the address of 13696 bytes",
        ),
        (
            Some(RotaryTables { cos: 0x5008, sin: 0x6000 }),
            "rotary cos's device address is 0x5008; it must be a multiple of 16 bytes",
        ),
    ] {
        let error = plan.check_buffers(&GpuBuffers { rotary, ..buffers }).expect_err(words);
        assert_eq!(error.to_string(), words);
    }
    assert_eq!(
        plan.check_buffers(&GpuBuffers { rotary: Some(RotaryTables { cos: 0x5000, sin: 0x6000 }), ..buffers }),
        Ok(())
    );

    // operands that are quantized by themselves are not rotated
    for (options, option) in
        [(*plan.options(), "rotary"), (AttentionOptions { hadamard: true, ..Default::default() }, "hadamard")]
    {
        let plan = AttentionPlan::new(problem(), options).expect("a valid plan");
        let refused = plan.quantized_format(Operand::Key).map(|_| ());
        assert_eq!(refused, Err(Unsupported::QuantizedApart { option }));
    }
}

#[test]
fn device_buffers() -> Result<(), Error> {
    let plain = AttentionPlan::new(problem(), AttentionOptions::default())?;
    let with_lse = AttentionPlan::new(problem(), AttentionOptions { return_lse: true, ..Default::default() })?;
    let good = GpuBuffers {
        query: 0x1000,
        key: 0x2000,
        value: 0x3000,
        output: 0x4000,
        log_sum_exp: None,
        workspace: 0x10000,
        workspace_bytes: with_lse.workspace_bytes(),
        ..Default::default()
    };
    assert_eq!(plain.check_buffers(&good), Ok(()));
    assert_eq!(with_lse.check_buffers(&GpuBuffers { log_sum_exp: Some(0x5004), ..good }), Ok(()));
    let needed = plain.workspace_bytes();
    for (bad, words) in [
        (
            GpuBuffers { key: 0x2008, ..good },
            "key's device address is 0x2008; it must be a multiple of 16 bytes".to_owned(),
        ),
        (
            GpuBuffers { workspace: 0x10080, ..good },
            "workspace's device address is 0x10080; it must be a multiple of 256 bytes".to_owned(),
        ),
        (
            GpuBuffers { output: 0, ..good },
            "output's device address is null; it must be the address of 51200 bytes".to_owned(),
        ),
        (
            GpuBuffers { workspace_bytes: needed - 1, ..good },
            format!("workspace has {} bytes; the plan needs {needed}", needed - 1),
        ),
        (
            GpuBuffers { log_sum_exp: Some(0x5000), ..good },
            "log_sum_exp is a buffer, return_lse is false; a buffer is needed with return_lse and allowed only then"
                .to_owned(),
        ),
    ] {
        assert_eq!(plain.check_buffers(&bad).expect_err(&words).to_string(), words);
    }
    let with_sinks = AttentionPlan::new(problem(), AttentionOptions { sinks: true, ..Default::default() })?;
    let enough = GpuBuffers { workspace_bytes: with_sinks.workspace_bytes(), ..good };
    assert_eq!(with_sinks.check_buffers(&GpuBuffers { sinks: Some(0x5004), ..enough }), Ok(()));
    for (plan, sinks, words) in [
        (&with_sinks, None, "sinks is None, the options ask for it; it is needed if they do, and allowed only then"),
        (
            &plain,
            Some(0x5004),
            "sinks is there, the options do not ask for it; it is needed if they do, and allowed only then",
        ),
        (&with_sinks, Some(0x5002), "sinks's device address is 0x5002; it must be a multiple of 4 bytes"),
        (&with_sinks, Some(0), "sinks's device address is null; it must be the address of 16 bytes"),
    ] {
        assert_eq!(plan.check_buffers(&GpuBuffers { sinks, ..enough }).expect_err(words).to_string(), words);
    }
    let strides = ScoreStrides::contiguous(problem().score_shape());
    let bias = Some(Bias { dtype: BiasType::Bf16, strides });
    let modified = AttentionOptions { bias, boolean_mask: Some(strides), ..Default::default() };
    let modified = AttentionPlan::new(problem(), modified)?;
    let enough = GpuBuffers { bias: Some(0x6002), boolean_mask: Some(0x7001), ..good };
    assert_eq!(modified.check_buffers(&enough), Ok(()));
    for (buffers, words) in [
        (
            GpuBuffers { bias: Some(0x6001), ..enough },
            "bias's device address is 0x6001; it must be a multiple of 2 bytes",
        ),
        (
            GpuBuffers { bias: Some(0), ..enough },
            "bias's device address is null; it must be the address of 80000 bytes",
        ),
        (
            GpuBuffers { boolean_mask: None, ..enough },
            "boolean_mask is None, the options ask for it; it is needed if they do, and allowed only then",
        ),
    ] {
        assert_eq!(modified.check_buffers(&buffers).expect_err(words).to_string(), words);
    }
    assert_eq!(
        with_lse.check_buffers(&good).expect_err("no buffer").to_string(),
        "log_sum_exp is None, return_lse is true; a buffer is needed with return_lse and allowed only then"
    );
    assert_eq!(
        with_lse.check_buffers(&GpuBuffers { log_sum_exp: Some(0x5002), ..good }).expect_err("2").to_string(),
        "log_sum_exp's device address is 0x5002; it must be a multiple of 4 bytes"
    );
    Ok(())
}

#[test]
fn no_gpu() {
    let slice = vec![f16::ONE; 25600];
    let asked = attention(Device::Gpu(99), problem(), AttentionOptions::default(), &slice, &slice, &slice);
    let error = asked.expect_err("no machine has a hundred GPUs");
    assert_eq!(Gpu::open(99).expect_err("the same"), error);
    let words = error.to_string();
    assert!(words.starts_with("no GPU 99: "), "{words}");
    assert!(words.ends_with("; use Device::Cpu, or Device::auto() to take what is there"), "{words}");
    assert!(matches!(error, Error::NoGpu { ordinal: 99, .. }));
    // Where there is one, `Device::auto` takes it, and else it does not.
    let usable = devices().first().is_some_and(|gpu| gpu.usable.is_ok());
    assert_eq!(Device::auto(), if usable { Device::Gpu(0) } else { Device::Cpu });
}

/// Strides of 0 make tensors of any length from a few elements, but not their codes.
#[test]
fn codes_that_no_memory_holds() {
    let bytes = (1 << 23) * 31 * 128 * 128;
    if Vec::<u8>::new().try_reserve_exact(bytes).is_ok() {
        println!("this machine promises {bytes} bytes of memory");
        return;
    }
    let shared = Strides { batch: 0, head: 0, token: 0 };
    let problem = AttentionProblem {
        key_strides: shared,
        value_strides: shared,
        ..AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 31, 1, 128], [31, (1 << 30) - 1])
    };
    let (query, row) = (vec![f16::ONE; 31 * 128], vec![f16::ONE; 128]);
    let error = attention(Device::Cpu, problem, AttentionOptions::default(), &query, &row, &row).map(drop);
    assert_eq!(error, Err(Error::OutOfMemory { argument: "key codes", bytes: bytes as u64 }));
}

/// Errors that need a GPU, or a build, that no test has at hand.
#[test]
fn gpus_and_builds() {
    for (error, words) in [
        (
            Error::UnsupportedGpu {
                ordinal: 1,
                name: "NVIDIA V100".to_owned(),
                capability: ComputeCapability::new(7, 0),
                supported: "sm_90a".to_owned(),
            },
            "GPU 1 (NVIDIA V100) has compute capability 7.0; supported are sm_90a",
        ),
        (
            Error::MissingKernel { kernel: "sage_quantize_d64_f16", architecture: "sm_90a" },
            "this build holds no GPU kernel sage_quantize_d64_f16 for sm_90a; run `cargo xtask build-ptx`, then build again",
        ),
        (
            Error::NoKernels {
                device: "GPU 0 (NVIDIA A100, compute capability 8.0)".to_owned(),
                modes: Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32),
                allowed: "int8 Q·Kᵀ, 16-bit P·V in fp32".to_owned(),
            },
            "GPU 0 (NVIDIA A100, compute capability 8.0) has no kernels for int8 Q·Kᵀ, fp8 P·V in fp32; it has them for \
             int8 Q·Kᵀ, 16-bit P·V in fp32",
        ),
        (
            Error::KernelsVariable {
                got: "sm_90".to_owned(),
                gpu: "GPU 0 (NVIDIA H100, compute capability 9.0)".to_owned(),
                allowed: "sm_90a, sm_80".to_owned(),
            },
            "SAGE_KERNELS is sm_90; allowed on GPU 0 (NVIDIA H100, compute capability 9.0) are sm_90a, sm_80, or nothing \
             for the best",
        ),
        (
            Error::OutOfMemory { argument: "workspace", bytes: 4096 },
            "workspace needs 4096 bytes of memory; there is not as much",
        ),
        (
            Error::Driver { call: "cuLaunchKernel", code: 700, message: "an illegal memory access".to_owned() },
            "cuLaunchKernel failed with CUDA error 700: an illegal memory access",
        ),
        (Unsupported::HeadDim { argument: "head_dim", got: 512 }.into(), "head_dim is 512; allowed are 1 to 256"),
    ] {
        assert_eq!(error.to_string(), words);
    }
}
