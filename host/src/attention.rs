//! The whole call on tensors in host memory: [`attention()`].

use crate::cpu::{self, view::View};
use crate::device::Device;
use crate::element::Element;
use crate::error::Error;
use crate::gpu::memory::{DeviceMemory, Stream};
use crate::gpu::{Gpu, GpuBuffers};
use crate::options::{AttentionOptions, Bias, CallInputs, Rotary, RotaryTables, ScoreStrides};
use crate::plan::{AttentionPlan, wanted};
use crate::quantized::Operand;
use crate::tensor::{AttentionProblem, DType, SequenceLengths, Strides, extent};
use half::f16;

/// What [`attention()`] computes.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionOutput<T> {
    /// `[batch, query_heads, query_len, value_head_dim]`, laid out by the problem's `output_strides`. Elements between rows
    /// that the strides leave free are zero.
    pub output: Vec<T>,
    /// Natural logarithm of each row's sum of exponentials, `[batch, query_heads, query_len]`, or `[query_heads, query_len]` with
    /// [`Lengths::Packed`](crate::Lengths::Packed); with `return_lse`.
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
/// What [`AttentionPlan::new`] finds, slices of another type than the problem's or too short for its strides, elements
/// that are infinite or NaN, or in f32 beyond ±65504, [`Error::OutOfMemory`]; and for a GPU what [`Gpu::open`] and the driver say.
pub fn attention<T: Element>(
    device: Device,
    problem: AttentionProblem,
    options: AttentionOptions,
    query: &[T],
    key: &[T],
    value: &[T],
) -> Result<AttentionOutput<T>, Error> {
    attention_with(device, problem, options, [query, key, value], CallInputs::default())
}

/// [`attention()`] with what else the problem or the options ask for: lengths of the sequences, sinks, a bias, a boolean
/// mask.
///
/// ```
/// use half::f16;
/// use sageattention::{
///     AttentionOptions, AttentionProblem, DType, Device, CallInputs, SequenceLengths, attention_with,
/// };
///
/// // three sequences, 5, 0 and 7 tokens long, one after the other: 12 tokens, 2 heads, 64 channels
/// let problem = AttentionProblem::packed(DType::F16, 3, [12, 2, 64], [12, 2]);
/// let starts = [0, 5, 5, 12];
/// let lengths = SequenceLengths::Packed { cu_seqlens_q: &starts[..], cu_seqlens_k: &starts[..] };
/// let tensor = &vec![f16::ONE; 12 * 2 * 64][..];
/// let more = CallInputs { lengths, ..Default::default() };
/// let result = attention_with(Device::Cpu, problem, AttentionOptions::default(), [tensor; 3], more)?;
/// assert_eq!(result.output.len(), 12 * 2 * 64);
/// # Ok::<(), sageattention::Error>(())
/// ```
///
/// # Errors
///
/// As [`attention()`]; [`Error::CallInput`] for inputs that are there and not asked for, or the reverse, of another type or too
/// short; [`Error::Sink`] and [`Error::BiasElement`]; [`Error::LengthsKind`] for lengths of another kind than the problem's, [`Error::SliceLength`] for too many or too few, and
/// [`Error::LengthsValue`] if they are out of order; [`Unsupported::RotaryPositions`](crate::Unsupported::RotaryPositions) for a packed
/// sequence that is longer than the rotary embedding's tables.
pub fn attention_with<T: Element>(
    device: Device,
    problem: AttentionProblem,
    options: AttentionOptions,
    [query, key, value]: [&[T]; 3],
    call_inputs: CallInputs,
) -> Result<AttentionOutput<T>, Error> {
    let _span = tracing::info_span!("attention", %device, ?problem, ?options).entered();
    let plan = AttentionPlan::new(problem, options)?;
    check_dtype::<T>(&problem)?;
    let call_inputs = check_call_inputs(&plan, call_inputs)?;
    let kv_lens = match call_inputs.lengths {
        SequenceLengths::PaddedKeys { kv_lens } => Some(kv_lens),
        _ => None,
    };
    let query = check_tensor(&problem, Operand::Query, query, None)?;
    let key = check_tensor(&problem, Operand::Key, key, kv_lens)?;
    let value = check_tensor(&problem, Operand::Value, value, kv_lens)?;
    let AttentionOutput { mut output, mut log_sum_exp } = new_output(&plan)?;
    match device {
        Device::Cpu => {
            let inputs = [query, key, value];
            cpu::attend(&plan.resolved, inputs, &call_inputs, &mut output, log_sum_exp.as_deref_mut())?;
        }
        Device::Gpu(ordinal) => {
            let slices = [query, key, value].map(bytemuck::cast_slice);
            let output = bytemuck::cast_slice_mut(&mut output);
            attend_on_gpu(&plan, Gpu::open(ordinal)?, slices, &call_inputs, output, log_sum_exp.as_deref_mut())?;
        }
        #[cfg(feature = "simt")]
        Device::Simt => {
            if crate::simt::choice(crate::simt::HOPPER, &plan).is_none() {
                return Err(crate::kernels::none("the SIMT executor".to_owned(), crate::simt::HOPPER, &plan));
            }
            let execution = crate::simt::replayed();
            let result = crate::simt::Execution::new(&problem, &options, [query, key, value], &call_inputs, &execution)
                .map_err(|(kernel, report)| Error::Simt { kernel: kernel.symbol(), report: report.to_string() })?;
            result.copy_output(&mut output);
            if let Some(log_sum_exp) = &mut log_sum_exp {
                log_sum_exp.copy_from_slice(&result.log_sum_exp());
            }
        }
    }
    Ok(AttentionOutput { output, log_sum_exp })
}

/// Slices must hold what the problem says.
pub(crate) fn check_dtype<T: Element>(problem: &AttentionProblem) -> Result<(), Error> {
    match T::DTYPE == problem.dtype {
        true => Ok(()),
        false => Err(Error::SliceDType { got: T::DTYPE, expected: problem.dtype }),
    }
}

/// The part of a slice that an operand reaches, which must be numbers; `kv_lens` are the keys of a padded batch.
pub(crate) fn check_tensor<'a, T: Element>(
    problem: &AttentionProblem,
    operand: Operand,
    slice: &'a [T],
    kv_lens: Option<&[i32]>,
) -> Result<&'a [T], Error> {
    let (shape, strides) = problem.operand(operand);
    let needed = extent(shape, strides).expect("checked by the plan") as usize;
    let slice = at_least(operand.name(), slice, needed)?;
    check_range(operand.name(), slice, shape, strides, kv_lens)?;
    Ok(slice)
}

/// A plan's results, all zeros.
pub(crate) fn new_output<T: Element>(plan: &AttentionPlan) -> Result<AttentionOutput<T>, Error> {
    let problem = plan.problem();
    let elements = extent(problem.output_shape(), problem.output_strides).expect("checked by the plan") as usize;
    let log_sum_exp = || cpu::zeroed("log_sum_exp", plan.log_sum_exp_len());
    Ok(AttentionOutput {
        output: cpu::zeroed("output", elements)?,
        log_sum_exp: plan.options().return_lse.then(log_sum_exp).transpose()?,
    })
}

/// The part of a slice that its tensor reaches.
pub(crate) fn at_least<'a, T>(tensor: &'static str, slice: &'a [T], needed: usize) -> Result<&'a [T], Error> {
    slice.get(..needed).ok_or(Error::SliceTooShort { tensor, got: slice.len(), needed })
}

/// The other inputs, if they are as the options say.
pub(crate) fn check_call_inputs<'a>(plan: &AttentionPlan, inputs: CallInputs<'a>) -> Result<CallInputs<'a>, Error> {
    let heads = plan.problem().query_heads;
    let sinks = wanted("sinks", plan.options().sinks, inputs.sinks)?;
    let sinks = sinks.map(|sinks| at_least("sinks", sinks, heads)).transpose()?;
    check_sinks(sinks)?;
    cpu::check_lengths(&plan.resolved, inputs.lengths)?;
    let shape = plan.problem().score_shape();
    let elements = |strides: ScoreStrides| strides.extent(shape).expect("checked by the plan") as usize;
    let options = plan.options();
    let bias = wanted("bias", options.bias.is_some(), inputs.bias)?;
    if let (Some(bias), Some(Bias { dtype, strides })) = (bias, options.bias) {
        let (got, needed) = (bias.len(), elements(strides));
        if bias.dtype() != dtype {
            return Err(Error::BiasType { got: bias.dtype(), expected: dtype });
        }
        if got < needed {
            return Err(Error::SliceTooShort { tensor: "bias", got, needed });
        }
        let is_bad = |index: &usize| bias.get(*index).is_nan() || bias.get(*index) == f32::INFINITY;
        if let Some(index) = (0..needed).find(is_bad) {
            return Err(Error::BiasElement { index, got: bias.get(index) });
        }
    }
    let boolean_mask = wanted("boolean_mask", options.boolean_mask.is_some(), inputs.boolean_mask)?;
    if let (Some(boolean_mask), Some(strides)) = (boolean_mask, options.boolean_mask) {
        at_least("boolean_mask", boolean_mask, elements(strides))?;
    }
    let rotary = wanted("rotary", options.rotary.is_some(), inputs.rotary)?;
    let rotary = match (options.rotary, rotary) {
        (Some(rotary), Some(tables)) => {
            cpu::check_positions(&rotary, inputs.lengths)?;
            Some(tables.try_map(|tensor, table| check_table(&rotary, tensor, table))?)
        }
        _ => None,
    };
    Ok(CallInputs { sinks, bias, boolean_mask, rotary, lengths: inputs.lengths })
}

/// The elements of a rotary embedding's table, which are numbers.
fn check_table<'a>(rotary: &Rotary, tensor: &'static str, table: &'a [f32]) -> Result<&'a [f32], Error> {
    let table = at_least(tensor, table, rotary.table_len())?;
    match table.iter().position(|element| !element.is_finite()) {
        Some(place) => {
            let (position, pair) = (place / (rotary.dim / 2), place % (rotary.dim / 2));
            Err(Error::NotFinite { tensor, index: [0, 0, position, pair], got: table[place] })
        }
        None => Ok(table),
    }
}

/// A sink is a logit, or −∞.
pub(crate) fn check_sinks(sinks: Option<&[f32]>) -> Result<(), Error> {
    let is_bad = |sink: &f32| sink.is_nan() || *sink == f32::INFINITY;
    match sinks.unwrap_or_default().iter().copied().enumerate().find(|(_, sink)| is_bad(sink)) {
        Some((head, got)) => Err(Error::Sink { head, got }),
        None => Ok(()),
    }
}

/// INT8 and FP8 have no place for infinities and NaN; one would spoil its whole group or channel. What f32 is rounded to ends at 65504.
pub(crate) fn check_range<T: Element>(
    tensor: &'static str,
    slice: &[T],
    [batch, heads, tokens, head_dim]: [usize; 4],
    strides: Strides,
    lengths: Option<&[i32]>,
) -> Result<(), Error> {
    // what a stride of 0 repeats is looked at once
    let once = |size: usize, stride: i64| if stride == 0 { 1 } else { size };
    let (batch, heads) =
        (if lengths.is_some() { batch } else { once(batch, strides.batch) }, once(heads, strides.head));
    let tokens = once(tokens, strides.token);
    let rows = View { elements: slice, strides, head_dim };
    let mut values = vec![0.0; head_dim];
    let largest = if T::DTYPE == DType::F32 { f16::MAX.to_f32() } else { f32::MAX };
    for index in 0..batch * heads * tokens {
        let place @ [batch, head, token] = [index / tokens / heads, index / tokens % heads, index % tokens];
        // padding may be anything
        if lengths.is_some_and(|lengths| token >= lengths[batch] as usize) {
            continue;
        }
        rows.read_row(place, &mut values);
        let is_allowed = |value: &f32| value.is_finite() && value.abs() <= largest;
        if let Some(channel) = values.iter().position(|value| !is_allowed(value)) {
            let (index, got) = ([batch, head, token, channel], values[channel]);
            return Err(match got.is_finite() {
                true => Error::OutOfRange { tensor, index, got },
                false => Error::NotFinite { tensor, index, got },
            });
        }
    }
    Ok(())
}

/// Copies the inputs to memory of its own, runs the plan on a stream of its own, and copies the results back.
fn attend_on_gpu(
    plan: &AttentionPlan,
    gpu: &'static Gpu,
    [query, key, value]: [&[u8]; 3],
    call_inputs: &CallInputs,
    output: &mut [u8],
    log_sum_exp: Option<&mut [f32]>,
) -> Result<(), Error> {
    let prepared = plan.prepare(gpu)?;
    let stream = Stream::new(gpu)?;
    let upload = |argument, bytes: &[u8]| {
        let mut memory = DeviceMemory::new(gpu, argument, bytes.len())?;
        memory.write(0, bytes, &stream)?;
        Ok::<_, Error>(memory)
    };
    let query = upload("query", query)?;
    let key = upload("key", key)?;
    let value = upload("value", value)?;
    let lengths =
        call_inputs.lengths.try_map(|argument, lengths: &[i32]| upload(argument, bytemuck::cast_slice(lengths)))?;
    // What lies between the output's rows is the caller's to see.
    let device_output = upload("output", output)?;
    let device_log_sum_exp = match &log_sum_exp {
        Some(_) => Some(DeviceMemory::new(gpu, "log_sum_exp", plan.log_sum_exp_len() * 4)?),
        None => None,
    };
    let sinks = call_inputs.sinks.map(|sinks| upload("sinks", bytemuck::cast_slice(sinks))).transpose()?;
    let bias = call_inputs.bias.map(|bias| upload("bias", bias.bytes())).transpose()?;
    let boolean_mask = call_inputs.boolean_mask.map(|mask| upload("boolean_mask", mask)).transpose()?;
    let rotary = call_inputs
        .rotary
        .map(|tables| tables.try_map(|argument, table: &[f32]| upload(argument, bytemuck::cast_slice(table))));
    let rotary = rotary.transpose()?;
    let workspace = DeviceMemory::new(gpu, "workspace", plan.workspace_bytes() as usize)?;
    let buffers = GpuBuffers {
        query: query.address(),
        key: key.address(),
        value: value.address(),
        output: device_output.address(),
        log_sum_exp: device_log_sum_exp.as_ref().map(DeviceMemory::address),
        sinks: sinks.as_ref().map(DeviceMemory::address),
        lengths: lengths.as_ref().map(|_, lengths| lengths.address()),
        bias: bias.as_ref().map(DeviceMemory::address),
        boolean_mask: boolean_mask.as_ref().map(DeviceMemory::address),
        rotary: rotary
            .as_ref()
            .map(|RotaryTables { cos, sin }| RotaryTables { cos: cos.address(), sin: sin.address() }),
        workspace: workspace.address(),
        workspace_bytes: workspace.bytes() as u64,
    };
    // SAFETY: the stream is the GPU's; the buffers are as large as the plan's sizes, apart from each other, and freed
    // after the stream's work is done.
    unsafe { prepared.enqueue(stream.raw(), &buffers)? };
    device_output.read(0, output, &stream)?;
    if let (Some(device), Some(host)) = (&device_log_sum_exp, log_sum_exp) {
        device.read(0, bytemuck::cast_slice_mut(host), &stream)?;
    }
    Ok(())
}
