//! Asynchronous copies.

use crate::{arch, mbarrier::Barrier};

/// Starts copying `bytes` contiguous bytes from global to shared memory; they count towards `barrier`'s current phase
/// (`cp.async.bulk`).
///
/// # Safety
///
/// Both places must be valid for `bytes`, a multiple of 16, and aligned to 16. Nobody may touch the destination until
/// the barrier's phase completes, and the barrier must expect the bytes.
#[inline(always)]
#[track_caller]
pub unsafe fn bulk_to_shared(destination: u32, source: u64, bytes: u32, barrier: Barrier) {
    // SAFETY: forwarded contract.
    unsafe { arch::copy::bulk_to_shared(destination, source, bytes, barrier.0) }
}
