use core::arch::asm;

unsafe extern "C" {
    #[link_name = "llvm.nvvm.wgmma.fence.sync.aligned"]
    safe fn wgmma_fence();
    #[link_name = "llvm.nvvm.wgmma.commit_group.sync.aligned"]
    safe fn wgmma_commit_group();
    #[link_name = "llvm.nvvm.wgmma.wait_group.sync.aligned"]
    safe fn wgmma_wait_group(pending: u64);
}

#[inline(always)]
pub fn fence() {
    wgmma_fence()
}

#[inline(always)]
pub fn commit() {
    wgmma_commit_group()
}

#[inline(always)]
pub fn wait<const PENDING: u64>() {
    wgmma_wait_group(const { PENDING })
}

/// The instructions name every accumulator register, so each shape is written out by this macro:
/// `$first $($rest)*` are the register numbers.
macro_rules! shape {
    (settle $settle:ident, $element:ty, $count:literal, $first:literal $($rest:literal)*) => {
        #[inline(always)]
        pub fn $settle(accumulator: &mut [$element; $count]) {
            // SAFETY: no instruction; only tells the compiler that the registers may have changed.
            unsafe {
                asm!(
                    concat!("// {", $first, "}", $(" {", $rest, "}",)*),
                    inout(reg32) accumulator[$first], $(inout(reg32) accumulator[$rest],)*
                    options(nomem, nostack)
                )
            }
        }
    };
    (shared $name:ident, $mnemonic:literal, $count:literal, $first:literal $($rest:literal)*) => {
        #[inline(always)]
        pub unsafe fn $name<const ACCUMULATE: bool>(accumulator: &mut [i32; $count], a: u64, b: u64) {
            // SAFETY: the caller's contract is the instruction's.
            unsafe {
                asm!(
                    "{{ .reg .pred accumulate;",
                    "setp.ne.b32 accumulate, {accumulate}, 0;",
                    concat!($mnemonic, " {{{", $first, "}", $(", {", $rest, "}",)* "}}, {a}, {b}, accumulate;"),
                    "}}",
                    inout(reg32) accumulator[$first], $(inout(reg32) accumulator[$rest],)*
                    a = in(reg64) a, b = in(reg64) b, accumulate = const ACCUMULATE as u32,
                    options(nostack)
                )
            }
        }
    };
    (registers $name:ident, $mnemonic:literal, $flags:literal, $count:literal, $first:literal $($rest:literal)*) => {
        #[inline(always)]
        pub unsafe fn $name(accumulator: &mut [f32; $count], a: &[u32; 4], b: u64) {
            // SAFETY: the caller's contract is the instruction's.
            unsafe {
                asm!(
                    "{{ .reg .pred accumulate;",
                    "setp.eq.b32 accumulate, 0, 0;",
                    concat!(
                        $mnemonic, " {{{", $first, "}", $(", {", $rest, "}",)*
                        "}}, {{{a0}, {a1}, {a2}, {a3}}}, {b}, accumulate, ", $flags, ";"
                    ),
                    "}}",
                    inout(reg32) accumulator[$first], $(inout(reg32) accumulator[$rest],)*
                    a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
                    b = in(reg64) b,
                    options(nostack)
                )
            }
        }
    };
}

/// All shapes. The flags after `accumulate` are the operands' signs, and for 16-bit operands whether B is transposed: no.
///
/// A shape's registers are several lists of their numbers, each named after the end of its own.
macro_rules! shapes {
    (@ $kind:ident $name:ident, [$($head:tt)*] $(($($register:literal)*))*) => {
        shape!($kind $name, $($head)* $($($register)*)*);
    };
    ($r32:tt $r36:tt $r48:tt $r52:tt $r64:tt $r68:tt $r96:tt $r128:tt) => {
        shapes!(@ settle settle_scores, [i32, 32,] $r32);
        shapes!(@ settle settle_n64, [f32, 32,] $r32);
        shapes!(@ settle settle_n72, [f32, 36,] $r32 $r36);
        shapes!(@ settle settle_n96, [f32, 48,] $r32 $r36 $r48);
        shapes!(@ settle settle_n104, [f32, 52,] $r32 $r36 $r48 $r52);
        shapes!(@ settle settle_n128, [f32, 64,] $r32 $r36 $r48 $r52 $r64);
        shapes!(@ settle settle_n136, [f32, 68,] $r32 $r36 $r48 $r52 $r64 $r68);
        shapes!(@ settle settle_n192, [f32, 96,] $r32 $r36 $r48 $r52 $r64 $r68 $r96);
        shapes!(@ settle settle_n256, [f32, 128,] $r32 $r36 $r48 $r52 $r64 $r68 $r96 $r128);
        shapes!(@ shared m64n64k32_s32_s8, ["wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8", 32,] $r32);
        shapes!(@ registers m64n72k32_f32_e4m3,
            ["wgmma.mma_async.sync.aligned.m64n72k32.f32.e4m3.e4m3", "1, 1", 36,] $r32 $r36);
        shapes!(@ registers m64n104k32_f32_e4m3,
            ["wgmma.mma_async.sync.aligned.m64n104k32.f32.e4m3.e4m3", "1, 1", 52,] $r32 $r36 $r48 $r52);
        shapes!(@ registers m64n136k32_f32_e4m3,
            ["wgmma.mma_async.sync.aligned.m64n136k32.f32.e4m3.e4m3", "1, 1", 68,] $r32 $r36 $r48 $r52 $r64 $r68);
        shapes!(@ registers m64n192k32_f32_e4m3,
            ["wgmma.mma_async.sync.aligned.m64n192k32.f32.e4m3.e4m3", "1, 1", 96,] $r32 $r36 $r48 $r52 $r64 $r68 $r96);
        shapes!(@ registers m64n256k32_f32_e4m3,
            ["wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3", "1, 1", 128,] $r32 $r36 $r48 $r52 $r64 $r68 $r96 $r128);
        shapes!(@ registers m64n64k16_f32_f16,
            ["wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16", "1, 1, 0", 32,] $r32);
        shapes!(@ registers m64n64k16_f32_bf16,
            ["wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16", "1, 1, 0", 32,] $r32);
        shapes!(@ registers m64n96k16_f32_f16,
            ["wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16", "1, 1, 0", 48,] $r32 $r36 $r48);
        shapes!(@ registers m64n96k16_f32_bf16,
            ["wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16", "1, 1, 0", 48,] $r32 $r36 $r48);
        shapes!(@ registers m64n128k16_f32_f16,
            ["wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16", "1, 1, 0", 64,] $r32 $r36 $r48 $r52 $r64);
        shapes!(@ registers m64n128k16_f32_bf16,
            ["wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16", "1, 1, 0", 64,] $r32 $r36 $r48 $r52 $r64);
        shapes!(@ registers m64n192k16_f32_f16,
            ["wgmma.mma_async.sync.aligned.m64n192k16.f32.f16.f16", "1, 1, 0", 96,] $r32 $r36 $r48 $r52 $r64 $r68 $r96);
        shapes!(@ registers m64n192k16_f32_bf16,
            ["wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16", "1, 1, 0", 96,] $r32 $r36 $r48 $r52 $r64 $r68 $r96);
        shapes!(@ registers m64n256k16_f32_f16,
            ["wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16", "1, 1, 0", 128,] $r32 $r36 $r48 $r52 $r64 $r68 $r96 $r128);
        shapes!(@ registers m64n256k16_f32_bf16,
            ["wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16", "1, 1, 0", 128,] $r32 $r36 $r48 $r52 $r64 $r68 $r96 $r128);
    };
}

shapes! {
    (0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    (32 33 34 35)
    (36 37 38 39 40 41 42 43 44 45 46 47)
    (48 49 50 51)
    (52 53 54 55 56 57 58 59 60 61 62 63)
    (64 65 66 67)
    (68 69 70 71 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95)
    (96 97 98 99 100 101 102 103 104 105 106 107 108 109 110 111 112 113 114 115 116 117 118 119 120 121 122 123 124 125 126 127)
}
