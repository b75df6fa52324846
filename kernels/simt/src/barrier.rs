//! Memory fences between the ordinary accesses of threads and the asynchronous ones of copies and tensor cores.

use crate::arch;

/// Makes this thread's ordinary writes to shared memory visible to bulk copies and `wgmma` that are issued after a
/// following barrier (`fence.proxy.async`).
#[inline(always)]
#[track_caller]
pub fn fence_proxy_async() {
    arch::barrier::fence_proxy_async()
}
