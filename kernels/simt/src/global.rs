//! Global memory, by 64-bit address.

use crate::arch;

macro_rules! loads {
    ($($load:ident $type:ty, $bytes:literal;)*) => { $(
        #[doc = concat!("Loads ", $bytes, " bytes that no kernel in flight writes (`ld.global.nc`).")]
        ///
        /// # Safety
        ///
        #[doc = concat!("The address must be readable global memory, a multiple of ", $bytes, ".")]
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $load(address: u64) -> $type {
            // SAFETY: forwarded contract.
            unsafe { arch::global::$load(address) }
        }
    )* };
}

macro_rules! conditional_loads {
    ($($load:ident $type:ty, $bytes:literal;)*) => { $(
        #[doc = concat!("Loads ", $bytes, " bytes that no kernel in flight writes, without a branch, or gives 0 (`@p ld.global.nc`).")]
        ///
        /// # Safety
        ///
        #[doc = concat!("On the condition, the address must be readable global memory, a multiple of ", $bytes, ".")]
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $load(condition: bool, address: u64) -> $type {
            // SAFETY: forwarded contract.
            unsafe { arch::global::$load(condition, address) }
        }
    )* };
}

macro_rules! written_loads {
    ($($load:ident $type:ty, $bytes:literal;)*) => { $(
        #[doc = concat!("Loads ", $bytes, " bytes that this launch, or one that overlaps it, may have written (`ld.global`).")]
        ///
        /// # Safety
        ///
        #[doc = concat!("The address must be readable global memory, a multiple of ", $bytes, ". What others write there")]
        /// must be ordered before or after: by a barrier within a block, by release and acquire between blocks.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $load(address: u64) -> $type {
            // SAFETY: forwarded contract.
            unsafe { arch::global::$load(address) }
        }
    )* };
}

macro_rules! stores {
    ($($store:ident $type:ty, $bytes:literal;)*) => { $(
        #[doc = concat!("Stores ", $bytes, " bytes.")]
        ///
        /// # Safety
        ///
        #[doc = concat!("The address must be writable global memory, a multiple of ", $bytes, ", written by this")]
        /// thread alone.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $store(address: u64, value: $type) {
            // SAFETY: forwarded contract.
            unsafe { arch::global::$store(address, value) }
        }
    )* };
}

/// Adds `value` to a u32 and returns what was there before (`atom.add`, relaxed).
///
/// # Safety
///
/// The address must be writable global memory, a multiple of 4; others may access it at the same time, atomically.
#[inline(always)]
#[track_caller]
pub unsafe fn fetch_add_u32(address: u64, value: u32) -> u32 {
    // SAFETY: forwarded contract.
    unsafe { arch::global::fetch_add_u32(address, value) }
}

/// [`fetch_add_u32`] that releases and acquires, at the scope of the GPU (`atom.add.acq_rel.gpu`).
///
/// Whoever reads the sum by acquiring sees what this thread wrote, and what was ordered before; and this thread what was
/// released by those who added before it. A barrier hands both on between the threads of a block.
///
/// # Safety
///
/// As [`fetch_add_u32`].
#[inline(always)]
#[track_caller]
pub unsafe fn fetch_add_acq_rel_u32(address: u64, value: u32) -> u32 {
    // SAFETY: forwarded contract.
    unsafe { arch::global::fetch_add_acq_rel_u32(address, value) }
}

/// Adds `value` to a u32, and releases, at the scope of the GPU (`red.release.gpu.add`), as [`fetch_add_acq_rel_u32`] does.
///
/// # Safety
///
/// As [`fetch_add_u32`].
#[inline(always)]
#[track_caller]
pub unsafe fn add_release_u32(address: u64, value: u32) {
    // SAFETY: forwarded contract.
    unsafe { arch::global::add_release_u32(address, value) }
}

/// Waits until a u32 has a value, and acquires what was released with it (`ld.acquire.gpu`, again and again).
///
/// # Safety
///
/// The address must be readable global memory, a multiple of 4, and others write it only atomically. Who writes the value
/// must not depend on this thread.
#[inline(always)]
#[track_caller]
pub unsafe fn wait_until_u32(address: u64, value: u32) {
    // SAFETY: forwarded contract.
    unsafe { arch::global::wait_until_u32(address, value) }
}

/// How long the L2 cache should keep a line.
#[derive(Clone, Copy, Debug)]
pub struct CachePolicy(u64);

impl CachePolicy {
    /// Such lines leave first (`createpolicy.fractional.L2::evict_first`).
    #[inline(always)]
    pub fn evict_first() -> Self {
        Self(arch::global::evict_first())
    }
}

/// [`load_u32x4`] with a policy, past the L1 cache (`L1::no_allocate`, `L2::cache_hint`).
///
/// # Safety
///
/// As [`load_u32x4`].
#[inline(always)]
#[track_caller]
pub unsafe fn load_u32x4_hint(address: u64, policy: CachePolicy) -> [u32; 4] {
    // SAFETY: forwarded contract.
    unsafe { arch::global::load_u32x4_hint(address, policy.0) }
}

/// [`store_u32x2`] with a policy (`L2::cache_hint`).
///
/// # Safety
///
/// As [`store_u32x2`].
#[inline(always)]
#[track_caller]
pub unsafe fn store_u32x2_hint(address: u64, value: [u32; 2], policy: CachePolicy) {
    // SAFETY: forwarded contract.
    unsafe { arch::global::store_u32x2_hint(address, value, policy.0) }
}

/// [`store_u32x4`] with a policy (`L2::cache_hint`).
///
/// # Safety
///
/// As [`store_u32x4`].
#[inline(always)]
#[track_caller]
pub unsafe fn store_u32x4_hint(address: u64, value: [u32; 4], policy: CachePolicy) {
    // SAFETY: forwarded contract.
    unsafe { arch::global::store_u32x4_hint(address, value, policy.0) }
}

loads! {
    load_u16 u16, "2";
    load_u32 u32, "4";
    load_f32 f32, "4";
    load_f32x2 [f32; 2], "8";
    load_u32x4 [u32; 4], "16";
}

conditional_loads! {
    load_u8_if u8, "1";
    load_u16_if u16, "2";
    load_f32_if f32, "4";
}

written_loads! {
    load_written_u32 u32, "4";
    load_written_f32 f32, "4";
    load_written_f32x2 [f32; 2], "8";
    load_written_u32x4 [u32; 4], "16";
}

stores! {
    store_u16 u16, "2";
    store_f32 f32, "4";
    store_u32 u32, "4";
    store_u32x2 [u32; 2], "8";
    store_u32x4 [u32; 4], "16";
}
