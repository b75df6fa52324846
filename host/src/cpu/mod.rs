//! Attention on the CPU.
//!
//! | module | what |
//! |---|---|
//! | [`mod@exact`] | attention in f64, the yardstick of every accuracy figure |
//! | [`mod@prepare`] | rotary embedding and Hadamard rotation of queries and keys, bit for bit as on the GPU |
//! | [`mod@quantize`] | the codes and scales that the GPU makes, bit for bit, in row-major order |
//! | [`tiles`] | the same codes as the bytes of the GPU's buffers |
//! | [`mod@attend`] | attention on those codes: integer Q·Kᵀ, P·V of e4m3 or 16-bit numbers, summed as a mode says |
//! | [`mod@sequences`] | both for sequences of different lengths, each of which is a call of its own |
//! | [`modify`] | soft cap, bias and boolean mask of a row of scores |
//! | [`simd`] | their inner loops, for each instruction set |
//! | [`view`] | rows of a caller's tensor |
//!
//! Everything takes a [`Resolved`](crate::plan::Resolved) plan and slices that its strides fit; all loops run on rayon's
//! current thread pool, and results do not depend on the number of threads.

pub(crate) mod attend;
pub(crate) mod exact;
pub(crate) mod modify;
pub(crate) mod prepare;
pub(crate) mod quantize;
pub(crate) mod sequences;
pub(crate) mod simd;
pub(crate) mod tiles;
pub(crate) mod view;

use crate::error::Error;

pub(crate) use prepare::{Prepared, prepare};
pub(crate) use quantize::{quantize, score_biases};
pub(crate) use sequences::{attend, check_lengths, check_positions, exact};

/// A vector of zeros, or the error that there is no memory for it.
pub(crate) fn zeroed<T: bytemuck::Zeroable>(argument: &'static str, len: usize) -> Result<Vec<T>, Error> {
    bytemuck::allocation::try_zeroed_vec(len)
        .map_err(|()| Error::OutOfMemory { argument, bytes: len as u64 * size_of::<T>() as u64 })
}

/// What people call the instructions that [`simd`] uses on this machine.
pub(crate) fn instructions() -> &'static str {
    simd::InstructionSet::detect().name()
}
