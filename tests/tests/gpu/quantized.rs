//! Operands that are quantized by themselves: the same bits as in one call.

use half::{bf16, f16};
use sage_tests::gpu::{Call, NAN_POISON, gpu};
use sage_tests::tensor::Inputs;
use sageattention::{
    Architecture, AttentionOptions, AttentionProblem, CausalAlign, Element, Error, Gpu, Mask, PvAccum, PvMode, QkMode,
};

use crate::{LAYOUTS, pick, with_lse};

fn compare<T: Element>(
    gpu: &'static Gpu,
    architecture: Option<Architecture>,
    shape: [usize; 4],
    options: AttentionOptions,
    seed: u64,
) -> Result<(), Error> {
    let keys = [shape[1] / 2, 2 * shape[2] + 77];
    let problem = AttentionProblem::cross(pick(&LAYOUTS, seed as usize), T::DTYPE, shape, keys);
    let inputs = Inputs::<T>::random(&problem, seed);
    let mut call = Call::with_kernels(gpu, architecture, &problem, &options, &inputs, NAN_POISON)?;
    call.enqueue()?;
    let expected = call.outputs()?;
    call.enqueue_in_steps()?;
    assert!(call.outputs()? == expected, "{problem:?}\n{options:?}");
    Ok(())
}

#[test]
fn one_by_one_is_the_same_as_in_one_call() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let capped = AttentionOptions { soft_cap: Some(20.0), ..Default::default() };
    for (index, options) in [
        with_lse(),
        AttentionOptions { sinks: true, mask: Mask::CausalAligned(CausalAlign::BottomRight), ..with_lse() },
        AttentionOptions { smooth_k: false, smooth_v: false, ..with_lse() },
        AttentionOptions { pv_mode: PvMode::F16, ..capped },
    ]
    .into_iter()
    .enumerate()
    {
        for head_dim in [64, 96, 100, 128, 192, 256] {
            if head_dim > 128 && options.soft_cap.is_some() {
                continue;
            }
            let shape = [2, 6, 300 + 997 * index, head_dim];
            compare::<f16>(gpu, None, shape, options, index as u64)?;
            compare::<bf16>(gpu, None, shape, options, index as u64)?;
            compare::<f32>(gpu, None, shape, options, index as u64)?;
        }
    }
    for pv_accum in [PvAccum::F16, PvAccum::F16F32] {
        for qk_mode in QkMode::ALL {
            let options = AttentionOptions { pv_mode: PvMode::F16, pv_accum, qk_mode, ..with_lse() };
            compare::<f16>(gpu, Some(Architecture::Sm80), [1, 4, 777, 128], options, 5)?;
        }
    }
    let options = AttentionOptions { pv_accum: PvAccum::F32F16, ..with_lse() };
    compare::<f16>(gpu, Some(Architecture::Sm89), [1, 4, 777, 64], options, 6)
}
