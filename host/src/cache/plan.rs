//! Checking the steps on a cache, once: [`CachePlan`].

use crate::error::{Error, Unsupported};
use crate::options::{CausalAlign, Mask};
use crate::plan::{MAX_SIZE, at_most, check_no_overlap, check_soft_cap, check_strides, padded_head_dim};
use crate::tensor::{DType, Strides, TensorLayout, with_channels};
use sage_layout::cache::{BLOCK_TOKENS, BLOCKS_PER_PAGE, block_bytes};
use sage_layout::kernel::{Family, MergeShared};
use sage_layout::tile::WARP_ROWS;
use sage_layout::visibility::Band;
use std::f32::consts::LOG2_E;

/// Most parts that a sequence's keys are cut into.
const MAX_SPLITS: usize = MergeShared::MAX_PARTS as usize;
/// CTAs that a step should have, so that the last ones do not run alone: a few times what a large GPU runs at a time.
const CTAS: usize = 3072;
/// Fewest blocks of a part, with which loading queries and merging cost little.
const LEAST_BLOCKS: usize = 8;

/// Shapes of a step on a cache: of every sequence, the keys and values of `tokens` new tokens, and their queries.
///
/// | tensor | shape |
/// |---|---|
/// | query | `[batch, query_heads, tokens, head_dim]` |
/// | key | `[batch, key_heads, tokens, head_dim]` |
/// | value | `[batch, key_heads, tokens, value_head_dim]` |
/// | output | `[batch, query_heads, tokens, value_head_dim]` |
///
/// in whatever order of the first three axes the strides say. Sequences may have different numbers of tokens in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheProblem {
    /// Sequences.
    pub batch: usize,
    /// Query heads, a multiple of `key_heads`; query head `h` uses key head `h / (query_heads / key_heads)`.
    pub query_heads: usize,
    /// Key and value heads.
    pub key_heads: usize,
    /// New tokens of each sequence. Meant for 1 to 64 or some more; all heads that share a key head count together.
    pub tokens: usize,
    /// Channels a head of queries and keys, 1 to 256.
    pub head_dim: usize,
    /// Channels a head of values and output, 1 to 256. As many as queries have, but for
    /// [`with_value_head_dim`](Self::with_value_head_dim). A block has rows of the larger of both.
    pub value_head_dim: usize,
    /// Tokens of a page: 64 or 128.
    pub page_tokens: usize,
    /// Pages of the cache.
    pub pages: usize,
    /// Pages that a sequence may have.
    pub pages_per_sequence: usize,
    /// Element type of all four tensors: f16 or bf16.
    pub dtype: DType,
    /// Strides of the queries.
    pub query_strides: Strides,
    /// Strides of the keys.
    pub key_strides: Strides,
    /// Strides of the values.
    pub value_strides: Strides,
    /// Strides of the output.
    pub output_strides: Strides,
}

impl CacheProblem {
    /// Contiguous tensors, and pages of 128 tokens, as many for each sequence as hold `capacity` tokens.
    pub fn new(
        layout: TensorLayout,
        dtype: DType,
        [batch, query_heads, tokens, head_dim]: [usize; 4],
        key_heads: usize,
        capacity: usize,
    ) -> Self {
        const PAGE_TOKENS: usize = 128;
        let pages_per_sequence = capacity.div_ceil(PAGE_TOKENS);
        let queries = layout.strides(query_heads, tokens, head_dim);
        let keys = layout.strides(key_heads, tokens, head_dim);
        Self {
            batch,
            query_heads,
            key_heads,
            tokens,
            head_dim,
            value_head_dim: head_dim,
            page_tokens: PAGE_TOKENS,
            pages: batch.saturating_mul(pages_per_sequence),
            pages_per_sequence,
            dtype,
            query_strides: queries,
            key_strides: keys,
            value_strides: keys,
            output_strides: queries,
        }
    }

    /// The same problem with values and output of so many channels. Their strides are multiplied accordingly: contiguous tensors stay
    /// so.
    pub fn with_value_head_dim(self, value_head_dim: usize) -> Self {
        let strides = |strides| with_channels(strides, self.value_head_dim, value_head_dim);
        let [value_strides, output_strides] = [self.value_strides, self.output_strides].map(strides);
        Self { value_head_dim, value_strides, output_strides, ..self }
    }

    /// `[batch, query_heads, tokens, head_dim]`: the shape of the query.
    pub fn query_shape(&self) -> [usize; 4] {
        [self.batch, self.query_heads, self.tokens, self.head_dim]
    }

    /// `[batch, key_heads, tokens, head_dim]`: the shape of the key.
    pub fn key_shape(&self) -> [usize; 4] {
        [self.batch, self.key_heads, self.tokens, self.head_dim]
    }

    /// `[batch, key_heads, tokens, value_head_dim]`: the shape of the value.
    pub fn value_shape(&self) -> [usize; 4] {
        [self.batch, self.key_heads, self.tokens, self.value_head_dim]
    }

    /// `[batch, query_heads, tokens, value_head_dim]`: the shape of the output.
    pub fn output_shape(&self) -> [usize; 4] {
        [self.batch, self.query_heads, self.tokens, self.value_head_dim]
    }

    /// Tokens that a sequence may have.
    pub fn capacity(&self) -> usize {
        self.pages_per_sequence * self.page_tokens
    }
}

/// Options of the steps on a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CacheOptions {
    /// Which keys a query sees: [`Mask::None`], or one that is aligned [`CausalAlign::BottomRight`]: the last query with the last
    /// token in the cache. Default: all.
    pub mask: Mask,
    /// What `query · key` is multiplied by before the exponential; finite and positive. Default: `head_dim`^-½.
    pub softmax_scale: Option<f32>,
    /// Subtract a channel mean from keys before quantizing, the same from the first token to the last: softmax does not notice.
    /// It comes with each call, f32 `[key_heads, head_dim]`, best the mean of some typical keys. Default: off.
    pub smooth_k: bool,
    /// Attention sinks: see [`AttentionOptions::sinks`](crate::AttentionOptions::sinks). Default: none.
    pub sinks: bool,
    /// Logits become `soft_cap · tanh(logit / soft_cap)`; finite and positive. Default: no cap.
    pub soft_cap: Option<f32>,
    /// Also return the natural logarithm of each row's sum of exponentials, `[batch, query_heads, tokens]`, f32. Default: no.
    pub return_lse: bool,
    /// Which pages a sequence has, a table says, i32 `[batch, pages_per_sequence]`, that comes with each call. Default: sequence `b`
    /// has pages `b · pages_per_sequence` on.
    pub page_table: bool,
    /// Parts that each sequence's keys are cut into, which different CTAs do, 1 to 128. Results depend on it, within rounding, and on
    /// nothing else. Default: as many as keep a large GPU busy.
    pub splits: Option<usize>,
}

/// Steps on a cache that were checked and can run any number of times, on any device. It holds no memory and no device state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CachePlan {
    pub(crate) problem: CacheProblem,
    pub(crate) options: CacheOptions,
    /// The options' scale, or head_dim^-½ of the queries.
    pub(crate) softmax_scale: f32,
    /// 64, 128 or 256.
    pub(crate) padded_head_dim: u32,
    /// Which keys a query sees, before it is shifted to a sequence.
    pub(crate) visible: Band,
    pub(crate) splits: usize,
}

impl CachePlan {
    /// Checks a problem and its options.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`], with the first reason that is found against them.
    pub fn new(problem: CacheProblem, options: CacheOptions) -> Result<Self, Error> {
        let CacheProblem { batch, query_heads, key_heads, tokens, head_dim, page_tokens, .. } = problem;
        let CacheProblem { pages, pages_per_sequence, .. } = problem;
        for (argument, size) in [
            ("batch", batch),
            ("query_heads", query_heads),
            ("key_heads", key_heads),
            ("tokens", tokens),
            ("pages", pages),
            ("pages_per_sequence", pages_per_sequence),
        ] {
            if size == 0 {
                return Err(Unsupported::Zero { argument }.into());
            }
            at_most(argument, size as u64, MAX_SIZE)?;
        }
        let padded_head_dim = padded_head_dim(head_dim, problem.value_head_dim)?;
        if query_heads % key_heads != 0 {
            return Err(Unsupported::HeadRatio { query_heads, key_heads }.into());
        }
        if problem.dtype == DType::F32 {
            return Err(Unsupported::CacheDType { got: problem.dtype }.into());
        }
        if !BLOCKS_PER_PAGE.iter().any(|blocks| (blocks * BLOCK_TOKENS) as usize == page_tokens) {
            return Err(Unsupported::PageTokens { got: page_tokens }.into());
        }
        // under 2³⁷
        at_most("pages_per_sequence * page_tokens", problem.capacity() as u64, MAX_SIZE)?;
        at_most("tokens", tokens as u64, problem.capacity() as u64)?;
        if !options.page_table {
            let needed = (batch as u64).saturating_mul(pages_per_sequence as u64);
            at_most("batch * pages_per_sequence, without page_table,", needed, pages as u64)?;
        }
        let rows = (batch as u64).saturating_mul(query_heads as u64).saturating_mul(tokens as u64);
        at_most("batch * query_heads * tokens", rows, MAX_SIZE)?;
        check_strides("query", problem.query_shape(), problem.query_strides)?;
        check_strides("key", problem.key_shape(), problem.key_strides)?;
        check_strides("value", problem.value_shape(), problem.value_strides)?;
        check_strides("output", problem.output_shape(), problem.output_strides)?;
        check_no_overlap(problem.output_shape(), problem.output_strides)?;
        let visible = match options.mask {
            Mask::None => Band::of_sequences(None, None),
            Mask::CausalAligned(CausalAlign::BottomRight) => Band::of_sequences(None, Some(0)),
            Mask::Window { left, right, align: CausalAlign::BottomRight } => Band::of_sequences(left, right),
            mask => return Err(Unsupported::CacheMask { mask }.into()),
        };
        if let Some(got) = options.softmax_scale.filter(|scale| !(scale.is_finite() && *scale > 0.0)) {
            return Err(Unsupported::SoftmaxScale { got }.into());
        }
        check_soft_cap(options.soft_cap)?;
        let plan = Self {
            problem,
            options,
            softmax_scale: options.softmax_scale.unwrap_or((head_dim as f32).powf(-0.5)),
            padded_head_dim,
            visible,
            splits: 1,
        };
        if options.splits == Some(0) {
            return Err(Unsupported::Zero { argument: "splits" }.into());
        }
        let splits = options.splits.unwrap_or_else(|| plan.best_splits());
        at_most("splits", splits as u64, MAX_SPLITS as u64)?;
        let plan = Self { splits, ..plan };
        at_most("CTAs: batch * key_heads * splits * rows / 16", plan.ctas(), MAX_SIZE)?;
        tracing::debug!(?problem, ?options, splits, "steps on a cache planned");
        Ok(plan)
    }

    /// Shapes, strides and element type.
    pub fn problem(&self) -> &CacheProblem {
        &self.problem
    }

    /// The options.
    pub fn options(&self) -> &CacheOptions {
        &self.options
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> u64 {
        (self.problem.key_heads * self.blocks_per_page()) as u64 * block_bytes(self.padded_head_dim) as u64
    }

    /// Bytes of the cache.
    pub fn cache_bytes(&self) -> u64 {
        self.problem.pages as u64 * self.page_bytes()
    }

    /// Size of the GPU workspace that attention needs, in bytes: the outputs of all parts in f32, and their log-sum-exps.
    pub fn workspace_bytes(&self) -> u64 {
        self.log_sum_exps_offset() + (self.splits * self.rows()) as u64 * 4
    }

    /// Elements (f32) of the log-sum-exp, `[batch, query_heads, tokens]`; 0 without `return_lse`.
    pub fn log_sum_exp_len(&self) -> usize {
        if self.options.return_lse { self.rows() } else { 0 }
    }

    /// Parts that each sequence's keys are cut into.
    pub fn splits(&self) -> usize {
        self.splits
    }

    /// Where the parts' log-sum-exps are in the workspace.
    pub(crate) fn log_sum_exps_offset(&self) -> u64 {
        (self.splits * self.rows()) as u64 * self.padded_head_dim as u64 * 4
    }

    /// The softmax scale for scores in octaves.
    pub(crate) fn score_scale(&self) -> f32 {
        self.softmax_scale * LOG2_E
    }

    /// batch · query heads · tokens
    pub(crate) fn rows(&self) -> usize {
        self.problem.batch * self.problem.query_heads * self.problem.tokens
    }

    pub(crate) fn heads_per_key_head(&self) -> usize {
        self.problem.query_heads / self.problem.key_heads
    }

    pub(crate) fn blocks_per_page(&self) -> usize {
        self.problem.page_tokens / BLOCK_TOKENS as usize
    }

    /// Whether masks are counted from the last key and query.
    pub(crate) fn counts_from_last_key(&self) -> bool {
        self.options.mask != Mask::None
    }

    /// Whether what smoothed keys took out of the logits matters.
    pub(crate) fn has_log_sum_exp_shift(&self) -> bool {
        let CacheOptions { smooth_k, return_lse, sinks, soft_cap, .. } = self.options;
        smooth_k && (return_lse || sinks || soft_cap.is_some())
    }

    /// Rows of a key head: the queries of all heads that share it.
    fn rows_of_key_head(&self) -> usize {
        self.heads_per_key_head() * self.problem.tokens
    }

    /// The attention kernel's family.
    pub(crate) fn attention(&self) -> Family {
        if self.rows_of_key_head() <= WARP_ROWS as usize { Family::CacheAttention } else { Family::CacheAttentionWide }
    }

    /// CTAs for the rows of a key head.
    pub(crate) fn row_tiles(&self) -> usize {
        let warps = if self.attention() == Family::CacheAttention { 1 } else { 4 };
        self.rows_of_key_head().div_ceil(warps * WARP_ROWS as usize)
    }

    /// CTAs of the attention kernel.
    pub(crate) fn ctas(&self) -> u64 {
        let items = (self.problem.batch * self.problem.key_heads) as u64;
        items.saturating_mul((self.row_tiles() * self.splits) as u64)
    }

    fn best_splits(&self) -> usize {
        let most = (self.problem.capacity() / BLOCK_TOKENS as usize).div_ceil(LEAST_BLOCKS).min(MAX_SPLITS);
        let items = (self.problem.batch * self.problem.key_heads).saturating_mul(self.row_tiles());
        CTAS.div_ceil(items).min(most).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(problem: CacheProblem, options: CacheOptions) -> Result<CachePlan, Error> {
        CachePlan::new(problem, options)
    }

    fn problem() -> CacheProblem {
        CacheProblem::new(TensorLayout::Hnd, DType::F16, [4, 8, 1, 128], 2, 32768)
    }

    #[test]
    fn sizes_follow_from_the_problem() {
        let plan = plan(problem(), CacheOptions { splits: Some(3), return_lse: true, ..Default::default() }).unwrap();
        let block = 64 * (128 + 128 + 4 + 4);
        assert_eq!((plan.page_bytes(), plan.cache_bytes()), (2 * 2 * block, 4 * 256 * 2 * 2 * block));
        assert_eq!((plan.workspace_bytes(), plan.log_sum_exp_len()), (3 * 32 * (128 + 1) * 4, 32));
    }

    #[test]
    fn a_large_gpu_is_busy_and_parts_are_not_too_short() {
        let splits = |shape, capacity| {
            let problem = CacheProblem::new(TensorLayout::Hnd, DType::F16, shape, 8, capacity);
            plan(problem, CacheOptions::default()).unwrap().splits()
        };
        assert_eq!(splits([32, 64, 1, 128], 32768), 12);
        assert_eq!(splits([1, 64, 1, 128], 32768), 64);
        assert_eq!(splits([1, 64, 1, 128], 100), 1);
        assert_eq!(splits([1000, 64, 64, 128], 32768), 1);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |problem, options| match plan(problem, options) {
            Err(Error::Unsupported(reason)) => reason,
            other => panic!("{other:?}"),
        };
        let options = CacheOptions::default();
        assert_eq!(
            refused(CacheProblem { page_tokens: 32, ..problem() }, options),
            Unsupported::PageTokens { got: 32 }
        );
        assert_eq!(refused(CacheProblem { tokens: 0, ..problem() }, options), Unsupported::Zero { argument: "tokens" });
        let f32s = CacheProblem { dtype: DType::F32, ..problem() };
        assert_eq!(refused(f32s, options), Unsupported::CacheDType { got: DType::F32 });
        let few = CacheProblem { pages: 1023, ..problem() };
        assert!(matches!(refused(few, options), Unsupported::TooLarge { got: 1024, allowed: 1023, .. }));
        plan(few, CacheOptions { page_table: true, ..options }).unwrap();
        for mask in [Mask::Causal, Mask::CausalAligned(CausalAlign::TopLeft)] {
            assert_eq!(refused(problem(), CacheOptions { mask, ..options }), Unsupported::CacheMask { mask });
        }
        let zero = CacheOptions { soft_cap: Some(0.0), ..options };
        assert_eq!(refused(problem(), zero), Unsupported::SoftCap { got: 0.0 });
        for splits in [0, 129] {
            refused(problem(), CacheOptions { splits: Some(splits), ..options });
        }
    }
}
