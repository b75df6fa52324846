//! Work items: 192 queries of one head.

use core::cmp::min;

use sage_layout::params::AttentionParams;
use sage_layout::tile::{CTA_QUERIES, KEY_TILE, WARPGROUP_ROWS, query_ctas};
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
    /// The item of an index. Items are sorted by groups of heads whose keys fit the L2 cache, and in a group the last
    /// queries come first: under a causal mask they see the most keys.
    #[inline(always)]
    pub fn nth(params: &AttentionParams, index: u32) -> Self {
        let ctas = query_ctas(params.output.tokens);
        let (heads, _) = math::div_rem(params.items, ctas);
        let (group, index) = math::div_rem(index, ctas * params.heads_per_group);
        let first_head = group * params.heads_per_group;
        let (cta, head) = math::div_rem(index, min(params.heads_per_group, heads - first_head));
        let head = first_head + head;
        Self {
            head,
            key_head: key_head_of(head, params.heads_per_key_head),
            first_query: (ctas - 1 - cta) * CTA_QUERIES,
        }
    }

    /// Key tiles that the first `queries` of the item see any key of.
    #[inline(always)]
    fn key_tiles_of(&self, params: &AttentionParams, queries: u32) -> u32 {
        let end = min(self.first_query + queries, params.output.tokens);
        visible_keys(end - 1, params.diagonal, params.key_len).div_ceil(KEY_TILE)
    }

    /// Key tiles that the item needs.
    #[inline(always)]
    pub fn key_tiles(&self, params: &AttentionParams) -> u32 {
        self.key_tiles_of(params, CTA_QUERIES)
    }

    /// The part of the item's key tiles that one of its warpgroups needs.
    #[inline(always)]
    pub fn warpgroup_key_tiles(&self, params: &AttentionParams, warpgroup: u32) -> KeyTiles {
        let row = self.first_query + warpgroup * WARPGROUP_ROWS;
        if row >= params.output.tokens {
            return KeyTiles { whole: 0, all: 0 };
        }
        KeyTiles {
            whole: visible_keys(row, params.diagonal, params.key_len) / KEY_TILE,
            all: self.key_tiles_of(params, (warpgroup + 1) * WARPGROUP_ROWS),
        }
    }
}

/// Key tiles of a warpgroup's queries.
#[derive(Clone, Copy)]
pub struct KeyTiles {
    /// The first tiles that every query sees whole.
    pub whole: u32,
    /// Tiles that any query sees anything of.
    pub all: u32,
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
    // SAFETY: the counter is the launch's own.
    unsafe {
        let claims = global::fetch_add_u32(params.claimed_items, 1);
        if claims == params.items - 1 {
            global::store_u32(params.claimed_items, 0);
        }
        thread::grid_dim_x() + claims
    }
}
