//! How the quantizer comes to an item's sequence. Of a ragged batch, it makes the table first.

use core::cmp::{max, min};

use sage_layout::kernel::{QuantizeShared, threads_per_row};
use sage_layout::params::QuantizeParams;
use sage_layout::schedule::{Item, Work, counter};
use sage_layout::sequence::{MOST_SORTED, Sequence, first_part, last_at};
use sage_layout::statistics::TOKEN_LANES;
use sage_layout::tile::{CONSUMER_WARPGROUPS, CTA_QUERIES, KEY_TILE, WARPGROUP_ROWS, padded_queries};
use simt::{global, math, shared, thread};

use super::schedule::{WAITING_THREAD, claim};
use super::{Find, thread_of_item};
use crate::sequences::{Ragged, Sequences, Uniform, entry, order};

impl Find for Uniform {
    #[inline(always)]
    unsafe fn prepare<const HEAD_DIM: u32>(_: &QuantizeParams) {}

    #[inline(always)]
    fn claimed(params: &QuantizeParams, claim: u32) -> Option<Item> {
        params.order.nth(claim)
    }

    #[inline(always)]
    unsafe fn find(_: &QuantizeParams, item: Item) -> Option<(Self, u32)> {
        Some((Self, item.tile))
    }
}

/// The first claim is for the table, on which all other items depend.
const TABLE_CLAIM: u32 = 0;

impl Find for Ragged {
    #[inline(always)]
    unsafe fn prepare<const HEAD_DIM: u32>(params: &QuantizeParams) {
        let table_is_there = params.counters + 4 * counter::SEQUENCES;
        thread::sync_threads();
        // SAFETY: the claim was written before the barrier, and is written again after the next one. Whoever claimed the
        // table runs to its end.
        unsafe {
            if shared::load_u32(shared::dynamic() + QuantizeShared::new(HEAD_DIM).claim) == TABLE_CLAIM {
                write_table::<HEAD_DIM>(params);
                thread::sync_threads();
                if thread_of_item() == 0 {
                    global::fetch_add_acq_rel_u32(table_is_there, 1);
                }
                write_order::<HEAD_DIM>(params);
                claim::<HEAD_DIM>(params);
            } else if thread_of_item() == WAITING_THREAD {
                global::wait_until_u32(table_is_there, 1);
            }
        }
        thread::sync_threads();
    }

    #[inline(always)]
    fn claimed(params: &QuantizeParams, claim: u32) -> Option<Item> {
        params.order.nth(claim - TABLE_CLAIM - 1)
    }

    #[inline(always)]
    unsafe fn find(params: &QuantizeParams, item: Item) -> Option<(Self, u32)> {
        let sequences = &params.sequences;
        let of_queries = item.work as u32 == Work::Query as u32;
        let (head, tile) = if of_queries { math::div_rem(item.tile, params.query_tiles) } else { (0, item.tile) };
        let (size, tiles, word) = if of_queries { (CTA_QUERIES, CONSUMER_WARPGROUPS, 0) } else { (KEY_TILE, 1, 1) };
        let place = tile / tiles;
        // SAFETY: the table is there, and this thread waited for it.
        unsafe {
            let first = |index| first_part(global::load_written_u32(entry(sequences, index) + 4 * word), index, size);
            let index = last_at(place, sequences.count, first);
            let found = Self::of_index(sequences, index);
            let sequence = found.sequence;
            let (start, tokens) = match of_queries {
                true => (sequence.query_start, padded_queries(sequence.queries)),
                false => (sequence.key_start, sequence.keys),
            };
            // of a place before its first part, this is more than there are
            let own = tile.wrapping_sub(first_part(start, index, size) * tiles);
            let rows = if of_queries { WARPGROUP_ROWS } else { KEY_TILE };
            let is_its = own < tokens.div_ceil(rows);
            is_its.then_some((found, head * params.query_tiles + own))
        }
    }
}

/// Writes the table of sequences. Lengths that make no sense are cut to what the tensors have.
///
/// # Safety
///
/// As the parameters say; all threads of one CTA call it, and nobody uses its shared memory.
#[inline(always)]
unsafe fn write_table<const HEAD_DIM: u32>(params: &QuantizeParams) {
    let sequences = &params.sequences;
    let threads = const { TOKEN_LANES * threads_per_row(HEAD_DIM) };
    let thread = thread_of_item();
    let count = sequences.count;
    if sequences.key_lens != 0 {
        let mut index = thread;
        while index < count {
            // SAFETY: the caller's lengths are as many; the entry is this thread's own.
            unsafe {
                let keys = within(global::load_u32(sequences.key_lens + 4 * index as u64), sequences.keys);
                let [query_start, key_start] = [sequences.queries, sequences.keys].map(|tokens| index * tokens);
                let sequence = Sequence { query_start, key_start, queries: sequences.queries, keys };
                global::store_u32x4(entry(sequences, index), sequence.words());
            }
            index += threads;
        }
        return;
    }
    // Each thread has some neighbouring sequences. A start is the largest up to it, so that starts do not decrease.
    let own = count.div_ceil(threads);
    let [first, end] = [thread, thread + 1].map(|thread| min(thread * own, count));
    let start = |index: u32| {
        // SAFETY: the caller's starts are one more than sequences.
        unsafe {
            [
                within(global::load_u32(sequences.query_starts + 4 * index as u64), sequences.queries),
                within(global::load_u32(sequences.key_starts + 4 * index as u64), sequences.keys),
            ]
        }
    };
    let larger = |[a, b]: [u32; 2], [c, d]: [u32; 2]| [max(a, c), max(b, d)];
    let mut largest = [0; 2];
    for index in first..end {
        largest = larger(largest, start(index));
    }
    // SAFETY: the place is this thread's own, within the launch's shared memory.
    unsafe { shared::store_u32x2(shared::dynamic() + 8 * thread, largest) };
    thread::sync_threads();
    let mut current = [0; 2];
    for before in 0..thread {
        // SAFETY: all were written before the barrier.
        current = larger(current, unsafe { shared::load_u32x2(shared::dynamic() + 8 * before) });
    }
    if first < end {
        current = larger(current, start(first));
    }
    for index in first..end {
        let next = larger(current, start(index + 1));
        let [[query_start, key_start], [query_end, key_end]] = [current, next];
        let sequence = Sequence { query_start, key_start, queries: query_end - query_start, keys: key_end - key_start };
        // SAFETY: the entry is this thread's own.
        unsafe { global::store_u32x4(entry(sequences, index), sequence.words()) };
        current = next;
    }
}

/// Writes the order in which attention takes sequences: those with the most keys first, so that what is left at the end is
/// short.
///
/// # Safety
///
/// As [`write_table`], which all threads have finished.
#[inline(always)]
unsafe fn write_order<const HEAD_DIM: u32>(params: &QuantizeParams) {
    let sequences = &params.sequences;
    let mut index = thread_of_item();
    while index < sequences.count {
        // SAFETY: the table is there; ranks differ, so that the place is this thread's own.
        unsafe {
            let own = <Ragged>::of_index(sequences, index).sequence;
            let (mut rank, mut place) = (index, first_part(own.query_start, index, sequences.cta_queries));
            if sequences.count <= MOST_SORTED {
                (rank, place) = (0, 0);
                for other in 0..sequences.count {
                    let sequence = <Ragged>::of_index(sequences, other).sequence;
                    if sequence.keys > own.keys || (sequence.keys == own.keys && other < index) {
                        rank += 1;
                        place += math::div_rem(sequence.queries + sequences.cta_queries - 1, sequences.cta_queries).0;
                    }
                }
            }
            global::store_u32x2(order(sequences, rank), [place, index]);
        }
        index += const { TOKEN_LANES * threads_per_row(HEAD_DIM) };
    }
}

/// The bits of an i32 as a number from 0 to `most`.
#[inline(always)]
fn within(bits: u32, most: u32) -> u32 {
    min(max(bits as i32, 0) as u32, most)
}
