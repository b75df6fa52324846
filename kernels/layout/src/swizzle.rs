//! Shared-memory swizzles of the matrix descriptors.
//!
//! The tensor cores read eight rows of 16-byte chunks at once. So that these fall into different banks, the hardware
//! expects chunk `c` of row `r` at position `c ^ phase(r)` of that row (PTX ISA, "Shared memory matrix layout").
//! Rows of 128 bytes use the 128-byte swizzle, rows of 64 bytes the 64-byte swizzle, rows of 32 bytes (INT4, 64 channels)
//! the 32-byte swizzle: chunks `0 1` in rows 0 to 3, `1 0` in rows 4 to 7. There is none for more: of rows of 256 bytes, the first
//! halves of eight rows come before their second halves, each with the 128-byte swizzle.
//!
//! ```text
//! 128-byte swizzle (8 chunks a row)      64-byte swizzle (4 chunks a row)
//! row 0: 0 1 2 3 4 5 6 7                 rows 0,1: 0 1 2 3
//! row 1: 1 0 3 2 5 4 7 6                 rows 2,3: 1 0 3 2
//! row 2: 2 3 0 1 6 7 4 5                 rows 4,5: 2 3 0 1
//! row 3: 3 2 1 0 7 6 5 4                 rows 6,7: 3 2 1 0
//! ```

/// Bytes of a chunk, the unit that a swizzle moves.
pub const CHUNK_BYTES: u32 = 16;

/// Rows after which a swizzle repeats: from a row to the one this much below, offsets grow by as many rows' bytes.
pub const PERIOD: u32 = 8;

/// Bytes of the longest row that a swizzle is for.
pub const LONGEST: u32 = 128;
/// From the first halves of eight rows of twice as many bytes to their second halves.
pub const HALF_STRIDE: u32 = PERIOD * LONGEST;

/// What the chunk index of `row` is xored with.
///
/// `row_bytes` is 32, 64 or 128.
pub const fn phase(row: u32, row_bytes: u32) -> u32 {
    match row_bytes {
        128 => row % 8,
        64 => row / 2 % 4,
        _ => row / 4 % 2,
    }
}

/// Byte offset in its tile of byte `column` of `row`.
///
/// `row_bytes` is 32, 64, 128 or 256.
pub const fn offset(row: u32, column: u32, row_bytes: u32) -> u32 {
    if row_bytes > LONGEST {
        let group = row / PERIOD * PERIOD * row_bytes + column / LONGEST * HALF_STRIDE;
        return group + offset(row % PERIOD, column % LONGEST, LONGEST);
    }
    let chunk = (column / CHUNK_BYTES) ^ phase(row, row_bytes);
    row * row_bytes + chunk * CHUNK_BYTES + column % CHUNK_BYTES
}

/// The inverse of [`offset`]: `(row, column)` of the byte at `offset`.
pub const fn position(offset: u32, row_bytes: u32) -> (u32, u32) {
    if row_bytes > LONGEST {
        let (row, column) = position(offset % HALF_STRIDE, LONGEST);
        let group = offset / (PERIOD * row_bytes);
        return (PERIOD * group + row, offset / HALF_STRIDE % (row_bytes / LONGEST) * LONGEST + column);
    }
    let row = offset / row_bytes;
    let within = offset % row_bytes;
    let chunk = (within / CHUNK_BYTES) ^ phase(row, row_bytes);
    (row, chunk * CHUNK_BYTES + within % CHUNK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offset_is_a_bijection_of_the_tile() {
        for row_bytes in [32u32, 64, 128, 256] {
            let mut seen = [false; 128 * 256];
            for row in 0..128 {
                for column in 0..row_bytes {
                    let place = offset(row, column, row_bytes);
                    assert!(!core::mem::replace(&mut seen[place as usize], true));
                    assert_eq!(position(place, row_bytes), (row, column));
                }
            }
            assert!(seen[..128 * row_bytes as usize].iter().all(|&hit| hit));
        }
    }

    #[test]
    fn repeats() {
        for row_bytes in [32, 64, 128, 256] {
            for row in 0..64 {
                for column in 0..row_bytes {
                    let below = offset(row + PERIOD, column, row_bytes);
                    assert_eq!(below, offset(row, column, row_bytes) + PERIOD * row_bytes);
                }
            }
        }
    }

    /// The hardware's definition: address bits 4.. are xored with bits 7.. (as many as the swizzle has).
    #[test]
    fn matches_the_address_bit_definition() {
        for (row_bytes, bits) in [(32u32, 1u32), (64, 2), (128, 3)] {
            for linear in 0..128 * row_bytes {
                let mask = (1 << bits) - 1;
                let swizzled = linear ^ ((linear >> 7 & mask) << 4);
                assert_eq!(offset(linear / row_bytes, linear % row_bytes, row_bytes), swizzled);
            }
        }
    }

    /// Eight rows of one chunk column, as the tensor cores read them, touch all 32 banks once.
    #[test]
    fn a_chunk_column_has_no_bank_conflicts() {
        for row_bytes in [32, 64, 128, 256] {
            for column in (0..row_bytes).step_by(16) {
                let mut banks = [0; 32];
                for row in 0..8 {
                    for word in 0..4 {
                        banks[(offset(row, column, row_bytes) / 4 + word) as usize % 32] += 1;
                    }
                }
                assert_eq!(banks, [1; 32]);
            }
        }
    }
}
