//! Queries, keys and values to codes and scales, with the GPU's bits.
//!
//! The rules are `sage_layout`'s: groups and scales in [`scale`], rounding in [`round`](sage_layout::round), the order
//! of summation in [`statistics`]. All arithmetic is f32, each operation rounded to nearest even on its own: no fused
//! multiply-adds, here or in the GPU's quantizer.

use rayon::prelude::*;
use sage_layout::round::e4m3_from_f32;
use sage_layout::scale::{self, Granularity, KEY_SCALES_PER_TILE, QUERY_SCALES_PER_TILE};
use sage_layout::statistics;
use sage_layout::tile::{
    KEY_TILE, QUERY_BLOCK, SEGMENT_KEYS, WARPGROUP_ROWS, key_tiles, padded_queries, query_blocks, segments,
};

use super::view::View;
use super::zeroed;
use crate::element::Element;
use crate::error::Error;
use crate::options::{PvMode, QkMode};
use crate::plan::Resolved;

pub(super) const QUERY_TILE: usize = WARPGROUP_ROWS as usize;
pub(super) const TILE: usize = KEY_TILE as usize;
pub(super) const BLOCK: usize = QUERY_BLOCK as usize;
const SEGMENT: usize = SEGMENT_KEYS as usize;
pub(super) const MAX_WIDTH: usize = sage_layout::tile::MAX_HEAD_DIM as usize;

/// Quantized queries, keys and values (SageAttention2, section 3).
///
/// "Query heads" below counts all batches' query heads, "key heads" all batches' key heads. Lengths are padded as
/// [`sage_layout::tile`] says, channels to the padded head dimension (`width`); padding has code 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantized {
    /// 64, 128 or 256.
    pub width: usize,
    /// What codes there are.
    pub qk_mode: QkMode,
    /// `[query heads][padded queries][width]`: of the queries less their block's mean. A byte each, in INT4 too.
    pub query_codes: Vec<i8>,
    /// `[query heads][padded queries / 2]`, by [`scale::query_scale_index`]: what a code is worth, times the softmax
    /// scale and log₂ e.
    pub query_scales: Vec<f32>,
    /// `[key heads][key tiles · 128][width]`: of the keys less their mean.
    pub key_codes: Vec<i8>,
    /// `[key heads][key tiles · 4]`, by [`scale::key_scale_index`].
    pub key_scales: Vec<f32>,
    /// With [`PvMode::F16`]: the values' bits, `[key heads][key tiles · 128][width]`, less `output_mean` if that is there; and
    /// the next four are empty.
    pub value_elements: Vec<u16>,
    /// e4m3 `[key heads][key tiles · 128][width]`: of the values less their segment's mean.
    pub value_codes: Vec<u8>,
    /// `[key heads][width]`.
    pub value_scales: Vec<f32>,
    /// `[key heads][segments][width]`: the values' channel means; zeros without `smooth_v`.
    pub value_means: Vec<f32>,
    /// The same in units of the channel's scale.
    pub value_mean_codes: Vec<f32>,
    /// `[key heads][width]`: the values' channel means, which the output gets back, where [`PvAccum::F16`](crate::PvAccum::F16) smooths them; else empty.
    pub output_mean: Vec<f32>,
    /// `[query heads][query blocks][width]`: the queries' channel means; empty without `smooth_q`.
    pub query_means: Vec<f32>,
    /// `[key heads][width]`: the keys' channel means; empty without `smooth_k`.
    pub key_mean: Vec<f32>,
    /// `[query heads][padded queries]`: `softmax_scale · query · key_mean`, what smoothing takes out of a row's
    /// log-sum-exp; empty if not needed (`Resolved::has_log_sum_exp_shift`).
    pub log_sum_exp_shift: Vec<f32>,
}

/// Quantizes some of a call's inputs, which must be finite; the others' codes stay empty. Queries without keys may need what `key`
/// has, keys that were quantized before.
pub(crate) fn quantize<T: Element>(
    plan: &Resolved,
    [query, key, value]: [Option<&[T]>; 3],
    quantized_key: Option<&Quantized>,
) -> Result<Quantized, Error> {
    let (problem, options) = (&plan.problem, &plan.options);
    let (head_dim, width) = (problem.head_dim, plan.padded_head_dim as usize);
    let query = query.map(|elements| View { elements, strides: problem.query_strides, head_dim });
    let key = key.map(|elements| View { elements, strides: problem.key_strides, head_dim });
    let value =
        value.map(|elements| View { elements, strides: problem.value_strides, head_dim: problem.value_head_dim });

    // First of all, so that nothing is computed where memory does not suffice: all else is small beside the codes.
    let queries = problem.batch * problem.query_heads * padded_queries(problem.query_len as u32) as usize;
    let keys = problem.batch * problem.key_heads * key_tiles(problem.key_len as u32) as usize * TILE;
    let codes = |is_there, rows: usize| if is_there { rows * width } else { 0 };
    let is_fp8 = options.pv_mode == PvMode::Fp8;
    let mut quantized = Quantized {
        width,
        qk_mode: options.qk_mode,
        query_codes: zeroed("query codes", codes(query.is_some(), queries))?,
        key_codes: zeroed("key codes", codes(key.is_some(), keys))?,
        value_codes: zeroed("value codes", codes(value.is_some() && is_fp8, keys))?,
        value_elements: zeroed("padded values", codes(value.is_some() && !is_fp8, keys))?,
        ..Default::default()
    };

    if let Some(key) = &key {
        if options.smooth_k {
            quantized.key_mean = channel_mean(plan, key);
        }
        quantized.key_scales = quantize_key(plan, key, &quantized.key_mean, &mut quantized.key_codes);
    }
    match (&value, options.pv_mode) {
        (None, _) => {}
        (Some(value), PvMode::Fp8) => {
            let ValueScales { scales, inverses, means, mean_codes } = value_scales(plan, value);
            quantize_value(plan, value, &inverses, &means, &mut quantized.value_codes);
            (quantized.value_scales, quantized.value_means, quantized.value_mean_codes) = (scales, means, mean_codes);
        }
        (Some(value), PvMode::F16) => {
            if plan.smooth_v {
                quantized.output_mean = channel_mean(plan, value);
            }
            pad_value(plan, value, &quantized.output_mean, &mut quantized.value_elements);
        }
    }
    if let Some(query) = &query {
        if options.smooth_q {
            quantized.query_means = query_means(plan, query);
        }
        quantized.query_scales = quantize_query(plan, query, &quantized.query_means, &mut quantized.query_codes);
        if plan.has_log_sum_exp_shift() {
            let key_mean = quantized_key.map_or(&quantized.key_mean, |key| &key.key_mean);
            quantized.log_sum_exp_shift = log_sum_exp_shift(plan, query, key_mean);
        }
    }
    Ok(quantized)
}

/// Sum, minimum and maximum of every channel over each segment of tokens: `[key heads][segments][width]`.
struct ChannelStatistics {
    sum: Vec<f32>,
    min: Vec<f32>,
    max: Vec<f32>,
}

/// Sums of a tile's channels, in the order of [`statistics`].
struct PartialSums([[f32; MAX_WIDTH]; statistics::TOKEN_LANES as usize]);

impl Default for PartialSums {
    fn default() -> Self {
        Self([[0.0; MAX_WIDTH]; statistics::TOKEN_LANES as usize])
    }
}

impl PartialSums {
    /// Adds the tile's token `index`.
    fn add(&mut self, index: usize, row: &[f32]) {
        let partial = &mut self.0[index % statistics::TOKEN_LANES as usize];
        for (sum, element) in partial.iter_mut().zip(row) {
            *sum += element;
        }
    }

    fn sum(&self, channel: usize) -> f32 {
        self.0.iter().fold(0.0, |sum, partial| sum + partial[channel])
    }
}

fn channel_statistics<T: Element>(plan: &Resolved, input: &View<T>) -> ChannelStatistics {
    let (problem, width) = (&plan.problem, plan.padded_head_dim as usize);
    let segments = segments(problem.key_len as u32) as usize;
    let len = problem.batch * problem.key_heads * segments * width;
    let mut result =
        ChannelStatistics { sum: vec![0.0; len], min: vec![f32::INFINITY; len], max: vec![f32::NEG_INFINITY; len] };
    let chunks = (
        result.sum.par_chunks_exact_mut(width),
        result.min.par_chunks_exact_mut(width),
        result.max.par_chunks_exact_mut(width),
    );
    chunks.into_par_iter().enumerate().for_each(|(index, (sum, min, max))| {
        let (batch_head, segment) = (index / segments, index % segments);
        let (batch, head) = (batch_head / problem.key_heads, batch_head % problem.key_heads);
        let mut row = [0.0f32; MAX_WIDTH];
        let end = problem.key_len.min((segment + 1) * SEGMENT);
        for tile in (segment * SEGMENT..end).step_by(TILE) {
            let mut partial = PartialSums::default();
            for token in tile..end.min(tile + TILE) {
                input.read_rounded_row([batch, head, token], &mut row);
                partial.add(token - tile, &row[..width]);
                for channel in 0..width {
                    let element = row[channel];
                    min[channel] = if element < min[channel] { element } else { min[channel] };
                    max[channel] = if element > max[channel] { element } else { max[channel] };
                }
            }
            for (channel, sum) in sum.iter_mut().enumerate() {
                *sum += partial.sum(channel);
            }
        }
    });
    result
}

/// Channel means of the keys, or of the values, over all of them: `[key heads][width]`.
fn channel_mean<T: Element>(plan: &Resolved, input: &View<T>) -> Vec<f32> {
    let width = plan.padded_head_dim as usize;
    let segments = segments(plan.problem.key_len as u32) as usize;
    let statistics = channel_statistics(plan, input);
    let mut means = vec![0.0; plan.problem.batch * plan.problem.key_heads * width];
    for (mean, sums) in means.chunks_exact_mut(width).zip(statistics.sum.chunks_exact(segments * width)) {
        for sum in sums.chunks_exact(width) {
            for (mean, sum) in mean.iter_mut().zip(sum) {
                *mean += sum;
            }
        }
        for mean in mean {
            *mean /= plan.problem.key_len as f32;
        }
    }
    means
}

/// What [`Quantized`] calls `value_scales`, `value_means` and `value_mean_codes`.
#[derive(Default)]
struct ValueScales {
    scales: Vec<f32>,
    /// `[key heads][width]`: what values are multiplied by before they are rounded.
    inverses: Vec<f32>,
    means: Vec<f32>,
    mean_codes: Vec<f32>,
}

fn value_scales<T: Element>(plan: &Resolved, value: &View<T>) -> ValueScales {
    let (problem, width) = (&plan.problem, plan.padded_head_dim as usize);
    let segments = segments(problem.key_len as u32) as usize;
    let statistics = channel_statistics(plan, value);
    let largest = scale::largest_value(plan.options.pv_accum);
    let mut scales = vec![0.0; problem.batch * problem.key_heads * width];
    let mut inverses = scales.clone();
    let mut means = statistics.sum;
    let mut mean_codes = vec![0.0; means.len()];
    for head in 0..problem.batch * problem.key_heads {
        for channel in 0..width {
            let places = (0..segments).map(|segment| (head * segments + segment) * width + channel);
            let (mut amax, mut mean_amax) = (0.0f32, 0.0f32);
            // a padded channel has minimum and maximum 0 like a channel of zeros
            for (segment, place) in places.clone().enumerate() {
                let tokens = SEGMENT.min(problem.key_len - segment * SEGMENT);
                let mean = if plan.smooth_v { means[place] / tokens as f32 } else { 0.0 };
                means[place] = mean;
                amax = amax.max(statistics.max[place] - mean).max(mean - statistics.min[place]);
                mean_amax = mean_amax.max(mean.abs());
            }
            let (scale, inverse) = scale::value_scale(amax, mean_amax, largest);
            scales[head * width + channel] = scale;
            inverses[head * width + channel] = inverse;
            for place in places {
                mean_codes[place] = means[place] * inverse;
            }
        }
    }
    ValueScales { scales, inverses, means, mean_codes }
}

/// Writes [`Quantized::value_codes`].
fn quantize_value<T: Element>(plan: &Resolved, value: &View<T>, inverses: &[f32], means: &[f32], codes: &mut [u8]) {
    let (problem, width) = (&plan.problem, plan.padded_head_dim as usize);
    let tiles = key_tiles(problem.key_len as u32) as usize;
    let segments = segments(problem.key_len as u32) as usize;
    codes.par_chunks_exact_mut(TILE * width).enumerate().for_each(|(index, codes)| {
        let (batch_head, tile) = (index / tiles, index % tiles);
        let (batch, head) = (batch_head / problem.key_heads, batch_head % problem.key_heads);
        let segment = tile * TILE / SEGMENT;
        let mean = &means[(batch_head * segments + segment) * width..][..width];
        let inverse = &inverses[batch_head * width..][..width];
        let mut row = [0.0f32; MAX_WIDTH];
        for (token, codes) in (tile * TILE..problem.key_len).zip(codes.chunks_exact_mut(width)) {
            value.read_rounded_row([batch, head, token], &mut row);
            for channel in 0..width {
                codes[channel] = e4m3_from_f32((row[channel] - mean[channel]) * inverse[channel]);
            }
        }
    });
}

/// Writes [`Quantized::value_elements`].
fn pad_value<T: Element>(plan: &Resolved, value: &View<T>, means: &[f32], elements: &mut [u16]) {
    let (problem, width) = (&plan.problem, plan.padded_head_dim as usize);
    let tokens = key_tiles(problem.key_len as u32) as usize * TILE;
    elements.par_chunks_exact_mut(tokens * width).enumerate().for_each(|(batch_head, elements)| {
        let (batch, head) = (batch_head / problem.key_heads, batch_head % problem.key_heads);
        let mean = nth_row(means, batch_head, width);
        for (token, row) in elements.chunks_exact_mut(width).enumerate().take(problem.key_len) {
            let row: &mut [T::Rounded] = bytemuck::cast_slice_mut(&mut row[..problem.value_head_dim]);
            for (element, source) in row.iter_mut().zip(value.row([batch, head, token])) {
                *element = source.rounded();
            }
            for (element, mean) in row.iter_mut().zip(mean.unwrap_or_default()) {
                *element = T::Rounded::from_f32(element.to_f32() - mean);
            }
        }
    });
}

/// Writes [`Quantized::key_codes`] and returns their scales.
fn quantize_key<T: Element>(plan: &Resolved, key: &View<T>, means: &[f32], codes: &mut [i8]) -> Vec<f32> {
    let (problem, width) = (&plan.problem, plan.padded_head_dim as usize);
    let tiles = key_tiles(problem.key_len as u32) as usize;
    let heads = problem.batch * problem.key_heads;
    let mut scales = vec![0.0; heads * tiles * KEY_SCALES_PER_TILE as usize];
    let chunks =
        codes.par_chunks_exact_mut(TILE * width).zip(scales.par_chunks_exact_mut(KEY_SCALES_PER_TILE as usize));
    chunks.enumerate().for_each_init(
        || vec![0.0f32; TILE * width],
        |rows, (index, (codes, scales))| {
            let (batch_head, tile) = (index / tiles, index % tiles);
            read_keys(plan, key, nth_row(means, batch_head, width), [batch_head, tile], rows);
            let groups = Groups {
                granularity: plan.options.granularity,
                largest: scale::largest_code(plan.options.qk_mode),
                index: scale::key_scale_index,
                share: scale::keys_share_scale,
            };
            groups.quantize(rows, width, codes, scales);
        },
    );
    scales
}

/// A row of means; `None` if there are none.
pub(super) fn nth_row(rows: &[f32], index: usize, width: usize) -> Option<&[f32]> {
    rows.chunks_exact(width).nth(index)
}

/// Takes the mean, if there is one, out of a row.
fn subtract(row: &mut [f32], mean: Option<&[f32]>) {
    for (element, mean) in row.iter_mut().zip(mean.unwrap_or_default()) {
        *element -= mean;
    }
}

/// [`Quantized::query_means`].
fn query_means<T: Element>(plan: &Resolved, query: &View<T>) -> Vec<f32> {
    let (problem, width) = (&plan.problem, plan.padded_head_dim as usize);
    let blocks = query_blocks(problem.query_len as u32) as usize;
    let mut means = vec![0.0; problem.batch * problem.query_heads * blocks * width];
    means.par_chunks_exact_mut(width).enumerate().for_each(|(index, mean)| {
        let (batch_head, first) = (index / blocks, index % blocks * BLOCK);
        let (batch, head) = (batch_head / problem.query_heads, batch_head % problem.query_heads);
        let queries = BLOCK.min(problem.query_len - first);
        let mut row = [0.0f32; MAX_WIDTH];
        let mut partial = PartialSums::default();
        for token in 0..queries {
            query.read_rounded_row([batch, head, first + token], &mut row);
            partial.add(token, &row[..width]);
        }
        for (channel, mean) in mean.iter_mut().enumerate() {
            *mean = partial.sum(channel) / queries as f32;
        }
    });
    means
}

/// [`score_bias`] of every block of queries and every key: `[query heads][query blocks][key tiles · 128]`; empty without
/// `smooth_q`. It grows with the product of the lengths, so that the engine computes it tile by tile.
pub(crate) fn score_biases<T: Element>(plan: &Resolved, quantized: &Quantized, key: &[T]) -> Vec<f32> {
    let (problem, width) = (&plan.problem, quantized.width);
    let key = View { elements: key, strides: problem.key_strides, head_dim: problem.head_dim };
    let keys = key_tiles(problem.key_len as u32) as usize * TILE;
    let heads_per_key_head = problem.query_heads / problem.key_heads;
    let blocks = query_blocks(problem.query_len as u32) as usize;
    let mut biases = vec![0.0; quantized.query_means.len() / width * keys];
    biases.par_chunks_exact_mut(keys).zip(quantized.query_means.par_chunks_exact(width)).enumerate().for_each(
        |(block, (bias, query_mean))| {
            let key_head = block / blocks / heads_per_key_head;
            let key_mean = nth_row(&quantized.key_mean, key_head, width);
            let mut rows = vec![0.0; TILE * width];
            for (tile, bias) in bias.chunks_exact_mut(TILE).enumerate() {
                read_keys(plan, &key, key_mean, [key_head, tile], &mut rows);
                score_bias(plan, query_mean, &rows, bias);
            }
        },
    );
    biases
}

/// What smoothing takes out of the scores of a block of queries, in octaves: `softmax_scale · log₂ e · mean · (key - key_mean)`
/// of each key, which are rows of `width` elements.
pub(super) fn score_bias(plan: &Resolved, query_mean: &[f32], keys: &[f32], bias: &mut [f32]) {
    let score_scale = plan.score_scale();
    for (bias, key) in bias.iter_mut().zip(keys.chunks_exact(query_mean.len())) {
        *bias = score_scale * dot(query_mean, key);
    }
}

/// Writes a tile of keys less their mean into rows of `width` elements; what pads it is zero.
pub(super) fn read_keys<T: Element>(
    plan: &Resolved,
    key: &View<T>,
    mean: Option<&[f32]>,
    [batch_head, tile]: [usize; 2],
    rows: &mut [f32],
) {
    let (problem, width) = (&plan.problem, plan.padded_head_dim as usize);
    let (batch, head) = (batch_head / problem.key_heads, batch_head % problem.key_heads);
    rows.fill(0.0);
    for (token, row) in (tile * TILE..problem.key_len).zip(rows.chunks_exact_mut(width)) {
        key.read_rounded_row([batch, head, token], row);
        subtract(row, mean);
    }
}

/// Writes [`Quantized::query_codes`] and returns their scales.
fn quantize_query<T: Element>(plan: &Resolved, query: &View<T>, means: &[f32], codes: &mut [i8]) -> Vec<f32> {
    let (problem, width) = (&plan.problem, plan.padded_head_dim as usize);
    let tiles = padded_queries(problem.query_len as u32) as usize / QUERY_TILE;
    let heads = problem.batch * problem.query_heads;
    let score_scale = plan.score_scale();
    let mut scales = vec![0.0; heads * tiles * QUERY_SCALES_PER_TILE as usize];
    let chunks =
        codes.par_chunks_exact_mut(QUERY_TILE * width).zip(scales.par_chunks_exact_mut(QUERY_SCALES_PER_TILE as usize));
    chunks.enumerate().for_each_init(
        || vec![0.0f32; QUERY_TILE * width],
        |rows, (index, (codes, scales))| {
            let (batch_head, tile) = (index / tiles, index % tiles);
            let (batch, head) = (batch_head / problem.query_heads, batch_head % problem.query_heads);
            let block = batch_head * query_blocks(problem.query_len as u32) as usize + tile * QUERY_TILE / BLOCK;
            let mean = nth_row(means, block, width);
            rows.fill(0.0);
            for (token, row) in (tile * QUERY_TILE..problem.query_len).zip(rows.chunks_exact_mut(width)) {
                query.read_rounded_row([batch, head, token], row);
                subtract(row, mean);
            }
            let groups = Groups {
                granularity: plan.options.granularity,
                largest: scale::largest_code(plan.options.qk_mode),
                index: scale::query_scale_index,
                share: scale::queries_share_scale,
            };
            groups.quantize(rows, width, codes, scales);
            for scale in scales {
                *scale *= score_scale;
            }
        },
    );
    scales
}

/// How the rows of a tile are grouped.
struct Groups {
    granularity: Granularity,
    /// Largest code.
    largest: f32,
    /// Where a row's scale is stored.
    index: fn(u32) -> u32,
    /// Whether two rows share a scale.
    share: fn(Granularity, u32, u32) -> bool,
}

impl Groups {
    /// Quantizes one tile's `rows`, `width` elements each.
    fn quantize(&self, rows: &[f32], width: usize, codes: &mut [i8], scales: &mut [f32]) {
        const MAX_SCALES: usize = QUERY_SCALES_PER_TILE as usize;
        let mut amax = [0.0f32; MAX_SCALES];
        let mut any_row = [0u32; MAX_SCALES];
        for (row, elements) in (0..).zip(rows.chunks_exact(width)) {
            let stored = (self.index)(row) as usize;
            amax[stored] = amax_of(elements).max(amax[stored]);
            any_row[stored] = row;
        }
        let mut inverses = [0.0f32; MAX_SCALES];
        for (stored, scale) in scales.iter_mut().enumerate() {
            let shared =
                (0..MAX_SCALES).filter(|&other| (self.share)(self.granularity, any_row[stored], any_row[other]));
            let amax = shared.fold(0.0, |max, other| amax[other].max(max));
            (*scale, inverses[stored]) = scale::int_scale(amax, self.largest);
        }
        for (row, (elements, codes)) in (0..).zip(rows.chunks_exact(width).zip(codes.chunks_exact_mut(width))) {
            let inverse = inverses[(self.index)(row) as usize];
            for (code, element) in codes.iter_mut().zip(elements) {
                *code = round_to_i8(element * inverse);
            }
        }
    }
}

pub(crate) fn amax_of(elements: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for chunk in elements.chunks_exact(16) {
        for (lane, element) in lanes.iter_mut().zip(chunk) {
            *lane = if element.abs() > *lane { element.abs() } else { *lane };
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

/// Rounds half to even; `value` lies strictly within ±127.5.
///
/// The sum has the rounded value in the last bits of its mantissa, in two's complement, and unlike `round_ties_even` it
/// is one instruction everywhere.
pub(crate) fn round_to_i8(value: f32) -> i8 {
    const ONE_AND_A_HALF_TIMES_2_23: f32 = 12582912.0;
    (value + ONE_AND_A_HALF_TIMES_2_23).to_bits() as i8
}

fn log_sum_exp_shift<T: Element>(plan: &Resolved, query: &View<T>, key_mean: &[f32]) -> Vec<f32> {
    let (problem, width) = (&plan.problem, plan.padded_head_dim as usize);
    let rows = padded_queries(problem.query_len as u32) as usize;
    let mut shifts = vec![0.0; problem.batch * problem.query_heads * rows];
    shifts.par_chunks_exact_mut(rows).enumerate().for_each(|(batch_head, shifts)| {
        let (batch, head) = (batch_head / problem.query_heads, batch_head % problem.query_heads);
        let key_head = batch * problem.key_heads + head / (problem.query_heads / problem.key_heads);
        let mean = &key_mean[key_head * width..][..width];
        let mut row = [0.0f32; MAX_WIDTH];
        for (token, shift) in shifts.iter_mut().enumerate().take(problem.query_len) {
            query.read_rounded_row([batch, head, token], &mut row);
            *shift = plan.softmax_scale * dot(&row[..width], mean);
        }
    });
    shifts
}

/// The product of two rows, in the order of [`statistics`].
fn dot(row: &[f32], mean: &[f32]) -> f32 {
    /// Channels that one thread of the GPU adds up.
    const CHUNK: usize = 8;
    let mut sums = [0.0f32; MAX_WIDTH / CHUNK];
    for (sum, (row, mean)) in sums.iter_mut().zip(row.chunks_exact(CHUNK).zip(mean.chunks_exact(CHUNK))) {
        *sum = row.iter().zip(mean).fold(0.0, |sum, (element, mean)| sum + element * mean);
    }
    let mut lanes = row.len() / CHUNK;
    while lanes > 1 {
        lanes /= 2;
        for lane in 0..lanes {
            sums[lane] = sums[2 * lane] + sums[2 * lane + 1];
        }
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn int8_rounds_half_to_even() {
        for eighths in -1018..=1018 {
            let value = eighths as f32 / 8.0;
            for value in [value, value.next_up(), value.next_down()] {
                assert_eq!(round_to_i8(value), value.round_ties_even() as i8, "{value}");
            }
        }
    }
}
