//! Where PTX only bounds the error, the host computes the correctly rounded value (or close to it).

use super::poison;

/// Subnormal numbers become zeros of their sign, as with `.ftz`.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

#[track_caller]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    poison::check("fma", &[a, b, c]);
    a.mul_add(b, c)
}

#[track_caller]
pub fn exp2(x: f32) -> f32 {
    poison::check("ex2", &[x]);
    flush((flush(x) as f64).exp2() as f32)
}

#[track_caller]
pub fn log2(x: f32) -> f32 {
    poison::check("lg2", &[x]);
    (flush(x) as f64).log2() as f32
}

#[track_caller]
pub fn reciprocal(x: f32) -> f32 {
    poison::check("rcp", &[x]);
    flush(1.0 / flush(x))
}

#[track_caller]
pub fn or3(a: u32, b: u32, c: u32) -> u32 {
    a | b | c
}

pub fn opaque(value: u32) -> u32 {
    value
}
