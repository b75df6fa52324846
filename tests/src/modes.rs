//! Every mode, and attention in f64 on what a mode's codes stand for.

use sage_layout::round::f32_from_e4m3;
use sage_layout::scale::{key_scale_index, query_scale_index};
use sage_layout::tile;
use sageattention::testing::{self, ExactOutput};
use sageattention::{AttentionOptions, AttentionProblem, CausalAlign, DType, Element, Mask, PvAccum, PvMode, QkMode};

use crate::tensor::{Inputs, offset};

/// Every way to multiply queries with keys: codes, and whether queries are smoothed.
pub const QK_MODES: [(QkMode, bool); 4] =
    [(QkMode::Int8, false), (QkMode::Int8, true), (QkMode::Int4, false), (QkMode::Int4, true)];

/// Every way to multiply probabilities with values.
pub const PV_MODES: [(PvMode, PvAccum); 6] = [
    (PvMode::Fp8, PvAccum::F32),
    (PvMode::Fp8, PvAccum::F32F32),
    (PvMode::Fp8, PvAccum::F32F16),
    (PvMode::F16, PvAccum::F32),
    (PvMode::F16, PvAccum::F16),
    (PvMode::F16, PvAccum::F16F32),
];

/// Every kind of mask: windows narrower than a chunk of keys, than a tile, and wider, with and without an end on each side.
pub const MASKS: [Mask; 12] = [
    Mask::None,
    Mask::CausalAligned(CausalAlign::TopLeft),
    Mask::CausalAligned(CausalAlign::BottomRight),
    Mask::Window { left: Some(0), right: Some(0), align: CausalAlign::BottomRight },
    Mask::Window { left: Some(5), right: Some(0), align: CausalAlign::TopLeft },
    Mask::Window { left: Some(40), right: Some(0), align: CausalAlign::BottomRight },
    Mask::Window { left: Some(90), right: Some(30), align: CausalAlign::TopLeft },
    Mask::Window { left: Some(130), right: Some(140), align: CausalAlign::BottomRight },
    Mask::Window { left: None, right: Some(50), align: CausalAlign::TopLeft },
    Mask::Window { left: Some(70), right: None, align: CausalAlign::BottomRight },
    Mask::Window { left: Some(3), right: None, align: CausalAlign::TopLeft },
    Mask::Window { left: None, right: None, align: CausalAlign::BottomRight },
];

/// Whether a query sees a key, by the mask's definition; `offset` is `key_len - query_len`.
fn sees(mask: Mask, query: usize, key: usize, offset: i64) -> bool {
    let (left, right, align) = match mask {
        Mask::None => return true,
        Mask::CausalAligned(align) => (None, Some(0), align),
        Mask::Window { left, right, align } => (left, right, align),
        _ => (None, Some(0), CausalAlign::TopLeft),
    };
    let own = query as i64 + if align == CausalAlign::BottomRight { offset } else { 0 };
    let after = key as i64 - own;
    left.is_none_or(|left| -after <= i64::from(left)) && right.is_none_or(|right| after <= i64::from(right))
}

/// The element types of the values that products can be summed for in a mode: f16 sums are no place for bf16.
pub fn element_types((pv_mode, pv_accum): (PvMode, PvAccum)) -> &'static [DType] {
    match (pv_mode, pv_accum) {
        (PvMode::F16, PvAccum::F16 | PvAccum::F16F32) => &[DType::F16, DType::F32],
        _ => &[DType::F16, DType::Bf16, DType::F32],
    }
}

/// How often a sum over so many keys is rounded to f16, each time by a part of up to 2⁻¹¹.
pub fn f16_roundings(options: &AttentionOptions, key_len: usize) -> f64 {
    let roundings = match options.pv_accum {
        PvAccum::F32 | PvAccum::F32F32 => 0,
        // four products of 16 keys a chunk, two of 32
        PvAccum::F16F32 => 4,
        PvAccum::F32F16 => 2,
        // all products of 16 keys; and for each tile the sum and its factor, where the reference changes
        PvAccum::F16 => key_len.div_ceil(16) + 2 * key_len.div_ceil(tile::KEY_TILE as usize),
    };
    roundings as f64
}

/// Attention in f64 on the numbers that the codes stand for: what is between it and the engine is the rounding of
/// probabilities and of sums.
pub fn on_codes<T: Element>(problem: &AttentionProblem, options: &AttentionOptions, inputs: &Inputs<T>) -> ExactOutput {
    let quantized = testing::quantize(problem, options, inputs.slices());
    let AttentionProblem { batch, query_heads, key_heads, query_len, key_len, head_dim, .. } = *problem;
    let width = quantized.width;
    let padded_queries = tile::padded_queries(query_len as u32) as usize;
    let padded_keys = (tile::key_tiles(key_len as u32) * tile::KEY_TILE) as usize;
    let segments = tile::segments(key_len as u32) as usize;
    let blocks = tile::query_blocks(query_len as u32) as usize;
    let softmax_scale = options.softmax_scale.unwrap_or((head_dim as f32).powf(-0.5));
    let row = |elements: &[f32], row: usize| -> Option<Vec<f64>> {
        elements.chunks_exact(width).nth(row).map(|row| row.iter().map(|&x| f64::from(x)).collect())
    };

    let mut exact = ExactOutput { output: Vec::new(), log_sum_exp: Vec::new() };
    for head in 0..batch * query_heads {
        let (sequence, key_head) = (head / query_heads, head % query_heads / (query_heads / key_heads));
        let all_key_head = sequence * key_heads + key_head;
        let key_mean = row(&quantized.key_mean, all_key_head).unwrap_or(vec![0.0; width]);
        let keys: Vec<Vec<f64>> = (0..key_len)
            .map(|token| {
                let start = offset(problem.key_strides, [sequence, key_head, token, 0]);
                let key = inputs.key[start..start + head_dim].iter().map(|x| f64::from(x.rounded().to_f32()));
                key.zip(&key_mean).map(|(key, mean)| key - mean).collect()
            })
            .collect();
        let values: Vec<Vec<f64>> = (0..key_len)
            .map(|token| {
                value::<T>(
                    &quantized,
                    [all_key_head * padded_keys + token, all_key_head],
                    all_key_head * segments + token / tile::SEGMENT_KEYS as usize,
                )
            })
            .collect();
        let output_mean = row(&quantized.output_mean, all_key_head).unwrap_or(vec![0.0; width]);
        for query in 0..query_len {
            let codes = &quantized.query_codes[(head * padded_queries + query) * width..][..width];
            let query_scales = &quantized.query_scales[head * query_scale_index(padded_queries as u32) as usize..];
            let query_scale = f64::from(query_scales[query_scale_index(query as u32) as usize]);
            let query_mean = row(&quantized.query_means, head * blocks + query / tile::QUERY_BLOCK as usize);
            let score = |token: usize| {
                let key_codes = &quantized.key_codes[(all_key_head * padded_keys + token) * width..][..width];
                let dot: i32 = codes.iter().zip(key_codes).map(|(&q, &k)| i32::from(q) * i32::from(k)).sum();
                let key_scales = &quantized.key_scales[all_key_head * key_scale_index(padded_keys as u32) as usize..];
                let key_scale = f64::from(key_scales[key_scale_index(token as u32) as usize]);
                let bias: f64 = match &query_mean {
                    None => 0.0,
                    Some(mean) => mean.iter().zip(&keys[token]).map(|(mean, key)| mean * key).sum(),
                };
                f64::from(dot) * query_scale * key_scale * std::f64::consts::LN_2 + bias * f64::from(softmax_scale)
            };
            let visible = (0..key_len).filter(|&key| sees(options.mask, query, key, key_len as i64 - query_len as i64));
            let (visible, scores): (Vec<usize>, Vec<f64>) = visible.map(|key| (key, score(key))).unzip();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let shifts = quantized.log_sum_exp_shift.get(head * padded_queries + query);
            exact.log_sum_exp.push(max + sum.ln() + shifts.map_or(0.0, |&shift| f64::from(shift)));
            exact.output.extend((0..problem.value_head_dim).map(|channel| {
                let product: f64 =
                    weights.iter().zip(&visible).map(|(weight, &key)| weight * values[key][channel]).sum();
                if visible.is_empty() { 0.0 } else { product / sum + output_mean[channel] }
            }));
        }
    }
    exact
}

/// The value that the codes of a row, a head's and a segment's, stand for, less `output_mean`.
fn value<T: Element>(quantized: &testing::Quantized, [row, head]: [usize; 2], segment: usize) -> Vec<f64> {
    let width = quantized.width;
    let decoded = |channel: usize| {
        if quantized.value_codes.is_empty() {
            return f64::from(
                bytemuck::cast::<u16, T::Rounded>(quantized.value_elements[row * width + channel]).to_f32(),
            );
        }
        let code = f64::from(f32_from_e4m3(quantized.value_codes[row * width + channel]));
        let mean = f64::from(quantized.value_means[segment * width + channel]);
        code * f64::from(quantized.value_scales[head * width + channel]) + mean
    };
    (0..width).map(decoded).collect()
}
