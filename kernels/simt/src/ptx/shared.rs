use core::arch::{asm, global_asm};

global_asm!(".extern .shared .align 1024 .b8 dynamic_shared[];");

#[inline(always)]
pub fn dynamic() -> u32 {
    let address: u32;
    // SAFETY: reads the address of the block's shared memory.
    unsafe { asm!("mov.u32 {}, dynamic_shared;", out(reg32) address, options(pure, nomem, nostack)) }
    address
}

macro_rules! accessors {
    ($($load:ident $store:ident $type:ty, $suffix:literal, $class:ident;)*) => { $(
        #[inline(always)]
        pub unsafe fn $load(address: u32) -> $type {
            let value;
            // SAFETY: the caller's contract is the instruction's.
            unsafe {
                asm!(concat!("ld.shared.", $suffix, " {}, [{}];"), out($class) value, in(reg32) address,
                    options(nostack))
            }
            value
        }

        #[inline(always)]
        pub unsafe fn $store(address: u32, value: $type) {
            // SAFETY: the caller's contract is the instruction's.
            unsafe {
                asm!(concat!("st.shared.", $suffix, " [{}], {};"), in(reg32) address, in($class) value,
                    options(nostack))
            }
        }
    )* };
}

accessors! {
    load_f32 store_f32 f32, "b32", reg32;
    load_u32 store_u32 u32, "b32", reg32;
    load_u16 store_u16 u16, "b16", reg16;
}

#[inline(always)]
pub unsafe fn load_u32x2(address: u32) -> [u32; 2] {
    let (a, b);
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("ld.shared.v2.b32 {{{}, {}}}, [{}];", out(reg32) a, out(reg32) b, in(reg32) address, options(nostack))
    }
    [a, b]
}

#[inline(always)]
pub unsafe fn store_u32x2(address: u32, value: [u32; 2]) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("st.shared.v2.b32 [{}], {{{}, {}}};", in(reg32) address, in(reg32) value[0], in(reg32) value[1],
            options(nostack))
    }
}

#[inline(always)]
pub unsafe fn load_u32x4(address: u32) -> [u32; 4] {
    let (a, b, c, d);
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("ld.shared.v4.b32 {{{}, {}, {}, {}}}, [{}];", out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d,
            in(reg32) address, options(nostack))
    }
    [a, b, c, d]
}

#[inline(always)]
pub unsafe fn store_u32x4(address: u32, value: [u32; 4]) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("st.shared.v4.b32 [{}], {{{}, {}, {}, {}}};", in(reg32) address, in(reg32) value[0], in(reg32) value[1],
            in(reg32) value[2], in(reg32) value[3], options(nostack))
    }
}
