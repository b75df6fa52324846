//! f16 and bf16 in integer arithmetic, for GPUs that lack the instructions.
//!
//! The bits are those of the instructions as the SIMT executor has them (`simt::host`), whose tests compare the two.

/// A 16-bit floating-point format.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// Bits of infinity; above it, without the sign, is NaN.
    infinity: u16,
    /// Bits of a quiet NaN.
    nan: u16,
}

/// IEEE binary16.
pub const F16: Format = Format { infinity: 0x7c00, nan: 0x7e00 };

/// bfloat16.
pub const BF16: Format = Format { infinity: 0x7f80, nan: 0x7fc0 };

/// A number's place in the order of numbers: −0 before 0.
const fn order(bits: u16) -> i32 {
    let bits = bits as i16 as i32;
    bits ^ (bits >> 31 & 0x7fff)
}

impl Format {
    const fn is_nan(self, bits: u16) -> bool {
        bits & 0x7fff > self.infinity
    }

    /// Applies one of the functions to the low halves and to the high halves.
    #[inline]
    pub fn pairs(self, a: u32, b: u32, function: impl Fn(Self, u16, u16) -> u16) -> u32 {
        function(self, a as u16, b as u16) as u32 | (function(self, (a >> 16) as u16, (b >> 16) as u16) as u32) << 16
    }

    /// The smaller number; NaN loses against one.
    pub const fn min(self, a: u16, b: u16) -> u16 {
        if self.is_nan(a) || (!self.is_nan(b) && order(b) < order(a)) { b } else { a }
    }

    /// The larger number; NaN loses against one.
    pub const fn max(self, a: u16, b: u16) -> u16 {
        if self.is_nan(a) || (!self.is_nan(b) && order(b) > order(a)) { b } else { a }
    }

    /// The smaller number; NaN, if one of them is.
    pub const fn min_nan(self, a: u16, b: u16) -> u16 {
        if self.is_nan(a) || self.is_nan(b) { self.nan } else { self.min(a, b) }
    }

    /// The larger number; NaN, if one of them is.
    pub const fn max_nan(self, a: u16, b: u16) -> u16 {
        if self.is_nan(a) || self.is_nan(b) { self.nan } else { self.max(a, b) }
    }
}

/// bf16 bits of `value`: nearest, ties to even (`cvt.rn.bf16x2.f32`).
pub const fn bf16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return (bits >> 16) as u16 | 0x40; // a quiet NaN
    }
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}
