//! SageAttention2 for Hopper: INT8 Q·Kᵀ and e4m3 P·V on `wgmma`, operands by bulk copies.
//!
//! ```text
//!               ┌ producer warp ┐    ring of 3 slots (key tile, value tile)
//! global memory ── bulk copies ──►  ┌────────┬────────┬────────┐
//!                                   │ K₀ V₀  │ K₁ V₁  │ K₂ V₂  │
//!                                   └───┬────┴────────┴────────┘
//!                    ┌──────────────────┼──────────────────┐
//!             warpgroup 1         warpgroup 2         warpgroup 3      64 queries each
//! ```
//!
//! A CTA holds one multiprocessor; its producer claims items (192 queries of a head) until none are left, and runs ahead
//! as far as slots are free, into the next item too. The consumers never wait for each other.

pub mod consumer;
pub mod pipeline;
pub mod producer;

use sage_layout::kernel::{AttentionShared, PIPELINE_STAGES};
use sage_layout::params::AttentionParams;
use sage_layout::tile::{CONSUMER_WARPGROUPS, key_tile_bytes};
use simt::wgmma::ValueAccumulator;
use simt::{barrier, mbarrier, shared, thread, warp};

use crate::element::Element;
use pipeline::Signals;

/// Registers of a producer thread, and of a consumer thread: 128 · (32 + 3 · 160) = 65536, all there are.
const PRODUCER_REGISTERS: u32 = 32;
const CONSUMER_REGISTERS: u32 = 160;

/// Four e4m3 ones.
const ONES: u32 = 0x3838_3838;

/// Head dimension of an accumulator of `REGISTERS`: all but four of them hold two channels of two rows.
pub const fn head_dim(registers: usize) -> u32 {
    2 * (registers as u32 - 4)
}

/// The kernel. `REGISTERS` is 36 for head dimension 64, 68 for 128.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn attention<E: Element, const REGISTERS: usize>(params: &AttentionParams)
where
    [f32; REGISTERS]: ValueAccumulator,
{
    let memory = const { AttentionShared::new(head_dim(REGISTERS)) };
    let base = shared::dynamic();
    let signals = Signals { first: base + memory.barriers };
    let thread = thread::thread_idx_x();

    // SAFETY: before the block barrier each place has one writer; after it, barriers are initialised.
    unsafe {
        if thread == 0 {
            signals.init();
            mbarrier::fence_init();
        }
        if thread < AttentionShared::ONES_BYTES / 4 {
            for stage in 0..PIPELINE_STAGES {
                let ones = base + memory.value + stage * memory.value_stride + key_tile_bytes(head_dim(REGISTERS));
                shared::store_u32(ones + 4 * thread, ONES);
            }
        }
        barrier::fence_proxy_async();
        thread::sync_threads();

        let warpgroup = warp::broadcast(thread / 128);
        if warpgroup == CONSUMER_WARPGROUPS {
            thread::decrease_registers::<PRODUCER_REGISTERS>();
            if thread.is_multiple_of(128) {
                producer::produce::<REGISTERS>(params, base, signals);
            }
        } else {
            thread::increase_registers::<CONSUMER_REGISTERS>();
            consumer::consume::<E, REGISTERS>(params, base, signals, warpgroup);
        }
    }
}
