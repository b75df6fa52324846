//! What can be wrong with a call: [`Unsupported`] for a problem and its options, [`Error`] for everything.
//!
//! Every message names the argument, what it got and what is allowed.

use crate::options::{BiasType, Mask, PvAccum, PvMode};
use crate::quantized::{Operand, QuantizedFormat};
use crate::tensor::{DType, Lengths};
use sage_layout::architecture::ComputeCapability;
use sage_layout::dispatch::Modes;

/// Why a problem and its options can't be planned, on any device.
///
/// [`supports`](crate::supports) returns it so that a framework can route the call elsewhere.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// A head dimension that no kernel is made for.
    #[error("{argument} is {got}; allowed are 1 to 256")]
    HeadDim {
        /// `head_dim` or `value_head_dim`.
        argument: &'static str,
        /// What the problem says.
        got: usize,
    },
    /// Query heads that can't be dealt evenly to key heads.
    #[error("query_heads is {query_heads}, key_heads is {key_heads}; query_heads must be a multiple of key_heads")]
    HeadRatio {
        /// Heads of query and output.
        query_heads: usize,
        /// Heads of key and value.
        key_heads: usize,
    },
    /// An empty tensor.
    #[error("{argument} is 0; it must be at least 1")]
    Zero {
        /// The length or count that is zero.
        argument: &'static str,
    },
    /// More than the kernels can count.
    #[error("{argument} is {got}; at most {allowed} are allowed")]
    TooLarge {
        /// The length, count or product that is too large.
        argument: &'static str,
        /// Its value.
        got: u64,
        /// Its largest allowed value.
        allowed: u64,
    },
    /// A stride that walks backwards.
    #[error("{tensor}'s {axis} stride is {got}; strides must not be negative")]
    NegativeStride {
        /// The tensor.
        tensor: &'static str,
        /// The axis.
        axis: &'static str,
        /// Its stride, in elements.
        got: i64,
    },
    /// An output with two elements in one place.
    #[error(
        "output's {axis} stride is {got}, so that elements overlap; an output's strides must keep its elements apart, \
         here by at least {needed}"
    )]
    OverlappingOutput {
        /// The axis.
        axis: &'static str,
        /// Its stride, in elements.
        got: i64,
        /// The extent of the axes inside it, in elements.
        needed: i64,
    },
    /// A tensor that spans more memory than there are addresses.
    #[error("{tensor}'s shape and strides span more than 2^63 bytes; the last element's address must be a number")]
    TooFar {
        /// The tensor.
        tensor: &'static str,
    },
    /// A causal mask that could mean two things.
    #[error(
        "mask is Causal with query_len {query_len} and key_len {key_len}; for unequal lengths choose \
         CausalAligned(CausalAlign::TopLeft) or CausalAligned(CausalAlign::BottomRight)"
    )]
    AmbiguousCausal {
        /// Queries a sequence.
        query_len: usize,
        /// Keys a sequence.
        key_len: usize,
    },
    /// A causal mask that could mean two things, for sequences of different lengths.
    #[error(
        "mask is Causal with lengths {lengths:?}, of which queries and keys may differ; choose \
         CausalAligned(CausalAlign::TopLeft) or CausalAligned(CausalAlign::BottomRight)"
    )]
    CausalLengths {
        /// The problem's.
        lengths: Lengths,
    },
    /// An option that sequences of such lengths do not have.
    #[error("{option} with lengths {lengths:?} is not supported; lengths must be one of {allowed:?} there")]
    Lengths {
        /// The option and its value.
        option: &'static str,
        /// The problem's.
        lengths: Lengths,
        /// Those that the option goes with.
        allowed: &'static [Lengths],
    },
    /// A call whose operands can't be quantized each by itself.
    #[error(
        "{option} is not supported with operands that are quantized by themselves; quantize and attend in one call"
    )]
    QuantizedApart {
        /// The option, or field of the problem.
        option: &'static str,
    },
    /// Sums that the products of probabilities and values can't be taken in.
    #[error(
        "pv_accum is {pv_accum:?} with pv_mode {pv_mode:?} and {dtype} values; allowed there is {}",
        list(.allowed.iter().map(|accum| format!("{accum:?}")), "or")
    )]
    PvAccum {
        /// The options' sums.
        pv_accum: PvAccum,
        /// The options' mode.
        pv_mode: PvMode,
        /// The problem's element type.
        dtype: DType,
        /// The sums that go with the two.
        allowed: &'static [PvAccum],
    },
    /// Elements that a cache is not made for.
    #[error("dtype is {got} with a cache; allowed are f16 and bf16")]
    CacheDType {
        /// The problem's.
        got: DType,
    },
    /// Pages of a cache that are not whole blocks.
    #[error("page_tokens is {got}; allowed are 64 and 128")]
    PageTokens {
        /// The problem's.
        got: usize,
    },
    /// A mask that does not say how the last tokens of a cache line up with queries.
    #[error(
        "mask is {mask:?} with a cache; allowed are None, CausalAligned(CausalAlign::BottomRight) and a Window of that alignment"
    )]
    CacheMask {
        /// The options' mask.
        mask: Mask,
    },
    /// Channels that can't be turned by a rotary embedding.
    #[error("rotary dim is {got}; it must be even, from 2 to head_dim, {head_dim}")]
    RotaryDim {
        /// The options' channels.
        got: usize,
        /// The problem's.
        head_dim: usize,
    },
    /// Positions that the tables of a rotary embedding do not have.
    #[error("rotary has {got} positions; {tensor} needs {needed}: {tokens} tokens from position {offset} on")]
    RotaryPositions {
        /// Positions of the tables.
        got: usize,
        /// `query` or `key`.
        tensor: &'static str,
        /// Positions that are needed.
        needed: usize,
        /// Tokens of the longest sequence.
        tokens: usize,
        /// Position of its first.
        offset: usize,
    },
    /// A soft cap that caps nothing, or everything.
    #[error("soft_cap is {got}; it must be finite and positive")]
    SoftCap {
        /// The options' cap.
        got: f32,
    },
    /// A softmax scale that makes no softmax.
    #[error("softmax_scale is {got}; it must be finite and positive")]
    SoftmaxScale {
        /// The options' scale.
        got: f32,
    },
}

/// Words as a list: "a, b or c".
fn list(words: impl IntoIterator<Item = String>, conjunction: &str) -> String {
    let mut words: Vec<String> = words.into_iter().collect();
    match words.pop() {
        Some(last) if !words.is_empty() => format!("{} {conjunction} {last}", words.join(", ")),
        last => last.unwrap_or_default(),
    }
}

/// Any error of this crate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The problem and its options can't be planned.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),

    /// A tensor that is not four-dimensional.
    #[error("{tensor} has rank {got}; it must have rank 4: [{axes}]")]
    Rank {
        /// The tensor.
        tensor: &'static str,
        /// Its rank.
        got: usize,
        /// The axes it must have, in the layout's order.
        axes: &'static str,
    },
    /// As many strides as axes are needed.
    #[error("{tensor} has {got} strides for {rank} axes; it must have one for each")]
    StrideCount {
        /// The tensor.
        tensor: &'static str,
        /// Its number of strides.
        got: usize,
        /// Its number of axes.
        rank: usize,
    },
    /// Channels that are not adjacent.
    #[error("{tensor}'s last stride is {got}; it must be 1: the channels of a token are adjacent in memory")]
    LastStride {
        /// The tensor.
        tensor: &'static str,
        /// Its last stride, in elements.
        got: isize,
    },
    /// Tensors of different element types.
    #[error("{tensor} is {got}, query is {query}; all four tensors must have the same element type")]
    DTypeMix {
        /// The tensor that differs from the query.
        tensor: &'static str,
        /// Its element type.
        got: DType,
        /// The query's element type.
        query: DType,
    },
    /// Tensors whose shapes don't go together.
    #[error("{tensor}'s {axis} is {got}; it must be {expected}, as {of}'s")]
    Shape {
        /// The tensor that differs.
        tensor: &'static str,
        /// The axis on which it differs.
        axis: &'static str,
        /// Its size there.
        got: usize,
        /// What its size must be.
        expected: usize,
        /// The tensor that says so.
        of: &'static str,
    },
    /// A host slice of another element type than the problem's.
    #[error("the slices hold {got}, the problem's dtype is {expected}; they must be the same")]
    SliceDType {
        /// The slices' element type.
        got: DType,
        /// The problem's element type.
        expected: DType,
    },
    /// A host slice that ends before the tensor does.
    #[error("{tensor} has {got} elements; its shape and strides need at least {needed}")]
    SliceTooShort {
        /// The tensor.
        tensor: &'static str,
        /// The slice's length, in elements.
        got: usize,
        /// The index after the tensor's last element.
        needed: usize,
    },

    /// A device address that is null.
    #[error("{argument}'s device address is null; it must be the address of {needed} bytes")]
    NullPointer {
        /// The buffer.
        argument: &'static str,
        /// Bytes that will be accessed behind the address.
        needed: u64,
    },
    /// A device address that no vector load can start at.
    #[error("{argument}'s device address is {got:#x}; it must be a multiple of {alignment} bytes")]
    UnalignedPointer {
        /// The buffer.
        argument: &'static str,
        /// Its address.
        got: u64,
        /// Its alignment, in bytes.
        alignment: u64,
    },
    /// A device address of another GPU than the plan was prepared for.
    #[error(
        "{argument}'s device address {address:#x} is memory of GPU {got}; the plan was prepared for GPU {expected}"
    )]
    WrongGpu {
        /// The buffer.
        argument: &'static str,
        /// Its address.
        address: u64,
        /// The number of the GPU whose memory it is.
        got: usize,
        /// The number of the GPU that the plan was prepared for.
        expected: usize,
    },
    /// A workspace that does not hold what the plan needs.
    #[error("workspace has {got} bytes; the plan needs {needed}")]
    WorkspaceTooSmall {
        /// The workspace's size, in bytes.
        got: u64,
        /// [`AttentionPlan::workspace_bytes`](crate::AttentionPlan::workspace_bytes).
        needed: u64,
    },
    /// A buffer of a call on quantized operands that is too small.
    #[error("{argument} has {got} bytes; it needs {needed}")]
    BufferTooSmall {
        /// The buffer.
        argument: &'static str,
        /// Its size, in bytes.
        got: u64,
        /// What it needs.
        needed: u64,
    },
    /// The log-sum-exp was asked for without a buffer, or a buffer given without asking.
    #[error(
        "log_sum_exp is {}, return_lse is {return_lse}; a buffer is needed with return_lse and allowed only then",
        if *.return_lse { "None" } else { "a buffer" }
    )]
    LogSumExpBuffer {
        /// The plan's option.
        return_lse: bool,
    },
    /// An input was given that the options do not ask for, or the reverse.
    #[error(
        "{argument} is {}, the options {} it; it is needed if they do, and allowed only then",
        if *.wanted { "None" } else { "there" },
        if *.wanted { "ask for" } else { "do not ask for" },
    )]
    CallInput {
        /// The field of [`CallInputs`](crate::CallInputs) or [`GpuBuffers`](crate::GpuBuffers).
        argument: &'static str,
        /// Whether the options ask for it.
        wanted: bool,
    },
    /// A quantized operand of another format than the plan's.
    #[error("{}'s quantized format is {:?}; the plan reads {:?}", .operand.name(), .formats[0], .formats[1])]
    QuantizedFormat {
        /// The operand.
        operand: Operand,
        /// Its format, and the plan's.
        formats: Box<[QuantizedFormat; 2]>,
    },
    /// A bias of another type than the options say.
    #[error("bias holds {got:?}, the options' bias is {expected:?}; they must be the same")]
    BiasType {
        /// The slice's element type.
        got: BiasType,
        /// The options' element type.
        expected: BiasType,
    },
    /// An element of a bias that makes no softmax.
    #[error("bias[{index}] is {got}; allowed are finite numbers, and -inf to hide a key")]
    BiasElement {
        /// Index in the slice.
        index: usize,
        /// The element.
        got: f32,
    },
    /// A head's sink that makes no softmax.
    #[error("sinks[{head}] is {got}; allowed are finite numbers, and -inf for a head that has none")]
    Sink {
        /// The query head.
        head: usize,
        /// Its sink.
        got: f32,
    },
    /// Lengths of another kind than the problem's.
    #[error("lengths are {got:?}, the problem's are {expected:?}; they must be the same")]
    LengthsKind {
        /// Those of the call.
        got: Lengths,
        /// Those of the problem.
        expected: Lengths,
    },
    /// A slice with more elements than it must have, or fewer.
    #[error("{argument} has {got} elements; it must have {needed}")]
    SliceLength {
        /// The slice.
        argument: &'static str,
        /// Its elements.
        got: usize,
        /// What it must have.
        needed: usize,
    },
    /// A length that can't be.
    #[error("{argument}[{index}] is {got}; it must be from {least} to {most}")]
    LengthsValue {
        /// The slice.
        argument: &'static str,
        /// The element's index.
        index: usize,
        /// The element.
        got: i32,
        /// Its least allowed value.
        least: i32,
        /// Its largest allowed value.
        most: i32,
    },
    /// An element of an input is infinite or NaN.
    #[error("{tensor}{index:?} is {got}; allowed are finite numbers")]
    NotFinite {
        /// The tensor.
        tensor: &'static str,
        /// `[batch, head, token, channel]`.
        index: [usize; 4],
        /// The element.
        got: f32,
    },
    /// An element of an f32 input that f16, which it is rounded to, can't hold.
    #[error("{tensor}{index:?} is {got}; f32 tensors are rounded to f16, and allowed are numbers from -65504 to 65504")]
    OutOfRange {
        /// The tensor.
        tensor: &'static str,
        /// `[batch, head, token, channel]`.
        index: [usize; 4],
        /// The element.
        got: f32,
    },
    /// Not enough memory for a buffer of the host call.
    #[error("{argument} needs {bytes} bytes of memory; there is not as much")]
    OutOfMemory {
        /// The buffer.
        argument: &'static str,
        /// Its size.
        bytes: u64,
    },

    /// A GPU was asked for where there is none.
    #[error("no GPU {ordinal}: {reason}; use Device::Cpu, or Device::auto() to take what is there")]
    NoGpu {
        /// The GPU that was asked for.
        ordinal: usize,
        /// What was found instead.
        reason: String,
    },
    /// A GPU that no kernels exist for.
    #[error("GPU {ordinal} ({name}) has compute capability {capability}; supported are {supported}")]
    UnsupportedGpu {
        /// The GPU that was asked for.
        ordinal: usize,
        /// Its name.
        name: String,
        /// Its compute capability.
        capability: ComputeCapability,
        /// The architectures that kernels exist for.
        supported: String,
    },
    /// A GPU without kernels for these options; others may have them.
    #[error("{device} has no kernels for {modes}; it has them for {allowed}")]
    NoKernels {
        /// The GPU, or the SIMT executor.
        device: String,
        /// How the options multiply.
        modes: Modes,
        /// What there are kernels for.
        allowed: String,
    },
    /// A GPU without kernels for a cache, or to merge.
    #[error("{device} has no kernels for a cache or a merge; those are for compute capability 8.0 and up")]
    NoCacheKernels {
        /// The GPU.
        device: String,
    },
    /// Kernels were asked for that are none, or that the GPU can't run.
    #[error("SAGE_KERNELS is {got}; allowed on {gpu} are {allowed}, or nothing for the best")]
    KernelsVariable {
        /// What the variable says.
        got: String,
        /// The GPU.
        gpu: String,
        /// The architectures whose kernels it runs.
        allowed: String,
    },
    /// A library that was built before its kernels were.
    #[error(
        "this build holds no GPU kernel {kernel} for {architecture}; run `cargo xtask build-ptx`, then build again"
    )]
    MissingKernel {
        /// The missing kernel's symbol.
        kernel: &'static str,
        /// The architecture it is missing for.
        architecture: &'static str,
    },
    /// The SIMT executor found a mistake in a kernel.
    #[cfg(feature = "simt")]
    #[error("{kernel}: {report}")]
    Simt {
        /// The kernel's symbol.
        kernel: &'static str,
        /// What, where, by whom, and how to find it again.
        report: String,
    },
    /// The CUDA driver refused a call, or reports the failure of an earlier one.
    #[error("{call} failed with CUDA error {code}: {message}")]
    Driver {
        /// The driver's function.
        call: &'static str,
        /// The driver's `CUresult`.
        code: u32,
        /// The driver's own words; for a kernel that does not load, the compiler's log.
        message: String,
    },
}
