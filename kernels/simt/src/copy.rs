//! Asynchronous copies from global to shared memory.
//!
//! Bulk copies ([`bulk_to_shared`], Hopper) are counted by an mbarrier. Copies of sixteen bytes ([`async16`], Ampere) are
//! each thread's own: it commits those it issued to a group, and waits for groups in their order. The wait tells the
//! issuing thread alone that they are there; others need a barrier after it.

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

/// Starts copying `source_bytes` bytes, at most 16, from global to shared memory, and fills the rest of 16 with zeros
/// (`cp.async.cg`). With 0 bytes, nothing is read.
///
/// # Safety
///
/// Both addresses must be multiples of 16, and valid for 16 and for `source_bytes` bytes. Nobody may touch the destination
/// until this thread has waited for the copy's group.
#[inline(always)]
#[track_caller]
pub unsafe fn async16(destination: u32, source: u64, source_bytes: u32) {
    // SAFETY: forwarded contract.
    unsafe { arch::copy::async16(destination, source, source_bytes) }
}

/// Makes a group of the [`async16`] that this thread issued since the last, be there any or not (`cp.async.commit_group`).
#[inline(always)]
#[track_caller]
pub fn commit_group() {
    arch::copy::commit_group()
}

/// Waits until at most the last `PENDING` of this thread's groups are in flight (`cp.async.wait_group`). What was not
/// committed is not waited for.
#[inline(always)]
#[track_caller]
pub fn wait_group<const PENDING: u32>() {
    arch::copy::wait_group::<PENDING>()
}
