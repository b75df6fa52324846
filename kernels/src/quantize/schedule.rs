//! How CTAs come to their items, and wait for each other's.

use sage_layout::kernel::QuantizeShared;
use sage_layout::params::QuantizeParams;
use sage_layout::schedule::counter::{self, Tensor};
use sage_layout::tile::segments;
use simt::{global, shared, thread};

/// What [`share`] returns for work when there is none.
pub const NOTHING_LEFT: u32 = u32::MAX;

/// Claims the next item for this CTA, in its first thread.
///
/// # Safety
///
/// As the parameters say.
#[inline(always)]
pub unsafe fn claim(params: &QuantizeParams) -> u32 {
    match thread::thread_idx_x() {
        // SAFETY: the counter is the launch's own.
        0 => unsafe { global::fetch_add_u32(params.counters + 4 * counter::QUANTIZE_CLAIMS, 1) },
        _ => 0,
    }
}

/// Tells all threads of the CTA what its first thread claimed: work, head and tile.
///
/// # Safety
///
/// As the parameters say. All threads of the CTA must call it, with a barrier between any two calls.
#[inline(always)]
pub unsafe fn share<const HEAD_DIM: u32>(params: &QuantizeParams, claim: u32) -> (u32, u32, u32) {
    let place = shared::dynamic() + QuantizeShared::new(HEAD_DIM).item;
    if thread::thread_idx_x() == 0 {
        let item = match params.order.nth(claim) {
            Some(item) => [item.work as u32, item.head, item.tile, 0],
            None => [NOTHING_LEFT, 0, 0, 0],
        };
        // SAFETY: the place is within the launch's shared memory, and was read before the barrier that every item has.
        unsafe { shared::store_u32x4(place, item) };
    }
    thread::sync_threads();
    // SAFETY: the item was written before the barrier.
    let [work, head, tile, _] = unsafe { shared::load_u32x4(place) };
    (work, head, tile)
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
    if thread::thread_idx_x() == 0 {
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

/// Where the counter of a head's finished segments is.
#[inline(always)]
pub fn segments_counter(params: &QuantizeParams, tensor: Tensor, head: u32) -> u64 {
    params.counters + 4 * counter::segments_of(tensor, head as u64, params.key.tokens)
}

/// Where the counter of a segment's finished tiles is.
#[inline(always)]
pub fn tiles_counter(params: &QuantizeParams, tensor: Tensor, head: u32, segment: u32) -> u64 {
    params.counters + 4 * counter::tiles_of(tensor, head as u64, segment, params.key.tokens)
}

/// Publishes that a head's statistics are finished: what the CTA wrote before is seen by who waits for them.
///
/// # Safety
///
/// As the parameters say. All threads of the CTA that finished the head's last segment must call it.
#[inline(always)]
pub unsafe fn publish_statistics(params: &QuantizeParams, tensor: Tensor, head: u32) {
    thread::sync_threads();
    if thread::thread_idx_x() == 0 {
        // SAFETY: the counter is the head's.
        unsafe { global::fetch_add_acq_rel_u32(segments_counter(params, tensor, head), 1) };
    }
}

/// Waits until a head's statistics are finished.
///
/// # Safety
///
/// As the parameters say. All threads of the CTA must call it, in an item that comes after the head's statistics.
#[inline(always)]
pub unsafe fn wait_for_statistics(params: &QuantizeParams, tensor: Tensor, head: u32) {
    if thread::thread_idx_x() == 0 {
        let finished = segments(params.key.tokens) + 1;
        // SAFETY: the counter is the head's. Every claimed item runs to its end, and the head's were claimed before.
        unsafe { global::wait_until_u32(segments_counter(params, tensor, head), finished) };
    }
    thread::sync_threads();
}
