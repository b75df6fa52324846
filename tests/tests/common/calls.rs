use proptest::prelude::*;
use sage_tests::modes::{MASKS, element_types};
use sageattention::{AttentionOptions, AttentionProblem, PvAccum, PvMode, QkMode, QuantGranularity, TensorLayout};

/// Lengths at the edges of tiles, chunks and warps, in these modes, all masks, with and without sinks, every granularity, grouped heads, both layouts.
pub fn calls(
    pv_modes: &'static [(PvMode, PvAccum)],
    qk_modes: &'static [(QkMode, bool)],
) -> impl Strategy<Value = (AttentionProblem, AttentionOptions)> {
    let lengths = (1usize..=300, 1usize..=300);
    let heads = prop::sample::select(vec![(1, 1), (2, 1), (4, 2)]);
    let head_dim = prop::sample::select(vec![64, 128, 64, 128, 40, 72, 96, 33, 160, 200, 256]);
    let value_head_dim = prop::sample::select(vec![None, None, None, Some(64), Some(128), Some(192), Some(29)]);
    let layout = prop::sample::select(vec![TensorLayout::Hnd, TensorLayout::Nhd]);
    let mask = prop::sample::select(&MASKS[..]);
    let granularity = prop::sample::select(QuantGranularity::ALL.to_vec());
    let pv = prop::sample::select(pv_modes);
    let flags = (any::<[bool; 4]>(), any::<prop::sample::Index>());
    let qk_mode = prop::sample::select(qk_modes);
    (lengths, heads, (head_dim, value_head_dim), layout, mask, granularity, (pv, flags, qk_mode)).prop_map(
        |(
            (queries, keys),
            (query_heads, key_heads),
            (head_dim, value_head_dim),
            layout,
            mask,
            granularity,
            ((pv_mode, pv_accum), flags, (qk_mode, smooth_q)),
        )| {
            let ([smooth_k, smooth_v, return_lse, sinks], dtype) = flags;
            let value_head_dim = value_head_dim.unwrap_or(head_dim);
            // no kernels for others with so many channels
            let (qk_mode, smooth_q) =
                if head_dim.max(value_head_dim) > 128 { (QkMode::Int8, false) } else { (qk_mode, smooth_q) };
            let shape = [1, query_heads, queries, head_dim];
            let problem = AttentionProblem::cross(
                layout,
                *dtype.get(element_types((pv_mode, pv_accum))),
                shape,
                [key_heads, keys],
            )
            .with_value_head_dim(value_head_dim);
            let options = AttentionOptions {
                qk_mode,
                smooth_q,
                pv_mode,
                pv_accum,
                mask,
                granularity,
                smooth_k,
                smooth_v,
                return_lse,
                sinks,
                ..Default::default()
            };
            (problem, options)
        },
    )
}
