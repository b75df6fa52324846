use core::arch::asm;

#[inline(always)]
pub fn fence_proxy_async() {
    // SAFETY: a fence touches nothing.
    unsafe { asm!("fence.proxy.async.shared::cta;", options(nostack)) }
}
