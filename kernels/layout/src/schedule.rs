//! The order in which the quantizer's work is done, and the counters by which its CTAs agree.
//!
//! Keys and values are read twice: for their statistics, and to be quantized with them. Work is cut into *items* of one
//! tile (of queries, whose tiles are half as long, two), claimed in one order that merges two streams, both sorted by key head:
//!
//! - statistics: of a head, its key tiles, then its value tiles;
//! - quantization: of a head, its key tiles, then its value tiles, and evenly between them the query tiles that read them.
//!
//! The first stream is a *lead* ahead of the second: what a tile is quantized with is known by then, without a wait, and
//! the tile is still in the L2 cache. An item depends on items that come before it, and on no others; so CTAs that claim
//! items in this order cannot wait for each other in a circle, however many of them run at a time.
//!
//! ```text
//! statistics    K₀ K₀ V₀ V₀ K₁ K₁ V₁ …
//! quantization              K₀ Q₀ K₀ Q₀ V₀ Q₀ …
//! ```

/// What an item is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Work {
    /// Statistics of a key tile.
    KeyStatistics = 0,
    /// Statistics of a value tile.
    ValueStatistics = 1,
    /// Quantization of query tiles.
    Query = 2,
    /// Quantization of a key tile.
    Key = 3,
    /// Quantization of a value tile.
    Value = 4,
}

/// A tile, and what to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// What to do.
    pub work: Work,
    /// Key head, over all batches.
    pub head: u32,
    /// Tile of that head. Query items are counted over all query heads that share the key head.
    pub tile: u32,
}

/// Query tiles of an item; fewer at a head's end.
pub const QUERY_TILES: u32 = 2;
/// The same in a ragged batch, whose sequences begin at every third tile: a pair could be of two.
pub const RAGGED_QUERY_TILES: u32 = 1;

/// Items of each key head: tiles of keys and values, and of queries [`QUERY_TILES`] or [`RAGGED_QUERY_TILES`] each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ItemsPerHead {
    /// Key tiles that statistics are taken of: all or none.
    pub key_statistics: u32,
    /// Value tiles that statistics are taken of: all or none.
    pub value_statistics: u32,
    /// Query items, of all query heads that share the key head.
    pub query: u32,
    /// Key tiles.
    pub key: u32,
    /// Value tiles; as many as key tiles, if both are quantized.
    pub value: u32,
}

impl ItemsPerHead {
    /// Those of statistics.
    pub const fn statistics(&self) -> u32 {
        self.key_statistics + self.value_statistics
    }

    /// The others.
    pub const fn quantization(&self) -> u32 {
        self.query + self.key + self.value
    }

    /// Tiles of a head's keys, or of its values if keys are not worked on.
    const fn of_head(&self) -> u32 {
        if self.key == 0 { self.value } else { self.key }
    }
}

/// The order of a call's items.
///
/// There are under 2³¹ of them, as tiles of keys and query CTAs are under 2²⁸.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Order {
    /// What there is to do for each head.
    pub per_head: ItemsPerHead,
    /// Statistics items in all.
    pub statistics: u32,
    /// All items.
    pub items: u32,
    /// Statistics items that come before the first quantization.
    pub lead: u32,
    /// Statistics' share of the items, in parts of 2³¹.
    pub statistics_share: u32,
    /// Queries' share of a head's quantization, in parts of 2³¹.
    pub query_share: u32,
    /// Statistics items of a head.
    pub statistics_of_head: Divisor,
    /// Its other items.
    pub quantization_of_head: Divisor,
}

impl Order {
    /// The order for `heads` key heads; at least `lag` statistics items lie between a head's last and the first
    /// quantization that depends on it, if there are as many.
    pub const fn new(heads: u32, per_head: ItemsPerHead, lag: u32) -> Self {
        let statistics = heads * per_head.statistics();
        let quantization = heads * per_head.quantization();
        let lead = per_head.of_head() + lag + ROUNDING;
        Self {
            per_head,
            statistics,
            items: statistics + quantization,
            lead: if lead < statistics { lead } else { statistics },
            statistics_share: share(statistics, statistics + quantization),
            query_share: share(per_head.query, per_head.quantization()),
            statistics_of_head: Divisor::new(per_head.statistics()),
            quantization_of_head: Divisor::new(per_head.quantization()),
        }
    }

    /// The item at `index`; there is none at `items` and beyond.
    #[inline(always)]
    pub fn nth(&self, index: u32) -> Option<Item> {
        let exists = index < self.items;
        let (is_statistics, index) = self.stream(index);
        let items = if is_statistics { self.statistics_of_head } else { self.quantization_of_head };
        let (head, index) = items.div_rem(index);
        // of the items before, so many are queries'
        let queries = if is_statistics { 0 } else { part(index, self.query_share) };
        let is_query = !is_statistics && part(index + 1, self.query_share) > queries;
        let keys = if is_statistics { self.per_head.key_statistics } else { self.per_head.key };
        let tile = index - queries;
        let (is_key, tile) = if tile < keys { (true, tile) } else { (false, tile - keys) };
        let work = match (is_query, is_statistics, is_key) {
            (true, ..) => Work::Query,
            (_, true, true) => Work::KeyStatistics,
            (_, true, false) => Work::ValueStatistics,
            (_, false, true) => Work::Key,
            (_, false, false) => Work::Value,
        };
        // not an early return: of its branch ptxas makes spills
        exists.then_some(Item { work, head, tile: if is_query { queries } else { tile } })
    }

    /// Whether the item at `index` is of the statistics, and its index among those, or among the others.
    #[inline(always)]
    fn stream(&self, index: u32) -> (bool, u32) {
        if index < self.lead {
            return (true, index);
        }
        let merged = index - self.lead;
        let before = part(merged, self.statistics_share);
        let statistics = self.lead + before;
        if statistics >= self.statistics {
            (false, index - self.statistics)
        } else if part(merged + 1, self.statistics_share) > before {
            (true, statistics)
        } else {
            (false, merged - before)
        }
    }
}

/// Items by which rounding may move the two streams against each other.
const ROUNDING: u32 = 2;

/// log₂ of the parts that shares are counted in, so that 32 bits hold the share of all.
const SHARE_BITS: u32 = 31;

/// `part / whole`, rounded up; `whole` is at most 2³¹.
const fn share(part: u32, whole: u32) -> u32 {
    if whole == 0 { 0 } else { ((part as u64) << SHARE_BITS).div_ceil(whole as u64) as u32 }
}

/// How many of the first `count` belong to a share. Of all `whole` of [`share`], it is `part`.
#[inline(always)]
const fn part(count: u32, share: u32) -> u32 {
    ((count as u64 * share as u64) >> SHARE_BITS) as u32
}

/// A divisor of at most 2³¹, by which the GPU divides without a division.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Divisor {
    /// 2⁶³ divided by it, rounded up: what rounding adds to a quotient of 32 bits is less than 2⁻³¹, and so less than 1 / divisor.
    inverse: u64,
    divisor: u32,
    padding: u32,
}

impl Divisor {
    /// The divisor `divisor`; 0 is as if it were infinite.
    pub const fn new(divisor: u32) -> Self {
        let inverse = if divisor == 0 { 0 } else { (1u64 << 63).div_ceil(divisor as u64) };
        Self { inverse, divisor, padding: 0 }
    }

    /// Quotient and remainder.
    #[inline(always)]
    pub const fn div_rem(self, dividend: u32) -> (u32, u32) {
        let quotient = ((dividend as u128 * self.inverse as u128) >> 63) as u32;
        (quotient, dividend - quotient * self.divisor)
    }
}

/// u32 counters in the workspace, all 0 when the quantizer starts.
///
/// | index | counts |
/// |---|---|
/// | [`ATTENTION_CLAIMS`](counter::ATTENTION_CLAIMS) | items claimed by the attention kernel |
/// | [`SEQUENCES`](counter::SEQUENCES) | 1 once the table of a ragged batch's sequences is there |
/// | [`QUANTIZE_CLAIMS`](counter::QUANTIZE_CLAIMS) | items claimed by the quantizer |
/// | [`segments_of`](counter::segments_of) | finished segments of a head's keys or values; one more once their mean or scale is there |
/// | [`tiles_of`](counter::tiles_of) | finished tiles of a segment |
/// | [`quantized_of`](counter::quantized_of) | items of a key head's quantization that are done, if attention waits for them |
///
/// All claim all the time: each kind of claims has 128 bytes, a cache line, to itself.
pub mod counter {
    /// Items that the attention kernel's CTAs claimed.
    pub const ATTENTION_CLAIMS: u64 = 0;
    /// Whether the table of sequences is there. Nobody claims attention's items meanwhile.
    pub const SEQUENCES: u64 = 16;
    /// Items that the quantizer's CTAs claimed.
    pub const QUANTIZE_CLAIMS: u64 = 32;
    const FIRST: u64 = 64;

    /// Whose statistics.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Tensor {
        /// The keys'.
        Key,
        /// The values'.
        Value,
    }

    /// Counter of a head's finished segments, of which there are `segments`.
    pub const fn segments_of(tensor: Tensor, head: u32, segments: u32) -> u64 {
        FIRST + (2 * head as u64 + tensor as u64) * (1 + segments as u64)
    }

    /// Counter of a segment's finished tiles.
    pub const fn tiles_of(tensor: Tensor, head: u32, segments: u32, segment: u32) -> u64 {
        segments_of(tensor, head, segments) + 1 + segment as u64
    }

    /// Counter of the items of key head `head` that are quantized, of `heads`.
    pub const fn quantized_of(head: u32, heads: u32, segments: u32) -> u64 {
        segments_of(Tensor::Key, heads, segments) + head as u64
    }

    /// Counters of a call with so many key heads, each of so many segments. In a ragged batch, each sequence counts its
    /// finished segments, so that they are as many as of a head with one segment a sequence more, less one.
    pub const fn count(heads: u32, segments: u32) -> u64 {
        quantized_of(heads, heads, segments)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::counter::Tensor;
    use super::*;
    use std::collections::HashMap;

    /// Orders of many shapes: with and without statistics of keys and of values; queries of any number; and of each operand alone.
    fn orders() -> impl Iterator<Item = (u32, Order)> {
        let heads = [1, 2, 3, 7, 33].into_iter();
        let lengths = heads.flat_map(|heads| [1, 2, 5, 8, 40].map(|key| (heads, key)));
        let queries = lengths.flat_map(|(heads, key)| [1, 3, 30, 777].map(|query| (heads, key, query)));
        let parts = queries.flat_map(|shape| {
            [(true, true), (false, true), (true, false), (false, false)].map(|statistics| (shape, statistics))
        });
        let each = parts.map(|((heads, key, query), (key_statistics, value_statistics))| {
            let all = ItemsPerHead {
                key_statistics: if key_statistics { key } else { 0 },
                value_statistics: if value_statistics { key } else { 0 },
                query,
                key,
                value: key,
            };
            let none = ItemsPerHead { key_statistics: 0, value_statistics: 0, query: 0, key: 0, value: 0 };
            let queries = ItemsPerHead { query, ..none };
            let keys = ItemsPerHead { key_statistics: all.key_statistics, key, ..none };
            let values = ItemsPerHead { value_statistics: all.value_statistics, value: key, ..none };
            [all, queries, keys, values]
                .map(|per_head| [0, 1, 10, 264].map(|lag| (heads, Order::new(heads, per_head, lag))))
        });
        each.flatten().flatten()
    }

    #[test]
    fn every_tile_has_its_turn_once() {
        for (heads, order) in orders() {
            let mut seen = HashMap::new();
            for index in 0..order.items {
                let Item { work, head, tile } = order.nth(index).expect("an item at every index");
                assert!(head < heads && seen.insert((work as u32, head, tile), index).is_none());
            }
            assert_eq!(order.nth(order.items), None);
            let ItemsPerHead { key_statistics, value_statistics, query, key, value } = order.per_head;
            for (work, tiles) in [key_statistics, value_statistics, query, key, value].into_iter().enumerate() {
                assert!((0..heads).all(|head| (0..tiles).all(|tile| seen.contains_key(&(work as u32, head, tile)))));
            }
        }
    }

    /// Between the last statistics that an item depends on and the item itself, there are `lag` others.
    #[test]
    fn statistics_come_first() {
        for (_, order) in orders() {
            let lag = order.lead.saturating_sub(order.per_head.of_head() + ROUNDING);
            let mut statistics = 0;
            for index in 0..order.items {
                let Item { work, head, .. } = order.nth(index).expect("an item at every index");
                let keys = head * order.per_head.statistics() + order.per_head.key_statistics;
                let needed = match work {
                    Work::KeyStatistics | Work::ValueStatistics => {
                        statistics += 1;
                        continue;
                    }
                    // the mean of the keys, for the log-sum-exp
                    Work::Query | Work::Key if order.per_head.key_statistics > 0 => keys,
                    Work::Value if order.per_head.value_statistics > 0 => keys + order.per_head.value_statistics,
                    _ => 0,
                };
                let expected = if needed == 0 { 0 } else { (needed + lag).min(order.statistics) };
                assert!(statistics >= expected, "{order:?} {index}: {statistics} of {expected}");
            }
        }
    }

    /// A tile's second read comes soon after its first: they are a head's tiles and the lag apart.
    #[test]
    fn second_reads_are_near() {
        for (_, order) in orders() {
            let mut first = HashMap::new();
            let mut statistics = 0;
            for index in 0..order.items {
                let Item { work, head, tile } = order.nth(index).expect("an item at every index");
                let reread = match work {
                    Work::KeyStatistics | Work::ValueStatistics => {
                        first.insert((work as u32, head, tile), statistics);
                        statistics += 1;
                        continue;
                    }
                    Work::Key => first.get(&(Work::KeyStatistics as u32, head, tile)),
                    Work::Value => first.get(&(Work::ValueStatistics as u32, head, tile)),
                    Work::Query => None,
                };
                if let Some(first) = reread {
                    assert!(statistics - first <= order.lead + order.per_head.of_head() + ROUNDING);
                }
            }
        }
    }

    #[test]
    fn divisors_divide() {
        let most = (1 << 31) - 1;
        for divisor in [1, 2, 3, 5, 7, 127, 1 << 16, (1 << 16) + 1, most / 2, most - 1, most, most + 1] {
            let near = |multiple: u32| [multiple.saturating_sub(1), multiple, (multiple + 1).min(most)];
            let multiples = [0, 1, 2, 1000, most / divisor].map(|factor| divisor.saturating_mul(factor).min(most));
            for dividend in multiples.into_iter().flat_map(near).chain([most, most + 1, u32::MAX]) {
                let expected = (dividend / divisor, dividend % divisor);
                assert_eq!(Divisor::new(divisor).div_rem(dividend), expected, "{dividend} / {divisor}");
            }
        }
        assert_eq!(Divisor::new(0).div_rem(5), (0, 5));
    }

    #[test]
    fn items_of_the_largest_calls_have_an_index() {
        let per_head = ItemsPerHead {
            key_statistics: (1 << 28) - 1,
            value_statistics: (1 << 28) - 1,
            query: 3 * ((1 << 28) - 1),
            key: (1 << 28) - 1,
            value: (1 << 28) - 1,
        };
        let order = Order::new(1, per_head, 264);
        for index in (0..order.items).step_by(9973).chain([order.items - 1]) {
            let Item { work, head, tile } = order.nth(index).expect("an item");
            let tiles = match work {
                Work::KeyStatistics => per_head.key_statistics,
                Work::ValueStatistics => per_head.value_statistics,
                Work::Query => per_head.query,
                Work::Key => per_head.key,
                Work::Value => per_head.value,
            };
            assert!(head == 0 && tile < tiles, "{index}: {work:?} {head} {tile}");
        }
    }

    #[test]
    fn counters_do_not_overlap() {
        for (heads, segments) in [(1, 1), (3, 1), (5, 7)] {
            let mut seen = std::vec![counter::ATTENTION_CLAIMS, counter::QUANTIZE_CLAIMS];
            for head in 0..heads {
                for tensor in [Tensor::Key, Tensor::Value] {
                    seen.push(counter::segments_of(tensor, head, segments));
                    seen.extend((0..segments).map(|segment| counter::tiles_of(tensor, head, segments, segment)));
                }
                seen.push(counter::quantized_of(head, heads, segments));
            }
            assert_eq!(seen.iter().max(), Some(&(counter::count(heads, segments) - 1)));
            seen.sort_unstable();
            assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
