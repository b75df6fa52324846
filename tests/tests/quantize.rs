//! Codes and scales against slow models written from the definitions, and the GPU's buffers against the layout maps.

use half::f16;
use proptest::prelude::*;
use sage_layout::round::{e4m3_from_f32, f32_from_e4m3};
use sage_layout::scale::{self, INT8_MAX, int_scale, largest_code};
use sage_layout::{int4_tile, swizzle, tile, token_order, value_tile};
use sage_tests::modes::{PV_MODES, QK_MODES};
use sage_tests::tensor::{Inputs, attend, offset};
use sageattention::{
    AttentionOptions, AttentionProblem, DType, PvAccum, PvMode, QkMode, QuantGranularity, TensorLayout, testing,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    /// Of all codes the nearest, and of two equally near the even one.
    #[test]
    fn e4m3_is_the_nearest_code(bits: u32) {
        let value = f32::from_bits(bits);
        let code = e4m3_from_f32(value);
        if value.is_nan() {
            prop_assert_eq!(code, 0x7f);
        } else {
            prop_assert_eq!(code >> 7, u8::from(value.is_sign_negative()));
            // differences from larger numbers than 1000 would round away
            let magnitude = f64::from(value.abs().min(1000.0));
            let distance = |code: u8| (f64::from(f32_from_e4m3(code)) - magnitude).abs();
            let nearest = (0..0x7f).min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))));
            prop_assert_eq!(Some(code & 0x7f), nearest);
        }
    }

    /// Codes are the nearest integers to the element over its scale, within what f32 arithmetic leaves open.
    #[test]
    fn int8_codes_are_the_nearest(elements in prop::collection::vec(-70000.0f32..70000.0, 1..40)) {
        let amax = elements.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let (scale, inverse) = int_scale(amax, INT8_MAX);
        for element in elements {
            let code = f64::from((element * inverse).round_ties_even());
            prop_assert!(code.abs() <= 127.0);
            let quotient = f64::from(element) / f64::from(scale);
            prop_assert!((code - quotient).abs() <= 0.5 + 127.0 * 2f64.powi(-22), "{} {}", code, quotient);
        }
    }
}

const HEAD_DIM: usize = 72;
const WIDTH: usize = 128;

fn problem() -> AttentionProblem {
    AttentionProblem::cross(TensorLayout::Nhd, DType::F16, [2, 4, 201, HEAD_DIM], [2, 1100])
}

#[test]
fn groups_use_their_largest_magnitude() {
    let problem = problem();
    let inputs = Inputs::<f16>::random(&problem, 1);
    for granularity in QuantGranularity::ALL {
        for (smooth_k, qk_mode) in [(true, QkMode::Int8), (false, QkMode::Int8), (true, QkMode::Int4)] {
            let options = AttentionOptions { granularity, smooth_k, qk_mode, return_lse: true, ..Default::default() };
            let quantized = testing::quantize(&problem, &options, inputs.slices());
            assert_eq!(quantized.width, WIDTH);
            let key_heads = problem.batch * problem.key_heads;
            for head in 0..key_heads {
                let at = |token: usize, channel: usize| {
                    let index = [head / problem.key_heads, head % problem.key_heads, token, channel];
                    let key = inputs.key[offset(problem.key_strides, index)].to_f32();
                    key - if smooth_k { quantized.key_mean[head * WIDTH + channel] } else { 0.0 }
                };
                let tokens = tile::key_tiles(problem.key_len as u32) * tile::KEY_TILE;
                let scales = &quantized.key_scales[(head as u32 * tokens / 32) as usize..];
                let row_amax: Vec<f32> = (0..problem.key_len)
                    .map(|token| (0..HEAD_DIM).fold(0.0f32, |max, channel| max.max(at(token, channel).abs())))
                    .collect();
                for token in 0..tokens {
                    let amax = (0..problem.key_len as u32)
                        .filter(|&other| scale::keys_share_scale(granularity, token, other))
                        .fold(0.0f32, |max, other| max.max(row_amax[other as usize]));
                    let (scale, inverse) = int_scale(amax, largest_code(qk_mode));
                    assert_eq!(scales[scale::key_scale_index(token) as usize], scale);
                    let codes = &quantized.key_codes[(head as u32 * tokens + token) as usize * WIDTH..][..WIDTH];
                    for (channel, &code) in codes.iter().enumerate() {
                        let real = (token as usize) < problem.key_len && channel < HEAD_DIM;
                        let expected =
                            if real { (at(token as usize, channel) * inverse).round_ties_even() as i8 } else { 0 };
                        assert_eq!(code, expected);
                    }
                }
            }
        }
    }
}

/// Queries less the mean of their 128, by the same groups; and the score scale in the stored scales.
#[test]
fn queries_are_quantized_less_their_mean() {
    let problem = problem();
    let inputs = Inputs::<f16>::random(&problem, 5);
    let padded = tile::padded_queries(problem.query_len as u32) as usize;
    let block_len = tile::QUERY_BLOCK as usize;
    let blocks = problem.query_len.div_ceil(block_len);
    let score_scale = (HEAD_DIM as f32).powf(-0.5) * std::f32::consts::LOG2_E;
    for ((qk_mode, smooth_q), granularity) in QK_MODES.into_iter().flat_map(|m| QuantGranularity::ALL.map(|g| (m, g))) {
        let options = AttentionOptions { qk_mode, smooth_q, granularity, ..Default::default() };
        let quantized = testing::quantize(&problem, &options, inputs.slices());
        assert_eq!(quantized.query_means.len(), if smooth_q { 2 * 4 * blocks * WIDTH } else { 0 });
        for head in 0..problem.batch * problem.query_heads {
            let mean = |token: usize, channel: usize| match smooth_q {
                true => quantized.query_means[(head * blocks + token / block_len) * WIDTH + channel],
                false => 0.0,
            };
            let at = |token: usize, channel: usize| {
                let place = offset(problem.query_strides, [head / 4, head % 4, token, channel]);
                inputs.query[place].to_f32() - mean(token, channel)
            };
            for first in (0..problem.query_len).step_by(block_len) {
                let tokens = first..problem.query_len.min(first + block_len);
                for channel in 0..HEAD_DIM {
                    let left: f64 = tokens.clone().map(|token| f64::from(at(token, channel))).sum();
                    assert!(!smooth_q || left.abs() < 1e-3, "a mean is left: {left}");
                }
            }
            for token in 0..problem.query_len {
                let group = (0..problem.query_len).filter(|&other| {
                    let tile_rows = tile::WARPGROUP_ROWS as usize;
                    token / tile_rows == other / tile_rows
                        && scale::queries_share_scale(granularity, token as u32, other as u32)
                });
                let amax = group
                    .flat_map(|other| (0..HEAD_DIM).map(move |channel| (other, channel)))
                    .fold(0.0f32, |max, (other, channel)| max.max(at(other, channel).abs()));
                let (scale, inverse) = int_scale(amax, largest_code(qk_mode));
                let stored = scale::query_scale_index((head * padded + token) as u32) as usize;
                assert_eq!(quantized.query_scales[stored], scale * score_scale);
                let codes = &quantized.query_codes[(head * padded + token) * WIDTH..][..WIDTH];
                for (channel, &code) in codes.iter().enumerate() {
                    let expected =
                        if channel < HEAD_DIM { (at(token, channel) * inverse).round_ties_even() as i8 } else { 0 };
                    assert_eq!(code, expected);
                }
            }
            let padding =
                &quantized.query_codes[(head * padded + problem.query_len) * WIDTH..(head + 1) * padded * WIDTH];
            assert!(padding.iter().all(|&code| code == 0), "what pads queries has no mean");
        }
    }
}

/// What is subtracted from queries comes back in the scores: the mean's product with each key less its mean, in octaves.
#[test]
fn score_biases_are_products_with_the_query_means() {
    let problem = problem();
    let inputs = Inputs::<f16>::random(&problem, 8);
    let keys = (tile::key_tiles(problem.key_len as u32) * tile::KEY_TILE) as usize;
    let blocks = problem.query_len.div_ceil(tile::QUERY_BLOCK as usize);
    for smooth_k in [true, false] {
        let options = AttentionOptions { smooth_q: true, smooth_k, ..Default::default() };
        let quantized = testing::quantize(&problem, &options, inputs.slices());
        let biases = testing::score_bias(&problem, &options, inputs.slices());
        assert_eq!(biases.len(), 2 * 4 * blocks * keys);
        for (place, &bias) in biases.iter().enumerate() {
            let (block, token) = (place / keys, place % keys);
            let (sequence, key_head) = (block / blocks / 4, block / blocks % 4 / 2);
            let product = |channel: usize| {
                let key = inputs.key[offset(problem.key_strides, [sequence, key_head, token, channel])].to_f64();
                let place = (sequence * problem.key_heads + key_head) * WIDTH + channel;
                let mean = quantized.key_mean.get(place).map_or(0.0, |&mean| f64::from(mean));
                f64::from(quantized.query_means[block * WIDTH + channel]) * (key - mean)
            };
            let sum: f64 = (0..if token < problem.key_len { HEAD_DIM } else { 0 }).map(product).sum();
            let expected = sum * std::f64::consts::LOG2_E / (HEAD_DIM as f64).sqrt();
            assert!((f64::from(bias) - expected).abs() < 1e-5, "{bias}, expected {expected}");
        }
    }
    assert!(testing::score_bias(&problem, &AttentionOptions::default(), inputs.slices()).is_empty());
}

#[test]
fn means_are_means() {
    let problem = problem();
    let inputs = Inputs::<f16>::random(&problem, 2);
    let options = AttentionOptions { return_lse: true, ..Default::default() };
    let quantized = testing::quantize(&problem, &options, inputs.slices());
    let mean = |elements: &[f16], head: usize, channel: usize, tokens: std::ops::Range<usize>| {
        let len = tokens.len() as f64;
        let index = |token| [head / problem.key_heads, head % problem.key_heads, token, channel];
        tokens.map(|token| elements[offset(problem.key_strides, index(token))].to_f64()).sum::<f64>() / len
    };
    for head in 0..problem.batch * problem.key_heads {
        for channel in 0..HEAD_DIM {
            let key_mean = f64::from(quantized.key_mean[head * WIDTH + channel]);
            assert!((key_mean - mean(&inputs.key, head, channel, 0..problem.key_len)).abs() < 1e-5);
            for (segment, tokens) in [0..1024, 1024..1100].into_iter().enumerate() {
                let place = (head * 2 + segment) * WIDTH + channel;
                let value_mean = quantized.value_means[place];
                assert!((f64::from(value_mean) - mean(&inputs.value, head, channel, tokens)).abs() < 1e-5);
                let code = quantized.value_mean_codes[place];
                let scale = quantized.value_scales[head * WIDTH + channel];
                assert!((code * scale - value_mean).abs() <= 1e-6 * value_mean.abs());
            }
        }
        assert!(quantized.key_mean[head * WIDTH..][HEAD_DIM..WIDTH].iter().all(|&mean| mean == 0.0));
    }
    let padded = tile::padded_queries(problem.query_len as u32) as usize;
    for head in 0..problem.batch * problem.query_heads {
        for token in 0..padded {
            let shift = f64::from(quantized.log_sum_exp_shift[head * padded + token]);
            let key_head = head / 4 * 2 + head % 4 / 2;
            let expected: f64 = (0..if token < problem.query_len { HEAD_DIM } else { 0 })
                .map(|channel| {
                    let query = inputs.query[offset(problem.query_strides, [head / 4, head % 4, token, channel])];
                    query.to_f64() * f64::from(quantized.key_mean[key_head * WIDTH + channel])
                })
                .sum();
            assert!((shift - expected / (HEAD_DIM as f64).sqrt()).abs() < 1e-4);
        }
    }
}

#[test]
fn buffers_follow_the_layout_maps() {
    for head_dim in [64, 128, 256] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 2, 70, head_dim], [1, 200]);
        let inputs = Inputs::<f16>::random(&problem, 3);
        let quantized = testing::quantize(&problem, &AttentionOptions::default(), inputs.slices());
        let width = head_dim as u32;
        let expect = |bytes: &[u8], row_bytes: u32, rows: u32, code: &dyn Fn(usize, u32, u32) -> u8| {
            for (place, &byte) in bytes.iter().enumerate() {
                let tile_bytes = (rows * row_bytes) as usize;
                let (row, column) = swizzle::position((place % tile_bytes) as u32, row_bytes);
                assert_eq!(byte, code(place / tile_bytes, row, column), "byte {place}");
            }
        };
        let query = quantized.query_tiles();
        assert_eq!(query.len(), 2 * 192 * head_dim);
        expect(&query, width, 64, &|tile, row, column| {
            quantized.query_codes[(tile * 64 + row as usize) * head_dim + column as usize] as u8
        });
        let key = quantized.key_tiles();
        assert_eq!(key.len(), 256 * head_dim);
        expect(&key, width, 128, &|tile, row, column| {
            quantized.key_codes[(tile * 128 + row as usize) * head_dim + column as usize] as u8
        });
        let value = quantized.value_tiles();
        assert_eq!(value.len(), 256 * head_dim);
        expect(&value, 128, width, &|tile, channel, position| {
            let token = token_order::token_at(position) as usize;
            quantized.value_codes[(tile * 128 + token) * head_dim + channel as usize]
        });
        assert!(quantized.value_element_tiles().is_empty());
    }
}

/// INT4 codes lie two a byte where the map says, and are the codes.
#[test]
fn int4_buffers_follow_the_layout_map() {
    for head_dim in [64, 128, 256] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 2, 70, head_dim], [1, 200]);
        let inputs = Inputs::<f16>::random(&problem, 3);
        let options = AttentionOptions { qk_mode: QkMode::Int4, smooth_q: true, ..Default::default() };
        let quantized = testing::quantize(&problem, &options, inputs.slices());
        let width = head_dim as u32;
        let expect = |bytes: &[u8], rows: u32, codes: &[i8]| {
            assert_eq!(2 * bytes.len(), codes.len());
            assert!(codes.iter().all(|code| (-7..=7).contains(code)));
            assert!(codes.contains(&7) && codes.contains(&-7));
            let tile_bytes = int4_tile::tile_bytes(rows, width) as usize;
            for (place, &byte) in bytes.iter().enumerate() {
                let (even, odd) = int4_tile::unpack(byte);
                for (bit, code) in [(0, even), (4, odd)] {
                    let (row, channel) = int4_tile::position((place % tile_bytes) as u32, bit, width);
                    let row = place / tile_bytes * rows as usize + row as usize;
                    assert_eq!(code, codes[row * head_dim + channel as usize]);
                }
            }
        };
        expect(&quantized.query_tiles(), tile::WARPGROUP_ROWS, &quantized.query_codes);
        expect(&quantized.key_tiles(), tile::KEY_TILE, &quantized.key_codes);
    }
}

/// Where products are summed in f16, values end at 2.25.
#[test]
fn values_for_f16_sums_are_small() {
    let problem = problem();
    let inputs = Inputs::<f16>::random(&problem, 6);
    for (pv_accum, largest) in [(PvAccum::F32, 448.0), (PvAccum::F32F32, 448.0), (PvAccum::F32F16, 2.25)] {
        let options = AttentionOptions { pv_accum, ..Default::default() };
        let quantized = testing::quantize(&problem, &options, inputs.slices());
        assert_eq!(quantized.value_means.iter().any(|&mean| mean != 0.0), pv_accum == PvAccum::F32);
        let max = quantized.value_codes.iter().map(|&code| f32_from_e4m3(code).abs()).fold(0.0, f32::max);
        assert_eq!(max, largest, "{pv_accum:?}");
        for (place, &code) in quantized.value_codes.iter().enumerate().filter(|_| pv_accum != PvAccum::F32) {
            let padded = (tile::key_tiles(problem.key_len as u32) * tile::KEY_TILE) as usize;
            let (head, token, channel) = (place / WIDTH / padded, place / WIDTH % padded, place % WIDTH);
            if token >= problem.key_len || channel >= HEAD_DIM {
                assert_eq!(code, 0);
                continue;
            }
            let value = inputs.value[offset(problem.value_strides, [head / 2, head % 2, token, channel])].to_f32();
            let scale = quantized.value_scales[head * WIDTH + channel];
            // half a step of 3 bits, or of a subnormal number
            let step = (value.abs() / 16.0).max(scale * 2f32.powi(-10)) * 1.001;
            assert!((f32_from_e4m3(code) * scale - value).abs() <= step, "{value} is {code:#x} times {scale}");
        }
    }
}

/// For sums in f16 all the way, values in f16 lose their mean over all keys, which is kept in f32.
#[test]
fn values_of_f16_sums_lose_their_mean() {
    let problem = problem();
    let inputs = Inputs::<f16>::random(&problem, 7);
    let options =
        |smooth_v, pv_accum| AttentionOptions { pv_mode: PvMode::F16, pv_accum, smooth_v, ..Default::default() };
    let plain = testing::quantize(&problem, &options(false, PvAccum::F16), inputs.slices());
    for other in [options(true, PvAccum::F32), options(true, PvAccum::F16F32)] {
        let other = testing::quantize(&problem, &other, inputs.slices());
        assert!(plain.output_mean.is_empty() && other == plain);
    }
    let smooth = testing::quantize(&problem, &options(true, PvAccum::F16), inputs.slices());
    let padded = smooth.value_elements.len() / WIDTH / 4;
    for (place, (&bits, &plain)) in smooth.value_elements.iter().zip(&plain.value_elements).enumerate() {
        let (head, token, channel) = (place / WIDTH / padded, place / WIDTH % padded, place % WIDTH);
        let mean = if token < problem.key_len { smooth.output_mean[head * WIDTH + channel] } else { 0.0 };
        assert_eq!(f16::from_bits(bits), f16::from_f32(f16::from_bits(plain).to_f32() - mean));
    }
    for (head, means) in smooth.output_mean.chunks_exact(WIDTH).enumerate() {
        for (channel, &mean) in means.iter().enumerate().take(HEAD_DIM) {
            let index = |token| offset(problem.value_strides, [head / 2, head % 2, token, channel]);
            let sum: f64 = (0..problem.key_len).map(|token| inputs.value[index(token)].to_f64()).sum();
            assert!((f64::from(mean) - sum / problem.key_len as f64).abs() < 1e-5);
        }
    }
}

/// 16-bit values are moved, not changed, and what pads them is zero.
#[test]
fn values_of_16_bits_are_as_they_were() {
    for head_dim in [64, 128, 40] {
        let problem = AttentionProblem::cross(TensorLayout::Nhd, DType::F16, [2, 2, 10, head_dim], [2, 200]);
        let inputs = Inputs::<f16>::random(&problem, 4);
        let options = AttentionOptions { pv_mode: PvMode::F16, ..Default::default() };
        let quantized = testing::quantize(&problem, &options, inputs.slices());
        assert!(quantized.value_codes.is_empty() && quantized.value_scales.is_empty());
        assert!(quantized.value_means.is_empty() && quantized.value_mean_codes.is_empty());
        let tiles = quantized.value_element_tiles();
        let tile_bytes = tile::value_tile_bytes(quantized.width as u32) as usize;
        assert_eq!(tiles.len(), 2 * 2 * 2 * tile_bytes);
        for (place, bytes) in tiles.chunks_exact(2).enumerate() {
            let (tile, place) = (2 * place / tile_bytes, 2 * place % tile_bytes);
            let (channel, key) = value_tile::position(place as u32);
            let (head, token, channel) = (tile / 2, tile % 2 * 128 + key as usize, channel as usize);
            let expected = if token < 200 && channel < head_dim {
                inputs.value[offset(problem.value_strides, [head / 2, head % 2, token, channel])]
            } else {
                f16::ZERO
            };
            assert_eq!(bytes, expected.to_le_bytes());
        }
    }
}

/// Degenerate channels and groups give codes and scales that are numbers.
/// f32 gives the codes, in every mode, of the f16 that it is rounded to; the output is not rounded.
#[test]
fn f32_is_rounded_to_f16() {
    let narrow = problem();
    let wide = AttentionProblem { dtype: DType::F32, ..narrow };
    let inputs = Inputs::<f32>::random(&wide, 11);
    let round = |elements: &[f32]| elements.iter().copied().map(f16::from_f32).collect::<Vec<_>>();
    let rounded = Inputs { query: round(&inputs.query), key: round(&inputs.key), value: round(&inputs.value) };
    assert!(inputs.query.iter().zip(&rounded.query).any(|(wide, narrow)| narrow.to_f32() != *wide));
    let modes = QK_MODES.into_iter().flat_map(|qk_mode| PV_MODES.map(|pv_mode| (qk_mode, pv_mode)));
    for ((qk_mode, smooth_q), (pv_mode, pv_accum)) in modes {
        let options = AttentionOptions { qk_mode, smooth_q, pv_mode, pv_accum, return_lse: true, ..Default::default() };
        let expected = testing::quantize(&narrow, &options, rounded.slices());
        assert!(testing::quantize(&wide, &options, inputs.slices()) == expected, "{options:?}");
        let (wide, narrow) = (attend(&wide, &options, &inputs), attend(&narrow, &options, &rounded));
        assert_eq!(wide.log_sum_exp, narrow.log_sum_exp);
        assert_ne!(wide.output, narrow.output);
        let wide = wide.output.iter().map(|&element| f16::from_f64(element).to_f64());
        assert!(wide.eq(narrow.output), "{options:?}");
    }
}

#[test]
fn zeros_and_constants_are_numbers() {
    let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 1, 130, 64]);
    for value in [0.0, -0.0, 6e-8, 1.0, -65504.0] {
        let elements = vec![f16::from_f32(value); 130 * 64];
        for smooth in [true, false] {
            let options = AttentionOptions { smooth_k: smooth, smooth_v: smooth, ..Default::default() };
            let quantized = testing::quantize(&problem, &options, [&elements, &elements, &elements]);
            let scales = [&quantized.query_scales, &quantized.key_scales, &quantized.value_scales];
            assert!(scales.into_iter().flatten().all(|scale| scale.is_finite() && *scale > 0.0));
            assert!(quantized.value_mean_codes.iter().all(|code| code.is_finite()));
            assert!(quantized.value_codes.iter().all(|&code| !f32_from_e4m3(code).is_nan()));
        }
    }
}
