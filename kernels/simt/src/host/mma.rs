//! The tensor cores of Turing, Ampere and Ada: a warp's products, done when all lanes are there.

use std::panic::Location;

use sage_layout::fragment;

use super::executor::Cta;
use super::poison;
use super::report::{Problem, Site};
use super::summation::{Accumulation, Factor, Format, Sum};
use super::warp::{Inputs, Operation, collective};
use super::wgmma::exposed;

const LANES: usize = 32;
const COLUMNS: usize = 8;
/// Bytes of a matrix's row that `ldmatrix` loads.
const ROW_BYTES: u32 = 16;
/// A multiplication instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    rows: usize,
    depth: usize,
    format: Format,
    sum: Sum,
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
}
