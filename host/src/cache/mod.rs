//! Keys and values that are quantized once and kept, for decoding and chunked prefill: [`CachePlan`].
//!
//! A cache is memory of the caller's, made of pages ([`sage_layout::cache`] is their format, version
//! [`CACHE_FORMAT_VERSION`]). Each step appends the keys and values of some new tokens, and attends to all that are there with the
//! queries of these tokens. What was appended is never touched again, so that pages can be shared, copied and freed at will; and how
//! many tokens came at a time makes no difference to any bit.
//!
//! | module | what |
//! |---|---|
//! | [`plan`] | shapes, options and all checks |
//! | `kernels` | the kernels' parameters |
//! | [`launch`] | on a GPU |
//! | [`host`] | on caches in host memory: the CPU's twin, and the kernels for trying them |

pub mod host;
pub(crate) mod kernels;
pub mod launch;
pub mod plan;

pub use host::QuantizedKv;
pub use launch::{AppendBuffers, CacheAttentionBuffers, PreparedCachePlan};
pub use plan::{CacheOptions, CachePlan, CacheProblem};

/// Version of the pages' format. Caches of another version can't be read.
pub const CACHE_FORMAT_VERSION: u32 = sage_layout::cache::VERSION;
