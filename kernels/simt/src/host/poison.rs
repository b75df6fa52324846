//! What stands in registers and memory that must not be read yet.
//!
//! Poison goes through ordinary arithmetic as other numbers do. Wherever a value enters the vocabulary again, it is
//! looked at: an integer that was poison, also after its conversion to f32, and a NaN with the payload of poison.

use std::panic::Location;

use super::executor;
use super::report::{Kind, Problem};

/// A byte of memory that was not written.
pub const BYTE: u8 = 0xa5;
/// An integer register of a product in flight; f32 holds it exactly.
pub const INTEGER: u32 = 0x7a5a_5a00;
/// A floating-point register of a product in flight: a signalling NaN.
pub const FLOAT: u32 = 0x7fa5_a5a5;

/// Sign, and the bit that tells quiet from signalling NaNs: arithmetic changes them.
const FREE_BITS: u32 = 0x8040_0000;

fn is_poison(bits: u32) -> bool {
    bits & !FREE_BITS == FLOAT & !FREE_BITS || bits == INTEGER || bits == (INTEGER as f32).to_bits()
}

/// The 32-bit words of a value; none of one that is smaller.
pub fn words<V>(value: &V) -> &[u32]
where
    V: Words + ?Sized,
{
    value.words()
}

/// Values that are made of 32-bit words.
pub trait Words {
    fn words(&self) -> &[u32];
}

impl Words for u16 {
    fn words(&self) -> &[u32] {
        &[]
    }
}

impl Words for u32 {
    fn words(&self) -> &[u32] {
        std::slice::from_ref(self)
    }
}

impl Words for f32 {
    fn words(&self) -> &[u32] {
        std::slice::from_ref(self).words()
    }
}

impl Words for [f32] {
    fn words(&self) -> &[u32] {
        // SAFETY: f32 and u32 have the same size and alignment, and every bit pattern is a u32.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len()) }
    }
}

impl<const N: usize> Words for [f32; N] {
    fn words(&self) -> &[u32] {
        self[..].words()
    }
}

impl<const N: usize> Words for [u32; N] {
    fn words(&self) -> &[u32] {
        self
    }
}

/// Reports poison among an instruction's operands.
#[track_caller]
#[inline]
pub fn check(instruction: &'static str, operands: &[u32]) {
    if operands.iter().any(|&bits| is_poison(bits)) {
        let site = Location::caller();
        let message =
            format!("{instruction} at {site} gets the register of a product that is in flight or was not settled");
        executor::report(Problem::new(Kind::Poison, message));
    }
}
