//! Attention on codes.

use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use sage_layout::scale::{self, E4M3_MAX, KEY_SCALES_PER_TILE};
use sage_layout::tile::{KEY_CHUNK, SEGMENT_TILES, key_tiles, padded_queries, query_blocks, segments};

use super::modify::modify_octaves;
use super::prepare::{Prepared, prepare};
use super::quantize::{BLOCK, MAX_WIDTH, QUERY_TILE, Quantized, TILE, nth_row, quantize, read_keys, score_bias};
use super::simd::{InstructionSet, Matrix, ProbabilityFormat, QUAD, ROWS};
use super::view::{self, View};
use super::zeroed;
use crate::element::Element;
use crate::error::Error;
use crate::options::{CallInputs, PvAccum, PvMode};
use crate::plan::Resolved;
use crate::tensor::DType;

/// log₂ of a row's largest probability.
///
/// The GPU keeps a row's reference until a probability saturates, so its largest lies anywhere in some octaves from here on;
/// the CPU keeps it at their lower end.
fn ceiling(format: ProbabilityFormat, accum: PvAccum) -> f32 {
    match (format, accum) {
        (ProbabilityFormat::E4m3, _) => E4M3_MAX.log2() - 3.0,
        (ProbabilityFormat::F16, PvAccum::F32) => 5.0,
        // what is summed in f16 has to stay under 65504
        (ProbabilityFormat::F16, _) => 0.0,
        // products with values as large as f32's must add up to numbers
        (ProbabilityFormat::Bf16, _) => -20.0,
    }
}

/// How the products of probabilities and values are summed, as the tensor cores do it for a [`PvAccum`].
#[derive(Clone, Copy)]
struct Summation {
    /// Keys whose products are added up before the accumulator is rounded to f16: those of one `mma.sync`. `None` if
    /// it is f32.
    f16_step: Option<usize>,
    /// Keys after which the accumulator is added to f32 sums and starts anew. `None` if it never does.
    chunk: Option<usize>,
}

impl Summation {
    fn new(accum: PvAccum) -> Self {
        let chunk = KEY_CHUNK as usize;
        let (f16_step, chunk) = match accum {
            PvAccum::F32 => (None, None),
            PvAccum::F32F32 => (None, Some(chunk)),
            // mma.m16n8k16 in f16
            PvAccum::F16 => (Some(16), None),
            PvAccum::F16F32 => (Some(16), Some(chunk)),
            // mma.m16n8k32 in e4m3
            PvAccum::F32F16 => (Some(32), Some(chunk)),
        };
        Self { f16_step, chunk }
    }

    /// Whether sums are f16 from the first key to the last.
    fn stays_f16(self) -> bool {
        self.f16_step.is_some() && self.chunk.is_none()
    }

    /// Adds the products of a block's probabilities with a tile's values, `[128][width]`, to `sums`.
    fn multiply(self, probabilities: &[f32], values: &[f32], sums: Matrix<&mut [f32]>) {
        let instructions = InstructionSet::detect();
        let width = sums.stride;
        let multiply = |keys: Range<usize>, sums: &mut [f32]| {
            instructions.multiply_accumulate_f32(
                Matrix { elements: &probabilities[keys.start..], stride: TILE },
                Matrix { elements: &values[keys.start * width..], stride: width },
                Matrix { elements: sums, stride: width },
                [keys.len(), width],
            );
        };
        let multiply_in_steps = |keys: Range<usize>, sums: &mut [f32]| match self.f16_step {
            None => multiply(keys, sums),
            Some(step) => {
                for first in keys.clone().step_by(step) {
                    multiply(first..keys.end.min(first + step), sums);
                    instructions.round_to_f16(sums);
                }
            }
        };
        let sums = &mut sums.elements[..ROWS * width];
        let Some(chunk) = self.chunk else { return multiply_in_steps(0..TILE, sums) };
        for first in (0..TILE).step_by(chunk) {
            let mut accumulator = [0.0; ROWS * MAX_WIDTH];
            let accumulator = &mut accumulator[..ROWS * width];
            multiply_in_steps(first..TILE.min(first + chunk), accumulator);
            for (sum, accumulator) in sums.iter_mut().zip(accumulator) {
                *sum += *accumulator;
            }
        }
    }
}

/// Quantized attention (SageAttention2, algorithm 1).
///
/// `output` is written where the plan's output strides say, `log_sum_exp` is `[batch, query_heads, query_len]`.
/// Memory: the codes, one byte an element of query, key and value (two of a value in 16 bits), the keys' twice; nothing
/// grows with `query_len · key_len`. [`Error::OutOfMemory`] if there is not as much.
pub(crate) fn attend<T: Element>(
    plan: &Resolved,
    [query, key, value]: [&[T]; 3],
    call_inputs: &CallInputs,
    output: &mut [T],
    log_sum_exp: Option<&mut [f32]>,
) -> Result<(), Error> {
    let Prepared { plan, query, key } = prepare(plan, [query, key], call_inputs.rotary)?;
    let quantized = quantize(&plan, [&query, &key, value].map(Some), None)?;
    attend_quantized(&plan, [&quantized; 3], &key, call_inputs, output, log_sum_exp)
}

/// [`attend`] on queries, keys and values that were quantized, in one or each by itself. `key`, the caller's keys, is read with
/// `smooth_q` alone.
pub(crate) fn attend_quantized<T: Element>(
    plan: &Resolved,
    [query, quantized_key, value]: [&Quantized; 3],
    key: &[T],
    call_inputs: &CallInputs,
    output: &mut [T],
    log_sum_exp: Option<&mut [f32]>,
) -> Result<(), Error> {
    let problem = &plan.problem;
    let format = match (plan.options.pv_mode, T::DTYPE) {
        (PvMode::Fp8, _) => ProbabilityFormat::E4m3,
        (PvMode::F16, DType::F16 | DType::F32) => ProbabilityFormat::F16,
        (PvMode::F16, DType::Bf16) => ProbabilityFormat::Bf16,
    };
    let operands = Operands {
        keys: interleave_keys(quantized_key)?,
        key: View { elements: key, strides: problem.key_strides, head_dim: problem.head_dim },
        plan,
        call_inputs,
        format,
        summation: Summation::new(plan.options.pv_accum),
        query,
        quantized_key,
        value,
    };
    let tiles = problem.query_len.div_ceil(QUERY_TILE);
    // Held only while a finished tile is copied out.
    let destination = Mutex::new((output, log_sum_exp));
    (0..problem.batch * problem.query_heads * tiles).into_par_iter().for_each_init(
        || Scratch::new(query.width),
        |scratch, item| {
            // late tiles of a causal mask see the most keys: they go first
            let (batch_head, tile) = (item / tiles, tiles - 1 - item % tiles);
            let first = tile * QUERY_TILE;
            operands.attend_tile(scratch, batch_head, first);
            let mut destination = destination.lock().unwrap_or_else(PoisonError::into_inner);
            let (output, log_sum_exp) = &mut *destination;
            let (batch, head) = (batch_head / problem.query_heads, batch_head % problem.query_heads);
            for row in 0..QUERY_TILE.min(problem.query_len - first) {
                let start = view::offset(problem.output_strides, [batch, head, first + row]);
                let finished = &scratch.output[row * query.width..];
                for (element, &value) in output[start..start + problem.value_head_dim].iter_mut().zip(finished) {
                    *element = T::from_f32(value);
                }
                if let Some(log_sum_exp) = log_sum_exp {
                    log_sum_exp[batch_head * problem.query_len + first + row] = scratch.rows[row].log_sum_exp;
                }
            }
        },
    );
    Ok(())
}

/// The keys in the order of [`InstructionSet::dots`]: `[key heads][key tiles][width / 4][128][4]`.
fn interleave_keys(quantized: &Quantized) -> Result<Vec<i8>, Error> {
    let width = quantized.width;
    let mut interleaved = zeroed("interleaved key codes", quantized.key_codes.len())?;
    let tiles = interleaved.par_chunks_exact_mut(TILE * width).zip(quantized.key_codes.par_chunks_exact(TILE * width));
    tiles.for_each(|(interleaved, codes)| {
        for (key, row) in codes.chunks_exact(width).enumerate() {
            for (quad, codes) in row.chunks_exact(QUAD).enumerate() {
                interleaved[(quad * TILE + key) * QUAD..][..QUAD].copy_from_slice(codes);
            }
        }
    });
    Ok(interleaved)
}

/// The online softmax of one query.
#[derive(Clone, Copy)]
struct Row {
    /// Largest score yet, in octaves.
    reference: f32,
    /// Sum of the probabilities of finished segments, and of the segment at work.
    sum: f32,
    segment_sum: f32,
    log_sum_exp: f32,
}

/// What one query tile needs.
struct Scratch {
    rows: [Row; QUERY_TILE],
    dots: Box<[[i32; TILE]; ROWS]>,
    probabilities: Vec<f32>,
    /// `[128][width]`.
    values: Vec<f32>,
    /// With `smooth_q`: keys less their mean, `[128][width]`, and what they add to the tile's scores.
    smoothed_keys: Vec<f32>,
    bias: [f32; TILE],
    /// `[64][width]`: products of the segment at work.
    segment: Vec<f32>,
    /// `[64][width]`: products of finished segments, in the end the output.
    output: Vec<f32>,
}

impl Scratch {
    fn new(width: usize) -> Self {
        Self {
            rows: [Row { reference: 0.0, sum: 0.0, segment_sum: 0.0, log_sum_exp: 0.0 }; QUERY_TILE],
            dots: Box::new([[0; TILE]; ROWS]),
            probabilities: vec![0.0; ROWS * TILE],
            values: vec![0.0; TILE * width],
            smoothed_keys: vec![0.0; TILE * width],
            bias: [0.0; TILE],
            segment: vec![0.0; QUERY_TILE * width],
            output: vec![0.0; QUERY_TILE * width],
        }
    }

    fn reset(&mut self) {
        self.rows.fill(Row { reference: f32::NEG_INFINITY, sum: 0.0, segment_sum: 0.0, log_sum_exp: 0.0 });
        self.segment.fill(0.0);
        self.output.fill(0.0);
    }
}

struct Operands<'a, T> {
    plan: &'a Resolved,
    call_inputs: &'a CallInputs<'a>,
    /// The caller's.
    key: View<'a, T>,
    format: ProbabilityFormat,
    summation: Summation,
    query: &'a Quantized,
    quantized_key: &'a Quantized,
    value: &'a Quantized,
    /// Key codes, interleaved.
    keys: Vec<i8>,
}

impl<T: Element> Operands<'_, T> {
    /// Attention of the 64 queries from `first` on; result and log-sum-exp are left in `scratch`.
    fn attend_tile(&self, scratch: &mut Scratch, batch_head: usize, first: usize) {
        let (plan, width) = (self.plan, self.query.width);
        let problem = &plan.problem;
        let instructions = InstructionSet::detect();
        let key_head = batch_head / (problem.query_heads / problem.key_heads);
        let tile_count = key_tiles(problem.key_len as u32) as usize;
        let segment_count = segments(problem.key_len as u32) as usize;
        let rows = QUERY_TILE.min(problem.query_len - first);
        let visible = |row: usize| plan.visible_keys(first + row);
        // neither end of later rows' keys is smaller
        let tiles = visible(0).start / TILE..visible(rows - 1).end.div_ceil(TILE);

        let ceiling = ceiling(self.format, plan.options.pv_accum);
        let key_mean = nth_row(&self.quantized_key.key_mean, key_head, width);
        let query_block = batch_head * query_blocks(problem.query_len as u32) as usize + first / BLOCK;
        let query_mean = nth_row(&self.query.query_means, query_block, width);

        let padded_row = batch_head * padded_queries(problem.query_len as u32) as usize + first;
        let shifts = self.query.log_sum_exp_shift.get(padded_row..).unwrap_or_default();

        scratch.reset();
        for tile in tiles.clone() {
            let tile_index = key_head * tile_count + tile;
            let keys = &self.keys[tile_index * TILE * width..][..TILE * width];
            let values = tile_index * TILE * width..(tile_index + 1) * TILE * width;
            match plan.options.pv_mode {
                PvMode::Fp8 => instructions.decode_e4m3(&self.value.value_codes[values], &mut scratch.values),
                PvMode::F16 => {
                    T::Rounded::widen(bytemuck::cast_slice(&self.value.value_elements[values]), &mut scratch.values);
                }
            }
            let stored = &self.quantized_key.key_scales[tile_index * KEY_SCALES_PER_TILE as usize..];
            let key_scales = std::array::from_fn(|key| stored[scale::key_scale_index(key as u32) as usize]);
            let bias = query_mean.map(|query_mean| {
                read_keys(plan, &self.key, key_mean, [key_head, tile], &mut scratch.smoothed_keys);
                score_bias(plan, query_mean, &scratch.smoothed_keys, &mut scratch.bias);
                &scratch.bias
            });
            let visible_here = |row: usize| {
                let Range { start, end } = visible(row);
                let here = |key: usize| key.saturating_sub(tile * TILE).min(TILE);
                here(start)..here(end)
            };

            for block in (0..rows).step_by(ROWS) {
                let block_rows = block..rows.min(block + ROWS);
                if visible_here(block_rows.start).start >= visible_here(block_rows.end - 1).end {
                    continue;
                }
                let padded_row = batch_head * padded_queries(problem.query_len as u32) as usize + first + block;
                let queries = &self.query.query_codes[padded_row * width..][..ROWS * width];
                instructions.dots(queries, keys, &mut scratch.dots);
                scratch.probabilities.fill(0.0);
                for row in block_rows {
                    let probabilities = scratch.probabilities[(row - block) * TILE..].first_chunk_mut();
                    let visible = visible_here(row);
                    let (Some(probabilities), false) = (probabilities, visible.is_empty()) else { continue };
                    let dots = &scratch.dots[row - block];
                    let query_scale = self.query_scale(batch_head, first + row);
                    let mut max =
                        instructions.scores(dots, &key_scales, query_scale, bias, visible.clone(), probabilities);
                    if plan.modifies_scores() {
                        let place = [batch_head / problem.query_heads, batch_head % problem.query_heads, first + row];
                        let keys = tile * TILE + visible.start..tile * TILE + visible.end;
                        let shift = shifts.get(row).copied().unwrap_or(0.0);
                        let scores = &mut probabilities[visible];
                        max = modify_octaves(plan, self.call_inputs, place, keys, shift, scores);
                        if max == f32::NEG_INFINITY {
                            probabilities.fill(0.0);
                            continue;
                        }
                    }
                    let state = &mut scratch.rows[row];
                    if max > state.reference {
                        let factor = (state.reference - max).exp2();
                        state.reference = max;
                        state.sum *= factor;
                        state.segment_sum *= factor;
                        let segment = &mut scratch.segment[row * width..][..width];
                        if self.summation.stays_f16() {
                            rescale_f16(segment, factor);
                        } else {
                            segment.iter_mut().for_each(|sum| *sum *= factor);
                        }
                        for sum in &mut scratch.output[row * width..][..width] {
                            *sum *= factor;
                        }
                    }
                    let offset = ceiling - state.reference;
                    state.segment_sum += instructions.probabilities(self.format, probabilities, offset);
                }
                let sums = Matrix { elements: &mut scratch.segment[block * width..], stride: width };
                self.summation.multiply(&scratch.probabilities, &scratch.values, sums);
            }

            let segment = tile / SEGMENT_TILES as usize;
            let segment_ends = (tile + 1).is_multiple_of(SEGMENT_TILES as usize) && !self.summation.stays_f16();
            if tile + 1 == tiles.end || segment_ends {
                let means = self.value.value_mean_codes.get((key_head * segment_count + segment) * width..);
                scratch
                    .finish_segment(means.and_then(|means| means.get(..width)).unwrap_or(&[0.0; MAX_WIDTH][..width]));
            }
        }
        let scales = self.value.value_scales.get(key_head * width..).and_then(|scales| scales.get(..width));
        // capped scores are not smoothed any more
        let shifts = if plan.options.soft_cap.is_some() { &[] } else { shifts };
        let output_mean = nth_row(&self.value.output_mean, key_head, width);
        let head = batch_head % problem.query_heads;
        let sink = self.call_inputs.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head]);
        scratch.finish(scales.unwrap_or(&[1.0; MAX_WIDTH][..width]), output_mean, shifts, ceiling, sink);
    }

    fn query_scale(&self, batch_head: usize, row: usize) -> f32 {
        let stored = scale::query_scale_index(padded_queries(self.plan.problem.query_len as u32)) as usize;
        self.query.query_scales[batch_head * stored + scale::query_scale_index(row as u32) as usize]
    }
}

/// Multiplies sums in f16 by a factor in f16.
fn rescale_f16(sums: &mut [f32], factor: f32) {
    let mut factor = [factor];
    let instructions = InstructionSet::detect();
    instructions.round_to_f16(&mut factor);
    sums.iter_mut().for_each(|sum| *sum *= factor[0]);
    instructions.round_to_f16(sums);
}

impl Scratch {
    /// Adds the finished segment to the output: `Σ p · (value - mean) + (Σ p) · mean`, in units of the value scales.
    fn finish_segment(&mut self, means: &[f32]) {
        let width = means.len();
        let products = self.output.chunks_exact_mut(width).zip(self.segment.chunks_exact_mut(width));
        for (row, (output, segment)) in self.rows.iter_mut().zip(products) {
            for ((output, segment), mean) in output.iter_mut().zip(segment.iter_mut()).zip(means) {
                *output += *segment + row.segment_sum * mean;
                *segment = 0.0;
            }
            row.sum += row.segment_sum;
            row.segment_sum = 0.0;
        }
    }

    /// Turns sums into the output, and into natural log-sum-exps; a query that sees no key gets zeros and its head's sink, −∞ if
    /// there is none. `shifts` are what smoothed keys took out of the rows' logits.
    fn finish(&mut self, scales: &[f32], mean: Option<&[f32]>, shifts: &[f32], ceiling: f32, sink: f32) {
        for (index, (row, output)) in self.rows.iter_mut().zip(self.output.chunks_exact_mut(scales.len())).enumerate() {
            let shift = shifts.get(index).copied().unwrap_or(0.0);
            if row.sum == 0.0 {
                output.fill(0.0);
                row.log_sum_exp = sink;
                continue;
            }
            // ∞ if the keys are nothing beside the sink
            let sum = row.sum + ((sink - shift) * LOG2_E + ceiling - row.reference).exp2();
            for (output, scale) in output.iter_mut().zip(scales) {
                *output = *output * scale / sum;
            }
            if let Some(mean) = mean {
                for (output, mean) in output.iter_mut().zip(mean) {
                    *output += mean * (row.sum / sum);
                }
            }
            let octaves = sum.log2() - ceiling + row.reference;
            row.log_sum_exp = if sum == f32::INFINITY { sink } else { octaves * LN_2 + shift };
        }
    }
}
