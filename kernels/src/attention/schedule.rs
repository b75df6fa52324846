//! Work items: some queries of one head.

use core::cmp::min;

use sage_layout::params::AttentionParams;
use sage_layout::tile::{CTA_QUERIES, KEY_TILE, WARPGROUP_ROWS};
use sage_layout::visibility::visible_keys;
use simt::{global, math, thread};

use crate::quantize::query_key::key_head_of;
use crate::sequences::Sequences;

/// One CTA's work on one head.
#[derive(Clone, Copy)]
pub struct WorkItem<S> {
    /// Index over batches and query heads.
    pub head: u32,
    /// Index over batches and key heads.
    pub key_head: u32,
    /// First of the item's queries.
    pub first_query: u32,
    /// Whose they are.
    pub sequence: S,
}

impl<S: Sequences> WorkItem<S> {
    /// The item of an index, if one has `queries` queries. Items are sorted by groups of heads (`AttentionParams::heads_per_group`), and in a group the
    /// last queries come first: under a causal mask they see the most keys. `find` gives the sequence of a place for a CTA.
    #[inline(always)]
    pub fn nth(params: &AttentionParams, index: u32, queries: u32, find: impl FnOnce(u32) -> S) -> Self {
        let ctas = S::cta_places(params, queries);
        let (heads, _) = math::div_rem(params.items, ctas);
        let (group, index) = math::div_rem(index, ctas * params.heads_per_group);
        let first_head = group * params.heads_per_group;
        let (cta, head) = math::div_rem(index, min(params.heads_per_group, heads - first_head));
        let head = first_head + head;
        let place = ctas - 1 - cta;
        let sequence = find(place);
        let first_query = match S::RAGGED {
            // of a place before the sequence's first, this is more than it has
            true => place.wrapping_sub(sequence.first_cta(queries)).wrapping_mul(queries),
            false => place * queries,
        };
        Self { head, key_head: key_head_of(head, params.heads_per_key_head), first_query, sequence }
    }

    /// Whether there are queries: some places in a ragged batch are nobody's.
    #[inline(always)]
    pub fn is_there(&self) -> bool {
        !S::RAGGED || self.first_query < self.sequence.queries(0)
    }

    /// Key tiles that the item needs.
    #[inline(always)]
    pub fn key_tiles(&self, params: &AttentionParams) -> u32 {
        KeyTiles::of(params, self.sequence, [self.first_query, CTA_QUERIES], KEY_TILE).all
    }

    /// The part of the item's key tiles that one of its warpgroups needs.
    #[inline(always)]
    pub fn warpgroup_key_tiles(&self, params: &AttentionParams, warpgroup: u32) -> KeyTiles {
        let row = self.first_query + warpgroup * WARPGROUP_ROWS;
        KeyTiles::of(params, self.sequence, [row, WARPGROUP_ROWS], KEY_TILE)
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
    pub fn of<S: Sequences>(params: &AttentionParams, sequence: S, [row, count]: [u32; 2], keys: u32) -> Self {
        let (diagonal, key_len) = (sequence.diagonal(params), sequence.keys(params.key_len));
        let queries = sequence.queries(params.output.tokens);
        if row >= queries {
            return Self { whole: 0, all: 0 };
        }
        let last = min(row + count, queries) - 1;
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
