//! From the caller's tensors to the tiles and scales that the attention kernels read.
//!
//! All kernels of this folder deal a tensor's rows out in the same way: a thread owns a *chunk*, eight channels (16
//! bytes) of a token, and `head_dim / 8` neighbouring threads own the chunks of one token.

pub mod query_key;
pub mod statistics;
pub mod value;

use sage_layout::params::TensorView;
use simt::{global, math, thread};

use crate::element::Element;

/// Channels of a chunk.
pub const CHUNK: usize = 8;

/// The head that a block of a (…, heads, batch) grid works on.
#[derive(Clone, Copy)]
struct Head {
    /// Index over batches and heads.
    index: u64,
    /// First element in the caller's tensor.
    address: u64,
}

impl Head {
    #[inline(always)]
    fn of_block(tensor: &TensorView) -> Self {
        let (head, batch) = (thread::block_idx_y(), thread::block_idx_z());
        let offset = batch as i64 * tensor.strides.batch + head as i64 * tensor.strides.head;
        Self {
            index: batch as u64 * tensor.heads as u64 + head as u64,
            address: tensor.address.wrapping_add_signed(2 * offset),
        }
    }

    /// Eight channels of `token` from channel `8 · chunk`; zeros where the tensor has none.
    ///
    /// # Safety
    ///
    /// `tensor` must be the one that this head is of, and readable.
    #[inline(always)]
    unsafe fn load_chunk(self, tensor: &TensorView, token: u32, chunk: u32) -> Chunk {
        let mut pairs = [0; CHUNK / 2];
        let channel = chunk * CHUNK as u32;
        if token < tensor.tokens && channel < tensor.head_dim {
            let offset = token as i64 * tensor.strides.token + channel as i64;
            let address = self.address.wrapping_add_signed(2 * offset);
            if tensor.vectorized != 0 {
                // SAFETY: the chunk is inside the tensor, and rows are aligned to 16 bytes and whole chunks long.
                pairs = unsafe { global::load_u32x4(address) };
            } else {
                for index in 0..CHUNK {
                    if channel + (index as u32) < tensor.head_dim {
                        // SAFETY: the element is inside the tensor.
                        let bits = unsafe { global::load_u16(address + 2 * index as u64) };
                        pairs[index / 2] |= (bits as u32) << (16 * (index % 2));
                    }
                }
            }
        }
        Chunk(pairs)
    }
}

/// A chunk as it is in memory: pairs of 16-bit elements. Zero bits are zeros in both formats.
#[derive(Clone, Copy)]
struct Chunk([u32; CHUNK / 2]);

impl Chunk {
    const ZERO: Self = Self([0; CHUNK / 2]);

    /// The same chunk, whose values are converted anew: sixteen bytes take four registers, eight values eight.
    #[inline(always)]
    fn again(&self) -> Self {
        Self(self.0.map(math::opaque))
    }

    /// The elements' values.
    #[inline(always)]
    fn values<E: Element>(&self) -> [f32; CHUNK] {
        let mut values = [0.0; CHUNK];
        for index in 0..CHUNK / 2 {
            [values[2 * index], values[2 * index + 1]] = E::unpack(self.0[index]);
        }
        values
    }
}

/// Eight f32 channels of a statistics row.
///
/// # Safety
///
/// `address` must be readable for 32 bytes and a multiple of 16.
#[inline(always)]
unsafe fn load_f32_chunk(address: u64) -> [f32; CHUNK] {
    // SAFETY: forwarded contract.
    let (low, high) = unsafe { (global::load_u32x4(address), global::load_u32x4(address + 16)) };
    let mut values = [0.0; CHUNK];
    for index in 0..4 {
        values[index] = f32::from_bits(low[index]);
        values[index + 4] = f32::from_bits(high[index]);
    }
    values
}
