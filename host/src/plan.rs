//! Checking a call, once, before anything runs: [`AttentionPlan`].

use crate::error::{Error, Unsupported};
use crate::options::{AttentionOptions, CausalAlign, Mask, PvAccum, PvMode, QkMode, Rotary, ScoreStrides};
use crate::quantized::Operand;
use crate::tensor::{AttentionProblem, DType, Lengths, Strides, extent, has_whole_chunks};
use crate::workspace::Workspace;
use sage_layout::visibility::Band;
use sage_layout::{int4_tile, sequence, tile};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Largest length or count: the kernels count in 32 bits, with room to add two.
pub(crate) const MAX_SIZE: u64 = (1 << 30) - 1;
/// Largest number of tiles: the quantizer counts its items, up to seven a tile, in 32 bits.
const MAX_TILES: u64 = (1 << 28) - 1;

/// What the operands have places for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// Query heads: over all batches, if sequences are equally long, else of one.
    pub query_heads: u32,
    /// Key heads, likewise.
    pub key_heads: u32,
    /// Sequences that a head has: 1 if they are equally long.
    pub sequences: u32,
    /// Query tiles of a head, of all its sequences.
    pub query_tiles: u32,
    /// Key tiles of a head.
    pub key_tiles: u32,
    /// Segments of a head.
    pub segments: u32,
}

/// A problem and its options after all checks, with everything that follows from them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Resolved {
    pub problem: AttentionProblem,
    pub options: AttentionOptions,
    /// The options' scale, or head_dim^-½ of the queries.
    pub softmax_scale: f32,
    /// Which keys a query sees.
    pub visible: Band,
    /// 64, 128 or 256: what the larger of the queries' and the values' head dimension is padded to.
    pub padded_head_dim: u32,
    /// The options' `smooth_v`, where it is a question: see there.
    pub smooth_v: bool,
}

impl Resolved {
    /// The softmax scale for scores in octaves.
    pub(crate) fn score_scale(&self) -> f32 {
        self.softmax_scale * LOG2_E
    }

    /// The keys that a query sees. Neither end of later queries is smaller.
    pub(crate) fn visible_keys(&self, query: usize) -> Range<usize> {
        let Range { start, end } = self.visible.visible_keys(query as u32, self.problem.key_len as u32);
        start as usize..end as usize
    }

    /// Whether what smoothed keys take out of every logit of a row is needed: for the log-sum-exp, and because sinks and a soft cap
    /// are about logits as they were before.
    pub(crate) fn has_log_sum_exp_shift(&self) -> bool {
        let options = &self.options;
        options.smooth_k && (options.return_lse || options.sinks || options.soft_cap.is_some())
    }

    /// Whether scores are modified before the softmax.
    pub(crate) fn modifies_scores(&self) -> bool {
        modifies_scores(&self.options)
    }

    /// Whether the quantizer turns queries and keys itself: of equally long sequences, from 16 bits to INT8, without a Hadamard rotation,
    /// and without smoothed queries, which need turned keys in memory; pairs and tensors must be of chunks that its threads have whole.
    pub(crate) fn turns_in_quantizer(&self) -> bool {
        let AttentionOptions { rotary, hadamard, qk_mode, smooth_q, .. } = self.options;
        let has_whole_chunks = |operand| {
            let (shape, strides) = self.problem.operand(operand);
            has_whole_chunks(shape, strides)
        };
        rotary.is_some_and(|rotary| rotary.pairs.are_whole_chunks(rotary.dim as u32))
            && Operand::ALL.into_iter().all(has_whole_chunks)
            && !self.is_ragged()
            && self.problem.dtype != DType::F32
            && (qk_mode, smooth_q, hadamard) == (QkMode::Int8, false, false)
    }

    /// Channels of the rows that an operand is prepared to, before it is quantized: with what pads them, to whole chunks of eight; all of
    /// the kernels' after a Hadamard rotation. `None` if it is quantized as it is.
    pub(crate) fn prepared_row(&self, operand: Operand) -> Option<usize> {
        let AttentionOptions { rotary, hadamard, .. } = self.options;
        let ([.., head_dim], _) = self.problem.operand(operand);
        let may_rotate = operand != Operand::Value;
        let is_turned = may_rotate && rotary.is_some() && !self.turns_in_quantizer();
        match may_rotate && hadamard {
            true => Some(self.padded_head_dim as usize),
            false if self.problem.dtype == DType::F32 || is_turned => Some(head_dim.next_multiple_of(8)),
            false => None,
        }
    }

    /// Channels that attention multiplies, which may be fewer than operands are stored with: of queries and keys or of values, whichever
    /// have more; all after a Hadamard rotation, which leaves none of them 0.
    pub(crate) fn attended_head_dim(&self) -> u32 {
        let AttentionProblem { head_dim, value_head_dim, .. } = self.problem;
        if self.options.hadamard { self.padded_head_dim } else { head_dim.max(value_head_dim) as u32 }
    }

    /// Whether any is.
    pub(crate) fn prepares(&self) -> bool {
        Operand::ALL.iter().any(|&operand| self.prepared_row(operand).is_some())
    }

    /// Tiles of the boolean mask that the GPU looks through before attention: batches, heads, items of so many queries, key tiles, each 1
    /// where all are the same. `None` without a mask, or if it would be too many, which no mask in memory is that has an element for each.
    pub(crate) fn mask_tiles(&self, item_queries: u32) -> Option<[u32; 4]> {
        let ScoreStrides { batch, head, query, .. } = self.options.boolean_mask?;
        let [batches, heads, queries, keys] = self.problem.score_shape().map(|size| size as u32);
        let each = |stride: i64, count: u32| if stride == 0 { 1 } else { count };
        let items = each(query, queries.div_ceil(item_queries));
        let shape = [each(batch, batches), each(head, heads), items, tile::key_tiles(keys)];
        let count = shape.iter().try_fold(1u32, |count, &size| count.checked_mul(size))?;
        (count <= i32::MAX as u32).then_some(shape)
    }

    /// Key tiles after which Hopper's kernels empty the accumulators of e4m3 values.
    pub(crate) fn tiles_per_flush(&self) -> u32 {
        if self.smooth_v { tile::TILES_PER_FLUSH } else { tile::UNSMOOTHED_TILES_PER_FLUSH }
    }

    /// CTAs whose outputs Hopper's kernels empty into the workspace: those that run at a time, if shared memory has no room.
    pub(crate) fn flushing_ctas(&self) -> Option<u32> {
        let AttentionOptions { pv_mode, pv_accum, .. } = self.options;
        let is_hoppers = pv_mode == PvMode::Fp8 && pv_accum != PvAccum::F32F16 && !self.is_ragged();
        let Places { query_heads, key_tiles, .. } = self.places();
        let is_flushed = self.padded_head_dim > 128 && key_tiles > self.tiles_per_flush();
        let items = query_heads * self.cta_places(tile::cta_queries(self.padded_head_dim));
        (is_hoppers && is_flushed).then(|| items.min(tile::MAX_WIDE_CTAS))
    }

    /// Bytes of a key tile and its value tile.
    pub(crate) fn tile_bytes(&self) -> u32 {
        let value = match self.options.pv_mode {
            PvMode::Fp8 => tile::key_tile_bytes(self.padded_head_dim),
            PvMode::F16 => tile::value_tile_bytes(self.padded_head_dim),
        };
        let key = match self.options.qk_mode {
            QkMode::Int8 => tile::key_tile_bytes(self.padded_head_dim),
            QkMode::Int4 => int4_tile::tile_bytes(tile::KEY_TILE, self.padded_head_dim),
        };
        key + value
    }

    /// Whether sequences differ in length.
    pub(crate) fn is_ragged(&self) -> bool {
        self.problem.lengths != Lengths::Uniform
    }

    /// Queries and keys of all sequences of a head, with what pads them.
    fn tokens(&self) -> [u32; 2] {
        let AttentionProblem { batch, query_len, key_len, lengths, .. } = self.problem;
        let sequences = if lengths == Lengths::PaddedKeys { batch } else { 1 };
        [query_len, key_len].map(|len| (sequences * len) as u32)
    }

    /// Places for CTAs of so many queries, of a head.
    pub(crate) fn cta_places(&self, queries: u32) -> u32 {
        match self.is_ragged() {
            false => (self.problem.query_len as u32).div_ceil(queries),
            true => sequence::places(self.tokens()[0], self.problem.batch as u32, queries),
        }
    }

    /// How many of everything there are in the workspace.
    pub(crate) fn places(&self) -> Places {
        let AttentionProblem { batch, query_heads, key_heads, key_len, .. } = self.problem;
        let [batch, query_heads, key_heads] = [batch, query_heads, key_heads].map(|count| count as u32);
        let query_tiles = self.cta_places(tile::CTA_QUERIES) * tile::CONSUMER_WARPGROUPS;
        match self.is_ragged() {
            false => Places {
                query_heads: batch * query_heads,
                key_heads: batch * key_heads,
                sequences: 1,
                query_tiles,
                key_tiles: tile::key_tiles(key_len as u32),
                segments: tile::segments(key_len as u32),
            },
            true => {
                let places = |size| sequence::places(self.tokens()[1], batch, size);
                let (key_tiles, segments) = (places(tile::KEY_TILE), places(tile::SEGMENT_KEYS));
                Places { query_heads, key_heads, sequences: batch, query_tiles, key_tiles, segments }
            }
        }
    }

    /// The problem of one of its sequences alone, which has queries and keys.
    pub(crate) fn of_sequence(&self, queries: usize, keys: usize) -> Self {
        let lengths = Lengths::Uniform;
        let problem = AttentionProblem { batch: 1, query_len: queries, key_len: keys, lengths, ..self.problem };
        Self::derive(problem, self.options)
    }

    /// Derives what follows from a problem and options that are known to be valid.
    pub(crate) fn derive(problem: AttentionProblem, options: AttentionOptions) -> Self {
        let is_ragged = problem.lengths != Lengths::Uniform;
        let window = |left, right, align| {
            let shift = match align {
                // each sequence has its own
                _ if is_ragged => return Band::of_sequences(left, right),
                CausalAlign::TopLeft => 0,
                CausalAlign::BottomRight => problem.key_len as i32 - problem.query_len as i32,
            };
            Band::window(shift, left, right, problem.key_len as u32)
        };
        let visible = match options.mask {
            Mask::None if is_ragged => Band::of_sequences(None, None),
            Mask::None => Band::all(problem.key_len as u32),
            Mask::Causal => window(None, Some(0), CausalAlign::TopLeft),
            Mask::CausalAligned(align) => window(None, Some(0), align),
            Mask::Window { left, right, align } => window(left, right, align),
        };
        Self {
            problem,
            options,
            softmax_scale: options.softmax_scale.unwrap_or((problem.head_dim as f32).powf(-0.5)),
            visible,
            padded_head_dim: padded_head_dim(problem.head_dim, problem.value_head_dim).expect("checked"),
            smooth_v: options.smooth_v
                && match (options.pv_mode, options.pv_accum) {
                    (PvMode::Fp8, PvAccum::F32) => problem.key_len > tile::KEY_TILE as usize,
                    (PvMode::F16, PvAccum::F16) => true,
                    _ => false,
                },
        }
    }
}

/// An attention call that was checked and can run any number of times, on any device.
///
/// A plan holds no memory and no device state. On the GPU, [`prepare`](Self::prepare) it and enqueue it on a stream of
/// yours, with a workspace of yours; [`attention()`](crate::attention()) does that for slices in host memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionPlan {
    pub(crate) resolved: Resolved,
    pub(crate) workspace: Workspace,
}

impl AttentionPlan {
    /// Checks a problem and its options.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`], with what [`supports`] says.
    pub fn new(problem: AttentionProblem, options: AttentionOptions) -> Result<Self, Error> {
        supports(&problem, &options)?;
        let resolved = Resolved::derive(problem, options);
        let workspace = Workspace::new(&resolved);
        tracing::debug!(?problem, ?options, workspace_bytes = workspace.bytes(), "attention planned");
        Ok(Self { resolved, workspace })
    }

    /// Shapes, strides and element type.
    pub fn problem(&self) -> &AttentionProblem {
        &self.resolved.problem
    }

    /// The options.
    pub fn options(&self) -> &AttentionOptions {
        &self.resolved.options
    }

    /// The scale that is used: the options' one, or `head_dim`^-½.
    pub fn softmax_scale(&self) -> f32 {
        self.resolved.softmax_scale
    }

    /// Size of the GPU workspace, in bytes. It holds the quantized operands, so it grows with the lengths, never with
    /// their product.
    pub fn workspace_bytes(&self) -> u64 {
        self.workspace.bytes()
    }

    /// Elements (f32) of the log-sum-exp, `[batch, query_heads, query_len]`, or `[query_heads, query_len]` with
    /// [`Lengths::Packed`]; 0 without `return_lse`.
    pub fn log_sum_exp_len(&self) -> usize {
        let [batch, heads, queries, _] = self.problem().query_shape();
        if self.options().return_lse { batch * heads * queries } else { 0 }
    }

    /// What the kernels write into the workspace: name, offset and length in bytes. For tests of the kernels.
    #[doc(hidden)]
    pub fn workspace_regions(&self) -> Vec<(&'static str, Range<u64>)> {
        self.workspace.regions()
    }
}

/// Whether a problem and its options can be computed; a framework may route the call elsewhere if not.
///
/// This says nothing about the device: kernels for every supported GPU, and the CPU, take the same problems.
///
/// # Errors
///
/// The first reason that is found against it.
pub fn supports(problem: &AttentionProblem, options: &AttentionOptions) -> Result<(), Unsupported> {
    let AttentionProblem { batch, query_heads, key_heads, query_len, key_len, head_dim, value_head_dim, .. } = *problem;
    for (argument, size) in [
        ("batch", batch),
        ("query_heads", query_heads),
        ("key_heads", key_heads),
        ("query_len", query_len),
        ("key_len", key_len),
    ] {
        if size == 0 {
            return Err(Unsupported::Zero { argument });
        }
        at_most(argument, size as u64, MAX_SIZE)?;
    }
    padded_head_dim(head_dim, value_head_dim)?;
    if query_heads % key_heads != 0 {
        return Err(Unsupported::HeadRatio { query_heads, key_heads });
    }
    // Batch and heads are under 2³⁰, so that 64 bits hold their product; with the tiles it may saturate.
    if problem.lengths == Lengths::Uniform {
        let query_tiles = ((batch * query_heads) as u64).saturating_mul(tile::query_ctas(query_len as u32) as u64);
        at_most("batch * query_heads * query tiles (192 queries each)", query_tiles, MAX_TILES)?;
        let key_tiles = ((batch * key_heads) as u64).saturating_mul(tile::key_tiles(key_len as u32) as u64);
        at_most("batch * key_heads * key tiles (128 keys each)", key_tiles, MAX_TILES)?;
    } else {
        check_ragged(problem, options)?;
    }

    check_strides("query", problem.query_shape(), problem.query_strides)?;
    check_strides("key", problem.key_shape(), problem.key_strides)?;
    check_strides("value", problem.value_shape(), problem.value_strides)?;
    check_strides("output", problem.output_shape(), problem.output_strides)?;
    check_no_overlap(problem.output_shape(), problem.output_strides)?;

    if options.mask == Mask::Causal && problem.lengths != Lengths::Uniform {
        return Err(Unsupported::CausalLengths { lengths: problem.lengths });
    }
    if options.mask == Mask::Causal && query_len != key_len {
        return Err(Unsupported::AmbiguousCausal { query_len, key_len });
    }
    let allowed = match (options.pv_mode, problem.dtype) {
        (PvMode::F16, DType::Bf16) => &[PvAccum::F32],
        (mode, _) => PvAccum::of(mode),
    };
    if !allowed.contains(&options.pv_accum) {
        let AttentionOptions { pv_accum, pv_mode, .. } = *options;
        return Err(Unsupported::PvAccum { pv_accum, pv_mode, dtype: problem.dtype, allowed });
    }
    let bias = options.bias.map(|bias| bias.strides);
    for (tensor, strides) in [("bias", bias), ("boolean_mask", options.boolean_mask)] {
        let Some(strides) = strides else { continue };
        for (axis, got) in strides.axes() {
            if got < 0 {
                return Err(Unsupported::NegativeStride { tensor, axis, got });
            }
        }
        if strides.extent(problem.score_shape()).is_none() {
            return Err(Unsupported::TooFar { tensor });
        }
    }
    if let Some(rotary) = options.rotary {
        check_rotary(problem, &rotary)?;
    }
    check_soft_cap(options.soft_cap)?;
    match options.softmax_scale {
        Some(scale) if !(scale.is_finite() && scale > 0.0) => Err(Unsupported::SoftmaxScale { got: scale }),
        _ => Ok(()),
    }
}

/// A cap is a positive number, and not so small that its inverse is none.
pub(crate) fn check_soft_cap(soft_cap: Option<f32>) -> Result<(), Unsupported> {
    match soft_cap.filter(|cap| !(cap.is_normal() && *cap > 0.0)) {
        Some(got) => Err(Unsupported::SoftCap { got }),
        None => Ok(()),
    }
}

/// Whether scores are modified before the softmax.
pub(crate) fn modifies_scores(options: &AttentionOptions) -> bool {
    options.soft_cap.is_some() || options.bias.is_some() || options.boolean_mask.is_some()
}

/// An input that is there if the options ask for it, and only then.
pub(crate) fn wanted<T>(argument: &'static str, wanted: bool, input: Option<T>) -> Result<Option<T>, Error> {
    if input.is_some() == wanted { Ok(input) } else { Err(Error::CallInput { argument, wanted }) }
}

/// What sequences of different lengths allow. Lengths and counts are under 2³⁰.
fn check_ragged(problem: &AttentionProblem, options: &AttentionOptions) -> Result<(), Unsupported> {
    let AttentionProblem { batch, query_heads, key_heads, query_len, key_len, lengths, .. } = *problem;
    if lengths == Lengths::PaddedKeys {
        at_most("batch * query_len", (batch * query_len) as u64, MAX_SIZE)?;
        at_most("batch * key_len", (batch * key_len) as u64, MAX_SIZE)?;
    }
    let copies = if lengths == Lengths::PaddedKeys { batch } else { 1 };
    // each sequence takes a place more than its tokens do
    let places = |heads: usize, tokens: usize, size: u32| {
        (heads as u64).saturating_mul(sequence::places((copies * tokens) as u32, batch as u32, size) as u64)
    };
    let query_ctas = places(query_heads, query_len, tile::MMA_QUERIES);
    at_most("query_heads * (queries / 128 + batch)", query_ctas, MAX_TILES)?;
    at_most("key_heads * (keys / 128 + batch)", places(key_heads, key_len, tile::KEY_TILE), MAX_TILES)?;
    let refused = |option, allowed| Err(Unsupported::Lengths { option, lengths, allowed });
    // packed sequences' logits are no tensor
    let with_scores = &[Lengths::Uniform, Lengths::PaddedKeys];
    match options {
        AttentionOptions { bias: Some(_), .. } if !with_scores.contains(&lengths) => refused("bias", with_scores),
        AttentionOptions { boolean_mask: Some(_), .. } if !with_scores.contains(&lengths) => {
            refused("boolean_mask", with_scores)
        }
        AttentionOptions { smooth_q: true, .. } => refused("smooth_q", &[Lengths::Uniform]),
        AttentionOptions { qk_mode: QkMode::Int4, .. } => refused("qk_mode Int4", &[Lengths::Uniform]),
        _ => Ok(()),
    }
}

/// The rotary embedding's channels, and that its tables have the positions of all tokens; of packed sequences, of one token each: how
/// long they are, the call says.
fn check_rotary(problem: &AttentionProblem, rotary: &Rotary) -> Result<(), Unsupported> {
    let Rotary { dim, positions, .. } = *rotary;
    let head_dim = problem.head_dim;
    if dim % 2 != 0 || dim == 0 || dim > head_dim {
        return Err(Unsupported::RotaryDim { got: dim, head_dim });
    }
    at_most("rotary positions", positions as u64, MAX_SIZE)?;
    match problem.lengths {
        Lengths::Packed => check_positions(rotary, [1, 1]),
        Lengths::Uniform | Lengths::PaddedKeys => check_positions(rotary, [problem.query_len, problem.key_len]),
    }
}

/// Whether the tables have the positions of so many queries and keys, which are under 2³⁰.
pub(crate) fn check_positions(rotary: &Rotary, tokens: [usize; 2]) -> Result<(), Unsupported> {
    let Rotary { positions: got, query_offset, key_offset, .. } = *rotary;
    for ((tensor, offset), tokens) in [("query", query_offset), ("key", key_offset)].into_iter().zip(tokens) {
        let needed = offset.saturating_add(tokens);
        if needed > got {
            return Err(Unsupported::RotaryPositions { got, tensor, needed, tokens, offset });
        }
    }
    Ok(())
}

/// What the kernels' head dimension is for these of queries and of values.
pub(crate) fn padded_head_dim(head_dim: usize, value_head_dim: usize) -> Result<u32, Unsupported> {
    let padded = |argument, got: usize| {
        let padded = u32::try_from(got).ok().and_then(tile::padded_head_dim);
        padded.ok_or(Unsupported::HeadDim { argument, got })
    };
    Ok(padded("head_dim", head_dim)?.max(padded("value_head_dim", value_head_dim)?))
}

pub(crate) fn at_most(argument: &'static str, got: u64, allowed: u64) -> Result<(), Unsupported> {
    if got > allowed { Err(Unsupported::TooLarge { argument, got, allowed }) } else { Ok(()) }
}

fn axes(shape: [usize; 4], strides: Strides) -> [(&'static str, usize, i64); 3] {
    let [batch, heads, tokens, _] = shape;
    [("batch", batch, strides.batch), ("head", heads, strides.head), ("token", tokens, strides.token)]
}

pub(crate) fn check_strides(tensor: &'static str, shape: [usize; 4], strides: Strides) -> Result<(), Unsupported> {
    for (axis, _, got) in axes(shape, strides) {
        if got < 0 {
            return Err(Unsupported::NegativeStride { tensor, axis, got });
        }
    }
    match extent(shape, strides) {
        Some(_) => Ok(()),
        None => Err(Unsupported::TooFar { tensor }),
    }
}

/// Every axis must step over everything that the axes with smaller strides span. Strides are known to be sound.
pub(crate) fn check_no_overlap(shape: [usize; 4], strides: Strides) -> Result<(), Unsupported> {
    let mut axes = axes(shape, strides);
    axes.sort_by_key(|&(_, _, stride)| stride);
    let mut span = shape[3] as i64;
    for (axis, size, stride) in axes {
        if size > 1 && stride < span {
            return Err(Unsupported::OverlappingOutput { axis, got: stride, needed: span });
        }
        span += (size as i64 - 1) * stride;
    }
    Ok(())
}
