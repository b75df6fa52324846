//! Caches of quantized keys and values, on the CPU: near exact attention, and what must not matter does not.

use half::{bf16, f16};
use proptest::prelude::*;
use sage_tests::cache::{Steps, assert_near};
use sageattention::{
    CacheOptions, CachePlan, CacheProblem, CausalAlign, DType, Device, Element, Error, Mask, QuantizedKv, TensorLayout,
    merge,
};

const CAUSAL: Mask = Mask::CausalAligned(CausalAlign::BottomRight);

fn window(left: u32) -> Mask {
    Mask::Window { left: Some(left), right: Some(0), align: CausalAlign::BottomRight }
}

fn options() -> CacheOptions {
    CacheOptions { return_lse: true, ..Default::default() }
}

/// `[batch, query_heads, tokens, head_dim]`, key heads, and pages for 400 tokens a sequence.
fn problem<T: Element>(layout: TensorLayout, shape: [usize; 4], key_heads: usize) -> CacheProblem {
    CacheProblem::new(layout, T::DTYPE, shape, key_heads, 400)
}

fn near_exact<T: Element>(problem: CacheProblem, options: CacheOptions, seed: u64) -> Result<(), Error> {
    let mut steps = Steps::<T>::new(problem, options, seed)?;
    for step in 0..3 {
        steps.append(Device::Cpu)?;
        steps.forget(step % problem.batch, problem.tokens / 2);
        let query = steps.query();
        assert_near(&steps.attend(Device::Cpu, &query)?, &steps.exact(&query), 0.08, (problem, options));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    #[test]
    fn is_near_exact_attention(
        batch in 1usize..4, key_heads in 1usize..3, group in 1usize..6, tokens in 1usize..70,
        head_dim in prop::sample::select(vec![16usize, 40, 64, 72, 128, 200, 256]),
        value_head_dim in prop::sample::select(vec![None, None, Some(24usize), Some(128), Some(192)]),
        nhd in any::<bool>(), is_bf16 in any::<bool>(), page_table in any::<bool>(), small_pages in any::<bool>(),
        smooth_k in any::<bool>(), sinks in any::<bool>(), soft_cap in prop::option::of(2f32..50.0), mask in 0usize..4,
        seed in any::<u64>(),
    ) {
        let layout = if nhd { TensorLayout::Nhd } else { TensorLayout::Hnd };
        let shape = [batch, key_heads * group, tokens, head_dim];
        let base = if is_bf16 { problem::<bf16>(layout, shape, key_heads) } else { problem::<f16>(layout, shape, key_heads) };
        let problem = match small_pages {
            true => CacheProblem {
                page_tokens: 64, pages: base.pages * 2, pages_per_sequence: base.pages_per_sequence * 2, ..base
            },
            false => CacheProblem { pages: base.pages + 5, ..base },
        };
        let problem = problem.with_value_head_dim(value_head_dim.unwrap_or(head_dim));
        let mask = [Mask::None, CAUSAL, window(20), window(0)][mask];
        let options = CacheOptions { mask, smooth_k, sinks, soft_cap, page_table, ..options() };
        let result = if is_bf16 { near_exact::<bf16>(problem, options, seed) } else { near_exact::<f16>(problem, options, seed) };
        result.unwrap();
    }
}

/// Appended one by one, many at a time, in pages of any size, in order or not: the same codes, so the same bits.
#[test]
fn how_tokens_came_does_not_matter() -> Result<(), Error> {
    let one_by_one = problem::<f16>(TensorLayout::Hnd, [2, 4, 1, 72], 2);
    let at_once = problem::<f16>(TensorLayout::Hnd, [2, 4, 150, 72], 2);
    let options = CacheOptions { smooth_k: true, ..options() };
    let mut whole = Steps::<f16>::new(at_once, options, 3)?;
    whole.append(Device::Cpu)?;
    let query = whole.query();
    let expected = whole.attend(Device::Cpu, &query)?;

    let paged = CacheProblem { page_tokens: 64, pages: 40, pages_per_sequence: 7, ..one_by_one };
    let paged_options = CacheOptions { page_table: true, ..options };
    for (problem, options) in [(one_by_one, options), (paged, paged_options)] {
        let mut steps = Steps::<f16>::new(problem, options, 4)?;
        for token in 0..150 {
            let of_token = |part: usize| -> Vec<f16> {
                let sequences = whole.tokens.iter().flat_map(|tokens| tokens[token][part].iter());
                sequences.map(|element| f16::from_f64(*element)).collect()
            };
            steps.plan.append(Device::Cpu, &mut steps.cache, &of_token(0), &of_token(1))?;
        }
        let wide = CacheProblem {
            query_strides: at_once.query_strides,
            output_strides: at_once.output_strides,
            tokens: 150,
            ..problem
        };
        let plan = CachePlan::new(wide, options)?;
        assert_eq!(steps.attend_with(&plan, Device::Cpu, &query)?, expected);
        if !options.page_table {
            assert_eq!(steps.cache.lengths, whole.cache.lengths);
            assert!(steps.cache.pages == whole.cache.pages);
        }
    }
    Ok(())
}

/// A window as wide as the cache is none.
#[test]
fn a_full_window_is_a_causal_mask() -> Result<(), Error> {
    let problem = problem::<f16>(TensorLayout::Nhd, [1, 6, 30, 64], 3);
    let mut steps = Steps::<f16>::new(problem, CacheOptions { mask: CAUSAL, ..options() }, 5)?;
    steps.append(Device::Cpu)?;
    steps.append(Device::Cpu)?;
    let query = steps.query();
    let plan = CachePlan::new(problem, CacheOptions { mask: window(60), ..options() })?;
    assert_eq!(steps.attend_with(&plan, Device::Cpu, &query)?, steps.attend(Device::Cpu, &query)?);
    Ok(())
}

/// Caches of two halves of the keys, merged, are near the cache of all.
#[test]
fn merged_halves_are_the_whole() -> Result<(), Error> {
    let problem = problem::<f16>(TensorLayout::Hnd, [2, 4, 40, 64], 2);
    let mut whole = Steps::<f16>::new(problem, options(), 6)?;
    let mut halves = vec![QuantizedKv::new(&whole.plan)?; 2];
    let parts = 0..4;
    for part in parts {
        whole.append(Device::Cpu)?;
        let first = part * 40;
        let of_part = |index: usize| -> Vec<f16> {
            let heads = whole.tokens.iter().flat_map(|tokens| (0..2).map(move |head| (tokens, head)));
            heads
                .flat_map(|(tokens, head)| {
                    tokens[first..].iter().flat_map(move |token| token[index][head * 64..][..64].iter())
                })
                .map(|element| f16::from_f64(*element))
                .collect()
        };
        whole.plan.append(Device::Cpu, &mut halves[part / 2], &of_part(0), &of_part(1))?;
    }
    let query = whole.query();
    let results = halves.iter().map(|half| whole.plan.attend(Device::Cpu, half, &query, None));
    let results = results.collect::<Result<Vec<_>, _>>()?;
    let log_sum_exps = [0, 1].map(|half: usize| results[half].log_sum_exp.as_deref().expect("asked for"));
    let merged = merge([&results[0].output, &results[1].output], log_sum_exps, 64)?;
    let expected = whole.attend(Device::Cpu, &query)?;
    let merged = sage_tests::cache::Step {
        output: merged.output.iter().map(|element| element.to_f64()).collect(),
        log_sum_exp: merged.log_sum_exp.expect("always").into_iter().map(f64::from).collect(),
    };
    assert_near(&merged, &expected, 2e-3, "merged halves");
    Ok(())
}

#[test]
fn sequences_without_tokens_give_zeros() -> Result<(), Error> {
    let problem = problem::<f16>(TensorLayout::Hnd, [2, 2, 1, 64], 1);
    for sinks in [false, true] {
        let mut steps = Steps::<f16>::new(problem, CacheOptions { sinks, ..options() }, 7)?;
        let query = steps.query();
        let step = steps.attend(Device::Cpu, &query)?;
        assert!(step.output.iter().all(|value| *value == 0.0));
        let sinks = steps.sinks.clone().unwrap_or(vec![f32::NEG_INFINITY; 2]);
        let expected: Vec<f64> = sinks.iter().chain(&sinks).map(|sink| f64::from(*sink)).collect();
        assert_eq!(step.log_sum_exp, expected);
    }
    Ok(())
}

#[test]
fn bad_caches_are_refused() -> Result<(), Error> {
    let problem = CacheProblem::new(TensorLayout::Hnd, DType::F16, [2, 2, 100, 64], 1, 128);
    let options = CacheOptions { page_table: true, smooth_k: true, ..Default::default() };
    let steps = Steps::<f16>::new(problem, options, 8)?;
    let tensor = vec![f16::ONE; 2 * 100 * 64];
    type Change<'a> = &'a dyn Fn(&mut QuantizedKv);
    let append = |change: Change, key: &[f16]| {
        let mut cache = steps.cache.clone();
        change(&mut cache);
        let before = cache.clone();
        let error = steps.plan.append(Device::Cpu, &mut cache, key, &tensor).unwrap_err();
        assert!(cache == before, "a refused call changes nothing");
        error.to_string()
    };
    let cases: [(Change, &str); 7] = [
        (&|cache| cache.lengths[1] = 29, "lengths[1] is 29; it must be from 0 to 28"),
        (&|cache| cache.lengths[0] = -1, "lengths[0] is -1"),
        (&|cache| cache.lengths = vec![0], "lengths has 1 elements; it must have 2"),
        (&|cache| cache.page_table = None, "page_table is None, the options ask for it"),
        (&|cache| cache.page_table = Some(vec![0, 2]), "page_table[1] is 2; it must be from 0 to 1"),
        (&|cache| cache.key_mean = Some(vec![f32::INFINITY; 64]), "key_mean[0, 0, 0, 0] is inf"),
        (&|cache| cache.pages.truncate(5), "pages has 5 elements"),
    ];
    for (change, words) in cases {
        let message = append(change, &tensor);
        assert!(message.contains(words), "{message}");
    }
    let mut infinite = tensor.clone();
    infinite[70] = f16::INFINITY;
    assert!(append(&|_| {}, &infinite).contains("key[0, 0, 1, 6] is inf"));
    assert!(append(&|_| {}, &tensor[1..]).contains("key has 12799 elements"));
    let query = vec![bf16::ONE; 2 * 2 * 100 * 64];
    assert!(matches!(steps.plan.attend(Device::Cpu, &steps.cache, &query, None), Err(Error::SliceDType { .. })));
    Ok(())
}
