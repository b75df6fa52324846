//! What GPUs have different instructions for: copies to shared memory, and products of codes.

use sage_layout::kernel::{MMA_STAGES, TURING_STAGES};
use simt::{copy, global, mma, shared};

/// The instructions of a GPU.
pub trait Instructions {
    /// Chunks of keys and values in shared memory.
    const STAGES: u32;

    /// Keys that are taken at a time where one accumulator holds all: fewer take fewer registers.
    const KEYS: u32;

    /// Copies 16 bytes from global to shared memory, at the latest until [`wait`](Self::wait).
    ///
    /// # Safety
    ///
    /// Both addresses are multiples of 16 and valid; nobody touches the destination until this thread has waited for the
    /// copy's group.
    unsafe fn copy(destination: u32, source: u64);

    /// Makes a group of the copies since the last, one for each stage.
    fn commit();

    /// Waits for the copies of the stage that is read next.
    fn wait();

    /// `sum` += `a` · `b` for 16 rows, eight columns and 32 signed bytes each.
    fn multiply_bytes(sum: &mut [i32; 4], a: &[u32; 4], b: &[u32; 2]);
}

/// Those of sm_80.
pub struct Ampere;

/// Those of sm_75: products of half the size, and copies through registers. While a CTA waits for these, another multiplies.
pub struct Turing;

impl Instructions for Ampere {
    const STAGES: u32 = MMA_STAGES;
    const KEYS: u32 = 32;

    #[inline(always)]
    unsafe fn copy(destination: u32, source: u64) {
        // SAFETY: forwarded contract.
        unsafe { copy::async16(destination, source, 16) }
    }

    #[inline(always)]
    fn commit() {
        copy::commit_group();
    }

    #[inline(always)]
    fn wait() {
        copy::wait_group::<{ MMA_STAGES - 2 }>();
    }

    #[inline(always)]
    fn multiply_bytes(sum: &mut [i32; 4], a: &[u32; 4], b: &[u32; 2]) {
        mma::m16n8k32_s32_s8(sum, a, b);
    }
}

impl Instructions for Turing {
    const STAGES: u32 = TURING_STAGES;
    const KEYS: u32 = 16;

    #[inline(always)]
    unsafe fn copy(destination: u32, source: u64) {
        // SAFETY: forwarded contract. An earlier launch wrote the source.
        unsafe { shared::store_u32x4(destination, global::load_u32x4(source)) }
    }

    #[inline(always)]
    fn commit() {}

    #[inline(always)]
    fn wait() {}

    #[inline(always)]
    fn multiply_bytes(sum: &mut [i32; 4], a: &[u32; 4], b: &[u32; 2]) {
        let mut halves = [[sum[0], sum[1]], [sum[2], sum[3]]];
        for step in 0..2 {
            for half in 0..2 {
                mma::m8n8k16_s32_s8(&mut halves[half], &[a[half + 2 * step]], &[b[step]]);
            }
        }
        let [[a, b], [c, d]] = halves;
        *sum = [a, b, c, d];
    }
}
