//! Which keys a query may see.
//!
//! Two numbers describe every mask that depends on positions alone, a [`Band`] of diagonals: query `row` sees keys
//! `row + first ..= row + last`, as far as they exist.
//!
//! | mask | first | last |
//! |---|---|---|
//! | none | [`UNBOUNDED`] | `key_len` |
//! | causal | [`UNBOUNDED`] | `shift` |
//! | window of `left` keys before and `right` keys after | `shift - left` | `shift + right` |
//!
//! `shift` is the key that query 0 lines up with: 0 for masks aligned top-left, `key_len - query_len` for those aligned
//! bottom-right.

use core::ops::Range;

/// The diagonal before all others: with it as their first, queries see keys from 0 on.
pub const UNBOUNDED: i32 = i32::MIN;

/// More than there are keys.
const FAR: u32 = 1 << 30;

/// Diagonals between which keys are seen: key `k` lies on diagonal `k - row` of query `row`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Band {
    /// The first diagonal that is seen.
    pub first: i32,
    /// The last one.
    pub last: i32,
}

impl Band {
    /// Every key of `key_len`.
    pub const fn all(key_len: u32) -> Self {
        Self { first: UNBOUNDED, last: key_len as i32 }
    }

    /// From `left` keys before the one that a query lines up with to `right` keys after it; `None` for no bound. Query 0 lines up
    /// with key `shift`.
    pub const fn window(shift: i32, left: Option<u32>, right: Option<u32>, key_len: u32) -> Self {
        let first = match left {
            Some(left) => {
                let first = shift as i64 - left as i64;
                // before all keys for every row, so that distances from it stay in 32 bits
                if first <= -(1 << 30) { UNBOUNDED } else { first as i32 }
            }
            None => UNBOUNDED,
        };
        let last = match right {
            // beyond the last key there are no more
            Some(right) if (shift as i64 + right as i64) < key_len as i64 => (shift as i64 + right as i64) as i32,
            _ => key_len as i32,
        };
        Self { first, last }
    }

    /// Of sequences of different lengths, before it is [`shifted`](Self::shifted) to each: the same with query 0 at key 0, and bounds
    /// that no key is beyond.
    pub const fn of_sequences(left: Option<u32>, right: Option<u32>) -> Self {
        Self::window(0, left, right, FAR)
    }

    /// That of a sequence of `key_len` keys whose query 0 lines up with key `shift`.
    #[inline(always)]
    pub const fn shifted(self, shift: i32, key_len: u32) -> Self {
        Self {
            first: if self.first == UNBOUNDED { UNBOUNDED } else { self.first + shift },
            last: if self.last >= FAR as i32 || self.last + shift > key_len as i32 {
                key_len as i32
            } else {
                self.last + shift
            },
        }
    }

    /// The keys that query `row` sees. Neither end of later rows is smaller.
    ///
    /// The host keeps lengths under 2³⁰. So are rows that pad a warpgroup's 64, and nothing here overflows.
    #[inline(always)]
    pub const fn visible_keys(self, row: u32, key_len: u32) -> Range<u32> {
        clamp(row as i32 + self.first, key_len)..clamp(row as i32 + self.last + 1, key_len)
    }
}

/// The key next to a place that may lie outside of all keys.
#[inline(always)]
const fn clamp(place: i32, key_len: u32) -> u32 {
    if place <= 0 {
        0
    } else if (place as u32) < key_len {
        place as u32
    } else {
        key_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::WARPGROUP_ROWS;

    #[test]
    fn the_longest_do_not_overflow() {
        const LONGEST: u32 = (1 << 30) - 1;
        let last = LONGEST / WARPGROUP_ROWS * WARPGROUP_ROWS + WARPGROUP_ROWS - 1;
        assert_eq!(Band::all(LONGEST).visible_keys(last, LONGEST), 0..LONGEST);
        assert_eq!(Band::window(1 - LONGEST as i32, None, Some(0), 1).visible_keys(0, 1), 0..0);
        for (left, right) in [(u32::MAX, u32::MAX), (i32::MAX as u32, i32::MAX as u32), (0, u32::MAX)] {
            for (shift, row, key_len) in
                [(0, last, LONGEST), (LONGEST as i32 - 1, 0, LONGEST), (1 - LONGEST as i32, last, 1)]
            {
                let visible = Band::window(shift, Some(left), Some(right), key_len).visible_keys(row, key_len);
                let first = (row as i64 + shift as i64 - left as i64).clamp(0, key_len as i64);
                assert_eq!(visible, first as u32..key_len);
            }
        }
    }

    #[test]
    fn matches_the_masks() {
        for (query_len, key_len) in [(5u32, 5u32), (3, 7), (7, 3), (1, 4)] {
            for shift in [0, key_len as i32 - query_len as i32] {
                for left in [None, Some(0), Some(1), Some(3), Some(100)] {
                    for right in [None, Some(0), Some(2), Some(100)] {
                        let band = Band::window(shift, left, right, key_len);
                        for row in 0..query_len {
                            let seen = |key: &u32| {
                                let distance = *key as i64 - (row as i64 + shift as i64);
                                left.is_none_or(|left| distance >= -(left as i64))
                                    && right.is_none_or(|right| distance <= right as i64)
                            };
                            let visible = band.visible_keys(row, key_len);
                            assert!(visible.start <= visible.end && visible.end <= key_len);
                            assert!(
                                (0..key_len).all(|key| visible.contains(&key) == seen(&key)),
                                "{band:?}, row {row}"
                            );
                        }
                    }
                }
            }
            assert_eq!(Band::all(key_len).visible_keys(query_len - 1, key_len), 0..key_len);
        }
    }
}
