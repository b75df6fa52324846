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

loads! {
    load_u16 u16, "2";
    load_f32 f32, "4";
    load_f32x2 [f32; 2], "8";
    load_u32x4 [u32; 4], "16";
}

stores! {
    store_u16 u16, "2";
    store_f32 f32, "4";
    store_u32 u32, "4";
    store_u32x2 [u32; 2], "8";
    store_u32x4 [u32; 4], "16";
}
