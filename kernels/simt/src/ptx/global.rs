//! Loads through `ld.global.nc` are `pure`: what they read does not change while a kernel runs, so the compiler may move or
//! merge them. So are some of what was written before, which may move only as far as the next instruction that might write. Others stay where
//! they are.

use core::arch::asm;

/// A load under a predicate, so that there is no branch around it.
macro_rules! load_if {
    ($name:ident $type:ty, $class:ident $register:ty, $instruction:literal, $from:expr) => {
        #[inline(always)]
        pub unsafe fn $name(condition: bool, address: u64) -> $type {
            let value: $register;
            // SAFETY: the caller's contract is the instruction's.
            unsafe {
                asm!("{{ .reg .pred p; setp.ne.u32 p, {condition}, 0; @p ", $instruction, " {value}, [{address}]; }}",
                    condition = in(reg32) condition as u32, value = inout($class) 0 as $register => value,
                    address = in(reg64) address, options(pure, readonly, nostack))
            }
            $from(value)
        }
    };
}

load_if!(load_u8_if u8, reg32 u32, "ld.global.nc.u8", |value: u32| value as u8);
load_if!(load_u16_if u16, reg16 u16, "ld.global.nc.b16", |value: u16| value);
load_if!(load_f32_if f32, reg32 u32, "ld.global.nc.b32", f32::from_bits);

#[inline(always)]
pub unsafe fn load_u16(address: u64) -> u16 {
    let value;
    // SAFETY: the caller's contract is the instruction's.
    unsafe { asm!("ld.global.nc.b16 {}, [{}];", out(reg16) value, in(reg64) address, options(pure, readonly, nostack)) }
    value
}

#[inline(always)]
pub unsafe fn load_u32(address: u64) -> u32 {
    let value;
    // SAFETY: the caller's contract is the instruction's.
    unsafe { asm!("ld.global.nc.b32 {}, [{}];", out(reg32) value, in(reg64) address, options(pure, readonly, nostack)) }
    value
}

#[inline(always)]
pub unsafe fn load_f32(address: u64) -> f32 {
    let value;
    // SAFETY: the caller's contract is the instruction's.
    unsafe { asm!("ld.global.nc.b32 {}, [{}];", out(reg32) value, in(reg64) address, options(pure, readonly, nostack)) }
    value
}

#[inline(always)]
pub unsafe fn load_f32x2(address: u64) -> [f32; 2] {
    let (a, b);
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("ld.global.nc.v2.b32 {{{}, {}}}, [{}];", out(reg32) a, out(reg32) b, in(reg64) address,
            options(pure, readonly, nostack))
    }
    [a, b]
}

#[inline(always)]
pub unsafe fn load_u32x4(address: u64) -> [u32; 4] {
    let (a, b, c, d);
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("ld.global.nc.v4.b32 {{{}, {}, {}, {}}}, [{}];", out(reg32) a, out(reg32) b, out(reg32) c,
            out(reg32) d, in(reg64) address, options(pure, readonly, nostack))
    }
    [a, b, c, d]
}

#[cfg(target_feature = "sm_80")]
#[inline(always)]
pub fn evict_first() -> u64 {
    let policy;
    // SAFETY: it touches no memory.
    unsafe {
        asm!("createpolicy.fractional.L2::evict_first.b64 {}, 1.0;", out(reg64) policy, options(pure, nomem, nostack))
    }
    policy
}

#[cfg(target_feature = "sm_80")]
#[inline(always)]
pub unsafe fn load_u32x4_hint(address: u64, policy: u64) -> [u32; 4] {
    let (a, b, c, d);
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!(
            "ld.global.nc.L1::no_allocate.L2::cache_hint.v4.b32 {{{}, {}, {}, {}}}, [{}], {};",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) address, in(reg64) policy,
            options(pure, readonly, nostack)
        )
    }
    [a, b, c, d]
}

#[inline(always)]
pub unsafe fn load_written_u32(address: u64) -> u32 {
    let value;
    // SAFETY: the caller's contract is the instruction's.
    unsafe { asm!("ld.global.b32 {}, [{}];", out(reg32) value, in(reg64) address, options(pure, readonly, nostack)) }
    value
}

#[inline(always)]
pub unsafe fn load_written_f32(address: u64) -> f32 {
    let value;
    // SAFETY: the caller's contract is the instruction's.
    unsafe { asm!("ld.global.b32 {}, [{}];", out(reg32) value, in(reg64) address, options(readonly, nostack)) }
    value
}

#[inline(always)]
pub unsafe fn load_written_f32x2(address: u64) -> [f32; 2] {
    let (a, b);
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("ld.global.v2.b32 {{{}, {}}}, [{}];", out(reg32) a, out(reg32) b, in(reg64) address,
            options(pure, readonly, nostack))
    }
    [a, b]
}

#[inline(always)]
pub unsafe fn load_written_u32x4(address: u64) -> [u32; 4] {
    let (a, b, c, d);
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("ld.global.v4.b32 {{{}, {}, {}, {}}}, [{}];", out(reg32) a, out(reg32) b, out(reg32) c,
            out(reg32) d, in(reg64) address, options(readonly, nostack))
    }
    [a, b, c, d]
}

#[inline(always)]
pub unsafe fn wait_until_u32(address: u64, value: u32) {
    loop {
        let now: u32;
        // SAFETY: the caller's contract is the instruction's.
        unsafe {
            asm!("ld.acquire.gpu.global.b32 {}, [{}];", out(reg32) now, in(reg64) address, options(nostack));
        }
        if now == value {
            return;
        }
        // SAFETY: it touches nothing.
        unsafe { asm!("nanosleep.u32 64;", options(nomem, nostack)) }
    }
}

#[inline(always)]
pub unsafe fn store_u16(address: u64, value: u16) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe { asm!("st.global.b16 [{}], {};", in(reg64) address, in(reg16) value, options(nostack)) }
}

#[inline(always)]
pub unsafe fn store_u32(address: u64, value: u32) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe { asm!("st.global.b32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack)) }
}

#[inline(always)]
pub unsafe fn fetch_add_u32(address: u64, value: u32) -> u32 {
    let before;
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("atom.global.add.u32 {}, [{}], {};", out(reg32) before, in(reg64) address, in(reg32) value,
            options(nostack))
    }
    before
}

#[inline(always)]
pub unsafe fn fetch_add_acq_rel_u32(address: u64, value: u32) -> u32 {
    let before;
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("atom.acq_rel.gpu.global.add.u32 {}, [{}], {};", out(reg32) before, in(reg64) address, in(reg32) value,
            options(nostack))
    }
    before
}

#[inline(always)]
pub unsafe fn add_release_u32(address: u64, value: u32) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe { asm!("red.release.gpu.global.add.u32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack)) }
}

#[inline(always)]
pub unsafe fn store_f32(address: u64, value: f32) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe { asm!("st.global.b32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack)) }
}

#[inline(always)]
pub unsafe fn store_u32x2(address: u64, value: [u32; 2]) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("st.global.v2.b32 [{}], {{{}, {}}};", in(reg64) address, in(reg32) value[0], in(reg32) value[1],
            options(nostack))
    }
}

#[inline(always)]
pub unsafe fn store_u32x4(address: u64, value: [u32; 4]) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!("st.global.v4.b32 [{}], {{{}, {}, {}, {}}};", in(reg64) address, in(reg32) value[0], in(reg32) value[1],
            in(reg32) value[2], in(reg32) value[3], options(nostack))
    }
}

#[cfg(target_feature = "sm_80")]
#[inline(always)]
pub unsafe fn store_u32x2_hint(address: u64, value: [u32; 2], policy: u64) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!(
            "st.global.L2::cache_hint.v2.b32 [{}], {{{}, {}}}, {};",
            in(reg64) address, in(reg32) value[0], in(reg32) value[1], in(reg64) policy, options(nostack)
        )
    }
}

#[cfg(target_feature = "sm_80")]
#[inline(always)]
pub unsafe fn store_u32x4_hint(address: u64, value: [u32; 4], policy: u64) {
    // SAFETY: the caller's contract is the instruction's.
    unsafe {
        asm!(
            "st.global.L2::cache_hint.v4.b32 [{}], {{{}, {}, {}, {}}}, {};",
            in(reg64) address, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3],
            in(reg64) policy, options(nostack)
        )
    }
}

/// Turing's L2 cache takes no policies.
#[cfg(not(target_feature = "sm_80"))]
#[inline(always)]
pub fn evict_first() -> u64 {
    0
}

#[cfg(not(target_feature = "sm_80"))]
#[inline(always)]
pub unsafe fn load_u32x4_hint(address: u64, _: u64) -> [u32; 4] {
    // SAFETY: forwarded contract.
    unsafe { load_u32x4(address) }
}

#[cfg(not(target_feature = "sm_80"))]
#[inline(always)]
pub unsafe fn store_u32x2_hint(address: u64, value: [u32; 2], _: u64) {
    // SAFETY: forwarded contract.
    unsafe { store_u32x2(address, value) }
}

#[cfg(not(target_feature = "sm_80"))]
#[inline(always)]
pub unsafe fn store_u32x4_hint(address: u64, value: [u32; 4], _: u64) {
    // SAFETY: forwarded contract.
    unsafe { store_u32x4(address, value) }
}
