use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU32, Ordering};

macro_rules! loads {
    ($($load:ident $type:ty;)*) => { $(
        pub unsafe fn $load(address: u64) -> $type {
            // SAFETY: the caller says that the address is readable.
            unsafe { with_exposed_provenance::<$type>(address as usize).read() }
        }
    )* };
}

macro_rules! stores {
    ($($store:ident $type:ty;)*) => { $(
        pub unsafe fn $store(address: u64, value: $type) {
            // SAFETY: the caller says that the address is writable, by this thread alone.
            unsafe { with_exposed_provenance_mut::<$type>(address as usize).write(value) }
        }
    )* };
}

loads! {
    load_u16 u16;
    load_f32 f32;
    load_f32x2 [f32; 2];
    load_u32x4 [u32; 4];
}

stores! {
    store_u16 u16;
    store_f32 f32;
    store_u32 u32;
    store_u32x2 [u32; 2];
    store_u32x4 [u32; 4];
}

pub unsafe fn fetch_add_u32(address: u64, value: u32) -> u32 {
    let place = with_exposed_provenance_mut::<u32>(address as usize);
    // SAFETY: the caller says that the address is writable and accessed by atomics alone.
    unsafe { AtomicU32::from_ptr(place) }.fetch_add(value, Ordering::Relaxed)
}
