//! Attention to parts of the keys, merged: for ring attention, where each GPU has some of them.

use crate::attention::AttentionOutput;
use crate::element::Element;
use crate::error::Error;
use rayon::prelude::*;

/// Merges attention of the same queries to two parts of the keys into attention to all of them.
///
/// A part is the output, rows of `value_head_dim` channels one after the other, and each row's log-sum-exp (natural logarithm; −∞ for a
/// row that saw no key, whose output does not count). The result has the rows in the same order. More parts are merged one by
/// one; a sink belongs into one of them.
///
/// ```
/// use half::f16;
/// use sageattention::merge;
///
/// // one row of two channels: a key with logit 0 and value 1, and three keys with logit 0 and value 5
/// let parts = [[f16::from_f32(1.0); 2], [f16::from_f32(5.0); 2]];
/// let merged = merge([&parts[0], &parts[1]], [&[0.0], &[3.0f32.ln()]], 2)?;
/// assert_eq!(merged.output, [f16::from_f32(4.0); 2]);
/// assert!((merged.log_sum_exp.unwrap()[0] - 4.0f32.ln()).abs() < 1e-6);
/// # Ok::<(), sageattention::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::SliceLength`] for slices that are not equally many rows.
pub fn merge<T: Element>(
    outputs: [&[T]; 2],
    log_sum_exps: [&[f32]; 2],
    value_head_dim: usize,
) -> Result<AttentionOutput<T>, Error> {
    let rows = log_sum_exps[0].len();
    let needed = rows.saturating_mul(value_head_dim);
    let sizes = [
        ("log_sum_exps[1]", log_sum_exps[1].len(), rows),
        ("outputs[0]", outputs[0].len(), needed),
        ("outputs[1]", outputs[1].len(), needed),
    ];
    for (argument, got, needed) in sizes {
        if got != needed {
            return Err(Error::SliceLength { argument, got, needed });
        }
    }
    let mut output = crate::cpu::zeroed("output", needed)?;
    let log_sum_exp = log_sum_exps[0].iter().zip(log_sum_exps[1]).map(|(a, b)| weigh([*a, *b]).1).collect();
    output.par_chunks_mut(value_head_dim.max(1)).enumerate().for_each(|(row, output): (usize, &mut [T])| {
        let weights = weigh(log_sum_exps.map(|log_sum_exps| log_sum_exps[row])).0;
        for (channel, element) in output.iter_mut().enumerate() {
            // what has no weight may be anything
            let part = |part: usize| match weights[part] {
                0.0 => 0.0,
                weight => weight * outputs[part][row * value_head_dim + channel].to_f32(),
            };
            *element = T::from_f32(part(0) + part(1));
        }
    });
    Ok(AttentionOutput { output, log_sum_exp: Some(log_sum_exp) })
}

/// The parts' weights, and the log-sum-exp of both.
fn weigh([a, b]: [f32; 2]) -> ([f32; 2], f32) {
    let largest = if a > b || a.is_nan() { a } else { b };
    if largest == f32::NEG_INFINITY {
        return ([0.0; 2], largest);
    }
    let weights = [a, b].map(|log_sum_exp| (log_sum_exp - largest).exp());
    let sum = weights[0] + weights[1];
    (weights.map(|weight| weight / sum), largest + sum.ln())
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn a_part_without_keys_does_not_count() {
        let part = [f16::from_f32(2.0), f16::from_f32(3.0)];
        let nothing = [f16::NAN; 2];
        for (outputs, log_sum_exps) in
            [([&part, &nothing], [1.5, f32::NEG_INFINITY]), ([&nothing, &part], [f32::NEG_INFINITY, 1.5])]
        {
            let merged = merge(outputs.map(|output| &output[..]), [&log_sum_exps[..1], &log_sum_exps[1..]], 2).unwrap();
            assert_eq!((merged.output, merged.log_sum_exp), (part.to_vec(), Some(vec![1.5])));
        }
        let merged = merge([&nothing, &nothing], [&[f32::NEG_INFINITY], &[f32::NEG_INFINITY]], 2).unwrap();
        assert_eq!((merged.output, merged.log_sum_exp), (vec![f16::ZERO; 2], Some(vec![f32::NEG_INFINITY])));
        let merged = merge([&nothing, &part], [&[f32::NAN], &[1.0]], 2).unwrap();
        assert!(merged.output.iter().all(|element| element.is_nan()));
    }

    #[test]
    fn sizes_must_agree() {
        let part = [f16::ONE; 4];
        let sizes = merge([&part, &part[..2]], [&[0.0; 2], &[0.0; 2]], 2).unwrap_err();
        assert_eq!(sizes, Error::SliceLength { argument: "outputs[1]", got: 2, needed: 4 });
        assert!(merge([&part, &part], [&[0.0; 2], &[0.0; 1]], 2).is_err());
        assert!(merge::<f16>([&[], &[]], [&[], &[]], 0).unwrap().output.is_empty());
    }
}
