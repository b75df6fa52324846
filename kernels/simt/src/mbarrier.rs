//! Barriers in shared memory that count arrivals and bytes (`mbarrier`).
//!
//! A barrier is in a *phase*. The phase completes when as many arrivals came as the barrier was initialised with and
//! all expected bytes were copied; then the next begins. A waiter names the parity of the phase that it waits for: a
//! fresh barrier is in phase 0, and waiting for parity 1 on it returns at once.

use crate::arch;

/// A barrier's address in shared memory, a multiple of 8.
#[derive(Clone, Copy)]
pub struct Barrier(pub u32);

impl Barrier {
    /// Sets the number of arrivals that complete a phase.
    ///
    /// # Safety
    ///
    /// The address must be a barrier's, used by nobody yet; [`fence_init`] and a block barrier must follow.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn init(self, arrivals: u32) {
        // SAFETY: forwarded contract.
        unsafe { arch::mbarrier::init(self.0, arrivals) }
    }

    /// Arrives, and expects `bytes` more bytes to be copied in this phase.
    ///
    /// # Safety
    ///
    /// The barrier must be initialised.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn arrive_expect_bytes(self, bytes: u32) {
        // SAFETY: forwarded contract.
        unsafe { arch::mbarrier::arrive_expect_bytes(self.0, bytes) }
    }

    /// Arrives if `predicate` holds; everything that this thread did before is then done for whoever waits.
    ///
    /// # Safety
    ///
    /// The barrier must be initialised.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn arrive_if(self, predicate: bool) {
        // SAFETY: forwarded contract.
        unsafe { arch::mbarrier::arrive_if(self.0, predicate) }
    }

    /// Waits until the phase of `parity` is complete.
    ///
    /// # Safety
    ///
    /// The barrier must be initialised.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn wait(self, parity: u32) {
        // SAFETY: forwarded contract.
        unsafe { arch::mbarrier::wait(self.0, parity) }
    }
}

/// Makes initialised barriers visible to asynchronous copies (`fence.mbarrier_init`).
#[inline(always)]
#[track_caller]
pub fn fence_init() {
    arch::mbarrier::fence_init()
}
