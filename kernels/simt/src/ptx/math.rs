use core::arch::asm;

#[cfg(not(target_feature = "sm_80"))]
use sage_layout::half;

unsafe extern "C" {
    #[link_name = "llvm.fma.f32"]
    safe fn llvm_fma(a: f32, b: f32, c: f32) -> f32;
}

#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    llvm_fma(a, b, c)
}

#[inline(always)]
pub fn fma_saturated(a: f32, b: f32, c: f32) -> f32 {
    let result;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("fma.rn.sat.f32 {}, {}, {}, {};", out(reg32) result, in(reg32) a, in(reg32) b, in(reg32) c,
            options(pure, nomem, nostack))
    }
    result
}

#[inline(always)]
pub fn fma_f16x2(a: u32, b: u32, c: u32) -> u32 {
    let result;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("fma.rn.f16x2 {}, {}, {}, {};", out(reg32) result, in(reg32) a, in(reg32) b, in(reg32) c,
            options(pure, nomem, nostack))
    }
    result
}

macro_rules! unary {
    ($($name:ident $mnemonic:literal;)*) => { $(
        #[inline(always)]
        pub fn $name(x: f32) -> f32 {
            let result;
            // SAFETY: arithmetic on registers.
            unsafe {
                asm!(concat!($mnemonic, " {}, {};"), out(reg32) result, in(reg32) x, options(pure, nomem, nostack))
            }
            result
        }
    )* };
}

unary! {
    exp2 "ex2.approx.ftz.f32";
    log2 "lg2.approx.ftz.f32";
    reciprocal "rcp.approx.ftz.f32";
}

#[cfg(target_feature = "sm_80")]
macro_rules! packed {
    ($($name:ident $mnemonic:literal;)*) => { $(
        #[inline(always)]
        pub fn $name(a: u32, b: u32) -> u32 {
            let result;
            // SAFETY: arithmetic on registers.
            unsafe {
                asm!(concat!($mnemonic, " {}, {}, {};"), out(reg32) result, in(reg32) a, in(reg32) b,
                    options(pure, nomem, nostack))
            }
            result
        }
    )* };
}

#[cfg(target_feature = "sm_80")]
packed! {
    min_f16x2 "min.f16x2";
    max_f16x2 "max.f16x2";
    min_bf16x2 "min.bf16x2";
    max_bf16x2 "max.bf16x2";
    min_nan_f16x2 "min.NaN.f16x2";
    max_nan_f16x2 "max.NaN.f16x2";
    min_nan_bf16x2 "min.NaN.bf16x2";
    max_nan_bf16x2 "max.NaN.bf16x2";
}

/// Turing has none of these instructions.
#[cfg(not(target_feature = "sm_80"))]
macro_rules! packed {
    ($($name:ident $format:ident $function:ident;)*) => { $(
        #[inline(always)]
        pub fn $name(a: u32, b: u32) -> u32 {
            half::$format.pairs(a, b, half::Format::$function)
        }
    )* };
}

#[cfg(not(target_feature = "sm_80"))]
packed! {
    min_f16x2 F16 min;
    max_f16x2 F16 max;
    min_bf16x2 BF16 min;
    max_bf16x2 BF16 max;
    min_nan_f16x2 F16 min_nan;
    max_nan_f16x2 F16 max_nan;
    min_nan_bf16x2 BF16 min_nan;
    max_nan_bf16x2 BF16 max_nan;
}

#[inline(always)]
pub fn or3(a: u32, b: u32, c: u32) -> u32 {
    let result;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("lop3.b32 {}, {}, {}, {}, 0xFE;", out(reg32) result, in(reg32) a, in(reg32) b, in(reg32) c,
            options(pure, nomem, nostack))
    }
    result
}

#[inline(always)]
pub fn opaque(mut value: u32) -> u32 {
    // SAFETY: no instruction.
    unsafe { asm!("// {}", inout(reg32) value, options(nomem, nostack)) }
    value
}
