//! Rounding to e4m3, bit-exact, in integer arithmetic. (f16 and bf16 come with the `half` crate on the host and with
//! conversion instructions on the GPU, or
//! [`half`](crate::half).)
//!
//! e4m3 is the OCP FP8 format with 4 exponent and 3 mantissa bits, bias 7, no infinities, NaN = `0x7f`, largest 448.

/// e4m3 bits of `value`: nearest, ties to even, values beyond 448 saturate (`cvt.rn.satfinite.e4m3x2.f32`).
#[inline]
pub const fn e4m3_from_f32(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = (bits >> 24 & 0x80) as u8;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return 0x7f; // NaN
    }
    if magnitude >= 0x43e8_0000 {
        // 464 and more: halfway between 448 and the next step, or beyond
        return sign | 0x7e;
    }
    if magnitude >= 0x3c80_0000 {
        // 2⁻⁶ and more: a normal number. Round the mantissa to 3 bits; a carry moves into the exponent.
        let rounded = magnitude + 0x7_ffff + (magnitude >> 20 & 1);
        let code = (rounded >> 20) - ((127 - 7) << 3);
        return sign | if code > 0x7e { 0x7e } else { code as u8 };
    }
    // Subnormal: multiples of 2⁻⁹. Adding 2¹⁴ makes the f32 adder round to that step, to nearest even.
    let scaled = f32::from_bits(magnitude) + 16384.0;
    sign | (scaled.to_bits() & 0xf) as u8
}

/// The value of e4m3 bits.
#[inline]
pub const fn f32_from_e4m3(code: u8) -> f32 {
    let sign = (code as u32 & 0x80) << 24;
    let exponent = code as u32 >> 3 & 0xf;
    let mantissa = code as u32 & 7;
    let magnitude = if code & 0x7f == 0x7f {
        0x7fc0_0000
    } else if exponent == 0 {
        (mantissa as f32 * 0.001953125).to_bits()
    } else {
        (exponent + 120) << 23 | mantissa << 20
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest of the 127 magnitudes, ties to the even code, by search.
    fn nearest(value: f32) -> u8 {
        if value.is_nan() {
            return 0x7f;
        }
        let magnitude = value.abs() as f64;
        let mut best = 0u8;
        for code in 0..=0x7eu8 {
            let (new, old) = (f32_from_e4m3(code) as f64 - magnitude, f32_from_e4m3(best) as f64 - magnitude);
            if new.abs() < old.abs() || (new.abs() == old.abs() && code % 2 == 0) {
                best = code;
            }
        }
        best | if value.is_sign_negative() { 0x80 } else { 0 }
    }

    #[test]
    fn every_code_comes_back() {
        for code in 0..=0xffu8 {
            let expected = if code & 0x7f == 0x7f { 0x7f } else { code };
            assert_eq!(e4m3_from_f32(f32_from_e4m3(code)), expected);
        }
        assert_eq!(f32_from_e4m3(0x7e), 448.0);
        assert_eq!(f32_from_e4m3(0x08), 0.015625);
        assert_eq!(f32_from_e4m3(0x01), 0.001953125);
    }

    #[test]
    fn rounds_like_the_slow_model() {
        // every exponent, mantissas around each rounding boundary
        for high in 0..=0xffffu32 {
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(high << 16 | low);
                assert_eq!(e4m3_from_f32(value), nearest(value), "{value:e}");
            }
        }
    }
}
