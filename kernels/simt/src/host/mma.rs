//! The tensor cores of Turing, Ampere and Ada: a warp's products, done when all lanes are there.
//!
//! Floating-point products are exact. How they are summed with the accumulator, [`Accumulation`] says:
//!
//! - `Single`: in double precision, then rounded once, to nearest even;
//! - `Truncated`: aligned to the largest exponent among them, a product's being the sum of its factors', and cut off 25
//!   bits below it (13 for e4m3). The sum is cut off the same way and to f32, or rounded to nearest even to f16.

use std::panic::Location;

use half::{bf16, f16};
use sage_layout::fragment;
use sage_layout::round::f32_from_e4m3;

use super::executor::Cta;
use super::poison;
use super::report::{Problem, Site};
use super::warp::{Inputs, Operation, collective};
use super::wgmma::{Accumulation, exposed};

const LANES: usize = 32;
const COLUMNS: usize = 8;
/// Bytes of a matrix's row that `ldmatrix` loads.
const ROW_BYTES: u32 = 16;
/// What a number that is not one looks like when the tensor cores make it.
const NAN: u32 = 0x7fff_ffff;
const F16_NAN: u16 = 0x7fff;

/// What an operand's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Int4,
    Int8,
    E4m3,
    F16,
    Bf16,
}

/// What an accumulator's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    I32,
    F16,
    F32,
}

/// A multiplication instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    rows: usize,
    depth: usize,
    format: Format,
    sum: Sum,
}

/// An operand's element.
#[derive(Clone, Copy, Default)]
pub struct Factor {
    value: f64,
    exponent: i32,
}

impl Format {
    /// Bits of an element.
    pub fn bits(self) -> u32 {
        match self {
            Self::Int4 => 4,
            Self::Int8 | Self::E4m3 => 8,
            Self::F16 | Self::Bf16 => 16,
        }
    }

    /// Exponent of the smallest normal number; smaller ones have it too.
    fn smallest_exponent(self) -> i32 {
        match self {
            Self::Int4 | Self::Int8 => 0,
            Self::E4m3 => -6,
            Self::F16 => -14,
            Self::Bf16 => -126,
        }
    }

    /// Bits that truncated sums keep below the largest exponent.
    fn kept_bits(self) -> i32 {
        if self == Self::E4m3 { 13 } else { 25 }
    }

    /// The element in the lowest bits.
    pub fn decode(self, bits: u32) -> Factor {
        let value = match self {
            Self::Int4 => ((bits << 28) as i32 >> 28) as f64,
            Self::Int8 => bits as i8 as f64,
            Self::E4m3 => f32_from_e4m3(bits as u8) as f64,
            Self::F16 => f16::from_bits(bits as u16).to_f64(),
            Self::Bf16 => bf16::from_bits(bits as u16).to_f64(),
        };
        Factor { value, exponent: exponent(value).max(self.smallest_exponent()) }
    }
}

/// The exponent of a number's leading one.
fn exponent(value: f64) -> i32 {
    (value.to_bits() >> 52 & 0x7ff) as i32 - 1023
}

/// Cuts off what is more than `kept_bits` below 2^`exponent`.
fn truncate(value: f64, exponent: i32, kept_bits: i32) -> f64 {
    let unit = 2f64.powi(exponent - kept_bits);
    (value / unit).trunc() * unit
}

/// Rounds towards zero; what is beyond all numbers becomes infinite.
fn f32_toward_zero(value: f64) -> f32 {
    let nearest = value as f32;
    let is_beyond = value.abs() >= 2f64.powi(128);
    if !is_beyond && (nearest as f64).abs() > value.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest }
}

/// Rounds to nearest even, once.
fn f16_nearest(value: f64) -> f16 {
    let cut = f32_toward_zero(value);
    // a last bit that tells of anything cut off keeps the second rounding from seeing a tie
    let sticky = value.is_finite() && cut.is_finite() && cut as f64 != value;
    f16::from_f32(f32::from_bits(cut.to_bits() | sticky as u32))
}

/// Adds products to an accumulator.
fn add(format: Format, factors: impl Iterator<Item = (Factor, Factor)> + Clone, old: Factor, how: Accumulation) -> f64 {
    let values = factors.clone().map(|(a, b)| a.value * b.value).chain([old.value]);
    let plain = values.clone().sum();
    let not_zero = factors.filter(|(a, b)| a.value * b.value != 0.0).map(|(a, b)| a.exponent + b.exponent);
    let largest = not_zero.chain((old.value != 0.0).then_some(old.exponent)).max();
    match (how, largest) {
        (Accumulation::Truncated, Some(largest)) if values.clone().all(f64::is_finite) => {
            let kept = format.kept_bits();
            let sum: f64 = values.map(|value| truncate(value, largest, kept)).sum();
            if sum == 0.0 { sum } else { truncate(sum, exponent(sum), kept) }
        }
        _ => plain,
    }
}

impl Sum {
    /// Number of elements in a register.
    fn packed(self) -> usize {
        if self == Self::F16 { 2 } else { 1 }
    }

    /// What a register holds after products were added to its element `element`.
    pub fn update(
        self,
        register: u32,
        element: usize,
        format: Format,
        factors: impl Iterator<Item = (Factor, Factor)> + Clone,
        how: Accumulation,
    ) -> u32 {
        let old = |value: f64, smallest| Factor { value, exponent: exponent(value).max(smallest) };
        match self {
            Self::I32 => {
                let sum: i32 = factors.map(|(a, b)| a.value as i32 * b.value as i32).sum();
                (register as i32).wrapping_add(sum) as u32
            }
            Self::F32 => {
                let sum = add(format, factors, old(f32::from_bits(register) as f64, -126), how);
                let rounded = if how == Accumulation::Truncated { f32_toward_zero(sum) } else { sum as f32 };
                if sum.is_nan() { NAN } else { rounded.to_bits() }
            }
            Self::F16 => {
                let shift = 16 * element;
                let sum = add(format, factors, old(f16::from_bits((register >> shift) as u16).to_f64(), -14), how);
                let rounded = if sum.is_nan() { F16_NAN } else { f16_nearest(sum).to_bits() };
                register & !(0xffff << shift) | (rounded as u32) << shift
            }
        }
    }
}

impl Shape {
    /// Registers of a lane: of the accumulator, of A, of B.
    fn registers(self) -> [usize; 3] {
        let per_lane = |elements: usize, packed: usize| elements / (LANES * packed);
        let packed = 32 / self.format.bits() as usize;
        let columns = per_lane(self.rows * COLUMNS, self.sum.packed());
        [columns, per_lane(self.rows * self.depth, packed), per_lane(COLUMNS * self.depth, packed)]
    }

    /// Multiplies the lanes' fragments: each brings the addresses of its registers of the accumulator, of A and of B.
    pub fn multiply(self, inputs: &Inputs, how: Accumulation) {
        let Self { rows, depth, format, sum } = self;
        let bits = format.bits();
        let packed = 32 / bits;
        let counts = self.registers();
        // SAFETY: each lane passed addresses of so many registers, and waits in the call that borrows them.
        let registers = |lane: u32, operand: usize| unsafe {
            std::slice::from_raw_parts(inputs[lane as usize][operand] as *const u32, counts[operand])
        };
        let decode = |operand, (lane, register, element): (u32, u32, u32)| {
            format.decode(registers(lane, operand)[register as usize] >> (bits * element))
        };
        let a: Vec<Factor> = (0..rows * depth)
            .map(|index| decode(1, fragment::a_operand_holder(packed, (index / depth) as u32, (index % depth) as u32)))
            .collect();
        let b: Vec<Factor> = (0..COLUMNS * depth)
            .map(|index| decode(2, fragment::b_operand_holder(packed, (index % depth) as u32, (index / depth) as u32)))
            .collect();
        for (lane, input) in inputs.iter().enumerate() {
            for element in 0..rows * COLUMNS / LANES {
                let (row, column) = fragment::accumulator(lane as u32, element as u32);
                let row = &a[row as usize * depth..][..depth];
                let column = &b[column as usize * depth..][..depth];
                let factors = row.iter().copied().zip(column.iter().copied());
                // SAFETY: as above; an accumulator is its lane's alone.
                let register = unsafe { &mut *(input[0] as *mut u32).add(element / sum.packed()) };
                *register = sum.update(*register, element % sum.packed(), format, factors, how);
            }
        }
    }
}

impl Cta {
    /// `ldmatrix` by a warp. A lane's inputs are the address of its row and that of its registers, one a matrix.
    pub fn load_matrices(
        &mut self,
        warp: usize,
        (matrices, transposed): (u32, bool),
        inputs: &Inputs,
        site: Site,
    ) -> Result<(), Problem> {
        let what = "ldmatrix";
        for (lane, input) in inputs.iter().enumerate().take(8 * matrices as usize) {
            let (address, thread) = (input[0] as u32, LANES * warp + lane);
            let access = self.access_of(thread as u32, site);
            let knowledge = &self.threads[thread].knowledge;
            let read = self.shared.check(what, address, ROW_BYTES, ROW_BYTES, site);
            read.and_then(|()| self.shared.read(what, (address, ROW_BYTES), access, knowledge)).map_err(|problem| {
                Problem::new(problem.kind, format!("the row of lane {lane}: {}", problem.message))
            })?;
        }
        for (lane, input) in inputs.iter().enumerate() {
            for matrix in 0..matrices {
                let half = |half| {
                    let place = fragment::matrix(lane as u32, half);
                    let (row, column) = if transposed { (place.1, place.0) } else { place };
                    let giver = fragment::matrix_row_giver(matrix, row) as usize;
                    let bytes = self.shared.bytes(inputs[giver][0] as u32 + 2 * column, 2);
                    u16::from_le_bytes([bytes[0], bytes[1]]) as u32
                };
                // SAFETY: the lane passed the address of so many registers, and waits in the call that borrows them.
                unsafe { *(input[1] as *mut u32).add(matrix as usize) = half(0) | half(1) << 16 };
            }
        }
        Ok(())
    }
}

macro_rules! load_matrices {
    ($($name:ident $count:literal $transposed:literal;)*) => { $(
        #[track_caller]
        pub unsafe fn $name(row: u32) -> [u32; $count] {
            let mut registers = [0; $count];
            let operation = Operation::LoadMatrices { matrices: $count, transposed: $transposed };
            let inputs = [row as u64, exposed(std::ptr::from_mut(&mut registers)), 0, 0];
            collective(operation, inputs, Location::caller());
            registers
        }
    )* };
}

load_matrices! {
    ldmatrix_x4 4 false;
    ldmatrix_x4_trans 4 true;
    ldmatrix_x2 2 false;
    ldmatrix_x2_trans 2 true;
}

macro_rules! multiply {
    ($(
        $name:ident $rows:literal $depth:literal $format:ident $sum:ident:
        [$element:ty; $c:literal], [u32; $a:literal], [u32; $b:literal];
    )*) => {
        $(
            #[track_caller]
            pub fn $name(accumulator: &mut [$element; $c], a: &[u32; $a], b: &[u32; $b]) {
                const SHAPE: Shape = Shape { rows: $rows, depth: $depth, format: Format::$format, sum: Sum::$sum };
                poison::check("mma.sync", accumulator);
                poison::check("mma.sync", a);
                poison::check("mma.sync", b);
                let inputs = [exposed(std::ptr::from_mut(accumulator)), exposed(a), exposed(b), 0];
                collective(Operation::Multiply(SHAPE), inputs, Location::caller());
            }
        )*

        #[cfg(test)]
        const REGISTERS: &[(Shape, [usize; 3])] = &[$((
            Shape { rows: $rows, depth: $depth, format: Format::$format, sum: Sum::$sum },
            [$c, $a, $b],
        )),*];
    };
}

multiply! {
    m16n8k32_s32_s8 16 32 Int8 I32: [i32; 4], [u32; 4], [u32; 2];
    m16n8k64_s32_s4 16 64 Int4 I32: [i32; 4], [u32; 4], [u32; 2];
    m8n8k16_s32_s8 8 16 Int8 I32: [i32; 2], [u32; 1], [u32; 1];
    m16n8k16_f32_f16 16 16 F16 F32: [f32; 4], [u32; 4], [u32; 2];
    m16n8k16_f16_f16 16 16 F16 F16: [u32; 2], [u32; 4], [u32; 2];
    m16n8k16_f32_bf16 16 16 Bf16 F32: [f32; 4], [u32; 4], [u32; 2];
    m16n8k8_f32_f16 16 8 F16 F32: [f32; 4], [u32; 2], [u32; 1];
    m16n8k8_f16_f16 16 8 F16 F16: [u32; 2], [u32; 2], [u32; 1];
    m16n8k32_f32_e4m3 16 32 E4m3 F32: [f32; 4], [u32; 4], [u32; 2];
    m16n8k32_f16_e4m3 16 32 E4m3 F16: [u32; 2], [u32; 4], [u32; 2];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_have_their_registers() {
        for (shape, registers) in REGISTERS {
            assert_eq!(shape.registers(), *registers, "{shape:?}");
        }
    }

    #[test]
    fn rounds_once() {
        assert_eq!(f32_toward_zero(1.0 + 2f64.powi(-24) * 1.5), 1.0);
        assert_eq!(f32_toward_zero(-1.0 - 2f64.powi(-23) * 1.9), -1.0 - 2f32.powi(-23));
        assert_eq!(f32_toward_zero(2f64.powi(128) - 2f64.powi(80)), f32::MAX);
        assert_eq!(f32_toward_zero(2f64.powi(128)), f32::INFINITY);
        // between two f16, just above the middle, by less than an f32 tells
        assert_eq!(f16_nearest(1.0 + 2f64.powi(-11) + 2f64.powi(-40)), f16::from_f32(1.0 + 2f32.powi(-10)));
        assert_eq!(f16_nearest(1.0 + 2f64.powi(-11)), f16::from_f32(1.0));
        assert_eq!(f16_nearest(65519.99), f16::MAX);
        assert_eq!(f16_nearest(65520.0), f16::INFINITY);
        assert_eq!(f16_nearest(f64::NEG_INFINITY), f16::NEG_INFINITY);
    }

    /// One product and an accumulator that it is much smaller than.
    #[test]
    fn truncation_keeps_bits_below_the_largest_exponent() {
        let one = |format: Format, product: f64, old: f64| {
            let factor = |value| Factor { value, exponent: exponent(value) };
            add(format, [(factor(product), factor(1.0))].into_iter(), factor(old), Accumulation::Truncated)
        };
        assert_eq!(one(Format::E4m3, 3.0, 16384.0), 16386.0);
        assert_eq!(one(Format::E4m3, -3.0, 16384.0), 16382.0);
        assert_eq!(one(Format::E4m3, 1.0, 16384.0), 16384.0);
        assert_eq!(one(Format::F16, 2f64.powi(-25), 1.0), 1.0 + 2f64.powi(-25));
        assert_eq!(one(Format::F16, 2f64.powi(-26), 1.0), 1.0);
        assert_eq!(one(Format::F16, -0.5, 0.5), 0.0);
        assert!(one(Format::F16, f64::NAN, 0.5).is_nan());
    }
}
