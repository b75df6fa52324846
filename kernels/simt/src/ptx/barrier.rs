use core::arch::asm;

unsafe extern "C" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.count"]
    safe fn barrier_cta_sync(id: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.arrive.aligned.count"]
    safe fn barrier_cta_arrive(id: u32, threads: u32);
}

#[inline(always)]
pub fn sync(id: u32, threads: u32) {
    barrier_cta_sync(id, threads)
}

#[inline(always)]
pub fn arrive(id: u32, threads: u32) {
    barrier_cta_arrive(id, threads)
}

#[inline(always)]
pub fn fence_proxy_async() {
    // SAFETY: a fence touches nothing.
    unsafe { asm!("fence.proxy.async.shared::cta;", options(nostack)) }
}

#[inline(always)]
pub fn fence_proxy_async_global() {
    // SAFETY: a fence touches nothing.
    unsafe { asm!("fence.proxy.async.global;", options(nostack)) }
}
