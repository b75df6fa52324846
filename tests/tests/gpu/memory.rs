//! Addresses: strides of every kind, offsets over 32 bits, and buffers that a call refuses.

use crate::{DTYPES, LAYOUTS, modes, with_lse};
use half::f16;
use sage_tests::gpu::{Call, NAN_POISON, attend, gpu, skip};
use sage_tests::tensor::{Inputs, gather, key_shape, query_shape, span, tensor};
use sage_tests::with_element;
use sageattention::gpu::memory::{DeviceMemory, Stream};
use sageattention::{AttentionOptions, AttentionPlan, AttentionProblem, Element, Error, Gpu, GpuBuffers, Strides};

/// Normal tensors whose elements don't depend on their strides, with NaN between the rows.
fn inputs<T: Element>(problem: &AttentionProblem) -> Inputs<T> {
    Inputs::random(problem, 8)
}

/// Rows apart from each other, heads outside tokens or inside, with and without whole 16-byte chunks.
#[test]
fn strided_equals_contiguous() {
    let Some(gpu) = gpu() else { return };
    for dtype in DTYPES {
        for head_dim in [64, 40, 96, 127, 192] {
            let contiguous = AttentionProblem::cross(LAYOUTS[0], dtype, [2, 4, 150, head_dim], [2, 270]);
            with_element!(dtype, T => for options in modes() {
                let expected = attend(gpu, &contiguous, &options, &inputs::<T>(&contiguous));
                for gap in [0, 8, 3] {
                    let pitch = (head_dim + gap) as i64;
                    let strided = AttentionProblem {
                        query_strides: Strides { batch: 4 * 150 * pitch + 16, head: pitch, token: 4 * pitch },
                        key_strides: Strides { batch: pitch, head: 2 * pitch, token: 4 * pitch },
                        value_strides: Strides { batch: 2 * 271 * pitch, head: 271 * pitch, token: pitch },
                        output_strides: Strides { batch: 4 * pitch, head: pitch, token: 8 * pitch },
                        ..contiguous
                    };
                    let result = attend(gpu, &strided, &options, &inputs::<T>(&strided));
                    assert!(result == expected, "{strided:?}\n{options:?}");
                }
            });
        }
    }
}

#[test]
fn broadcast_equals_copies() {
    let Some(gpu) = gpu() else { return };
    let copies = AttentionProblem::new(LAYOUTS[0], DTYPES[0], [3, 4, 200, 64]);
    let broadcast = Strides { batch: 0, ..copies.key_strides };
    let shared = AttentionProblem { key_strides: broadcast, value_strides: broadcast, ..copies };
    let once = inputs::<f16>(&shared);
    let repeated = Inputs { key: once.key.repeat(3), value: once.value.repeat(3), ..once.clone() };
    for options in modes() {
        assert!(attend(gpu, &shared, &options, &once) == attend(gpu, &copies, &options, &repeated));
    }
}

/// More than 2³¹ elements between two batches, and between two heads: all four tensors lie in the first and the last
/// pages of one large allocation.
#[test]
fn offsets_over_32_bits() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    modes().into_iter().try_for_each(|options| check_far_offsets(gpu, options))
}

fn check_far_offsets(gpu: &'static Gpu, options: AttentionOptions) -> Result<(), Error> {
    let far = (1i64 << 31) + (1 << 20);
    for far_axis in ["batch", "head"] {
        let near = AttentionProblem::new(
            LAYOUTS[0],
            DTYPES[0],
            if far_axis == "batch" { [2, 1, 300, 64] } else { [1, 2, 300, 64] },
        );
        let inputs = inputs::<f16>(&near);
        let expected = attend(gpu, &near, &options, &inputs);

        let strides = Strides { batch: far, head: far, token: 64 };
        let problem = AttentionProblem {
            query_strides: strides,
            key_strides: strides,
            value_strides: strides,
            output_strides: strides,
            ..near
        };
        let stream = Stream::new(gpu)?;
        let half_elements = 300 * 64; // one batch and head
        let slot = 1 << 17; // elements from one tensor to the next
        let mut memory = match DeviceMemory::new(gpu, "the large buffer", 2 * (far as usize + 4 * slot)) {
            Err(Error::OutOfMemory { .. }) => {
                skip("offsets over 32 bits", "there is not enough memory for more than 4 GiB at once");
                return Ok(());
            }
            other => other?,
        };
        let place = |tensor: usize, part: usize| 2 * (tensor * slot + part * far as usize);
        for (index, tensor) in inputs.slices().into_iter().enumerate() {
            for (part, elements) in tensor.chunks_exact(half_elements).enumerate() {
                memory.write(place(index, part), bytemuck::cast_slice(elements), &stream)?;
            }
        }
        let plan = AttentionPlan::new(problem, options)?;
        let workspace = DeviceMemory::new(gpu, "workspace", plan.workspace_bytes() as usize)?;
        let log_sum_exp = DeviceMemory::new(gpu, "log_sum_exp", plan.log_sum_exp_len() * 4)?;
        let address = |tensor| memory.address() + place(tensor, 0) as u64;
        let buffers = GpuBuffers {
            query: address(0),
            key: address(1),
            value: address(2),
            output: address(3),
            log_sum_exp: Some(log_sum_exp.address()),
            workspace: workspace.address(),
            workspace_bytes: plan.workspace_bytes(),
            ..Default::default()
        };
        // SAFETY: the tensors' first and last parts lie in `memory`, and the stream is waited for by the read below.
        unsafe { plan.prepare(gpu)?.enqueue(stream.raw(), &buffers)? };
        let mut output = vec![f16::ZERO; 2 * half_elements];
        for (part, elements) in output.chunks_exact_mut(half_elements).enumerate() {
            memory.read(place(3, part), bytemuck::cast_slice_mut(elements), &stream)?;
        }
        assert!(gather(&output, near.output_strides, query_shape(&near)) == expected.output, "{far_axis}");
    }
    Ok(())
}

/// The result may replace an input: all of them are read before it is written.
#[test]
fn output_in_the_queries_place() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let problem = AttentionProblem::new(LAYOUTS[0], DTYPES[0], [1, 2, 500, 64]);
    let inputs = inputs::<f16>(&problem);
    let expected = attend(gpu, &problem, &Default::default(), &inputs);
    let stream = Stream::new(gpu)?;
    let plan = AttentionPlan::new(problem, Default::default())?;
    let upload = |elements: &[f16]| {
        let mut memory = DeviceMemory::new(gpu, "a tensor", size_of_val(elements))?;
        memory.write(0, bytemuck::cast_slice(elements), &stream)?;
        Ok::<_, Error>(memory)
    };
    let (query, key, value) = (upload(&inputs.query)?, upload(&inputs.key)?, upload(&inputs.value)?);
    let workspace = DeviceMemory::new(gpu, "workspace", plan.workspace_bytes() as usize)?;
    let buffers = GpuBuffers {
        query: query.address(),
        key: key.address(),
        value: value.address(),
        output: query.address(),
        log_sum_exp: None,
        workspace: workspace.address(),
        workspace_bytes: plan.workspace_bytes(),
        ..Default::default()
    };
    // SAFETY: the buffers have the plan's sizes, and the stream is waited for by the read below.
    unsafe { plan.prepare(gpu)?.enqueue(stream.raw(), &buffers)? };
    let mut output = vec![f16::ZERO; inputs.query.len()];
    query.read(0, bytemuck::cast_slice_mut(&mut output), &stream)?;
    assert!(gather(&output, problem.output_strides, query_shape(&problem)) == expected.output);
    Ok(())
}

/// The call on host slices gives the bits of the one on device addresses.
#[test]
fn host_slices_equal_device_addresses() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let problem = AttentionProblem::new(LAYOUTS[1], DTYPES[0], [2, 3, 100, 96]);
    let inputs = inputs::<f16>(&problem);
    let expected = attend(gpu, &problem, &with_lse(), &inputs);
    let device = sageattention::Device::auto();
    assert_eq!(device, sageattention::Device::Gpu(0));
    let result = sageattention::attention(device, problem, with_lse(), &inputs.query, &inputs.key, &inputs.value)?;
    assert!(gather(&result.output, problem.output_strides, query_shape(&problem)) == expected.output);
    assert_eq!(result.log_sum_exp.as_deref(), Some(&expected.log_sum_exp[..]));
    Ok(())
}

/// What a plan refuses is refused before anything is enqueued.
#[test]
fn bad_buffers_enqueue_nothing() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let problem = AttentionProblem::new(LAYOUTS[0], DTYPES[0], [1, 1, 64, 64]);
    let query = tensor(problem.query_strides, query_shape(&problem), |_| 1.0);
    let inputs = Inputs::<f16> { key: query.clone(), value: query.clone(), query };
    assert_eq!(inputs.key.len(), span(problem.key_strides, key_shape(&problem)));
    let call = Call::new(gpu, &problem, &with_lse(), &inputs)?;
    let plan = AttentionPlan::new(problem, with_lse())?;
    let good = call.buffers();
    for bad in [
        GpuBuffers { query: good.query + 2, ..good },
        GpuBuffers { output: 0, ..good },
        GpuBuffers { workspace: good.workspace + 16, ..good },
        GpuBuffers { workspace_bytes: good.workspace_bytes - 1, ..good },
        GpuBuffers { log_sum_exp: None, ..good },
    ] {
        // SAFETY: nothing is enqueued.
        let result = unsafe { plan.prepare(gpu)?.enqueue(call.stream.raw(), &bad) };
        assert!(result.is_err(), "{bad:?}");
        assert_eq!(result, plan.check_buffers(&bad));
    }
    assert!(call.workspace("query_codes")?.iter().all(|&byte| byte == NAN_POISON));
    Ok(())
}
