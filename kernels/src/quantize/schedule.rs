//! How CTAs come to their items, and wait for each other's.

use sage_layout::kernel::QuantizeShared;
use sage_layout::params::QuantizeParams;
use sage_layout::schedule::Work;
use sage_layout::schedule::counter::{self, Tensor};
use simt::{global, math, shared, thread};

use super::{Find, Part, thread_of_item};
use crate::sequences::Sequences;

/// What [`share`] returns for work when there is none.
const NOTHING_LEFT: u32 = u32::MAX;

/// The same in place of the key head that the last item was of, if it was none that attention waits for.
const NOTHING_FINISHED: u32 = u32::MAX;

/// The thread that tells attention. Another one than those that claim and wait.
const TELLING_THREAD: u32 = 64;

/// The thread that waits for statistics. Not the first one, which waits for its claim at the same time.
pub const WAITING_THREAD: u32 = 32;

/// Claims a CTA's first item.
///
/// # Safety
///
/// As for [`claim`], before all others.
#[inline(always)]
pub unsafe fn claim_first<const HEAD_DIM: u32>(params: &QuantizeParams) {
    let memory = QuantizeShared::new(HEAD_DIM);
    if thread_of_item() == 0 {
        // SAFETY: the places are this thread's until the first barrier, within the launch's shared memory.
        unsafe {
            shared::store_u32x4(shared::dynamic() + memory.item, [NOTHING_LEFT; 4]);
            shared::store_u32(shared::dynamic() + memory.claim, claim_next(params));
        }
    }
}

/// Claims the next item for this CTA, in its first thread. Best between loads and their first use: the memory takes as long
/// to answer.
///
/// # Safety
///
/// As the parameters say. Once before each [`share`].
#[inline(always)]
pub unsafe fn claim<const HEAD_DIM: u32>(params: &QuantizeParams) {
    if thread_of_item() == 0 {
        // SAFETY: the counter is the launch's own, the place this thread's, within the launch's shared memory.
        unsafe {
            let claim = claim_next(params);
            shared::store_u32(shared::dynamic() + QuantizeShared::new(HEAD_DIM).claim, claim);
        }
    }
}

/// Tells attention that the item before the one at hand is done, if it waits for that.
///
/// # Safety
///
/// As the parameters say. All threads of the CTA call it, once after each [`share`], with a barrier before the next one.
#[inline(always)]
pub unsafe fn tell_attention<const HEAD_DIM: u32>(params: &QuantizeParams) {
    if thread_of_item() == TELLING_THREAD {
        // SAFETY: the place was written before the barrier in `share`, before which all threads also wrote what the item was about.
        unsafe {
            let head = shared::load_u32(shared::dynamic() + QuantizeShared::new(HEAD_DIM).finished);
            if head != NOTHING_FINISHED {
                global::add_release_u32(params.quantized_items + 4 * head as u64, 1);
            }
        }
    }
}

/// # Safety
///
/// As the parameters say.
#[inline(always)]
unsafe fn claim_next(params: &QuantizeParams) -> u32 {
    // opaque, or its address is kept in registers from one item to the next
    let offset = math::opaque(4 * counter::QUANTIZE_CLAIMS as u32);
    // SAFETY: the counter is the launch's own.
    unsafe { global::fetch_add_u32(params.counters + offset as u64, 1) }
}

/// Tells all threads of the CTA what its first thread claimed: what to do, with which tile.
///
/// # Safety
///
/// As the parameters say. All threads of the CTA must call it, with a barrier between any two calls.
#[inline(always)]
pub unsafe fn share<S: Find, const HEAD_DIM: u32>(params: &QuantizeParams) -> (u32, Part<S>) {
    let place = shared::dynamic() + QuantizeShared::new(HEAD_DIM).item;
    if thread_of_item() == 0 {
        // SAFETY: this thread wrote its claim. The item's place is within the launch's shared memory, and was read before
        // the barrier that every item has.
        unsafe {
            let [work, head, ..] = shared::load_u32x4(place);
            let is_quantized = (Work::Query as u32..=Work::Value as u32).contains(&work);
            let finished = if is_quantized && params.quantized_items != 0 { head } else { NOTHING_FINISHED };
            shared::store_u32(shared::dynamic() + QuantizeShared::new(HEAD_DIM).finished, finished);
            let mut claim = shared::load_u32(shared::dynamic() + QuantizeShared::new(HEAD_DIM).claim);
            loop {
                let Some(item) = S::claimed(params, claim) else {
                    shared::store_u32x4(place, [NOTHING_LEFT, 0, 0, 0]);
                    break;
                };
                if let Some((sequence, tile)) = S::find(params, item) {
                    shared::store_u32x4(place, [item.work as u32, item.head, tile, sequence.index()]);
                    break;
                }
                claim = claim_next(params);
            }
        }
    }
    thread::sync_threads();
    // SAFETY: the item was written before the barrier.
    unsafe {
        let [work, head, tile, index] = shared::load_u32x4(place);
        (work, Part { head, tile, sequence: S::of_index(&params.sequences, index) })
    }
}

/// Whether this CTA is the last of `count` to come here. It then sees what all of them wrote before they came.
///
/// # Safety
///
/// All threads of `count` CTAs must call it once, on a counter at `address` that was 0 and is nobody else's.
#[inline(always)]
pub unsafe fn is_last<const HEAD_DIM: u32>(address: u64, count: u32) -> bool {
    let place = shared::dynamic() + QuantizeShared::new(HEAD_DIM).is_last;
    thread::sync_threads();
    if thread_of_item() == 0 {
        // SAFETY: forwarded contract; the place is within the launch's shared memory, and was read before the barrier.
        unsafe {
            let before = global::fetch_add_acq_rel_u32(address, 1);
            shared::store_u32(place, (before + 1 == count) as u32);
        }
    }
    thread::sync_threads();
    // SAFETY: it was written before the barrier.
    unsafe { shared::load_u32(place) != 0 }
}

/// Segments that a head's counters are for: in a ragged batch, each sequence counts its finished ones.
#[inline(always)]
fn segments_of_head<S: Sequences>(params: &QuantizeParams) -> u32 {
    params.segments + if S::RAGGED { params.sequences.count - 1 } else { 0 }
}

/// Where the counter of a head's finished segments is.
#[inline(always)]
pub fn segments_counter<S: Sequences>(params: &QuantizeParams, tensor: Tensor, head: u32, sequence: S) -> u64 {
    let first = counter::segments_of(tensor, head, segments_of_head::<S>(params));
    params.counters + 4 * (first + sequence.index() as u64)
}

/// Where the counter of a segment's finished tiles is.
#[inline(always)]
pub fn tiles_counter<S: Sequences>(
    params: &QuantizeParams,
    tensor: Tensor,
    head: u32,
    sequence: S,
    segment: u32,
) -> u64 {
    let segment = match S::RAGGED {
        true => sequence.first_segment(0, 0) as u32 + segment + params.sequences.count - 1,
        false => segment,
    };
    params.counters + 4 * counter::tiles_of(tensor, head, segments_of_head::<S>(params), segment)
}

/// Publishes that a head's statistics are finished: what the CTA wrote before is seen by who waits for them.
///
/// # Safety
///
/// As the parameters say. All threads of the CTA that finished the head's last segment must call it.
#[inline(always)]
pub unsafe fn publish_statistics<S: Sequences>(params: &QuantizeParams, tensor: Tensor, head: u32, sequence: S) {
    thread::sync_threads();
    if thread_of_item() == 0 {
        // SAFETY: the counter is the head's.
        unsafe { global::fetch_add_acq_rel_u32(segments_counter(params, tensor, head, sequence), 1) };
    }
}

/// Waits until a head's statistics are finished.
///
/// # Safety
///
/// As the parameters say. All threads of the CTA must call it, in an item that comes after the head's statistics.
#[inline(always)]
pub unsafe fn wait_for_statistics<S: Sequences>(params: &QuantizeParams, tensor: Tensor, head: u32, sequence: S) {
    if thread_of_item() == WAITING_THREAD {
        // SAFETY: the counter is the head's. Every claimed item runs to its end, and the head's were claimed before.
        unsafe {
            let finished = sequence.segments(params.segments) + 1;
            global::wait_until_u32(segments_counter(params, tensor, head, sequence), finished);
        }
    }
    thread::sync_threads();
}
