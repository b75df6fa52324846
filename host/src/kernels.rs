//! The kernels of a call: which, in which order, with which parameters.
//!
//! ```text
//! counters = 0 ─► Prepare (f32, some rotations) ─► Quantize ─► Attention ─► output, log_sum_exp
//! ```
//!
//! Which attention kernel that is, the options and the GPU decide (`sage_layout::dispatch`).

use crate::error::Error;
use crate::gpu::GpuBuffers;
use crate::options::{CausalAlign, Mask, QkMode, RotaryTables, ScoreStrides};
use crate::plan::{AttentionPlan, Places, Resolved, modifies_scores};
use crate::quantized::Operand;
use crate::tensor::{DType, Lengths, SequenceLengths, Strides, TensorLayout, has_whole_chunks};
use crate::workspace::{BufferAddresses, Region, Values};
use sage_layout::architecture::ComputeCapability;
use sage_layout::dispatch::{self, Choice, Modes};
use sage_layout::int4_tile;
use sage_layout::kernel::{Family, Kernel};
use sage_layout::params::{
    Address, AttentionParams, MaskTilesParams, Modifiers, Params, PrepareParams, QuantizeParams, RotaryParams,
    ScoreView, SequencesParams, TensorView,
};
use sage_layout::scale;
use sage_layout::schedule::{ItemsPerHead, Order, QUERY_TILES, RAGGED_QUERY_TILES, counter};
use sage_layout::tile;

/// How many statistics items lie between a head's last and what depends on it, so that nobody waits for them: as many as are among the
/// two items that each of `resident` CTAs has at a time, the one at hand and the one that it claimed; and a tenth more. With more, less of
/// what is read twice is still in the L2 cache. Measured (`docs/performance.md`): where two fifths of the items are statistics, .85 to .95 of the
/// CTAs are best on an H200 (64 channels: 1); where a third were, .75 were on an H100. Other shares were not measured.
fn lag(resident: u32, per_head: &ItemsPerHead) -> u32 {
    let [statistics, others] = [per_head.statistics(), per_head.quantization()].map(u64::from);
    let in_flight = 2 * resident as u64 * statistics / (statistics + others).max(1);
    (in_flight + in_flight / 10) as u32
}

/// What tells whether it saves time to begin attention before everything is quantized: microseconds on an H200, to a factor of 1.5
/// (`docs/performance.md`). Of an item of attention, whatever it sees, and more for each key;
const ITEM_MICROS: f64 = 3.0;
const KEY_MICROS: f64 = 0.01;
/// and elements of queries, keys and values that are quantized in one.
const ELEMENTS_A_MICROSECOND: f64 = 1e6;

/// One call, or a part of it. All addresses that the part needs were checked; others may be 0.
pub(crate) struct Call<'a> {
    pub plan: &'a AttentionPlan,
    pub buffers: &'a GpuBuffers,
    /// The workspace's buffers, wherever they are.
    pub workspace: BufferAddresses,
    /// The quantizer.
    pub quantizer: Kernel,
    /// The attention kernel's family.
    pub attention: Family,
    /// CTAs that the device runs at a time.
    pub multiprocessors: u32,
    /// Whether attention begins before everything is quantized, on multiprocessors of its own ([`QuantizeParams::quantized_items`]). Only
    /// if it [`can`](Self::can_overlap).
    pub overlaps: bool,
}

/// What kernels must be able to do for these options.
pub(crate) fn modes(resolved: &Resolved) -> Modes {
    let options = &resolved.options;
    Modes {
        query_key: options.qk_mode,
        smooth_query: options.smooth_q,
        value: options.pv_mode,
        accumulator: options.pv_accum,
        ragged: resolved.is_ragged(),
        modified_scores: modifies_scores(options),
    }
}

/// The kernels that run a plan on a GPU, best first; none if there are none.
pub(crate) fn choices(gpu: ComputeCapability, plan: &AttentionPlan) -> impl Iterator<Item = Choice> {
    let resolved = &plan.resolved;
    let (head_dim, dtype) = (resolved.attended_head_dim(), resolved.problem.dtype);
    dispatch::choices(gpu, modes(resolved), resolved.turns_in_quantizer(), head_dim, dtype.into())
}

/// The error that a device has no kernels for a plan.
pub(crate) fn none(device: String, gpu: ComputeCapability, plan: &AttentionPlan) -> Error {
    let (head_dim, dtype) = (plan.resolved.attended_head_dim(), plan.resolved.problem.dtype);
    let wanted = modes(&plan.resolved);
    let allowed = |dtype: DType| {
        let served = dispatch::modes(gpu, head_dim, dtype.into()).filter(|served| served.ragged == wanted.ragged);
        served.map(|served| served.to_string()).collect::<Vec<_>>().join("; ")
    };
    let (allowed, with_f16) = (allowed(dtype), allowed(DType::F16));
    let allowed = match (allowed.is_empty(), with_f16.is_empty()) {
        (false, _) => allowed,
        (true, false) => format!("none with {dtype}, with {} for {with_f16}", DType::F16),
        (true, true) => "none".to_owned(),
    };
    Error::NoKernels { device, modes: wanted, allowed }
}

impl Call<'_> {
    /// The counters that must be 0 before [`quantize`](Self::quantize), and before [`attend`](Self::attend) if it did not come before
    /// it: their address, and how many bytes.
    pub fn counters(&self) -> (Address, u64) {
        let counters = self.plan.workspace.counters;
        (self.address(counters), counters.bytes())
    }

    /// Whether the attention kernel waits for key heads one by one, so that it can begin before everything is quantized.
    pub fn can_overlap(&self) -> bool {
        matches!(self.attention, Family::Attention | Family::AttentionF16)
    }

    /// Whether that saves time. Half of the multiprocessors quantize with a fifth less of their time than all, of which memory is the limit;
    /// the others must have as much to do meanwhile. But then not all begin at the same time, nor end, which costs up to half an item.
    pub fn gains_by_overlap(&self) -> bool {
        let resolved = &self.plan.resolved;
        let problem = &resolved.problem;
        let rows = [0, problem.query_len / 2, problem.query_len - 1];
        let keys = rows.map(|row| resolved.visible_keys(row).len()).into_iter().sum::<usize>() / rows.len();
        let items = resolved.places().query_heads * resolved.cta_places(self.cta_queries());
        let item = ITEM_MICROS + KEY_MICROS * keys as f64;
        let attention = item * f64::from(items) / f64::from(self.multiprocessors);
        let elements = Operand::ALL.map(|operand| problem.operand(operand).0.iter().product::<usize>());
        let quantization = elements.iter().sum::<usize>() as f64 / ELEMENTS_A_MICROSECOND;
        self.can_overlap() && attention >= 0.75 * quantization && item <= quantization / 2.0
    }

    /// Multiprocessors that quantize.
    fn quantizing_multiprocessors(&self) -> u32 {
        if self.overlaps { self.multiprocessors.div_ceil(2) } else { self.multiprocessors }
    }

    /// Where the quantizer counts what attention waits for; 0 if it does not.
    fn quantized_items(&self) -> Address {
        let Places { key_heads, segments, .. } = self.plan.resolved.places();
        match self.overlaps {
            true => self.address(self.plan.workspace.counters) + 4 * counter::quantized_of(0, key_heads, segments),
            false => 0,
        }
    }

    /// Everything before the attention kernel, for some of the operands.
    ///
    /// The counters must be 0. Queries alone, if they need the keys' mean, find it in the keys' buffer.
    pub fn quantize<E>(
        &self,
        operands: &[Operand],
        mut launch: impl FnMut(Family, [u32; 3], Params) -> Result<(), E>,
    ) -> Result<(), E> {
        let (resolved, workspace) = (&self.plan.resolved, &self.plan.workspace);
        let (problem, options) = (&resolved.problem, &resolved.options);
        for &operand in operands {
            if let Some(prepared) = workspace.prepared[operand as usize] {
                let params = self.prepare(operand, prepared);
                let ([batch, heads, ..], _) = problem.operand(operand);
                launch(Family::Prepare, [(batch * heads) as u32 * params.tiles, 1, 1], params.into())?;
            }
        }
        let [query, key, value] = self.inputs();

        let quantizing = self.quantizing_multiprocessors();
        let Places { key_heads, query_tiles, key_tiles, segments, .. } = resolved.places();
        let per_head = self.items_of_key_head(operands);
        let order = Order::new(key_heads, per_head, lag(quantizing * self.quantizer.min_blocks(), &per_head));
        let params = QuantizeParams {
            query,
            key,
            value,
            query_rotary: self.quantizer_rotary(Operand::Query),
            key_rotary: self.quantizer_rotary(Operand::Key),
            query_codes: self.address(workspace.query_codes),
            query_scales: self.address(workspace.query_scales),
            query_mean: self.address_if(workspace.query_mean),
            key_codes: self.address(workspace.key_codes),
            key_scales: self.address(workspace.key_scales),
            key_mean: self.address_if(workspace.key_mean),
            value_tiles: 0,
            value_scale: 0,
            value_inverse_scale: 0,
            value_mean: 0,
            value_mean_codes: 0,
            log_sum_exp_shift: self.address_if(workspace.log_sum_exp_shift),
            counters: self.address(workspace.counters),
            order,
            heads_per_key_head: self.heads_per_key_head(),
            granularity: options.granularity as u32,
            softmax_scale: resolved.softmax_scale,
            score_scale: resolved.score_scale(),
            largest_code: scale::largest_code(options.qk_mode),
            code_row_bytes: match options.qk_mode {
                QkMode::Int8 => resolved.padded_head_dim,
                QkMode::Int4 => int4_tile::row_bytes(resolved.padded_head_dim),
            },
            value_max: scale::largest_value(options.pv_accum),
            smooth_v: resolved.smooth_v.into(),
            query_tiles,
            key_tiles,
            segments,
            sequences: self.sequences(),
            quantized_items: self.quantized_items(),
            multiprocessors: quantizing,
            padding: 0,
        };
        let params = match workspace.values {
            Values::Fp8 { codes, scale, inverse_scale, mean, mean_codes } => QuantizeParams {
                value_tiles: self.address(codes),
                value_scale: self.address(scale),
                value_inverse_scale: self.address(inverse_scale),
                value_mean: self.address(mean),
                value_mean_codes: self.address(mean_codes),
                ..params
            },
            Values::F16 { tiles, mean } => {
                QuantizeParams { value_tiles: self.address(tiles), value_mean: self.address_if(mean), ..params }
            }
        };
        // a ragged batch's table is an item too
        let items = order.items + u32::from(resolved.is_ragged());
        // those too that leave their multiprocessor to attention
        let resident = self.multiprocessors * self.quantizer.min_blocks();
        launch(self.quantizer.family(), [items.min(resident), 1, 1], params.into())
    }

    /// What the quantizer does for each key head, for some of the operands.
    fn items_of_key_head(&self, operands: &[Operand]) -> ItemsPerHead {
        let resolved = &self.plan.resolved;
        let Places { query_tiles, key_tiles, .. } = resolved.places();
        let query_items = query_tiles.div_ceil(if resolved.is_ragged() { RAGGED_QUERY_TILES } else { QUERY_TILES });
        let of = |operand, tiles| if operands.contains(&operand) { tiles } else { 0 };
        ItemsPerHead {
            key_statistics: if resolved.options.smooth_k { of(Operand::Key, key_tiles) } else { 0 },
            value_statistics: match self.plan.workspace.values {
                Values::Fp8 { .. } => of(Operand::Value, key_tiles),
                Values::F16 { .. } if resolved.smooth_v => of(Operand::Value, key_tiles),
                Values::F16 { .. } => 0,
            },
            query: of(Operand::Query, query_items * self.heads_per_key_head()),
            key: of(Operand::Key, key_tiles),
            value: of(Operand::Value, key_tiles),
        }
    }

    /// The attention kernel.
    pub fn attend<E>(&self, mut launch: impl FnMut(Family, [u32; 3], Params) -> Result<(), E>) -> Result<(), E> {
        let (resolved, workspace) = (&self.plan.resolved, &self.plan.workspace);
        let problem = &resolved.problem;
        let output = self.view(self.buffers.output, problem.output_shape(), problem.output_strides);
        let [_, keys, _] = self.inputs();
        let is_persistent = self.attention.is_persistent();
        let resident = match is_persistent {
            // those that flush have a place each
            true => self.multiprocessors.min(resolved.flushing_ctas().unwrap_or(u32::MAX)),
            false => u32::MAX,
        };
        let sequences = self.sequences();
        let items = resolved.places().query_heads * sequences.cta_places;
        let from_last_key =
            resolved.is_ragged() && resolved.options.mask == Mask::CausalAligned(CausalAlign::BottomRight);
        let params = AttentionParams {
            query: self.address(workspace.query_codes),
            key: self.address(workspace.key_codes),
            value: 0,
            query_scale: self.address(workspace.query_scales),
            key_scale: self.address(workspace.key_scales),
            value_scale: 0,
            value_mean_codes: 0,
            // capped scores are not smoothed any more
            log_sum_exp_shift: match resolved.options.soft_cap {
                None => self.address_if(workspace.log_sum_exp_shift),
                Some(_) => 0,
            },
            log_sum_exp: self.buffers.log_sum_exp.unwrap_or(0),
            sinks: self.buffers.sinks.unwrap_or(0),
            claimed_items: self.address(workspace.counters) + 4 * counter::ATTENTION_CLAIMS,
            output,
            key_len: problem.key_len as u32,
            visible: resolved.visible,
            heads_per_key_head: self.heads_per_key_head(),
            items,
            tiles_per_flush: 0,
            heads_per_group: self.heads_per_group(),
            query_mean: self.address_if(workspace.query_mean),
            key_mean: self.address_if(workspace.key_mean),
            keys,
            score_scale: resolved.score_scale(),
            from_last_key: from_last_key.into(),
            output_is_f32: (problem.dtype == DType::F32).into(),
            sequences,
            log_sum_exp_strides: self.log_sum_exp_strides(),
            modifiers: self.modifiers(),
            flushed_output: self.address_if(workspace.flushed_output),
            quantized_items: self.quantized_items(),
            items_of_key_head: self.items_of_key_head(&Operand::ALL).quantization(),
            padding: 0,
        };
        let params = match workspace.values {
            Values::Fp8 { codes, scale, mean_codes, .. } => AttentionParams {
                value: self.address(codes),
                value_scale: self.address(scale),
                value_mean_codes: if resolved.smooth_v || is_persistent { self.address(mean_codes) } else { 0 },
                tiles_per_flush: resolved.tiles_per_flush(),
                ..params
            },
            Values::F16 { tiles, mean } => {
                AttentionParams { value: self.address(tiles), value_mean_codes: self.address_if(mean), ..params }
            }
        };
        if let (true, Some((tiles, params))) = (self.attention.modifies_scores(), self.mask_tiles()) {
            launch(Family::MaskTiles, [tiles, 1, 1], params.into())?;
        }
        launch(self.attention, [items.min(resident), 1, 1], params.into())
    }

    /// What looks through the boolean mask, if there is one, and how many tiles it has.
    fn mask_tiles(&self) -> Option<(u32, MaskTilesParams)> {
        let resolved = &self.plan.resolved;
        let (tiles, shape) = (self.plan.workspace.mask_tiles?, resolved.mask_tiles(self.cta_queries())?);
        let [_, heads, items, key_tiles] = shape;
        let mask = self.modifiers().boolean_mask;
        let rows = [mask.address as i64, mask.batch, mask.head, mask.query];
        let params = MaskTilesParams {
            mask,
            tiles: self.address(tiles),
            heads,
            items,
            key_tiles,
            queries: if mask.query == 0 { 1 } else { resolved.problem.query_len as u32 },
            item_queries: self.cta_queries(),
            keys: resolved.problem.key_len as u32,
            vectorized: (mask.key == 1 && rows.iter().all(|row| row % 16 == 0)).into(),
            padding: 0,
        };
        Some((shape.iter().product(), params))
    }

    /// What is done to scores.
    fn modifiers(&self) -> Modifiers {
        let options = self.plan.options();
        let view = |address: Option<Address>, strides: Option<ScoreStrides>| match (address, strides) {
            (Some(address), Some(ScoreStrides { batch, head, query, key })) => {
                ScoreView { address, batch, head, query, key }
            }
            _ => ScoreView::default(),
        };
        let soft_cap = options.soft_cap.unwrap_or(0.0);
        let mask_tiles = self.plan.workspace.mask_tiles.zip(self.plan.resolved.mask_tiles(self.cta_queries()));
        let mask_tiles = mask_tiles.map_or(ScoreView::default(), |(region, [batches, heads, items, tiles])| {
            // bytes from one to the next, none where all are the same
            let row = 4 * i64::from(tiles);
            let [query, head] = [row, row * i64::from(items)];
            let stride = |count: u32, bytes: i64| if count == 1 { 0 } else { bytes };
            ScoreView {
                address: self.address(region),
                batch: stride(batches, head * i64::from(heads)),
                head: stride(heads, head),
                query: stride(items, query),
                key: 4,
            }
        });
        Modifiers {
            soft_cap,
            inverse_soft_cap: 1.0 / soft_cap,
            score_shift: self.address_if(self.plan.workspace.log_sum_exp_shift),
            bias: view(self.buffers.bias, options.bias.map(|bias| bias.strides)),
            boolean_mask: view(self.buffers.boolean_mask, options.boolean_mask),
            mask_tiles,
            bias_type: options.bias.map_or(0, |bias| bias.dtype as u32),
            padding: 0,
        }
    }

    /// Without a mask all items are equally long, and in a window nearly so; then those that share keys best run together. Else, and
    /// with sequences of different lengths, more heads at a time let long items come first.
    fn heads_per_group(&self) -> u32 {
        let resolved = &self.plan.resolved;
        let Places { query_heads, key_tiles, .. } = resolved.places();
        match resolved.options.mask {
            Mask::None | Mask::Window { left: Some(_), right: Some(_), .. } if !resolved.is_ragged() => {
                self.heads_per_key_head()
            }
            _ => tile::cached_heads(query_heads, self.heads_per_key_head(), key_tiles, resolved.tile_bytes()),
        }
    }

    /// Queries of a CTA of the attention kernel.
    pub fn cta_queries(&self) -> u32 {
        match self.attention.is_persistent() {
            true => tile::cta_queries(self.plan.resolved.padded_head_dim),
            false => tile::MMA_QUERIES,
        }
    }

    /// What the kernels must know of the sequences.
    fn sequences(&self) -> SequencesParams {
        let resolved = &self.plan.resolved;
        let problem = &resolved.problem;
        let Places { sequences, query_tiles, key_tiles, segments, .. } = resolved.places();
        let (query_starts, key_starts, key_lens) = match self.buffers.lengths {
            SequenceLengths::Uniform => (0, 0, 0),
            SequenceLengths::PaddedKeys { kv_lens } => (0, 0, kv_lens),
            SequenceLengths::Packed { cu_seqlens_q, cu_seqlens_k } => (cu_seqlens_q, cu_seqlens_k, 0),
        };
        SequencesParams {
            table: self.address_if(self.plan.workspace.sequences),
            order: self.address_if(self.plan.workspace.sequence_order),
            query_starts,
            key_starts,
            key_lens,
            count: sequences,
            queries: problem.query_len as u32,
            keys: problem.key_len as u32,
            query_places: query_tiles / tile::CONSUMER_WARPGROUPS,
            key_places: key_tiles,
            segment_places: segments,
            cta_queries: self.cta_queries(),
            cta_places: resolved.cta_places(self.cta_queries()),
        }
    }

    /// Of a ragged batch; see [`AttentionParams::log_sum_exp_strides`].
    fn log_sum_exp_strides(&self) -> [u64; 2] {
        let problem = self.plan.problem();
        let [query_len, heads] = [problem.query_len, problem.query_heads].map(|size| size as u64);
        match problem.lengths {
            Lengths::PaddedKeys => [query_len, (heads - 1) * query_len],
            Lengths::Packed | Lengths::Uniform => [query_len, 0],
        }
    }

    fn heads_per_key_head(&self) -> u32 {
        let problem = self.plan.problem();
        (problem.query_heads / problem.key_heads) as u32
    }

    fn address(&self, region: Region) -> Address {
        region.address(&self.workspace)
    }

    /// A region's address, 0 if the plan has none.
    fn address_if(&self, region: Option<Region>) -> Address {
        region.map_or(0, |region| self.address(region))
    }

    /// The caller's queries, keys and values.
    fn tensors(&self) -> [(Address, [usize; 4], Strides); 3] {
        let buffers = self.buffers;
        let addresses = [buffers.query, buffers.key, buffers.value];
        Operand::ALL.map(|operand| {
            let (shape, strides) = self.plan.problem().operand(operand);
            (addresses[operand as usize], shape, strides)
        })
    }

    /// What prepares an operand.
    fn prepare(&self, operand: Operand, prepared: Region) -> PrepareParams {
        let (resolved, buffers) = (&self.plan.resolved, self.buffers);
        let (address, shape, strides) = self.tensors()[operand as usize];
        let starts = match (operand, buffers.lengths) {
            (Operand::Query, SequenceLengths::Packed { cu_seqlens_q, .. }) => cu_seqlens_q,
            (Operand::Key, SequenceLengths::Packed { cu_seqlens_k, .. }) => cu_seqlens_k,
            _ => 0,
        };
        PrepareParams {
            source: view(address, shape, strides),
            prepared: self.address(prepared),
            rotary: self.rotary(operand),
            starts,
            sequences: resolved.problem.batch as u32,
            tiles: tile::key_tiles(shape[2] as u32),
            row: resolved.prepared_row(operand).expect("an operand with a region to be prepared to") as u32,
            hadamard: (resolved.options.hadamard && operand != Operand::Value).into(),
        }
    }

    /// How an operand is turned.
    fn rotary(&self, operand: Operand) -> RotaryParams {
        let options = &self.plan.resolved.options;
        let (Some(rotary), Some(RotaryTables { cos, sin })) = (options.rotary, self.buffers.rotary) else {
            return RotaryParams::default();
        };
        let first_position = match operand {
            Operand::Query => rotary.query_offset,
            Operand::Key => rotary.key_offset,
            Operand::Value => return RotaryParams::default(),
        };
        RotaryParams {
            cos,
            sin,
            dim: rotary.dim as u32,
            pairs: rotary.pairs as u32,
            first_position: first_position as u32,
            positions: rotary.positions as u32,
        }
    }

    /// The same, if the quantizer does it.
    fn quantizer_rotary(&self, operand: Operand) -> RotaryParams {
        match self.plan.resolved.turns_in_quantizer() {
            true => self.rotary(operand),
            false => RotaryParams::default(),
        }
    }

    /// Queries, keys and values in 16 bits: the caller's, or what they were prepared to.
    fn inputs(&self) -> [TensorView; 3] {
        let tensors = self.tensors();
        Operand::ALL.map(|operand| {
            let (address, shape @ [batch, heads, tokens, _], strides) = tensors[operand as usize];
            let prepared = (self.plan.resolved.prepared_row(operand), self.plan.workspace.prepared[operand as usize]);
            match prepared {
                (Some(row), Some(region)) => {
                    let strides = TensorLayout::Hnd.strides(heads, tokens, row);
                    self.view(self.address(region), [batch, heads, tokens, row], strides)
                }
                _ => self.view(address, shape, strides),
            }
        })
    }

    /// A tensor; of a ragged batch, a sequence's first token is counted from the first one's.
    fn view(&self, address: Address, shape @ [_, _, tokens, _]: [usize; 4], strides: Strides) -> TensorView {
        let view = view(address, shape, strides);
        let batch = match self.plan.problem().lengths {
            Lengths::Uniform => strides.batch,
            Lengths::PaddedKeys => strides.batch - tokens as i64 * strides.token,
            Lengths::Packed => 0,
        };
        TensorView { strides: Strides { batch, ..strides }, ..view }
    }
}

/// A tensor whose address is a multiple of 16 bytes.
pub(crate) fn view(address: Address, shape @ [_, heads, tokens, head_dim]: [usize; 4], strides: Strides) -> TensorView {
    TensorView {
        address,
        strides,
        heads: heads as u32,
        tokens: tokens as u32,
        head_dim: head_dim as u32,
        vectorized: has_whole_chunks(shape, strides).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{AttentionOptions, PvMode, Rotary, RotaryPairs};
    use crate::tensor::{AttentionProblem, TensorLayout};

    /// What was measured as best, or near it, and nothing where nothing waits.
    #[test]
    fn statistics_are_ahead_by_what_is_in_flight() {
        let e4m3 = ItemsPerHead { key_statistics: 8, value_statistics: 8, query: 8, key: 8, value: 8 };
        let sixteen_bits = ItemsPerHead { value_statistics: 0, ..e4m3 };
        let values_alone = ItemsPerHead { key_statistics: 0, query: 0, key: 0, ..sixteen_bits };
        assert_eq!(lag(528, &e4m3), 464);
        assert_eq!(lag(528, &sixteen_bits), 290);
        assert_eq!(lag(528, &values_alone), 0);
    }

    /// Queries and keys are rotated once: before the quantizer, or by it.
    #[test]
    fn the_quantizer_turns_what_is_not_prepared() {
        let rotary = |dim, pairs| Rotary { dim, pairs, positions: 100, query_offset: 0, key_offset: 0 };
        let [interleaved, half_split] = RotaryPairs::ALL;
        let mut turned = 0;
        for (rotary, hadamard) in [
            (None, false),
            (None, true),
            (Some(rotary(48, half_split)), false),
            (Some(rotary(48, half_split)), true),
            (Some(rotary(40, half_split)), false),
            (Some(rotary(40, interleaved)), false),
            (Some(rotary(12, interleaved)), false),
        ] {
            for modes in dispatch::all_modes() {
                for dtype in [DType::F16, DType::Bf16, DType::F32] {
                    let problem = AttentionProblem::new(TensorLayout::Hnd, dtype, [1, 1, 100, 64]);
                    let options = AttentionOptions {
                        qk_mode: modes.query_key,
                        smooth_q: modes.smooth_query,
                        pv_mode: modes.value,
                        pv_accum: modes.accumulator,
                        soft_cap: modes.modified_scores.then_some(30.0),
                        rotary,
                        hadamard,
                        ..Default::default()
                    };
                    let problem = if modes.ragged { problem.with_padded_keys() } else { problem };
                    // bfloat16 has no sums in f16
                    let Ok(plan) = AttentionPlan::new(problem, options) else { continue };
                    let is_prepared =
                        [Operand::Query, Operand::Key].map(|operand| plan.resolved.prepared_row(operand).is_some());
                    for choice in dispatch::GPUS.into_iter().flat_map(|(gpu, _)| choices(gpu, &plan)) {
                        let turns = choice.quantize.family() == Family::QuantizeRotated;
                        let is_needed = dtype == DType::F32 || hadamard || rotary.is_some() && !turns;
                        assert_eq!(is_prepared, [is_needed; 2], "{choice:?}, {problem:?}, {options:?}");
                        assert!(!turns || rotary.is_some());
                        assert!(choice.quantize.exists_for(choice.architecture.ptx()), "{choice:?}");
                        turned += usize::from(turns);
                    }
                }
            }
        }
        assert_ne!(turned, 0);
    }

    #[test]
    fn the_error_says_what_other_element_types_have() {
        let on_turing = |dtype, pv_mode| {
            let problem = AttentionProblem::new(TensorLayout::Hnd, dtype, [1, 1, 64, 64]);
            let options = AttentionOptions { pv_mode, ..Default::default() };
            let plan = AttentionPlan::new(problem, options).expect("a plan for some GPU");
            none("a T4".to_owned(), ComputeCapability::new(7, 5), &plan).to_string()
        };
        assert_eq!(
            on_turing(DType::Bf16, PvMode::F16),
            "a T4 has no kernels for int8 Q·Kᵀ, 16-bit P·V in fp32; it has them for none with bf16, with f16 for int8 Q·Kᵀ, \
             16-bit P·V in fp32; int8 Q·Kᵀ, 16-bit P·V in fp16; int8 Q·Kᵀ, 16-bit P·V in fp16+fp32"
        );
        let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 1, 64, 64]);
        let options =
            AttentionOptions { soft_cap: Some(30.0), smooth_q: true, pv_mode: PvMode::F16, ..Default::default() };
        let plan = AttentionPlan::new(problem, options).expect("a plan for some GPU");
        let message = none("an A100".to_owned(), ComputeCapability::new(8, 0), &plan).to_string();
        let words = "an A100 has no kernels for int8 Q·Kᵀ with smoothed queries, scores capped, biased or masked, 16-bit P·V in fp32; \
                     it has them for";
        assert!(message.starts_with(words), "{message}");
        let message = on_turing(DType::F16, PvMode::Fp8);
        assert!(message.contains("fp8 P·V in fp32; it has them for int8 Q·Kᵀ, 16-bit P·V in fp32;"), "{message}");
    }
}
