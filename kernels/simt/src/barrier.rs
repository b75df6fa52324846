//! The block's sixteen barriers (`bar`), and fences between the ordinary accesses of threads and the asynchronous ones of
//! copies and tensor cores.
//!
//! A barrier is in a *phase*, which completes when as many threads came as those who come say; then the next begins. Warps
//! come as a whole, each at most once in a phase. Barrier 0 is [`sync_threads`](crate::thread::sync_threads)'s.

use crate::arch;

/// Waits until `threads` threads came to barrier `id`, this one's warp included (`bar.sync`), and orders the shared and
/// global memory accesses of all who came before those of all who waited.
///
/// All lanes of a warp must call it together. `id` is below 16, `threads` a multiple of 32 and the same for all who come.
#[inline(always)]
#[track_caller]
pub fn sync(id: u32, threads: u32) {
    arch::barrier::sync(id, threads)
}

/// Comes to barrier `id` without waiting (`bar.arrive`): what this thread accessed before is ordered before what those do
/// who wait there.
///
/// As for [`sync`]. `threads` counts all who come, waiting or not.
#[inline(always)]
#[track_caller]
pub fn arrive(id: u32, threads: u32) {
    arch::barrier::arrive(id, threads)
}

/// Makes writes to global memory that are ordered before this, whoever made them, visible to bulk copies that this thread issues after it
/// (`fence.proxy.async.global`).
#[inline(always)]
#[track_caller]
pub fn fence_proxy_async_global() {
    arch::barrier::fence_proxy_async_global()
}

/// Makes this thread's ordinary writes to shared memory visible to bulk copies and `wgmma` that are issued after a
/// following barrier (`fence.proxy.async`).
#[inline(always)]
#[track_caller]
pub fn fence_proxy_async() {
    arch::barrier::fence_proxy_async()
}
