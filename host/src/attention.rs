//! The whole call on tensors in host memory: [`attention()`].

use crate::cpu;
use crate::device::Device;
use crate::element::Element;
use crate::error::Error;
use crate::gpu::driver::checked;
use crate::gpu::{Gpu, GpuBuffers};
use crate::options::AttentionOptions;
use crate::plan::AttentionPlan;
use crate::tensor::{AttentionProblem, extent};
use cust::memory::{AsyncCopyDestination, DeviceBuffer};
use cust::stream::{Stream, StreamFlags};

/// What [`attention()`] computes.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionOutput<T> {
    /// `[batch, query_heads, query_len, head_dim]`, laid out by the problem's `output_strides`. Elements between rows
    /// that the strides leave free are zero.
    pub output: Vec<T>,
    /// Natural logarithm of each row's sum of exponentials, `[batch, query_heads, query_len]`; with `return_lse`.
    pub log_sum_exp: Option<Vec<f32>>,
}

/// Attention on tensors in host memory: softmax(query · keyᵀ · scale) · value, quantized as SageAttention2 does it
/// (section 3).
///
/// The slices hold the tensors in the problem's shapes and strides. On a GPU, this copies them there and back; to
/// compute on what is there already, [`prepare`](AttentionPlan::prepare) a plan and enqueue it.
///
/// # Errors
///
/// What [`AttentionPlan::new`] finds, slices of another type than the problem's or too short for its strides,
/// [`Error::OutOfMemory`]; and for a GPU what [`Gpu::open`] and the driver say.
pub fn attention<T: Element>(
    device: Device,
    problem: AttentionProblem,
    options: AttentionOptions,
    query: &[T],
    key: &[T],
    value: &[T],
) -> Result<AttentionOutput<T>, Error> {
    let _span = tracing::info_span!("attention", %device, ?problem, ?options).entered();
    let plan = AttentionPlan::new(problem, options)?;
    if T::DTYPE != problem.dtype {
        return Err(Error::SliceDType { got: T::DTYPE, expected: problem.dtype });
    }
    let elements = |shape, strides| extent(shape, strides).expect("checked by the plan") as usize;
    for (tensor, slice, needed) in [
        ("query", query, elements(problem.query_shape(), problem.query_strides)),
        ("key", key, elements(problem.key_shape(), problem.key_strides)),
        ("value", value, elements(problem.key_shape(), problem.value_strides)),
    ] {
        if slice.len() < needed {
            return Err(Error::SliceTooShort { tensor, got: slice.len(), needed });
        }
    }
    let mut output = zeroed("output", elements(problem.query_shape(), problem.output_strides))?;
    let mut log_sum_exp = match options.return_lse {
        true => Some(zeroed("log_sum_exp", plan.log_sum_exp_len())?),
        false => None,
    };
    match device {
        Device::Cpu => cpu::attend(&plan.resolved, query, key, value, &mut output, log_sum_exp.as_deref_mut()),
        Device::Gpu(ordinal) => {
            let slices = [query, key, value].map(bytemuck::cast_slice);
            let output = bytemuck::cast_slice_mut(&mut output);
            attend_on_gpu(&plan, Gpu::open(ordinal)?, slices, output, log_sum_exp.as_deref_mut())?;
        }
    }
    Ok(AttentionOutput { output, log_sum_exp })
}

/// A vector of zeros, or the error that there is no memory for it.
fn zeroed<T: bytemuck::Zeroable + Clone>(argument: &'static str, len: usize) -> Result<Vec<T>, Error> {
    let mut vector = Vec::new();
    let reserved = vector.try_reserve_exact(len);
    reserved.map_err(|_| Error::OutOfMemory { argument, bytes: len as u64 * size_of::<T>() as u64 })?;
    vector.resize(len, T::zeroed());
    Ok(vector)
}

/// Copies the inputs to buffers of its own, runs the plan on a stream of its own, and copies the results back.
fn attend_on_gpu(
    plan: &AttentionPlan,
    gpu: &'static Gpu,
    [query, key, value]: [&[u8]; 3],
    output: &mut [u8],
    log_sum_exp: Option<&mut [f32]>,
) -> Result<(), Error> {
    let prepared = plan.prepare(gpu)?;
    let _current = gpu.enter()?;
    let allocate = |bytes: usize| {
        // SAFETY: bytes need no initialization, and nothing here reads them before a copy or a kernel has written them.
        checked("cuMemAlloc", unsafe { DeviceBuffer::<u8>::uninitialized(bytes) })
    };
    // Declared before the buffers, so that after an error the stream outlives them. Its destruction does not wait, but
    // freeing memory does.
    let stream = checked("cuStreamCreate", Stream::new(StreamFlags::NON_BLOCKING, None))?;
    let upload = |bytes: &[u8]| {
        let mut buffer = allocate(bytes.len())?;
        // SAFETY: the host's memory is borrowed for the whole function, and the device's is freed after the stream's
        // work is done.
        checked("cuMemcpyHtoDAsync", unsafe { buffer.async_copy_from(bytes, &stream) })?;
        Ok::<_, Error>(buffer)
    };
    let (query, key, value) = (upload(query)?, upload(key)?, upload(value)?);
    // What lies between the output's rows is the caller's to see.
    let device_output = upload(output)?;
    let device_log_sum_exp = match &log_sum_exp {
        Some(log_sum_exp) => Some(allocate(size_of_val::<[f32]>(log_sum_exp))?),
        None => None,
    };
    let workspace = allocate(plan.workspace_bytes() as usize)?;
    let address = |buffer: &DeviceBuffer<u8>| buffer.as_device_ptr().as_raw();
    let buffers = GpuBuffers {
        query: address(&query),
        key: address(&key),
        value: address(&value),
        output: address(&device_output),
        log_sum_exp: device_log_sum_exp.as_ref().map(address),
        workspace: address(&workspace),
        workspace_bytes: workspace.len() as u64,
    };
    // SAFETY: the stream is of the GPU's primary context, which is current; the buffers are as large as the host's
    // slices and the plan's sizes, apart from each other, and freed after the stream's work is done.
    unsafe {
        prepared.enqueue(stream.as_inner().cast(), &buffers)?;
        checked("cuMemcpyDtoHAsync", device_output.async_copy_to(output, &stream))?;
        if let (Some(device), Some(host)) = (&device_log_sum_exp, log_sum_exp) {
            checked("cuMemcpyDtoHAsync", device.async_copy_to(bytemuck::cast_slice_mut(host), &stream))?;
        }
    }
    checked("cuStreamSynchronize", stream.synchronize())
}
