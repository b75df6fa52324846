//! Barriers between branches on the same condition: each must be there once in the PTX.
#![no_std]
#![feature(abi_ptx, core_intrinsics, link_llvm_intrinsics, stdarch_nvptx)]
#![allow(internal_features)]

use core::arch::nvptx::_thread_idx_x;

unsafe extern "C" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.all"]
    fn barrier(id: u32);
}

#[inline(always)]
unsafe fn sync_threads() {
    unsafe { barrier(0) }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    core::intrinsics::abort()
}

/// Thread 0 writes, all wait, thread 0 goes on with what it knew before the barrier.
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn convergence(values: *mut u32) {
    unsafe {
        let first = _thread_idx_x() == 0;
        let mut leader = 0;
        if first {
            values.write_volatile(1);
            leader = 1;
        }
        sync_threads();
        if leader == 1 {
            values.add(1).write_volatile(2);
        }
        sync_threads();
        if first {
            values.add(2).write_volatile(3);
        }
    }
}
