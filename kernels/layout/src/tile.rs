//! Tile sizes and buffer sizes.
//!
//! Queries, keys and values are quantized into *tiles*: contiguous blocks in exactly the byte order that the tensor
//! cores read from shared memory, so that one bulk copy brings a tile in. Lengths are padded to whole tiles with zeros.

/// Query rows of one warp's matrix instruction.
pub const WARP_ROWS: u32 = 16;
/// Query rows of one warpgroup (four warps), and of one quantized query tile.
pub const WARPGROUP_ROWS: u32 = 4 * WARP_ROWS;
/// Queries of a head that share a mean, with `smooth_q`: two query tiles.
pub const QUERY_BLOCK: u32 = 2 * WARPGROUP_ROWS;
/// Consumer warpgroups of one CTA of Hopper's attention kernels with up to 128 channels.
pub const CONSUMER_WARPGROUPS: u32 = 3;
/// Query rows of such a CTA. Queries are padded to a multiple of it, whichever kernel reads them.
pub const CTA_QUERIES: u32 = CONSUMER_WARPGROUPS * WARPGROUP_ROWS;
/// Consumer warpgroups of a CTA with more channels, whose outputs take more registers.
pub const WIDE_CONSUMER_WARPGROUPS: u32 = 2;
/// CTAs that such kernels run with at most: the multiprocessors of the largest GPU that has them.
pub const MAX_WIDE_CTAS: u32 = 144;
/// Query rows of one CTA of the `mma.sync` kernels.
pub const MMA_QUERIES: u32 = 128;
/// Keys of one key tile and of one value tile.
pub const KEY_TILE: u32 = 128;
/// Keys whose scores a warpgroup holds in registers at a time.
pub const KEY_CHUNK: u32 = 64;
/// Such chunks of a key tile.
pub const CHUNKS_PER_TILE: u32 = KEY_TILE / KEY_CHUNK;
/// Key tiles of one *segment*: the values' channel mean is taken over each (see `docs/numerics.md`, "Two-level
/// accumulation").
pub const SEGMENT_TILES: u32 = 8;
/// Segments after which the tensor cores' FP8 accumulators are emptied into f32: as many as lanes share rows, since each
/// keeps the row sums of one segment.
pub const SEGMENTS_PER_FLUSH: u32 = 4;
/// How often the accumulators are emptied.
pub const TILES_PER_FLUSH: u32 = SEGMENTS_PER_FLUSH * SEGMENT_TILES;
/// How often the accumulators are emptied if the values keep their mean, which makes truncation add up: SageAttention2's
/// own form.
pub const UNSMOOTHED_TILES_PER_FLUSH: u32 = 1;
/// Keys of one segment.
pub const SEGMENT_KEYS: u32 = SEGMENT_TILES * KEY_TILE;
/// Bytes of one row of a value tile: one e4m3 code a key.
pub const VALUE_ROW_BYTES: u32 = KEY_TILE;

/// The head dimensions that operands are stored with. Others up to the largest are padded with zero channels.
pub const PADDED_HEAD_DIMS: [u32; 3] = [64, 128, MAX_HEAD_DIM];
/// The largest of them.
pub const MAX_HEAD_DIM: u32 = 256;

/// The smallest padded head dimension that holds `head_dim` channels, or `None` if `head_dim` is 0 or over 256.
pub const fn padded_head_dim(head_dim: u32) -> Option<u32> {
    match head_dim {
        1..=64 => Some(64),
        65..=128 => Some(128),
        129..=MAX_HEAD_DIM => Some(MAX_HEAD_DIM),
        _ => None,
    }
}

/// The padded head dimension of the operands that a kernel of `head_dim` channels reads. It leaves the other channels alone.
pub const fn stored_head_dim(head_dim: u32) -> u32 {
    match padded_head_dim(head_dim) {
        Some(stored) => stored,
        None => panic!("kernels have 1 to 256 channels"),
    }
}

/// Consumer warpgroups of one CTA of Hopper's attention kernels.
pub const fn consumer_warpgroups(head_dim: u32) -> u32 {
    if head_dim > 128 { WIDE_CONSUMER_WARPGROUPS } else { CONSUMER_WARPGROUPS }
}

/// Query rows of such a CTA.
pub const fn cta_queries(head_dim: u32) -> u32 {
    consumer_warpgroups(head_dim) * WARPGROUP_ROWS
}

/// Bytes of the output of such a CTA in f32.
pub const fn output_bytes(head_dim: u32) -> u32 {
    cta_queries(head_dim) * head_dim * 4
}

/// Query rows after padding to whole CTAs.
pub const fn padded_queries(query_len: u32) -> u32 {
    query_len.div_ceil(CTA_QUERIES) * CTA_QUERIES
}

/// Blocks of queries that share a mean, the last one possibly short.
pub const fn query_blocks(query_len: u32) -> u32 {
    query_len.div_ceil(QUERY_BLOCK)
}

/// Attention CTAs' worth of queries.
pub const fn query_ctas(query_len: u32) -> u32 {
    query_len.div_ceil(CTA_QUERIES)
}

/// `mma.sync` CTAs' worth of queries.
pub const fn mma_ctas(query_len: u32) -> u32 {
    query_len.div_ceil(MMA_QUERIES)
}

/// Key tiles, the last one padded.
pub const fn key_tiles(key_len: u32) -> u32 {
    key_len.div_ceil(KEY_TILE)
}

/// Key segments, the last one possibly short.
pub const fn segments(key_len: u32) -> u32 {
    key_len.div_ceil(SEGMENT_KEYS)
}

/// Bytes of one quantized query tile (64 rows).
pub const fn query_tile_bytes(padded_head_dim: u32) -> u32 {
    WARPGROUP_ROWS * padded_head_dim
}

/// Bytes of one quantized key tile or value tile (128 keys).
pub const fn key_tile_bytes(padded_head_dim: u32) -> u32 {
    KEY_TILE * padded_head_dim
}

/// Bytes of one 16-bit value tile (128 keys).
pub const fn value_tile_bytes(padded_head_dim: u32) -> u32 {
    2 * KEY_TILE * padded_head_dim
}

/// Bytes of keys and values that the L2 cache keeps while the CTAs that share them run.
const CACHED_BYTES: u64 = 32 << 20;
/// Key heads among whose items the longest come first, at most: more do not even the load further, and have been replaced in the cache by
/// queries and outputs before their next items.
const MAX_CACHED_HEADS: u64 = 8;

/// How many of `heads` query heads (over all batches) have keys and values that fit the L2 cache together; at least one
/// key head's, and at most those of eight. `tile_bytes` are those of a key tile and its value tile.
pub const fn cached_heads(heads: u32, heads_per_key_head: u32, key_tiles: u32, tile_bytes: u32) -> u32 {
    let head_bytes = key_tiles as u64 * tile_bytes as u64;
    let key_heads = if head_bytes < CACHED_BYTES { CACHED_BYTES / head_bytes } else { 1 };
    let key_heads = if key_heads < MAX_CACHED_HEADS { key_heads } else { MAX_CACHED_HEADS };
    let group = key_heads * heads_per_key_head as u64;
    if group < heads as u64 { group as u32 } else { heads }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_fit_the_cache() {
        let e4m3 = 2 * key_tile_bytes(128);
        assert_eq!(cached_heads(512, 1, 8, e4m3), 8);
        assert_eq!(cached_heads(4, 1, 8, e4m3), 4);
        assert_eq!(cached_heads(16, 1, 256, e4m3), 4);
        assert_eq!(cached_heads(64, 8, 128, e4m3), 64);
        assert_eq!(cached_heads(64, 4, 1 << 22, e4m3), 4);
        assert_eq!(cached_heads(1, 1, 1, e4m3 / 2), 1);
    }

    #[test]
    fn padding_covers_every_length() {
        for len in 1..2000 {
            assert!(padded_queries(len) >= len && padded_queries(len) - len < CTA_QUERIES);
            assert!(key_tiles(len) * KEY_TILE >= len && key_tiles(len) * KEY_TILE - len < KEY_TILE);
            assert!(segments(len) * SEGMENT_KEYS >= len);
        }
        assert_eq!(padded_head_dim(0), None);
        assert_eq!(padded_head_dim(1), Some(64));
        assert_eq!(padded_head_dim(64), Some(64));
        assert_eq!(padded_head_dim(65), Some(128));
        assert_eq!(padded_head_dim(128), Some(128));
        assert_eq!(padded_head_dim(129), Some(256));
        assert_eq!(padded_head_dim(256), Some(256));
        assert_eq!(padded_head_dim(257), None);
    }
}
