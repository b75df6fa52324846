//! The kernels of a cache in the SIMT executor: pages as the CPU's, bit for bit, and attention near the CPU's.

use half::{bf16, f16};
use sage_tests::cache::{Steps, assert_near};
use sageattention::{CacheOptions, CacheProblem, CausalAlign, Device, Element, Error, Mask, TensorLayout};

fn compare<T: Element>(problem: CacheProblem, options: CacheOptions, seed: u64) -> Result<(), Error> {
    let mut steps = Steps::<T>::new(problem, options, seed)?;
    let mut twin = Steps::<T>::new(problem, options, seed)?;
    for step in 0..2 {
        steps.append(Device::Simt)?;
        twin.append(Device::Cpu)?;
        assert!(steps.cache == twin.cache, "pages differ\n{problem:?}\n{options:?}");
        steps.forget(step % problem.batch, problem.tokens / 3);
        twin.forget(step % problem.batch, problem.tokens / 3);
        let query = twin.query();
        assert_eq!(query.len(), steps.query().len());
        let expected = twin.attend(Device::Cpu, &query)?;
        assert_near(&steps.attend(Device::Simt, &query)?, &expected, 2e-3, (problem, options));
    }
    Ok(())
}

#[test]
fn kernels_are_near_the_cpu() -> Result<(), Error> {
    let window = Mask::Window { left: Some(70), right: Some(3), align: CausalAlign::BottomRight };
    let masks = [Mask::None, Mask::CausalAligned(CausalAlign::BottomRight), window];
    // query heads, key heads, tokens, channels, parts: one warp and four, rows of several heads, parts without keys
    let shapes = [(8, 1, 1, 64, 1), (6, 2, 5, 128, 3), (2, 2, 70, 40, 2), (4, 1, 33, 128, 7), (3, 1, 2, 256, 2)];
    for (index, (query_heads, key_heads, tokens, head_dim, splits)) in shapes.into_iter().enumerate() {
        let mask = masks[index % 3];
        let layout = if index % 2 == 0 { TensorLayout::Nhd } else { TensorLayout::Hnd };
        let shape = [2, query_heads, tokens, head_dim];
        let problem = CacheProblem::new(layout, f16::DTYPE, shape, key_heads, 300);
        let options = CacheOptions {
            mask,
            return_lse: true,
            smooth_k: index % 2 == 0,
            sinks: index % 3 == 1,
            soft_cap: (index % 2 == 0).then_some(4.0),
            page_table: index % 2 == 1,
            splits: Some(splits),
            ..Default::default()
        };
        compare::<f16>(problem, options, index as u64)?;
        let small_pages =
            CacheProblem { page_tokens: 64, pages: 15, pages_per_sequence: 5, dtype: bf16::DTYPE, ..problem };
        compare::<bf16>(small_pages, options, index as u64)?;
    }
    Ok(())
}

/// Blocks have rows of the larger head dimension.
#[test]
fn values_of_another_head_dimension() -> Result<(), Error> {
    for (head_dim, value_head_dim) in [(192, 128), (64, 128), (40, 21)] {
        let problem = CacheProblem::new(TensorLayout::Nhd, f16::DTYPE, [2, 4, 3, head_dim], 2, 300);
        let options = CacheOptions { return_lse: true, smooth_k: true, splits: Some(2), ..Default::default() };
        compare::<f16>(problem.with_value_head_dim(value_head_dim), options, 1)?;
    }
    Ok(())
}
