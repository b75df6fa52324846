//! Attention to two parts of the keys, merged on the GPU: near attention to all, and what the host merges.

use half::{bf16, f16};
use sage_tests::gpu::{Call, gpu};
use sage_tests::tensor::{Inputs, Random};
use sageattention::gpu::memory::{DeviceMemory, Stream};
use sageattention::{AttentionProblem, Element, Error, Gpu, MergeBuffers, MergePlan, TensorLayout, merge};

use crate::with_lse;

fn compare<T: Element>(gpu: &'static Gpu, shape: [usize; 4], tolerance: f32) -> Result<(), Error> {
    let problem = AttentionProblem::new(TensorLayout::Hnd, T::DTYPE, shape);
    let mut parts = Vec::new();
    for seed in [1, 2] {
        let mut call = Call::new(gpu, &problem, &with_lse(), &Inputs::<T>::random(&problem, seed))?;
        call.enqueue()?;
        let outputs = call.outputs()?;
        let output: Vec<T> = outputs.output.iter().map(|&element| T::from_f32(element as f32)).collect();
        parts.push((output, outputs.log_sum_exp));
    }
    // a part that has seen nothing
    let mut random = Random(3);
    for row in 0..parts[0].1.len() {
        if random.bits().is_multiple_of(5) {
            parts[1].1[row] = f32::NEG_INFINITY;
            parts[1].0[row * shape[3]] = T::from_f32(f32::NAN);
        }
    }
    let expected = merge([&parts[0].0, &parts[1].0], [&parts[0].1, &parts[1].1], shape[3])?;
    let stream = Stream::new(gpu)?;
    let upload = |bytes: &[u8]| {
        let mut memory = DeviceMemory::new(gpu, "a test's buffer", bytes.len())?;
        memory.write(0, bytes, &stream)?;
        Ok::<_, Error>(memory)
    };
    let outputs = [upload(bytemuck::cast_slice(&parts[0].0))?, upload(bytemuck::cast_slice(&parts[1].0))?];
    let log_sum_exps = [upload(bytemuck::cast_slice(&parts[0].1))?, upload(bytemuck::cast_slice(&parts[1].1))?];
    // whatever is there
    let (result, result_sums) =
        (upload(&vec![0xff; outputs[0].bytes()])?, upload(&vec![0xff; log_sum_exps[0].bytes()])?);
    let buffers = MergeBuffers {
        outputs: outputs.each_ref().map(DeviceMemory::address),
        log_sum_exps: log_sum_exps.each_ref().map(DeviceMemory::address),
        output: result.address(),
        log_sum_exp: Some(result_sums.address()),
    };
    let prepared = MergePlan::new(problem)?.prepare(gpu)?;
    // SAFETY: the stream and the buffers are this test's own and live until what is enqueued has been read back.
    unsafe { prepared.enqueue(stream.raw(), &buffers)? };
    let (mut output, mut log_sum_exp) = (expected.output.clone(), parts[0].1.clone());
    result.read(0, bytemuck::cast_slice_mut(&mut output), &stream)?;
    result_sums.read(0, bytemuck::cast_slice_mut(&mut log_sum_exp), &stream)?;
    for (found, expected) in output.iter().zip(&expected.output) {
        let (found, expected) = (found.to_f32(), expected.to_f32());
        assert!((found - expected).abs() <= tolerance * (1.0 + expected.abs()), "{found}, not {expected}");
    }
    for (found, expected) in log_sum_exp.iter().zip(expected.log_sum_exp.iter().flatten()) {
        assert!((found - expected).abs() < 1e-4, "{found}, not {expected}");
    }
    Ok(())
}

#[test]
fn as_the_host_does() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    if gpu.capability().major < 8 {
        return Ok(());
    }
    compare::<f16>(gpu, [2, 4, 700, 128], 1e-3)?;
    compare::<bf16>(gpu, [1, 3, 333, 72], 8e-3)?;
    compare::<f32>(gpu, [1, 2, 100, 256], 1e-5)
}
