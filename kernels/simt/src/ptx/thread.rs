use core::arch::asm;

unsafe extern "C" {
    #[link_name = "llvm.nvvm.read.ptx.sreg.tid.x"]
    safe fn tid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.x"]
    safe fn ctaid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.smid"]
    safe fn smid() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.y"]
    safe fn ctaid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.z"]
    safe fn ctaid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.nctaid.x"]
    safe fn nctaid_x() -> u32;
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.all"]
    safe fn barrier_cta_sync(id: u32);
}

#[inline(always)]
pub fn thread_idx_x() -> u32 {
    tid_x()
}

#[inline(always)]
pub fn block_idx_x() -> u32 {
    ctaid_x()
}

#[inline(always)]
pub fn multiprocessor() -> u32 {
    smid()
}

#[inline(always)]
pub fn block_idx_y() -> u32 {
    ctaid_y()
}

#[inline(always)]
pub fn block_idx_z() -> u32 {
    ctaid_z()
}

#[inline(always)]
pub fn grid_dim_x() -> u32 {
    nctaid_x()
}

#[inline(always)]
pub fn sync_threads() {
    barrier_cta_sync(0)
}

#[inline(always)]
pub unsafe fn decrease_registers<const REGISTERS: u32>() {
    // SAFETY: the caller's contract is the instruction's.
    unsafe { asm!("setmaxnreg.dec.sync.aligned.u32 {};", const REGISTERS, options(nomem, nostack)) }
}

#[inline(always)]
pub unsafe fn increase_registers<const REGISTERS: u32>() {
    // SAFETY: the caller's contract is the instruction's.
    unsafe { asm!("setmaxnreg.inc.sync.aligned.u32 {};", const REGISTERS, options(nomem, nostack)) }
}
