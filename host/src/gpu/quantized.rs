//! Operands quantized by themselves, in GPU memory ([`crate::quantized`]).

use super::launch::{GpuBuffers, PreparedPlan, check_buffer, check_tensor};
use crate::error::Error;
use crate::plan::wanted;
use crate::quantized::{Operand, QuantizedFormat};
use std::ffi::c_void;

/// A quantized operand in GPU memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuQuantized {
    /// What is there.
    pub format: QuantizedFormat,
    /// Where: a multiple of 256 bytes.
    pub address: u64,
}

/// Device addresses for the quantization of an operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuantizeBuffers {
    /// The operand, in the problem's shape and strides. A multiple of 16 bytes.
    pub tensor: u64,
    /// Where it is quantized to. A multiple of 256 bytes.
    pub quantized: u64,
    /// The size there, at least [`QuantizedFormat::bytes`].
    pub quantized_bytes: u64,
    /// Memory that is the call's own until its work on the stream is done. A multiple of 256 bytes.
    pub scratch: u64,
    /// Its size, at least [`AttentionPlan::scratch_bytes`](crate::AttentionPlan::scratch_bytes).
    pub scratch_bytes: u64,
}

/// Device addresses for attention on quantized operands. All but the last two are as in [`GpuBuffers`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttendBuffers {
    /// The result.
    pub output: u64,
    /// With `return_lse`, and only then.
    pub log_sum_exp: Option<u64>,
    /// With [`AttentionOptions::sinks`](crate::AttentionOptions::sinks), and only then.
    pub sinks: Option<u64>,
    /// With [`AttentionOptions::bias`](crate::AttentionOptions::bias), and only then.
    pub bias: Option<u64>,
    /// With [`AttentionOptions::boolean_mask`](crate::AttentionOptions::boolean_mask), and only then.
    pub boolean_mask: Option<u64>,
    /// As in [`QuantizeBuffers`].
    pub scratch: u64,
    /// As in [`QuantizeBuffers`].
    pub scratch_bytes: u64,
}

impl PreparedPlan {
    /// Enqueues the quantization of keys, a memset and a launch (with f32 two).
    ///
    /// What it returns says where they are once the stream's work is done, and can be attended to on this stream at once, and as often
    /// as is wanted. Nothing is allocated and nothing is waited for, as in [`enqueue`](Self::enqueue).
    ///
    /// # Errors
    ///
    /// [`Unsupported::QuantizedApart`](crate::Unsupported::QuantizedApart); null or unaligned addresses, buffers that are too small;
    /// [`Error::WrongGpu`] and [`Error::Driver`] as [`enqueue`](Self::enqueue).
    ///
    /// # Safety
    ///
    /// As [`enqueue`](Self::enqueue) for the stream and all addresses: the tensor is only read, the other two are as large as they say
    /// and nobody else's until the stream's work is done.
    pub unsafe fn quantize_key(&self, stream: *mut c_void, buffers: &QuantizeBuffers) -> Result<GpuQuantized, Error> {
        // SAFETY: forwarded contract.
        unsafe { self.quantize_operand(Operand::Key, stream, buffers, None) }
    }

    /// Enqueues the quantization of values; as [`quantize_key`](Self::quantize_key).
    ///
    /// # Errors
    ///
    /// As [`quantize_key`](Self::quantize_key).
    ///
    /// # Safety
    ///
    /// As [`quantize_key`](Self::quantize_key).
    pub unsafe fn quantize_value(&self, stream: *mut c_void, buffers: &QuantizeBuffers) -> Result<GpuQuantized, Error> {
        // SAFETY: forwarded contract.
        unsafe { self.quantize_operand(Operand::Value, stream, buffers, None) }
    }

    /// Enqueues the quantization of queries; as [`quantize_key`](Self::quantize_key). `key`, the quantized keys, is needed with smoothed
    /// keys and log-sum-exp, sinks or a soft cap, and only then.
    ///
    /// # Errors
    ///
    /// As [`quantize_key`](Self::quantize_key); [`Error::CallInput`] and [`Error::QuantizedFormat`] for `key`.
    ///
    /// # Safety
    ///
    /// As [`quantize_key`](Self::quantize_key); `key` must hold the quantized keys when the stream comes to the call.
    pub unsafe fn quantize_query(
        &self,
        stream: *mut c_void,
        buffers: &QuantizeBuffers,
        key: Option<&GpuQuantized>,
    ) -> Result<GpuQuantized, Error> {
        let key = wanted("key", self.plan().resolved.has_log_sum_exp_shift(), key)?;
        // SAFETY: forwarded contract.
        unsafe { self.quantize_operand(Operand::Query, stream, buffers, key) }
    }

    /// # Safety
    ///
    /// As [`quantize_query`](Self::quantize_query).
    unsafe fn quantize_operand(
        &self,
        operand: Operand,
        stream: *mut c_void,
        buffers: &QuantizeBuffers,
        key: Option<&GpuQuantized>,
    ) -> Result<GpuQuantized, Error> {
        let _span = tracing::trace_span!("quantize", ?operand).entered();
        let plan = self.plan();
        let format = plan.quantized_format(operand)?;
        let QuantizeBuffers { tensor, quantized, quantized_bytes, scratch, scratch_bytes } = *buffers;
        let (shape, strides) = plan.problem().operand(operand);
        check_tensor(operand.name(), tensor, plan.problem().dtype, shape, strides)?;
        check_buffer("quantized", quantized, quantized_bytes, format.bytes())?;
        check_buffer("scratch", scratch, scratch_bytes, plan.scratch_bytes())?;
        let mut addresses = [0; 4];
        if let Some(key) = key {
            self.check_quantized(Operand::Key, key)?;
            addresses[Operand::Key as usize] = key.address;
        }
        let _current = self.gpu().enter()?;
        for (argument, address) in [(operand.name(), tensor), ("quantized", quantized), ("scratch", scratch)] {
            self.gpu().check(argument, address)?;
        }
        if let Some(key) = key {
            self.gpu().check("quantized key", key.address)?;
        }
        addresses[operand as usize] = quantized;
        addresses[3] = scratch;
        let mut tensors = [0; 3];
        tensors[operand as usize] = tensor;
        let [query, key, value] = tensors;
        let buffers = GpuBuffers { query, key, value, ..Default::default() };
        // SAFETY: the addresses are as large as the plan says, by the caller's promise and the checks; the kernel uses those of the
        // operand alone, and queries the keys' mean.
        unsafe { self.enqueue_quantization(&self.call(&buffers, addresses), &[operand], stream)? };
        Ok(GpuQuantized { format, address: quantized })
    }

    /// Enqueues attention on queries, keys and values that were quantized, a memset and a launch. Nothing is allocated and nothing is
    /// waited for, as in [`enqueue`](Self::enqueue).
    ///
    /// # Errors
    ///
    /// [`Error::QuantizedFormat`] for an operand of another format than the plan's; all else as [`enqueue`](Self::enqueue).
    ///
    /// # Safety
    ///
    /// As [`enqueue`](Self::enqueue) for the stream and all addresses. The operands must hold what their formats say when the stream
    /// comes to the call; they are only read.
    pub unsafe fn attend_quantized(
        &self,
        stream: *mut c_void,
        operands: [&GpuQuantized; 3],
        buffers: &AttendBuffers,
    ) -> Result<(), Error> {
        let _span = tracing::trace_span!("attend_quantized").entered();
        let (plan, problem) = (self.plan(), self.plan().problem());
        for (operand, quantized) in Operand::ALL.into_iter().zip(operands) {
            self.check_quantized(operand, quantized)?;
        }
        let AttendBuffers { output, log_sum_exp, sinks, bias, boolean_mask, scratch, scratch_bytes } = *buffers;
        let buffers = GpuBuffers { output, log_sum_exp, sinks, bias, boolean_mask, ..Default::default() };
        check_tensor("output", output, problem.dtype, problem.output_shape(), problem.output_strides)?;
        plan.check_what_options_ask_for(&buffers)?;
        check_buffer("scratch", scratch, scratch_bytes, plan.scratch_bytes())?;
        let _current = self.gpu().enter()?;
        let quantized =
            Operand::ALL.into_iter().zip(operands).map(|(operand, quantized)| (operand.name(), quantized.address));
        for (argument, address) in
            [("output", output), ("scratch", scratch)].into_iter().chain(buffers.asked_for()).chain(quantized)
        {
            self.gpu().check(argument, address)?;
        }
        let [query, key, value] = operands.map(|operand| operand.address);
        let call = self.call(&buffers, [query, key, value, scratch]);
        // SAFETY: the addresses are as large as the plan says, by the caller's promise and the checks; what is not given here, the
        // kernel does not use.
        unsafe {
            self.reset_counters(&call, stream)?;
            self.enqueue_attention(&call, stream)
        }
    }

    fn check_quantized(&self, operand: Operand, quantized: &GpuQuantized) -> Result<(), Error> {
        self.plan().check_format(operand, &quantized.format)?;
        check_buffer(operand.name(), quantized.address, quantized.format.bytes(), quantized.format.bytes())
    }
}
