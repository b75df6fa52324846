//! How a 16-bit value tile lies in memory: transposed, 128 keys as two halves of 64.
//!
//! A row is a channel's 64 keys, 128 bytes, with the 128-byte swizzle. Eight rows are a group of 1024 bytes; the two
//! halves' groups alternate, so that a half is one matrix whose groups lie [`GROUP_STRIDE`] apart, and the tile is one
//! block.
//!
//! ```text
//!  group of channels 0 … 7     0 … 7     8 … 15    8 … 15    …
//!  keys              0 … 63    64 … 127  0 … 63    64 … 127  …
//!  bytes             0         1024      2048      3072      …
//! ```

use crate::swizzle;
use crate::tile::KEY_CHUNK;

/// Keys of a half.
pub const HALF_KEYS: u32 = KEY_CHUNK;
/// Bytes of a row: one channel of one half.
pub const ROW_BYTES: u32 = 2 * HALF_KEYS;
/// Bytes of eight rows.
pub const GROUP_BYTES: u32 = 8 * ROW_BYTES;
/// Bytes from a group of rows to the next of the same half.
pub const GROUP_STRIDE: u32 = 2 * GROUP_BYTES;

/// Byte offset in its tile of `channel` of `key`.
pub const fn offset(channel: u32, key: u32) -> u32 {
    let half = key / HALF_KEYS;
    channel / 8 * GROUP_STRIDE + half * GROUP_BYTES + swizzle::offset(channel % 8, 2 * (key % HALF_KEYS), ROW_BYTES)
}

/// The inverse of [`offset`]: `(channel, key)` of the element at `offset`.
pub const fn position(offset: u32) -> (u32, u32) {
    let (group, half) = (offset / GROUP_STRIDE, offset % GROUP_STRIDE / GROUP_BYTES);
    let (row, column) = swizzle::position(offset % GROUP_BYTES, ROW_BYTES);
    (8 * group + row, half * HALF_KEYS + column / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::{KEY_TILE, value_tile_bytes};

    #[test]
    fn is_a_bijection_of_the_tile() {
        for head_dim in crate::tile::PADDED_HEAD_DIMS {
            let mut seen = [false; 256 * 128];
            for channel in 0..head_dim {
                for key in 0..KEY_TILE {
                    let place = offset(channel, key);
                    assert!(place.is_multiple_of(2) && place < value_tile_bytes(head_dim));
                    assert!(!core::mem::replace(&mut seen[place as usize / 2], true));
                    assert_eq!(position(place), (channel, key));
                }
            }
        }
    }

    /// Eight keys of a channel are one chunk, which threads write at once.
    #[test]
    fn eight_keys_are_adjacent() {
        for channel in 0..256 {
            for key in 0..KEY_TILE {
                assert_eq!(offset(channel, key), offset(channel, key / 8 * 8) + 2 * (key % 8));
                assert_eq!(offset(channel, key / 8 * 8) % swizzle::CHUNK_BYTES, 0);
            }
        }
    }
}
