//! Sequences of different lengths: random ones, and each as a call of its own.

use std::collections::BTreeMap;

use sage_layout::sequence::{MOST_SORTED, Sequence, first_part};
use sage_layout::tile::{CONSUMER_WARPGROUPS, CTA_QUERIES, KEY_TILE, SEGMENT_KEYS};
use sageattention::{
    AttentionOptions, AttentionPlan, AttentionProblem, DType, Element, Lengths, SequenceLengths, TensorLayout,
};

use crate::codes::expected_regions;
use crate::tensor::{Inputs, Outputs, attend, offset, quantize, query_shape};

/// The lengths of a call, which own their numbers.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The problem.
    pub problem: AttentionProblem,
    /// Its lengths.
    pub lengths: SequenceLengths<Vec<i32>>,
}

impl Batch {
    /// Packed sequences of `[queries, keys]`, with `[query_heads, key_heads, head_dim]`.
    pub fn packed(dtype: DType, sequences: &[[usize; 2]], [query_heads, key_heads, head_dim]: [usize; 3]) -> Self {
        let starts = |of: usize| -> Vec<i32> {
            let ends = sequences.iter().scan(0, |end, lengths| {
                *end += lengths[of] as i32;
                Some(*end)
            });
            std::iter::once(0).chain(ends).collect()
        };
        let (cu_seqlens_q, cu_seqlens_k) = (starts(0), starts(1));
        let total = |starts: &[i32]| *starts.last().expect("not empty") as usize;
        let query = [total(&cu_seqlens_q), query_heads, head_dim];
        let problem = AttentionProblem::packed(dtype, sequences.len(), query, [total(&cu_seqlens_k), key_heads]);
        Self { problem, lengths: SequenceLengths::Packed { cu_seqlens_q, cu_seqlens_k } }
    }

    /// A padded batch, of whose `key_len` keys each sequence has some.
    pub fn padded(
        layout: TensorLayout,
        dtype: DType,
        [query_len, key_len]: [usize; 2],
        kv_lens: &[usize],
        [query_heads, key_heads, head_dim]: [usize; 3],
    ) -> Self {
        let query = [kv_lens.len(), query_heads, query_len, head_dim];
        let problem = AttentionProblem::cross(layout, dtype, query, [key_heads, key_len]).with_padded_keys();
        let kv_lens = kv_lens.iter().map(|&keys| keys as i32).collect();
        Self { problem, lengths: SequenceLengths::PaddedKeys { kv_lens } }
    }

    /// The same sequences with values of so many channels, if it says so.
    pub fn with_value_head_dim(self, value_head_dim: Option<usize>) -> Self {
        let value_head_dim = value_head_dim.unwrap_or(self.problem.value_head_dim);
        Self { problem: self.problem.with_value_head_dim(value_head_dim), ..self }
    }

    /// The lengths, as calls take them.
    pub fn slices(&self) -> SequenceLengths<&[i32]> {
        self.lengths.as_ref().map(|_, lengths| &lengths[..])
    }

    /// Where each sequence begins among the tokens of all, and its lengths: what the quantizer's table holds.
    pub fn table(&self) -> Vec<Sequence> {
        let AttentionProblem { query_len, key_len, .. } = self.problem;
        match &self.lengths {
            SequenceLengths::Uniform => Vec::new(),
            SequenceLengths::PaddedKeys { kv_lens } => (0u32..)
                .zip(kv_lens)
                .map(|(index, &keys)| Sequence {
                    query_start: index * query_len as u32,
                    key_start: index * key_len as u32,
                    queries: query_len as u32,
                    keys: keys as u32,
                })
                .collect(),
            SequenceLengths::Packed { cu_seqlens_q, cu_seqlens_k } => (cu_seqlens_q.windows(2))
                .zip(cu_seqlens_k.windows(2))
                .map(|(queries, keys)| Sequence {
                    query_start: queries[0] as u32,
                    key_start: keys[0] as u32,
                    queries: (queries[1] - queries[0]) as u32,
                    keys: (keys[1] - keys[0]) as u32,
                })
                .collect(),
        }
    }

    /// The order in which attention takes the sequences, with so many queries a CTA: of each, the CTAs before it and its index.
    pub fn order(&self, cta_queries: u32) -> Vec<[u32; 2]> {
        let table = self.table();
        if table.len() as u32 > MOST_SORTED {
            let place = |index: u32| first_part(table[index as usize].query_start, index, cta_queries);
            return (0..table.len() as u32).map(|index| [place(index), index]).collect();
        }
        let mut indices: Vec<u32> = (0..table.len() as u32).collect();
        indices.sort_by_key(|&index| std::cmp::Reverse(table[index as usize].keys));
        let with_place = indices.into_iter().scan(0, |place, index| {
            let first = *place;
            *place += table[index as usize].queries.div_ceil(cta_queries);
            Some([first, index])
        });
        with_place.collect()
    }

    /// The problem and the inputs of one sequence alone, which has queries and keys.
    pub fn alone<T: Element>(&self, index: usize, inputs: &Inputs<T>) -> (AttentionProblem, Inputs<T>) {
        let Sequence { query_start, key_start, queries, keys } = self.table()[index];
        let [batch, query_start, key_start] = match self.problem.lengths {
            Lengths::Packed => [0, query_start as usize, key_start as usize],
            _ => [index, 0, 0],
        };
        let problem = AttentionProblem {
            batch: 1,
            query_len: queries as usize,
            key_len: keys as usize,
            lengths: Lengths::Uniform,
            ..self.problem
        };
        let from = |tensor: &[T], strides, token| tensor[offset(strides, [batch, 0, token, 0])..].to_vec();
        let inputs = Inputs {
            query: from(&inputs.query, problem.query_strides, query_start),
            key: from(&inputs.key, problem.key_strides, key_start),
            value: from(&inputs.value, problem.value_strides, key_start),
        };
        (problem, inputs)
    }

    /// The rows of one sequence in what a call gave.
    pub fn rows_of(&self, index: usize, outputs: &Outputs) -> Outputs {
        let AttentionProblem { query_heads, query_len, value_head_dim, .. } = self.problem;
        let Sequence { query_start, queries, .. } = self.table()[index];
        let (batch, first) = match self.problem.lengths {
            Lengths::Packed => (0, query_start as usize),
            _ => (index, 0),
        };
        let rows = (0..query_heads).flat_map(|head| {
            let row = (batch * query_heads + head) * query_len + first;
            row..row + queries as usize
        });
        Outputs {
            output: rows
                .clone()
                .flat_map(|row| &outputs.output[row * value_head_dim..][..value_head_dim])
                .copied()
                .collect(),
            log_sum_exp: rows.filter_map(|row| outputs.log_sum_exp.get(row)).copied().collect(),
        }
    }

    /// What each sequence alone gives; zeros and −∞ where there are no keys.
    pub fn expected<T: Element>(&self, options: &AttentionOptions, inputs: &Inputs<T>) -> Vec<Outputs> {
        let each = self.table().into_iter().enumerate();
        each.map(|(index, Sequence { queries, keys, .. })| {
            if queries > 0 && keys > 0 {
                let (problem, inputs) = self.alone(index, inputs);
                return attend(&problem, options, &inputs);
            }
            let rows = self.problem.query_heads * queries as usize;
            Outputs {
                output: vec![0.0; rows * self.problem.value_head_dim],
                log_sum_exp: vec![f32::NEG_INFINITY; if options.return_lse { rows } else { 0 }],
            }
        })
        .collect()
    }

    /// Compares a region of the workspace with what the sequences alone have there, where any has something.
    ///
    /// # Panics
    ///
    /// On a difference.
    pub fn assert_regions<T: Element>(
        &self,
        options: &AttentionOptions,
        inputs: &Inputs<T>,
        workspace: impl Fn(&str) -> Option<Vec<u8>>,
        what: &dyn std::fmt::Display,
    ) {
        let plan = AttentionPlan::new(self.problem, *options).expect("a plan that can be made");
        let bytes_of = |name: &str| plan.workspace_regions().into_iter().find(|(region, _)| *region == name);
        let count = self.problem.batch;
        let mut read = BTreeMap::new();
        for (index, sequence) in self.table().into_iter().enumerate() {
            let (first, keys) = (index as u32, sequence.keys as usize);
            if sequence.queries == 0 || keys == 0 {
                continue;
            }
            let (problem, alone) = self.alone(index, inputs);
            let quantized = quantize(&problem, options, &alone);
            for (region, expected) in expected_regions(&quantized) {
                let (Some((_, range)), false) = (bytes_of(region), expected.is_empty()) else { continue };
                let found: &Vec<u8> =
                    read.entry(region).or_insert_with(|| workspace(region).expect("a region of the plan"));
                assert_eq!(found.len() as u64, range.end - range.start);
                let of_queries = region.starts_with("query") || region == "log_sum_exp_shift";
                let heads = if of_queries { problem.query_heads } else { problem.key_heads };
                // where the sequence's part begins, in parts of which its own has so many
                let (place, parts) = match region {
                    _ if of_queries => {
                        let tiles = (sequence.queries).div_ceil(CTA_QUERIES) * CONSUMER_WARPGROUPS;
                        (first_part(sequence.query_start, first, CTA_QUERIES) * CONSUMER_WARPGROUPS, tiles)
                    }
                    "key_codes" | "key_scales" | "value_codes" | "value_tiles" => {
                        (first_part(sequence.key_start, first, KEY_TILE), sequence.keys.div_ceil(KEY_TILE))
                    }
                    "value_mean" | "value_mean_codes" if quantized.output_mean.is_empty() => {
                        (first_part(sequence.key_start, first, SEGMENT_KEYS), sequence.keys.div_ceil(SEGMENT_KEYS))
                    }
                    _ => (first, 1),
                };
                let part = expected.len() / heads / parts as usize;
                let of_head = found.len() / heads;
                assert_eq!((expected.len() % (heads * parts as usize), found.len() % heads), (0, 0));
                for (head, expected) in expected.chunks_exact(expected.len() / heads).enumerate() {
                    let start = head * of_head + place as usize * part;
                    assert!(
                        found[start..start + expected.len()] == *expected,
                        "{region} of head {head}, sequence {index} of {count} differs\n{what}"
                    );
                }
            }
        }
    }

    /// Elements of the output, and of every row's log-sum-exp.
    pub fn rows(&self) -> usize {
        let [batch, heads, queries, _] = query_shape(&self.problem);
        batch * heads * queries
    }
}
