//! Queries and keys as they are quantized: after rotary embedding and Hadamard rotation, with the GPU's bits.

use std::borrow::Cow;
use std::ops::{Add, Mul, Sub};

use rayon::prelude::*;
use sage_layout::params::Strides;
use sage_layout::rotation::hadamard_scale;
use sage_layout::tile::MAX_HEAD_DIM;

use super::view::View;
use super::zeroed;
use crate::element::Element;
use crate::error::Error;
use crate::options::{AttentionOptions, Rotary, RotaryTables};
use crate::plan::Resolved;
use crate::quantized::Operand;
use crate::tensor::{AttentionProblem, TensorLayout};

/// Queries and keys, and the plan for what is left to do with them.
pub(crate) struct Prepared<'a, T: Clone> {
    pub plan: Resolved,
    pub query: Cow<'a, [T]>,
    pub key: Cow<'a, [T]>,
}

/// Prepares one call's queries and keys, or one sequence's.
pub(crate) fn prepare<'a, T: Element>(
    plan: &Resolved,
    [query, key]: [&'a [T]; 2],
    tables: Option<RotaryTables<&[f32]>>,
) -> Result<Prepared<'a, T>, Error> {
    let options = plan.options;
    if options.rotary.is_none() && !options.hadamard {
        return Ok(Prepared { plan: *plan, query: query.into(), key: key.into() });
    }
    let head_dim = if options.hadamard { plan.padded_head_dim as usize } else { plan.problem.head_dim };
    let rotary = options.rotary.zip(tables);
    let (query, query_strides) = rotated(plan, Operand::Query, query, rotary, head_dim)?;
    let (key, key_strides) = rotated(plan, Operand::Key, key, rotary, head_dim)?;
    let plan = Resolved {
        problem: AttentionProblem { head_dim, query_strides, key_strides, ..plan.problem },
        options: AttentionOptions { rotary: None, hadamard: false, ..options },
        ..*plan
    };
    Ok(Prepared { plan, query: query.into(), key: key.into() })
}

/// Rotated queries or keys, contiguous, with so many channels; and their strides.
fn rotated<T: Element>(
    plan: &Resolved,
    operand: Operand,
    source: &[T],
    rotary: Option<(Rotary, RotaryTables<&[f32]>)>,
    head_dim: usize,
) -> Result<(Vec<T>, Strides), Error> {
    let ([batch, heads, tokens, existing], strides) = plan.problem.operand(operand);
    let source = View { elements: source, strides, head_dim: existing };
    let mut elements: Vec<T> = zeroed("rotated queries and keys", batch * heads * tokens * head_dim)?;
    elements.par_chunks_exact_mut(head_dim).enumerate().for_each(|(index, elements)| {
        let token = index % tokens;
        let mut row = [0.0f32; MAX_HEAD_DIM as usize];
        source.read_row([index / tokens / heads, index / tokens % heads, token], &mut row);
        if let Some((rotary, tables)) = rotary {
            turn(&rotary, tables, operand, token, &mut row);
        }
        if plan.options.hadamard {
            hadamard(&mut row[..head_dim]);
        }
        for (element, value) in elements.iter_mut().zip(row) {
            *element = T::from_prepared(value);
        }
    });
    Ok((elements, TensorLayout::Hnd.strides(heads, tokens, head_dim)))
}

/// Rotary embedding of a query's or key's row, the `token`-th of its sequence.
pub(super) fn turn<F>(rotary: &Rotary, tables: RotaryTables<&[f32]>, operand: Operand, token: usize, row: &mut [F])
where
    F: Copy + From<f32> + Add<Output = F> + Sub<Output = F> + Mul<Output = F>,
{
    let offset = if operand == Operand::Query { rotary.query_offset } else { rotary.key_offset };
    let half = rotary.dim / 2;
    let of_position = |table: &'_ [f32], pair: usize| F::from(table[(token + offset) * half + pair]);
    for pair in 0..half {
        let [x, y] = rotary.pairs.channels_of(pair as u32, rotary.dim as u32).map(|channel| channel as usize);
        let (cos, sin) = (of_position(tables.cos, pair), of_position(tables.sin, pair));
        (row[x], row[y]) = (row[x] * cos - row[y] * sin, row[y] * cos + row[x] * sin);
    }
}

/// Hadamard rotation, in the stages of [`sage_layout::rotation`].
fn hadamard(row: &mut [f32]) {
    let mut distance = 1;
    while distance < row.len() {
        for pair in row.chunks_exact_mut(2 * distance) {
            let (first, second) = pair.split_at_mut(distance);
            for (a, b) in first.iter_mut().zip(second) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        distance *= 2;
    }
    let scale = hadamard_scale(row.len() as u32);
    row.iter_mut().for_each(|element| *element *= scale);
}
