//! Steps on a cache of quantized keys and values: random ones, and what exact attention gives.

use sageattention::{CacheOptions, CachePlan, CacheProblem, Device, Element, Error, Mask, QuantizedKv};

use crate::tensor::{Random, gather, tensor};

/// Some steps on one cache, with everything that was appended.
pub struct Steps<T> {
    /// The steps' plan.
    pub plan: CachePlan,
    /// The cache.
    pub cache: QuantizedKv,
    /// Each head's sink, if the options ask for it.
    pub sinks: Option<Vec<f32>>,
    /// Of each sequence, the keys, `[key_heads][head_dim]`, and values, `[key_heads][value_head_dim]`, of each token.
    pub tokens: Vec<Vec<[Vec<f64>; 2]>>,
    random: Random,
    element: std::marker::PhantomData<T>,
}

/// What a step gave: rows of `[batch, query_heads, tokens]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// `[rows][value_head_dim]`
    pub output: Vec<f64>,
    /// `[rows]`; empty if not asked for.
    pub log_sum_exp: Vec<f64>,
}

impl<T: Element> Steps<T> {
    /// An empty cache with random sinks, offsets of the keys and, if the options want one, a table of pages in disorder.
    pub fn new(problem: CacheProblem, options: CacheOptions, seed: u64) -> Result<Self, Error> {
        let plan = CachePlan::new(problem, options)?;
        let mut random = Random(seed);
        let mut cache = QuantizedKv::new(&plan)?;
        // what was never written must not matter
        cache.pages.fill(0xff);
        if options.page_table {
            let mut pages: Vec<i32> = (0..problem.pages as i32).collect();
            for index in (1..pages.len()).rev() {
                pages.swap(index, random.bits() as usize % (index + 1));
            }
            cache.page_table = Some(pages[..problem.batch * problem.pages_per_sequence].to_vec());
        }
        if options.smooth_k {
            cache.key_mean = Some((0..problem.key_heads * problem.head_dim).map(offset_of).collect());
        }
        let sinks = options.sinks.then(|| (0..problem.query_heads).map(|_| 2.0 * random.normal()).collect());
        let tokens = vec![Vec::new(); problem.batch];
        Ok(Self { plan, cache, sinks, tokens, random, element: std::marker::PhantomData })
    }

    /// Appends random tokens.
    pub fn append(&mut self, device: Device) -> Result<(), Error> {
        let problem = *self.plan.problem();
        let smooth_k = self.plan.options().smooth_k;
        let key: Vec<T> = tensor(problem.key_strides, problem.key_shape(), |[_, head, _, channel]| {
            let offset = if smooth_k { offset_of(head * problem.head_dim + channel) } else { 0.0 };
            self.random.normal() + offset
        });
        let value: Vec<T> = tensor(problem.value_strides, problem.value_shape(), |_| self.random.normal());
        self.plan.append(device, &mut self.cache, &key, &value)?;
        let keys = gather(&key, problem.key_strides, problem.key_shape());
        let values = gather(&value, problem.value_strides, problem.value_shape());
        for (batch, tokens) in self.tokens.iter_mut().enumerate() {
            for token in 0..problem.tokens {
                let row = |elements: &[f64], channels: usize| {
                    let of_head = |head| ((batch * problem.key_heads + head) * problem.tokens + token) * channels;
                    (0..problem.key_heads).flat_map(|head| elements[of_head(head)..][..channels].to_vec()).collect()
                };
                tokens.push([row(&keys, problem.head_dim), row(&values, problem.value_head_dim)]);
            }
        }
        Ok(())
    }

    /// Forgets the last tokens of a sequence, as who guessed them wrongly does.
    pub fn forget(&mut self, sequence: usize, tokens: usize) {
        let kept = self.tokens[sequence].len() - tokens;
        self.tokens[sequence].truncate(kept);
        self.cache.lengths[sequence] = kept as i32;
    }

    /// Random queries.
    pub fn query(&mut self) -> Vec<T> {
        let problem = self.plan.problem();
        tensor(problem.query_strides, problem.query_shape(), |_| self.random.normal())
    }

    /// Attention on a device.
    pub fn attend(&self, device: Device, query: &[T]) -> Result<Step, Error> {
        self.attend_with(&self.plan, device, query)
    }

    /// Attention on a device with another plan.
    pub fn attend_with(&self, plan: &CachePlan, device: Device, query: &[T]) -> Result<Step, Error> {
        let problem = plan.problem();
        let result = plan.attend(device, &self.cache, query, self.sinks.as_deref())?;
        Ok(Step {
            output: gather(&result.output, problem.output_strides, problem.output_shape()),
            log_sum_exp: result.log_sum_exp.unwrap_or_default().into_iter().map(f64::from).collect(),
        })
    }

    /// Exact attention to what was appended.
    pub fn exact(&self, query: &[T]) -> Step {
        let problem = self.plan.problem();
        let CacheProblem { batch, query_heads, key_heads, tokens: queries, head_dim, .. } = *problem;
        let query = gather(query, problem.query_strides, problem.query_shape());
        let scale = self.plan.options().softmax_scale.map_or((head_dim as f64).powf(-0.5), f64::from);
        let mut step = Step { output: Vec::new(), log_sum_exp: Vec::new() };
        for (row, query) in query.chunks_exact(head_dim).enumerate() {
            let (head, token) = (row / queries % query_heads, row % queries);
            let tokens = &self.tokens[row / queries / query_heads];
            let key_head = head / (query_heads / key_heads);
            let of_head = |elements: &'_ [f64], channels: usize| elements[key_head * channels..][..channels].to_vec();
            let own = (tokens.len() + token) as i64 - queries as i64;
            let sees = |key: i64| match self.plan.options().mask {
                Mask::Window { left, right, .. } => {
                    left.is_none_or(|left| own - key <= i64::from(left))
                        && right.is_none_or(|right| key - own <= i64::from(right))
                }
                Mask::CausalAligned(_) => key <= own,
                _ => true,
            };
            let capped = |logit: f64| match self.plan.options().soft_cap.map(f64::from) {
                Some(cap) => cap * (logit / cap).tanh(),
                None => logit,
            };
            let logits: Vec<f64> = (0..)
                .zip(tokens)
                .map(|(index, [key, _])| match sees(index) {
                    true => capped(of_head(key, head_dim).iter().zip(query).map(|(a, b)| a * b).sum::<f64>() * scale),
                    false => f64::NEG_INFINITY,
                })
                .collect();
            let sink = self.sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]));
            let largest = logits.iter().copied().fold(sink, f64::max);
            let weight = |logit: f64| if logit == f64::NEG_INFINITY { 0.0 } else { (logit - largest).exp() };
            let sum = weight(sink) + logits.iter().map(|logit| weight(*logit)).sum::<f64>();
            let mut output = vec![0.0; problem.value_head_dim];
            for (logit, [_, value]) in logits.iter().zip(tokens) {
                let weight = weight(*logit) / sum.max(f64::MIN_POSITIVE);
                output
                    .iter_mut()
                    .zip(of_head(value, problem.value_head_dim))
                    .for_each(|(sum, value)| *sum += weight * value);
            }
            step.output.extend(output);
            step.log_sum_exp.push(if sum == 0.0 { f64::NEG_INFINITY } else { largest + sum.ln() });
        }
        debug_assert_eq!(step.log_sum_exp.len(), batch * query_heads * queries);
        if !self.plan.options().return_lse {
            step.log_sum_exp.clear();
        }
        step
    }
}

/// An offset of a channel, as real keys have: some are far from 0.
fn offset_of(channel: usize) -> f32 {
    if channel % 7 == 3 { 6.0 } else { 0.5 }
}

/// Compares two steps.
///
/// # Panics
///
/// If outputs differ by more than `bound` (Σ|difference| / Σ|expected|), or log-sum-exps by more than `bound`.
pub fn assert_near(found: &Step, expected: &Step, bound: f64, what: impl std::fmt::Debug) {
    assert_eq!((found.output.len(), found.log_sum_exp.len()), (expected.output.len(), expected.log_sum_exp.len()));
    let difference: f64 = found.output.iter().zip(&expected.output).map(|(a, b)| (a - b).abs()).sum();
    let total: f64 = expected.output.iter().map(|value| value.abs()).sum();
    assert!(difference <= bound * total + 1e-6, "relative L1 {}\n{what:?}", difference / total);
    for (row, (found, expected)) in found.log_sum_exp.iter().zip(&expected.log_sum_exp).enumerate() {
        let near = found == expected || (found - expected).abs() <= bound;
        assert!(near, "log-sum-exp of row {row}: {found}, expected {expected}\n{what:?}");
    }
}
