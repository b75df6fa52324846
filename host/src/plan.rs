//! Checking a call, once, before anything runs.

use crate::options::{AttentionOptions, CausalAlign, Mask};
use crate::tensor::AttentionProblem;

/// A problem and its options after all checks, with everything that follows from them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Resolved {
    pub problem: AttentionProblem,
    pub options: AttentionOptions,
    /// The options' scale, or head_dim^-½.
    pub softmax_scale: f32,
    /// See [`sage_layout::visibility`].
    pub diagonal: i32,
    /// 64 or 128.
    pub padded_head_dim: u32,
}

impl Resolved {
    /// Derives what follows from a problem and options that are known to be valid.
    pub(crate) fn derive(problem: AttentionProblem, options: AttentionOptions) -> Self {
        let diagonal = match options.mask {
            Mask::None => problem.key_len as i32,
            Mask::Causal | Mask::CausalAligned(CausalAlign::TopLeft) => 0,
            Mask::CausalAligned(CausalAlign::BottomRight) => problem.key_len as i32 - problem.query_len as i32,
        };
        Self {
            problem,
            options,
            softmax_scale: options.softmax_scale.unwrap_or((problem.head_dim as f32).powf(-0.5)),
            diagonal,
            padded_head_dim: sage_layout::tile::padded_head_dim(problem.head_dim as u32).expect("checked"),
        }
    }
}
