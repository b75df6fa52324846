//! The tensor cores of Hopper.
//!
//! Each warp has a queue of products of its own 16 rows. A product reads its operands and makes its results at a moment
//! that the scheduler picks, at the latest when it is waited for. From the issue on, the accumulator's registers (Rust
//! arrays on the fibers' stacks) hold poison; `settle` puts the results there.

use std::collections::VecDeque;
use std::panic::Location;

use sage_layout::{fragment, swizzle};

use super::clock::{Agent, Epoch, Knowledge};
use super::executor::{Cta, run};
use super::poison;
use super::report::{Kind, Problem, Site};
use super::schedule::Schedule;
use super::shared::{Access, Proxy, SharedMemory};
use super::summation::{Accumulation, Factor, Format, Sum};
use super::warp::{Inputs, Operation, collective};

/// Rows of a warp.
const ROWS: usize = 16;
/// Bytes of an operand's row that a product takes.
const DEPTH: usize = 32;
const LANES: usize = 32;

/// A multiplication instruction of 64 rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Of both operands. Bytes have theirs in shared memory; otherwise A is in registers.
    pub format: Format,
    pub columns: usize,
}

impl Shape {
    /// Accumulator registers of a lane.
    fn registers(self) -> usize {
        self.columns / 2
    }

    fn poison(self) -> u32 {
        match self.format {
            Format::Int8 => poison::INTEGER,
            _ => poison::FLOAT,
        }
    }
}

/// The A operand.
#[derive(Debug)]
enum Left {
    Shared(u64),
    Registers(Box<[[u32; 4]; LANES]>),
}

#[derive(Debug)]
struct Product {
    group: u32,
    shape: Shape,
    accumulate: bool,
    left: Left,
    right: u64,
    /// Of [`Tensor::accumulators`].
    accumulator: u64,
    /// Of the warpgroup.
    warp: u32,
}

/// The registers of an accumulator that products were issued on.
#[derive(Debug)]
struct Accumulator {
    id: u64,
    shape: Shape,
    /// Where each lane has its array.
    addresses: [usize; LANES],
    /// Register by register, lane by lane.
    values: Vec<u32>,
    /// The last group that writes them.
    group: u32,
    /// Lanes that have their results.
    settled: u32,
    site: Site,
}

/// A warp's share of the tensor cores.
#[derive(Debug, Default)]
pub struct Tensor {
    /// `wgmma.fence` came since the last wait.
    fenced: bool,
    /// Groups committed.
    committed: u32,
    /// Groups known to be done.
    done: u32,
    queue: VecDeque<Product>,
    accumulators: Vec<Accumulator>,
    next_id: u64,
}

/// What must be the same in the four warps of a warpgroup.
#[derive(Debug, Default)]
pub struct Warpgroup {
    products: Vec<(Shape, u64, u64, bool, Site)>,
    issued: [usize; 4],
    registers: Vec<(u32, bool)>,
    registers_set: [usize; 4],
}

impl Tensor {
    pub fn is_busy(&self) -> bool {
        !self.queue.is_empty()
    }

    pub fn fence(&mut self) {
        self.fenced = true;
    }

    pub fn commit(&mut self) {
        self.committed += 1;
    }

    pub fn check_end(&self, warp: usize) -> Result<(), Problem> {
        match self.accumulators.iter().find(|accumulator| accumulator.group > self.done) {
            None => Ok(()),
            Some(accumulator) => {
                let message =
                    format!("the kernel ends before warp {warp} waited for the product issued at {}", accumulator.site);
                Err(Problem::new(Kind::Product, message))
            }
        }
    }
}

impl Warpgroup {
    fn same<T: Copy + PartialEq>(history: &mut Vec<T>, place: &mut usize, new: T) -> bool {
        let same = match history.get(*place) {
            Some(&old) => old == new,
            None => {
                history.push(new);
                true
            }
        };
        *place += 1;
        same
    }

    fn issue(&mut self, warp: usize, product: (Shape, u64, u64, bool, Site)) -> Result<(), Problem> {
        if Self::same(&mut self.products, &mut self.issued[warp], product) {
            return Ok(());
        }
        let other = self.products[self.issued[warp] - 1].4;
        let message = format!(
            "warp {warp} of a warpgroup multiplies at {}, where another multiplied at {other} or with other operands",
            product.4
        );
        Err(Problem::new(Kind::Divergence, message))
    }

    pub fn set_registers(&mut self, warp: usize, set: (u32, bool), site: Site) -> Result<(), Problem> {
        if Self::same(&mut self.registers, &mut self.registers_set[warp], set) {
            return Ok(());
        }
        let message = format!("setmaxnreg at {site} differs between the warps of a warpgroup");
        Err(Problem::new(Kind::Registers, message))
    }

    pub fn check_end(&self) -> Result<(), Problem> {
        let fewest = self.issued.into_iter().min().unwrap_or_default();
        if let Some((.., site)) = self.products.get(fewest) {
            let message =
                format!("the warps of a warpgroup issued {:?} products; some lack the one at {site}", self.issued);
            return Err(Problem::new(Kind::Divergence, message));
        }
        if self.registers_set.iter().any(|&set| set != self.registers.len()) {
            let message = "not all warps of a warpgroup executed setmaxnreg".to_owned();
            return Err(Problem::new(Kind::Registers, message));
        }
        Ok(())
    }
}

/// A matrix descriptor, decoded.
struct Rows {
    start: u32,
    group_stride: u32,
    row_bytes: u32,
}

impl Rows {
    fn decode(descriptor: u64, site: Site) -> Result<Self, Problem> {
        let row_bytes = match descriptor >> 62 {
            1 => 128,
            2 => 64,
            _ => 0,
        };
        let rows = Self {
            start: (descriptor as u32 & 0x3fff) << 4,
            group_stride: (descriptor >> 32 & 0x3fff) as u32 * 16,
            row_bytes,
        };
        let offset_in_group = if row_bytes == 0 { 0 } else { rows.start % (8 * row_bytes) };
        if row_bytes == 0 || offset_in_group + DEPTH as u32 > row_bytes || descriptor >> 49 & 7 != 0 {
            let message = format!("descriptor {descriptor:#018x} at {site}: not 32 bytes of rows of 64 or 128 bytes");
            return Err(Problem::new(Kind::Product, message));
        }
        Ok(rows)
    }

    /// Addresses of the 16-byte halves of a row.
    fn chunks(&self, row: u32) -> [u32; 2] {
        [0, 16].map(|byte| {
            let linear = self.start + row / 8 * self.group_stride + row % 8 * self.row_bytes + byte;
            swizzle::offset(linear / self.row_bytes, linear % self.row_bytes, self.row_bytes)
        })
    }

    /// Checks and records the reads of some rows.
    fn read(
        &self,
        rows: std::ops::Range<u32>,
        shared: &mut SharedMemory,
        access: Access,
        knowledge: &Knowledge,
    ) -> Result<(), Problem> {
        let what = "wgmma.mma_async";
        for address in rows.flat_map(|row| self.chunks(row)) {
            shared.check(what, address, 16, 16, access.site)?;
            shared.read(what, (address, 16), access, knowledge)?;
        }
        Ok(())
    }

    fn load(&self, row: u32, shared: &SharedMemory) -> [u8; DEPTH] {
        let [low, high] = self.chunks(row).map(|address| shared.bytes(address, 16));
        std::array::from_fn(|byte| if byte < 16 { low[byte] } else { high[byte - 16] })
    }
}

impl Cta {
    fn tensor_agent(&self, warp: usize) -> Agent {
        (self.threads.len() + warp) as Agent
    }

    /// Issues a product. A lane's inputs are the addresses of its accumulator and of its A registers, or the descriptor
    /// of A; then the descriptor of B.
    pub fn issue_product(
        &mut self,
        warp: usize,
        shape: Shape,
        accumulate: bool,
        inputs: &Inputs,
        site: Site,
    ) -> Result<(), Problem> {
        let problem =
            |message: String| Err(Problem::new(Kind::Product, format!("wgmma.mma_async at {site}: {message}")));
        let right = inputs[0][2];
        if inputs.iter().any(|input| input[2] != right) {
            return problem("lanes have different descriptors".to_owned());
        }
        let left = match shape.format {
            Format::Int8 if inputs.iter().any(|input| input[1] != inputs[0][1]) => {
                return problem("lanes have different descriptors".to_owned());
            }
            Format::Int8 => Left::Shared(inputs[0][1]),
            // SAFETY: the lanes passed addresses of their operands, and wait in the call that borrows them.
            _ => Left::Registers(Box::new(inputs.map(|input| unsafe { *(input[1] as *const [u32; 4]) }))),
        };
        let Some(warpgroup) = self.warpgroups.get_mut(warp / 4) else {
            return problem(format!("warp {warp} is not of a whole warpgroup"));
        };
        let left_descriptor = if let Left::Shared(descriptor) = left { descriptor } else { 0 };
        warpgroup.issue(warp % 4, (shape, left_descriptor, right, accumulate, site))?;

        // the operands in shared memory
        let agent = self.tensor_agent(warp);
        let group = self.warps[warp].tensor.committed + 1;
        let epoch = Epoch { agent, time: group };
        let mut knowledge = Knowledge::default();
        for lane in &self.threads[LANES * warp..LANES * (warp + 1)] {
            knowledge.join(&lane.knowledge);
        }
        knowledge.seen.hear(epoch);
        let access = Access { epoch, proxy: Proxy::Async, site };
        if let Left::Shared(descriptor) = left {
            let first = (warp % 4 * ROWS) as u32;
            let rows = first..first + ROWS as u32;
            Rows::decode(descriptor, site)?.read(rows, &mut self.shared, access, &knowledge)?;
        }
        Rows::decode(right, site)?.read(0..shape.columns as u32, &mut self.shared, access, &knowledge)?;

        // the accumulator
        let registers = shape.registers();
        let addresses = inputs.map(|input| input[0] as usize);
        // SAFETY: each lane passed the address of an array of so many registers, and waits in the call that borrows it.
        let lane_registers =
            |lane: usize| unsafe { std::slice::from_raw_parts_mut(addresses[lane] as *mut u32, registers) };
        let tensor = &mut self.warps[warp].tensor;
        let poison = shape.poison();
        let untouched = || (0..LANES).all(|lane| lane_registers(lane).iter().all(|&value| value == poison));
        let known = tensor.accumulators.iter().position(|known| known.addresses == addresses);
        let in_flight = known.is_some_and(|index| tensor.accumulators[index].group > tensor.done);
        if in_flight && !untouched() {
            return problem("the accumulator was written while a product on it was in flight".to_owned());
        }
        let continues = in_flight && matches!(left, Left::Shared(_));
        if !tensor.fenced && !continues {
            return problem("no wgmma.fence since the warp's last wgmma.wait_group".to_owned());
        }
        let accumulator = match known {
            // a chain of products; or one that was waited for and, since nobody looked at it, not settled
            Some(index) if untouched() => {
                let accumulator = &mut tensor.accumulators[index];
                (accumulator.group, accumulator.settled, accumulator.site) = (group, 0, site);
                accumulator.id
            }
            _ => {
                tensor.accumulators.retain(|known| known.addresses != addresses);
                let id = tensor.next_id;
                tensor.next_id += 1;
                let values = (0..registers).flat_map(|register| (0..LANES).map(move |lane| (register, lane)));
                let values = values.map(|(register, lane)| lane_registers(lane)[register]).collect();
                tensor.accumulators.push(Accumulator { id, shape, addresses, values, group, settled: 0, site });
                id
            }
        };
        for lane in 0..LANES {
            lane_registers(lane).fill(poison);
        }
        let warp_of_group = (warp % 4) as u32;
        tensor.queue.push_back(Product { group, shape, accumulate, left, right, accumulator, warp: warp_of_group });
        if self.options.schedule == Schedule::InOrder {
            self.multiply_next(warp);
        }
        Ok(())
    }

    /// Waits until at most `pending` groups of a warp are in flight.
    pub fn wait_products(&mut self, warp: usize, pending: u64) {
        let agent = self.tensor_agent(warp);
        let tensor = &mut self.warps[warp].tensor;
        let done = (tensor.committed as u64).saturating_sub(pending) as u32;
        tensor.fenced = false;
        tensor.done = tensor.done.max(done);
        while self.warps[warp].tensor.queue.front().is_some_and(|product| product.group <= done) {
            self.multiply_next(warp);
        }
        for thread in &mut self.threads[LANES * warp..LANES * (warp + 1)] {
            thread.knowledge.seen.hear(Epoch { agent, time: done });
        }
    }

    /// Does the oldest product of a warp.
    pub fn multiply_next(&mut self, warp: usize) {
        let Some(product) = self.warps[warp].tensor.queue.pop_front() else { return };
        let Product { shape, accumulate, left, right, accumulator, warp: warp_of_group, .. } = product;
        let site = Location::caller();
        let decode = |descriptor| Rows::decode(descriptor, site).expect("checked at issue");
        let right_rows = decode(right);
        let right: Vec<[u8; DEPTH]> = (0..shape.columns as u32).map(|row| right_rows.load(row, &self.shared)).collect();
        let left: [[u8; DEPTH]; ROWS] = match left {
            Left::Shared(descriptor) => {
                let rows = decode(descriptor);
                std::array::from_fn(|row| rows.load(warp_of_group * ROWS as u32 + row as u32, &self.shared))
            }
            Left::Registers(registers) => std::array::from_fn(|row| {
                std::array::from_fn(|place| {
                    let bytes = shape.format.bits() / 8;
                    let (k, byte) = (place as u32 / bytes, place as u32 % bytes);
                    let (lane, register, element) = fragment::a_operand_holder(4 / bytes, row as u32, k);
                    let byte = element * bytes + byte;
                    registers[lane as usize][register as usize].to_le_bytes()[byte as usize]
                })
            }),
        };
        let accumulators = &mut self.warps[warp].tensor.accumulators;
        let Some(accumulator) = accumulators.iter_mut().find(|known| known.id == accumulator) else { return };
        debug_assert_eq!(accumulator.shape, shape);
        let values = &mut accumulator.values;
        match shape.format {
            Format::Int8 => multiply_integers(&left, &right, accumulate, values),
            format => multiply_floats(format, &left, &right, self.options.accumulation, values),
        }
    }

    /// Gives the running lane its results.
    fn settle(&mut self, registers: &mut [u32], site: Site) -> Result<(), Problem> {
        let (warp, lane) = (self.current as usize / LANES, self.current as usize % LANES);
        let tensor = &mut self.warps[warp].tensor;
        let address = registers.as_ptr() as usize;
        let open = |known: &Accumulator| known.addresses[lane] == address && known.settled >> lane & 1 == 0;
        let Some(index) = tensor.accumulators.iter().position(open) else { return Ok(()) };
        let accumulator = &mut tensor.accumulators[index];
        let problem = |message: &str| {
            let message = format!("the product issued at {} is settled at {site}, {message}", accumulator.site);
            Err(Problem::new(Kind::Product, message))
        };
        if accumulator.group > tensor.committed {
            return problem("but was not committed");
        }
        if accumulator.group > tensor.done {
            return problem("but was not waited for");
        }
        if registers.iter().any(|&register| register != accumulator.shape.poison()) {
            return problem("but its registers were written in between");
        }
        for (index, register) in registers.iter_mut().enumerate() {
            *register = accumulator.values[index * LANES + lane];
        }
        accumulator.settled |= 1 << lane;
        if accumulator.settled == u32::MAX {
            tensor.accumulators.swap_remove(index);
        }
        Ok(())
    }
}

/// Calls a function with each place of the accumulator: index into its values, row, column.
fn for_each_element(columns: usize, mut function: impl FnMut(usize, usize, usize)) {
    for element in 0..columns / 2 {
        for lane in 0..LANES {
            let (row, column) = fragment::accumulator(lane as u32, element as u32);
            function(element * LANES + lane, row as usize, column as usize);
        }
    }
}

fn multiply_integers(left: &[[u8; DEPTH]; ROWS], right: &[[u8; DEPTH]], accumulate: bool, values: &mut [u32]) {
    let widen = |row: &[u8; DEPTH]| row.map(|byte| byte as i8 as i32);
    let left = left.each_ref().map(widen);
    let right: Vec<[i32; DEPTH]> = right.iter().map(widen).collect();
    for_each_element(right.len(), |index, row, column| {
        let product: i32 = left[row].iter().zip(&right[column]).map(|(a, b)| a * b).sum();
        let old = if accumulate { values[index] as i32 } else { 0 };
        values[index] = old.wrapping_add(product) as u32;
    });
}

fn multiply_floats(
    format: Format,
    left: &[[u8; DEPTH]; ROWS],
    right: &[[u8; DEPTH]],
    accumulation: Accumulation,
    values: &mut [u32],
) {
    let decode = |row: &[u8; DEPTH]| -> Vec<Factor> {
        let elements = row.chunks_exact(format.bits() as usize / 8);
        elements.map(|bytes| format.decode(bytes.iter().rev().fold(0, |bits, &byte| bits << 8 | byte as u32))).collect()
    };
    let left = left.each_ref().map(decode);
    let right: Vec<Vec<Factor>> = right.iter().map(decode).collect();
    for_each_element(right.len(), |index, row, column| {
        let factors = left[row].iter().copied().zip(right[column].iter().copied());
        values[index] = Sum::F32.update(values[index], 0, format, factors, accumulation);
    });
}

#[track_caller]
pub fn fence() {
    collective(Operation::Fence, [0; 4], Location::caller());
}

#[track_caller]
pub fn commit() {
    collective(Operation::Commit, [0; 4], Location::caller());
}

#[track_caller]
pub fn wait<const PENDING: u64>() {
    collective(Operation::Wait { pending: PENDING }, [0; 4], Location::caller());
}

macro_rules! settle {
    ($($name:ident $element:ty, $count:literal;)*) => { $(
        #[track_caller]
        pub fn $name(accumulator: &mut [$element; $count]) {
            let site = Location::caller();
            // SAFETY: the elements are 32 bits, and any bits are one.
            let registers = unsafe { std::slice::from_raw_parts_mut(accumulator.as_mut_ptr().cast(), $count) };
            run(|cta| cta.settle(registers, site));
        }
    )* };
}

settle! {
    settle_scores i32, 32;
    settle_n64 f32, 32;
    settle_n72 f32, 36;
    settle_n96 f32, 48;
    settle_n104 f32, 52;
    settle_n128 f32, 64;
    settle_n136 f32, 68;
    settle_n192 f32, 96;
    settle_n256 f32, 128;
}

/// The address of something that the tensor cores will access behind the compiler's back.
pub fn exposed<T>(place: *const T) -> u64 {
    place.expose_provenance() as u64
}

#[track_caller]
pub unsafe fn m64n64k32_s32_s8<const ACCUMULATE: bool>(scores: &mut [i32; 32], query: u64, key: u64) {
    let shape = Shape { format: Format::Int8, columns: 64 };
    let operation = Operation::Product { shape, accumulate: ACCUMULATE };
    collective(operation, [exposed(std::ptr::from_mut(scores)), query, key, 0], Location::caller());
}

macro_rules! multiply {
    ($($name:ident $format:ident, $count:literal;)*) => { $(
        #[track_caller]
        pub unsafe fn $name(accumulator: &mut [f32; $count], probabilities: &[u32; 4], value: u64) {
            let shape = Shape { format: Format::$format, columns: 2 * $count };
            let operation = Operation::Product { shape, accumulate: true };
            let inputs = [exposed(std::ptr::from_mut(accumulator)), exposed(probabilities), value, 0];
            collective(operation, inputs, Location::caller());
        }
    )* };
}

multiply! {
    m64n72k32_f32_e4m3 E4m3, 36;
    m64n104k32_f32_e4m3 E4m3, 52;
    m64n136k32_f32_e4m3 E4m3, 68;
    m64n192k32_f32_e4m3 E4m3, 96;
    m64n64k16_f32_f16 F16, 32;
    m64n64k16_f32_bf16 Bf16, 32;
    m64n96k16_f32_f16 F16, 48;
    m64n96k16_f32_bf16 Bf16, 48;
    m64n128k16_f32_f16 F16, 64;
    m64n128k16_f32_bf16 Bf16, 64;
    m64n192k16_f32_f16 F16, 96;
    m64n192k16_f32_bf16 Bf16, 96;
    m64n256k32_f32_e4m3 E4m3, 128;
    m64n256k16_f32_f16 F16, 128;
    m64n256k16_f32_bf16 Bf16, 128;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ones and twos, so that every sum is known.
    #[test]
    fn products_are_sums_over_the_depth() {
        let formats = [
            (Format::E4m3, [0x38, 0x38], [0x40, 0x40], 32.0),
            (Format::F16, [0x00, 0x3c], [0x00, 0x40], 16.0),
            (Format::Bf16, [0x80, 0x3f], [0x00, 0x40], 16.0),
        ];
        for (format, one, two, depth) in formats {
            let row = |bytes: [u8; 2]| std::array::from_fn(|place| bytes[place % 2]);
            for accumulation in [Accumulation::Single, Accumulation::Truncated] {
                let mut values = vec![3f32.to_bits(); 36 * LANES];
                multiply_floats(format, &[row(one); ROWS], &[row(two); 72], accumulation, &mut values);
                assert!(values.iter().all(|&value| f32::from_bits(value) == 3.0 + 2.0 * depth), "{format:?}");
            }
        }
        let mut values = vec![5; 32 * LANES];
        multiply_integers(&[[255; DEPTH]; ROWS], &[[2; DEPTH]; 64], true, &mut values);
        assert!(values.iter().all(|&value| value as i32 == 5 - 64));
    }
}
