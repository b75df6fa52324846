//! Work items: some queries of one head.

use core::cmp::min;

use sage_layout::params::AttentionParams;
use sage_layout::tile::{CTA_QUERIES, KEY_TILE, WARPGROUP_ROWS};
use sage_layout::visibility::visible_keys;
use simt::{global, math, thread};

use crate::quantize::query_key::key_head_of;

/// One CTA's work on one head.
#[derive(Clone, Copy)]
pub struct WorkItem {
    /// Index over batches and query heads.
    pub head: u32,
    /// Index over batches and key heads.
    pub key_head: u32,
    /// First of the item's queries.
    pub first_query: u32,
}

impl WorkItem {
    /// The item of an index, if one has `queries` queries. Items are sorted by groups of heads (`AttentionParams::heads_per_group`), and in a group the
    /// last queries come first: under a causal mask they see the most keys.
    #[inline(always)]
    pub fn nth(params: &AttentionParams, index: u32, queries: u32) -> Self {
        let ctas = params.output.tokens.div_ceil(queries);
        let (heads, _) = math::div_rem(params.items, ctas);
        let (group, index) = math::div_rem(index, ctas * params.heads_per_group);
        let first_head = group * params.heads_per_group;
        let (cta, head) = math::div_rem(index, min(params.heads_per_group, heads - first_head));
        let head = first_head + head;
        Self { head, key_head: key_head_of(head, params.heads_per_key_head), first_query: (ctas - 1 - cta) * queries }
    }

    /// Key tiles that the item needs.
    #[inline(always)]
    pub fn key_tiles(&self, params: &AttentionParams) -> u32 {
        KeyTiles::of(params, [self.first_query, CTA_QUERIES], KEY_TILE).all
    }

    /// The part of the item's key tiles that one of its warpgroups needs.
    #[inline(always)]
    pub fn warpgroup_key_tiles(&self, params: &AttentionParams, warpgroup: u32) -> KeyTiles {
        let row = self.first_query + warpgroup * WARPGROUP_ROWS;
        KeyTiles::of(params, [row, WARPGROUP_ROWS], KEY_TILE)
    }
}

/// Key tiles, or smaller parts of the keys, of some queries.
#[derive(Clone, Copy)]
pub struct KeyTiles {
    /// The first tiles that every query sees whole.
    pub whole: u32,
    /// Tiles that any query sees anything of.
    pub all: u32,
}

impl KeyTiles {
    /// Tiles of `keys` keys, of the `count` queries from `row` on.
    #[inline(always)]
    pub fn of(params: &AttentionParams, [row, count]: [u32; 2], keys: u32) -> Self {
        let AttentionParams { diagonal, key_len, .. } = *params;
        if row >= params.output.tokens {
            return Self { whole: 0, all: 0 };
        }
        let last = min(row + count, params.output.tokens) - 1;
        Self {
            whole: visible_keys(row, diagonal, key_len) / keys,
            all: visible_keys(last, diagonal, key_len).div_ceil(keys),
        }
    }
}

/// Claims the next item for this CTA; there is none if its index is not below `items`.
///
/// Items go to whichever CTA is free, so that unequal ones spread evenly; what an item computes does not depend on who
/// computes it. Every CTA claims until it gets none, so there are `items` claims in all, and the last resets the counter.
///
/// # Safety
///
/// As the parameters say; one thread of the CTA, once for every item that it got.
#[inline(always)]
pub unsafe fn claim(params: &AttentionParams) -> u32 {
    // SAFETY: the counter is the launch's own. The last claim comes after every other access to it, so that a plain store
    // may reset it.
    unsafe {
        let claims = global::fetch_add_u32(params.claimed_items, 1);
        if claims == params.items - 1 {
            global::store_u32(params.claimed_items, 0);
        }
        thread::grid_dim_x() + claims
    }
}
