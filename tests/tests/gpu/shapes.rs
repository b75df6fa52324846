//! Every kind of shape, near the CPU engine.

use crate::{DTYPES, LAYOUTS, compare, mixed_options, pick, with_lse};
use sage_tests::gpu::gpu;
use sageattention::{AttentionOptions, AttentionProblem, CausalAlign, Mask, QuantGranularity};

#[test]
fn all_lengths_from_1_to_260() {
    let Some(gpu) = gpu() else { return };
    for length in 1..=260 {
        let (layout, dtype) = (pick(&LAYOUTS, length / 2), pick(&DTYPES, length / 3));
        let head_dim = pick(&[64, 128, 256, 64, 128, 80, 200, 96, 192], length);
        compare(gpu, &AttentionProblem::new(layout, dtype, [1, 2, length, head_dim]), &mixed_options(length), 1);
    }
}

#[test]
fn odd_sizes() {
    let Some(gpu) = gpu() else { return };
    for (index, length) in [999, 1500, 2500].into_iter().enumerate() {
        for head_dim in [64, 96, 128, 192, 256] {
            for mask in [Mask::None, Mask::Causal] {
                let problem =
                    AttentionProblem::new(pick(&LAYOUTS, index), pick(&DTYPES, index), [1, 2, length, head_dim]);
                compare(gpu, &problem, &AttentionOptions { mask, ..with_lse() }, 2);
            }
        }
    }
}

/// 3 element types × 2 layouts × 7 head dimensions × 3 granularities × 2 masks. Rows of 1, 127 and (as bytes) 40 · 2 …
/// take the path without vector loads where they are no whole chunks.
#[test]
fn every_combination() {
    let Some(gpu) = gpu() else { return };
    for dtype in DTYPES {
        for layout in LAYOUTS {
            for head_dim in [64, 128, 40, 72, 96, 1, 127, 192] {
                for granularity in QuantGranularity::ALL {
                    for mask in [Mask::None, Mask::Causal] {
                        let problem = AttentionProblem::new(layout, dtype, [2, 3, 333, head_dim]);
                        compare(gpu, &problem, &AttentionOptions { granularity, mask, ..with_lse() }, 3);
                    }
                }
            }
        }
    }
}

#[test]
fn queries_and_keys_of_different_lengths() {
    let Some(gpu) = gpu() else { return };
    let masks = [Mask::None, Mask::CausalAligned(CausalAlign::TopLeft), Mask::CausalAligned(CausalAlign::BottomRight)];
    let lengths =
        [(1, 1), (1, 1000), (5, 3), (3, 5), (200, 77), (77, 200), (113, 203), (799, 3), (193, 128), (1025, 2051)];
    for (index, (query_len, key_len)) in lengths.into_iter().enumerate() {
        for mask in masks {
            for head_dim in [64, 96, 128, 192, 256] {
                let (layout, dtype) = (pick(&LAYOUTS, index), pick(&DTYPES, index / 2));
                let problem = AttentionProblem::cross(layout, dtype, [2, 2, query_len, head_dim], [2, key_len]);
                compare(gpu, &problem, &AttentionOptions { mask, ..with_lse() }, 4);
            }
        }
    }
}

#[test]
fn shared_key_heads_and_many_batches() {
    let Some(gpu) = gpu() else { return };
    for (query_heads, key_heads) in [(8, 2), (6, 1), (12, 4)] {
        for layout in LAYOUTS {
            let problem = AttentionProblem::cross(layout, DTYPES[0], [3, query_heads, 150, 64], [key_heads, 222]);
            compare(gpu, &problem, &with_lse(), 5);
        }
    }
    // More items than multiprocessors, several times over.
    compare(gpu, &AttentionProblem::new(LAYOUTS[0], DTYPES[1], [9, 40, 200, 64]), &mixed_options(3), 6);
}

/// Values with more channels than keys, and with fewer, as multi-head latent attention has them.
#[test]
fn values_of_another_head_dimension() {
    let Some(gpu) = gpu() else { return };
    let head_dims = [(192, 128), (64, 128), (128, 64), (96, 64), (100, 37), (37, 100), (130, 96), (16, 256), (1, 64)];
    for (index, (head_dim, value_head_dim)) in head_dims.into_iter().enumerate() {
        for (layout, dtype) in LAYOUTS.into_iter().zip([pick(&DTYPES, index), pick(&DTYPES, index + 1)]) {
            let problem = AttentionProblem::cross(layout, dtype, [2, 4, 300, head_dim], [2, 1333]);
            compare(gpu, &problem.with_value_head_dim(value_head_dim), &with_lse(), 8);
        }
    }
}

#[test]
fn softmax_scales() {
    let Some(gpu) = gpu() else { return };
    for softmax_scale in [1e-3, 0.5, 2.0] {
        let problem = AttentionProblem::new(LAYOUTS[0], DTYPES[0], [1, 2, 300, 64]);
        compare(gpu, &problem, &AttentionOptions { softmax_scale: Some(softmax_scale), ..with_lse() }, 7);
    }
}
