//! The kernels of the steps on a cache, and their parameters.

use crate::cache::launch::{AppendBuffers, CacheAttentionBuffers};
use crate::cache::plan::CachePlan;
use crate::kernels::view;
use crate::tensor::Strides;
use sage_layout::kernel::{Family, MergeShared, threads_per_row};
use sage_layout::params::{Address, CacheAppendParams, CacheAttentionParams, CacheView, MergeParams, Params};

/// Threads of a CTA that appends.
const APPEND_THREADS: u32 = 128;

/// What a kernel is launched with: its family, the grid and the parameters.
pub(crate) type Launch = (Family, [u32; 3], Params);

fn cache(plan: &CachePlan, pages: Address, page_table: Option<Address>, lengths: Address) -> CacheView {
    CacheView {
        pages,
        page_table: page_table.unwrap_or(0),
        lengths,
        page_count: plan.problem.pages as u32,
        pages_per_sequence: plan.problem.pages_per_sequence as u32,
        blocks_per_page: plan.blocks_per_page() as u32,
        key_heads: plan.problem.key_heads as u32,
    }
}

/// Merges parts.
pub(crate) fn merge(params: MergeParams) -> Launch {
    (Family::Merge, [params.rows.div_ceil(MergeShared::ROWS), 1, 1], params.into())
}

/// Appends new tokens.
pub(crate) fn append(plan: &CachePlan, buffers: &AppendBuffers) -> Launch {
    let problem = &plan.problem;
    let params = CacheAppendParams {
        cache: cache(plan, buffers.cache, buffers.page_table, buffers.lengths),
        key: view(buffers.key, problem.key_shape(), problem.key_strides),
        value: view(buffers.value, problem.value_shape(), problem.value_strides),
        key_mean: buffers.key_mean.unwrap_or(0),
    };
    let tokens_of_cta = (APPEND_THREADS / threads_per_row(plan.padded_head_dim)) as usize;
    // under 2³⁰: the plan checked as many query heads' tokens
    let ctas = problem.batch * problem.key_heads * problem.tokens.div_ceil(tokens_of_cta);
    (Family::CacheAppend, [ctas as u32, 1, 1], params.into())
}

/// Attention on the parts of the keys, and their merge.
pub(crate) fn attend(plan: &CachePlan, buffers: &CacheAttentionBuffers) -> [Launch; 2] {
    let (problem, options) = (&plan.problem, &plan.options);
    let log_sum_exps = buffers.workspace + plan.log_sum_exps_offset();
    let params = CacheAttentionParams {
        cache: cache(plan, buffers.cache, buffers.page_table, buffers.lengths),
        query: view(buffers.query, problem.query_shape(), problem.query_strides),
        key_mean: if plan.has_log_sum_exp_shift() { buffers.key_mean.unwrap_or(0) } else { 0 },
        partial_outputs: buffers.workspace,
        partial_log_sum_exps: log_sum_exps,
        visible: plan.visible,
        from_last_key: plan.counts_from_last_key().into(),
        heads_per_key_head: plan.heads_per_key_head() as u32,
        row_tiles: plan.row_tiles() as u32,
        splits: plan.splits as u32,
        rows: plan.rows() as u32,
        soft_cap: options.soft_cap.unwrap_or(0.0),
        softmax_scale: plan.softmax_scale,
        score_scale: plan.score_scale(),
    };
    let attention = (plan.attention(), [plan.ctas() as u32, 1, 1], params.into());

    let width = plan.padded_head_dim as i64;
    let tokens = problem.tokens as i64;
    let head = tokens * width;
    let strides = Strides { batch: problem.query_heads as i64 * head, head, token: width };
    let params = MergeParams {
        parts: view(buffers.workspace, problem.output_shape(), strides),
        part_stride: 4 * plan.rows() as i64 * width,
        log_sum_exps,
        log_sum_exp_stride: 4 * plan.rows() as i64,
        output: view(buffers.output, problem.output_shape(), problem.output_strides),
        log_sum_exp: buffers.log_sum_exp.unwrap_or(0),
        sinks: if options.sinks { buffers.sinks.unwrap_or(0) } else { 0 },
        count: plan.splits as u32,
        parts_are_f32: 1,
        output_is_f32: 0,
        rows: plan.rows() as u32,
    };
    [attention, merge(params)]
}
