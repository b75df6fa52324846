//! Operands that are quantized by themselves and kept: queries, keys or values that several calls attend to or with, such as the
//! keys and values of a text that every step of a diffusion model reads.
//!
//! [`quantize_query`], [`quantize_key`], [`quantize_value`] and [`attend_quantized`] do it on the CPU; on a GPU, the methods of
//! [`PreparedPlan`](crate::PreparedPlan) of the same names. Together they compute what one call computes, bit for bit.
//!
//! What is kept has a [`QuantizedFormat`], which follows from the plan. Calls with other options or other lengths of the other operands
//! read it, as long as their plan has the same format for it.
//!
//! ```
//! use half::f16;
//! use sageattention::{AttentionOptions, AttentionPlan, AttentionProblem, CallInputs, DType, TensorLayout};
//! use sageattention::{attend_quantized, quantize_key, quantize_query, quantize_value};
//!
//! // 2 heads, 100 queries, 77 keys, 64 channels
//! let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 2, 100, 64], [2, 77]);
//! let plan = AttentionPlan::new(problem, AttentionOptions::default())?;
//! let tensor = |len: usize| -> Vec<f16> { (0..len).map(|i| f16::from_f32((i * 7 % 101) as f32 / 50.0 - 1.0)).collect() };
//! let (key, value) = (tensor(2 * 77 * 64), tensor(2 * 77 * 64));
//!
//! let [key, value] = [quantize_key(&plan, &key)?, quantize_value(&plan, &value)?];
//! for step in 1..4 {
//!     let query = quantize_query(&plan, &tensor(step * 2 * 100 * 64)[..2 * 100 * 64], None)?;
//!     let result = attend_quantized::<f16>(&plan, [&query, &key, &value], CallInputs::default())?;
//!     assert_eq!(result.output.len(), 2 * 100 * 64);
//! }
//! # Ok::<(), sageattention::Error>(())
//! ```

use crate::attention::{self, AttentionOutput};
use crate::cpu;
use crate::cpu::quantize::Quantized;
use crate::element::Element;
use crate::error::{Error, Unsupported};
use crate::options::{CallInputs, PvMode, QkMode};
use crate::plan::{AttentionPlan, wanted};
use crate::tensor::{DType, Lengths};
use crate::workspace::Buffer;
use sage_layout::scale;
use std::ops::Range;

/// Version of what [`QuantizedFormat`] describes. Buffers of another version can't be read.
pub const QUANTIZED_FORMAT_VERSION: u32 = 1;

/// A tensor that attention reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// The queries.
    Query = 0,
    /// The keys.
    Key = 1,
    /// The values.
    Value = 2,
}

impl Operand {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Query, Self::Key, Self::Value];

    pub(crate) fn name(self) -> &'static str {
        ["query", "key", "value"][self as usize]
    }

    fn buffer(self) -> Buffer {
        [Buffer::Query, Buffer::Key, Buffer::Value][self as usize]
    }
}

/// What the numbers of a quantized operand are.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum QuantizedContents {
    /// Integer codes. Their scales have the softmax scale and log₂ e in them.
    Query {
        /// INT8 or INT4.
        mode: QkMode,
        /// The softmax scale.
        softmax_scale: f32,
        /// Whether each query's product with the keys' mean is there too, for log-sum-exp, sinks and soft cap.
        has_shift: bool,
    },
    /// Integer codes.
    Key {
        /// INT8 or INT4.
        mode: QkMode,
        /// Whether they are of keys less their mean.
        smoothed: bool,
    },
    /// e4m3 codes.
    ValueFp8 {
        /// What a channel's largest value becomes: 448, or 2.25 for sums in f16.
        largest: f32,
        /// Whether they are of values less the mean of their segment of 1024 keys.
        smoothed: bool,
    },
    /// The values in 16 bits.
    ValueF16 {
        /// f16 or bf16.
        dtype: DType,
        /// Whether their mean was subtracted.
        smoothed: bool,
    },
}

/// The format of a quantized operand, version [`QUANTIZED_FORMAT_VERSION`]. A plan reads what has the format that it has.
///
/// A buffer starts at a multiple of 256 bytes. Its [`regions`](Self::regions), by name:
///
/// | region | shape | |
/// |---|---|---|
/// | `query_codes` | `[batch · heads][query tiles]`, tiles of 64 rows | rows of INT8 (or packed INT4), 16-byte pieces swizzled as `sage_layout::swizzle` says |
/// | `query_scales` | f32 `[batch · heads][query tiles][32]` | `sage_layout::scale::query_scale_index` |
/// | `log_sum_exp_shift` | f32 `[batch · heads][query tiles · 64]` | softmax scale · query · mean of the keys |
/// | `key_codes` | `[batch · heads][key tiles]`, tiles of 128 rows | as the queries' |
/// | `key_scales` | f32 `[batch · heads][key tiles][4]` | `sage_layout::scale::key_scale_index` |
/// | `key_mean` | f32 `[batch · heads][padded head_dim]` | |
/// | `value_codes` | e4m3 `[batch · heads][key tiles]`, tiles of a row of 128 keys for each channel | keys in the order of `sage_layout::token_order`, swizzled |
/// | `value_scale`, `value_inverse_scale` | f32 `[batch · heads][padded head_dim]` | |
/// | `value_mean`, `value_mean_codes` | f32 `[batch · heads][segments of 1024 keys][padded head_dim]` | the second in units of `value_scale` |
/// | `value_tiles` | f16 or bf16 | `sage_layout::value_tile` |
/// | `value_mean` | f32 `[batch · heads][padded head_dim]` | with `value_tiles` |
///
/// Query tiles are `3 · ⌈tokens / 192⌉`, key tiles `⌈tokens / 128⌉`. What pads a tile has code 0.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct QuantizedFormat {
    /// [`QUANTIZED_FORMAT_VERSION`]
    pub version: u32,
    /// What the numbers are.
    pub contents: QuantizedContents,
    /// Sequences.
    pub batch: usize,
    /// Heads of each.
    pub heads: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Channels, with those that pad them: 64, 128 or 256.
    pub padded_head_dim: usize,
    /// Name, start and length. Values have most.
    regions: [Option<(&'static str, u64, u64)>; 5],
    bytes: u64,
}

impl QuantizedFormat {
    /// Size of the buffer, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Names of the buffer's regions, and their places in it, in bytes.
    pub fn regions(&self) -> impl Iterator<Item = (&'static str, Range<u64>)> {
        self.regions.into_iter().flatten().map(|(name, start, bytes)| (name, start..start + bytes))
    }
}

impl AttentionPlan {
    /// The format of an operand that is quantized by itself.
    ///
    /// # Errors
    ///
    /// [`Unsupported::QuantizedApart`] for plans whose operands can't be: with sequences of different lengths, with `smooth_q`,
    /// which needs the keys as they were, and with rotations.
    pub fn quantized_format(&self, operand: Operand) -> Result<QuantizedFormat, Unsupported> {
        let (problem, options) = (self.problem(), self.options());
        for (option, is_there) in [
            ("lengths", problem.lengths != Lengths::Uniform),
            ("smooth_q", options.smooth_q),
            ("rotary", options.rotary.is_some()),
            ("hadamard", options.hadamard),
        ] {
            if is_there {
                return Err(Unsupported::QuantizedApart { option });
            }
        }
        let contents = match (operand, options.pv_mode) {
            (Operand::Query, _) => QuantizedContents::Query {
                mode: options.qk_mode,
                softmax_scale: self.softmax_scale(),
                has_shift: self.resolved.has_log_sum_exp_shift(),
            },
            (Operand::Key, _) => QuantizedContents::Key { mode: options.qk_mode, smoothed: options.smooth_k },
            (Operand::Value, PvMode::Fp8) => QuantizedContents::ValueFp8 {
                largest: scale::largest_value(options.pv_accum),
                smoothed: self.resolved.smooth_v,
            },
            (Operand::Value, PvMode::F16) => QuantizedContents::ValueF16 {
                dtype: if problem.dtype == DType::F32 { DType::F16 } else { problem.dtype },
                smoothed: self.resolved.smooth_v,
            },
        };
        let ([batch, heads, tokens, _], _) = problem.operand(operand);
        let mut of_buffer = self.workspace.regions_of(operand.buffer());
        Ok(QuantizedFormat {
            version: QUANTIZED_FORMAT_VERSION,
            contents,
            batch,
            heads,
            tokens,
            padded_head_dim: self.resolved.padded_head_dim as usize,
            regions: std::array::from_fn(|_| of_buffer.next()),
            bytes: self.workspace.buffer_bytes(operand.buffer()),
        })
    }

    /// Size of the memory that a call on quantized operands needs for itself, in bytes.
    pub fn scratch_bytes(&self) -> u64 {
        self.workspace.buffer_bytes(Buffer::Scratch)
    }

    /// Checks that an operand has the format that this plan has for it.
    pub(crate) fn check_format(&self, operand: Operand, got: &QuantizedFormat) -> Result<(), Error> {
        let expected = self.quantized_format(operand)?;
        match *got == expected {
            true => Ok(()),
            false => Err(Error::QuantizedFormat { operand, formats: Box::new([*got, expected]) }),
        }
    }
}

/// An operand that the CPU quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct HostQuantized {
    format: QuantizedFormat,
    codes: Quantized,
}

impl HostQuantized {
    /// Its format. The CPU keeps the same codes in an order of its own.
    pub fn format(&self) -> &QuantizedFormat {
        &self.format
    }
}

/// Quantizes queries in host memory on the CPU.
///
/// The slice holds them in the shape and strides of the plan's problem. `key`, the quantized keys, is needed with smoothed keys and
/// log-sum-exp, sinks or a soft cap, and only then.
///
/// # Errors
///
/// [`Unsupported::QuantizedApart`]; as [`attention()`](crate::attention()) for the slice; [`Error::CallInput`] and
/// [`Error::QuantizedFormat`] for `key`.
pub fn quantize_query<T: Element>(
    plan: &AttentionPlan,
    query: &[T],
    key: Option<&HostQuantized>,
) -> Result<HostQuantized, Error> {
    let key = wanted("key", plan.resolved.has_log_sum_exp_shift(), key)?;
    key.map_or(Ok(()), |key| plan.check_format(Operand::Key, &key.format))?;
    quantize(plan, Operand::Query, query, key)
}

/// Quantizes keys in host memory on the CPU. The slice holds them in the shape and strides of the plan's problem.
///
/// # Errors
///
/// [`Unsupported::QuantizedApart`]; as [`attention()`](crate::attention()) for the slice.
pub fn quantize_key<T: Element>(plan: &AttentionPlan, key: &[T]) -> Result<HostQuantized, Error> {
    quantize(plan, Operand::Key, key, None)
}

/// Quantizes values in host memory on the CPU. The slice holds them in the shape and strides of the plan's problem.
///
/// # Errors
///
/// As [`quantize_key`].
pub fn quantize_value<T: Element>(plan: &AttentionPlan, value: &[T]) -> Result<HostQuantized, Error> {
    quantize(plan, Operand::Value, value, None)
}

fn quantize<T: Element>(
    plan: &AttentionPlan,
    operand: Operand,
    slice: &[T],
    key: Option<&HostQuantized>,
) -> Result<HostQuantized, Error> {
    let format = plan.quantized_format(operand)?;
    attention::check_dtype::<T>(plan.problem())?;
    let slice = attention::check_tensor(plan.problem(), operand, slice, None)?;
    let mut inputs = [None; 3];
    inputs[operand as usize] = Some(slice);
    let codes = cpu::quantize(&plan.resolved, inputs, key.map(|key| &key.codes))?;
    Ok(HostQuantized { format, codes })
}

/// Attention on quantized queries, keys and values on the CPU.
///
/// # Errors
///
/// [`Error::QuantizedFormat`] if one has another format than the plan's, [`Error::SliceDType`] if `T` is not the problem's type; for
/// the call's inputs as [`attention_with`](crate::attention_with).
pub fn attend_quantized<T: Element>(
    plan: &AttentionPlan,
    operands: [&HostQuantized; 3],
    call_inputs: CallInputs,
) -> Result<AttentionOutput<T>, Error> {
    for (operand, quantized) in Operand::ALL.into_iter().zip(operands) {
        plan.check_format(operand, &quantized.format)?;
    }
    attention::check_dtype::<T>(plan.problem())?;
    let call_inputs = attention::check_call_inputs(plan, call_inputs)?;
    let mut result = attention::new_output(plan)?;
    let operands = operands.map(|operand| &operand.codes);
    let AttentionOutput { output, log_sum_exp } = &mut result;
    cpu::attend::attend_quantized(&plan.resolved, operands, &[], &call_inputs, output, log_sum_exp.as_deref_mut())?;
    Ok(result)
}
