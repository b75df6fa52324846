//! Attention in f64.

use rayon::prelude::*;
use sage_layout::tile::{KEY_TILE, MAX_HEAD_DIM};

use super::modify::modify;
use super::prepare::turn;
use super::simd::{self, InstructionSet, Matrix};
use super::view::View;
use crate::element::Element;
use crate::options::CallInputs;
use crate::plan::Resolved;
use crate::quantized::Operand;

/// Query rows that are worked on together.
const ROWS: usize = simd::ROWS;
const TILE: usize = KEY_TILE as usize;

/// Exact attention's result.
#[derive(Clone, Debug, PartialEq)]
pub struct ExactOutput {
    /// `[batch, query_heads, query_len, value_head_dim]`, contiguous.
    pub output: Vec<f64>,
    /// `[batch, query_heads, query_len]`: natural logarithm of each row's sum of exponentials, its sink's among them; −∞ where there
    /// are none.
    pub log_sum_exp: Vec<f64>,
}

/// Softmax attention without quantization: inputs widened to f64, every operation in f64.
///
/// Memory beyond the result: keys and values of the heads in flight in f64, and [`ROWS`] rows of scores a thread.
pub(crate) fn exact<T: Element>(
    plan: &Resolved,
    [query, key, value]: [&[T]; 3],
    call_inputs: &CallInputs,
) -> ExactOutput {
    let problem = &plan.problem;
    let (head_dim, value_head_dim) = (problem.head_dim, problem.value_head_dim);
    let heads_per_key_head = problem.query_heads / problem.key_heads;
    let query = View { elements: query, strides: problem.query_strides, head_dim };
    let key = View { elements: key, strides: problem.key_strides, head_dim };
    let value = View { elements: value, strides: problem.value_strides, head_dim: value_head_dim };

    let rows = problem.batch * problem.query_heads * problem.query_len;
    let mut output = vec![0.0; rows * value_head_dim];
    let mut log_sum_exp = vec![f64::NEG_INFINITY; rows];
    let group_rows = heads_per_key_head * problem.query_len;
    output
        .par_chunks_mut(group_rows * value_head_dim)
        .zip(log_sum_exp.par_chunks_mut(group_rows))
        .enumerate()
        .for_each(|(batch_head, (output, log_sum_exp))| {
            let (batch, key_head) = (batch_head / problem.key_heads, batch_head % problem.key_heads);
            let operands = Operands::read(plan, call_inputs, &key, &value, [batch, key_head]);
            let head_outputs = output.par_chunks_mut(problem.query_len * value_head_dim);
            let head_sums = log_sum_exp.par_chunks_mut(problem.query_len);
            head_outputs.zip(head_sums).enumerate().for_each(|(head, (output, log_sum_exp))| {
                let head = key_head * heads_per_key_head + head;
                let blocks = output.par_chunks_mut(ROWS * value_head_dim).zip(log_sum_exp.par_chunks_mut(ROWS));
                blocks.enumerate().for_each(|(block, (output, log_sum_exp))| {
                    operands.attend(plan, &query, call_inputs, [batch, head, block * ROWS], output, log_sum_exp);
                });
            });
        });
    ExactOutput { output, log_sum_exp }
}

/// A query's or key's row after rotary embedding, if the options ask for it. They need not know of a Hadamard rotation: it is exact.
fn turned(
    plan: &Resolved,
    call_inputs: &CallInputs,
    operand: Operand,
    token: usize,
    row: &[f32; MAX_HEAD_DIM as usize],
) -> [f64; MAX_HEAD_DIM as usize] {
    let mut row = row.map(f64::from);
    if let (Some(rotary), Some(tables)) = (plan.options.rotary, call_inputs.rotary) {
        turn(&rotary, tables, operand, token, &mut row);
    }
    row
}

/// Keys and values of one head.
struct Operands {
    /// `[key tiles][padded head_dim][128]`.
    key: Vec<f64>,
    /// `[key tiles · 128][padded head_dim]`.
    value: Vec<f64>,
}

impl Operands {
    fn read<T: Element>(
        plan: &Resolved,
        call_inputs: &CallInputs,
        key: &View<T>,
        value: &View<T>,
        [batch, head]: [usize; 2],
    ) -> Self {
        let width = plan.padded_head_dim as usize;
        let tokens = plan.problem.key_len.next_multiple_of(TILE);
        let mut operands = Self { key: vec![0.0; tokens * width], value: vec![0.0; tokens * width] };
        let tiles = operands.key.par_chunks_mut(TILE * width).zip(operands.value.par_chunks_mut(TILE * width));
        tiles.enumerate().for_each(|(tile, (keys, values))| {
            let mut row = [0.0f32; MAX_HEAD_DIM as usize];
            let mut value_row = row;
            for token in tile * TILE..plan.problem.key_len.min((tile + 1) * TILE) {
                let within = token % TILE;
                key.read_row([batch, head, token], &mut row);
                let wide = turned(plan, call_inputs, Operand::Key, token, &row);
                for (channel, &element) in wide[..width].iter().enumerate() {
                    keys[channel * TILE + within] = element;
                }
                value.read_row([batch, head, token], &mut value_row);
                for (wide, &element) in values[within * width..].iter_mut().zip(&value_row[..width]) {
                    *wide = f64::from(element);
                }
            }
        });
        operands
    }

    /// Attention of up to [`ROWS`] queries from `first` on.
    fn attend<T: Element>(
        &self,
        plan: &Resolved,
        query: &View<T>,
        call_inputs: &CallInputs,
        [batch, head, first]: [usize; 3],
        output: &mut [f64],
        log_sum_exp: &mut [f64],
    ) {
        let instructions = InstructionSet::detect();
        let width = plan.padded_head_dim as usize;
        let rows = log_sum_exp.len();
        let visible = |row: usize| plan.visible_keys(first + row);
        // the keys of later rows never end earlier
        let keys = visible(rows - 1).end.next_multiple_of(TILE);
        let sink = call_inputs.sinks.map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]));

        let mut queries = vec![0.0; ROWS * width];
        let mut narrow = [0.0f32; MAX_HEAD_DIM as usize];
        for (row, wide) in queries.chunks_exact_mut(width).take(rows).enumerate() {
            query.read_row([batch, head, first + row], &mut narrow);
            let turned = turned(plan, call_inputs, Operand::Query, first + row, &narrow);
            for (wide, element) in wide.iter_mut().zip(turned) {
                *wide = element * f64::from(plan.softmax_scale);
            }
        }

        let mut scores = vec![0.0; ROWS * keys];
        for (tile, key) in self.key.chunks_exact(width * TILE).take(keys / TILE).enumerate() {
            instructions.multiply_accumulate_f64(
                Matrix { elements: &queries, stride: width },
                Matrix { elements: key, stride: TILE },
                Matrix { elements: &mut scores[tile * TILE..], stride: keys },
                [width, TILE],
            );
        }
        let mut sums = [0.0; ROWS];
        for row in 0..rows {
            let visible = visible(row);
            let scores = &mut scores[row * keys..(row + 1) * keys];
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
            let seen = &mut scores[visible.clone()];
            modify(plan, call_inputs, [batch, head, first + row], visible, seen);
            let max = seen.iter().copied().fold(sink, f64::max);
            if max == f64::NEG_INFINITY {
                seen.fill(0.0);
                continue;
            }
            for score in seen.iter_mut() {
                *score = (*score - max).exp();
            }
            sums[row] = seen.iter().sum::<f64>() + (sink - max).exp();
            log_sum_exp[row] = max + sums[row].ln();
        }

        let mut products = vec![0.0; ROWS * width];
        instructions.multiply_accumulate_f64(
            Matrix { elements: &scores, stride: keys },
            Matrix { elements: &self.value, stride: width },
            Matrix { elements: &mut products, stride: width },
            [keys, width],
        );
        for (row, output) in output.chunks_exact_mut(plan.problem.value_head_dim).enumerate() {
            for (output, product) in output.iter_mut().zip(&products[row * width..]) {
                *output = if sums[row] == 0.0 { 0.0 } else { product / sums[row] };
            }
        }
    }
}
