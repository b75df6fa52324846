//! Which scores of a register tile count.

use core::ops::Range;

use sage_layout::params::AttentionParams;
use sage_layout::visibility::{Band, UNBOUNDED};

use crate::sequences::Sequences;

/// Keys that the two rows of a lane see, as numbers of its accumulator registers before them.
#[derive(Clone, Copy)]
pub struct VisibleKeys {
    /// Whether there are keys that come too early for a row.
    has_start: bool,
    /// Of the lane's first row, what comes before the first key; of the other it is a group of registers more.
    start: i32,
    /// Of each row, what comes before the end of its keys.
    end: [i32; 2],
}

impl VisibleKeys {
    /// For a lane of the warp whose first query is `row`.
    #[inline(always)]
    pub fn new<S: Sequences>(params: &AttentionParams, sequence: S, row: u32, lane: u32) -> Self {
        Self::of_band(sequence.visible(params), sequence.keys(params.key_len), row, lane)
    }

    #[inline(always)]
    fn of_band(visible: Band, key_len: u32, row: u32, lane: u32) -> Self {
        let row = row + lane / 4;
        let column = (2 * (lane % 4)) as i32;
        Self {
            has_start: visible.first != UNBOUNDED,
            start: registers_before((row as i32).wrapping_add(visible.first).wrapping_sub(column)),
            end: [row, row + 8].map(|row| registers_before(visible.visible_keys(row, key_len).end as i32 - column)),
        }
    }

    /// Of the chunk that begins at `first_key`, a multiple of eight.
    #[inline(always)]
    pub fn of_chunk(&self, first_key: u32) -> ChunkMask {
        let first = (first_key / KEYS_PER_GROUP * REGISTERS_PER_GROUP) as i32;
        let mut mask = both_rows(self.end.map(|end| end - first));
        // most masks have no start, and skip the work
        if self.has_start {
            mask &= !both_rows([self.start - first, self.start - first + REGISTERS_PER_GROUP as i32]);
        }
        ChunkMask(mask)
    }
}

/// A lane has two registers of each row for every eight keys.
const KEYS_PER_GROUP: u32 = 8;
const REGISTERS_PER_GROUP: u32 = 4;
/// The registers of a lane's first row.
const FIRST_ROW: u32 = 0x3333_3333;

/// How many registers come before key `key`, counted from the lane's own first column: all of the groups before its group, and up
/// to two of that.
#[inline(always)]
fn registers_before(key: i32) -> i32 {
    (key >> 3) * REGISTERS_PER_GROUP as i32 + (key & 7).min(2)
}

/// The registers of both rows that so many come before.
#[inline(always)]
fn both_rows(ends: [i32; 2]) -> u32 {
    let [first, second] = ends.map(|end| ((1 << end.clamp(0, 31)) - 1) & FIRST_ROW);
    first | second << 2
}

/// The visible part of a chunk of 64 keys: bit `element` says whether accumulator register `element` counts
/// (`sage_layout::fragment::accumulator`).
#[derive(Clone, Copy)]
pub struct ChunkMask(u32);

impl ChunkMask {
    /// Every register counts.
    pub const ALL: Self = Self(!0);

    /// Of a lane whose two rows see such keys each, in the chunk that begins at `first_key`, a multiple of eight.
    #[inline(always)]
    pub fn of_rows(visible: &[Range<u32>; 2], first_key: u32, lane: u32) -> Self {
        let first_key = (first_key + 2 * (lane % 4)) as i32;
        let before = |key: u32| registers_before(key as i32 - first_key);
        let [first, second] = visible;
        Self(
            both_rows([before(first.end), before(second.end)])
                & !both_rows([before(first.start), before(second.start)]),
        )
    }

    /// Hides accumulator register `element` on a condition.
    #[inline(always)]
    pub fn hide_if(&mut self, element: usize, condition: bool) {
        self.0 &= !((condition as u32) << element);
    }

    /// Whether accumulator register `element` counts.
    #[inline(always)]
    pub fn shows(&self, element: usize) -> bool {
        self.0 >> element & 1 != 0
    }
}

#[cfg(all(test, not(target_arch = "nvptx64")))]
mod tests {
    use super::*;
    use sage_layout::fragment;

    #[test]
    fn a_lane_sees_the_keys_of_its_rows() {
        let bands = [None, Some(0), Some(1), Some(7), Some(50), Some(500)]
            .into_iter()
            .flat_map(|left| [None, Some(0), Some(3), Some(60)].map(|right| Band::window(-20, left, right, 170)));
        for (band, lane) in bands.flat_map(|band| (0..32).map(move |lane| (band, lane))) {
            for (row, first_key) in [(0, 0), (0, 64), (80, 64), (96, 128), (160, 64), (176, 128), (400, 128)] {
                let mask = VisibleKeys::of_band(band, 170, row, lane).of_chunk(first_key);
                let visible = [0, 8].map(|below| band.visible_keys(row + lane / 4 + below, 170));
                let of_rows = ChunkMask::of_rows(&visible, first_key, lane);
                for element in 0..32 {
                    let (within, column) = fragment::accumulator(lane, element as u32);
                    let expected = band.visible_keys(row + within, 170).contains(&(first_key + column));
                    assert_eq!(mask.shows(element), expected, "{band:?}, row {row}, lane {lane}, register {element}");
                    assert_eq!(
                        of_rows.shows(element),
                        expected,
                        "{band:?}, row {row}, lane {lane}, register {element}"
                    );
                }
            }
        }
    }
}
