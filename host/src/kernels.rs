//! The kernels of a call: which, in which order, with which parameters.
//!
//! ```text
//! key ───► ChannelStatistics ─► KeyMean ──┬─► QuantizeKey ───┐
//! query ──────────────────────────────────┴─► QuantizeQuery ─┤
//! value ─► ChannelStatistics ─► ValueScale ─► QuantizeValue ─┴─► Attention ─► output, log_sum_exp
//! ```
//!
//! The first line's statistics are there only with `smooth_k`. With [`PvMode::F16`](crate::PvMode::F16) the last line is
//! `value ─► TileValue ─► AttentionF16`. Each kernel finds what the ones before it wrote.

use crate::gpu::GpuBuffers;
use crate::options::Mask;
use crate::plan::AttentionPlan;
use crate::tensor::Strides;
use crate::workspace::{Region, Values};
use sage_layout::kernel::Family;
use sage_layout::params::{
    Address, AttentionParams, ChannelStatisticsParams, KeyMeanParams, Params, QuantizeKeyParams, QuantizeQueryParams,
    QuantizeValueParams, TensorView, TileValueParams, ValueScaleParams,
};
use sage_layout::tile;

/// One call. All addresses were checked.
pub(crate) struct Call<'a> {
    pub plan: &'a AttentionPlan,
    pub buffers: &'a GpuBuffers,
    /// CTAs that the device runs at a time.
    pub multiprocessors: u32,
}

impl Call<'_> {
    /// Everything before the attention kernel.
    pub fn quantize<E>(&self, mut launch: impl FnMut(Family, [u32; 3], Params) -> Result<(), E>) -> Result<(), E> {
        let (resolved, workspace) = (&self.plan.resolved, &self.plan.workspace);
        let (problem, options) = (&resolved.problem, &resolved.options);
        let query = self.view(self.buffers.query, problem.query_shape(), problem.query_strides);
        let key = self.view(self.buffers.key, problem.key_shape(), problem.key_strides);
        let value = self.view(self.buffers.value, problem.key_shape(), problem.value_strides);

        let segments = tile::segments(key.tokens);
        let key_tiles = tile::key_tiles(key.tokens);
        let query_tiles = tile::padded_queries(query.tokens) / tile::WARPGROUP_ROWS;
        let grid = |tiles: u32, view: &TensorView| [tiles, view.heads, problem.batch as u32];
        let key_heads = [problem.batch as u32 * key.heads, 1, 1];

        if options.smooth_k {
            let sum = self.address_if(workspace.key_sum);
            let statistics = ChannelStatisticsParams { input: key, sum, min: 0, max: 0 };
            launch(Family::ChannelStatistics, grid(segments, &key), statistics.into())?;
            let mean = self.address_if(workspace.key_mean);
            let key_mean = KeyMeanParams { sum, mean, tokens: key.tokens, reserved: 0 };
            launch(Family::KeyMean, key_heads, key_mean.into())?;
        }
        if let Values::Fp8 { sum, min, max, mean, mean_codes, scale, inverse_scale, .. } = workspace.values {
            let [sum, min, max] = [sum, min, max].map(|region| self.address(region));
            let statistics = ChannelStatisticsParams { input: value, sum, min, max };
            launch(Family::ChannelStatistics, grid(segments, &value), statistics.into())?;
            let value_scale = ValueScaleParams {
                sum,
                min,
                max,
                mean: self.address(mean),
                mean_codes: self.address(mean_codes),
                scale: self.address(scale),
                inverse_scale: self.address(inverse_scale),
                tokens: value.tokens,
                smooth: resolved.smooth_v.into(),
            };
            launch(Family::ValueScale, key_heads, value_scale.into())?;
        }

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
        launch(Family::QuantizeQuery, grid(query_tiles, &query), quantize_query.into())?;
        let quantize_key = QuantizeKeyParams {
            input: key,
            codes: self.address(workspace.key_codes),
            scales: self.address(workspace.key_scales),
            mean: self.address_if(workspace.key_mean),
            granularity: options.granularity as u32,
            reserved: 0,
        };
        launch(Family::QuantizeKey, grid(key_tiles, &key), quantize_key.into())?;
        match workspace.values {
            Values::Fp8 { codes, inverse_scale, mean, .. } => {
                let quantize_value = QuantizeValueParams {
                    input: value,
                    codes: self.address(codes),
                    inverse_scale: self.address(inverse_scale),
                    mean: self.address(mean),
                };
                launch(Family::QuantizeValue, grid(key_tiles, &value), quantize_value.into())
            }
            Values::F16 { tiles } => {
                let tile_value = TileValueParams { input: value, tiles: self.address(tiles) };
                launch(Family::TileValue, grid(key_tiles, &value), tile_value.into())
            }
        }
    }

    /// The attention kernel.
    pub fn attend<E>(&self, mut launch: impl FnMut(Family, [u32; 3], Params) -> Result<(), E>) -> Result<(), E> {
        let (resolved, workspace) = (&self.plan.resolved, &self.plan.workspace);
        let problem = &resolved.problem;
        let output = self.view(self.buffers.output, problem.query_shape(), problem.output_strides);
        let items = problem.batch as u32 * output.heads * tile::query_ctas(output.tokens);
        let params = AttentionParams {
            query: self.address(workspace.query_codes),
            key: self.address(workspace.key_codes),
            value: 0,
            query_scale: self.address(workspace.query_scales),
            key_scale: self.address(workspace.key_scales),
            value_scale: 0,
            value_mean_codes: 0,
            log_sum_exp_shift: self.address_if(workspace.log_sum_exp_shift),
            log_sum_exp: self.buffers.log_sum_exp.unwrap_or(0),
            claimed_items: self.address(workspace.claimed_items),
            output,
            key_len: problem.key_len as u32,
            diagonal: resolved.diagonal,
            heads_per_key_head: self.heads_per_key_head(),
            items,
            tiles_per_flush: 0,
            heads_per_group: self.heads_per_group(),
        };
        let (family, params) = match workspace.values {
            Values::Fp8 { codes, scale, mean_codes, .. } => {
                let params = AttentionParams {
                    value: self.address(codes),
                    value_scale: self.address(scale),
                    value_mean_codes: self.address(mean_codes),
                    tiles_per_flush: match resolved.smooth_v {
                        true => tile::TILES_PER_FLUSH,
                        false => tile::UNSMOOTHED_TILES_PER_FLUSH,
                    },
                    ..params
                };
                (Family::Attention, Params::Attention(params))
            }
            Values::F16 { tiles } => {
                let params = AttentionParams { value: self.address(tiles), ..params };
                (Family::AttentionF16, Params::AttentionF16(params))
            }
        };
        launch(family, [items.min(self.multiprocessors), 1, 1], params)
    }

    /// Without a mask all items are equally long, and those that share keys best run together. With one, more heads at a
    /// time let long items come first.
    fn heads_per_group(&self) -> u32 {
        let resolved = &self.plan.resolved;
        let problem = &resolved.problem;
        match resolved.options.mask {
            Mask::None => self.heads_per_key_head(),
            Mask::Causal | Mask::CausalAligned(_) => tile::cached_heads(
                (problem.batch * problem.query_heads) as u32,
                self.heads_per_key_head(),
                problem.key_len as u32,
                resolved.tile_bytes(),
            ),
        }
    }

    fn heads_per_key_head(&self) -> u32 {
        let problem = self.plan.problem();
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
}
