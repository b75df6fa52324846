//! Matrix multiplication by a warp (`mma.sync`), and the loads that deal its operands to the lanes (`ldmatrix`).
//!
//! `accumulator` += `a` · `b`. `sage_layout::fragment` tells which lane holds what: `accumulator`, `a_operand` and
//! `b_operand`, and `matrix` for loads. Elements of less than 32 bits come packed into registers, the first in the lowest
//! bits; so do f16 accumulators, a pair of columns a register.
//!
//! All lanes must call these together. They are `asm!`, which is not convergent: keep them out of branches that lanes take
//! differently, and in a basic block with a barrier, or the compiler may copy them into the arms of such a branch.

use crate::arch;

macro_rules! load_matrices {
    ($($name:ident $mnemonic:literal, $count:literal, $doc:literal;)*) => { $(
        #[doc = concat!("Loads ", $count, " matrices of 8×8 16-bit elements", $doc, " (`ldmatrix.", $mnemonic, "`).")]
        ///
        /// Lane `8m + r` gives the address of the 16 bytes of row `r` of matrix `m`; further lanes' addresses are not used.
        ///
        /// # Safety
        ///
        /// Each address, on Turing those not used too, must be in the block's shared memory, a multiple of 16,
        /// initialised, and not written at the same time.
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(row: u32) -> [u32; $count] {
            // SAFETY: forwarded contract.
            unsafe { arch::mma::$name(row) }
        }
    )* };
}

load_matrices! {
    ldmatrix_x4 "x4", 4, "";
    ldmatrix_x4_trans "x4.trans", 4, ", transposed";
    ldmatrix_x2 "x2", 2, "";
    ldmatrix_x2_trans "x2.trans", 2, ", transposed";
}

macro_rules! multiply {
    ($(
        $name:ident $mnemonic:literal: [$element:ty; $c:literal], [u32; $a:literal], [u32; $b:literal],
        $what:literal, $since:literal;
    )*) => { $(
        #[doc = concat!("Products of ", $what, " (`mma.", $mnemonic, "`; ", $since, ").")]
        #[inline(always)]
        #[track_caller]
        pub fn $name(accumulator: &mut [$element; $c], a: &[u32; $a], b: &[u32; $b]) {
            arch::mma::$name(accumulator, a, b)
        }
    )* };
}

multiply! {
    m16n8k32_s32_s8 "m16n8k32.s32.s8.s8.s32": [i32; 4], [u32; 4], [u32; 2], "signed bytes", "sm_80, PTX 7.0";
    m16n8k64_s32_s4 "m16n8k64.s32.s4.s4.s32": [i32; 4], [u32; 4], [u32; 2], "signed nibbles", "sm_80, PTX 7.0";
    m8n8k16_s32_s8 "m8n8k16.s32.s8.s8.s32": [i32; 2], [u32; 1], [u32; 1], "signed bytes", "sm_75, PTX 6.5";
    m16n8k16_f32_f16 "m16n8k16.f32.f16.f16.f32": [f32; 4], [u32; 4], [u32; 2], "f16", "sm_80, PTX 7.0";
    m16n8k16_f16_f16 "m16n8k16.f16.f16.f16.f16": [u32; 2], [u32; 4], [u32; 2], "f16", "sm_80, PTX 7.0";
    m16n8k16_f32_bf16 "m16n8k16.f32.bf16.bf16.f32": [f32; 4], [u32; 4], [u32; 2], "bf16", "sm_80, PTX 7.0";
    m16n8k8_f32_f16 "m16n8k8.f32.f16.f16.f32": [f32; 4], [u32; 2], [u32; 1], "f16", "sm_75, PTX 6.5";
    m16n8k8_f16_f16 "m16n8k8.f16.f16.f16.f16": [u32; 2], [u32; 2], [u32; 1], "f16", "sm_75, PTX 6.5";
    m16n8k32_f32_e4m3 "m16n8k32.f32.e4m3.e4m3.f32": [f32; 4], [u32; 4], [u32; 2], "e4m3", "sm_89, PTX 8.4";
    m16n8k32_f16_e4m3 "m16n8k32.f16.e4m3.e4m3.f16": [u32; 2], [u32; 4], [u32; 2], "e4m3", "sm_89, PTX 8.7";
}
