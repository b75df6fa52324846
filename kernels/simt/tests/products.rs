//! Products by `ldmatrix` and `mma.sync`, and pipelines of `cp.async`, against plain loops.
#![expect(clippy::undocumented_unsafe_blocks, reason = "the executor checks every access: that is what is tested")]

use half::{bf16, f16};
use sage_layout::round::f32_from_e4m3;
use sage_layout::{fragment, swizzle};
use simt::host::{Accumulation, Blocks, Launch, Memory, Options, Schedule, launch};
use simt::{copy, global, mma, shared, thread};

fn run(threads: u32, memory: &Memory, options: &Options, kernel: impl Fn() + Sync) {
    let shape = Launch { grid: [1, 1, 1], threads, shared_bytes: 32 * 1024, blocks: Blocks::Parallel };
    launch(shape, memory, options, kernel).unwrap_or_else(|report| panic!("{report}"));
}

/// Random numbers (xorshift).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
}

/// What elements are: how many bits they have, how to make one of random bits, its value, and how far off sums may be.
#[derive(Clone, Copy)]
struct Format {
    bits: u32,
    random: fn(u32) -> u32,
    value: fn(u32) -> f64,
    error: f64,
}

const INT4: Format =
    Format { bits: 4, random: |bits| bits & 15, value: |bits| (((bits << 28) as i32) >> 28) as f64, error: 0.0 };
const INT8: Format = Format { bits: 8, random: |bits| bits & 255, value: |bits| bits as i8 as f64, error: 0.0 };
/// Of magnitude 1 to 26.
const E4M3: Format = Format {
    bits: 8,
    random: |bits| (bits & 0x80) | (0x38 + bits % 30),
    value: |bits| f32_from_e4m3(bits as u8) as f64,
    error: 2.0,
};
/// Sixteenths, to −2 and 2.
const F16: Format = Format {
    bits: 16,
    random: |bits| f16::from_f32((bits % 65) as f32 / 16.0 - 2.0).to_bits() as u32,
    value: |bits| f16::from_bits(bits as u16).to_f64(),
    error: 0.0,
};
/// The same.
const BF16: Format = Format {
    bits: 16,
    random: |bits| bf16::from_f32((bits % 65) as f32 / 16.0 - 2.0).to_bits() as u32,
    value: |bits| bf16::from_bits(bits as u16).to_f64(),
    error: 0.0,
};

/// An accumulator's element.
trait Accumulator: Copy + Default {
    /// Elements of a register.
    const PACKED: usize;
    /// A register that holds small numbers.
    fn of(values: &[f64]) -> Self;
    fn values(self) -> Vec<f64>;
}

impl Accumulator for i32 {
    const PACKED: usize = 1;

    fn of(values: &[f64]) -> Self {
        values[0] as i32
    }

    fn values(self) -> Vec<f64> {
        vec![self as f64]
    }
}

impl Accumulator for f32 {
    const PACKED: usize = 1;

    fn of(values: &[f64]) -> Self {
        values[0] as f32
    }

    fn values(self) -> Vec<f64> {
        vec![self as f64]
    }
}

/// Two f16.
impl Accumulator for u32 {
    const PACKED: usize = 2;

    fn of(values: &[f64]) -> Self {
        let [low, high] = [values[0], values[1]].map(|value| f16::from_f64(value).to_bits() as u32);
        low | high << 16
    }

    fn values(self) -> Vec<f64> {
        [self as u16, (self >> 16) as u16].map(|bits| f16::from_bits(bits).to_f64()).to_vec()
    }
}

/// Bytes of a row in shared memory, whatever of them a shape uses.
const ROW_BYTES: u32 = 64;

fn store_elements(start: u32, row: usize, elements: &[u32], bits: u32) {
    for (index, word) in elements.chunks(32 / bits as usize).enumerate() {
        let word = word.iter().rev().fold(0, |word, &element| word << bits | element);
        unsafe { shared::store_u32(start + swizzle::offset(row as u32, 4 * index as u32, ROW_BYTES), word) };
    }
}

/// Multiplies random matrices with a `[rows][depth]` and b `[8][depth]` in shared memory, swizzled; checks every element.
fn multiplies<T: Accumulator, const C: usize, const A: usize, const B: usize>(
    format: Format,
    multiply: fn(&mut [T; C], &[u32; A], &[u32; B]),
) {
    let packed = 32 / format.bits as usize;
    let rows = C * T::PACKED * 4;
    let depth = B * packed * 4;
    assert_eq!(A * packed * 32, rows * depth);
    for seed in 1..20 {
        let mut random = Random(seed << 32 | 0x9e37_79b9);
        let mut matrix = |rows: usize| -> Vec<Vec<u32>> {
            (0..rows).map(|_| (0..depth).map(|_| (format.random)(random.bits())).collect()).collect()
        };
        let (a, b) = (matrix(rows), matrix(8));
        let before: Vec<f64> = (0..rows * 8).map(|_| (random.bits() % 64) as f64 - 32.0).collect();
        let accumulation = if seed % 2 == 0 { Accumulation::Single } else { Accumulation::Truncated };
        let options = Options { accumulation, ..Options::new(Schedule::Random(seed)) };
        run(32, &Memory::new(), &options, || unsafe {
            let lane = thread::thread_idx_x();
            let (left, right) = (shared::dynamic(), shared::dynamic() + 1024);
            if let Some(row) = a.get(lane as usize) {
                store_elements(left, lane as usize, row, format.bits);
            }
            if let Some(column) = b.get(lane as usize) {
                store_elements(right, lane as usize, column, format.bits);
            }
            thread::sync_threads();
            let (matrix, row) = fragment::matrix_row(lane);
            let at = |row, chunk| swizzle::offset(row, 16 * chunk, ROW_BYTES);
            // A: rows, then columns; where it has only 8 rows, columns
            let row_matrices = rows as u32 / 8;
            let address = left + at(row + 8 * (matrix % row_matrices), matrix / row_matrices % B as u32);
            let mut operand_a = [0; A];
            match A {
                4 => operand_a.copy_from_slice(&mma::ldmatrix_x4(address)),
                2 => operand_a.copy_from_slice(&mma::ldmatrix_x2(address)),
                _ => operand_a[0] = mma::ldmatrix_x2(left + at(row, 0))[0],
            }
            let mut operand_b = [0; B];
            operand_b.copy_from_slice(&mma::ldmatrix_x2(right + at(row, matrix % B as u32))[..B]);

            let place = |element: usize| {
                let (row, column) = fragment::accumulator(lane, element as u32);
                (row as usize, column as usize)
            };
            let mut accumulator: [T; C] = std::array::from_fn(|register| {
                let values: Vec<f64> = (0..T::PACKED)
                    .map(|element| place(register * T::PACKED + element))
                    .map(|(row, column)| before[8 * row + column])
                    .collect();
                T::of(&values)
            });
            multiply(&mut accumulator, &operand_a, &operand_b);
            let values = accumulator.iter().flat_map(|register| register.values());
            for (element, value) in values.enumerate() {
                let (row, column) = place(element);
                let products = a[row].iter().zip(&b[column]).map(|(&a, &b)| (format.value)(a) * (format.value)(b));
                let expected = products.sum::<f64>() + before[8 * row + column];
                let rounding = if T::PACKED == 2 { expected.abs() / 2048.0 } else { 0.0 };
                assert!(
                    (value - expected).abs() <= rounding + format.error,
                    "{row}, {column}: {value}, not {expected}"
                );
            }
        });
    }
}

macro_rules! products {
    ($($name:ident $format:ident;)*) => { $(
        #[test]
        fn $name() {
            multiplies($format, mma::$name);
        }
    )* };
}

products! {
    m16n8k32_s32_s8 INT8;
    m16n8k64_s32_s4 INT4;
    m8n8k16_s32_s8 INT8;
    m16n8k16_f32_f16 F16;
    m16n8k16_f16_f16 F16;
    m16n8k16_f32_bf16 BF16;
    m16n8k8_f32_f16 F16;
    m16n8k8_f16_f16 F16;
    m16n8k32_f32_e4m3 E4M3;
    m16n8k32_f16_e4m3 E4M3;
}

/// `.trans` makes the B operand of a matrix that lies in memory k by k, as values do.
#[test]
fn transposed_loads() {
    let element = |k: u32, column: u32| (100 * k + column) as u16;
    run(32, &Memory::new(), &Options::new(Schedule::Random(1)), || unsafe {
        let lane = thread::thread_idx_x();
        let start = shared::dynamic();
        for column in 0..8 {
            shared::store_u16(start + 16 * lane + 2 * column, element(lane, column));
        }
        thread::sync_threads();
        let registers = mma::ldmatrix_x4_trans(start + 16 * lane);
        assert_eq!(mma::ldmatrix_x2_trans(start + 16 * lane), registers[..2]);
        for (register, pair) in registers.into_iter().enumerate() {
            for half in 0..2 {
                let (k, column) = fragment::b_operand(2, lane, register as u32, half);
                assert_eq!((pair >> (16 * half)) as u16, element(k, column));
            }
        }
    });
}

const STAGES: u32 = 3;
const THREADS: u32 = 64;

/// Sums tiles that go through a ring of three stages, two of them ahead; the last tile is half there.
#[test]
fn async_copies_in_three_stages() {
    let tiles = 7;
    let tile_bytes = 16 * THREADS;
    let bytes: Vec<u8> = (0..tiles * tile_bytes - tile_bytes / 2).map(|index| (index * 7 % 251) as u8).collect();
    let byte = |index: u32| bytes.get(index as usize).copied().unwrap_or(0) as u32;
    for schedule in Schedule::several(25) {
        let mut memory = Memory::new();
        let input = memory.upload("input", &bytes);
        let output = memory.allocate("output", 4 * THREADS as usize);
        run(THREADS, &memory, &Options::new(schedule), || unsafe {
            let thread = thread::thread_idx_x();
            let stage = |tile: u32| shared::dynamic() + tile % STAGES * tile_bytes;
            let fetch = |tile: u32| {
                if tile < tiles {
                    let offset = tile * tile_bytes + 16 * thread;
                    let there = (bytes.len() as u32).saturating_sub(offset).min(16);
                    copy::async16(stage(tile) + 16 * thread, input + offset as u64, there);
                }
                copy::commit_group();
            };
            fetch(0);
            fetch(1);
            let mut sum = 0;
            for tile in 0..tiles {
                copy::wait_group::<1>();
                thread::sync_threads();
                fetch(tile + 2);
                for index in 0..4 {
                    sum += shared::load_u32(stage(tile) + 4 * (4 * (THREADS - 1 - thread) + index)) & 255;
                }
            }
            global::store_u32(output + 4 * thread as u64, sum);
        });
        let sums = memory.read(output, 4 * THREADS as usize);
        for thread in 0..THREADS {
            let chunk = |tile: u32| tile * tile_bytes + 16 * (THREADS - 1 - thread);
            let words = |tile| (0..4).map(move |index| chunk(tile) + 4 * index);
            let expected: u32 = (0..tiles).flat_map(words).map(byte).sum();
            let at = 4 * thread as usize;
            assert_eq!(u32::from_le_bytes(sums[at..at + 4].try_into().unwrap()), expected);
        }
    }
}
