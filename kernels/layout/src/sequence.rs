//! Sequences of different lengths in one call: a *ragged* batch.
//!
//! Tiles, segments and CTAs of queries are *parts* of a number of tokens. A sequence begins with a part of its own, so that
//! the parts of packed sequences do not follow from the number of tokens. Yet they have places without a sum over the
//! sequences before: the `index`-th one, which begins at token `start`, has its first part at `start / size + index`.
//! Each sequence has one place more than it may need, so places are disjoint, whatever the lengths are; some stay free.
//!
//! ```text
//! tokens        aaaa aaab bbbc cccc cccc c      tiles of four; starts are 0, 7, 11
//! places        a₀ a₁ b₀ – c₀ c₁ c₂ –           a from 0, b from 7/4 + 1 = 2, c from 11/4 + 2 = 4
//! ```
//!
//! A padded batch is the same with all sequences equally far apart.

/// A sequence's part of the tensors, as the quantizer writes it into its table for all that comes after.
///
/// Whatever the caller's lengths are, they are made to lie within the tensors, and starts do not decrease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sequence {
    /// Its first query, among all sequences'.
    pub query_start: u32,
    /// Its first key.
    pub key_start: u32,
    /// Its queries.
    pub queries: u32,
    /// Its keys.
    pub keys: u32,
}

impl Sequence {
    /// Bytes in the table.
    pub const BYTES: u32 = 16;

    /// As four words.
    pub const fn from_words([query_start, key_start, queries, keys]: [u32; 4]) -> Self {
        Self { query_start, key_start, queries, keys }
    }

    /// As four words.
    pub const fn words(self) -> [u32; 4] {
        [self.query_start, self.key_start, self.queries, self.keys]
    }
}

/// The place of the first part, of `size` tokens, of the `index`-th sequence, which begins at token `start`.
#[inline(always)]
pub const fn first_part(start: u32, index: u32, size: u32) -> u32 {
    // kernels have no panics
    match start.checked_div(size) {
        Some(parts) => parts + index,
        None => index,
    }
}

/// Places for the parts of `sequences` sequences of `tokens` tokens together.
pub const fn places(tokens: u32, sequences: u32, size: u32) -> u32 {
    tokens / size + sequences
}

/// Sequences up to which attention takes those with the most keys first; more of them are taken as they come. To find a rank
/// is to look at all others.
pub const MOST_SORTED: u32 = 1024;

/// The last of `count` whose first place is not behind `place`: the one that the place may be of. Of the first it is not asked.
#[inline(always)]
pub fn last_at(place: u32, count: u32, mut first_place: impl FnMut(u32) -> u32) -> u32 {
    let (mut found, mut end) = (0, count);
    while end - found > 1 {
        let middle = found + (end - found) / 2;
        if first_place(middle) <= place {
            found = middle;
        } else {
            end = middle;
        }
    }
    found
}

const _: () = assert!(size_of::<Sequence>() == Sequence::BYTES as usize);

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::tile::{CTA_QUERIES, KEY_TILE, MMA_QUERIES, SEGMENT_KEYS};
    use std::vec::Vec;

    /// Lengths around the sizes, in an order without a pattern.
    fn batches() -> impl Iterator<Item = Vec<u32>> {
        let lengths = [0, 1, 0, 127, 128, 129, 191, 192, 193, 0, 1023, 1024, 1025, 5000, 3, 0, 64, 65, 0];
        (0..40).map(move |batch: usize| {
            (0..=batch).map(|index| lengths[(index * index * 7 + batch * 5) % lengths.len()]).collect()
        })
    }

    #[test]
    fn places_are_disjoint_and_are_found() {
        for size in [CTA_QUERIES, MMA_QUERIES, KEY_TILE, SEGMENT_KEYS] {
            for lengths in batches() {
                let mut starts = std::vec![0];
                lengths.iter().for_each(|length| starts.push(starts.last().expect("not empty") + length));
                let (sequences, tokens) = (lengths.len() as u32, *starts.last().expect("not empty"));
                let mut end = 0;
                for (index, length) in (0..).zip(&lengths) {
                    let first = first_part(starts[index as usize], index, size);
                    assert!(first >= end, "{size} {lengths:?}");
                    end = first + length.div_ceil(size);
                    for place in first..end {
                        let first = |index| first_part(starts[index as usize], index, size);
                        let found = last_at(place, sequences, first);
                        assert_eq!(found, index, "{size} {lengths:?} {place}");
                    }
                }
                assert!(end <= places(tokens, sequences, size));
            }
        }
    }

    #[test]
    fn a_sequence_is_four_words() {
        let sequence = Sequence { query_start: 1, key_start: 2, queries: 3, keys: 4 };
        assert_eq!(sequence.words(), [1, 2, 3, 4]);
        assert_eq!(Sequence::from_words(sequence.words()), sequence);
    }
}
