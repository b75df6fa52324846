//! What a plan puts on a stream.
//!
//! ```text
//! key ───► ChannelStatistics ─► KeyMean ──┬─► QuantizeKey ───┐
//! query ──────────────────────────────────┴─► QuantizeQuery ─┤
//! value ─► ChannelStatistics ─► ValueScale ─► QuantizeValue ─┴─► Attention ─► output, log_sum_exp
//! ```
//!
//! The first line's statistics are there only with `smooth_k`.

use super::Gpu;
use super::driver::cuda;
use super::module::Function;
use crate::error::Error;
use crate::options::Mask;
use crate::plan::AttentionPlan;
use crate::tensor::{DType, Strides, extent};
use crate::workspace::{self, Region};
use sage_layout::kernel::{Family, Kernel};
use sage_layout::params::{
    Address, AttentionParams, ChannelStatisticsParams, KeyMeanParams, QuantizeKeyParams, QuantizeQueryParams,
    QuantizeValueParams, TensorView, ValueScaleParams,
};
use sage_layout::tile;
use std::ffi::c_void;

/// Alignment of the four tensors, in bytes: rows are read and written in pieces of this size where strides allow.
const TENSOR_ALIGNMENT: u64 = 16;

/// Device addresses of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuBuffers {
    /// Queries, in the problem's shape and strides. A multiple of 16 bytes, as the next three.
    pub query: u64,
    /// Keys.
    pub key: u64,
    /// Values.
    pub value: u64,
    /// The result. It may be one of the inputs, which are read to the end before anything is written here.
    pub output: u64,
    /// f32 `[batch, query_heads, query_len]`, contiguous, a multiple of 4 bytes; with `return_lse`, and only then.
    pub log_sum_exp: Option<u64>,
    /// Memory that is the call's own until its work on the stream is done. A multiple of 256 bytes.
    pub workspace: u64,
    /// The workspace's size, at least [`AttentionPlan::workspace_bytes`].
    pub workspace_bytes: u64,
}

/// A plan whose kernels are loaded on a GPU: enqueueing it is nothing but launches.
#[derive(Clone, Copy, Debug)]
pub struct PreparedPlan {
    plan: AttentionPlan,
    gpu: &'static Gpu,
    kernels: Kernels,
}

/// The kernels of a plan.
#[derive(Clone, Copy, Debug)]
struct Kernels {
    statistics: Function,
    /// With `smooth_k`.
    key_mean: Option<Function>,
    value_scale: Function,
    quantize_query: Function,
    quantize_key: Function,
    quantize_value: Function,
    attention: Function,
}

/// Which of a plan's kernels to enqueue. For measurements.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything before the attention kernel.
    Quantization,
    /// The attention kernel, on what an earlier quantization left in the workspace.
    Attention,
    /// The whole call.
    All,
}

impl AttentionPlan {
    /// Loads the plan's kernels on a GPU, those that are not there yet.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver does not take a kernel.
    pub fn prepare(&self, gpu: &'static Gpu) -> Result<PreparedPlan, Error> {
        let _span = tracing::debug_span!("prepare", gpu = gpu.ordinal()).entered();
        let (head_dim, dtype) = (self.resolved.padded_head_dim, self.resolved.problem.dtype);
        let function = |family| {
            let kernel = Kernel::find(family, head_dim, dtype.into());
            gpu.function(kernel.expect("the kernel table has every family for every head dimension and element type"))
        };
        let kernels = Kernels {
            statistics: function(Family::ChannelStatistics)?,
            key_mean: self.options().smooth_k.then(|| function(Family::KeyMean)).transpose()?,
            value_scale: function(Family::ValueScale)?,
            quantize_query: function(Family::QuantizeQuery)?,
            quantize_key: function(Family::QuantizeKey)?,
            quantize_value: function(Family::QuantizeValue)?,
            attention: function(Family::Attention)?,
        };
        Ok(PreparedPlan { plan: *self, gpu, kernels })
    }

    /// Checks the addresses of a call, as [`PreparedPlan::enqueue`] does before it enqueues anything.
    ///
    /// # Errors
    ///
    /// Addresses that are null or not aligned, a workspace that is too small, a log-sum-exp buffer without `return_lse`
    /// or the reverse.
    pub fn check_buffers(&self, buffers: &GpuBuffers) -> Result<(), Error> {
        let problem = self.problem();
        let bytes = |shape, strides| extent(shape, strides).expect("checked by the plan") * DType::BYTES as u64;
        let tensors = [
            ("query", buffers.query, bytes(problem.query_shape(), problem.query_strides)),
            ("key", buffers.key, bytes(problem.key_shape(), problem.key_strides)),
            ("value", buffers.value, bytes(problem.key_shape(), problem.value_strides)),
            ("output", buffers.output, bytes(problem.query_shape(), problem.output_strides)),
        ];
        for (argument, address, needed) in tensors {
            check_address(argument, address, needed, TENSOR_ALIGNMENT)?;
        }
        let return_lse = self.options().return_lse;
        match buffers.log_sum_exp {
            Some(address) if return_lse => {
                check_address("log_sum_exp", address, self.log_sum_exp_len() as u64 * 4, 4)?;
            }
            None if !return_lse => {}
            _ => return Err(Error::LogSumExpBuffer { return_lse }),
        }
        let needed = self.workspace_bytes();
        if buffers.workspace_bytes < needed {
            return Err(Error::WorkspaceTooSmall { got: buffers.workspace_bytes, needed });
        }
        check_address("workspace", buffers.workspace, needed, workspace::ALIGNMENT)
    }
}

impl PreparedPlan {
    /// The plan.
    pub fn plan(&self) -> &AttentionPlan {
        &self.plan
    }

    /// The GPU that it was prepared for.
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// Enqueues the call on a stream and returns. Nothing is allocated, nothing is waited for, no other stream is
    /// touched; so the call can be captured into a CUDA graph.
    ///
    /// The inputs should be finite. Nothing looks at them first; an infinity or NaN makes whatever it reaches NaN.
    ///
    /// `stream` is a `CUstream` (or `cudaStream_t`) of the GPU's primary context; null is the context's default stream.
    ///
    /// # Errors
    ///
    /// What [`check_buffers`](AttentionPlan::check_buffers) finds; [`Error::Driver`] if a launch is refused, which also
    /// reports failures of earlier work. After an error of the driver's, some of the call's kernels may be enqueued.
    ///
    /// # Safety
    ///
    /// `stream` must be a stream of this GPU's primary context. Until the stream's work is done, each address must
    /// lead to memory that this GPU can access: the tensors as far as the problem's shapes and strides reach, the
    /// others as large as [`GpuBuffers`] says; nothing else may write to the inputs, nor access output, log-sum-exp and
    /// workspace; and workspace and log-sum-exp must overlap nothing.
    pub unsafe fn enqueue(&self, stream: *mut c_void, buffers: &GpuBuffers) -> Result<(), Error> {
        // SAFETY: as the caller promises.
        unsafe { self.enqueue_part(Part::All, stream, buffers) }
    }

    /// [`enqueue`](Self::enqueue) for some of the kernels.
    ///
    /// # Safety
    ///
    /// As [`enqueue`](Self::enqueue); for [`Part::Attention`], the workspace must hold what [`Part::Quantization`] left.
    #[doc(hidden)]
    pub unsafe fn enqueue_part(&self, part: Part, stream: *mut c_void, buffers: &GpuBuffers) -> Result<(), Error> {
        let _span = tracing::trace_span!("enqueue", ?part).entered();
        self.plan.check_buffers(buffers)?;
        let _current = self.gpu.enter()?;
        let call = Call { prepared: self, stream, buffers };
        // SAFETY: the addresses are as large as the plan says, by the caller's promise and by `check_buffers`.
        unsafe {
            if part != Part::Attention {
                call.quantize()?;
            }
            if part != Part::Quantization {
                call.attend()?;
            }
        }
        Ok(())
    }
}

fn check_address(argument: &'static str, got: u64, needed: u64, alignment: u64) -> Result<(), Error> {
    match got {
        0 => Err(Error::NullPointer { argument, needed }),
        _ if !got.is_multiple_of(alignment) => Err(Error::UnalignedPointer { argument, got, alignment }),
        _ => Ok(()),
    }
}

/// One call on its way to the stream. All addresses were checked.
struct Call<'a> {
    prepared: &'a PreparedPlan,
    stream: *mut c_void,
    buffers: &'a GpuBuffers,
}

impl Call<'_> {
    /// Enqueues everything before the attention kernel.
    ///
    /// # Safety
    ///
    /// As [`PreparedPlan::enqueue`], and the GPU's context is current.
    unsafe fn quantize(&self) -> Result<(), Error> {
        let plan = &self.prepared.plan;
        let (resolved, workspace) = (&plan.resolved, &plan.workspace);
        let (problem, options) = (&resolved.problem, &resolved.options);
        let kernels = &self.prepared.kernels;
        let query = self.view(self.buffers.query, problem.query_shape(), problem.query_strides);
        let key = self.view(self.buffers.key, problem.key_shape(), problem.key_strides);
        let value = self.view(self.buffers.value, problem.key_shape(), problem.value_strides);

        let segments = tile::segments(key.tokens);
        let key_tiles = tile::key_tiles(key.tokens);
        let query_tiles = tile::padded_queries(query.tokens) / tile::WARPGROUP_ROWS;
        let grid = |tiles: u32, view: &TensorView| [tiles, view.heads, problem.batch as u32];
        let key_heads = [problem.batch as u32 * key.heads, 1, 1];

        // SAFETY: each kernel gets its own parameters, in the grid that they document; the regions of the workspace
        // have the sizes that they document; and a stream runs its kernels in order, so that each finds what the ones
        // before it wrote.
        unsafe {
            if let Some(key_mean) = kernels.key_mean {
                let sum = self.address_if(workspace.key_sum);
                let statistics = ChannelStatisticsParams { input: key, sum, min: 0, max: 0 };
                self.launch(kernels.statistics, grid(segments, &key), &statistics)?;
                let mean = self.address_if(workspace.key_mean);
                self.launch(key_mean, key_heads, &KeyMeanParams { sum, mean, tokens: key.tokens, reserved: 0 })?;
            }
            let [sum, min, max] =
                [workspace.value_sum, workspace.value_min, workspace.value_max].map(|region| self.address(region));
            let statistics = ChannelStatisticsParams { input: value, sum, min, max };
            self.launch(kernels.statistics, grid(segments, &value), &statistics)?;
            let value_scale = ValueScaleParams {
                sum,
                min,
                max,
                mean: self.address(workspace.value_mean),
                mean_codes: self.address(workspace.value_mean_codes),
                scale: self.address(workspace.value_scale),
                inverse_scale: self.address(workspace.value_inverse_scale),
                tokens: value.tokens,
                smooth: resolved.smooth_v.into(),
            };
            self.launch(kernels.value_scale, key_heads, &value_scale)?;

            let shift = self.address_if(workspace.log_sum_exp_shift);
            let quantize_query = QuantizeQueryParams {
                input: query,
                codes: self.address(workspace.query_codes),
                scales: self.address(workspace.query_scales),
                key_mean: if shift == 0 { 0 } else { self.address_if(workspace.key_mean) },
                log_sum_exp_shift: shift,
                claimed_items: self.address(workspace.claimed_items),
                heads_per_key_head: self.heads_per_key_head(),
                granularity: options.granularity as u32,
                softmax_scale: resolved.softmax_scale,
                score_scale: resolved.softmax_scale * std::f32::consts::LOG2_E,
            };
            self.launch(kernels.quantize_query, grid(query_tiles, &query), &quantize_query)?;
            let quantize_key = QuantizeKeyParams {
                input: key,
                codes: self.address(workspace.key_codes),
                scales: self.address(workspace.key_scales),
                mean: self.address_if(workspace.key_mean),
                granularity: options.granularity as u32,
                reserved: 0,
            };
            self.launch(kernels.quantize_key, grid(key_tiles, &key), &quantize_key)?;
            let quantize_value = QuantizeValueParams {
                input: value,
                codes: self.address(workspace.value_codes),
                inverse_scale: self.address(workspace.value_inverse_scale),
                mean: self.address(workspace.value_mean),
            };
            self.launch(kernels.quantize_value, grid(key_tiles, &value), &quantize_value)
        }
    }

    /// Enqueues the attention kernel.
    ///
    /// # Safety
    ///
    /// As [`PreparedPlan::enqueue`], with the GPU's context current and the quantized operands in the workspace.
    unsafe fn attend(&self) -> Result<(), Error> {
        let plan = &self.prepared.plan;
        let (resolved, workspace) = (&plan.resolved, &plan.workspace);
        let problem = &resolved.problem;
        let output = self.view(self.buffers.output, problem.query_shape(), problem.output_strides);
        let items = problem.batch as u32 * output.heads * tile::query_ctas(output.tokens);
        let params = AttentionParams {
            query: self.address(workspace.query_codes),
            key: self.address(workspace.key_codes),
            value: self.address(workspace.value_codes),
            query_scale: self.address(workspace.query_scales),
            key_scale: self.address(workspace.key_scales),
            value_scale: self.address(workspace.value_scale),
            value_mean_codes: self.address(workspace.value_mean_codes),
            log_sum_exp_shift: self.address_if(workspace.log_sum_exp_shift),
            log_sum_exp: self.buffers.log_sum_exp.unwrap_or(0),
            claimed_items: self.address(workspace.claimed_items),
            output,
            key_len: problem.key_len as u32,
            diagonal: resolved.diagonal,
            heads_per_key_head: self.heads_per_key_head(),
            items,
            tiles_per_flush: match resolved.smooth_v {
                true => tile::SEGMENT_TILES,
                false => tile::UNSMOOTHED_TILES_PER_FLUSH,
            },
            heads_per_group: self.heads_per_group(),
        };
        let grid = [items.min(self.prepared.gpu.multiprocessors()), 1, 1];
        // SAFETY: as in `quantize`.
        unsafe { self.launch(self.prepared.kernels.attention, grid, &params) }
    }

    /// Without a mask all items are equally long, and those that share keys best run together. With one, more heads at a
    /// time let long items come first.
    fn heads_per_group(&self) -> u32 {
        let resolved = &self.prepared.plan.resolved;
        let problem = &resolved.problem;
        match resolved.options.mask {
            Mask::None => self.heads_per_key_head(),
            Mask::Causal | Mask::CausalAligned(_) => tile::cached_heads(
                (problem.batch * problem.query_heads) as u32,
                self.heads_per_key_head(),
                problem.key_len as u32,
                resolved.padded_head_dim,
            ),
        }
    }

    fn heads_per_key_head(&self) -> u32 {
        let problem = self.prepared.plan.problem();
        (problem.query_heads / problem.key_heads) as u32
    }

    fn address(&self, region: Region) -> Address {
        region.address(self.buffers.workspace)
    }

    /// A region's address, 0 if the plan has none.
    fn address_if(&self, region: Option<Region>) -> Address {
        region.map_or(0, |region| self.address(region))
    }

    fn view(&self, address: Address, [_, heads, tokens, head_dim]: [usize; 4], strides: Strides) -> TensorView {
        // The address is a multiple of 16 bytes, so the rows are if the strides are multiples of 8 elements.
        let whole_chunks = [strides.batch, strides.head, strides.token, head_dim as i64].iter().all(|n| n % 8 == 0);
        TensorView {
            address,
            strides,
            heads: heads as u32,
            tokens: tokens as u32,
            head_dim: head_dim as u32,
            vectorized: whole_chunks.into(),
        }
    }

    /// Enqueues one kernel.
    ///
    /// # Safety
    ///
    /// `Params` must be the parameters of `function`, true for the grid, with the GPU's context current.
    unsafe fn launch<Params>(&self, function: Function, grid: [u32; 3], params: &Params) -> Result<(), Error> {
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: the kernel has one parameter, `Params`, which the driver copies before it returns.
        unsafe {
            cuda!(cuLaunchKernel(
                function.raw,
                grid[0],
                grid[1],
                grid[2],
                function.kernel.threads(),
                1,
                1,
                function.kernel.shared_bytes(),
                self.stream.cast(),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            ))
        }
    }
}
