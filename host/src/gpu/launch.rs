//! What a plan puts on a stream: a memset of its counters, and the kernels of `crate::kernels`.

use super::Gpu;
use super::driver::cuda;
use super::module::{self, Function};
use super::raw::{LaunchAttribute, LaunchConfiguration, PROGRAMMATIC_STREAM_SERIALIZATION};
use crate::error::Error;
use crate::kernels::{self, Call};
use crate::options::{AttentionOptions, Bias, RotaryTables, ScoreStrides};
use crate::plan::{AttentionPlan, wanted};
use crate::quantized::Operand;
use crate::tensor::{DType, SequenceLengths, Strides, extent};
use crate::workspace::{self, BufferAddresses};
use sage_layout::architecture::Architecture;
use sage_layout::dispatch::Choice;
use sage_layout::kernel::Family;
use sage_layout::params::Params;
use std::ffi::c_void;

/// Alignment of the four tensors, in bytes: rows are read and written in pieces of this size where strides allow.
const TENSOR_ALIGNMENT: u64 = 16;

/// Device addresses of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuBuffers {
    /// Queries, in the problem's shape and strides. A multiple of 16 bytes, as the next three.
    pub query: u64,
    /// Keys.
    pub key: u64,
    /// Values.
    pub value: u64,
    /// The result. It may be one of the inputs, which are read to the end before anything is written here.
    pub output: u64,
    /// f32 `[batch, query_heads, query_len]`, or `[query_heads, query_len]` with [`Lengths::Packed`](crate::Lengths::Packed),
    /// contiguous, a multiple of 4 bytes; with `return_lse`, and only then.
    pub log_sum_exp: Option<u64>,
    /// f32 `[query_heads]`, contiguous, a multiple of 4 bytes: what [`CallInputs::sinks`](crate::CallInputs::sinks) says; with
    /// [`AttentionOptions::sinks`], and only then.
    pub sinks: Option<u64>,
    /// Addresses of the sequences' lengths, of the problem's kind; i32, multiples of 4 bytes.
    pub lengths: SequenceLengths<u64>,
    /// `[batch, query_heads, query_len, key_len]` in the type and strides of [`AttentionOptions::bias`], a multiple of an element's
    /// bytes; with that option, and only then.
    pub bias: Option<u64>,
    /// u8 `[batch, query_heads, query_len, key_len]` in the strides of [`AttentionOptions::boolean_mask`]; with that option, and only
    /// then.
    pub boolean_mask: Option<u64>,
    /// Tables of the rotary embedding, contiguous, multiples of 16 bytes; with [`AttentionOptions::rotary`], and only then. Where packed
    /// sequences are longer than the tables are, later tokens have the last position.
    pub rotary: Option<RotaryTables<u64>>,
    /// Memory that is the call's own until its work on the stream is done. A multiple of 256 bytes.
    pub workspace: u64,
    /// The workspace's size, at least [`AttentionPlan::workspace_bytes`].
    pub workspace_bytes: u64,
}

impl GpuBuffers {
    /// Every address, and what messages call it.
    fn addresses(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let Self { query, key, value, output, workspace, .. } = *self;
        let always = [("query", query), ("key", key), ("value", value), ("output", output), ("workspace", workspace)];
        always.into_iter().chain(self.asked_for())
    }

    /// The addresses that only some options and lengths ask for, where they are given.
    pub(super) fn asked_for(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let Self { log_sum_exp, sinks, bias, boolean_mask, lengths, rotary, .. } = *self;
        let [kv_lens, cu_seqlens_q, cu_seqlens_k] = match lengths {
            SequenceLengths::Uniform => [None; 3],
            SequenceLengths::PaddedKeys { kv_lens } => [Some(kv_lens), None, None],
            SequenceLengths::Packed { cu_seqlens_q, cu_seqlens_k } => [None, Some(cu_seqlens_q), Some(cu_seqlens_k)],
        };
        let asked_for = [
            ("log_sum_exp", log_sum_exp),
            ("sinks", sinks),
            ("bias", bias),
            ("boolean_mask", boolean_mask),
            ("rotary cos", rotary.map(|tables| tables.cos)),
            ("rotary sin", rotary.map(|tables| tables.sin)),
            ("kv_lens", kv_lens),
            ("cu_seqlens_q", cu_seqlens_q),
            ("cu_seqlens_k", cu_seqlens_k),
        ];
        asked_for.into_iter().filter_map(|(name, address)| Some((name, address?)))
    }
}

/// A plan whose kernels are loaded on a GPU: enqueueing it is a memset and two launches, one more for each tensor that is prepared,
/// which is f32 or rotated other than by the quantizer, and one for a boolean mask.
#[derive(Clone, Copy, Debug)]
pub struct PreparedPlan {
    plan: AttentionPlan,
    gpu: &'static Gpu,
    kernels: Kernels,
}

/// The kernels of a plan, all of one architecture.
#[derive(Clone, Copy, Debug)]
struct Kernels {
    architecture: Architecture,
    prepare: Option<Function>,
    mask_tiles: Option<Function>,
    quantize: Function,
    attention: Function,
}

impl Kernels {
    /// The kernel of a family.
    fn of(&self, family: Family) -> Function {
        match (family, self.prepare, self.mask_tiles) {
            (Family::Prepare, Some(prepare), _) => prepare,
            (Family::MaskTiles, _, Some(mask_tiles)) => mask_tiles,
            _ if family.quantizes() => self.quantize,
            _ => self.attention,
        }
    }
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
    /// They are the best that the GPU has for the options. The environment variable `SAGE_KERNELS` names an architecture,
    /// such as `sm_80`, whose kernels are taken instead.
    ///
    /// # Errors
    ///
    /// [`Error::NoKernels`] if there are none for the options, [`Error::MissingKernel`] if this build does not hold them,
    /// [`Error::Driver`] if the driver does not take them; [`Error::KernelsVariable`] if `SAGE_KERNELS` names none that the
    /// GPU runs.
    pub fn prepare(&self, gpu: &'static Gpu) -> Result<PreparedPlan, Error> {
        self.prepare_for(gpu, gpu.named_architecture()?)
    }

    /// [`prepare`](Self::prepare) with kernels of an architecture, best or not.
    #[doc(hidden)]
    pub fn prepare_for(&self, gpu: &'static Gpu, architecture: Option<Architecture>) -> Result<PreparedPlan, Error> {
        let _span = tracing::debug_span!("prepare", gpu = gpu.ordinal()).entered();
        let choices = kernels::choices(gpu.capability(), self);
        let is_wanted = |choice: &Choice| architecture.is_none_or(|architecture| choice.architecture == architecture);
        let mut first_error = None;
        for Choice { architecture, prepare, mask_tiles, quantize, attention } in choices.filter(is_wanted) {
            let prepare = self.resolved.prepares().then_some(prepare);
            let mask_tiles = mask_tiles.filter(|_| self.options().boolean_mask.is_some());
            let function = |kernel| gpu.function(architecture, kernel);
            let load = || {
                let [prepare, mask_tiles] = [prepare, mask_tiles].map(|kernel| kernel.map(function).transpose());
                let (quantize, attention) = (function(quantize)?, function(attention)?);
                Ok(Kernels { architecture, prepare: prepare?, mask_tiles: mask_tiles?, quantize, attention })
            };
            match load() {
                Ok(kernels) => return Ok(PreparedPlan { plan: *self, gpu, kernels }),
                // another architecture's may be there, or be older than the driver
                Err(error) if module::is_about_the_image(&error) => {
                    tracing::debug!(architecture = architecture.name(), %error, "kernels can't be used");
                    first_error.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(first_error.unwrap_or_else(|| kernels::none(gpu.description(architecture), gpu.capability(), self)))
    }

    /// Checks the addresses of a call, as [`PreparedPlan::enqueue`] does before it enqueues anything.
    ///
    /// # Errors
    ///
    /// Addresses that are null or not aligned, a workspace that is too small, a log-sum-exp buffer without `return_lse`
    /// or the reverse, sinks, a bias, a boolean mask or rotary tables without the option or the reverse.
    pub fn check_buffers(&self, buffers: &GpuBuffers) -> Result<(), Error> {
        let problem = self.problem();
        for (argument, address, shape, strides) in [
            ("query", buffers.query, problem.query_shape(), problem.query_strides),
            ("key", buffers.key, problem.key_shape(), problem.key_strides),
            ("value", buffers.value, problem.value_shape(), problem.value_strides),
            ("output", buffers.output, problem.output_shape(), problem.output_strides),
        ] {
            check_tensor(argument, address, problem.dtype, shape, strides)?;
        }
        let (got, expected) = (buffers.lengths.kind(), problem.lengths);
        if got != expected {
            return Err(Error::LengthsKind { got, expected });
        }
        let check_lengths = |argument, address, count: usize| check_address(argument, address, count as u64 * 4, 4);
        match buffers.lengths {
            SequenceLengths::Uniform => {}
            SequenceLengths::PaddedKeys { kv_lens } => check_lengths("kv_lens", kv_lens, problem.batch)?,
            SequenceLengths::Packed { cu_seqlens_q, cu_seqlens_k } => {
                check_lengths("cu_seqlens_q", cu_seqlens_q, problem.batch + 1)?;
                check_lengths("cu_seqlens_k", cu_seqlens_k, problem.batch + 1)?;
            }
        }
        self.check_what_options_ask_for(buffers)?;
        check_workspace(buffers.workspace, buffers.workspace_bytes, self.workspace_bytes())
    }

    /// Checks the addresses that there are if an option is.
    pub(super) fn check_what_options_ask_for(&self, buffers: &GpuBuffers) -> Result<(), Error> {
        let problem = self.problem();
        check_log_sum_exp(self.options().return_lse, buffers.log_sum_exp, self.log_sum_exp_len())?;
        check_sinks(self.options().sinks, buffers.sinks, problem.query_heads)?;
        let AttentionOptions { bias, boolean_mask, .. } = *self.options();
        let extent = |strides: ScoreStrides| strides.extent(problem.score_shape()).expect("checked by the plan");
        let address = wanted("bias", bias.is_some(), buffers.bias)?;
        if let (Some(Bias { dtype, strides }), Some(address)) = (bias, address) {
            let bytes = u64::from(dtype.bytes());
            check_address("bias", address, extent(strides) * bytes, bytes)?;
        }
        let address = wanted("boolean_mask", boolean_mask.is_some(), buffers.boolean_mask)?;
        if let (Some(strides), Some(address)) = (boolean_mask, address) {
            check_address("boolean_mask", address, extent(strides), 1)?;
        }
        let tables = wanted("rotary", self.options().rotary.is_some(), buffers.rotary)?;
        if let (Some(rotary), Some(tables)) = (self.options().rotary, tables) {
            let bytes = rotary.table_len() as u64 * 4;
            tables.try_map(|argument, address| check_address(argument, address, bytes, TENSOR_ALIGNMENT))?;
        }
        Ok(())
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

    /// The architecture whose kernels it runs.
    #[doc(hidden)]
    pub fn architecture(&self) -> Architecture {
        self.kernels.architecture
    }

    /// Enqueues the call on a stream and returns. Nothing is allocated, nothing is waited for, no other stream is
    /// touched; so the call can be captured into a CUDA graph.
    ///
    /// The inputs should be finite. Nothing looks at them first; an infinity or NaN makes whatever it reaches NaN. But what is
    /// beyond ±65504, infinities too, counts as that in f32, and in f16 that is rotated.
    ///
    /// `stream` is a `CUstream` (or `cudaStream_t`) of the GPU's primary context; null is the context's default stream.
    ///
    /// # Errors
    ///
    /// What [`check_buffers`](AttentionPlan::check_buffers) finds; [`Error::WrongGpu`], if there are several, for memory of
    /// another than this one's; [`Error::Driver`] if a launch is refused, which also
    /// reports failures of earlier work. After an error of the driver's, some of the call's kernels may be enqueued.
    ///
    /// # Safety
    ///
    /// `stream` must be a stream of this GPU's primary context. Until the stream's work is done, each address must
    /// lead to memory that this GPU can access: the tensors as far as the problem's shapes and strides reach, the
    /// others as large as [`GpuBuffers`] says; nothing else may write to the inputs, nor access output, log-sum-exp and
    /// workspace; and workspace and log-sum-exp must overlap nothing.
    ///
    /// Lengths should be as [`SequenceLengths`] says when the stream comes to the call. Nobody on the host looks at them: others
    /// change what is computed, and may leave a part of the output unwritten, but are cut to what the tensors hold, so that
    /// nothing is read or written elsewhere.
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
        buffers.addresses().try_for_each(|(argument, address)| self.gpu.check(argument, address))?;
        let call = self.call(buffers, self.plan.workspace.buffers(buffers.workspace));
        let overlaps = part == Part::All && self.gpu.overlaps_kernels() && call.gains_by_overlap();
        let call = Call { overlaps, ..call };
        // SAFETY: the addresses are as large as the plan says, by the caller's promise and by `check_buffers`.
        unsafe {
            if part != Part::Attention {
                self.enqueue_quantization(&call, &Operand::ALL, stream)?;
            }
            if part != Part::Quantization {
                self.enqueue_attention(&call, stream)?;
            }
        }
        Ok(())
    }

    pub(super) fn call<'a>(&'a self, buffers: &'a GpuBuffers, workspace: BufferAddresses) -> Call<'a> {
        let (quantizer, attention) = (self.kernels.quantize.kernel, self.kernels.attention.kernel.family());
        let multiprocessors = self.gpu.multiprocessors();
        Call { plan: &self.plan, buffers, workspace, quantizer, attention, multiprocessors, overlaps: false }
    }

    /// Enqueues a memset of a call's counters.
    ///
    /// # Safety
    ///
    /// The call's workspace must hold the counters, on this GPU, whose context is current.
    pub(super) unsafe fn reset_counters(&self, call: &Call, stream: *mut c_void) -> Result<(), Error> {
        let (counters, bytes) = call.counters();
        // SAFETY: forwarded contract.
        unsafe { cuda!(cuMemsetD8Async(counters, 0, bytes as usize, stream.cast())) }
    }

    /// Enqueues what quantizes some operands.
    ///
    /// # Safety
    ///
    /// The call's addresses must be what the plan needs for these operands, on this GPU, whose context is current.
    pub(super) unsafe fn enqueue_quantization(
        &self,
        call: &Call,
        operands: &[Operand],
        stream: *mut c_void,
    ) -> Result<(), Error> {
        // SAFETY: forwarded contract; each kernel gets its own parameters, in the grid that they document; and a stream runs its
        // kernels in order.
        unsafe {
            self.reset_counters(call, stream)?;
            call.quantize(operands, |family, grid, params| {
                launch_kernel(self.kernels.of(family), stream, grid, &params)
            })
        }
    }

    /// Enqueues the attention kernel.
    ///
    /// # Safety
    ///
    /// As for [`enqueue_quantization`](Self::enqueue_quantization), for all operands; they are quantized, and the counters 0.
    pub(super) unsafe fn enqueue_attention(&self, call: &Call, stream: *mut c_void) -> Result<(), Error> {
        let launch = if call.overlaps { launch_overlapping_kernel } else { launch_kernel };
        // SAFETY: forwarded contract, and as above.
        call.attend(|family, grid, params| unsafe { launch(self.kernels.of(family), stream, grid, &params) })
    }
}

/// What the driver takes for a kernel's one parameter.
fn arguments(function: Function, params: &Params) -> [*mut c_void; 1] {
    debug_assert!(params.are_of(function.kernel.family()));
    [params.as_ptr().cast_mut().cast()]
}

/// Enqueues a kernel.
///
/// # Safety
///
/// `params` must be of the kernel's family and true for the grid, with the GPU's context current.
pub(crate) unsafe fn launch_kernel(
    function: Function,
    stream: *mut c_void,
    grid: [u32; 3],
    params: &Params,
) -> Result<(), Error> {
    let mut arguments = arguments(function, params);
    // SAFETY: the kernel has one parameter, of the family's type, which the driver copies before it returns.
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
            stream.cast(),
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        ))
    }
}

/// Enqueues a kernel that begins when the one before it on the stream allows it (programmatic dependent launch).
///
/// # Safety
///
/// As for [`launch_kernel`]; the kernel waits for what it needs of the one before it.
unsafe fn launch_overlapping_kernel(
    function: Function,
    stream: *mut c_void,
    grid: [u32; 3],
    params: &Params,
) -> Result<(), Error> {
    let mut arguments = arguments(function, params);
    let mut attribute = LaunchAttribute { id: PROGRAMMATIC_STREAM_SERIALIZATION, padding: 0, value: 1, rest: [0; 15] };
    let configuration = LaunchConfiguration {
        grid,
        block: [function.kernel.threads(), 1, 1],
        shared_bytes: function.kernel.shared_bytes(),
        stream: stream.cast(),
        attributes: &raw mut attribute,
        attribute_count: 1,
    };
    // SAFETY: the kernel has one parameter, of the family's type, which the driver copies, as the configuration, before it returns.
    unsafe { cuda!(cuLaunchKernelEx(&configuration, function.raw, arguments.as_mut_ptr(), std::ptr::null_mut())) }
}

pub(crate) fn check_address(argument: &'static str, got: u64, needed: u64, alignment: u64) -> Result<(), Error> {
    match got {
        0 => Err(Error::NullPointer { argument, needed }),
        _ if !got.is_multiple_of(alignment) => Err(Error::UnalignedPointer { argument, got, alignment }),
        _ => Ok(()),
    }
}

/// A tensor of a problem that was checked.
pub(crate) fn check_tensor(
    argument: &'static str,
    address: u64,
    dtype: DType,
    shape: [usize; 4],
    strides: Strides,
) -> Result<(), Error> {
    let needed = extent(shape, strides).expect("checked by the plan") * dtype.bytes() as u64;
    check_address(argument, address, needed, TENSOR_ALIGNMENT)
}

/// The log-sum-exp of so many rows, which is there if it was asked for.
pub(crate) fn check_log_sum_exp(return_lse: bool, address: Option<u64>, rows: usize) -> Result<(), Error> {
    match address {
        Some(address) if return_lse => check_address("log_sum_exp", address, rows as u64 * 4, 4),
        None if !return_lse => Ok(()),
        _ => Err(Error::LogSumExpBuffer { return_lse }),
    }
}

/// The sinks of so many query heads, which are there if they were asked for.
pub(crate) fn check_sinks(is_wanted: bool, address: Option<u64>, heads: usize) -> Result<(), Error> {
    match wanted("sinks", is_wanted, address)? {
        Some(address) => check_address("sinks", address, heads as u64 * 4, 4),
        None => Ok(()),
    }
}

/// A buffer of `bytes` bytes that is laid out as a part of a workspace is.
pub(super) fn check_buffer(argument: &'static str, address: u64, bytes: u64, needed: u64) -> Result<(), Error> {
    if bytes < needed {
        return Err(Error::BufferTooSmall { argument, got: bytes, needed });
    }
    check_address(argument, address, needed, workspace::ALIGNMENT)
}

/// A workspace of `bytes` bytes.
pub(crate) fn check_workspace(address: u64, bytes: u64, needed: u64) -> Result<(), Error> {
    if bytes < needed {
        return Err(Error::WorkspaceTooSmall { got: bytes, needed });
    }
    check_address("workspace", address, needed, workspace::ALIGNMENT)
}
