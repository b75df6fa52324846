//! Small kernels with one mistake each, and their corrected twins.
//!
//! Every mistake must be found within 50 seeds of the random schedule and by a search through schedules with one preemption,
//! and be called by its name; the twin must pass the search, too, and 200 random schedules.
#![expect(clippy::undocumented_unsafe_blocks, reason = "the executor checks every access: that is what is tested")]

use simt::copy::bulk_to_shared;
use simt::host::{Blocks, Kind, Launch, Memory, Options, Report, Schedule, Trace, launch, search};
use simt::mbarrier::{self, Barrier};
use simt::wgmma::{self, Descriptor, ValueAccumulator};
use simt::{barrier, global, math, shared, thread, warp};

const SHARED_BYTES: u32 = 32 * 1024;
/// Schedules that a search tries at most.
const SEARCHED: usize = 1000;

/// A kernel, in a form with the mistake (`true`) and one without.
struct Planted {
    /// Blocks, which run together if there are several.
    blocks: u32,
    threads: u32,
    kinds: &'static [Kind],
    kernel: fn(bool, Buffers),
}

/// What every kernel gets.
#[derive(Clone, Copy)]
struct Buffers {
    /// 16 KiB of ones.
    input: u64,
    /// 4 KiB.
    output: u64,
    /// 16 bytes of zeros.
    counters: u64,
}

fn run(planted: &Planted, mistake: bool, schedule: Schedule) -> Result<Trace, Report> {
    let mut memory = Memory::new();
    let buffers = Buffers {
        input: memory.upload("input", &[1; 16384]),
        output: memory.allocate("output", 4096),
        counters: memory.upload("counters", &[0; 16]),
    };
    let shape = Launch {
        grid: [planted.blocks, 1, 1],
        threads: planted.threads,
        shared_bytes: SHARED_BYTES,
        blocks: if planted.blocks > 1 { Blocks::Together } else { Blocks::Parallel },
    };
    launch(shape, &memory, &Options::new(schedule), || (planted.kernel)(mistake, buffers))
}

fn check(threads: u32, kinds: &'static [Kind], kernel: fn(bool, Buffers)) {
    check_planted(&Planted { blocks: 1, threads, kinds, kernel });
}

fn check_planted(planted: &Planted) {
    if let Some(schedule) = Schedule::replayed() {
        println!("with the mistake: {:?}", run(planted, true, schedule));
        run(planted, false, schedule).unwrap_or_else(|report| panic!("the twin: {report}"));
        return;
    }
    let is_found = |schedule| match run(planted, true, schedule) {
        Ok(_) => false,
        Err(report) => {
            assert!(planted.kinds.contains(&report.kind), "{report}");
            assert!(report.message.contains(file!().trim_end_matches(".rs")), "without a place: {report}");
            true
        }
    };
    let seeds = |kind: fn(u64) -> Schedule| (0..50).find(|&seed| is_found(kind(seed)));
    let (threads, warps) = (seeds(Schedule::Random), seeds(Schedule::RandomWarps));
    let searched = search(1, SEARCHED, |schedule| run(planted, true, schedule));
    println!("\nin order: {}, reverse: {}", is_found(Schedule::InOrder), is_found(Schedule::Reverse));
    println!("first seed by threads: {threads:?}, by warps: {warps:?}; search: {searched:?}");
    assert!(threads.is_some(), "not found within 50 seeds");
    // a search is for one block
    assert!(planted.blocks > 1 || searched.is_err(), "not found by a search: {searched:?}");

    for schedule in Schedule::several(100) {
        run(planted, false, schedule).unwrap_or_else(|report| panic!("the twin: {report}"));
    }
    search(1, SEARCHED, |schedule| run(planted, false, schedule)).unwrap_or_else(|report| panic!("the twin: {report}"));
}

/// The place of a thread's word.
fn word(thread: u32) -> u32 {
    shared::dynamic() + 4 * thread
}

macro_rules! planted {
    ($($(#[$doc:meta])* $name:ident, $threads:literal, [$($kind:ident),*], $kernel:expr;)*) => { $(
        $(#[$doc])*
        #[test]
        fn $name() {
            check($threads, &[$(Kind::$kind),*], $kernel);
        }
    )* };
}

#[path = "planted_bugs/ampere.rs"]
mod ampere;

planted! {
    /// Neighbours read what nobody says is there yet.
    missing_barrier, 64, [Race, Uninitialized], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        shared::store_u32(word(thread), thread);
        if !mistake {
            thread::sync_threads();
        }
        shared::load_u32(word(63 - thread));
    };

    /// A buffer is written again while others still read it.
    missing_barrier_before_reuse, 64, [Race], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        shared::store_u32(word(thread), 1);
        thread::sync_threads();
        shared::load_u32(word(63 - thread));
        if !mistake {
            thread::sync_threads();
        }
        shared::store_u32(word(thread), 2);
    };

    /// A warp barrier does not order different warps.
    warp_barrier_instead_of_block_barrier, 64, [Race, Uninitialized], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        shared::store_u32(word(thread), 1);
        if mistake { warp::sync_warp() } else { thread::sync_threads() };
        shared::load_u32(word((thread + 32) % 64));
    };

    /// A shuffle does not order memory.
    shuffle_instead_of_warp_barrier, 32, [Race], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        shared::store_u32(word(thread), 1);
        if mistake { warp::shuffle_xor(0.0, 1); } else { warp::sync_warp() };
        shared::load_u32(word(thread ^ 1));
    };

    /// Half of a warp shuffles elsewhere.
    divergent_shuffle, 32, [Divergence], |mistake, _| {
        let lane = thread::thread_idx_x();
        if mistake && lane < 16 {
            warp::shuffle_xor(1.0, 1);
        } else {
            warp::shuffle_xor(1.0, 2);
        }
    };

    /// A lane leaves before the others take its value.
    lane_returns_before_a_shuffle, 32, [Divergence], |mistake, _| {
        let lane = thread::thread_idx_x();
        if mistake && lane == 7 {
            return;
        }
        assert_eq!(warp::shuffle(lane, lane + 7), (lane + 7) % 32);
    };

    /// A lane leaves before the others vote.
    lane_returns_before_a_vote, 32, [Divergence], |mistake, _| {
        if mistake && thread::thread_idx_x() == 7 {
            return;
        }
        warp::any(true);
    };

    /// One warp does not come to the block barrier.
    barrier_without_one_warp, 96, [Deadlock, Divergence], |mistake, _| {
        if mistake && thread::thread_idx_x() >= 64 {
            return;
        }
        thread::sync_threads();
    };

    /// One word beyond the end.
    shared_out_of_bounds, 32, [OutOfBounds], |mistake, _| unsafe {
        let end = shared::dynamic() + SHARED_BYTES;
        let at = end - 4 * 32 + 4 * thread::thread_idx_x() + if mistake { 4 } else { 0 };
        shared::store_u32(at, 0);
    };

    /// One element beyond a buffer's end.
    global_out_of_bounds, 32, [OutOfBounds], |mistake, buffers| unsafe {
        let first = if mistake { 993 } else { 992 };
        global::store_f32(buffers.output + 4 * (first + thread::thread_idx_x() as u64), 1.0);
    };

    /// Sixteen bytes at an address for four.
    unaligned, 32, [Unaligned], |mistake, buffers| unsafe {
        let step = if mistake { 4 } else { 16 };
        global::load_u32x4(buffers.input + step * thread::thread_idx_x() as u64);
    };

    /// The tail that nobody filled.
    uninitialised_tail, 32, [Uninitialized], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        if !mistake || thread < 30 {
            shared::store_u32(word(thread), 1);
        }
        thread::sync_threads();
        shared::load_u32(word(31 - thread));
    };

    /// What the launch itself wrote comes through the read-only path.
    reads_its_own_output, 32, [Race, Uninitialized], |mistake, buffers| unsafe {
        let at = 4 * thread::thread_idx_x() as u64;
        global::store_f32(buffers.output + at, 1.0);
        global::load_f32(if mistake { buffers.output } else { buffers.input } + at);
    };

    /// What came through the read-only path is written later.
    writes_its_own_input, 32, [Race], |mistake, buffers| unsafe {
        let at = 4 * thread::thread_idx_x() as u64;
        let value = global::load_f32(buffers.input + at);
        global::store_f32(if mistake { buffers.input } else { buffers.output } + at, value);
    };
}

/// A copy of 4 KiB that all threads read, with the mistakes that its pipeline allows.
#[derive(Clone, Copy, PartialEq)]
enum Pipeline {
    Right,
    NoWait,
    WrongParity,
    SamePhaseTwice,
    TooFewBytes,
    NoExpectation,
    EarlyRelease,
    NoRelease,
    DoubleArrival,
    CountOffByOneWarp,
    NoInitFence,
    NoBarrierAfterInit,
    CopyUnaligned,
}

const TILE: u32 = 4096;
const ROUNDS: u32 = 5;
const SLOTS: u32 = 2;

/// Warp 0's first lane copies tiles into a ring of two slots; warps 1 and 2 read them.
fn pipeline(mistake: Pipeline, buffers: Buffers) {
    use Pipeline::*;
    let thread = thread::thread_idx_x();
    let (warp, lane) = (thread / 32, thread % 32);
    let signals = shared::dynamic() + SLOTS * TILE;
    let full = |slot| Barrier(signals + 16 * slot);
    let empty = |slot| Barrier(signals + 16 * slot + 8);
    unsafe {
        if thread == 0 {
            for slot in 0..SLOTS {
                full(slot).init(1);
                empty(slot).init(if mistake == CountOffByOneWarp { 1 } else { 2 });
            }
            if mistake != NoInitFence {
                mbarrier::fence_init();
            }
        }
        if mistake != NoBarrierAfterInit {
            thread::sync_threads();
        }
        for round in 0..ROUNDS {
            let (slot, parity) = (round % SLOTS, round / SLOTS % 2);
            let tile = shared::dynamic() + slot * TILE;
            if warp == 0 {
                if lane == 0 {
                    empty(slot).wait(if mistake == WrongParity { parity } else { parity ^ 1 });
                    let expected = match mistake {
                        TooFewBytes => TILE / 2,
                        NoExpectation => 0,
                        _ => TILE,
                    };
                    full(slot).arrive_expect_bytes(expected);
                    let source = buffers.input + if mistake == CopyUnaligned { 8 } else { 0 };
                    bulk_to_shared(tile, source, TILE, full(slot));
                }
            } else {
                if mistake != NoWait {
                    full(slot).wait(if mistake == SamePhaseTwice { 0 } else { parity });
                }
                if mistake == EarlyRelease {
                    warp::sync_warp();
                    empty(slot).arrive_if(lane == 0);
                }
                for index in 0..4 {
                    assert_eq!(shared::load_u32(tile + 512 * (index + 4 * (warp - 1)) / 4 * 4 + 4 * lane), 0x0101_0101);
                }
                warp::sync_warp();
                if mistake != EarlyRelease && mistake != NoRelease {
                    empty(slot).arrive_if(lane == 0 || mistake == DoubleArrival && lane == 1);
                }
            }
        }
    }
}

macro_rules! pipelines {
    ($($name:ident, $mistake:ident, [$($kind:ident),*];)*) => { $(
        #[test]
        fn $name() {
            check(96, &[$(Kind::$kind),*], |mistake, buffers| {
                pipeline(if mistake { Pipeline::$mistake } else { Pipeline::Right }, buffers)
            });
        }
    )* };
}

pipelines! {
    missing_mbarrier_wait, NoWait, [Race, CopyInFlight, Uninitialized];
    wrong_parity, WrongParity, [Deadlock];
    phase_waited_for_twice, SamePhaseTwice, [Race, CopyInFlight, MBarrier, Deadlock];
    too_few_bytes_expected, TooFewBytes, [Deadlock, CopyInFlight, MBarrier];
    no_bytes_expected, NoExpectation, [Race, Uninitialized, Deadlock, CopyInFlight, MBarrier];
    early_slot_release, EarlyRelease, [Race];
    slot_never_released, NoRelease, [Deadlock];
    double_arrival, DoubleArrival, [Race, CopyInFlight, MBarrier, Deadlock];
    barrier_count_off_by_one_warp, CountOffByOneWarp, [Race, CopyInFlight, MBarrier, Deadlock];
    missing_init_fence, NoInitFence, [MBarrier];
    missing_barrier_after_init, NoBarrierAfterInit, [Race, MBarrier];
    copy_from_an_unaligned_address, CopyUnaligned, [Unaligned];
}

/// A warp answers signals by its first lane, and does not wait for its other lanes: one that falls behind misses a phase.
/// Only some schedules show it.
#[test]
fn lanes_left_behind() {
    check(64, &[Kind::Deadlock, Kind::MBarrier], |mistake, _| unsafe {
        let thread = thread::thread_idx_x();
        let (question, answer) = (Barrier(shared::dynamic()), Barrier(shared::dynamic() + 8));
        if thread == 0 {
            question.init(1);
            answer.init(1);
            mbarrier::fence_init();
        }
        thread::sync_threads();
        for round in 0..ROUNDS {
            if thread == 0 {
                question.arrive_if(true);
                answer.wait(round % 2);
            } else if thread >= 32 {
                question.wait(round % 2);
                if !mistake {
                    warp::sync_warp();
                }
                answer.arrive_if(thread == 32);
            }
        }
    });
}

/// A product of a 64×32 and another 64×32 tile of ones.
#[derive(Clone, Copy, PartialEq)]
enum Multiplication {
    Right,
    NoProxyFence,
    NoFence,
    NoCommit,
    NoWait,
    ReadWithoutSettle,
    SettledBeforeWait,
    OperandOverwritten,
    OneWarpMissing,
    AccumulatorWritten,
    DescriptorBeyond,
}

fn multiplication(mistake: Multiplication, buffers: Buffers) {
    use Multiplication::*;
    let thread = thread::thread_idx_x();
    let (left, right) = (shared::dynamic(), shared::dynamic() + 4096);
    unsafe {
        for index in 0..16 {
            shared::store_u32(left + 4 * (thread + 128 * index), 0x0101_0101);
        }
        if mistake != NoProxyFence {
            barrier::fence_proxy_async();
        }
        thread::sync_threads();
        let mut scores = [0; 32];
        if mistake != NoFence {
            wgmma::fence();
        }
        if mistake != OneWarpMissing || thread >= 32 {
            let right = if mistake == DescriptorBeyond { shared::dynamic() + SHARED_BYTES - 1024 } else { right };
            wgmma::m64n64k32_s32_s8::<false>(&mut scores, Descriptor::new(left, 64), Descriptor::new(right, 64));
            if mistake == AccumulatorWritten {
                scores[0] = 3;
            }
            wgmma::m64n64k32_s32_s8::<true>(&mut scores, Descriptor::new(left, 64), Descriptor::new(right, 64));
        }
        if mistake != NoCommit {
            wgmma::commit();
        }
        if mistake == OperandOverwritten {
            shared::store_u32(right + 4 * thread, 0x0202_0202);
        }
        if mistake == SettledBeforeWait {
            wgmma::settle(&mut scores);
        }
        if mistake != NoWait {
            wgmma::wait::<0>();
        }
        if mistake != ReadWithoutSettle {
            wgmma::settle(&mut scores);
        }
        let score = math::fma(scores[3] as f32, 1.0, 0.0);
        if mistake == Right {
            assert_eq!(score, 64.0);
        }
        thread::sync_threads();
        shared::store_u32(right + 4 * thread, 0x0202_0202);
        global::store_f32(buffers.output + 4 * thread as u64, score);
    }
}

macro_rules! multiplications {
    ($($name:ident, $mistake:ident, [$($kind:ident),*];)*) => { $(
        #[test]
        fn $name() {
            check(128, &[$(Kind::$kind),*], |mistake, buffers| {
                multiplication(if mistake { Multiplication::$mistake } else { Multiplication::Right }, buffers)
            });
        }
    )* };
}

multiplications! {
    missing_proxy_fence, NoProxyFence, [ProxyFence];
    missing_wgmma_fence, NoFence, [Product];
    product_not_committed, NoCommit, [Product];
    accumulator_read_before_wait, NoWait, [Product];
    accumulator_not_settled, ReadWithoutSettle, [Poison];
    accumulator_settled_before_wait, SettledBeforeWait, [Product];
    operand_overwritten_in_flight, OperandOverwritten, [Race];
    warp_missing_from_a_product, OneWarpMissing, [Divergence];
    accumulator_written_in_flight, AccumulatorWritten, [Product];
    operand_out_of_bounds, DescriptorBeyond, [OutOfBounds, Uninitialized];
}

/// Two products of 16 f16 probabilities and values, all ones, on one accumulator.
#[derive(Clone, Copy, PartialEq)]
enum HalfMultiplication {
    Right,
    NoFence,
    NoFenceBetween,
    ReadWithoutSettle,
    OperandOverwritten,
    DescriptorBeyond,
}

fn half_multiplication(mistake: HalfMultiplication, buffers: Buffers) {
    use HalfMultiplication::*;
    const ONES: u32 = 0x3c00_3c00;
    let thread = thread::thread_idx_x();
    // 64 channels in groups of eight, 2048 bytes apart
    let values = shared::dynamic();
    unsafe {
        for index in 0..32 {
            shared::store_u32(values + 4 * (thread + 128 * index), ONES);
        }
        barrier::fence_proxy_async();
        thread::sync_threads();
        let mut sums = [1.0f32; 32];
        let place = if mistake == DescriptorBeyond { values + 4096 } else { values };
        let descriptor = Descriptor::with_stride(place, 128, 2048);
        let multiply = |sums: &mut [f32; 32], probabilities: &[u32; 4]| {
            ValueAccumulator::<wgmma::F16>::multiply_accumulate(sums, probabilities, descriptor)
        };
        if mistake != NoFence {
            wgmma::fence();
        }
        multiply(&mut sums, &[ONES; 4]);
        wgmma::commit();
        if mistake == OperandOverwritten {
            shared::store_u32(values + 4 * thread, 0);
        }
        wgmma::wait::<0>();
        wgmma::settle(&mut sums);
        let [low, high] = [sums[0] - 17.0, sums[31] - 17.0];
        if mistake == Right {
            assert_eq!([low, high], [0.0; 2]);
        }
        if mistake != NoFenceBetween {
            wgmma::fence();
        }
        multiply(&mut sums, &[ONES; 4]);
        wgmma::commit();
        wgmma::wait::<0>();
        if mistake != ReadWithoutSettle {
            wgmma::settle(&mut sums);
        }
        let sum = math::fma(sums[3], 1.0, 0.0);
        if mistake == Right {
            assert_eq!(sum, 33.0);
        }
        global::store_f32(buffers.output + 4 * thread as u64, sum);
    }
}

macro_rules! half_multiplications {
    ($($name:ident, $mistake:ident, [$($kind:ident),*];)*) => { $(
        #[test]
        fn $name() {
            check(128, &[$(Kind::$kind),*], |mistake, buffers| {
                let mistake = if mistake { HalfMultiplication::$mistake } else { HalfMultiplication::Right };
                half_multiplication(mistake, buffers)
            });
        }
    )* };
}

half_multiplications! {
    half_product_without_fence, NoFence, [Product];
    half_product_without_second_fence, NoFenceBetween, [Product];
    half_accumulator_not_settled, ReadWithoutSettle, [Poison];
    half_operand_overwritten_in_flight, OperandOverwritten, [Race];
    half_operand_beyond_its_tile, DescriptorBeyond, [Uninitialized];
}

/// Three blocks that write a word a thread; the last to be done adds up what all have written.
#[derive(Clone, Copy, PartialEq)]
enum LastBlock {
    Right,
    RelaxedCounter,
    NoBarrierBeforeCounting,
    NoBarrierAfterCounting,
    ReadOnlyLoads,
    EverybodyIsLast,
}

fn last_block(mistake: LastBlock, buffers: Buffers) {
    use LastBlock::*;
    let (thread, blocks) = (thread::thread_idx_x(), thread::grid_dim_x());
    let place = |block: u32, thread: u32| buffers.output + 4 * (64 * block + thread) as u64;
    unsafe {
        global::store_f32(place(thread::block_idx_x(), thread), 1.0);
        if mistake != NoBarrierBeforeCounting {
            thread::sync_threads();
        }
        if thread == 0 {
            let count = match mistake {
                RelaxedCounter => global::fetch_add_u32(buffers.counters, 1),
                _ => global::fetch_add_acq_rel_u32(buffers.counters, 1),
            };
            shared::store_u32(word(0), count);
        }
        if mistake != NoBarrierAfterCounting {
            thread::sync_threads();
        }
        if shared::load_u32(word(0)) == blocks - 1 || mistake == EverybodyIsLast {
            let load = |address| match mistake {
                ReadOnlyLoads => global::load_f32(address),
                _ => global::load_written_f32(address),
            };
            let sum: f32 = (0..blocks).map(|block| load(place(block, 63 - thread))).sum();
            assert_eq!(sum, blocks as f32);
        }
    }
}

/// Three blocks that claim a turn: the first writes sixteen bytes a thread, the others wait and read. The last to have read
/// writes again.
#[derive(Clone, Copy, PartialEq)]
enum Turns {
    Right,
    NoWait,
    PlainFlag,
    NoFlag,
    NoBarrierBeforeFlag,
    NoBarrierAfterWait,
    WrittenAgainTooEarly,
    PlainReset,
}

fn turns(mistake: Turns, buffers: Buffers) {
    use Turns::*;
    let thread = thread::thread_idx_x();
    let (claims, flag, done) = (buffers.counters, buffers.counters + 4, buffers.counters + 8);
    let place = |thread: u32| buffers.output + 16 * thread as u64;
    unsafe {
        if thread == 0 {
            shared::store_u32(word(0), global::fetch_add_u32(claims, 1));
        }
        thread::sync_threads();
        if shared::load_u32(word(0)) == 0 {
            global::store_u32x4(place(thread), [thread; 4]);
            if mistake != NoBarrierBeforeFlag {
                thread::sync_threads();
            }
            match (thread, mistake) {
                (0, NoFlag) => {}
                (0, PlainFlag) => global::store_u32(flag, 1),
                (0, _) => _ = global::fetch_add_acq_rel_u32(flag, 1),
                _ => {}
            }
            return;
        }
        if thread == 0 && mistake != NoWait {
            global::wait_until_u32(flag, 1);
        }
        if mistake != NoBarrierAfterWait {
            thread::sync_threads();
        }
        assert_eq!(global::load_written_u32x4(place(63 - thread)), [63 - thread; 4]);
        thread::sync_threads();
        if thread == 0 {
            let before = match mistake {
                WrittenAgainTooEarly => 1,
                _ => global::fetch_add_acq_rel_u32(done, 1),
            };
            shared::store_u32(word(0), before);
        }
        thread::sync_threads();
        if shared::load_u32(word(0)) == 1 {
            global::store_u32x4(place(thread), [0; 4]);
        }
        if mistake == PlainReset && thread == 0 {
            global::store_u32(done, 0);
        }
    }
}

macro_rules! between_blocks {
    ($kernel:ident, $mistakes:ident: $($name:ident, $mistake:ident, [$($kind:ident),*];)*) => { $(
        #[test]
        fn $name() {
            let kernel = |mistake, buffers| {
                $kernel(if mistake { $mistakes::$mistake } else { $mistakes::Right }, buffers);
            };
            check_planted(&Planted { blocks: 3, threads: 64, kinds: &[$(Kind::$kind),*], kernel });
        }
    )* };
}

between_blocks! { last_block, LastBlock:
    counter_that_releases_nothing, RelaxedCounter, [Race];
    counted_before_all_have_written, NoBarrierBeforeCounting, [Race, Uninitialized];
    only_the_counting_thread_acquires, NoBarrierAfterCounting, [Race, Uninitialized];
    other_blocks_words_through_the_read_only_path, ReadOnlyLoads, [Race];
    not_the_last_block, EverybodyIsLast, [Race, Uninitialized];
}

between_blocks! { turns, Turns:
    no_wait_for_another_block, NoWait, [Race, Uninitialized];
    flag_that_releases_nothing, PlainFlag, [Race];
    flag_that_nobody_sets, NoFlag, [Deadlock];
    flag_before_all_have_written, NoBarrierBeforeFlag, [Race, Uninitialized];
    only_the_waiting_thread_acquires, NoBarrierAfterWait, [Race, Uninitialized];
    written_again_while_others_read, WrittenAgainTooEarly, [Race];
    counter_reset_while_others_count, PlainReset, [Race];
}

/// Bad launches are refused.
#[test]
fn bad_launches() {
    let memory = Memory::new();
    let shape = Launch { grid: [1, 1, 1], threads: 32, shared_bytes: 0, blocks: Blocks::Parallel };
    for bad in [
        Launch { grid: [0, 1, 1], ..shape },
        Launch { threads: 0, ..shape },
        Launch { threads: 33, ..shape },
        Launch { threads: 2048, ..shape },
        Launch { shared_bytes: 228 * 1024, ..shape },
    ] {
        let report = launch(bad, &memory, &Options::new(Schedule::InOrder), || ()).expect_err("a bad launch");
        assert_eq!(report.kind, Kind::Launch, "{report}");
    }
    let atomic = || _ = unsafe { global::fetch_add_u32(0, 1) };
    let in_parallel = launch(shape, &memory, &Options::new(Schedule::InOrder), atomic);
    assert_eq!(in_parallel.expect_err("atomics of blocks in parallel").kind, Kind::Launch);
    let wrong_shapes = [
        (Launch { threads: 96, shared_bytes: SLOTS * TILE, ..shape }, Kind::OutOfBounds),
        (Launch { threads: 64, shared_bytes: SHARED_BYTES, ..shape }, Kind::Deadlock),
    ];
    for (wrong, kind) in wrong_shapes {
        let mut memory = Memory::new();
        let buffers = Buffers { input: memory.upload("input", &[1; 16384]), output: 0, counters: 0 };
        let kernel = || pipeline(Pipeline::Right, buffers);
        let report = launch(wrong, &memory, &Options::new(Schedule::InOrder), kernel).expect_err("a wrong shape");
        assert_eq!(report.kind, kind, "{report}");
    }
    let panics = launch(shape, &memory, &Options::new(Schedule::InOrder), || panic!("by the kernel"));
    assert_eq!(panics.expect_err("a panic").kind, Kind::Panic);
}

/// The same seed gives the same report.
#[test]
fn seeds_replay() {
    let kernel = |mistake: bool, buffers| {
        pipeline(if mistake { Pipeline::DoubleArrival } else { Pipeline::Right }, buffers);
    };
    let planted = Planted { blocks: 1, threads: 96, kinds: &[], kernel };
    for seed in 0..20 {
        let report = || run(&planted, true, Schedule::Random(seed)).err().map(|report| report.to_string());
        assert_eq!(report(), report());
    }
}
