//! Which lane of a warp holds which element of a tensor-core tile (PTX ISA, "Register fragments and shared memory
//! matrix layouts" of wgmma; the same for `mma.m16n8`).
//!
//! Rows are those of one warp, 0 to 15; warp `w` of a warpgroup holds rows `16w …` of its 64.

/// `(row, column)` of accumulator register `element` of `lane`.
///
/// ```text
///             columns 0 1   2 3   4 5   6 7 | 8 9 …
/// row 0       lane    0     1     2     3   |  0 …     elements 0 1 | 4 5 …
/// row 1       lane    4     5     6     7   |  4 …
/// …
/// row 8       lane    0     1     2     3   |  0 …     elements 2 3 | 6 7 …
/// ```
pub const fn accumulator(lane: u32, element: u32) -> (u32, u32) {
    (lane / 4 + 8 * (element / 2 % 2), 8 * (element / 4) + 2 * (lane % 4) + element % 2)
}

/// The inverse of [`accumulator`]: `(lane, element)` that holds `(row, column)`.
pub const fn accumulator_holder(row: u32, column: u32) -> (u32, u32) {
    (row % 8 * 4 + column % 8 / 2, column / 8 * 4 + row / 8 * 2 + column % 2)
}

/// `(row, k)` of byte `byte` of register `register` (0 to 3) of the A operand with k = 32 one-byte elements.
pub const fn a_operand_8bit(lane: u32, register: u32, byte: u32) -> (u32, u32) {
    (lane / 4 + 8 * (register % 2), 16 * (register / 2) + 4 * (lane % 4) + byte)
}

/// The inverse of [`a_operand_8bit`]: `(lane, register, byte)` that holds `(row, k)`.
pub const fn a_operand_8bit_holder(row: u32, k: u32) -> (u32, u32, u32) {
    (row % 8 * 4 + k % 16 / 4, k / 16 * 2 + row / 8, k % 4)
}

/// `(row, k)` of half `half` of register `register` (0 to 3) of the A operand with k = 16 two-byte elements.
pub const fn a_operand_16bit(lane: u32, register: u32, half: u32) -> (u32, u32) {
    (lane / 4 + 8 * (register % 2), 8 * (register / 2) + 2 * (lane % 4) + half)
}

/// The inverse of [`a_operand_16bit`]: `(lane, register, half)` that holds `(row, k)`.
pub const fn a_operand_16bit_holder(row: u32, k: u32) -> (u32, u32, u32) {
    (row % 8 * 4 + k % 8 / 2, k / 8 * 2 + row / 8, k % 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accumulator_is_a_bijection() {
        for columns in [8u32, 64, 128] {
            for row in 0..16 {
                for column in 0..columns {
                    let (lane, element) = accumulator_holder(row, column);
                    assert!(lane < 32 && element < columns / 2);
                    assert_eq!(accumulator(lane, element), (row, column));
                }
            }
            for lane in 0..32 {
                for element in 0..columns / 2 {
                    let (row, column) = accumulator(lane, element);
                    assert_eq!(accumulator_holder(row, column), (lane, element));
                }
            }
        }
    }

    #[test]
    fn a_operand_16bit_is_a_bijection() {
        for row in 0..16 {
            for k in 0..16 {
                let (lane, register, half) = a_operand_16bit_holder(row, k);
                assert!(lane < 32 && register < 4 && half < 2);
                assert_eq!(a_operand_16bit(lane, register, half), (row, k));
            }
        }
    }

    /// Pairs of accumulator values, packed in their order, are the 16-bit A operand of the same keys in their order.
    #[test]
    fn accumulator_pairs_are_the_16bit_operand() {
        for lane in 0..32 {
            for element in 0..8 {
                assert_eq!(a_operand_16bit(lane, element / 2, element % 2), accumulator(lane, element));
            }
        }
    }

    #[test]
    fn a_operand_is_a_bijection() {
        for row in 0..16 {
            for k in 0..32 {
                let (lane, register, byte) = a_operand_8bit_holder(row, k);
                assert!(lane < 32 && register < 4 && byte < 4);
                assert_eq!(a_operand_8bit(lane, register, byte), (row, k));
            }
        }
    }
}
