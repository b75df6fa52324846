//! Which keys a query may see.
//!
//! One number describes both masks: query `row` sees the keys before `row + diagonal + 1`, and none beyond `key_len`.
//!
//! | mask | diagonal |
//! |---|---|
//! | none | `key_len` |
//! | causal, top-left aligned | 0 |
//! | causal, bottom-right aligned | `key_len - query_len` |

/// How many keys query `row` sees: it sees keys `0 .. visible_keys`.
///
/// The host keeps lengths under 2³⁰. So are rows that pad a warpgroup's 64, and nothing here overflows.
#[inline(always)]
pub const fn visible_keys(row: u32, diagonal: i32, key_len: u32) -> u32 {
    let end = row as i32 + diagonal + 1;
    if end <= 0 {
        0
    } else if (end as u32) < key_len {
        end as u32
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
        assert_eq!(visible_keys(last, LONGEST as i32, LONGEST), LONGEST);
        assert_eq!(visible_keys(0, 1 - LONGEST as i32, 1), 0);
    }

    #[test]
    fn matches_the_masks() {
        for (query_len, key_len) in [(5u32, 5u32), (3, 7), (7, 3), (1, 4)] {
            for row in 0..query_len {
                assert_eq!(visible_keys(row, key_len as i32, key_len), key_len);
                assert_eq!(visible_keys(row, 0, key_len), (row + 1).min(key_len));
                let diagonal = key_len as i32 - query_len as i32;
                let last = query_len - 1 - row; // counted from the bottom: the last row sees all
                assert_eq!(visible_keys(row, diagonal, key_len), key_len.saturating_sub(last));
            }
        }
    }
}
