use core::arch::asm;

#[inline(always)]
pub unsafe fn bulk_to_shared(destination: u32, source: u64, bytes: u32, barrier: u32) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{}], [{}], {}, [{}];",
            in(reg32) destination, in(reg64) source, in(reg32) bytes, in(reg32) barrier, options(nostack)
        )
    }
}
