//! How a tile of INT4 codes lies in memory: two codes a byte, rows of `head_dim / 2` bytes, swizzled.
//!
//! Tensor cores take eight neighbours along k from a register, the first in its lowest bits
//! ([`fragment::a_operand`](crate::fragment::a_operand) with `packed` 8). So a row's codes stand in their order, the even ones
//! in the lower halves:
//!
//! ```text
//! byte        0         1         2       …
//! bits     0–3 4–7   0–3 4–7   0–3 4–7
//! channel   0   1     2   3     4   5     …
//! ```

use crate::swizzle;

/// Bytes of a row.
pub const fn row_bytes(padded_head_dim: u32) -> u32 {
    padded_head_dim / 2
}

/// Bytes of a tile of so many rows.
pub const fn tile_bytes(rows: u32, padded_head_dim: u32) -> u32 {
    rows * row_bytes(padded_head_dim)
}

/// `(byte, bit)`: byte offset in its tile of the code of `channel` of `row`, and its lowest bit there.
pub const fn place(row: u32, channel: u32, padded_head_dim: u32) -> (u32, u32) {
    (swizzle::offset(row, channel / 2, row_bytes(padded_head_dim)), 4 * (channel % 2))
}

/// The inverse of [`place`]: `(row, channel)` of the code at bit `bit` of byte `byte`.
pub const fn position(byte: u32, bit: u32, padded_head_dim: u32) -> (u32, u32) {
    let (row, column) = swizzle::position(byte, row_bytes(padded_head_dim));
    (row, 2 * column + bit / 4)
}

/// Two codes, each from −8 to 7, as a byte.
#[inline(always)]
pub const fn pack(even: i8, odd: i8) -> u8 {
    (even as u8 & 0xf) | (odd as u8) << 4
}

/// The inverse of [`pack`].
#[inline(always)]
pub const fn unpack(byte: u8) -> (i8, i8) {
    ((byte << 4) as i8 >> 4, byte as i8 >> 4)
}

/// Eight codes, as the four bytes that they are in a tile; given as two words of four, the first in the lowest byte.
#[inline(always)]
pub const fn pack_words(codes: [u32; 2]) -> u32 {
    const fn halves(codes: u32) -> u32 {
        let codes = codes & 0x0f0f_0f0f;
        let pairs = codes | codes >> 4;
        pairs & 0xff | pairs >> 8 & 0xff00
    }
    halves(codes[0]) | halves(codes[1]) << 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fragment;
    use crate::tile::{KEY_TILE, PADDED_HEAD_DIMS, WARPGROUP_ROWS};

    #[test]
    fn place_is_a_bijection_of_the_tile() {
        for head_dim in PADDED_HEAD_DIMS {
            for rows in [WARPGROUP_ROWS, KEY_TILE] {
                let mut seen = [false; 256 * 256];
                for row in 0..rows {
                    for channel in 0..head_dim {
                        let (byte, bit) = place(row, channel, head_dim);
                        assert!(byte < tile_bytes(rows, head_dim) && (bit == 0 || bit == 4));
                        assert!(!core::mem::replace(&mut seen[(2 * byte + bit / 4) as usize], true));
                        assert_eq!(position(byte, bit, head_dim), (row, channel));
                    }
                }
            }
        }
    }

    #[test]
    fn pack_is_a_bijection() {
        for even in -8..8 {
            for odd in -8..8 {
                assert_eq!(unpack(pack(even, odd)), (even, odd));
            }
        }
    }

    #[test]
    fn words_are_packed_bytes() {
        for first in -8..8 {
            let codes: [i8; 8] = core::array::from_fn(|index| (first + 3 * index as i8 + 8).rem_euclid(16) - 8);
            let words = [0, 4].map(|at| u32::from_le_bytes(core::array::from_fn(|index| codes[at + index] as u8)));
            let bytes: [u8; 4] = core::array::from_fn(|index| pack(codes[2 * index], codes[2 * index + 1]));
            assert_eq!(pack_words(words).to_le_bytes(), bytes);
        }
    }

    /// Four bytes in a row are a register of the operand.
    #[test]
    fn bytes_are_the_operand() {
        for lane in 0..32 {
            for register in 0..4 {
                let (row, first) = fragment::a_operand(8, lane, register, 0);
                let (start, _) = place(row, first, 128);
                for element in 0..8 {
                    let (_, channel) = fragment::a_operand(8, lane, register, element);
                    assert_eq!(place(row, channel, 128), (start + element / 2, 4 * (element % 2)));
                }
            }
        }
    }
}
