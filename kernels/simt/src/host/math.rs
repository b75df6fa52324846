//! Where PTX only bounds the error, the host computes the correctly rounded value (or close to it).

/// Subnormal numbers become zeros of their sign, as with `.ftz`.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

pub fn exp2(x: f32) -> f32 {
    flush((flush(x) as f64).exp2() as f32)
}

pub fn log2(x: f32) -> f32 {
    (flush(x) as f64).log2() as f32
}

pub fn reciprocal(x: f32) -> f32 {
    flush(1.0 / flush(x))
}

pub fn or3(a: u32, b: u32, c: u32) -> u32 {
    a | b | c
}

pub fn opaque(value: u32) -> u32 {
    value
}
