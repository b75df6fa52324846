//! Keys and values that are quantized once and kept (`sage_layout::cache`): how they get there, and attention on them.
//!
//! ```text
//! k, v of new tokens ── append ──► blocks of 64 tokens, in pages
//!                                    ├─ attention, a part of the blocks each ─► partial outputs, log-sum-exps
//! q ─────────────────────────────────┘                                            └─ merge ──► o, optional log-sum-exp
//! ```

pub mod append;
pub mod attention;
pub mod merge;

use core::cmp::min;

use sage_layout::cache::{BLOCK_TOKENS, block_bytes};
use sage_layout::params::CacheView;
use simt::{global, math};

/// Tokens that sequence `batch` has, as far as its pages hold them.
///
/// # Safety
///
/// `cache` is as its documentation says.
#[inline(always)]
unsafe fn length(cache: &CacheView, batch: u32) -> u32 {
    // SAFETY: there is a length for each sequence.
    let length = unsafe { global::load_u32(cache.lengths + 4 * batch as u64) };
    // negative lengths are none
    if length as i32 > 0 { min(length, capacity(cache)) } else { 0 }
}

/// Tokens that the pages of a sequence hold.
#[inline(always)]
fn capacity(cache: &CacheView) -> u32 {
    cache.pages_per_sequence * cache.blocks_per_page * BLOCK_TOKENS
}

/// Where a head's block of a sequence is, and whether its page is one of the cache's; if not, that of the last page.
///
/// # Safety
///
/// `cache` is as its documentation says; the sequence has as many pages.
#[inline(always)]
unsafe fn block_address<const HEAD_DIM: u32>(cache: &CacheView, batch: u32, head: u32, block: u32) -> (u64, bool) {
    let (index, within) = math::div_rem(block, cache.blocks_per_page);
    let entry = batch as u64 * cache.pages_per_sequence as u64 + index as u64;
    let page = match cache.page_table {
        0 => entry as u32,
        // SAFETY: the table has an entry for each page of each sequence.
        table => unsafe { global::load_u32(table + 4 * entry) },
    };
    let exists = page < cache.page_count;
    let page = if exists { page } else { cache.page_count - 1 };
    let blocks = (page as u64 * cache.key_heads as u64 + head as u64) * cache.blocks_per_page as u64 + within as u64;
    (cache.pages + blocks * block_bytes(HEAD_DIM) as u64, exists)
}
