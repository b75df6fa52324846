//! SageAttention in pure Rust: attention with INT8 or INT4 Q·Kᵀ and FP8 or 16-bit P·V on NVIDIA GPUs, and the same call on the
//! CPU.
//!
//! Queries and keys are quantized to INT8 (or INT4) and values to FP8 (e4m3) on the fly, after keys and values were smoothed,
//! so that the result stays close to exact attention ([SageAttention](https://arxiv.org/abs/2410.02367),
//! [SageAttention2](https://arxiv.org/abs/2411.10958)); or values stay as they are ([`PvMode::F16`]). For inference: there is
//! no backward pass.
//!
//! # On tensors in host memory
//!
//! ```
//! use half::f16;
//! use sageattention::{AttentionOptions, AttentionProblem, DType, Device, Mask, TensorLayout, attention};
//!
//! // 1 sequence, 2 heads, 100 tokens, 64 channels
//! let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 2, 100, 64]);
//! let options = AttentionOptions { mask: Mask::Causal, ..Default::default() };
//! let tensor = |seed: usize| -> Vec<f16> {
//!     (0..2 * 100 * 64).map(|i| f16::from_f32((i * seed % 1009) as f32 / 504.0 - 1.0)).collect()
//! };
//! let (query, key, value) = (tensor(7), tensor(11), tensor(13));
//!
//! let result = attention(Device::auto(), problem, options, &query, &key, &value)?;
//! assert_eq!(result.output.len(), query.len());
//! // The first query of a head sees one key, so its output is that key's value.
//! assert!((result.output[0].to_f32() - value[0].to_f32()).abs() < 0.05);
//! # Ok::<(), sageattention::Error>(())
//! ```
//!
//! # On tensors in GPU memory
//!
//! Make a plan, prepare it, and enqueue it on your stream, with a workspace of yours. Enqueueing allocates nothing and
//! waits for nothing; it can be captured into a CUDA graph.
//!
//! ```no_run
//! # use sageattention::*;
//! # let (stream, query, key, value, output, workspace) = (std::ptr::null_mut(), 0, 0, 0, 0, 0);
//! let problem = AttentionProblem::new(TensorLayout::Nhd, DType::Bf16, [1, 24, 4096, 128]);
//! let plan = AttentionPlan::new(problem, AttentionOptions::default())?;
//! let prepared = plan.prepare(Gpu::open(0)?)?;
//! let workspace_bytes = plan.workspace_bytes(); // allocate as many
//! let buffers = GpuBuffers { query, key, value, output, workspace, workspace_bytes, ..Default::default() };
//! // SAFETY: the addresses lead to tensors of the problem's shapes, which live until the stream's work is done.
//! unsafe { prepared.enqueue(stream, &buffers)? };
//! # Ok::<(), Error>(())
//! ```
//!
//! A framework asks [`supports`] first, and describes its tensors with [`TensorDesc`] and
//! [`AttentionProblem::from_tensors`].
//!
//! # Modules
//!
//! | module | what |
//! |---|---|
//! | [`mod@tensor`] | shapes, strides, element types |
//! | [`options`] | modes, granularity, smoothing, masks, scale |
//! | [`plan`] | all checks, once |
//! | [`mod@attention`] | the call on host tensors |
//! | [`quantized`] | queries, keys and values that are quantized by themselves |
//! | [`cache`] | keys and values that are quantized once and kept |
//! | [`mod@merge`] | attention to parts of the keys, merged |
//! | [`gpu`] | kernels, launches, the driver found at run time |
//! | [`device`] | CPU or GPU |
//! | [`error`] | what can be wrong, in words |

pub(crate) mod accuracy;
pub mod attention;
pub mod cache;
pub(crate) mod cpu;
pub mod device;
pub mod element;
pub mod error;
pub mod gpu;
pub(crate) mod kernels;
pub mod merge;
pub mod options;
pub mod plan;
pub mod quantized;
#[cfg(feature = "simt")]
#[doc(hidden)]
pub mod simt;
pub mod tensor;
#[doc(hidden)]
pub mod testing;
pub(crate) mod workspace;

pub use attention::{AttentionOutput, attention, attention_with};
pub use cache::{
    AppendBuffers, CACHE_FORMAT_VERSION, CacheAttentionBuffers, CacheOptions, CachePlan, CacheProblem,
    PreparedCachePlan, QuantizedKv,
};
pub use device::Device;
pub use element::Element;
pub use error::{Error, Unsupported};
pub use gpu::{AttendBuffers, Gpu, GpuBuffers, GpuInfo, GpuQuantized, PreparedPlan, QuantizeBuffers, devices};
pub use merge::{MergeBuffers, MergePlan, PreparedMerge, merge};
pub use options::*;
pub use plan::{AttentionPlan, supports};
pub use quantized::{
    HostQuantized, Operand, QUANTIZED_FORMAT_VERSION, QuantizedContents, QuantizedFormat, attend_quantized,
    quantize_key, quantize_query, quantize_value,
};
pub use sage_layout::architecture::{Architecture, ComputeCapability};
pub use tensor::*;

#[doc = include_str!("../../README.md")]
#[cfg(doctest)]
struct Readme;

#[doc = include_str!("../../docs/guide.md")]
#[cfg(doctest)]
struct Guide;
