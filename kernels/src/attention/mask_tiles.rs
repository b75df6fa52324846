//! What a boolean mask shows of each key tile, computed once for all heads that share it.

use core::cmp::min;

use sage_layout::mask_tile::{HIDDEN, MIXED, WHOLE};
use sage_layout::params::MaskTilesParams;
use sage_layout::tile::KEY_TILE;
use simt::{global, math, thread, warp};

/// Keys of a lane: 16 bytes of a row.
const KEYS: u32 = 16;
/// Lanes of a row.
const LANES_PER_ROW: u32 = KEY_TILE / KEYS;
/// Rows of a step.
const ROWS: u32 = warp::LANES / LANES_PER_ROW;

/// Not 0 if a byte is.
#[inline(always)]
fn zero_bytes(word: u32) -> u32 {
    word.wrapping_sub(0x0101_0101) & !word & 0x8080_8080
}

/// The kernel. A warp looks at the rows of a tile, four at a time.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn mask_tiles(params: &MaskTilesParams) {
    let MaskTilesParams { mask, queries, item_queries, keys, .. } = params;
    let lane = thread::thread_idx_x();
    let index = thread::block_idx_x();
    let (rest, tile) = math::div_rem(index, params.key_tiles);
    let (rest, item) = math::div_rem(rest, params.items);
    let (batch, head) = math::div_rem(rest, params.heads);
    let end_row = min((item + 1) * item_queries, *queries);
    let first_key = tile * KEY_TILE + lane % LANES_PER_ROW * KEYS;
    let lane_keys = min(keys.saturating_sub(first_key), KEYS);
    let start = batch as i64 * mask.batch + head as i64 * mask.head + first_key as i64 * mask.key;

    // bits of bytes that show something, and of those that hide
    let (mut shown, mut hidden) = (0, 0);
    let mut row = item * item_queries + lane / LANES_PER_ROW;
    while row < end_row {
        let at = mask.address.wrapping_add_signed(start + row as i64 * mask.query);
        // SAFETY: the elements are inside the mask, and rows are aligned to 16 bytes where they are loaded so.
        unsafe {
            if params.vectorized != 0 && lane_keys == KEYS {
                for word in global::load_u32x4(at) {
                    shown |= word;
                    hidden |= zero_bytes(word);
                }
            } else {
                for key in 0..lane_keys {
                    let byte = global::load_u8_if(true, at.wrapping_add_signed(key as i64 * mask.key));
                    shown |= byte as u32;
                    hidden |= (byte == 0) as u32;
                }
            }
        }
        row += ROWS;
    }
    warp::sync_warp();
    let word = match [shown, hidden].map(|bits| warp::any(bits != 0)) {
        [false, _] => HIDDEN,
        [true, false] => WHOLE,
        [true, true] => MIXED,
    };
    if lane == 0 {
        // SAFETY: the place is this CTA's own.
        unsafe { global::store_u32(params.tiles + 4 * index as u64, word) };
    }
}
