//! What Q·Kᵀ multiplies.

use simt::mma;

use super::instructions::Instructions;

/// A kind of queries and keys.
pub trait Codes {
    /// Codes of a byte.
    const PER_BYTE: u32;
    /// Whether queries may be less a mean, so that scores have a bias ([`bias`](super::bias)).
    const BIASED: bool;

    /// `scores` += `query` · `key`, of 32 bytes of their rows.
    fn multiply<I: Instructions>(scores: &mut [i32; 4], query: &[u32; 4], key: &[u32; 2]);
}

/// INT8, queries as they are.
pub struct Int8;

/// INT8, queries less the mean of their block.
pub struct SmoothedInt8;

/// INT4, queries less the mean of their block, if there is one. SageAttention2, section 3.1.
pub struct Int4;

impl Codes for Int8 {
    const PER_BYTE: u32 = 1;
    const BIASED: bool = false;

    #[inline(always)]
    fn multiply<I: Instructions>(scores: &mut [i32; 4], query: &[u32; 4], key: &[u32; 2]) {
        I::multiply_bytes(scores, query, key);
    }
}

impl Codes for SmoothedInt8 {
    const PER_BYTE: u32 = 1;
    const BIASED: bool = true;

    #[inline(always)]
    fn multiply<I: Instructions>(scores: &mut [i32; 4], query: &[u32; 4], key: &[u32; 2]) {
        I::multiply_bytes(scores, query, key);
    }
}

impl Codes for Int4 {
    const PER_BYTE: u32 = 2;
    const BIASED: bool = true;

    #[inline(always)]
    fn multiply<I: Instructions>(scores: &mut [i32; 4], query: &[u32; 4], key: &[u32; 2]) {
        mma::m16n8k64_s32_s4(scores, query, key);
    }
}
