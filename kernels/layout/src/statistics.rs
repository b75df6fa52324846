//! The order in which channel statistics are summed, so that the CPU gets the GPU's bits.
//!
//! Floating-point addition is not associative; these rules are the definition of a channel's sum, and the kernels and
//! the CPU engine both follow them:
//!
//! 1. A tile's tokens are dealt to [`TOKEN_LANES`] partial sums: token `i` of the tile goes to partial sum
//!    `i % TOKEN_LANES`, in order of `i`, starting from 0.
//! 2. The tile's sum adds the partial sums in order: `((0 + p0) + p1) + …`.
//! 3. A segment's sum adds its tiles' sums in order, starting from 0.
//! 4. The channel's sum adds the segments' sums in order, starting from 0. The mean is that sum divided by the length.
//!
//! The mean of a block of queries ([`QUERY_BLOCK`](crate::tile::QUERY_BLOCK), the last one possibly short) is made by the first
//! two rules, with the block for a tile, and divided by the number of its queries.
//!
//! The product of a query row with the key mean (for the log-sum-exp) is a sum too: each chunk of eight channels from 0 in
//! order, then the chunks' sums in pairs, pairs of pairs, and so on: every sum plus its partner's, whose index differs
//! in bit 0, then in bit 1, …
//!
//! Every operation is f32 with rounding to nearest even. Minimum and maximum do not depend on order.
//!
//! Until a head's statistics are finished, those of its parts stand where codes will be: the statistics of a tile at the
//! start of that tile's codes, those of a segment behind them in its first tile. They are rows of one f32 a channel.

/// Partial sums of a tile.
pub const TOKEN_LANES: u32 = 16;

/// What a statistics row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// Sums of a tile.
    TileSum,
    /// Minima of a tile.
    TileMin,
    /// Maxima of a tile.
    TileMax,
    /// Sums of a segment of keys.
    SegmentSum,
    /// Largest distances from the mean in a segment of values.
    SegmentAmax,
}

/// Byte offset of a row in its tile's codes.
pub const fn row_offset(row: Row, padded_head_dim: u32) -> u32 {
    row as u32 * padded_head_dim * 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int4_tile;
    use crate::tile::{KEY_TILE, PADDED_HEAD_DIMS, key_tile_bytes};

    #[test]
    fn rows_fit_the_codes() {
        for head_dim in PADDED_HEAD_DIMS {
            let needed = row_offset(Row::SegmentAmax, head_dim) + 4 * head_dim;
            assert!(needed <= key_tile_bytes(head_dim) && needed <= int4_tile::tile_bytes(KEY_TILE, head_dim));
        }
    }
}
