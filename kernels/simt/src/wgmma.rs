//! Matrix multiplication by a warpgroup (`wgmma`, Hopper).
//!
//! A multiplication is asynchronous: it is issued, committed to a group, and its accumulators and operands belong to the
//! tensor cores until [`wait`] says that the group is done. Around every group:
//!
//! ```text
//! fence();            the registers that were written before are ready
//! …multiplications…   in one basic block with the fence
//! commit();
//! wait::<0>();        then settle() every accumulator that is read
//! ```
//!
//! The 64 rows of a tile are dealt to the four warps, 16 each; `sage_layout::fragment` tells which lane holds what.

use crate::arch;

/// How a tile lies in shared memory: rows of `ROW_BYTES` in groups of eight, chunks swizzled
/// (`sage_layout::swizzle`), groups one after the other.
#[derive(Clone, Copy)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Describes a tile with rows of 64 or 128 bytes at `address`, which must be a multiple of 1024.
    #[inline(always)]
    pub const fn new(address: u32, row_bytes: u32) -> Self {
        let swizzle: u64 = if row_bytes == 128 { 1 } else { 2 };
        let group_stride = (8 * row_bytes / 16) as u64;
        Self(((address & 0x3_ffff) >> 4) as u64 | 1 << 16 | group_stride << 32 | swizzle << 62)
    }

    /// The tile `bytes` further on, a multiple of 16.
    #[inline(always)]
    pub const fn advance(self, bytes: u32) -> Self {
        Self(self.0 + (bytes / 16) as u64)
    }
}

/// Orders register writes before the multiplications that follow (`wgmma.fence`). All four warps must call it.
#[inline(always)]
#[track_caller]
pub fn fence() {
    arch::wgmma::fence()
}

/// Makes a group of the multiplications issued since the last (`wgmma.commit_group`). All four warps must call it.
#[inline(always)]
#[track_caller]
pub fn commit() {
    arch::wgmma::commit()
}

/// Waits until at most `PENDING` groups are in flight (`wgmma.wait_group`). All four warps must call it.
#[inline(always)]
#[track_caller]
pub fn wait<const PENDING: u64>() {
    arch::wgmma::wait::<PENDING>()
}

/// Keeps the compiler from moving uses of an accumulator over this point.
#[inline(always)]
#[track_caller]
pub fn settle<A: Accumulator>(accumulator: &mut A) {
    accumulator.settle()
}

/// The registers of an accumulator.
pub trait Accumulator {
    /// See [`settle`].
    fn settle(&mut self);
}

/// 64×64 products of signed bytes: `scores` = (or += if `ACCUMULATE`) query · keyᵀ over 32 channels, both in shared
/// memory (`m64n64k32.s32.s8.s8`).
///
/// # Safety
///
/// The descriptors must describe initialised tiles, visible to the tensor cores; all four warps must call it with the
/// same descriptors; `scores` and the tiles must be left alone until the group is waited for.
#[inline(always)]
#[track_caller]
pub unsafe fn m64n64k32_s32_s8<const ACCUMULATE: bool>(scores: &mut [i32; 32], query: Descriptor, key: Descriptor) {
    // SAFETY: forwarded contract.
    unsafe { arch::wgmma::m64n64k32_s32_s8::<ACCUMULATE>(scores, query.0, key.0) }
}

/// An accumulator of probabilities times values.
pub trait ValueAccumulator: Accumulator {
    /// 64×N products of e4m3: `self` += probabilities · value over 32 keys; probabilities in registers, value in
    /// shared memory (`m64nNk32.f32.e4m3.e4m3`).
    ///
    /// # Safety
    ///
    /// As for [`m64n64k32_s32_s8`]; the probabilities too must be left alone.
    unsafe fn multiply_accumulate(&mut self, probabilities: &[u32; 4], value: Descriptor);
}

impl Accumulator for [i32; 32] {
    #[inline(always)]
    #[track_caller]
    fn settle(&mut self) {
        arch::wgmma::settle_scores(self)
    }
}

/// 72 columns: 64 channels and 8 columns of ones.
impl Accumulator for [f32; 36] {
    #[inline(always)]
    #[track_caller]
    fn settle(&mut self) {
        arch::wgmma::settle_n72(self)
    }
}

impl ValueAccumulator for [f32; 36] {
    #[inline(always)]
    #[track_caller]
    unsafe fn multiply_accumulate(&mut self, probabilities: &[u32; 4], value: Descriptor) {
        // SAFETY: forwarded contract.
        unsafe { arch::wgmma::m64n72k32_f32_e4m3(self, probabilities, value.0) }
    }
}

/// 136 columns: 128 channels and 8 columns of ones.
impl Accumulator for [f32; 68] {
    #[inline(always)]
    #[track_caller]
    fn settle(&mut self) {
        arch::wgmma::settle_n136(self)
    }
}

impl ValueAccumulator for [f32; 68] {
    #[inline(always)]
    #[track_caller]
    unsafe fn multiply_accumulate(&mut self, probabilities: &[u32; 4], value: Descriptor) {
        // SAFETY: forwarded contract.
        unsafe { arch::wgmma::m64n136k32_f32_e4m3(self, probabilities, value.0) }
    }
}
