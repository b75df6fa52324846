//! What stands in registers and memory that must not be read yet.
//!
//! Poison goes through ordinary arithmetic as other numbers do. Wherever an f32 enters the vocabulary again, it is looked
//! at: a NaN with the payload of poison, or an integer that was poison before its conversion. Integers are looked at as
//! registers of `mma.sync` alone: packed codes may have any bits, though those of poison are a rare pattern.

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

/// What a register may hold.
pub trait Register: Copy {
    fn is_poison(self) -> bool;
}

impl Register for u32 {
    fn is_poison(self) -> bool {
        self == FLOAT || self == INTEGER
    }
}

impl Register for i32 {
    fn is_poison(self) -> bool {
        (self as u32).is_poison()
    }
}

impl Register for f32 {
    fn is_poison(self) -> bool {
        self.to_bits() & !FREE_BITS == FLOAT & !FREE_BITS || self == INTEGER as f32
    }
}

/// Reports poison among an instruction's operands.
#[track_caller]
#[inline]
pub fn check<R: Register>(instruction: &'static str, operands: &[R]) {
    if operands.iter().any(|&operand| operand.is_poison()) {
        let site = Location::caller();
        let message =
            format!("{instruction} at {site} gets the register of a product that is in flight or was not settled");
        executor::report(Problem::new(Kind::Poison, message));
    }
}
