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

/// How a tile lies in shared memory: rows of 64 or 128 bytes in groups of eight, chunks swizzled
/// (`sage_layout::swizzle`), groups one after the other or further apart.
#[derive(Clone, Copy)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Describes a tile with rows of 64 or 128 bytes at `address`, which must be a multiple of 1024.
    #[inline(always)]
    pub const fn new(address: u32, row_bytes: u32) -> Self {
        Self::with_stride(address, row_bytes, 8 * row_bytes)
    }

    /// The same, with groups of rows `group_stride` bytes apart, a multiple of 1024.
    #[inline(always)]
    pub const fn with_stride(address: u32, row_bytes: u32, group_stride: u32) -> Self {
        let swizzle: u64 = if row_bytes == 128 { 1 } else { 2 };
        let group_stride = (group_stride / 16) as u64;
        Self(((address & 0x3_ffff) >> 4) as u64 | 1 << 16 | group_stride << 32 | swizzle << 62)
    }

    /// The tile `bytes` further on, a multiple of 16.
    #[inline(always)]
    pub const fn advance(self, bytes: u32) -> Self {
        self.nth(1, bytes)
    }

    /// The `index`-th tile of those that are `bytes` apart, a multiple of 16, beginning with this one. Only the low word is computed, so that
    /// the high one stays a constant.
    #[inline(always)]
    pub const fn nth(self, index: u32, bytes: u32) -> Self {
        Self((self.0 >> 32) << 32 | (self.0 as u32 + index * (bytes / 16)) as u64)
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

/// What the operands of a product of probabilities and values are.
pub trait Operands {}

/// e4m3: a register holds four, an instruction takes 32 keys.
pub struct E4m3;
/// IEEE binary16: a register holds two, an instruction takes 16 keys.
pub struct F16;
/// bfloat16: a register holds two, an instruction takes 16 keys.
pub struct Bf16;

impl Operands for E4m3 {}
impl Operands for F16 {}
impl Operands for Bf16 {}

/// An accumulator of probabilities times values.
pub trait ValueAccumulator<O: Operands>: Accumulator {
    /// 64×N products: `self` += probabilities · value over 32 bytes of keys; probabilities in registers, value in shared
    /// memory, channels as rows (`m64nNk32.f32.e4m3.e4m3`, `m64nNk16.f32.f16.f16`, `m64nNk16.f32.bf16.bf16`).
    ///
    /// # Safety
    ///
    /// As for [`m64n64k32_s32_s8`]; the probabilities too must be left alone.
    unsafe fn multiply_accumulate(&mut self, probabilities: &[u32; 4], value: Descriptor);
}

macro_rules! accumulators {
    ($($(#[$doc:meta])* [$element:ty; $registers:literal], $settle:ident $(, $operands:ident $multiply:ident)*;)*) => { $(
        $(#[$doc])*
        impl Accumulator for [$element; $registers] {
            #[inline(always)]
            #[track_caller]
            fn settle(&mut self) {
                arch::wgmma::$settle(self)
            }
        }

        $(impl ValueAccumulator<$operands> for [$element; $registers] {
            #[inline(always)]
            #[track_caller]
            unsafe fn multiply_accumulate(&mut self, probabilities: &[u32; 4], value: Descriptor) {
                // SAFETY: forwarded contract.
                unsafe { arch::wgmma::$multiply(self, probabilities, value.0) }
            }
        })*
    )* };
}

accumulators! {
    /// Scores of 64 keys.
    [i32; 32], settle_scores;
    /// 64 channels.
    [f32; 32], settle_n64, F16 m64n64k16_f32_f16, Bf16 m64n64k16_f32_bf16;
    /// 96 channels.
    [f32; 48], settle_n96, F16 m64n96k16_f32_f16, Bf16 m64n96k16_f32_bf16;
    /// 128 channels.
    [f32; 64], settle_n128, F16 m64n128k16_f32_f16, Bf16 m64n128k16_f32_bf16;
    /// 192 channels.
    [f32; 96], settle_n192, E4m3 m64n192k32_f32_e4m3, F16 m64n192k16_f32_f16, Bf16 m64n192k16_f32_bf16;
    /// 256 channels.
    [f32; 128], settle_n256, E4m3 m64n256k32_f32_e4m3, F16 m64n256k16_f32_f16, Bf16 m64n256k16_f32_bf16;
    /// 64 channels and 8 columns of ones.
    [f32; 36], settle_n72, E4m3 m64n72k32_f32_e4m3;
    /// 96 channels and 8 columns of ones.
    [f32; 52], settle_n104, E4m3 m64n104k32_f32_e4m3;
    /// 128 channels and 8 columns of ones.
    [f32; 68], settle_n136, E4m3 m64n136k32_f32_e4m3;
}
