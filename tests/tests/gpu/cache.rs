//! Caches of quantized keys and values: pages as the CPU's, bit for bit, and attention near the CPU's.

use half::{bf16, f16};
use sage_tests::cache::{Steps, assert_near};
use sage_tests::gpu::gpu;
use sageattention::{CacheOptions, CacheProblem, CausalAlign, Device, Element, Error, Mask};

use crate::{LAYOUTS, pick};

fn compare<T: Element>(problem: CacheProblem, options: CacheOptions, seed: u64) -> Result<(), Error> {
    let (mut steps, mut twin) = (Steps::<T>::new(problem, options, seed)?, Steps::<T>::new(problem, options, seed)?);
    for step in 0..3 {
        steps.append(Device::Gpu(0))?;
        twin.append(Device::Cpu)?;
        assert!(steps.cache == twin.cache, "pages differ\n{problem:?}\n{options:?}");
        steps.forget(step % problem.batch, problem.tokens / 3);
        twin.forget(step % problem.batch, problem.tokens / 3);
        let query = twin.query();
        steps.query();
        let (found, expected) = (steps.attend(Device::Gpu(0), &query)?, twin.attend(Device::Cpu, &query)?);
        assert_near(&found, &expected, 2e-3, (problem, options));
        assert_eq!(steps.attend(Device::Gpu(0), &query)?, found, "the same bits each time");
    }
    Ok(())
}

/// Batch, query heads, key heads, tokens, channels, parts: one warp and four, rows of several heads, parts without keys.
const SHAPES: [([usize; 5], Option<usize>); 10] = [
    ([1, 1, 1, 1, 64], Some(1)),
    ([3, 8, 1, 1, 128], Some(4)),
    ([2, 6, 2, 5, 128], None),
    ([2, 4, 4, 64, 64], Some(3)),
    ([1, 8, 2, 200, 128], Some(128)),
    ([5, 32, 8, 2, 72], None),
    ([2, 3, 1, 2, 256], Some(2)),
    ([1, 16, 4, 33, 256], Some(5)),
    ([1, 2, 2, 500, 40], None),
    ([2, 5, 1, 17, 1], Some(7)),
];

#[test]
fn near_the_cpu() -> Result<(), Error> {
    if gpu().is_none() {
        return Ok(());
    }
    let window = Mask::Window { left: Some(70), right: Some(3), align: CausalAlign::BottomRight };
    let masks = [Mask::None, Mask::CausalAligned(CausalAlign::BottomRight), window];
    for (index, ([batch, query_heads, key_heads, tokens, head_dim], splits)) in SHAPES.into_iter().enumerate() {
        for (turn, mask) in masks.into_iter().enumerate() {
            let shape = [batch, query_heads, tokens, head_dim];
            let problem = CacheProblem::new(pick(&LAYOUTS, index), f16::DTYPE, shape, key_heads, 3 * tokens + 700);
            let is_odd = |number: usize| number % 2 == 1;
            let options = CacheOptions {
                mask,
                return_lse: !is_odd(index + turn) || index % 4 == 3,
                smooth_k: is_odd(index / 2 + turn),
                sinks: index % 3 == turn,
                soft_cap: (index % 4 == turn).then_some(5.0),
                page_table: is_odd(index + turn),
                splits,
                ..Default::default()
            };
            compare::<f16>(problem, options, index as u64)?;
            let pages_per_sequence = 2 * problem.pages_per_sequence;
            let pages = batch * pages_per_sequence + 3;
            let small_pages =
                CacheProblem { page_tokens: 64, pages, pages_per_sequence, dtype: bf16::DTYPE, ..problem };
            compare::<bf16>(small_pages, options, index as u64)?;
            let value_head_dim = pick(&[128, 40, 64], index);
            compare::<f16>(problem.with_value_head_dim(value_head_dim), options, index as u64)?;
        }
    }
    Ok(())
}
