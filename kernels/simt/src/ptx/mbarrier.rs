//! These are operations of one thread, not of a warp: that `asm!` is not convergent does no harm.

use core::arch::asm;

#[inline(always)]
pub unsafe fn init(barrier: u32, arrivals: u32) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe { asm!("mbarrier.init.shared::cta.b64 [{}], {};", in(reg32) barrier, in(reg32) arrivals, options(nostack)) }
}

#[inline(always)]
pub unsafe fn arrive_expect_bytes(barrier: u32, bytes: u32) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{}], {};", in(reg32) barrier, in(reg32) bytes,
            options(nostack))
    }
}

#[inline(always)]
pub unsafe fn arrive_if(barrier: u32, predicate: bool) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {1}, 0; @p mbarrier.arrive.shared::cta.b64 _, [{0}]; }}",
            in(reg32) barrier, in(reg32) predicate as u32, options(nostack)
        )
    }
}

// PTX has no numbered local labels; the braces make this one local.
#[allow(named_asm_labels)]
#[inline(always)]
pub unsafe fn wait(barrier: u32, parity: u32) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!(
            "{{ .reg .pred complete;",
            "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 complete, [{}], {};",
            "@!complete bra AGAIN; }}",
            in(reg32) barrier, in(reg32) parity, options(nostack)
        )
    }
}

#[inline(always)]
pub fn fence_init() {
    // SAFETY: a fence touches nothing.
    unsafe { asm!("fence.mbarrier_init.release.cluster;", options(nostack)) }
}
