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

#[inline(always)]
pub unsafe fn async16(destination: u32, source: u64, source_bytes: u32) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("cp.async.cg.shared.global [{}], [{}], 16, {};", in(reg32) destination, in(reg64) source,
            in(reg32) source_bytes, options(nostack))
    }
}

#[inline(always)]
pub fn commit_group() {
    // SAFETY: touches nothing.
    unsafe { asm!("cp.async.commit_group;", options(nostack)) }
}

#[inline(always)]
pub fn wait_group<const PENDING: u32>() {
    // SAFETY: touches nothing but what the copies' contract left to them.
    unsafe { asm!("cp.async.wait_group {};", const PENDING, options(nostack)) }
}
