//! Shared memory, by 32-bit address.
//!
//! Rust references to shared memory would promise more than threads keep, so there are none.

use crate::arch;

/// Address of the block's dynamic shared memory, a multiple of 1024.
#[inline(always)]
#[track_caller]
pub fn dynamic() -> u32 {
    arch::shared::dynamic()
}

macro_rules! accessors {
    ($($load:ident $store:ident $type:ty, $bytes:literal;)*) => { $(
        #[doc = concat!("Loads ", $bytes, " bytes.")]
        ///
        /// # Safety
        ///
        #[doc = concat!("The address must be in the block's shared memory, a multiple of ", $bytes, ",")]
        /// initialised, and not written at the same time.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $load(address: u32) -> $type {
            // SAFETY: forwarded contract.
            unsafe { arch::shared::$load(address) }
        }

        #[doc = concat!("Stores ", $bytes, " bytes.")]
        ///
        /// # Safety
        ///
        #[doc = concat!("The address must be in the block's shared memory, a multiple of ", $bytes, ",")]
        /// and not accessed by others at the same time.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $store(address: u32, value: $type) {
            // SAFETY: forwarded contract.
            unsafe { arch::shared::$store(address, value) }
        }
    )* };
}

accessors! {
    load_f32 store_f32 f32, "4";
    load_u32 store_u32 u32, "4";
    load_u16 store_u16 u16, "2";
    load_u32x2 store_u32x2 [u32; 2], "8";
    load_u32x4 store_u32x4 [u32; 4], "16";
}
