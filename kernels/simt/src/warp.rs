//! Operations of the 32 lanes of a warp. All lanes must call them together.

use crate::arch;

/// Lanes of a warp.
pub const LANES: u32 = 32;

/// Waits for all lanes, and orders their memory accesses (`bar.warp.sync`).
#[inline(always)]
#[track_caller]
pub fn sync_warp() {
    arch::warp::sync_warp()
}

/// Whether `predicate` holds in any lane (`vote.sync.any`).
#[inline(always)]
#[track_caller]
pub fn any(predicate: bool) -> bool {
    arch::warp::any(predicate)
}

/// The `value` of the lane whose index differs in the bits of `mask` (`shfl.sync.bfly`).
#[inline(always)]
#[track_caller]
pub fn shuffle_xor(value: f32, mask: u32) -> f32 {
    arch::warp::shuffle_xor(value, mask)
}

/// The `value` of a lane, modulo 32 (`shfl.sync.idx`).
#[inline(always)]
#[track_caller]
pub fn shuffle(value: u32, lane: u32) -> u32 {
    arch::warp::shuffle(value, lane)
}

/// The first lane's `value` (`shfl.sync.idx`). Tells the compiler that a value is the same in all lanes, so that it and
/// what follows from it can live in uniform registers.
#[inline(always)]
#[track_caller]
pub fn broadcast(value: u32) -> u32 {
    arch::warp::broadcast(value)
}
