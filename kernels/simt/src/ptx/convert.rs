use core::arch::asm;

#[cfg(not(target_feature = "sm_80"))]
use sage_layout::half;

/// Older GPUs have no such instruction.
#[cfg(not(target_feature = "sm_89"))]
#[inline(always)]
pub fn e4m3x4(values: [f32; 4]) -> u32 {
    u32::from_le_bytes(values.map(sage_layout::round::e4m3_from_f32))
}

#[cfg(target_feature = "sm_89")]
#[inline(always)]
pub fn e4m3x4(values: [f32; 4]) -> u32 {
    let codes;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "{{ .reg .b16 low, high;",
            "cvt.rn.satfinite.e4m3x2.f32 low, {2}, {1};",
            "cvt.rn.satfinite.e4m3x2.f32 high, {4}, {3};",
            "mov.b32 {0}, {{low, high}}; }}",
            out(reg32) codes, in(reg32) values[0], in(reg32) values[1], in(reg32) values[2], in(reg32) values[3],
            options(pure, nomem, nostack)
        )
    }
    codes
}

#[cfg(not(target_feature = "sm_89"))]
#[inline(always)]
pub fn e4m3x4_of_f32_and_f16([first, second]: [f32; 2], high: u32) -> u32 {
    let [third, fourth] = [high, high >> 16].map(|half| f32_from_f16(half as u16));
    e4m3x4([first, second, third, fourth])
}

#[cfg(target_feature = "sm_89")]
#[inline(always)]
pub fn e4m3x4_of_f32_and_f16(low: [f32; 2], high: u32) -> u32 {
    let codes;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "{{ .reg .b16 low, high;",
            "cvt.rn.satfinite.e4m3x2.f32 low, {2}, {1};",
            "cvt.rn.satfinite.e4m3x2.f16x2 high, {3};",
            "mov.b32 {0}, {{low, high}}; }}",
            out(reg32) codes, in(reg32) low[0], in(reg32) low[1], in(reg32) high, options(pure, nomem, nostack)
        )
    }
    codes
}

#[inline(always)]
pub fn i16x2([low, high]: [i32; 2]) -> u32 {
    let packed;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("cvt.pack.sat.s16.s32 {}, {}, {};", out(reg32) packed, in(reg32) high, in(reg32) low,
            options(pure, nomem, nostack))
    }
    packed
}

#[cfg(target_feature = "sm_80")]
macro_rules! pack {
    ($($name:ident $mnemonic:literal;)*) => { $(
        #[inline(always)]
        pub fn $name(values: [f32; 2]) -> u32 {
            let packed;
            // SAFETY: arithmetic on registers.
            unsafe {
                asm!(concat!($mnemonic, " {}, {}, {};"), out(reg32) packed, in(reg32) values[1], in(reg32) values[0],
                    options(pure, nomem, nostack))
            }
            packed
        }
    )* };
}

#[cfg(target_feature = "sm_80")]
pack! {
    f16x2 "cvt.rn.f16x2.f32";
    bf16x2 "cvt.rn.bf16x2.f32";
}

/// Turing converts one at a time.
#[cfg(not(target_feature = "sm_80"))]
#[inline(always)]
pub fn f16x2(values: [f32; 2]) -> u32 {
    let packed;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "{{ .reg .b16 low, high;",
            "cvt.rn.f16.f32 low, {1};",
            "cvt.rn.f16.f32 high, {2};",
            "mov.b32 {0}, {{low, high}}; }}",
            out(reg32) packed, in(reg32) values[0], in(reg32) values[1], options(pure, nomem, nostack)
        )
    }
    packed
}

/// Turing has no bf16.
#[cfg(not(target_feature = "sm_80"))]
#[inline(always)]
pub fn bf16x2(values: [f32; 2]) -> u32 {
    let [low, high] = values.map(|value| half::bf16_from_f32(value) as u32);
    low | high << 16
}

#[inline(always)]
pub fn f32_from_f16(bits: u16) -> f32 {
    let value;
    // SAFETY: arithmetic on registers.
    unsafe { asm!("cvt.f32.f16 {}, {};", out(reg32) value, in(reg16) bits, options(pure, nomem, nostack)) }
    value
}

#[inline(always)]
pub fn i8x4(values: [f32; 4]) -> u32 {
    let codes;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "{{ .reg .b32 a, b, c, d, high;",
            "cvt.rni.s32.f32 a, {1}; cvt.rni.s32.f32 b, {2}; cvt.rni.s32.f32 c, {3}; cvt.rni.s32.f32 d, {4};",
            "cvt.pack.sat.s8.s32.b32 high, d, c, 0;",
            "cvt.pack.sat.s8.s32.b32 {0}, b, a, high; }}",
            out(reg32) codes, in(reg32) values[0], in(reg32) values[1], in(reg32) values[2], in(reg32) values[3],
            options(pure, nomem, nostack)
        )
    }
    codes
}
