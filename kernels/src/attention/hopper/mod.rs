//! SageAttention2 for Hopper: INT8 Q·Kᵀ and e4m3 or 16-bit P·V on `wgmma`, operands by bulk copies.
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
//!
//! With more than 128 channels there are two consumer warpgroups, since an output takes up to 128 registers a thread, and the values' sums
//! are taken in [`consumer_wide_fp8`]'s way if they are e4m3. The output leaves through the memory of the queries.
//!
//! A kernel may have fewer channels than its operands are stored with (`sage_layout::tile::stored_head_dim`): then those of queries and keys
//! are not multiplied, and those of values not copied either.

pub mod consumer_ahead_fp8;
pub mod consumer_f16;
pub mod consumer_fp8;
pub mod consumer_wide_fp8;
pub mod pipeline;
pub mod producer;
pub mod tiles;
pub mod units;
pub mod warpgroup;

use core::marker::PhantomData;

use sage_layout::kernel::AttentionShared;
use sage_layout::params::AttentionParams;
use sage_layout::tile::WIDE_CONSUMER_WARPGROUPS;
use simt::wgmma::{E4m3, ValueAccumulator};
use simt::{barrier, mbarrier, shared, thread, warp};

use crate::attention::modifier::{Modifier, Unmodified};
use crate::element::Element;
use crate::sequences::Sequences;
use pipeline::Signals;

/// Registers of a producer thread, and of a consumer thread: 128 · (32 + 3 · 160) = 65536, all there are.
const PRODUCER_REGISTERS: u32 = 32;
const CONSUMER_REGISTERS: u32 = 160;
/// The same with two consumer warpgroups: 128 · (40 + 2 · 232) = 64512, the most that is a multiple of 8 a thread.
const WIDE_PRODUCER_REGISTERS: u32 = 40;
const WIDE_CONSUMER_REGISTERS: u32 = 232;

/// Four e4m3 ones.
const ONES: u32 = 0x3838_3838;

/// The kind of values, and who consumes them.
pub trait Values {
    /// Channels that are multiplied, of operands that may be stored with more.
    const HEAD_DIM: u32;
    /// Where everything is in shared memory.
    const MEMORY: AttentionShared;
    /// What is done to scores.
    type Modifier: Modifier;

    /// Writes what is in shared memory from the beginning to the end, and lets the tensor cores see it.
    ///
    /// # Safety
    ///
    /// All threads call it, before the block barrier.
    unsafe fn prepare(base: u32);

    /// A consumer warpgroup's role.
    ///
    /// # Safety
    ///
    /// As for [`consumer_fp8::consume`].
    unsafe fn consume<S: Sequences>(params: &AttentionParams, base: u32, signals: Signals, warpgroup: u32);
}

/// Values in e4m3, with scores modified by `M`. `REGISTERS` is half of `HEAD_DIM`, and four for the row sums.
pub struct E4m3Values<E, M, const HEAD_DIM: u32, const REGISTERS: usize>(PhantomData<(E, M)>);

/// Values in e4m3 with more than 128 channels. `REGISTERS` is half of `HEAD_DIM`.
pub struct WideE4m3Values<E, const HEAD_DIM: u32, const REGISTERS: usize>(PhantomData<E>);

/// Values in the caller's 16-bit type, with scores modified by `M`. `REGISTERS` is half of `HEAD_DIM`.
pub struct HalfValues<E, M, const HEAD_DIM: u32, const REGISTERS: usize>(PhantomData<(E, M)>);

impl<E: Element, M: Modifier, const HEAD_DIM: u32, const REGISTERS: usize> Values
    for E4m3Values<E, M, HEAD_DIM, REGISTERS>
where
    [f32; REGISTERS]: ValueAccumulator<E4m3>,
{
    const HEAD_DIM: u32 = HEAD_DIM;
    const MEMORY: AttentionShared = AttentionShared::fp8(HEAD_DIM);
    type Modifier = M;

    #[inline(always)]
    unsafe fn prepare(base: u32) {
        let thread = thread::thread_idx_x();
        if thread < AttentionShared::ONES_BYTES / 4 {
            for stage in 0..Self::MEMORY.stages {
                let tile = base + Self::MEMORY.value + stage * Self::MEMORY.value_stride;
                // SAFETY: each word has one writer.
                unsafe { shared::store_u32(tile + Self::MEMORY.value_bytes + 4 * thread, ONES) };
            }
        }
        barrier::fence_proxy_async();
    }

    #[inline(always)]
    unsafe fn consume<S: Sequences>(params: &AttentionParams, base: u32, signals: Signals, warpgroup: u32) {
        // SAFETY: forwarded contract.
        unsafe { consumer_fp8::consume::<E, M, S, HEAD_DIM, REGISTERS>(params, base, signals, warpgroup) }
    }
}

impl<E: Element, const HEAD_DIM: u32, const REGISTERS: usize> Values for WideE4m3Values<E, HEAD_DIM, REGISTERS>
where
    [f32; REGISTERS]: ValueAccumulator<E4m3>,
{
    const HEAD_DIM: u32 = HEAD_DIM;
    const MEMORY: AttentionShared = AttentionShared::fp8(HEAD_DIM);
    type Modifier = Unmodified;

    #[inline(always)]
    unsafe fn prepare(_: u32) {}

    #[inline(always)]
    unsafe fn consume<S: Sequences>(params: &AttentionParams, base: u32, signals: Signals, warpgroup: u32) {
        // SAFETY: forwarded contract.
        unsafe { consumer_wide_fp8::consume::<E, S, HEAD_DIM, REGISTERS>(params, base, signals, warpgroup) }
    }
}

impl<E: Element, M: Modifier, const HEAD_DIM: u32, const REGISTERS: usize> Values
    for HalfValues<E, M, HEAD_DIM, REGISTERS>
where
    [f32; REGISTERS]: ValueAccumulator<E::Operands>,
{
    const HEAD_DIM: u32 = HEAD_DIM;
    const MEMORY: AttentionShared = AttentionShared::f16(HEAD_DIM);
    type Modifier = M;

    #[inline(always)]
    unsafe fn prepare(_: u32) {}

    #[inline(always)]
    unsafe fn consume<S: Sequences>(params: &AttentionParams, base: u32, signals: Signals, warpgroup: u32) {
        // SAFETY: forwarded contract.
        unsafe { consumer_f16::consume::<E, M, S, HEAD_DIM, REGISTERS>(params, base, signals, warpgroup) }
    }
}

/// The kernel.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn attention<V: Values, S: Sequences>(params: &AttentionParams) {
    let base = shared::dynamic();
    let signals = Signals::new(base, V::MEMORY);
    let thread = thread::thread_idx_x();

    // SAFETY: before the block barrier each place has one writer; after it, barriers are initialised.
    unsafe {
        if thread == 0 {
            signals.init();
            mbarrier::fence_init();
        }
        V::prepare(base);
        thread::sync_threads();

        let warpgroup = warp::broadcast(thread / 128);
        if warpgroup == V::MEMORY.warpgroups {
            match V::MEMORY.warpgroups {
                WIDE_CONSUMER_WARPGROUPS => thread::decrease_registers::<WIDE_PRODUCER_REGISTERS>(),
                _ => thread::decrease_registers::<PRODUCER_REGISTERS>(),
            }
            if thread.is_multiple_of(128) {
                producer::produce::<V, S>(params, base, signals);
            }
        } else {
            match V::MEMORY.warpgroups {
                WIDE_CONSUMER_WARPGROUPS => thread::increase_registers::<WIDE_CONSUMER_REGISTERS>(),
                _ => thread::increase_registers::<CONSUMER_REGISTERS>(),
            }
            V::consume::<S>(params, base, signals, warpgroup);
        }
    }
}
