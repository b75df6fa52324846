//! Which lane of a warp holds which element of a tensor-core tile (PTX ISA, "Register fragments and shared memory
//! matrix layouts" of wgmma; the same for `mma.m16n8`; `mma.m8n8` has the first half of the rows).
//!
//! Rows are those of one warp, 0 to 15; warp `w` of a warpgroup holds rows `16w …` of its 64.
//!
//! Operands come `packed` to a register: 2 elements of 16 bits, 4 of 8 or 8 of 4, the first in the lowest bits. A lane
//! holds `packed` neighbours along k; four lanes and then the next register go on along k.

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

/// `(row, k)` of element `element` of register `register` of the A operand.
///
/// ```text
///             k  0 … packed−1   packed … 2·packed−1   …            4·packed …
/// row 0       lane      0                1            2     3   |      0      registers 0 | 2
/// …
/// row 8       lane      0                1            2     3   |      0      registers 1 | 3
/// ```
pub const fn a_operand(packed: u32, lane: u32, register: u32, element: u32) -> (u32, u32) {
    (lane / 4 + 8 * (register % 2), packed * (4 * (register / 2) + lane % 4) + element)
}

/// The inverse of [`a_operand`]: `(lane, register, element)` that holds `(row, k)`.
pub const fn a_operand_holder(packed: u32, row: u32, k: u32) -> (u32, u32, u32) {
    (row % 8 * 4 + k / packed % 4, k / (4 * packed) * 2 + row / 8, k % packed)
}

/// `(k, column)` of element `element` of register `register` of `mma.sync`'s B operand, a column a group of four lanes.
pub const fn b_operand(packed: u32, lane: u32, register: u32, element: u32) -> (u32, u32) {
    (packed * (4 * register + lane % 4) + element, lane / 4)
}

/// The inverse of [`b_operand`]: `(lane, register, element)` that holds `(k, column)`.
pub const fn b_operand_holder(packed: u32, k: u32, column: u32) -> (u32, u32, u32) {
    (column * 4 + k / packed % 4, k / (4 * packed), k % packed)
}

/// `(row, column)` of half `half` of a lane's register of an 8×8 matrix of 16-bit elements that `ldmatrix` loads; with
/// `.trans`, `(column, row)`. Register `i` is of matrix `i`.
pub const fn matrix(lane: u32, half: u32) -> (u32, u32) {
    (lane / 4, 2 * (lane % 4) + half)
}

/// The inverse of [`matrix`]: `(lane, half)` that holds `(row, column)`.
pub const fn matrix_holder(row: u32, column: u32) -> (u32, u32) {
    (row * 4 + column / 2, column % 2)
}

/// `(matrix, row)` whose address `lane` gives to `ldmatrix`.
pub const fn matrix_row(lane: u32) -> (u32, u32) {
    (lane / 8, lane % 8)
}

/// The inverse of [`matrix_row`]: the lane that gives the address of row `row` of matrix `matrix`.
pub const fn matrix_row_giver(matrix: u32, row: u32) -> u32 {
    8 * matrix + row
}

/// `(row, k)` of byte `byte` of register `register` (0 to 3) of the A operand with k = 32 one-byte elements.
pub const fn a_operand_8bit(lane: u32, register: u32, byte: u32) -> (u32, u32) {
    a_operand(4, lane, register, byte)
}

/// The inverse of [`a_operand_8bit`]: `(lane, register, byte)` that holds `(row, k)`.
pub const fn a_operand_8bit_holder(row: u32, k: u32) -> (u32, u32, u32) {
    a_operand_holder(4, row, k)
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

    /// Pairs of accumulator values, packed in their order, are the 16-bit A operand of the same keys in their order.
    #[test]
    fn accumulator_pairs_are_the_16bit_operand() {
        for lane in 0..32 {
            for element in 0..8 {
                assert_eq!(a_operand(2, lane, element / 2, element % 2), accumulator(lane, element));
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

    /// Every shape of `mma.sync`: elements a register, rows, k.
    const SHAPES: [(u32, u32, u32); 6] = [(4, 16, 32), (8, 16, 64), (2, 16, 16), (2, 16, 8), (4, 8, 16), (8, 8, 32)];

    #[test]
    fn operands_are_bijections() {
        for (packed, rows, depth) in SHAPES {
            let registers = rows * depth / (32 * packed);
            for row in 0..rows {
                for k in 0..depth {
                    let (lane, register, element) = a_operand_holder(packed, row, k);
                    assert!(lane < 32 && register < registers && element < packed);
                    assert_eq!(a_operand(packed, lane, register, element), (row, k));
                }
            }
            let registers = 8 * depth / (32 * packed);
            for k in 0..depth {
                for column in 0..8 {
                    let (lane, register, element) = b_operand_holder(packed, k, column);
                    assert!(lane < 32 && register < registers && element < packed);
                    assert_eq!(b_operand(packed, lane, register, element), (k, column));
                }
            }
        }
    }

    /// Turing's smaller products make up the larger ones: each takes a register or two of their operands and sums, as they are.
    #[test]
    fn small_products_make_up_large_ones() {
        for lane in 0..32 {
            // m16n8k32 of bytes from m8n8k16: rows 8·half on, k from 16·step on
            for (half, step) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                for byte in 0..4 {
                    let (row, k) = a_operand(4, lane, 0, byte);
                    assert_eq!(a_operand(4, lane, half + 2 * step, byte), (row + 8 * half, k + 16 * step));
                    let (k, column) = b_operand(4, lane, 0, byte);
                    assert_eq!(b_operand(4, lane, step, byte), (k + 16 * step, column));
                }
                for element in 0..2 {
                    let (row, column) = accumulator(lane, element);
                    assert_eq!(accumulator(lane, element + 2 * half), (row + 8 * half, column));
                }
            }
            // m16n8k16 of 16 bits from m16n8k8: k from 8·step on
            for step in 0..2 {
                for element in 0..2 {
                    for register in 0..2 {
                        let (row, k) = a_operand(2, lane, register, element);
                        assert_eq!(a_operand(2, lane, register + 2 * step, element), (row, k + 8 * step));
                    }
                    let (k, column) = b_operand(2, lane, 0, element);
                    assert_eq!(b_operand(2, lane, step, element), (k + 8 * step, column));
                }
            }
        }
    }

    #[test]
    fn matrix_is_a_bijection() {
        for row in 0..8 {
            for column in 0..8 {
                let (lane, half) = matrix_holder(row, column);
                assert!(lane < 32 && half < 2);
                assert_eq!(matrix(lane, half), (row, column));
            }
            for matrix in 0..4 {
                assert_eq!(matrix_row(matrix_row_giver(matrix, row)), (matrix, row));
            }
        }
    }

    /// Whatever the elements' size, 16 bytes of four rows of eight are the registers of A; and two such matrices those of B
    /// whose columns are rows in memory.
    #[test]
    fn matrices_are_operands() {
        for packed in [2, 4, 8] {
            for lane in 0..32 {
                for element in 0..packed {
                    let (row, pair) = matrix(lane, 2 * element / packed);
                    let k = pair * packed / 2 + element % (packed / 2);
                    for register in 0..4 {
                        let place = (row + 8 * (register % 2), k + 4 * packed * (register / 2));
                        assert_eq!(a_operand(packed, lane, register, element), place);
                    }
                    for register in 0..2 {
                        assert_eq!(b_operand(packed, lane, register, element), (k + 4 * packed * register, row));
                    }
                }
            }
        }
    }
}
