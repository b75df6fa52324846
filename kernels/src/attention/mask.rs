//! Which scores of a register tile count.

use sage_layout::params::AttentionParams;
use sage_layout::visibility::visible_keys;

use crate::sequences::Sequences;

/// Keys that the two rows of a lane see.
#[derive(Clone, Copy)]
pub struct VisibleKeys {
    end: [u32; 2],
    /// First key column of the lane in every group of eight.
    column: u32,
}

impl VisibleKeys {
    /// For a lane of the warp whose first query is `row`.
    #[inline(always)]
    pub fn new<S: Sequences>(params: &AttentionParams, sequence: S, row: u32, lane: u32) -> Self {
        let row = row + lane / 4;
        let (diagonal, key_len) = (sequence.diagonal(params), sequence.keys(params.key_len));
        Self { end: [row, row + 8].map(|row| visible_keys(row, diagonal, key_len)), column: 2 * (lane % 4) }
    }

    /// For each row, how many keys after the lane's first column of the chunk that begins at `first_key` it sees.
    #[inline(always)]
    pub fn of_chunk(&self, first_key: u32) -> ChunkMask {
        ChunkMask { left: self.end.map(|end| end as i32 - (first_key + self.column) as i32) }
    }
}

/// The visible part of a chunk of 64 keys.
#[derive(Clone, Copy)]
pub struct ChunkMask {
    left: [i32; 2],
}

impl ChunkMask {
    /// Whether accumulator register `element` counts (`sage_layout::fragment::accumulator`).
    #[inline(always)]
    pub fn shows(&self, element: usize) -> bool {
        let offset = element / 4 * 8 + element % 2;
        self.left[element / 2 % 2] > offset as i32
    }
}
