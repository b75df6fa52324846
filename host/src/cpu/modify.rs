//! What is done to a row's scores before the softmax: a soft cap, a bias, a boolean mask.

use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

use crate::options::CallInputs;
use crate::plan::Resolved;

/// A row of scores, in natural units: the one place that says what is done to them, in which order.
///
/// `place` is the row's batch, query head and query; `keys` are those whose scores these are, which exist.
pub(super) fn modify(
    plan: &Resolved,
    call_inputs: &CallInputs,
    [batch, head, query]: [usize; 3],
    keys: Range<usize>,
    scores: &mut [f64],
) {
    let options = &plan.options;
    if let Some(cap) = options.soft_cap.map(f64::from) {
        scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
    }
    if let (Some(bias), Some(elements)) = (options.bias, call_inputs.bias) {
        for (score, key) in scores.iter_mut().zip(keys.clone()) {
            *score += f64::from(elements.get(bias.strides.offset([batch, head, query, key])));
        }
    }
    if let (Some(strides), Some(elements)) = (options.boolean_mask, call_inputs.boolean_mask) {
        for (score, key) in scores.iter_mut().zip(keys) {
            if elements[strides.offset([batch, head, query, key])] == 0 {
                *score = f64::NEG_INFINITY;
            }
        }
    }
}

/// The same for scores in octaves that lack what smoothed keys took out of their row. Returns the largest.
pub(super) fn modify_octaves(
    plan: &Resolved,
    call_inputs: &CallInputs,
    place: [usize; 3],
    keys: Range<usize>,
    shift: f32,
    scores: &mut [f32],
) -> f32 {
    let shift = if plan.options.soft_cap.is_some() { shift } else { 0.0 };
    let mut natural: Vec<f64> = scores.iter().map(|score| f64::from(score * LN_2 + shift)).collect();
    modify(plan, call_inputs, place, keys, &mut natural);
    let mut largest = f32::NEG_INFINITY;
    for (score, natural) in scores.iter_mut().zip(natural) {
        *score = natural as f32 * LOG2_E;
        largest = largest.max(*score);
    }
    largest
}
