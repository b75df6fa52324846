//! Mistakes with `ldmatrix`, `mma.sync`, `cp.async` and the block's barriers.
#![expect(clippy::if_same_then_else, reason = "lanes diverge by where they are in the source")]

use simt::host::Kind;
use simt::{barrier, copy, mma, shared, thread, warp, wgmma};

use super::{Buffers, check, word};

/// Bytes of a tile: 16 a thread.
const TILE: u32 = 1024;

/// The place of a thread's 16 bytes.
fn chunk(thread: u32) -> u32 {
    shared::dynamic() + 16 * thread
}

planted! {
    /// A row that begins between two multiples of 16.
    misaligned_matrix_row, 32, [Unaligned], |mistake, _| unsafe {
        let lane = thread::thread_idx_x();
        shared::store_u32x4(chunk(lane), [lane; 4]);
        warp::sync_warp();
        mma::ldmatrix_x4(chunk(lane) + if mistake && lane == 9 { 8 } else { 0 });
    };

    /// A warp loads matrices that another still writes.
    matrix_loaded_before_the_barrier, 64, [Race, Uninitialized], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        shared::store_u32x4(chunk(thread), [thread; 4]);
        if mistake { warp::sync_warp() } else { thread::sync_threads() };
        mma::ldmatrix_x4_trans(chunk((thread + 32) % 64));
    };

    /// A lane's row is written by its neighbour: the lanes of a load do not wait for each other's stores.
    matrix_loaded_without_a_warp_barrier, 32, [Race, Uninitialized], |mistake, _| unsafe {
        let lane = thread::thread_idx_x();
        shared::store_u32x4(chunk(lane), [lane; 4]);
        if !mistake {
            warp::sync_warp();
        }
        mma::ldmatrix_x4(chunk(lane ^ 1));
    };

    /// Two matrices too few were stored.
    matrix_that_nobody_wrote, 32, [Uninitialized], |mistake, _| unsafe {
        let lane = thread::thread_idx_x();
        if lane < 16 {
            shared::store_u32x4(chunk(lane), [lane; 4]);
        }
        warp::sync_warp();
        if mistake { mma::ldmatrix_x4(chunk(lane)); } else { mma::ldmatrix_x2(chunk(lane)); }
    };

    /// A matrix's rows are written again while another warp loads them.
    matrix_overwritten, 64, [Race], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        shared::store_u32x4(chunk(thread), [thread; 4]);
        thread::sync_threads();
        mma::ldmatrix_x4(chunk(thread % 32));
        if !mistake {
            thread::sync_threads();
        }
        shared::store_u32x4(chunk(thread), [0; 4]);
    };

    /// The last rows lie beyond the block's memory.
    matrix_out_of_bounds, 32, [OutOfBounds], |mistake, _| unsafe {
        let lane = thread::thread_idx_x();
        let last = shared::dynamic() + super::SHARED_BYTES - 512 + 16 * lane;
        shared::store_u32x4(last, [lane; 4]);
        warp::sync_warp();
        mma::ldmatrix_x4(last + if mistake { 16 } else { 0 });
    };

    /// Half of a warp multiplies elsewhere.
    divergent_mma, 32, [Divergence], |mistake, _| {
        let mut accumulator = [0; 4];
        if mistake && thread::thread_idx_x() < 16 {
            mma::m16n8k32_s32_s8(&mut accumulator, &[0x0101_0101; 4], &[0x0101_0101; 2]);
        } else {
            mma::m16n8k32_s32_s8(&mut accumulator, &[0x0101_0101; 4], &[0x0101_0101; 2]);
        }
        if !mistake {
            assert_eq!(accumulator, [32; 4]);
        }
    };

    /// Some lanes have nothing to load.
    lane_without_a_matrix_row, 32, [Divergence], |mistake, _| unsafe {
        let lane = thread::thread_idx_x();
        shared::store_u32x4(chunk(lane), [lane; 4]);
        warp::sync_warp();
        if !mistake || lane < 16 {
            mma::ldmatrix_x2(chunk(lane % 16));
        }
    };

    /// The registers of another product, which is in flight, are an operand.
    mma_of_a_product_in_flight, 128, [Poison], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        let tile = shared::dynamic();
        for index in 0..16 {
            shared::store_u32(tile + 4 * (thread + 128 * index), 0x0101_0101);
        }
        barrier::fence_proxy_async();
        thread::sync_threads();
        let mut scores = [0; 32];
        let descriptor = wgmma::Descriptor::new(tile, 64);
        wgmma::fence();
        wgmma::m64n64k32_s32_s8::<false>(&mut scores, descriptor, descriptor);
        wgmma::commit();
        wgmma::wait::<0>();
        if !mistake {
            wgmma::settle(&mut scores);
        }
        let mut accumulator = [0; 4];
        mma::m16n8k32_s32_s8(&mut accumulator, &[scores[0] as u32; 4], &[0x0101_0101; 2]);
        wgmma::settle(&mut scores);
    };
}

/// What a pipeline of `cp.async` in two stages does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Pipeline {
    Right,
    NoWait,
    PendingTooMany,
    NoCommit,
    NoBarrier,
    BarrierBeforeWait,
    OverwrittenInFlight,
    OverwrittenBeforeRead,
    NoLastWait,
    Unaligned,
    BeyondTheSource,
}

/// 64 threads copy tiles into a ring of two stages, one ahead, and read what their neighbours copied.
fn pipeline(mistake: Pipeline, buffers: Buffers) {
    use Pipeline::*;
    let thread = thread::thread_idx_x();
    let tiles = 5;
    unsafe {
        let fetch = |tile: u32| {
            if tile < tiles {
                let source = buffers.input + (TILE * tile + 16 * thread) as u64;
                match mistake {
                    Unaligned => copy::async16(chunk(thread) + 4, source, 16),
                    BeyondTheSource => copy::async16(chunk(thread), buffers.input + 16384, 16),
                    _ => copy::async16(chunk(thread) + tile % 2 * TILE, source, 16),
                }
            }
            if mistake != NoCommit {
                copy::commit_group();
            }
        };
        fetch(0);
        for tile in 0..tiles {
            fetch(tile + 1);
            if mistake == OverwrittenInFlight {
                shared::store_u32(chunk(thread) + (tile + 1) % 2 * TILE, 0);
            }
            if mistake == BarrierBeforeWait {
                thread::sync_threads();
            }
            match mistake {
                NoWait => (),
                PendingTooMany => copy::wait_group::<2>(),
                _ => copy::wait_group::<1>(),
            }
            if mistake != NoBarrier && mistake != BarrierBeforeWait {
                thread::sync_threads();
            }
            let stage = tile % 2 * TILE;
            let neighbour = if mistake == NoWait { thread } else { 63 - thread };
            let value = shared::load_u32(chunk(neighbour) + stage);
            if mistake == Right {
                assert_eq!(value, 0x0101_0101);
            }
            if mistake != OverwrittenBeforeRead {
                thread::sync_threads();
            }
        }
    }
    if mistake == NoLastWait {
        unsafe { copy::async16(chunk(thread), buffers.input, 0) };
        copy::commit_group();
    }
}

macro_rules! pipelines {
    ($($name:ident, $mistake:ident, [$($kind:ident),*];)*) => { $(
        #[test]
        fn $name() {
            check(64, &[$(Kind::$kind),*], |mistake, buffers| {
                pipeline(if mistake { Pipeline::$mistake } else { Pipeline::Right }, buffers)
            });
        }
    )* };
}

pipelines! {
    async_copy_not_waited_for, NoWait, [CopyInFlight, Race];
    async_copy_waited_for_too_late, PendingTooMany, [CopyInFlight, Race];
    async_copy_not_committed, NoCommit, [CopyInFlight, Race];
    async_copy_of_a_neighbour_without_barrier, NoBarrier, [CopyInFlight, Race, Uninitialized];
    barrier_before_the_copies_wait, BarrierBeforeWait, [CopyInFlight, Race];
    stage_overwritten_while_a_copy_is_in_flight, OverwrittenInFlight, [CopyInFlight, Race];
    stage_fetched_before_it_was_read, OverwrittenBeforeRead, [CopyInFlight, Race];
    kernel_ends_before_its_async_copies, NoLastWait, [CopyInFlight];
    async_copy_to_an_unaligned_address, Unaligned, [Unaligned];
    async_copy_from_beyond_the_source, BeyondTheSource, [OutOfBounds];
}

planted! {
    /// What lies beyond the end is copied as if it were there.
    async_copy_of_a_whole_tail, 32, [OutOfBounds], |mistake, buffers| unsafe {
        let lane = thread::thread_idx_x();
        let source = buffers.input + 16384 - 16 * 31 + 16 * lane as u64;
        copy::async16(chunk(lane), source, if mistake || lane < 31 { 16 } else { 0 });
        copy::commit_group();
        copy::wait_group::<0>();
        let word = shared::load_u32(chunk(lane));
        if !mistake {
            assert_eq!(word, if lane < 31 { 0x0101_0101 } else { 0 });
        }
    };
}

planted! {
    /// The producers say that 64 threads come, the consumers 96.
    barrier_with_two_counts, 96, [Barrier, Deadlock], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        if thread < 32 {
            barrier::sync(1, 96);
            shared::load_u32(word(thread + 32));
        } else {
            shared::store_u32(word(thread), 1);
            barrier::arrive(1, if mistake { 64 } else { 96 });
        }
    };

    /// The count lets the reader go before the second writer came.
    barrier_count_of_one_warp_too_few, 96, [Race, Uninitialized, Barrier, Deadlock], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        let count = if mistake { 64 } else { 96 };
        if thread < 32 {
            barrier::sync(3, count);
            shared::load_u32(word(thread + 32));
            shared::load_u32(word(thread + 64));
        } else {
            shared::store_u32(word(thread), 1);
            barrier::arrive(3, count);
        }
    };

    /// Nobody ever waits at the barrier.
    arrival_without_a_wait, 64, [Barrier], |mistake, _| {
        if thread::thread_idx_x() < 32 {
            barrier::arrive(2, 64);
        } else if !mistake {
            barrier::sync(2, 64);
        }
    };

    /// Nobody arrives at the barrier.
    wait_without_an_arrival, 64, [Deadlock], |mistake, _| {
        if thread::thread_idx_x() < 32 {
            barrier::sync(2, 64);
        } else if !mistake {
            barrier::arrive(2, 64);
        }
    };

    /// An arrival does not tell the one who arrives what others did.
    reads_after_an_arrival, 64, [Race, Uninitialized], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        shared::store_u32(word(thread), 1);
        if mistake && thread < 32 {
            barrier::arrive(1, 64);
        } else {
            barrier::sync(1, 64);
        }
        shared::load_u32(word(63 - thread));
    };

    /// What is written after the arrival is not covered by it.
    writes_after_the_arrival, 64, [Race, Uninitialized], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        if thread < 32 {
            if !mistake {
                shared::store_u32(word(thread), 1);
            }
            barrier::arrive(1, 64);
            if mistake {
                shared::store_u32(word(thread), 1);
            }
        } else {
            barrier::sync(1, 64);
            shared::load_u32(word(thread - 32));
        }
    };

    /// Two barriers of two halves of a block; the halves read from each other.
    barrier_of_the_other_half, 128, [Race, Uninitialized], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        shared::store_u32(word(thread), 1);
        barrier::sync(1 + thread / 64, 64);
        shared::load_u32(word(if mistake { 127 - thread } else { thread ^ 63 }));
    };

    /// The writer announces a second tile without waiting until the first was read.
    arrives_a_second_time, 64, [Barrier, Race], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        for round in 0..3 {
            if thread < 32 {
                if !mistake && round > 0 {
                    barrier::sync(2, 64);
                }
                shared::store_u32(word(thread), round);
                barrier::arrive(1, 64);
            } else {
                barrier::sync(1, 64);
                assert_eq!(shared::load_u32(word(thread - 32)), round);
                if !mistake && round < 2 {
                    barrier::arrive(2, 64);
                }
            }
        }
    };

    /// Half of a warp comes to the barrier elsewhere.
    divergent_barrier, 64, [Divergence], |mistake, _| {
        if mistake && thread::thread_idx_x() < 16 {
            barrier::sync(1, 64);
        } else {
            barrier::sync(1, 64);
        }
    };

    /// A lane returned before its warp came.
    lane_missing_from_a_barrier, 64, [Divergence, Deadlock], |mistake, _| {
        if mistake && thread::thread_idx_x() == 40 {
            return;
        }
        barrier::sync(5, 64);
    };

    /// A count that is not of whole warps.
    barrier_of_half_a_warp, 64, [Barrier], |mistake, _| {
        barrier::sync(1, if mistake { 48 } else { 64 });
    };

    /// There are sixteen barriers.
    seventeenth_barrier, 64, [Barrier], |mistake, _| {
        barrier::sync(if mistake { 16 } else { 15 }, 64);
    };

    /// More than the block has.
    barrier_of_more_threads_than_the_block, 64, [Barrier], |mistake, _| {
        barrier::sync(1, if mistake { 96 } else { 64 });
    };
}
