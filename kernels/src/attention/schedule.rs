//! Work items: some queries of one head.

use core::cmp::min;

use sage_layout::params::AttentionParams;
use sage_layout::tile::{CTA_QUERIES, KEY_CHUNK, KEY_TILE, WARPGROUP_ROWS};
use sage_layout::visibility::Band;
use simt::{global, math, shared, thread};

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
    /// last queries come first: under a causal mask they see the most keys. In a ragged batch places come in order, longest
    /// sequences first. `find` gives the sequence of a place, and its first.
    #[inline(always)]
    pub fn nth(params: &AttentionParams, index: u32, queries: u32, find: impl FnOnce(u32) -> (S, u32)) -> Self {
        let ctas = S::cta_places(params, queries);
        let (heads, _) = math::div_rem(params.items, ctas);
        let (group, index) = math::div_rem(index, ctas * params.heads_per_group);
        let first_head = group * params.heads_per_group;
        let (cta, head) = math::div_rem(index, min(params.heads_per_group, heads - first_head));
        let head = first_head + head;
        let place = if S::RAGGED { cta } else { ctas - 1 - cta };
        let (sequence, first_place) = find(place);
        let first_query = match S::RAGGED {
            // of a place that is not the sequence's, more than it has
            true => {
                let own = sequence.queries(0).div_ceil(queries);
                own.wrapping_sub(1 + place - first_place).wrapping_mul(queries)
            }
            false => place * queries,
        };
        Self { head, key_head: key_head_of(head, params.heads_per_key_head), first_query, sequence }
    }

    /// Whether there are queries: some places in a ragged batch are nobody's.
    #[inline(always)]
    pub fn is_there(&self) -> bool {
        !S::RAGGED || self.first_query < self.sequence.queries(0)
    }

    /// As words: head, key head, first query, index of the sequence, the sequence.
    #[inline(always)]
    pub fn words(&self) -> [u32; 8] {
        let [query_start, key_start, queries, keys] = self.sequence.words();
        let Self { head, key_head, first_query, sequence } = *self;
        [head, key_head, first_query, sequence.index(), query_start, key_start, queries, keys]
    }

    /// Of such words.
    #[inline(always)]
    pub fn from_words(words: [u32; 8]) -> Self {
        let [head, key_head, first_query, index, query_start, key_start, queries, keys] = words;
        let sequence = S::from_words(index, [query_start, key_start, queries, keys]);
        Self { head, key_head, first_query, sequence }
    }

    /// Keeps it in shared memory, for [`kept`](Self::kept).
    ///
    /// # Safety
    ///
    /// `address` is a multiple of 16, of 32 bytes, which nobody else touches at the same time.
    #[inline(always)]
    pub unsafe fn keep(&self, address: u32) {
        let [a, b, c, d, e, f, g, h] = self.words();
        // SAFETY: forwarded contract.
        unsafe {
            shared::store_u32x4(address, [a, b, c, d]);
            shared::store_u32x4(address + 16, [e, f, g, h]);
        }
    }

    /// The item that was kept.
    ///
    /// # Safety
    ///
    /// One was, at this address, and nobody writes there at the same time.
    #[inline(always)]
    pub unsafe fn kept(address: u32) -> Self {
        // SAFETY: forwarded contract.
        let [[a, b, c, d], [e, f, g, h]] = [0, 16].map(|offset| unsafe { shared::load_u32x4(address + offset) });
        Self::from_words([a, b, c, d, e, f, g, h])
    }

    /// Key tiles that the item needs, if it has `queries` queries.
    #[inline(always)]
    pub fn key_tiles(&self, params: &AttentionParams, queries: u32) -> KeyTiles {
        KeyTiles::of(params, self.sequence, [self.first_query, queries], KEY_TILE)
    }

    /// The query tile of one of its warpgroups, counted from its sequence's first, if it has `queries` queries. A warpgroup without queries
    /// gets the item's first: its own may be beyond those that queries are padded to.
    #[inline(always)]
    pub fn query_tile(&self, params: &AttentionParams, queries: u32, warpgroup: u32) -> u32 {
        let is_padded_to = CTA_QUERIES.is_multiple_of(queries);
        let first_row = self.first_query + warpgroup * WARPGROUP_ROWS;
        let has_queries = is_padded_to || first_row < self.sequence.queries(params.output.tokens);
        self.first_query / WARPGROUP_ROWS + if has_queries { warpgroup } else { 0 }
    }

    /// The part of the item's key tiles that one of its warpgroups needs.
    #[inline(always)]
    pub fn warpgroup_key_tiles(&self, params: &AttentionParams, warpgroup: u32) -> KeyTiles {
        KeyTiles::of(params, self.sequence, self.warpgroup_rows(warpgroup), KEY_TILE)
    }

    /// The chunk after the last that one of its warpgroups sees anything of, if there is one.
    #[inline(always)]
    pub fn warpgroup_chunk_end(&self, params: &AttentionParams, warpgroup: u32) -> u32 {
        KeyTiles::of(params, self.sequence, self.warpgroup_rows(warpgroup), KEY_CHUNK).end
    }

    /// The first of a warpgroup's queries, and how many there are.
    #[inline(always)]
    fn warpgroup_rows(&self, warpgroup: u32) -> [u32; 2] {
        [self.first_query + warpgroup * WARPGROUP_ROWS, WARPGROUP_ROWS]
    }
}

/// Key tiles, or smaller parts of the keys, of some queries.
#[derive(Clone, Copy)]
pub struct KeyTiles {
    /// The first tile that any query sees anything of.
    pub first: u32,
    /// The tile after the last such; `first`, both 0, if there are none.
    pub end: u32,
    /// Tiles `whole .. whole_end` are seen whole by every query; `end`, both, if there are none.
    pub whole: u32,
    /// See [`whole`](Self::whole).
    pub whole_end: u32,
}

impl KeyTiles {
    /// Tiles of `keys` keys, of the `count` queries from `row` on.
    #[inline(always)]
    pub fn of<S: Sequences>(params: &AttentionParams, sequence: S, [row, count]: [u32; 2], keys: u32) -> Self {
        const NONE: KeyTiles = KeyTiles { first: 0, end: 0, whole: 0, whole_end: 0 };
        let (visible, key_len) = (sequence.visible(params), sequence.keys(params.key_len));
        // opaque, or what follows from them is kept in registers from one item to the next
        let tokens = math::opaque(sequence.queries(params.output.tokens));
        let visible = Band { last: math::opaque(visible.last as u32) as i32, ..visible };
        if row >= tokens {
            return NONE;
        }
        // neither end of later rows is smaller
        let first_row = visible.visible_keys(row, key_len);
        let last_row = visible.visible_keys(min(row + count, tokens) - 1, key_len);
        let (first, end) = (first_row.start / keys, last_row.end.div_ceil(keys));
        if first_row.start >= last_row.end {
            return NONE;
        }
        let (whole, whole_end) = (last_row.start.div_ceil(keys), first_row.end / keys);
        if whole < whole_end {
            Self { first, end, whole, whole_end }
        } else {
            Self { first, end, whole: end, whole_end: end }
        }
    }

    /// As words.
    #[inline(always)]
    pub fn words(&self) -> [u32; 4] {
        [self.first, self.end, self.whole, self.whole_end]
    }

    /// Of such words.
    #[inline(always)]
    pub fn from_words([first, end, whole, whole_end]: [u32; 4]) -> Self {
        Self { first, end, whole, whole_end }
    }

    /// How many tiles there are.
    #[inline(always)]
    pub fn count(&self) -> u32 {
        self.end - self.first
    }

    /// Whether a tile is one of them.
    #[inline(always)]
    pub fn contains(&self, tile: u32) -> bool {
        self.first <= tile && tile < self.end
    }

    /// Whether every query sees all of a tile.
    #[inline(always)]
    pub fn is_whole(&self, tile: u32) -> bool {
        self.whole <= tile && tile < self.whole_end
    }

    /// From `tile` on, how far the next tiles up to `end` are whole, and how far those after them are not.
    ///
    /// With both done, what follows are whole tiles again; where a window's queries end, more of those that are not.
    #[inline(always)]
    pub fn runs(&self, tile: u32, end: u32) -> [u32; 2] {
        if tile < self.whole { [tile, min(end, self.whole)] } else { [min(end, self.whole_end), end] }
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
