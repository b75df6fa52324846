use super::thread::needs_executor;

pub fn dynamic() -> u32 {
    needs_executor!("dynamic shared memory")
}

macro_rules! accessors {
    ($($load:ident $store:ident $type:ty;)*) => { $(
        pub unsafe fn $load(_address: u32) -> $type {
            needs_executor!("ld.shared")
        }

        pub unsafe fn $store(_address: u32, _value: $type) {
            needs_executor!("st.shared")
        }
    )* };
}

accessors! {
    load_f32 store_f32 f32;
    load_u32 store_u32 u32;
    load_u16 store_u16 u16;
    load_u32x4 store_u32x4 [u32; 4];
}
