//! Chunks of 64 keys and their values: on their way to shared memory, and from there to the tensor cores.

use sage_layout::fragment;
use sage_layout::kernel::{MmaShared, mma_warps};
use sage_layout::params::AttentionParams;
use sage_layout::swizzle::{self, CHUNK_BYTES};
use sage_layout::tile::{CHUNKS_PER_TILE, KEY_CHUNK, KEY_TILE};
use simt::{mma, warp};

use super::codes::Codes;
use super::instructions::Instructions;
use super::product::Values;

/// A thread's part of the copies.
#[derive(Clone, Copy)]
pub struct Copies<'a> {
    params: &'a AttentionParams,
    thread: u32,
    /// Index of the item's first key tile over all heads.
    first_tile: u32,
}

impl<'a> Copies<'a> {
    /// Of an item's keys and values.
    #[inline(always)]
    pub fn new(params: &'a AttentionParams, thread: u32, first_tile: u32) -> Self {
        Self { params, thread, first_tile }
    }

    /// Starts the copies of chunk `chunk` to a stage.
    ///
    /// # Safety
    ///
    /// The chunk is one of the head's; nobody touches the stage until all threads have waited for this group of copies
    /// and met.
    #[inline(always)]
    pub unsafe fn start<I: Instructions, V: Values, C: Codes, const HEAD_DIM: u32>(&self, stage: u32, chunk: u32) {
        let key_row_bytes = const { HEAD_DIM / C::PER_BYTE };
        let memory = const { MmaShared::new(HEAD_DIM, HEAD_DIM / C::PER_BYTE, V::BYTES, I::STAGES) };
        let tile = (self.first_tile + chunk / CHUNKS_PER_TILE) as u64;
        let chunk = chunk % CHUNKS_PER_TILE;

        let threads = const { mma_warps(HEAD_DIM) * warp::LANES };

        // keys: as they are
        let key_bytes = KEY_CHUNK * key_row_bytes;
        let at = self.thread * CHUNK_BYTES;
        let key = self.params.key + tile * (KEY_TILE * key_row_bytes) as u64 + (chunk * key_bytes + at) as u64;
        let mut offset = 0;
        while offset < key_bytes {
            // SAFETY: the place is this thread's own part of the chunk.
            unsafe { I::copy(stage + at + offset, key + offset as u64) };
            offset += threads * CHUNK_BYTES;
        }

        // values: of each channel, the keys of the chunk
        let row_bytes = const { KEY_CHUNK * V::BYTES };
        let pieces = row_bytes / CHUNK_BYTES;
        let (channel, piece) = (self.thread / pieces, self.thread % pieces);
        let value = self.params.value + tile * V::tile_bytes(HEAD_DIM) as u64 + V::offset(channel, chunk, piece) as u64;
        let at = stage + memory.value + swizzle::offset(channel, piece * CHUNK_BYTES, row_bytes);
        let mut channels = 0;
        while channels < HEAD_DIM {
            // SAFETY: as above. Both layouts repeat every eight channels.
            unsafe { I::copy(at + channels * row_bytes, value + (channels * V::ROW_STRIDE) as u64) };
            channels += const {
                let channels = mma_warps(HEAD_DIM) * warp::LANES * CHUNK_BYTES / (KEY_CHUNK * V::BYTES);
                assert!(channels.is_multiple_of(swizzle::PERIOD));
                channels
            };
        }
    }
}

/// Steps of 32 bytes of the longest row with a swizzle.
const STEPS_OF_LONGEST: u32 = swizzle::LONGEST / (2 * CHUNK_BYTES);

/// A matrix in shared memory whose rows are columns of the B operand: keys for Q·Kᵀ, channels for P·V.
#[derive(Clone, Copy)]
pub struct Matrix {
    address: u32,
    row_bytes: u32,
    /// Offset of the row that the lane gives to `ldmatrix`, of the first 16 rows and 32 bytes.
    lane_row: u32,
}

impl Matrix {
    /// Of swizzled rows of 32 to 256 bytes, at a multiple of 128.
    #[inline(always)]
    pub fn new(address: u32, row_bytes: u32, lane: u32) -> Self {
        let (matrix, row) = fragment::matrix_row(lane);
        let row = row + matrix / 2 * swizzle::PERIOD;
        Self { address, row_bytes, lane_row: swizzle::offset(row, matrix % 2 * CHUNK_BYTES, row_bytes) }
    }

    /// The same of a matrix whose rows are rows of the B operand, for [`transposed`](Self::transposed).
    #[inline(always)]
    pub fn of_rows(address: u32, row_bytes: u32, lane: u32) -> Self {
        let (matrix, row) = fragment::matrix_row(lane);
        let row = row + matrix % 2 * swizzle::PERIOD;
        Self { address, row_bytes, lane_row: swizzle::offset(row, matrix / 2 * CHUNK_BYTES, row_bytes) }
    }

    /// The B operands of rows `16 · pair` and `16 · pair + 8` on, of the `step`-th 32 bytes of the rows.
    ///
    /// # Safety
    ///
    /// All lanes call it; the rows are there.
    #[inline(always)]
    pub unsafe fn operands(&self, pair: usize, step: usize) -> [[u32; 2]; 2] {
        // SAFETY: forwarded contract.
        let [a, b, c, d] = unsafe { mma::ldmatrix_x4(self.row(pair, step)) };
        [[a, b], [c, d]]
    }

    /// Rows `16 · pair` on, turned round in units of 16 bits: of each eight units of the `step`-th 32 bytes, what would be a B
    /// operand of 16 rows if a unit were an element.
    ///
    /// # Safety
    ///
    /// As for [`operands`](Self::operands).
    #[inline(always)]
    pub unsafe fn transposed(&self, pair: usize, step: usize) -> [[u32; 2]; 2] {
        // SAFETY: forwarded contract.
        let [a, b, c, d] = unsafe { mma::ldmatrix_x4_trans(self.row(pair, step)) };
        [[a, b], [c, d]]
    }

    /// The row that the lane gives to `ldmatrix`.
    #[inline(always)]
    fn row(&self, pair: usize, step: usize) -> u32 {
        // the layout repeats every eight rows, and a swizzle keeps what is xored with a place in its row
        let (half, step) = (step as u32 / STEPS_OF_LONGEST, step as u32 % STEPS_OF_LONGEST);
        let in_row = (self.lane_row ^ (2 * CHUNK_BYTES * step)) + half * swizzle::HALF_STRIDE;
        self.address + in_row + 2 * swizzle::PERIOD * self.row_bytes * pair as u32
    }
}
