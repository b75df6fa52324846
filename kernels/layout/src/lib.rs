//! What the GPU kernels and the host agree on.
//!
//! The quantizer writes operands, the attention kernels read them, the host sizes and launches, and the CPU engine
//! reproduces the same codes. Every map from a logical index to a place in memory, every grouping rule and every
//! kernel name that more than one of them needs is here, once, as plain `no_std` Rust without dependencies.
//!
//! | module | what |
//! |---|---|
//! | [`tile`] | tile sizes, padded lengths, byte sizes of the operand buffers |
//! | [`swizzle`] | where byte `(row, column)` of a tile lies in shared memory |
//! | [`fragment`] | which lane of a warp holds which element of a tensor-core tile |
//! | [`token_order`] | the order of tokens inside an e4m3 value tile |
//! | [`value_tile`] | how a 16-bit value tile lies in memory |
//! | [`scale`] | quantization groups and their scales |
//! | [`round`] | e4m3 rounding, bit-exact |
//! | [`half`] | f16 and bf16 for GPUs that lack instructions, bit-exact |
//! | [`statistics`] | the order of summation of channel statistics |
//! | [`rotation`] | rotary embedding and Hadamard rotation of queries and keys |
//! | [`schedule`] | the order of the quantizer's work, and its counters |
//! | [`sequence`] | where the parts of sequences of different lengths are |
//! | [`cache`] | blocks of a cache of quantized keys and values |
//! | [`visibility`] | which keys a query may see |
//! | [`mask_tile`] | what a boolean mask shows of a key tile |
//! | [`mode`] | how Q·Kᵀ and P·V are multiplied |
//! | [`architecture`] | compute capabilities, and what kernels are compiled for |
//! | [`kernel`] | the kernel table: names, architectures, launch bounds, shared memory |
//! | [`dispatch`] | which kernels run a call on which GPU |
//! | [`params`] | the `#[repr(C)]` parameters of every kernel |
#![no_std]

pub mod architecture;
pub mod cache;
pub mod dispatch;
pub mod fragment;
pub mod half;
pub mod int4_tile;
pub mod kernel;
pub mod mask_tile;
pub mod mode;
pub mod params;
pub mod rotation;
pub mod round;
pub mod scale;
pub mod schedule;
pub mod sequence;
pub mod statistics;
pub mod swizzle;
pub mod tile;
pub mod token_order;
pub mod value_tile;
pub mod visibility;
