use half::{bf16, f16};
use sage_layout::round::e4m3_from_f32;

use super::poison;

#[track_caller]
pub fn e4m3x4(values: [f32; 4]) -> u32 {
    poison::check("cvt.e4m3x2", &values);
    u32::from_le_bytes(values.map(e4m3_from_f32))
}

#[track_caller]
pub fn e4m3x4_of_f32_and_f16([first, second]: [f32; 2], high: u32) -> u32 {
    let [third, fourth] = [high, high >> 16].map(|half| f32_from_f16(half as u16));
    e4m3x4([first, second, third, fourth])
}

pub fn i16x2(values: [i32; 2]) -> u32 {
    let [low, high] = values.map(|value| value.clamp(i16::MIN.into(), i16::MAX.into()) as u16 as u32);
    low | high << 16
}

#[track_caller]
pub fn f16x2(values: [f32; 2]) -> u32 {
    poison::check("cvt.f16x2", &values);
    let [low, high] = values.map(|value| f16::from_f32(value).to_bits() as u32);
    low | high << 16
}

#[track_caller]
pub fn bf16x2(values: [f32; 2]) -> u32 {
    poison::check("cvt.bf16x2", &values);
    let [low, high] = values.map(|value| bf16::from_f32(value).to_bits() as u32);
    low | high << 16
}

pub fn f32_from_f16(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

#[track_caller]
pub fn i8x4(values: [f32; 4]) -> u32 {
    poison::check("cvt.rni.s32", &values);
    u32::from_le_bytes(values.map(|value| value.round_ties_even() as i8 as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_low_first() {
        assert_eq!(e4m3x4([1.0, -448.0, 1e9, 0.0]), 0x00_7e_fe_38);
        assert_eq!(e4m3x4_of_f32_and_f16([1.0, 1e9], 0x8000_c000), 0x80_c0_7e_38);
        assert_eq!(i16x2([-2, 40000]), 0x7fff_fffe);
        assert_eq!(f16x2([1.0, -2.0]), 0xc000_3c00);
        assert_eq!(bf16x2([1.0, -2.0]), 0xc000_3f80);
    }

    /// What GPUs without the instruction compute: of every bf16 and what lies between it and the next.
    #[test]
    fn bf16_in_integers_is_the_same() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits((high as u32) << 16 | low);
                assert_eq!(sage_layout::half::bf16_from_f32(value) as u32, bf16x2([value, 0.0]), "{value:e}");
            }
        }
    }

    #[test]
    fn rounds_half_to_even() {
        assert_eq!(i8x4([0.5, 1.5, -0.5, -1.5]), 0xfe_00_02_00);
        assert_eq!(i8x4([126.5, 2.4999998, -1e9, f32::NAN]), 0x00_80_02_7e);
    }
}
