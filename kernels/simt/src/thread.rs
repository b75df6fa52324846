//! Where a thread is, and how many registers it may use.

use crate::arch;

/// Index of the thread in its block.
#[inline(always)]
#[track_caller]
pub fn thread_idx_x() -> u32 {
    arch::thread::thread_idx_x()
}

/// Index of the block in the grid's first dimension.
#[inline(always)]
#[track_caller]
pub fn block_idx_x() -> u32 {
    arch::thread::block_idx_x()
}

/// The multiprocessor that runs the thread (`%smid`), of which others may have any numbers: only good for guesses about speed.
#[inline(always)]
pub fn multiprocessor() -> u32 {
    arch::thread::multiprocessor()
}

/// Index of the block in the grid's second dimension.
#[inline(always)]
#[track_caller]
pub fn block_idx_y() -> u32 {
    arch::thread::block_idx_y()
}

/// Index of the block in the grid's third dimension.
#[inline(always)]
#[track_caller]
pub fn block_idx_z() -> u32 {
    arch::thread::block_idx_z()
}

/// Blocks in the grid's first dimension.
#[inline(always)]
#[track_caller]
pub fn grid_dim_x() -> u32 {
    arch::thread::grid_dim_x()
}

/// Waits until every thread of the block is here (`bar.sync 0`), and orders their shared and global memory accesses.
///
/// Every thread of the block must call it.
#[inline(always)]
#[track_caller]
pub fn sync_threads() {
    arch::thread::sync_threads()
}

/// Gives back registers beyond `REGISTERS` a thread (`setmaxnreg.dec`).
///
/// # Safety
///
/// All warps of the warpgroup must call it, and the kernel must have launch bounds.
#[inline(always)]
#[track_caller]
pub unsafe fn decrease_registers<const REGISTERS: u32>() {
    // SAFETY: forwarded contract.
    unsafe { arch::thread::decrease_registers::<REGISTERS>() }
}

/// Waits until the block has registers to spare, then takes `REGISTERS` a thread (`setmaxnreg.inc`).
///
/// # Safety
///
/// All warps of the warpgroup must call it, and the kernel must have launch bounds.
#[inline(always)]
#[track_caller]
pub unsafe fn increase_registers<const REGISTERS: u32>() {
    // SAFETY: forwarded contract.
    unsafe { arch::thread::increase_registers::<REGISTERS>() }
}
