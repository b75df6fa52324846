//! None of these is `pure`: the compiler must not move them into a branch that some lanes take.

use core::arch::asm;

macro_rules! load_matrices {
    ($($name:ident $suffix:literal, $count:literal, $first:literal $($rest:literal)*;)*) => { $(
        #[inline(always)]
        pub unsafe fn $name(row: u32) -> [u32; $count] {
            let mut registers = [0; $count];
            // SAFETY: the caller's contract is the instruction's.
            unsafe {
                asm!(
                    concat!("ldmatrix.sync.aligned.m8n8.", $suffix, ".shared.b16 {{{", $first, "}", $(", {", $rest, "}",)*
                        "}}, [{row}];"),
                    out(reg32) registers[$first], $(out(reg32) registers[$rest],)*
                    row = in(reg32) row, options(nostack)
                )
            }
            registers
        }
    )* };
}

load_matrices! {
    ldmatrix_x4 "x4", 4, 0 1 2 3;
    ldmatrix_x4_trans "x4.trans", 4, 0 1 2 3;
    ldmatrix_x2 "x2", 2, 0 1;
    ldmatrix_x2_trans "x2.trans", 2, 0 1;
}

/// The instructions name every register: the numbers count those of the accumulator, of A and of B together.
macro_rules! multiply {
    ($(
        $name:ident $mnemonic:literal:
        [$element:ty; $c_count:literal] $c0:literal $($c:literal)*,
        [u32; $a_count:literal] $a0:literal $($a:literal)*,
        [u32; $b_count:literal] $b0:literal $($b:literal)*;
    )*) => { $(
        #[inline(always)]
        pub fn $name(accumulator: &mut [$element; $c_count], a: &[u32; $a_count], b: &[u32; $b_count]) {
            // SAFETY: arithmetic on registers.
            unsafe {
                asm!(
                    concat!(
                        "mma.sync.aligned.", $mnemonic,
                        " {{{", $c0, "}", $(", {", $c, "}",)* "}}, {{{", $a0, "}", $(", {", $a, "}",)* "}}, {{{", $b0, "}",
                        $(", {", $b, "}",)* "}}, {{{", $c0, "}", $(", {", $c, "}",)* "}};"
                    ),
                    inout(reg32) accumulator[$c0], $(inout(reg32) accumulator[$c],)*
                    in(reg32) a[$a0 - $c_count], $(in(reg32) a[$a - $c_count],)*
                    in(reg32) b[$b0 - $c_count - $a_count], $(in(reg32) b[$b - $c_count - $a_count],)*
                    options(nomem, nostack)
                )
            }
        }
    )* };
}

multiply! {
    m16n8k32_s32_s8 "m16n8k32.row.col.s32.s8.s8.s32": [i32; 4] 0 1 2 3, [u32; 4] 4 5 6 7, [u32; 2] 8 9;
    m16n8k64_s32_s4 "m16n8k64.row.col.s32.s4.s4.s32": [i32; 4] 0 1 2 3, [u32; 4] 4 5 6 7, [u32; 2] 8 9;
    m8n8k16_s32_s8 "m8n8k16.row.col.s32.s8.s8.s32": [i32; 2] 0 1, [u32; 1] 2, [u32; 1] 3;
    m16n8k16_f32_f16 "m16n8k16.row.col.f32.f16.f16.f32": [f32; 4] 0 1 2 3, [u32; 4] 4 5 6 7, [u32; 2] 8 9;
    m16n8k16_f16_f16 "m16n8k16.row.col.f16.f16.f16.f16": [u32; 2] 0 1, [u32; 4] 2 3 4 5, [u32; 2] 6 7;
    m16n8k16_f32_bf16 "m16n8k16.row.col.f32.bf16.bf16.f32": [f32; 4] 0 1 2 3, [u32; 4] 4 5 6 7, [u32; 2] 8 9;
    m16n8k8_f32_f16 "m16n8k8.row.col.f32.f16.f16.f32": [f32; 4] 0 1 2 3, [u32; 2] 4 5, [u32; 1] 6;
    m16n8k8_f16_f16 "m16n8k8.row.col.f16.f16.f16.f16": [u32; 2] 0 1, [u32; 2] 2 3, [u32; 1] 4;
    m16n8k32_f32_e4m3 "m16n8k32.row.col.f32.e4m3.e4m3.f32": [f32; 4] 0 1 2 3, [u32; 4] 4 5 6 7, [u32; 2] 8 9;
    m16n8k32_f16_e4m3 "m16n8k32.row.col.f16.e4m3.e4m3.f16": [u32; 2] 0 1, [u32; 4] 2 3 4 5, [u32; 2] 6 7;
}
