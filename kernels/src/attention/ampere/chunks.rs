//! Chunks of 64 keys and their values: on their way to shared memory, and from there to the tensor cores.

use sage_layout::kernel::{MMA_WARPS, MmaShared};
use sage_layout::params::AttentionParams;
use sage_layout::swizzle::{self, CHUNK_BYTES};
use sage_layout::tile::{KEY_CHUNK, KEY_TILE, key_tiles};
use simt::{copy, mma, warp};

use super::product::Values;

const THREADS: u32 = MMA_WARPS * warp::LANES;
/// Chunks of a key tile.
const CHUNKS_PER_TILE: u32 = KEY_TILE / KEY_CHUNK;

/// A thread's part of the copies.
#[derive(Clone, Copy)]
pub struct Copies<'a> {
    params: &'a AttentionParams,
    thread: u32,
    /// Index of the head's first tile over all heads.
    first_tile: u32,
}

impl<'a> Copies<'a> {
    /// Of a head's keys and values.
    #[inline(always)]
    pub fn new(params: &'a AttentionParams, thread: u32, key_head: u32) -> Self {
        Self { params, thread, first_tile: key_head * key_tiles(params.key_len) }
    }

    /// Starts the copies of chunk `chunk` to a stage.
    ///
    /// # Safety
    ///
    /// The chunk is one of the head's; nobody touches the stage until all threads have waited for this group of copies
    /// and met.
    #[inline(always)]
    pub unsafe fn start<V: Values, const HEAD_DIM: u32>(&self, stage: u32, chunk: u32) {
        let memory = const { MmaShared::new(HEAD_DIM, V::BYTES) };
        let tile = (self.first_tile + chunk / CHUNKS_PER_TILE) as u64;
        let chunk = chunk % CHUNKS_PER_TILE;

        // keys: as they are
        let key_bytes = KEY_CHUNK * HEAD_DIM;
        let at = self.thread * CHUNK_BYTES;
        let key = self.params.key + tile * (KEY_TILE * HEAD_DIM) as u64 + (chunk * key_bytes + at) as u64;
        let mut offset = 0;
        while offset < key_bytes {
            // SAFETY: the place is this thread's own part of the chunk.
            unsafe { copy::async16(stage + at + offset, key + offset as u64, CHUNK_BYTES) };
            offset += THREADS * CHUNK_BYTES;
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
            unsafe {
                copy::async16(at + channels * row_bytes, value + (channels * V::ROW_STRIDE) as u64, CHUNK_BYTES);
            }
            channels += const {
                let channels = THREADS * CHUNK_BYTES / (KEY_CHUNK * V::BYTES);
                assert!(channels.is_multiple_of(swizzle::PERIOD));
                channels
            };
        }
    }
}

/// Which rows of a matrix in shared memory a lane gives to `ldmatrix`. Rows are columns of the B operand: keys for Q·Kᵀ,
/// channels for P·V.
#[derive(Clone, Copy)]
pub struct LaneRows {
    row_bytes: u32,
    /// Of the first eight rows: the lane's place in each 64 bytes.
    offsets: [u32; 2],
}

impl LaneRows {
    /// Of swizzled rows of 64 or 128 bytes.
    #[inline(always)]
    pub fn new(lane: u32, row_bytes: u32) -> Self {
        let (matrix, row) = sage_layout::fragment::matrix_row(lane);
        let offsets = [0, 64].map(|half| swizzle::offset(row, half % row_bytes + matrix * CHUNK_BYTES, row_bytes));
        Self { row_bytes, offsets }
    }

    /// The matrix at an address.
    #[inline(always)]
    pub fn at(&self, address: u32) -> Matrix {
        Matrix { row_bytes: self.row_bytes, rows: self.offsets.map(|offset| address + offset) }
    }
}

/// A matrix in shared memory.
#[derive(Clone, Copy)]
pub struct Matrix {
    row_bytes: u32,
    rows: [u32; 2],
}

impl Matrix {
    /// The B operands of rows `8 · block` on, for two steps of 32 bytes: the `half`-th 64 bytes of the rows.
    ///
    /// # Safety
    ///
    /// All lanes call it; the rows are there.
    #[inline(always)]
    pub unsafe fn operands(&self, block: usize, half: usize) -> [[u32; 2]; 2] {
        // SAFETY: forwarded contract. The layout repeats every eight rows.
        let [a, b, c, d] =
            unsafe { mma::ldmatrix_x4(self.rows[half] + block as u32 * swizzle::PERIOD * self.row_bytes) };
        [[a, b], [c, d]]
    }
}
