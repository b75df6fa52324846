//! Operands that are quantized by themselves: the same bits as in one call, on the CPU and in the SIMT executor.

mod common {
    pub mod options;
}

use common::options::any_options;
use half::{bf16, f16};
use proptest::prelude::*;
use sage_tests::tensor::{Inputs, Outputs, ScoreTensors, attend, gather};
use sageattention::simt::{Execution, Options, Schedule, Steps};
use sageattention::{
    AttentionOptions, AttentionPlan, AttentionProblem, CallInputs, CausalAlign, ComputeCapability, DType, Element,
    Error, HostQuantized, Mask, Operand, PvAccum, PvMode, QkMode, QuantizedContents, Rotary, RotaryPairs, TensorLayout,
    Unsupported, attend_quantized, quantize_key, quantize_query, quantize_value,
};

fn plan<T: Element>(problem: AttentionProblem, options: AttentionOptions) -> AttentionPlan {
    AttentionPlan::new(AttentionProblem { dtype: T::DTYPE, ..problem }, options).expect("a valid call")
}

/// Keys and values first, then queries.
fn quantize<T: Element>(plan: &AttentionPlan, inputs: &Inputs<T>) -> Result<[HostQuantized; 3], Error> {
    let (key, value) = (quantize_key(plan, &inputs.key)?, quantize_value(plan, &inputs.value)?);
    let AttentionOptions { smooth_k, return_lse, sinks, soft_cap, .. } = *plan.options();
    let needs_mean = smooth_k && (return_lse || sinks || soft_cap.is_some());
    let query = quantize_query(plan, &inputs.query, needs_mean.then_some(&key))?;
    Ok([query, key, value])
}

fn attend_to<T: Element>(plan: &AttentionPlan, operands: &[HostQuantized; 3]) -> Result<Outputs, Error> {
    let problem = plan.problem();
    let score_tensors = ScoreTensors::of(problem, plan.options());
    let result = attend_quantized::<T>(plan, operands.each_ref(), score_tensors.inputs())?;
    let output = gather(&result.output, problem.output_strides, problem.output_shape());
    Ok(Outputs { output, log_sum_exp: result.log_sum_exp.unwrap_or_default() })
}

fn check_on_the_cpu<T: Element>(problem: AttentionProblem, options: AttentionOptions, seed: u64) {
    let plan = plan::<T>(problem, options);
    let inputs = Inputs::<T>::random(plan.problem(), seed);
    let operands = quantize(&plan, &inputs).expect("operands that can be quantized apart");
    let result = attend_to::<T>(&plan, &operands).expect("operands of the plan's formats");
    assert!(result == attend(plan.problem(), &options, &inputs), "{problem:?}\n{options:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn one_by_one_is_the_same_as_in_one_call(
        options in any_options(), dtype in 0..3usize, sinks: bool, capped: bool, ratio in 1..3usize, queries in 1..200usize,
        keys in 1..400usize, head_dim in 1..130usize, value_head_dim in 1..130usize, seed: u64,
    ) {
        let soft_cap = capped.then_some(20.0);
        let mut options = AttentionOptions { smooth_q: false, hadamard: false, sinks, soft_cap, ..options };
        let problem = AttentionProblem::cross(TensorLayout::Nhd, DType::F16, [2, 2 * ratio, queries, head_dim], [2, keys]);
        let problem = problem.with_value_head_dim(value_head_dim);
        match dtype {
            0 => check_on_the_cpu::<f16>(problem, options, seed),
            1 => check_on_the_cpu::<f32>(problem, options, seed),
            _ => {
                options.pv_accum = PvAccum::F32;
                check_on_the_cpu::<bf16>(problem, options, seed);
            }
        }
    }
}

/// Whichever kernels a GPU runs.
#[test]
fn the_kernels_do_the_same_in_any_order() {
    let log_sum_exp = AttentionOptions { return_lse: true, ..Default::default() };
    let of_f16 = |pv_accum| AttentionOptions { pv_mode: PvMode::F16, pv_accum, ..Default::default() };
    for (index, (gpu, options)) in [
        ((9, 0), log_sum_exp),
        ((9, 0), AttentionOptions { smooth_k: false, ..log_sum_exp }),
        ((9, 0), AttentionOptions { pv_mode: PvMode::F16, soft_cap: Some(5.0), ..Default::default() }),
        ((8, 9), AttentionOptions { pv_accum: PvAccum::F32F16, sinks: true, mask: Mask::Causal, ..log_sum_exp }),
        ((8, 0), of_f16(PvAccum::F16)),
        ((8, 0), AttentionOptions { qk_mode: QkMode::Int4, return_lse: true, ..of_f16(PvAccum::F16F32) }),
    ]
    .into_iter()
    .enumerate()
    {
        let gpu = ComputeCapability::new(gpu.0, gpu.1);
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 2, 150, 64], [1, 150]);
        let inputs = Inputs::<f16>::random(&problem, index as u64);
        let score_tensors = ScoreTensors::of(&problem, &options);
        let run = |steps| {
            let execution = Options::new(Schedule::replayed().unwrap_or(Schedule::Random(index as u64)));
            let more = score_tensors.inputs();
            let result = Execution::in_steps(steps, gpu, &problem, &options, inputs.slices(), &more, &execution);
            let result = result.unwrap_or_else(|(kernel, report)| panic!("{}: {report}", kernel.symbol()));
            (result.output::<f16>(), result.log_sum_exp())
        };
        assert!(run(Steps::EachOperand) == run(Steps::Call), "{gpu} {options:?}");
    }
}

/// Attention finds each key head's count of quantized items where it waits for it, or the executor would report that it waits for ever.
#[test]
fn attention_waits_for_what_the_quantizer_counts() {
    let of = |pv_mode| AttentionOptions { pv_mode, ..Default::default() };
    let causal = Mask::CausalAligned(CausalAlign::BottomRight);
    let rotary = Rotary { dim: 32, pairs: RotaryPairs::HalfSplit, positions: 300, query_offset: 0, key_offset: 0 };
    for (index, (head_dim, options)) in [
        (64, of(PvMode::Fp8)),
        (128, AttentionOptions { mask: causal, return_lse: true, ..of(PvMode::Fp8) }),
        (96, AttentionOptions { smooth_k: false, ..of(PvMode::Fp8) }),
        (256, of(PvMode::Fp8)),
        (64, of(PvMode::F16)),
        (64, AttentionOptions { rotary: Some(rotary), ..of(PvMode::F16) }),
    ]
    .into_iter()
    .enumerate()
    {
        // two query heads a key head, whose last item has one query tile of two
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [2, 4, 150, head_dim], [2, 300]);
        let inputs = Inputs::<f16>::random(&problem, index as u64);
        let score_tensors = ScoreTensors::of(&problem, &options);
        let run = |steps| {
            let execution = Options::new(Schedule::replayed().unwrap_or(Schedule::Random(index as u64)));
            let (gpu, more) = (ComputeCapability::new(9, 0), score_tensors.inputs());
            let result = Execution::in_steps(steps, gpu, &problem, &options, inputs.slices(), &more, &execution);
            let result = result.unwrap_or_else(|(kernel, report)| panic!("{}: {report}", kernel.symbol()));
            (result.output::<f16>(), result.log_sum_exp())
        };
        assert!(run(Steps::Overlapping) == run(Steps::Call), "{head_dim} {options:?}");
    }
}

/// Keys and values of one plan serve others that have their formats.
#[test]
fn keys_and_values_serve_other_queries() {
    let problem = |queries| AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 4, queries, 64], [2, 300]);
    let first = plan::<f16>(problem(1), AttentionOptions::default());
    let options = AttentionOptions {
        mask: Mask::Window { left: Some(50), right: None, align: CausalAlign::BottomRight },
        return_lse: true,
        ..Default::default()
    };
    let second = plan::<f16>(problem(222), options);
    for operand in [Operand::Key, Operand::Value] {
        assert_eq!(first.quantized_format(operand), second.quantized_format(operand));
    }
    assert_ne!(first.quantized_format(Operand::Query), second.quantized_format(Operand::Query));
    let inputs = Inputs::<f16>::random(second.problem(), 1);
    let [key, value] = [quantize_key(&first, &inputs.key).unwrap(), quantize_value(&first, &inputs.value).unwrap()];
    let query = quantize_query(&second, &inputs.query, Some(&key)).unwrap();
    let result = attend_to::<f16>(&second, &[query, key, value]).unwrap();
    assert!(result == attend(second.problem(), &options, &inputs));
}

#[test]
fn formats_say_what_is_where() {
    let options = AttentionOptions { return_lse: true, ..Default::default() };
    let plan = plan::<f16>(AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 4, 200, 80], [2, 1025]), options);
    let format = |operand| plan.quantized_format(operand).unwrap();
    let names =
        |operand| format(operand).regions().map(|(name, range)| (name, range.end - range.start)).collect::<Vec<_>>();
    let (queries, keys) = (4 * 384, 2 * 9 * 128);
    let shift = ("log_sum_exp_shift", queries * 4);
    assert_eq!(names(Operand::Query), [("query_codes", queries * 128), ("query_scales", queries / 2 * 4), shift]);
    let mean = ("key_mean", 2 * 128 * 4);
    assert_eq!(names(Operand::Key), [("key_codes", keys * 128), ("key_scales", 2 * 9 * 4 * 4), mean]);
    let (channels, segments) = (2 * 128 * 4, 2 * 2 * 128 * 4);
    let scales = [("value_scale", channels), ("value_inverse_scale", channels)];
    let means = [("value_mean", segments), ("value_mean_codes", segments)];
    assert_eq!(names(Operand::Value), [&[("value_codes", keys * 128)][..], &scales, &means].concat());
    for operand in Operand::ALL {
        let mut end = 0;
        for (name, range) in format(operand).regions() {
            assert!(range.start.is_multiple_of(256) && range.start >= end, "{name}");
            end = range.end;
        }
        assert_eq!(format(operand).bytes(), end.next_multiple_of(256));
    }
    let whole: u64 = Operand::ALL.map(|operand| format(operand).bytes()).iter().sum();
    assert_eq!(whole + plan.scratch_bytes(), plan.workspace_bytes());
    let contents = QuantizedContents::Query { mode: QkMode::Int8, softmax_scale: 80f32.powf(-0.5), has_shift: true };
    assert_eq!(format(Operand::Query).contents, contents);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 2, 64, 64], [2, 200]);
    let defaults = AttentionOptions::default();
    let inputs = Inputs::<f16>::random(&problem, 1);
    let [plan, with_lse] =
        [false, true].map(|return_lse| plan::<f16>(problem, AttentionOptions { return_lse, ..defaults }));
    let operands @ [_, key, value] = &quantize(&plan, &inputs).unwrap();

    for (option, problem, options) in [
        ("smooth_q", problem, AttentionOptions { smooth_q: true, ..defaults }),
        ("lengths", problem.with_padded_keys(), defaults),
    ] {
        let plan = AttentionPlan::new(problem, options).unwrap();
        let expected = Unsupported::QuantizedApart { option };
        assert_eq!(quantize_key(&plan, &inputs.key).unwrap_err(), Error::Unsupported(expected.clone()));
        assert!(expected.to_string().starts_with(option));
    }

    let error = attend_to::<f16>(&with_lse, operands).unwrap_err();
    assert!(matches!(&error, Error::QuantizedFormat { operand: Operand::Query, .. }));
    let words = error.to_string();
    assert!(words.contains("query's quantized format is") && words.contains("has_shift: false"), "{words}");
    for (operand, options) in [
        (Operand::Key, AttentionOptions { smooth_k: false, ..defaults }),
        (Operand::Key, AttentionOptions { qk_mode: QkMode::Int4, ..defaults }),
        (Operand::Value, AttentionOptions { smooth_v: false, ..defaults }),
        (Operand::Value, AttentionOptions { pv_mode: PvMode::F16, ..defaults }),
        (Operand::Value, AttentionOptions { pv_accum: PvAccum::F32F16, ..defaults }),
    ] {
        let other = AttentionPlan::new(problem, options).unwrap();
        assert_ne!(other.quantized_format(operand), plan.quantized_format(operand), "{options:?}");
        let query = quantize_query(&other, &inputs.query, None).unwrap();
        let found = attend_to::<f16>(&other, &[query, key.clone(), value.clone()]).unwrap_err();
        assert!(matches!(found, Error::QuantizedFormat { operand: found, .. } if found == operand), "{options:?}");
    }

    let argument = "key";
    let error = quantize_query(&plan, &inputs.query, Some(key)).unwrap_err();
    assert_eq!(error, Error::CallInput { argument, wanted: false });
    let error = quantize_query(&with_lse, &inputs.query, None).unwrap_err();
    assert_eq!(error, Error::CallInput { argument, wanted: true });
    let error = quantize_key(&plan, &vec![bf16::ONE; inputs.key.len()]).unwrap_err();
    assert_eq!(error, Error::SliceDType { got: DType::Bf16, expected: DType::F16 });
    let error = quantize_value(&plan, &inputs.value[1..]).unwrap_err();
    let (got, needed) = (inputs.value.len() - 1, inputs.value.len());
    assert_eq!(error, Error::SliceTooShort { tensor: "value", got, needed });
    let error = attend_quantized::<f32>(&plan, operands.each_ref(), CallInputs::default()).unwrap_err();
    assert_eq!(error, Error::SliceDType { got: DType::F32, expected: DType::F16 });
}
