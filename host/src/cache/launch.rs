//! Steps on a cache on a GPU.

use crate::cache::kernels::{self, Launch};
use crate::cache::plan::CachePlan;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::gpu::launch::{check_address, check_log_sum_exp, check_sinks, check_tensor, check_workspace, launch_kernel};
use crate::gpu::module::{Function, is_about_the_image};
use crate::plan::wanted;
use sage_layout::architecture::Architecture;
use sage_layout::dispatch;
use sage_layout::kernel::{Family, Kernel};
use std::ffi::c_void;

/// Alignment of a cache, in bytes.
const CACHE_ALIGNMENT: u64 = 128;

/// Device addresses of an append.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppendBuffers {
    /// New keys, in the problem's shape and strides. A multiple of 16 bytes, as the next.
    pub key: u64,
    /// New values.
    pub value: u64,
    /// The cache, [`CachePlan::cache_bytes`]; a multiple of 128 bytes.
    pub cache: u64,
    /// i32 `[batch]`: tokens that each sequence had before. Multiples of 4 bytes from here on.
    pub lengths: u64,
    /// i32 `[batch, pages_per_sequence]`; with [`CacheOptions::page_table`](crate::CacheOptions::page_table), and only then.
    pub page_table: Option<u64>,
    /// f32 `[key_heads, head_dim]`; with [`CacheOptions::smooth_k`](crate::CacheOptions::smooth_k), and only then.
    pub key_mean: Option<u64>,
}

/// Device addresses of attention on a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheAttentionBuffers {
    /// Queries, in the problem's shape and strides. A multiple of 16 bytes, as the output.
    pub query: u64,
    /// The result.
    pub output: u64,
    /// f32 `[batch, query_heads, tokens]`; with `return_lse`, and only then.
    pub log_sum_exp: Option<u64>,
    /// f32 `[query_heads]`; with [`CacheOptions::sinks`](crate::CacheOptions::sinks), and only then.
    pub sinks: Option<u64>,
    /// The cache; a multiple of 128 bytes.
    pub cache: u64,
    /// i32 `[batch]`: tokens that each sequence has, with those just appended. Multiples of 4 bytes from here on.
    pub lengths: u64,
    /// As for the append.
    pub page_table: Option<u64>,
    /// As for the append.
    pub key_mean: Option<u64>,
    /// Memory that is the call's own until its work on the stream is done. A multiple of 256 bytes.
    pub workspace: u64,
    /// The workspace's size, at least [`CachePlan::workspace_bytes`].
    pub workspace_bytes: u64,
}

/// A [`CachePlan`] whose kernels are loaded on a GPU. An append is one launch, attention two.
#[derive(Clone, Copy, Debug)]
pub struct PreparedCachePlan {
    plan: CachePlan,
    gpu: &'static Gpu,
    append: Function,
    attention: Function,
    merge: Function,
}

/// Loads kernels of the families that are about a cache, of the best architecture whose images the driver takes.
pub(crate) fn load_cache_kernels<T>(
    gpu: &Gpu,
    wanted: Option<Architecture>,
    load: impl Fn(Architecture) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut error = Error::NoCacheKernels { device: gpu.description(wanted) };
    let is_wanted = |architecture: &Architecture| wanted.is_none_or(|wanted| *architecture == wanted);
    let architectures = dispatch::architectures(gpu.capability()).filter(is_wanted);
    for architecture in architectures.filter(|architecture| Family::CacheAppend.exists_for(*architecture)) {
        match load(architecture) {
            Err(reason) if is_about_the_image(&reason) => error = reason,
            result => return result,
        }
    }
    Err(error)
}

impl CachePlan {
    /// Loads the plan's kernels on a GPU, those that are not there yet. They run on GPUs of compute capability 8.0 and up.
    ///
    /// # Errors
    ///
    /// [`Error::NoCacheKernels`] on older GPUs, [`Error::MissingKernel`] if this build does not hold them, [`Error::Driver`] if the
    /// driver does not take them; [`Error::KernelsVariable`] as for [`AttentionPlan::prepare`](crate::AttentionPlan::prepare).
    pub fn prepare(&self, gpu: &'static Gpu) -> Result<PreparedCachePlan, Error> {
        self.prepare_for(gpu, gpu.named_architecture()?)
    }

    /// [`prepare`](Self::prepare) with kernels of an architecture, best or not.
    #[doc(hidden)]
    pub fn prepare_for(&self, gpu: &'static Gpu, wanted: Option<Architecture>) -> Result<PreparedCachePlan, Error> {
        let _span = tracing::debug_span!("prepare_cache", gpu = gpu.ordinal()).entered();
        load_cache_kernels(gpu, wanted, |architecture| {
            let function = |family: Family| {
                let kernel = Kernel::find(family, self.padded_head_dim, self.problem.dtype.into());
                gpu.function(architecture, kernel.expect("a row of the kernel table"))
            };
            let (append, merge) = (function(Family::CacheAppend)?, function(Family::Merge)?);
            Ok(PreparedCachePlan { plan: *self, gpu, append, attention: function(self.attention())?, merge })
        })
    }

    fn check_shared(
        &self,
        cache: u64,
        lengths: u64,
        page_table: Option<u64>,
        key_mean: Option<u64>,
    ) -> Result<(), Error> {
        let problem = &self.problem;
        check_address("cache", cache, self.cache_bytes(), CACHE_ALIGNMENT)?;
        check_address("lengths", lengths, problem.batch as u64 * 4, 4)?;
        if let Some(address) = wanted("page_table", self.options.page_table, page_table)? {
            check_address("page_table", address, (problem.batch * problem.pages_per_sequence) as u64 * 4, 4)?;
        }
        if let Some(address) = wanted("key_mean", self.options.smooth_k, key_mean)? {
            check_address("key_mean", address, (problem.key_heads * problem.head_dim) as u64 * 4, 4)?;
        }
        Ok(())
    }

    /// Checks the addresses of an append, as [`PreparedCachePlan::enqueue_append`] does before it enqueues anything.
    ///
    /// # Errors
    ///
    /// Addresses that are null or not aligned, buffers that the options do not ask for, or the reverse.
    pub fn check_append(&self, buffers: &AppendBuffers) -> Result<(), Error> {
        let problem = &self.problem;
        check_tensor("key", buffers.key, problem.dtype, problem.key_shape(), problem.key_strides)?;
        check_tensor("value", buffers.value, problem.dtype, problem.value_shape(), problem.value_strides)?;
        self.check_shared(buffers.cache, buffers.lengths, buffers.page_table, buffers.key_mean)
    }

    /// Checks the addresses of an attention call, as [`PreparedCachePlan::enqueue_attention`] does before it enqueues anything.
    ///
    /// # Errors
    ///
    /// As [`check_append`](Self::check_append); a workspace that is too small.
    pub fn check_attention(&self, buffers: &CacheAttentionBuffers) -> Result<(), Error> {
        let problem = &self.problem;
        check_tensor("query", buffers.query, problem.dtype, problem.query_shape(), problem.query_strides)?;
        check_tensor("output", buffers.output, problem.dtype, problem.output_shape(), problem.output_strides)?;
        check_log_sum_exp(self.options.return_lse, buffers.log_sum_exp, self.rows())?;
        check_sinks(self.options.sinks, buffers.sinks, problem.query_heads)?;
        self.check_shared(buffers.cache, buffers.lengths, buffers.page_table, buffers.key_mean)?;
        check_workspace(buffers.workspace, buffers.workspace_bytes, self.workspace_bytes())
    }
}

impl PreparedCachePlan {
    /// The plan.
    pub fn plan(&self) -> &CachePlan {
        &self.plan
    }

    /// The GPU that it was prepared for.
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// Enqueues an append on a stream and returns: keys and values of new tokens go to the pages behind those that the sequences
    /// have. Nothing is allocated and nothing is waited for, so that it can be captured into a CUDA graph.
    ///
    /// # Errors
    ///
    /// What [`check_append`](CachePlan::check_append) finds; [`Error::WrongGpu`], if there are several, for memory of another than
    /// this one's; [`Error::Driver`] if the launch is refused, which also reports failures of earlier work.
    ///
    /// # Safety
    ///
    /// As for [`PreparedPlan::enqueue`](crate::PreparedPlan::enqueue): `stream` is one of this GPU's primary context; until its work
    /// is done each address leads to as much memory as [`AppendBuffers`] says, and nobody else writes to the inputs or accesses
    /// the places of the new tokens.
    ///
    /// Nobody on the host looks at lengths and table. Tokens that the sequence's pages do not hold are left out, as are those
    /// whose page is not one of the cache's. Two sequences must not append to the same page.
    pub unsafe fn enqueue_append(&self, stream: *mut c_void, buffers: &AppendBuffers) -> Result<(), Error> {
        self.plan.check_append(buffers)?;
        let _current = self.gpu.enter()?;
        let AppendBuffers { key, value, cache, lengths, page_table, key_mean } = *buffers;
        let addresses = [("key", key), ("value", value), ("cache", cache), ("lengths", lengths)];
        self.check_gpu(&addresses, &[("page_table", page_table), ("key_mean", key_mean)])?;
        // SAFETY: as the caller promises.
        unsafe { self.launch(stream, kernels::append(&self.plan, buffers)) }
    }

    /// Enqueues attention on a stream and returns, as [`enqueue_append`](Self::enqueue_append) does.
    ///
    /// # Errors
    ///
    /// What [`check_attention`](CachePlan::check_attention) finds; otherwise as [`enqueue_append`](Self::enqueue_append).
    ///
    /// # Safety
    ///
    /// As [`enqueue_append`](Self::enqueue_append); nobody else accesses output, log-sum-exp and workspace, which overlap nothing.
    /// Lengths and pages of a table that can't be are cut to what there is, so that nothing is read elsewhere.
    pub unsafe fn enqueue_attention(&self, stream: *mut c_void, buffers: &CacheAttentionBuffers) -> Result<(), Error> {
        self.plan.check_attention(buffers)?;
        let _current = self.gpu.enter()?;
        let CacheAttentionBuffers { query, output, cache, lengths, workspace, page_table, key_mean, .. } = *buffers;
        let addresses =
            [("query", query), ("output", output), ("cache", cache), ("lengths", lengths), ("workspace", workspace)];
        let CacheAttentionBuffers { log_sum_exp, sinks, .. } = *buffers;
        let asked_for =
            [("page_table", page_table), ("key_mean", key_mean), ("log_sum_exp", log_sum_exp), ("sinks", sinks)];
        self.check_gpu(&addresses, &asked_for)?;
        for launch in kernels::attend(&self.plan, buffers) {
            // SAFETY: as the caller promises; a stream runs its kernels in order.
            unsafe { self.launch(stream, launch)? };
        }
        Ok(())
    }

    /// Refuses memory of another GPU, where there are several.
    fn check_gpu(
        &self,
        addresses: &[(&'static str, u64)],
        asked_for: &[(&'static str, Option<u64>)],
    ) -> Result<(), Error> {
        let there = asked_for.iter().filter_map(|(argument, address)| Some((*argument, (*address)?)));
        addresses.iter().copied().chain(there).try_for_each(|(argument, address)| self.gpu.check(argument, address))
    }

    /// # Safety
    ///
    /// The parameters are true for the grid, with the GPU's context current.
    unsafe fn launch(&self, stream: *mut c_void, (family, grid, params): Launch) -> Result<(), Error> {
        let function = match family {
            Family::CacheAppend => self.append,
            Family::Merge => self.merge,
            _ => self.attention,
        };
        // SAFETY: forwarded contract; the kernel is one of the family.
        unsafe { launch_kernel(function, stream, grid, &params) }
    }
}
